"""The README's picture: a held-out pair of the demo, explained by the demo's reward model.

    make demo
    python benchmarks/picture.py demo-output

Writes `docs/explained-pair.png`: both responses as a notebook shows an explanation. Needs a browser, see `make test`.
"""

import shutil
import sys
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import sync_playwright

from sparserm_hf import explain, load_preferences, load_reward_model
from sparserm_hf.explanations import text_explanation

PICTURE = Path(__file__).parent.parent / "docs" / "explained-pair.png"
QUESTION = "Have humans flown close to the sun?"
LATENTS = 5  # latents that are shown of a response
PAGE = """<!doctype html><meta charset="utf-8">
<body style="margin:16px 20px;font:15px system-ui,sans-serif;color:#1b1f24">
<b>{question}</b>
{responses}"""


def main(demo: str) -> None:
    """Draw the picture with the reward model and the held-out pairs in the demo's folder."""
    text_explanation.SHOWN_LATENTS = LATENTS
    model, tokenizer = load_reward_model(f"{demo}/model")
    pairs = load_preferences(f"{demo}/test.jsonl")
    pair = next(pair for pair in pairs if pair["prompt"][0]["content"] == QUESTION)
    responses = ""
    for side in ("chosen", "rejected"):
        explained = explain(model, tokenizer, pair["prompt"] + pair[side])
        responses += f"<p><b>{side}</b>{explained._repr_html_()}"
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = Path(folder) / "pair.html"
        page.write_text(PAGE.format(question=escape(QUESTION), responses=responses), encoding="utf-8")
        found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        browser = playwright.chromium.launch(executable_path=found)
        shot = browser.new_page(viewport={"width": 660, "height": 300}, device_scale_factor=2)
        shot.goto(page.as_uri())
        shot.screenshot(path=PICTURE, full_page=True)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
