"""The model card: it runs as printed, its figures are those of the evaluation, its metadata is what the Hub reads."""

import re

import pytest
import torch
from huggingface_hub import ModelCard
from matplotlib.image import imread
from world import without_package

from sparserm_hf.evaluation.evaluation import EVALUATION_FILE, Evaluation
from sparserm_hf.scoring.reward_models import load_reward_model
from sparserm_hf.scoring.scored_rows import score_rows


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
        "## How good it is",
        "## Responses made to exploit it",
        "## How it was made",
        "## What it looks at",
        "## Limits",
    ):
        assert heading in card.text
    assert "have licences of their own" in card.text and "@article{liu2025sparserm" in card.text
    tables = re.findall(r"(?:^\|.*\n)+", card.text, flags=re.MULTILINE)
    assert len(tables) == 4
    for table in tables:
        assert len({line.replace(r"\|", "").count("|") for line in table.splitlines()}) == 1, table
