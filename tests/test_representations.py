"""One pass of the base model: right, cached, resumable, and the same whatever interrupted it."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import sparse
from sparserm_hf.modeling.backbone_sparserm import cut_base_model
from tiny import tiny_causal_lm, tiny_sae, tiny_texts, tokenized
from torch import nn

from sparserm_hf.base_models import fingerprints
from sparserm_hf.base_models.fingerprints import fingerprint_module
from sparserm_hf.representations import collect as representations
from sparserm_hf.representations import shard_files
from sparserm_hf.representations.collect import collect_representations
from sparserm_hf.representations.representer import Pooling, Representer
from sparserm_hf.representations.shards import Representations
from sparserm_hf.runtime.batches import plan_batches
from sparserm_hf.runtime.cache import prune_cache
from sparserm_hf.runtime.errors import SparseRMError

HOW = Pooling("response_mean", "rms")


@pytest.fixture
def base_model():
    return cut_base_model(tiny_causal_lm(), 2)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(representations, "SHARD_TOKENS", 30)
    monkeypatch.setattr("sparserm_hf.base_models.packing.MAX_MEMBERS", 2)


def collect(base_model, cache, texts=None, sae=None, how=HOW):
    texts = texts or [tokenized(ids, len(ids) // 2) for ids in tiny_texts()]
    return collect_representations(base_model, sae or tiny_sae(), texts, how, cache, max_tokens=64)


def test_it_equals_one_text_at_a_time(base_model, tmp_path, small_shards):
    result = in_order(collect(base_model, tmp_path))
    sae = tiny_sae()
    for i, text in enumerate(tiny_texts()):
        ids = torch.tensor([text])
        with torch.no_grad():
            hidden = base_model(ids).last_hidden_state[0]
        tokens = hidden[len(text) // 2 :]
        rms = tokens.pow(2).mean(-1, keepdim=True).sqrt()
        np.testing.assert_allclose(result.mean[i], (tokens / rms).mean(0), rtol=1e-4, atol=1e-5)
        f = sae.encode(tokens).numpy()
        np.testing.assert_allclose(result.mean_activation[i], f.mean(0), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(result.max_activation[i], f.max(0), rtol=1e-3, atol=1e-4)


def in_order(texts):
    """All of it in memory, in the order of the texts."""
    readings = {"mean": texts.read(lambda s: s.mean)}
    for name in ("mean_activation", "max_activation"):
        readings[name] = texts.read(lambda s, n=name: getattr(s, n).toarray())
    return SimpleNamespace(**readings)


def assert_same(one, two):
    for (name, a), (_, b) in zip(*(vars(in_order(texts)).items() for texts in (one, two)), strict=True):
        assert np.array_equal(a, b), name


def test_a_text_of_two_pairs_counts_twice(base_model, tmp_path, small_shards):
    texts = collect(base_model, tmp_path)
    fires = in_order(texts).mean_activation > 0
    sides = np.array([0, 2, 2, 5]), np.array([1, 3])
    for side, counts in zip(sides, texts.count_firing(*sides), strict=True):
        np.testing.assert_array_equal(counts, fires[side].sum(0))


def test_an_explicit_zero_does_not_count_as_firing():
    """Counting the stored entries of a sparse matrix would take it for a latent that fires."""
    stored_zero = sparse.csr_matrix((np.array([0.0, 1.0]), np.array([0, 1]), np.array([0, 2])), shape=(1, 3))
    texts = Representations([SimpleNamespace(mean_activation=stored_zero)], np.arange(1))
    (counts,) = texts.count_firing(np.array([0]))
    assert counts.tolist() == [0, 1, 0]


def forbid(base_model):
    """Make any run of the base model an error."""

    def forward(*args, **kwargs):
        raise AssertionError("the base model was run")

    base_model.forward = forward


def test_a_second_run_does_not_touch_the_base_model(base_model, tmp_path, small_shards):
    first = collect(base_model, tmp_path)
    forbid(base_model)
    second = collect(base_model, tmp_path)
    assert_same(first, second)


def test_whatever_changes_the_result_changes_the_fingerprint(base_model, tmp_path, small_shards):
    collect(base_model, tmp_path)
    texts = [tokenized(ids, len(ids) // 2) for ids in tiny_texts()]
    variants = {
        "texts": {"texts": [*texts[:-1], tokenized([*texts[-1].ids, 7], texts[-1].start)]},
        "SAE": {"sae": tiny_sae(seed=9)},
        "pooling": {"how": Pooling("mean", "rms")},
        "norm": {"how": Pooling("response_mean", "none")},
        "response": {"texts": [*texts[:-1], texts[-1]._replace(start=texts[-1].start + 1)]},
    }
    for settings in variants.values():
        collect(base_model, tmp_path, **settings)
    collect(base_model.to(torch.bfloat16), tmp_path)
    base_model.to(torch.float32).layers[1].mlp.down_proj.weight.data[0, 0] += 1
    collect(base_model, tmp_path)
    assert len(list(tmp_path.iterdir())) == len(variants) + 3


def test_an_interrupted_run_goes_on_where_it_stopped(base_model, tmp_path, small_shards, monkeypatch):
    expected = collect(base_model, tmp_path / "undisturbed")
    real, calls = Representer.compute_shard, []

    def dies_at_the_third(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(Representer, "compute_shard", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        collect(base_model, tmp_path / "killed")
    resumed = collect(base_model, tmp_path / "killed")
    (folder,) = (tmp_path / "killed").iterdir()
    assert len(calls) == len(list(folder.iterdir())) + 1, "only the shard that died is computed again"
    assert_same(resumed, expected)


def test_a_shard_that_was_cut_off_is_computed_again(base_model, tmp_path, small_shards):
    first = collect(base_model, tmp_path)
    expected = in_order(first)
    (folder,) = tmp_path.iterdir()
    shard = sorted(folder.iterdir())[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    assert np.array_equal(in_order(collect(base_model, tmp_path)).mean, expected.mean)


@pytest.mark.parametrize("place", np.linspace(0, 1, 12, endpoint=False))
def test_a_shard_with_a_flipped_bit_is_computed_again(place, base_model, tmp_path, small_shards):
    """It gave another model, with exit code 0, or a segmentation fault where the bit was of a column's number."""
    expected = in_order(collect(base_model, tmp_path))
    (folder,) = tmp_path.iterdir()
    shards = sorted(folder.iterdir())
    broken = bytearray(shards[1].read_bytes())
    broken[int(place * len(broken))] ^= 1 << 6
    shards[1].write_bytes(broken)
    again = in_order(collect(base_model, tmp_path))
    assert all(np.array_equal(getattr(again, name), array) for name, array in vars(expected).items())
    shards[2].write_bytes(shards[1].read_bytes())  # whole, and another one
    again = in_order(collect(base_model, tmp_path))
    assert all(np.array_equal(getattr(again, name), array) for name, array in vars(expected).items())


def test_a_full_disk_leaves_nothing_half_written(base_model, tmp_path, small_shards, monkeypatch):
    real = shard_files.save_file

    def full_disk(tensors, path, metadata):
        if "00002" in path.name:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device", str(path))
        real(tensors, path, metadata)

    monkeypatch.setattr(shard_files, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        collect(base_model, tmp_path)
    (folder,) = tmp_path.iterdir()
    names = sorted(file.name[:5] for file in folder.iterdir())
    assert names == ["00000", "00001"] and not list(folder.glob(".*"))


def test_nan_names_the_text_and_the_way_out(base_model, tmp_path):
    base_model.embed_tokens.weight.data[95] = float("nan")
    texts = [tokenized(ids) for ids in ([1, 7, 8], [1, 95, 9, 9], [1, 7])]
    with pytest.raises(SparseRMError, match=r"text 2 \(4 tokens\) is not finite.*set dtype to float32"):
        collect(base_model, tmp_path, texts)


def test_batches_hold_similar_lengths_within_the_budget():
    lengths = np.random.default_rng(0).integers(1, 100, 200).tolist()
    batches = plan_batches(lengths, 256)
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    padded = [max(lengths[i] for i in batch) * len(batch) for batch in batches]
    assert max(padded) <= 256 and sum(padded) < 1.1 * sum(lengths)
    assert plan_batches([500, 3], 256) == [[0], [1]], "a text longer than the budget goes alone"


def test_the_cache_stays_under_its_size_and_what_was_unused_longest_goes_first(tmp_path):
    for i, name in enumerate("abcd"):
        folder = tmp_path / (name * 32)
        folder.mkdir()
        (folder / "0.safetensors").write_bytes(bytes(100))
        os.utime(folder, (1000 + i, 1000 + i))
    os.utime(tmp_path / ("a" * 32))  # used just now
    (tmp_path / "base_models").mkdir()
    (tmp_path / "base_models" / "file").write_bytes(bytes(1000))
    prune_cache(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a" * 32, "base_models", "d" * 32]
    prune_cache(tmp_path, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a" * 32, "base_models"], "one in use stays"


def test_a_fingerprint_is_made_once_and_again_when_a_weight_changes(base_model, monkeypatch):
    calls = []
    counted = fingerprints.hash_tensors
    monkeypatch.setattr(fingerprints, "hash_tensors", lambda *given: calls.append(1) or counted(*given))
    first = fingerprint_module(base_model)
    calls.clear()
    assert fingerprint_module(base_model) == first and len(calls) == 1, "the sample alone"
    base_model.layers[0].mlp.up_proj.weight.data += 1
    assert fingerprint_module(base_model) != first
    number = nn.Module()
    number.register_buffer("scale", torch.tensor(2.0))  # without dimensions: it was an error
    assert fingerprint_module(number) != fingerprint_module(nn.Module())


def test_the_progress_bar_moves_within_a_shard(base_model, tmp_path, monkeypatch):
    """It stood still for half a minute on a slow CPU: a shard has several batches."""
    bars = []

    class Bar(representations.tqdm):
        def update(self, n=1):
            bars.append(n)

    monkeypatch.setattr(representations, "tqdm", Bar)
    texts = [tokenized(tuple(range(n, 2 * n)), n // 2) for n in (25, 40, 45)]
    collect(base_model, tmp_path, texts)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1 and len(bars) > 1 and sum(bars) == 25 + 40 + 45


def test_full_memory_gets_advice_and_finished_shards_stay(base_model, tmp_path, monkeypatch, small_shards):
    """It was torch's own traceback."""
    real, calls = Representer.compute_shard, []

    def full(self, batches):
        calls.append(batches)
        if len(calls) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Representer, "compute_shard", full)
        with pytest.raises(SparseRMError, match="Out of memory while representing texts: take a smaller max_length"):
            collect(base_model, tmp_path)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    collect(base_model, tmp_path)
