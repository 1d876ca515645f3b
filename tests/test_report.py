"""The report, looked at in a real browser: whole without a network, readable on a phone, usable by keyboard."""

import pytest
from world import write_jsonl

from sparserm_hf.cli.main import main


@pytest.fixture(scope="module")
def report(world, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report.html"
    arguments = ["--dataset", str(world / "test.jsonl"), "--examples", "9", "--cache_dir", str(world / "cache")]
    assert main(["report", str(trained), *arguments, "--output", str(out)]) == 0
    return out


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width, height", [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_nothing_overflows_and_nothing_goes_wrong(report, opened, width, height, scheme):
    page = opened(report, width, height, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("figure svg").count() == 3
    for figure in page.locator("figure svg").all():
        assert figure.bounding_box()["width"] > 200
    ink, paper = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    brightness = [sum(map(int, colour[4:-1].split(","))) for colour in (ink, paper)]
    assert (brightness[0] < brightness[1]) == (scheme == "light")
    text = page.locator("figure svg text").first.evaluate("e => getComputedStyle(e).fill")
    assert text == ink, "plots have the colour of the page"
    assert page.wrong == []


def test_examples_are_recoloured_and_filtered_by_keyboard(report, opened):
    page = opened(report)
    assert page.locator(".pair").count() == 9
    pair = page.locator("details.pair").nth(1)
    pair.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert pair.get_attribute("open") is not None

    def colours():
        read = "ts => ts.map(t => (t.classList.contains('m') ? -1 : 1) * t.style.getPropertyValue('--v'))"
        return pair.locator(".tokens .t").evaluate_all(read)

    together = colours()
    pair.locator(".by").focus()
    page.keyboard.press("ArrowDown")
    assert pair.locator(".by").input_value() != "all" and colours() != together
    page.keyboard.press("ArrowUp")
    assert colours() == together
    verdicts = page.locator("details.pair").evaluate_all("ps => ps.map(p => p.dataset.verdict)")
    assert {"right", "wrong"} == set(verdicts)
    page.locator("#show").select_option("wrong")
    assert page.locator("details.pair:visible").count() == verdicts.count("wrong")
    # Tab reaches what scrolls, opens and chooses.
    page.locator("#show").select_option("")
    page.locator("h1").click()
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.tagName"))
    assert {"A", "DIV", "SUMMARY", "SELECT"} <= reached
    assert page.wrong == []


def test_it_is_small_whole_and_escapes_what_it_shows(report, trained, world, tmp_path, opened):
    assert report.stat().st_size < 3 * 2**20
    evil = "w1 </script><script>document.title='taken'</script><img src=x onerror=alert(1)> w2"
    rows = [
        {
            "prompt": [{"role": "user", "content": evil}],
            "chosen": [{"role": "assistant", "content": "w1 w2"}],
            "rejected": [{"role": "assistant", "content": f"w{i} w3"}],
        }
        for i in range(3, 6)
    ]
    labelled, out = tmp_path / "labelled", tmp_path / "evil.html"
    latent = next(line for line in (trained / "README.md").read_text().splitlines() if "| chosen |" in line).split()[1]
    label = f"{latent}=<b>'\"&{evil}"
    assert main(["edit", str(trained), "--label", label, "--output_dir", str(labelled)]) == 0
    dataset = write_jsonl(tmp_path / "evil.jsonl", rows)
    arguments = ["--dataset", dataset, "--cache_dir", str(tmp_path / "cache"), "--output", str(out)]
    assert main(["report", str(labelled), *arguments]) == 0
    page = opened(out)
    assert page.title() != "taken" and page.locator("img").count() == 0 and page.wrong == []
    assert page.get_by_text("<b>'\"&w1 </script>").count() > 0


def test_without_pairs_it_tells_what_a_checkpoint_knows(trained, reward_model, tmp_path, opened, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(trained)]) == 0
    page = opened(tmp_path / "model-report.html")
    assert page.get_by_text("dense representation").count() > 0 and page.locator(".pair").count() == 0
    assert page.wrong == []
    assert main(["report", str(trained)]) == 0, "a report is made anew"
    assert main(["report", reward_model, "--output", "bare.html"]) == 0
    assert "without an evaluation" in (tmp_path / "bare.html").read_text()
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    assert main(["report", str(trained), "--output", "mine.html"]) == 2
    assert main(["report", str(trained), "--output", "no/where.html"]) == 2
    errors = capsys.readouterr().err
    assert "is not a report" in errors and "There is no folder no" in errors
