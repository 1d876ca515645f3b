"""Results that show themselves: in a terminal as lines, in a notebook as coloured text and bars."""

import numpy as np
import pytest
from tiny import tiny_reward_model, tiny_tokenizer

from sparserm_hf import Evaluation, explain
from sparserm_hf.explanations.text_explanation import SHOWN_TOKENS, LatentEffect, TextExplanation, TokenEffect

EVIL = "</span><script>document.title='taken'</script><img src=x onerror=alert(1)>'\"&{{ 7 * 7 }}\u202e\x00"


def explanation(names, texts, contributions):
    latents = [
        LatentEffect(i, "chosen", name, None, 1.0, 0.0, 0.0, c, c, [], None)
        for i, (name, c) in enumerate(zip(names, contributions, strict=False))
    ]
    tokens = [TokenEffect(text, c, 0.0) for text, c in zip(texts, contributions, strict=False)]
    added = sum(latent.contribution for latent in latents)
    return TextExplanation(0.5 + added, 0.5, latents, tokens, 0.0)


@pytest.fixture
def shown(tmp_path, opened):
    """Opens an explanation as a page that is light or dark, as wide as a notebook or a phone."""

    def shown(found, width=900, scheme="light"):
        page = tmp_path / "page.html"
        paper = '<meta charset="utf-8"><meta name="color-scheme" content="light dark"><title>mine</title>'
        page.write_text(f"<!doctype html>{paper}{found._repr_html_()}", encoding="utf-8")
        return opened(page, width, 700, scheme)

    return shown


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [900, 390])
def test_a_notebook_shows_the_response_and_a_bar_a_latent(shown, width, scheme):
    found = explanation(["numbers", "", "a name " * 30], ["Two", " and", "\n\ntwo", " is four"], [0.4, -0.2, 0.1, 0.0])
    page = shown(found, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    tokens = page.locator("span[title]")
    assert tokens.all_text_contents() == [token.text for token in found.tokens]
    colours = tokens.evaluate_all("ts => ts.map(t => getComputedStyle(t).backgroundColor)")
    assert colours == [
        "rgba(31, 157, 87, 0.6)",
        "rgba(214, 69, 69, 0.3)",
        "rgba(31, 157, 87, 0.15)",
        "rgba(214, 69, 69, 0)",
    ]
    bars = page.locator("div[style*=gradient]")
    assert bars.count() == 3 and all(bar.bounding_box()["width"] > 60 for bar in bars.all())
    assert "50%, rgba(31, 157, 87, 0.8) 0px, rgba(31, 157, 87, 0.8) 100%" in bars.first.evaluate(
        "b => getComputedStyle(b).backgroundImage"
    )
    for text in ("numbers", "no name", "+0.400", "-0.200", "Reward 0.800 = 0.500"):
        assert page.get_by_text(text).count() > 0
    ink, body = page.locator("span[title]").first.evaluate(
        "t => [t, document.body].map(e => getComputedStyle(e).color)"
    )
    assert ink == body, "the page's own ink"
    assert page.wrong == []


def test_hostile_names_and_tokens_are_shown_as_text(shown):
    found = explanation([EVIL], ["w1 ", EVIL], [0.4, -0.2])
    page = shown(found)
    assert page.title() == "mine" and page.locator("img, script").count() == 0 and page.wrong == []
    seen = EVIL.replace("\u202e", "\ufffd").replace("\x00", "\u2400")
    assert page.locator("span[title]").nth(1).text_content() == seen
    assert page.get_by_text(seen).count() == 2
    assert "\u202e" not in repr(found) and "\x00" not in repr(found)


def test_a_long_response_is_cut_and_an_empty_one_is_said_to_be_empty(shown):
    assert shown(explanation([], ["w "] * (SHOWN_TOKENS + 5), [0.1] * 400)).get_by_text("5 tokens more").count() == 1
    assert shown(explanation(["one"], [], [0.1])).get_by_text("The response is empty.").count() == 1


def test_results_of_a_model_print_their_figures():
    model, tokenizer = tiny_reward_model(), tiny_tokenizer()
    found = explain(model, tokenizer, [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2 w3"}])
    first, *latents, rest = repr(found).splitlines()
    assert first.startswith(f"Reward {found.reward:.3f} = {found.base:.3f} of the average response ")
    assert [line.split()[-1] for line in latents] == [f"{effect.latent})" for effect in found.latents[:5]]
    assert rest.endswith("  1 other latents")
    assert found._repr_html_().count("title=") == len(found.tokens)
    margins = {"SparseRM": np.array([1.0, 2.0, -1.0, 0.0]), "a\x1b[2J": np.array([1.0, 1.0, 1.0, 1.0])}
    lines = repr(Evaluation(margins, {}, 1.0)).splitlines()
    assert lines[0] == "Evaluation of 4 pairs, accuracy (95% interval):" and "\x1b" not in "".join(lines)
    assert lines[1].split(maxsplit=1) == ["SparseRM", "62.5% (15.0 to 85.0)"]
