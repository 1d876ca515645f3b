"""Does an SAE fit a base model, a layer and a kind of text: measured, and compared with the wrong neighbours."""

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
from .hooks import leading_bos, next_token_loss, read_layers
from .loading.loaded_sae import LoadedSAE
from .tokens import check_finite

SAMPLE_LENGTH = 128  # tokens of a text that are looked at, so that many texts are
TRAINING_TOKENS = 1024  # looked at before a training run


@dataclass(frozen=True)
class Losses:
    """Mean cross-entropy of the next token, in nats, with the residual stream replaced after the SAE's layer.

    Attributes:
        clean: With nothing replaced.
        reconstructed: With the SAE's reconstruction in its place.
        ablated: With zeros in its place.
    """

    clean: float
    reconstructed: float
    ablated: float

    @property
    def recovered(self) -> float:
        """Share of the loss of ablation that the reconstruction wins back; sae-lens calls it `ce_loss_score`."""
        difference = self.ablated - self.clean
        return (self.ablated - self.reconstructed) / difference if difference else 0.0


@dataclass(frozen=True)
class SAECheck:
    """The check of an SAE on texts.

    Attributes:
        fit: How well the SAE fits as it is given.
        neighbours: How well it would fit in another layer, with another normalisation or another begin-of-text token.
        verdict: Whether it fits, in one sentence.
        losses: Next-token losses with and without the SAE.
        title: The SAE, the layer and the base model.
        texts: Number of texts.
        has_bos: Whether the tokenizer has a begin-of-text token.
    """

    fit: Fit
    neighbours: list[Neighbour]
    verdict: Verdict
    losses: Losses
    title: str
    texts: int
    has_bos: bool


def sample_texts(texts: list[list[int]], max_tokens: int) -> list[list[int]]:
    """The beginnings of texts from all over a data set, until there are about `max_tokens` tokens."""
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
    """Measure an SAE at its layer, at the layers before and behind, and with the other normalisations.

    Args:
        decoder: The base model without its head, with at least the layer behind where there is one.
        sae: The SAE, on the same device.
        layer: Where it is to be read, counted from 1.
        texts: Token ids.
        bos: The begin-of-text token.

    Raises:
        SparseRMError: There are too few tokens, or the base model gives something else than numbers.
    """
    layers = [n for n in (layer - 1, layer, layer + 1) if 1 <= n <= len(decoder_layers(decoder))]
    tokens = read_layers(decoder, texts, layers, bos, "Residual stream")
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
    """The same texts without their begin-of-text token, or with one where they have none.

    None where the tokenizer has no such token.
    """
    bos = tokenizer.bos_token_id
    if bos is None:
        return None
    counts = [leading_bos(text, bos) for text in texts]
    other = [text[1:] if count else [bos, *text] for text, count in zip(texts, counts, strict=True)]
    usual = max(set(counts), key=counts.count)
    if usual:
        name = f"without {tokenizer.bos_token} at the start" if usual == 1 else f"with {usual - 1} of {usual} BOS"
        remedy = f"the texts start with {usual} BOS tokens {tokenizer.bos_token}; take one out of the chat template"
    else:
        name = f"with {tokenizer.bos_token} at the start"
        remedy = f"the texts lack the BOS token {tokenizer.bos_token}; let the chat template start with it"
    tokens = read_layers(decoder, other, [layer], bos, "Other BOS")[layer]
    return Neighbour(name, remedy, measure_fit(sae.autoencoder, tokens))


def patched_losses(
    model: PreTrainedModel, sae: SparseAutoencoder, layer: int, texts: list[list[int]], longest: float, bos: int | None
) -> Losses:
    """Loss of next-token prediction with the residual stream after a layer as it is, reconstructed, and zeroed."""
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
    """Measure all that `check_sae` reports.

    Args:
        model: A whole causal language model, in eval mode on its device.
        sae: The SAE, on the same device.
        layer: Where it is to be read, counted from 1.
        texts: Token ids.
        tokenizer: The base model's, for its begin-of-text token.
        name: The base model's, for the verdict.

    Raises:
        SparseRMError: There are too few tokens.
    """
    decoder, bos = decoder_of(model), tokenizer.bos_token_id
    fit, neighbours = compare_fits(decoder, sae, layer, texts, bos)
    other_bos = bos_neighbour(decoder, sae, layer, texts, tokenizer)
    neighbours += [other_bos] if other_bos else []
    verdict = judge(fit, neighbours, f"layer {layer} of {name}", sae.source.get("model_name"))
    losses = patched_losses(model, sae.autoencoder, layer, texts, fit.longest, bos)
    title = f"{sae.source['source']} at layer {layer} of {name}"
    return SAECheck(fit, neighbours, verdict, losses, title, len(texts), tokenizer.bos_token is not None)


def check_before_training(
    decoder: PreTrainedModel, sae: LoadedSAE, layer: int, texts: list[list[int]], bos: int | None, name: str
) -> Verdict:
    """The cheap part of `measure_sae`, on some of the training texts: without other texts and without losses.

    Args:
        decoder: The base model, cut after the layer behind `layer`.
        sae: The SAE, on the same device.
        layer: Where it is to be read, counted from 1.
        texts: Token ids.
        bos: The begin-of-text token.
        name: The base model's, for the verdict.

    Raises:
        SparseRMError: The SAE does not fit.
    """
    sample = sample_texts(texts, TRAINING_TOKENS)
    if sum(max(0, len(text) - 2) for text in sample) < MIN_TOKENS:
        return Verdict(True, f"Whether the SAE fits is not known: the texts have fewer than {MIN_TOKENS} tokens.")
    fit, neighbours = compare_fits(decoder, sae, layer, sample, bos)
    verdict = judge(fit, neighbours, f"layer {layer} of {name}", sae.source.get("model_name"))
    if not verdict.fits:
        raise SparseRMError(f"{verdict.sentence} If you know better, leave the check out with --no_check_sae.")
    return verdict
