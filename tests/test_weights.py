"""Other weights than were saved are refused: pickles, files from outside, flipped bits, NaN, other layers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load as read
from safetensors.torch import load_file, save_file
from sparserm_hf.modeling.modeling_sparserm import SparseRMForSequenceClassification
from tiny import tiny_causal_lm, tiny_reward_model, tiny_rewards, tiny_tokenizer
from world import without_package

from sparserm_hf.base_models.loading import load_language_model
from sparserm_hf.cli.main import main
from sparserm_hf.runtime.checkpoint_folders import save_tokenizer
from sparserm_hf.runtime.errors import SparseRMError
from sparserm_hf.scoring import ClassifierRewardModel

WEIGHTS = "model.safetensors"


@pytest.fixture
def saved(tmp_path):
    tiny_reward_model().save_pretrained(tmp_path / "model")
    save_tokenizer(tiny_tokenizer(), tmp_path / "model")
    return tmp_path / "model"


def load(folder, **how):
    return SparseRMForSequenceClassification.from_pretrained(folder, **how)


def rewrite(folder, change):
    """Change the tensors of a checkpoint, in place."""
    tensors = read((folder / WEIGHTS).read_bytes())  # a copy: the file is written over
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def edit_config(folder, **changes):
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


INDEXES = {
    "a pickle": lambda folder: "pytorch_model.bin",
    "a pickle under another name": lambda folder: "weights.pkl",
    "a file above": lambda folder: "../outside.safetensors",
    "a file by its whole path": lambda folder: str(folder.parent / "outside.safetensors"),
    "a file below": lambda folder: "below/model.safetensors",
    "another system's path": lambda folder: "..\\outside.safetensors",
}


@pytest.mark.parametrize("kind", INDEXES)
@pytest.mark.parametrize("what", ["reward model", "base model", "judge"])
def test_an_index_names_safetensors_beside_it_alone(what, kind, tmp_path):
    """`model.safetensors.index.json` could send transformers to a pickle, or out of the folder."""
    folder = tmp_path / "model"
    model = tiny_reward_model() if what == "reward model" else tiny_causal_lm()
    model.save_pretrained(folder)
    save_tokenizer(tiny_tokenizer(), folder)
    names = list(load_file(folder / WEIGHTS))
    outside = (folder / INDEXES[kind](folder)).resolve()
    outside.parent.mkdir(exist_ok=True)
    (folder / WEIGHTS).rename(outside)
    if outside.suffix != ".safetensors":
        torch.save(read(outside.read_bytes()), outside)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, INDEXES[kind](folder))}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(
        (ValueError, SparseRMError), match=r"weights are only read from \.safetensors files in the same folder"
    ):
        if what == "reward model":
            load(folder)
        elif what == "base model":
            load_language_model(str(folder))
        else:
            ClassifierRewardModel.load(str(folder), torch.device("cpu"))


@pytest.mark.parametrize("index", ["", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "[" * 10_000])
def test_an_index_that_is_none_is_refused(index, saved):
    (saved / WEIGHTS).rename(saved / "other.safetensors")
    (saved / f"{WEIGHTS}.index.json").write_text(index)
    with pytest.raises(ValueError, match="does not say which files hold the weights"):
        load(saved)


def test_weights_in_several_files_load(tmp_path):
    model = tiny_reward_model()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    torch.testing.assert_close(tiny_rewards(load(tmp_path)), tiny_rewards(model))


def flip(path, name, bit):
    """Flip one bit of a tensor in a file, in place."""
    content = bytearray(path.read_bytes())
    head = int.from_bytes(content[:8], "little")
    start, stop = json.loads(content[8 : 8 + head])[name]["data_offsets"]
    at = 8 + head + start + bit // 8 % (stop - start)
    content[at] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("slim", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_bit_that_flipped_is_told(dtype, slim, tmp_path, record_property):
    """One in the sign of a head's weight turned rewards round, with exit code 0."""
    tiny_causal_lm().save_pretrained(tmp_path / "base")
    model = tiny_reward_model(base_model_name_or_path=str(tmp_path / "base")).to(dtype)
    (model.to_slim() if slim else model).save_pretrained(tmp_path / "model")
    for load_in in ({}, {"dtype": torch.float32}):
        load(tmp_path / "model", **load_in)
    rng = np.random.default_rng(0)
    with safe_open(tmp_path / "model" / WEIGHTS, "pt") as file:
        names = sorted(file.keys())
    record_property("tries", 2 * len(names))
    for name in names:
        shutil.copytree(tmp_path / "model", tmp_path / "broken")
        flip(tmp_path / "broken" / WEIGHTS, name, int(rng.integers(2**31)))
        for load_in in ({}, {"dtype": torch.float32}):
            with pytest.raises(ValueError, match=r"holds other weights than were saved|holds NaN or infinity"):
                load(tmp_path / "broken", **load_in)
        shutil.rmtree(tmp_path / "broken")


def test_a_bit_that_flipped_is_told_where_this_package_is_not(saved):
    code = (
        "from transformers import AutoModelForSequenceClassification\n"
        f"AutoModelForSequenceClassification.from_pretrained({str(saved)!r}, trust_remote_code=True)"
    )
    assert without_package(code).returncode == 0
    flip(saved / WEIGHTS, "score.weight", 7)
    assert "holds other weights than were saved with its configuration" in without_package(code).stderr


def test_weights_of_another_model_are_told(saved, tmp_path, capsys):
    """A kill between two renames left the weights of one model with the configuration of another."""
    other = tiny_reward_model()
    other.score.weight.data += 1
    other.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / WEIGHTS, saved)
    (tmp_path / "rows.jsonl").write_text('{"text": "w1 w2"}\n')
    assert main(["score", str(saved), str(tmp_path / "rows.jsonl")]) == 2
    assert "a file is damaged, or belongs to another model" in capsys.readouterr().err


def test_a_checkpoint_without_a_digest_loads(saved):
    edit_config(saved, weights_digest=None)
    torch.testing.assert_close(tiny_rewards(load(saved)), tiny_rewards(tiny_reward_model()))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(value, saved, record_property):
    """Rewards were NaN in JSON, or null with the answer 200."""
    edit_config(saved, weights_digest=None)
    tensors = read((saved / WEIGHTS).read_bytes())
    record_property("tries", len(tensors))
    for name, tensor in tensors.items():
        broken = tensor.clone()
        broken.view(-1)[-1] = value
        rewrite(saved, lambda tensors, changed={name: broken}: tensors.update(changed))
        with pytest.raises(ValueError, match=f"holds NaN or infinity among its weights '{name}'"):
            load(saved)
        rewrite(saved, lambda tensors, whole={name: tensor}: tensors.update(whole))


def test_a_tensor_too_many_is_refused(saved):
    rewrite(saved, lambda tensors: tensors.update({"score.extra": torch.zeros(3)}))
    with pytest.raises(ValueError, match=r"holds 1 tensors too many, among them 'score\.extra'"):
        load(saved)


def test_layers_and_configuration_agree(saved):
    edit_config(saved, layer=1)
    with pytest.raises(ValueError, match="has 2 layers, but the configuration says layer 1"):
        load(saved)
