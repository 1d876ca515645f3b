"""The model card: it runs as printed, its figures are those of the evaluation, its metadata is what the Hub reads."""

import re
from dataclasses import replace

import huggingface_hub
import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard, metadata_load
from markdown_it import MarkdownIt
from matplotlib.image import imread
from sparserm_hf.hub_cards.render import as_code, as_text, render_model_card
from tiny import tiny_tokenizer
from transformers import AutoConfig
from world import make_rows, without_package, write_jsonl

from sparserm_hf import load_preferences
from sparserm_hf.conversations.data_sources import DataSource
from sparserm_hf.conversations.encoding import ChatEncoder
from sparserm_hf.conversations.response_marks import find_marks
from sparserm_hf.conversations.tokenized_preferences import tokenize_preferences
from sparserm_hf.conversations.tokenizer_preparation import prepare_tokenizer
from sparserm_hf.evaluation.evaluation import EVALUATION_FILE, Evaluation
from sparserm_hf.scoring.reward_models import load_reward_model
from sparserm_hf.scoring.scored_rows import score_rows
from sparserm_hf.training.run_facts import DataFacts, RunFacts


@pytest.fixture(scope="module")
def card(trained):
    return ModelCard.load(trained / "README.md")


def test_its_usage_runs_as_printed_without_this_package(trained, card):
    (code,) = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    assert len(code.strip().splitlines()) <= 12
    code, count = re.subn(r'^name = ".*?"', f"name = {str(trained)!r}", code, flags=re.MULTILINE)
    assert count == 1
    run = without_package(code)
    assert run.returncode == 0, run.stderr
    question = {"role": "user", "content": "What is the capital of France?"}
    row = {"messages": [question, {"role": "assistant", "content": "Paris."}]}
    (scored,) = score_rows(*load_reward_model(str(trained), torch.device("cpu")), [row])
    printed = float(re.search(r"tensor\((.*?)[,)]", run.stdout)[1])
    assert printed == pytest.approx(scored["reward"], abs=1e-3)


def test_its_metadata_carries_the_results_with_controls_and_intervals(trained, card):
    metrics = Evaluation.load(trained / EVALUATION_FILE).metrics
    results = {result.metric_name: result for result in card.data.eval_results}
    assert len(results) == len(metrics) == 5
    ours, dense = results["accuracy"], results["accuracy of the control: dense representation"]
    assert ours.metric_value == pytest.approx(metrics["SparseRM"].accuracy, abs=1e-4)
    assert dense.metric_value == pytest.approx(metrics["dense representation"].accuracy, abs=1e-4)
    low, high = ours.metric_args["interval_95"]
    assert low < ours.metric_value < high
    assert card.data.model_name == "model" and card.data.library_name == "transformers"
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


def test_it_shows_what_a_reader_asks_for(trained, card):
    (plot,) = re.findall(r"!\[.*?\]\((.*?)\)", card.text)
    height, width = imread(trained / plot).shape[:2]
    assert width > 1000 and height > 300
    for heading in (
        "## Use",
        "## Intended use",
        "## How good it is",
        "## Responses made to exploit it",
        "## How it was made",
        "## What it looks at",
        "## Limits",
    ):
        assert heading in card.text
    assert "have licences of their own" in card.text and "@article{liu2025sparserm" in card.text
    tables = re.findall(r"(?:^\|.*\n)+", card.text, flags=re.MULTILINE)
    assert len(tables) == 7
    for table in tables:
        assert len({line.replace(r"\|", "").count("|") for line in table.splitlines()}) == 1, table


HOSTILE = 'a`b|c*d*\n# e <script>x</script> [f](http://g) &amp; "h" $i$ \u202ej'
SHOWN = 'a`b|c*d* # e <script>x</script> [f](http://g) &amp; "h" $i$ j'
METRICS = {"trainable_parameters": 17, "base_parameters": 1700, "representation_seconds": 1234.56, "fit_seconds": 2.0}


def cells(markdown):
    """The cells of all table rows, as a reader sees them."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    rows = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and token.level == 4:
            assert {child.type for child in token.children} <= {
                "text",
                "text_special",
                "code_inline",
                "link_open",
                "link_close",
            }
            rows[-1].append("".join(child.content for child in token.children))
    return rows


def run_facts(**changes):
    data = DataFacts(
        DataSource("somebody/pairs", True, "train[:900]"), 1000, 999, 7.5, 300, 1024, 4, {"empty response": 2}
    )
    facts = RunFacts({"training": data}, {"k": 8}, {"k": "auto"}, 1024, "A GPU", 2, "bfloat16", {"torch": "2.9"})
    return replace(facts, **changes)


def test_foreign_text_reads_as_it_was_written():
    (row,) = cells(f"| {as_text(HOSTILE)} | {as_code(HOSTILE)} |\n|---|---|\n")
    assert row == [SHOWN, SHOWN]


def test_foreign_names_cannot_change_the_card(trained):
    config = AutoConfig.from_pretrained(trained)
    config.change_latents(label={latent: HOSTILE for latent in config.latent_ids})
    config.base_model_name_or_path = config.sae_source["source"] = HOSTILE.replace("/", "")
    facts = run_facts(device=HOSTILE, processes=1)
    data = {"training": replace(facts.data["training"], source=DataSource(HOSTILE))}
    card = render_model_card("name", config, replace(facts, data=data), METRICS)
    plain = render_model_card("name", AutoConfig.from_pretrained(trained), run_facts(), METRICS)
    tables, plain_tables = cells(ModelCard(card).text), cells(ModelCard(plain).text)
    assert [len(row) for row in tables] == [len(row) for row in plain_tables]
    assert sum(SHOWN in row for row in tables) == len(config.latents) + 2  # the dataset and the hardware
    assert re.findall("^#+ .*", ModelCard(card).text, re.MULTILINE) == re.findall(
        "^#+ .*", ModelCard(plain).text, re.MULTILINE
    )


def test_it_says_what_it_was_made_of(world, card):
    rows = {row[0]: row[1:] for row in cells(card.text)}
    assert rows["dataset"] == ["train.jsonl", "test.jsonl"] and str(world) not in str(card)
    assert rows["pairs"] == rows["prompts"] == ["120", "60"]
    assert rows["tokens of a response, median"] == rows["tokens of the longest response"] == ["8", "8"]
    assert rows["pairs whose prompt lost its start"] == rows["pairs left out"] == ["0", "0"]
    assert rows["check_sae"] == ["False", "True"] and rows["k"] == ["8", "auto"] and rows["loss"] == ["margin", ""]
    assert "output_dir" not in rows and "gamma" not in rows
    assert rows["torch"] == [torch.__version__] and {
        "sparserm-hf",
        "transformers",
        "sae-lens",
        "Python",
        "hardware",
    } < set(rows)
    latents = [row for row in cells(card.text) if len(row) == 7][1:]
    scores = [float(row[2]) for row in latents if row[2]]
    told = re.search(r"mean F1 of all (\d+) names that were tested is (.*?)\.\n", card.text)
    assert int(told[1]) == len(scores) and float(told[2]) == pytest.approx(sum(scores) / len(scores), abs=0.01)


def test_the_lengths_are_those_of_the_tokens():
    """A prompt of three words; responses of 1 and 2, and of 3 and 5 words, the last too long for its limit."""
    tokenizer = prepare_tokenizer(tiny_tokenizer())
    question, words = [{"role": "user", "content": "w1 w2 w3"}], (1, 2, 3, 5)
    first, second, third, fourth = ([{"role": "assistant", "content": " ".join(["w4"] * n)}] for n in words)
    rows = [{"prompt": question, "chosen": first, "rejected": second}]
    rows += [{"prompt": question, "chosen": third, "rejected": fourth}, {"chosen": first, "rejected": first}]
    whole = tokenize_preferences(rows, ChatEncoder(tokenizer, find_marks(tokenizer)))
    facts = DataFacts.of(whole)
    assert (facts.pairs, facts.prompts, facts.median_response, facts.longest_response) == (2, 1, 2.5, 5)
    assert facts.cut == 0 and facts.source == DataSource() and sum(facts.left_out.values()) == 1
    limit = facts.longest_text - 2  # the text ends with the end of the turn
    cut = DataFacts.of(tokenize_preferences(rows, ChatEncoder(tokenizer, find_marks(tokenizer), max_length=limit)))
    assert (cut.cut, cut.longest_response) == (1, 5) and cut.longest_text <= limit


def test_a_source_has_no_folder_of_this_machine(tmp_path):
    path = write_jsonl(tmp_path / "pairs.jsonl", make_rows(3))
    assert DataSource.of(load_preferences(path)) == DataSource("pairs.jsonl")
    assert DataSource.of(load_preferences(path).map(lambda row: row)) == DataSource("pairs.jsonl")
    assert DataSource.of(load_preferences(path, "train[1:]")) == DataSource("pairs.jsonl, train[1:]")
    read_by_datasets = Dataset.from_json(path, cache_dir=str(tmp_path / "cache"))
    assert DataSource.of(read_by_datasets) == DataSource.of(Dataset.from_list(make_rows(2))) == DataSource()
    folder = tmp_path / "folder"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", make_rows(3))
    assert DataSource.of(load_preferences(str(folder))) == DataSource("folder")
    DataSource.note(read_by_datasets, "somebody/Pairs")
    assert DataSource.of(read_by_datasets.select([0])) == DataSource("somebody/Pairs", True, "train")


def hub_card(trained, evaluation):
    config = AutoConfig.from_pretrained(trained)
    config.base_model_name_or_path, config.base_model_revision = "somebody/base", "0" * 40
    facts = run_facts()
    held_out = {"held-out": facts.data["training"]} if evaluation else {}
    return ModelCard(
        render_model_card("me/rm", config, replace(facts, data={**facts.data, **held_out}), METRICS, evaluation)
    )


def test_metadata_of_the_hub_names_what_is_there(trained, tmp_path):
    card = hub_card(trained, Evaluation.load(trained / EVALUATION_FILE))
    card.save(tmp_path / "README.md")
    data = metadata_load(tmp_path / "README.md")
    assert data["datasets"] == ["somebody/pairs"] and data["base_model"] == "somebody/base"
    assert data["license"] == "other" and data["license_link"] == "https://huggingface.co/somebody/base"
    assert ModelCard.load(tmp_path / "README.md").data.to_dict() == card.data.to_dict() == data
    (result,) = data["model-index"][0]["results"]
    assert result["dataset"]["type"] == "somebody/pairs" and result["dataset"]["split"] == "train[:900]"
    own = metadata_load(trained / "README.md")
    assert not {"datasets", "base_model", "license_link"} & set(own)  # the parts lie in folders
    assert own["model-index"][0]["results"][0]["dataset"]["name"] == "60 held-out preference pairs of test.jsonl"


def test_the_hub_takes_its_metadata(trained, monkeypatch):
    pytest.importorskip("fastapi")
    from hub_server import running_hub

    with running_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        card = hub_card(trained, Evaluation.load(trained / EVALUATION_FILE))
        card.validate()
        hub_card(trained, None).validate()
        ModelCard.load(trained / "README.md").validate()
        card.data.datasets = ["train.jsonl"]
        with pytest.raises(ValueError, match="datasets 'train"):
            card.validate()


def test_what_is_not_known_leaves_no_heading(trained):
    card = hub_card(trained, None)
    assert "model-index" not in card.data.to_dict() and "held-out" not in card.data.to_dict()
    headings = re.findall("^## (.*)", card.text, re.MULTILINE)
    assert "How good it is" not in headings and "Responses made to exploit it" not in headings
    assert "It was saved without an evaluation on held-out pairs." in card.text
    for heading, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", card.text, re.MULTILINE | re.DOTALL):
        assert text.strip(), heading
