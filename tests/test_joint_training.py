"""Several objectives trained in one run give the model that `combine` makes of models that were trained one by one."""

import json
from dataclasses import replace
from itertools import zip_longest
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from scipy import sparse
from sparserm_hf.modeling.configuration_sparserm import SparseRMConfig
from world import make_rows, options, train_arguments, write_jsonl

from sparserm_hf import (
    SparseRMError,
    SparseRMTrainer,
    SparseRMTrainingConfig,
    combine,
    evaluate,
    load_preferences,
    load_reward_model,
    score_rows,
)
from sparserm_hf.cli.main import main
from sparserm_hf.representations import Representations
from sparserm_hf.training import joint_training
from sparserm_hf.training.joint_training import join_pairs

CPU = torch.device("cpu")
ROWS = [{"messages": row["prompt"] + row["chosen"]} for row in make_rows(5, seed=8)]


def even_rows(count, seed):
    """Chosen responses use even words more often, rejected ones odd words."""

    def even_first(message):
        words = [int(word[1:]) for word in message["content"].split()]
        words = [2 * (number % 30) + number // 30 for number in words]  # 0 to 29 become even, 30 to 59 odd
        return message | {"content": " ".join(f"w{number}" for number in words)}

    rows = make_rows(count, seed)
    return [row | {side: [even_first(m) for m in row[side]] for side in ("chosen", "rejected")} for row in rows]


def data(count, seed=0):
    """Pairs of two objectives by name. Some prompts and responses are in both, with other preferences."""
    low, even = make_rows(count, seed), even_rows(count, seed + 1)
    shared = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in low[:4]]
    return {"low": low, "even": [*even, *shared]}


def with_column(of_objectives):
    """The rows of all objectives, which alternate."""
    named = [[row | {"objective": name} for row in rows] for name, rows in of_objectives.items()]
    return [row for rows in zip_longest(*named) for row in rows if row]


def config(world, out, **changes):
    defaults = {"cache_dir": str(world / "cache"), "k": 6, "check_sae": False, "dtype": "float32", "controls": False}
    return SparseRMTrainingConfig(str(out), **(defaults | changes))


def joint_trainer(world, out, rows, test=None, **changes):
    args = config(world, out, **changes)
    return SparseRMTrainer(str(world / "base"), str(world / "sae"), args, rows, test)


def datasets(count):
    """A dataset for each objective."""
    return {name: Dataset.from_list(rows) for name, rows in data(count).items()}


def score(folder, rows=ROWS):
    return list(score_rows(*load_reward_model(str(folder), CPU), rows))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file for each objective, and one file with the column."""
    root = tmp_path_factory.mktemp("pairs")
    for name, rows in data(120).items():
        write_jsonl(root / f"{name}.jsonl", rows)
    write_jsonl(root / "both.jsonl", with_column(data(120)))
    write_jsonl(root / "test.jsonl", with_column({"low": make_rows(100, 5), "even": even_rows(100, 6)}))
    return root


@pytest.fixture(scope="module")
def joint(world, files, tmp_path_factory):
    """The trainer and the folder of a model that was trained on the file with the column."""
    folder = tmp_path_factory.mktemp("joint") / "both"
    pairs, test = (load_preferences(str(files / name)) for name in ("both.jsonl", "test.jsonl"))
    trainer = joint_trainer(world, folder, pairs, test)
    trainer.train()
    trainer.save_model()
    return trainer, folder


@pytest.mark.parametrize("changes", [{}, {"directions": "raw", "k": "auto", "loss": "bce", "debias": "length"}])
def test_the_rewards_are_those_of_separately_trained_models(world, files, tmp_path, changes, equal):
    for name in ("low", "even"):
        trainer = joint_trainer(world, tmp_path / name, load_preferences(str(files / f"{name}.jsonl")), **changes)
        trainer.train()
        trainer.save_model()
    combine([str(tmp_path / "low"), str(tmp_path / "even")], tmp_path / "combined")
    expected, known = score(tmp_path / "combined"), SparseRMConfig.from_pretrained(tmp_path / "combined")
    given = {name: load_preferences(str(files / f"{name}.jsonl")) for name in ("low", "even")}
    for rows in (given, Dataset.from_list(with_column(data(120)))):
        trainer = joint_trainer(world, tmp_path / "joint", rows, **changes)
        trainer.train()
        trainer.save_model()
        found, made = score(tmp_path / "joint"), SparseRMConfig.from_pretrained(tmp_path / "joint")
        assert made.latents == known.latents
        for name in ("low", "even"):
            rewards = [[row["reward_by_objective"][name] for row in scored] for scored in (expected, found)]
            equal("joint training, each objective", *rewards, 1e-5)
        assert [row["reward"] for row in found] == pytest.approx([row["reward"] for row in expected], abs=1e-5)
        assert made.reward_temperature == pytest.approx(known.reward_temperature, rel=1e-4)


def test_each_objective_is_evaluated_on_its_own_pairs(joint, files, tmp_path):
    trainer, folder = joint
    evaluation = trainer.evaluation
    assert list(trainer.objectives) == SparseRMConfig.from_pretrained(folder).objective_names
    assert sorted(evaluation.by_objective) == ["even", "low"]
    rows = [json.loads(line) for line in (files / "test.jsonl").read_text().splitlines()]
    for name, metrics in evaluation.by_objective.items():
        own = [row for row in rows if row["objective"] == name]
        alone = {of: evaluate(str(folder), own).metrics[f"objective {of} alone"] for of in ("low", "even")}
        assert metrics.pairs == len(own) and metrics.accuracy == alone.pop(name).accuracy
        assert metrics.accuracy > max(0.6, *(other.accuracy for other in alone.values()))
        assert trainer.metrics[f"eval_objective_{name}_on_its_own_pairs_accuracy"] == metrics.accuracy
    assert len(evaluation.own["low"]) + len(evaluation.own["even"]) == evaluation.pairs
    assert "objective low on its own pairs" in repr(evaluation)
    again = type(evaluation).load(folder / "evaluation.safetensors")
    assert again.by_objective == evaluation.by_objective
    replace(evaluation, own={"low": np.array([evaluation.pairs])}).save(tmp_path / "evaluation.safetensors")
    with pytest.raises(SparseRMError, match="the pairs of the objective 'low' are not among its pairs"):
        type(evaluation).load(tmp_path / "evaluation.safetensors")
    card = (folder / "README.md").read_text()
    assert "low, alone on its own 100 pairs" in card and "training, even" in card and "`sparserm train`" in card


def test_without_the_column_all_pairs_are_everyones(joint):
    trainer, _ = joint
    before = trainer.evaluation
    try:
        trainer.evaluate(Dataset.from_list(make_rows(20, seed=9)))
        assert not trainer.evaluation.own
        assert next(iter(trainer.evaluation.margins)) == "SparseRM"
        assert {"objective low alone", "objective even alone"} < trainer.evaluation.margins.keys()
    finally:
        trainer.evaluate()
    assert trainer.evaluation.by_objective == before.by_objective


def test_the_base_model_reads_every_text_once(world, tmp_path, monkeypatch):
    passes = []
    trainer = joint_trainer(world, tmp_path / "out", datasets(20))
    represent = trainer.represent
    monkeypatch.setattr(trainer, "represent", lambda texts: passes.append(texts) or represent(texts))
    trainer.train()
    assert len(passes) == 1
    texts = passes[0]
    assert len(texts) == len(set(texts)) == 80  # 20 and 24 pairs, of which 4 have the texts of others
    assert trainer.metrics["train_pairs"] == 44
    assert trainer.model.objectives is not None


def test_texts_alternate_and_pairs_keep_theirs(world, tmp_path):
    trainer = joint_trainer(world, tmp_path / "out", datasets(20))
    parts, whole = list(trainer.objectives.values()), join_pairs(list(trainer.objectives.values()))
    given = [(part.texts[a], part.texts[b]) for part in parts for a, b in zip(part.chosen, part.rejected, strict=True)]
    assert given == [(whole.texts[a], whole.texts[b]) for a, b in zip(whole.chosen, whole.rejected, strict=True)]
    assert whole.texts[:4] == [parts[0].texts[0], parts[1].texts[0], parts[0].texts[1], parts[1].texts[1]]
    assert join_pairs(parts[:1]) is parts[0]


def test_the_command_takes_several_datasets_or_a_column(world, files, joint, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    low, even, both = (str(files / f"{name}.jsonl") for name in ("low", "even", "both"))
    shared = {"k": 6, "eval_dataset": files / "test.jsonl", "dataset": low}
    command = [*train_arguments(world, tmp_path / "files", **shared), "--dataset", even, "--slim"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "objective low on its own pairs, 100" in printed.out
    assert f"--dataset {low}" in printed.err  # what to do next
    assert main(train_arguments(world, tmp_path / "column", k=6, dataset=both)) == 0
    assert (tmp_path / "files" / "model.safetensors").stat().st_size < 2**20
    expected = score(joint[1])
    for name in ("files", "column"):
        found = score(tmp_path / name)
        for one, other in zip(found, expected, strict=True):
            assert one["reward_by_objective"] == pytest.approx(other["reward_by_objective"], abs=1e-5)
    assert main(["monitor", str(tmp_path / "column"), write_jsonl(tmp_path / "rows.jsonl", ROWS * 10)]) in (0, 1)


def test_one_objective_makes_an_ordinary_model(world, tmp_path, capsys):
    rows = write_jsonl(tmp_path / "rows.jsonl", [row | {"objective": "low"} for row in make_rows(30)])
    assert main(train_arguments(world, tmp_path / "one", k=6, dataset=rows, eval_dataset=rows)) == 0
    plain = write_jsonl(tmp_path / "plain.jsonl", make_rows(30))
    assert main(train_arguments(world, tmp_path / "plain", k=6, dataset=plain)) == 0
    assert not SparseRMConfig.from_pretrained(tmp_path / "one").objectives
    assert [row["reward"] for row in score(tmp_path / "one")] == [row["reward"] for row in score(tmp_path / "plain")]
    empty = [row | {"objective": None} for row in make_rows(30)]
    assert not joint_trainer(world, tmp_path / "none", empty).objectives
    assert not joint_trainer(world, tmp_path / "dict", {"low": Dataset.from_list(make_rows(30))}).objectives


def test_some_texts_of_several_shards():
    """Five texts in three shards, of which the middle one is left out as a whole."""

    def shard(means, tokens):
        activations, of_tokens = (np.array(of, float)[:, None] * [1, 0, 2] for of in (means, tokens))
        return SimpleNamespace(
            mean=np.array(means, np.float32)[:, None],
            mean_activation=sparse.csr_matrix(activations),
            max_activation=sparse.csr_matrix(2 * activations),
            token_activation=sparse.csr_matrix(of_tokens),
            token_texts=np.array(tokens) // 10,
        )

    shards = [shard([4, 0], [41, 42]), shard([2], [21]), shard([1, 3], [11, 31, 32])]
    taken = Representations(shards, np.array([4, 0, 2, 1, 3])).take(np.array([3, 4, 1]))
    assert taken.read(lambda shard: shard.mean).ravel().tolist() == [3, 4, 1]
    assert taken.read(lambda shard: shard.max_activation.toarray())[:, 2].tolist() == [12, 16, 4]
    one, other = taken.count_firing(np.array([0, 1]), np.array([2]))
    assert one.tolist() == [2, 0, 2] and other.tolist() == [1, 0, 1]
    tokens = taken.token_activations([0])
    assert tokens.texts.tolist() == [0, 1, 2] and tokens.starts.tolist() == [0, 2, 4, 5]
    assert tokens.values.toarray().ravel().tolist() == [31, 32, 41, 42, 11]


LOW, EVEN = data(20).values()


@pytest.mark.parametrize(
    ("rows", "changes", "sentence"),
    [
        (with_column({"low": LOW}) + EVEN, {}, "Row 21 has no `objective`, but other rows have one"),
        (with_column({"low": LOW, 3: EVEN}), {}, "`objective` is 3, but must be a string"),
        (with_column({"low": LOW, "chosen": EVEN}), {}, "other than chosen and rejected"),
        ({"low": LOW, "": EVEN}, {}, "each must have a name of its own"),
        ({"low": LOW, "even": with_column({"x": EVEN})}, {}, "'even' have a column `objective`"),
        ({}, {}, "train_dataset is missing"),
        (DatasetDict(train=Dataset.from_list(LOW), test=Dataset.from_list(EVEN)), {}, "A DatasetDict with the splits"),
        ({"low": LOW, "even": EVEN[:1]}, {}, "'even' cannot be trained: There are 1 usable pairs"),
        (
            [*with_column({"low": LOW[:2]}), EVEN[0] | {"objective": "even", "margin": "x"}],
            {},
            "'even' cannot be trained: Row 3, `margin`",
        ),
        ({"low": LOW, "even": EVEN}, {"head_type": "mlp"}, "head_type is mlp, but there are several objectives"),
        ({"low": LOW, "even": EVEN}, {"ensemble": 4}, "ensemble is 4, but there are several objectives"),
        ({"low": LOW, "even": EVEN}, {"adapter_rank": 2}, "adapter_rank is 2, but there are several objectives"),
    ],
)
def test_what_cannot_be_trained_jointly_is_refused(world, tmp_path, rows, changes, sentence):
    with pytest.raises(SparseRMError, match=sentence):
        joint_trainer(world, tmp_path / "out", rows, **changes)
    assert not (tmp_path / "out").exists()


def test_other_objectives_in_the_evaluation_are_refused(world, tmp_path):
    test = with_column({"low": LOW, "odd": EVEN})
    with pytest.raises(SparseRMError, match="have the objective 'odd', but those of the training pairs are low, even"):
        joint_trainer(world, tmp_path / "out", {"low": LOW, "even": EVEN}, test)


def test_a_failed_objective_changes_no_folder(world, joint, files, tmp_path, monkeypatch, capsys):
    same = tmp_path / "a" / "low.jsonl"
    same.parent.mkdir()
    write_jsonl(same, EVEN)
    twice = options({"model": world / "base", "sae": world / "sae", "output_dir": tmp_path / "out", "dataset": same})
    assert main(["train", *twice, "--dataset", str(files / "low.jsonl")]) == 2
    assert "objectives are named low, low" in capsys.readouterr().err
    fit, calls = joint_training.fit_reward_head, []

    def fail_second(*given):
        calls.append(given)
        if len(calls) == 2:
            raise SparseRMError("Too few latents fire.")
        return fit(*given)

    monkeypatch.setattr(joint_training, "fit_reward_head", fail_second)
    before = (joint[1] / "config.json").read_bytes()
    for out in (tmp_path / "out", joint[1]):
        calls.clear()
        assert main(train_arguments(world, out, dataset=files / "both.jsonl", k=6)) == 2
        assert "cannot be trained: Too few latents fire." in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and list(tmp_path.iterdir()) == [same.parent]
    assert (joint[1] / "config.json").read_bytes() == before
