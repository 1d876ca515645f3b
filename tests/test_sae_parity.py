"""The embedded form of random SAEs of each format and architecture equals its reference, also after save and load."""

from __future__ import annotations

from dataclasses import dataclass

import published_saes as published
import published_scopes as scopes
import pytest
import torch
from sparserm_hf.modeling.modeling_sparserm import SparseRMForSequenceClassification
from tiny import D_MODEL, D_SAE, tiny_reward_model

from sparserm_hf.sae.loading.loaded_sae import load_sae

TOLERANCE = 1e-5  # of the largest value


@dataclass
class Row:
    """A row of the parity table, filled in by its test."""

    format: str
    architecture: str
    normalization: str
    reference: str
    write: object
    errors: tuple[float, float, float] | None = None


def row(format, architecture, reference, write, /, *args, normalization="none", **kwargs):
    return Row(format, architecture, normalization, reference, lambda path: write(path, *args, **kwargs))


def own(architecture, class_name, normalization="none", **settings):
    settings = settings | {"normalize_activations": normalization}
    return row(
        "sae-lens",
        architecture,
        "sae-lens",
        published.sae_lens_sae,
        class_name,
        normalization=normalization,
        **settings,
    )


def trained(architecture, class_name, save="save_inference_model", **settings):
    name = "sae-lens, inference" if save == "save_inference_model" else "sae-lens, checkpoint"
    return row(name, architecture, "sae-lens", published.sae_lens_trained, class_name, save, **settings)


def of_dictionary_learning(architecture, dict_class):
    reference = "dictionary-learning"
    return row("dictionary_learning", architecture, reference, published.dictionary_learning, dict_class)


TOPK = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": published.K}}
DATASET = {"normalization": "dataset norm, folded"}
ROWS = [
    own("standard", "StandardSAE"),
    own("standard", "StandardSAE", "constant_norm_rescale"),
    own("standard", "StandardSAE", "layer_norm"),
    own("standard, b_dec not applied", "StandardSAE", apply_b_dec_to_input=False),
    own("gated", "GatedSAE"),
    own("gated", "GatedSAE", "constant_norm_rescale"),
    own("gated", "GatedSAE", "layer_norm"),
    own("jumprelu", "JumpReLUSAE"),
    own("jumprelu", "JumpReLUSAE", "constant_norm_rescale"),
    own("jumprelu", "JumpReLUSAE", "layer_norm"),
    own("topk", "TopKSAE", k=published.K),
    own("topk", "TopKSAE", "constant_norm_rescale", k=published.K),
    own("topk", "TopKSAE", "layer_norm", k=published.K),
    own("topk, rescaled by decoder norm", "TopKSAE", k=published.K, rescale_acts_by_decoder_norm=True),
    trained("standard", "StandardTrainingSAE"),
    trained("gated", "GatedTrainingSAE"),
    trained("jumprelu", "JumpReLUTrainingSAE"),
    trained("topk", "TopKTrainingSAE", k=published.K),
    trained("batchtopk", "BatchTopKTrainingSAE", k=published.K),
    trained("matryoshka", "MatryoshkaBatchTopKTrainingSAE", k=published.K, matryoshka_widths=[16, D_SAE]),
    trained("batchtopk", "BatchTopKTrainingSAE", "save_model", k=published.K),
    trained(
        "matryoshka", "MatryoshkaBatchTopKTrainingSAE", "save_model", k=published.K, matryoshka_widths=[16, D_SAE]
    ),
    row("sae-lens before 6", "standard", "sae-lens", published.sae_lens_old, "StandardSAE", activation_fn_str="relu"),
    row("sae-lens before 6", "topk", "sae-lens", published.sae_lens_old, "TopKSAE", **TOPK),
    row("sae-lens before 6", "gated", "sae-lens", published.sae_lens_old, "GatedSAE", architecture="gated"),
    row("sae-lens before 6", "jumprelu", "sae-lens", published.sae_lens_old, "JumpReLUSAE", architecture="jumprelu"),
    row("Gemma Scope", "jumprelu", "sae-lens", scopes.gemma_scope, by_hand=False),
    row("Gemma Scope", "jumprelu", "by hand", scopes.gemma_scope, by_hand=True),
    row("Gemma Scope 2", "jumprelu", "sae-lens", scopes.gemma_scope_2, by_hand=False),
    row("Gemma Scope 2", "jumprelu", "by hand", scopes.gemma_scope_2, by_hand=True),
    row(
        "Llama Scope, unit decoder",
        "jumprelu",
        "sae-lens",
        scopes.llama_scope,
        by_hand=False,
        unit_decoder=True,
        **DATASET,
    ),
    row("Llama Scope", "jumprelu", "by hand", scopes.llama_scope, by_hand=True, unit_decoder=False, **DATASET),
    row("Qwen Scope", "topk", "sae-lens", scopes.qwen_scope, by_hand=False),
    row("Qwen Scope", "topk", "by hand", scopes.qwen_scope, by_hand=True),
    row("sparsify", "topk", "eai-sparsify", published.sparsify, expansion_factor=D_SAE // D_MODEL),
    row("sparsify, num_latents", "topk", "eai-sparsify", published.sparsify, num_latents=D_SAE, multi_topk=True),
    of_dictionary_learning("standard", "AutoEncoder"),
    of_dictionary_learning("gated", "GatedAutoEncoder"),
    of_dictionary_learning("topk", "AutoEncoderTopK"),
    of_dictionary_learning("jumprelu", "JumpReluAutoEncoder"),
    of_dictionary_learning("batchtopk", "BatchTopKSAE"),
    of_dictionary_learning("matryoshka", "MatryoshkaBatchTopKSAE"),
]


def table() -> list[str]:
    """Format the parity table for the summary of the test run."""
    lines = [
        "Largest |difference| from the reference as a share of its largest |value|, after save and load of the model:",
        f"{'format':<26}{'architecture':<32}{'normalisation':<24}{'activations':>12}{'reconstruction':>16}"
        f"{'directions':>12}  reference",
    ]
    for r in ROWS:
        if r.errors:
            activations, reconstruction, directions = (f"{error:.1e}" for error in r.errors)
            lines.append(
                f"{r.format:<26}{r.architecture:<32}{r.normalization:<24}{activations:>12}{reconstruction:>16}"
                f"{directions:>12}  {r.reference}"
            )
    return [*lines, f"{sum(r.errors is not None for r in ROWS)} of {len(ROWS)} rows."]


def relative(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return ((ours - reference).abs().max() / reference.abs().max()).item()


@pytest.mark.works_with("sae-lens", "SAEs in its formats, old and new, and out of its registry, to 1e-5")
@pytest.mark.works_with("eai-sparsify", "SAEs in its format, to 1e-5")
@pytest.mark.works_with("dictionary-learning", "SAEs in its format, to 1e-5")
@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r.format}, {r.architecture}, {r.normalization}, {r.reference}")
@torch.no_grad()
def test_the_embedded_form_equals_its_reference(row, tmp_path):
    reference = row.write(tmp_path / "published")
    loaded = load_sae(str(reference.path))
    assert loaded.layer == 2
    latents = [3, 11, 8, 40, 5, 21]
    model = tiny_reward_model(sae=loaded.autoencoder.spec())
    model.sae = loaded.autoencoder
    model.directions = loaded.autoencoder.W_dec[latents].clone()
    model.save_pretrained(tmp_path / "model")
    sae = SparseRMForSequenceClassification.from_pretrained(tmp_path / "model").sae
    x = torch.randn(200, D_MODEL, generator=torch.Generator().manual_seed(1)) * 2
    activations = reference.encode(x)
    share = (activations > 0).float().mean()
    assert 0.02 < share < 0.8  # or the comparison would say little
    row.errors = (
        relative(sae.encode(x), activations),
        relative(sae(x), reference.reconstruct(x)),
        relative(sae.W_dec, reference.directions),
    )
    assert max(row.errors) <= TOLERANCE
    assert torch.equal(sae.encode(x) > 0, activations > 0)
