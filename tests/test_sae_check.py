"""The check of an SAE: measures by hand, hooks against cut models, verdicts on right and wrong set-ups."""

import json
import logging
import re
import shutil

import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file
from sparserm_hf.modeling.autoencoder_sparserm import SparseAutoencoder
from sparserm_hf.modeling.backbone_sparserm import cut_base_model, decoder_of, residual_stream
from tiny import ARCHITECTURES, BOS, CHAT_TEMPLATE, D_MODEL, VOCAB, tiny_causal_lm, tiny_texts, tiny_tokenizer

from sparserm_hf import SparseRMTrainer, SparseRMTrainingConfig
from sparserm_hf.cli.main import main
from sparserm_hf.runtime.batches import pad_texts
from sparserm_hf.runtime.checkpoint_folders import save_tokenizer
from sparserm_hf.runtime.errors import SparseRMError
from sparserm_hf.sae.fit import Fit, Neighbour, judge, measure_fit
from sparserm_hf.sae.hooks import collect_residual_streams, next_token_loss
from sparserm_hf.sae.loading.loaded_sae import LoadedSAE, load_sae
from sparserm_hf.sae.measuring import check_before_training, measure_sae, sample_texts

LAYER = 2


class Half(torch.nn.Module):
    """An SAE that encodes the first of two numbers and returns half of both; its third latent never fires."""

    d_sae = 3

    def encode(self, x):
        return torch.stack([x[:, 0].relu(), -x[:, 0].clamp(max=0), x[:, 0] * 0], dim=-1)

    def decode(self, latents, x):
        return x / 2


def test_fit_by_hand():
    """A quarter of the variance of eight tokens is unexplained; a ninth token, of norm 50, is a sink and left out."""
    tokens = torch.tensor([[2.0, 0.0], [-2.0, 0.0]] * 4 + [[30.0, 40.0]])
    assert measure_fit(Half(), tokens) == Fit(8, 1, 2.0, 1.0, 0.75, pytest.approx(1 / 3), 0.5)


def fit(explained_variance):
    return Fit(1000, 0, 1.0, 32.0, explained_variance, 0.1, 0.9)


@pytest.mark.parametrize(
    ("found", "neighbour", "fits", "says"),
    [
        (0.92, 0.85, True, "The SAE fits layer 2 of tiny: explained variance 0.92, 32 latents"),
        (0.92, 0.93, True, "fits layer 2"),  # less than 0.02 better: layers are alike
        (0.60, 0.615, True, "fits layer 2"),
        (0.40, 0.30, True, "fits layer 2 of tiny, but weakly"),
        (0.87, 0.92, False, "not fit layer 2 of tiny, but layer 3 .*0.92 against 0.87.*: pass --layer 3."),
        (0.65, 0.70, False, "not fit layer 2 of tiny, but layer 3"),  # on another variant of its base
        (0.05, -3.0, False, "fits neither layer 2 of tiny nor .*0.05, at best -3.00.*: it was trained on other/model"),
        (-9.0, 0.05, False, "fits neither layer 2"),  # the neighbour is better, but right it is not
        (-9.0, 0.50, False, "but layer 3"),
    ],
)
def test_the_verdict(found, neighbour, fits, says):
    verdict = judge(
        fit(found), [Neighbour("layer 3", "pass --layer 3", fit(neighbour))], "layer 2 of tiny", "other/model"
    )
    assert verdict.fits == fits
    assert re.search(says, verdict.sentence), verdict.sentence


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_a_layer_read_is_the_output_of_a_model_cut_there(architecture):
    """The last layer too, although `hidden_states` has the final norm there. BOS and the next token are left out."""
    model, texts = tiny_causal_lm(architecture), tiny_texts()
    found = collect_residual_streams(decoder_of(model), texts, [1, 2, 3, 4], BOS, "test")
    cut = model
    for layer in (4, 3, 2, 1):  # one after the other, as the trainer cuts again after its check
        cut = cut_base_model(cut, layer)
        rows = []
        for text in sorted(texts, key=len, reverse=True):  # as batches are planned
            ids, mask = pad_texts([text], "cpu")
            with torch.no_grad():
                rows.append(residual_stream(cut, ids, mask)[0, 2:])
        torch.testing.assert_close(found[layer], torch.cat(rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_loss_with_the_residual_stream_replaced(architecture):
    model, texts = tiny_causal_lm(architecture), [text for text in tiny_texts() if len(text) > 3]

    def loss(patch, longest=1e9):
        return next_token_loss(model, texts, LAYER, patch, longest, BOS, "test")

    losses = []
    for text in texts:
        ids = torch.tensor([text])
        with torch.no_grad():
            logits = model(ids).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits[2:-1], ids[0, 3:], reduction="none"))
    clean = torch.cat(losses).mean().item()
    assert loss(lambda x: x) == pytest.approx(clean, rel=1e-4)
    assert abs(loss(torch.zeros_like) - clean) > 0.01
    norms = collect_residual_streams(decoder_of(model), texts, [LAYER], BOS, "test")[LAYER].norm(dim=-1)
    seen = []
    loss(lambda x: seen.append(x) or x, norms.median().item())
    assert sum(map(len, seen)) == (norms <= norms.median()).sum(), "sinks are not replaced"


def test_texts_are_sampled_from_all_over():
    texts = [[i] * 200 for i in range(50)]
    sample = sample_texts(texts, 1000)
    assert [len(text) for text in sample] == [128] * 8 and max(text[0] for text in sample) > 30
    assert sample_texts(texts[:2], 1000) == [text[:128] for text in sample_texts(texts[:2], 1000)]


def base_model(seed=0):
    """A random Llama whose residual stream has a mean and a scale other than 1, like real models."""
    model = tiny_causal_lm(seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("embed_tokens", "o_proj", "down_proj")):
                parameter.mul_(10.0)
        model.model.embed_tokens.weight.add_(3.0 * torch.randn(D_MODEL, generator=torch.Generator().manual_seed(1)))
    return model


def principal_sae(tokens, rank=16):
    """An SAE with two latents for each principal component of normalised (N, d) tokens: up and down."""
    sae = SparseAutoencoder(D_MODEL, 2 * rank, "standard", normalization="constant_norm_rescale")
    x = sae.normalize(tokens)[0]
    components = torch.linalg.svd(x - x.mean(0), full_matrices=False)[2][:rank]
    sae.W_dec = torch.cat([components, -components])
    sae.W_enc = sae.W_dec.T.contiguous()
    sae.b_dec = x.mean(0)
    return sae


def save_sae(folder, sae, hook, normalization="constant_norm_rescale"):
    folder.mkdir(parents=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in sae.state_dict().items()}, folder / "sae_weights.safetensors"
    )
    config = {"d_in": sae.d_in, "d_sae": sae.d_sae, "architecture": "standard", "normalize_activations": normalization}
    metadata = {"hook_name": hook, "model_name": "tiny/base"}
    (folder / "cfg.json").write_text(json.dumps(config | {"metadata": metadata}))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base model, the SAE of its layer 2, and set-ups with one mistake each."""
    root = tmp_path_factory.mktemp("world")
    tokenizer = tiny_tokenizer("<bos> " + CHAT_TEMPLATE)
    words = torch.randint(0, VOCAB - 8, (60, 40), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [
        {
            "prompt": [{"role": "user", "content": " ".join(f"w{i}" for i in row[:10])}],
            "chosen": [{"role": "assistant", "content": " ".join(f"w{i}" for i in row[10:25])}],
            "rejected": [{"role": "assistant", "content": " ".join(f"w{i}" for i in row[25:])}],
        }
        for row in words
    ]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, seed in (("base", 0), ("other-base", 1)):
        base_model(seed).save_pretrained(root / name)
        save_tokenizer(tokenizer, root / name)
    shutil.copytree(root / "base", root / "no-bos")
    save_tokenizer(tiny_tokenizer(), root / "no-bos")
    texts = [tokenizer.apply_chat_template(row["prompt"] + row["chosen"], return_dict=False) for row in rows]
    sae = principal_sae(collect_residual_streams(decoder_of(base_model()), texts, [LAYER], BOS, "test")[LAYER])
    save_sae(root / "sae", sae, "blocks.1.hook_resid_post")
    save_sae(root / "sae-other-layer", sae, "blocks.2.hook_resid_post")
    save_sae(root / "sae-no-hook", sae, None)
    save_sae(root / "sae-other-norm", sae, "blocks.1.hook_resid_post", "none")
    return root


def shown_by_check(world, capsys, *arguments, base="base", sae="sae"):
    capsys.readouterr()
    given = ["--model", str(world / base), "--sae", str(world / sae), "--dataset", str(world / "pairs.jsonl")]
    code = main(["sae", "check", *given, "--max_tokens", "2000", *arguments])
    return code, " ".join(capsys.readouterr().out.split())


def test_check_on_the_right_set_up(world, capsys):
    code, shown = shown_by_check(world, capsys)
    assert code == 0 and "The SAE fits layer 2 of" in shown and "explained variance 0.9" in shown
    for row in ("as given", "layer 1", "layer 3", "normalisation none", "normalisation layer_norm", "without <bos>"):
        assert f"│ {row}" in shown
    assert "loss recovered %" in shown


@pytest.mark.parametrize(
    ("changes", "arguments", "says"),
    [
        (
            {"sae": "sae-other-layer"},
            [],
            "does not fit layer 3 of .*, but layer 2 .*its hook name is blocks.2.hook_resid_post; take the SAE of the "
            "right layer or, where the name is wrong, write blocks.1.hook_resid_post into its cfg.json",
        ),
        ({"sae": "sae-no-hook"}, ["--layer", "3"], "does not fit layer 3 of .*, but layer 2 .*: pass --layer 2"),
        (
            {"sae": "sae-other-norm"},
            [],
            'does not fit layer 2 .*, but normalisation constant_norm_rescale .*: set "normalize_activations": '
            '"constant_norm_rescale" in its cfg.json',
        ),
        (
            {"base": "no-bos"},
            [],
            "does not fit layer 2 .*, but with <bos> at the start .*: the texts lack the BOS token <bos>; let the "
            "chat template start with it",
        ),
        (
            {"base": "other-base"},
            [],
            "fits neither layer 2 of .* nor a neighbouring set-up .*: it was trained on tiny/base; take an SAE of "
            "this base model",
        ),
    ],
    ids=["layer", "layer without hook", "normalisation", "BOS", "base"],
)
def test_check_on_wrong_set_ups(world, capsys, changes, arguments, says):
    code, shown = shown_by_check(world, capsys, *arguments, **changes)
    assert code == 1 and re.search(says, shown), shown


def test_check_without_a_begin_of_text_token(world):
    model, tokenizer = base_model(), tiny_tokenizer()
    tokenizer.bos_token = None
    texts = [text[1:] for text in tiny_texts()] * 3
    check = measure_sae(model, load_sae(str(world / "sae")), LAYER, texts, tokenizer, "tiny")
    assert [n.name for n in check.neighbours][:2] == ["layer 1", "layer 3"] and len(check.neighbours) == 4
    assert check.fit.tokens == sum(len(text) - 1 for text in texts) - check.fit.sinks


def test_check_refuses_too_little_text(world, tmp_path, capsys):
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": "w1 w2 w3"}) + "\n")
    given = ["--model", str(world / "base"), "--sae", str(world / "sae"), "--dataset", str(tmp_path / "one.jsonl")]
    assert main(["sae", "check", *given]) == 2
    assert "measured on at least 100" in capsys.readouterr().err
    assert main(["sae", "check", *given, "--max_tokens", "10"]) == 2
    assert "max_tokens is 10, but must be at least 100" in capsys.readouterr().err
    assert main(["sae", "check", *given, "--max_length", "0"]) == 2
    assert "max_length is 0, but must be at least 8" in capsys.readouterr().err


def test_check_refuses_a_base_model_that_is_not_finite(world):
    model = base_model()
    model.model.layers[1].mlp.down_proj.weight.data.fill_(float("nan"))
    with pytest.raises(SparseRMError, match="residual stream is not finite in float32"):
        check_before_training(decoder_of(model), load_sae(str(world / "sae")), LAYER, tiny_texts() * 3, BOS, "tiny")


def train_arguments(world, out, sae):
    given = {"model": world / "base", "sae": world / sae, "dataset": world / "pairs.jsonl", "output_dir": out, "k": 4}
    return ["train", *(part for name, value in given.items() for part in (f"--{name}", str(value)))]


def test_training_stops_on_a_mismatch_before_anything_is_computed(world, tmp_path, capsys, caplog):
    arguments = [*train_arguments(world, tmp_path / "out", "sae-other-layer"), "--cache_dir", str(tmp_path / "cache")]
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "does not fit layer 3" in error and "but layer 2" in error and "--no_check_sae" in error
    assert not list(tmp_path.iterdir()), "nothing was written"
    assert main([*arguments, "--no_check_sae"]) == 0, "who knows better may go on"
    with caplog.at_level(logging.INFO):
        assert main([*train_arguments(world, tmp_path / "right", "sae"), "--cache_dir", str(tmp_path)]) == 0
    assert [r for r in caplog.records if r.getMessage().startswith("The SAE fits layer 2 of")]


def test_the_check_leaves_the_trained_model_as_it_is(world, tmp_path):
    """The check runs on a base model with the next layer, which is cut off afterwards."""
    data = Dataset.from_list([json.loads(line) for line in (world / "pairs.jsonl").read_text().splitlines()])
    weights = []
    for check in (True, False):
        args = SparseRMTrainingConfig(str(tmp_path / "out"), k=4, cache_dir=str(tmp_path), check_sae=check)
        trainer = SparseRMTrainer(str(world / "base"), str(world / "sae"), args, data)
        assert len(trainer.base_model.layers) == trainer.base_model.config.num_hidden_layers == LAYER
        trainer.train()
        weights.append(trainer.model.state_dict())
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_last_layer_has_one_neighbour(world):
    """The last layer has no next layer, and the output of the whole model comes after the final norm."""
    model, texts = base_model(), tiny_texts() * 3
    tokens = collect_residual_streams(decoder_of(model), texts, [4], BOS, "test")[4]
    sae = LoadedSAE(principal_sae(tokens), {"source": "test"})
    assert check_before_training(decoder_of(model), sae, 4, texts, BOS, "tiny").fits
    with pytest.raises(SparseRMError, match=r"does not fit layer 3 of tiny, but layer 4 .*pass --layer 4"):
        check_before_training(decoder_of(model), sae, 3, texts, BOS, "tiny")
