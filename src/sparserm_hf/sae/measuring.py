"""Measure an SAE on token ids: its fit, the fit of neighbouring set-ups, and the losses with its reconstruction."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling.autoencoder_sparserm import NORMALIZATIONS, SparseAutoencoder
from ..modeling.backbone_sparserm import decoder_layers, decoder_of
from ..runtime import SparseRMError
from .fit import MIN_TOKENS, Fit, Neighbour, Verdict, judge, measure_fit
from .hooks import check_finite, collect_residual_streams, count_leading_bos, next_token_loss
from .loading.loaded_sae import LoadedSAE

SAMPLE_LENGTH = 128  # tokens of each sampled text, so that the sample has many texts
TRAINING_TOKENS = 1024  # sampled for the check before a training


@dataclass(frozen=True)
class Losses:
    """Mean cross-entropy of the next token, in nats, for three residual streams after the SAE's layer.

    Attributes:
        clean: Loss with the unchanged residual stream.
        reconstructed: Loss with the SAE's reconstruction.
        ablated: Loss with zeros.

    Example:
        >>> Losses(clean=2.0, reconstructed=2.5, ablated=12.0).recovered
        0.95
    """

    clean: float
    reconstructed: float
    ablated: float

    @property
    def recovered(self) -> float:
        """Share of the loss caused by ablation that the reconstruction avoids; `ce_loss_score` in sae-lens."""
        difference = self.ablated - self.clean
        return (self.ablated - self.reconstructed) / difference if difference else 0.0


@dataclass(frozen=True)
class SAECheck:
    """Result of `check_sae`.

    Attributes:
        fit: Fit of the SAE in the given set-up.
        neighbours: Fit at other layers, with other normalisations, and with another number of BOS tokens.
        verdict: Decision on the fit, with a reason.
        losses: Next-token losses with and without the SAE.
        title: Names of the SAE, the layer and the base model.
        texts: Number of texts.
        has_bos: True if the tokenizer has a BOS token.

    Example:
        ```python
        from sparserm_hf import SAECheck, check_sae

        check: SAECheck = check_sae("my-base-model", "my-sae", "my-texts.jsonl")
        print(check.fit.explained_variance, check.losses.recovered, check.verdict.fits)
        ```
    """

    fit: Fit
    neighbours: list[Neighbour]
    verdict: Verdict
    losses: Losses
    title: str
    texts: int
    has_bos: bool


def sample_texts(texts: list[list[int]], max_tokens: int) -> list[list[int]]:
    """Sample the beginnings of random texts until they have about `max_tokens` tokens. The sample is reproducible.

    Example:
        >>> sample_texts([[1, 2, 3]], max_tokens=100)
        [[1, 2, 3]]
    """
    chosen: list[list[int]] = []
    left = max_tokens
    for i in np.random.default_rng(0).permutation(len(texts)):
        if left > 0:
            chosen.append(texts[i][:SAMPLE_LENGTH])
            left -= len(chosen[-1])
    return chosen


def compare_fits(
    decoder: PreTrainedModel, sae: LoadedSAE, layer: int, texts: list[list[int]], bos: int | None
) -> tuple[Fit, list[Neighbour]]:
    """Measure an SAE at its layer, at the previous and the next layer, and with each other normalisation.

    Args:
        decoder: Base model without its language model head. The next layer is compared only if the model has it.
        sae: SAE on the model's device.
        layer: Layer whose output the SAE encodes, counted from 1.
        texts: Token ids of each text.
        bos: Id of the BOS token, if there is one.

    Returns:
        The fit in the given set-up, and the neighbouring set-ups with their fits.

    Raises:
        SparseRMError: There are too few tokens, or the residual stream is not finite.
    """
    layers = [n for n in (layer - 1, layer, layer + 1) if 1 <= n <= len(decoder_layers(decoder))]
    tokens = collect_residual_streams(decoder, texts, layers, bos, "Residual stream")
    if len(tokens[layer]) < MIN_TOKENS:
        raise SparseRMError(
            f"The texts have {len(tokens[layer])} tokens besides the first ones, but an SAE is measured on at least "
            f"{MIN_TOKENS}: give more or longer texts."
        )
    for found in tokens.values():
        check_finite(found, decoder.dtype)
    neighbours = [
        Neighbour(f"layer {n}", _layer_remedy(sae, n), measure_fit(sae.autoencoder, tokens[n]))
        for n in layers
        if n != layer
    ]
    for normalization in NORMALIZATIONS:
        if normalization != sae.autoencoder.normalization:
            other = copy.copy(sae.autoencoder)  # shares the weights
            other.normalization = normalization
            remedy = f'set "normalize_activations": "{normalization}" in its cfg.json'
            neighbours.append(Neighbour(f"normalisation {normalization}", remedy, measure_fit(other, tokens[layer])))
    return measure_fit(sae.autoencoder, tokens[layer]), neighbours


def _layer_remedy(sae: LoadedSAE, layer: int) -> str:
    if sae.layer is None:
        return f"pass --layer {layer}"
    return (
        f"its hook name is {sae.source['hook_name']}; take the SAE of the right layer or, where the name is wrong, "
        f"write blocks.{layer - 1}.hook_resid_post into its cfg.json"
    )


def bos_neighbour(
    decoder: PreTrainedModel,
    sae: LoadedSAE,
    layer: int,
    texts: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
) -> Neighbour | None:
    """Measure an SAE on the same texts with one BOS token less, or with one if they have none.

    Returns:
        The neighbour; None if the tokenizer has no BOS token.
    """
    bos = tokenizer.bos_token_id
    if bos is None:
        return None
    counts = [count_leading_bos(text, bos) for text in texts]
    other = [text[1:] if count else [bos, *text] for text, count in zip(texts, counts, strict=True)]
    usual = max(set(counts), key=counts.count)
    if usual:
        name = f"without {tokenizer.bos_token} at the start" if usual == 1 else f"with {usual - 1} of {usual} BOS"
        remedy = f"the texts start with {usual} BOS tokens {tokenizer.bos_token}; take one out of the chat template"
    else:
        name = f"with {tokenizer.bos_token} at the start"
        remedy = f"the texts lack the BOS token {tokenizer.bos_token}; let the chat template start with it"
    tokens = collect_residual_streams(decoder, other, [layer], bos, "Other BOS")[layer]
    return Neighbour(name, remedy, measure_fit(sae.autoencoder, tokens))


def measure_losses(
    model: PreTrainedModel, sae: SparseAutoencoder, layer: int, texts: list[list[int]], longest: float, bos: int | None
) -> Losses:
    """Measure the next-token loss with the clean, the reconstructed and the zeroed residual stream after a layer."""
    patches = {"clean": lambda x: x, "reconstructed": sae, "ablated": torch.zeros_like}
    return Losses(
        **{
            name: next_token_loss(model, texts, layer, patch, longest, bos, f"Loss, {name}")
            for name, patch in patches.items()
        }
    )


def measure_sae(
    model: PreTrainedModel,
    sae: LoadedSAE,
    layer: int,
    texts: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    name: str,
) -> SAECheck:
    """Compute the result of `check_sae` from a loaded model, SAE and texts.

    Args:
        model: Complete causal language model in eval mode.
        sae: SAE on the model's device.
        layer: Layer whose output the SAE encodes, counted from 1.
        texts: Token ids of each text.
        tokenizer: Tokenizer of the model; it names the BOS token.
        name: Name of the model in the verdict.

    Raises:
        SparseRMError: There are too few tokens, or the residual stream is not finite.
    """
    decoder, bos = decoder_of(model), tokenizer.bos_token_id
    fit, neighbours = compare_fits(decoder, sae, layer, texts, bos)
    other_bos = bos_neighbour(decoder, sae, layer, texts, tokenizer)
    neighbours += [other_bos] if other_bos else []
    verdict = judge(fit, neighbours, f"layer {layer} of {name}", sae.source.get("model_name"))
    losses = measure_losses(model, sae.autoencoder, layer, texts, fit.longest, bos)
    title = f"{sae.source['source']} at layer {layer} of {name}"
    return SAECheck(fit, neighbours, verdict, losses, title, len(texts), tokenizer.bos_token is not None)


def check_before_training(
    decoder: PreTrainedModel, sae: LoadedSAE, layer: int, texts: list[list[int]], bos: int | None, name: str
) -> Verdict:
    """Check the SAE of a reward model before its training: the fast part of `measure_sae`, on a sample of the texts.

    Args:
        decoder: Base model without its language model head, cut after the next layer.
        sae: SAE on the model's device.
        layer: Layer whose output the SAE encodes, counted from 1.
        texts: Token ids of each text.
        bos: Id of the BOS token, if there is one.
        name: Name of the base model in the verdict.

    Raises:
        SparseRMError: The SAE does not fit.
    """
    sample = sample_texts(texts, TRAINING_TOKENS)
    if sum(max(0, len(text) - 2) for text in sample) < MIN_TOKENS:
        return Verdict(True, f"The fit of the SAE is unknown: the texts have fewer than {MIN_TOKENS} tokens.")
    fit, neighbours = compare_fits(decoder, sae, layer, sample, bos)
    verdict = judge(fit, neighbours, f"layer {layer} of {name}", sae.source.get("model_name"))
    if not verdict.fits:
        raise SparseRMError(f"{verdict.sentence} To train with this SAE all the same, pass --no_check_sae.")
    return verdict
