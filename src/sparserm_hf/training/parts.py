"""The parts of a reward model that training does not change: base model, SAE and tokenizer."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..base_models import (
    LogitLens,
    check_quantized,
    load_language_model,
    load_tokenizer,
    longest_text,
    prepare_base_model,
    saved_dtype,
    unpacked,
)
from ..conversations import ChatEncoder, TokenizedText, find_marks, prepare_tokenizer
from ..modeling.backbone_sparserm import cut_base_model
from ..modeling.quantized_sparserm import is_quantized
from ..runtime import SparseRMError, commit_of, named_dtype, needs_extra, process_state
from ..sae import LoadedSAE, check_before_training, chosen_sae, load_sae, matching_layer
from ..scoring import check_quantized_reload
from .config import SparseRMTrainingConfig
from .steps import check_k

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrozenParts:
    """The parts of a reward model that training does not change.

    Attributes:
        base_model: Base model; `cut` cuts it after `layer` layers.
        base_name: Hub id or folder of the base model.
        recorded_name: Name of the base model in the checkpoint.
        revision: Commit of the base model on the Hub; None for a model that is not from the Hub.
        lens: Logit lens of the whole base model.
        sae: SAE.
        layer: Number of decoder layers before the residual stream that the SAE encodes.
        encoder: Encoder of conversations, with the tokenizer.
        dtype: Data type that the base model runs in.
        saved_dtype: Data type of the base model's weights in the checkpoint.
        adapter_rank: Rank of the adapter that is merged into the base model; 0 without one.
    """

    base_model: PreTrainedModel
    base_name: str
    recorded_name: str
    revision: str | None
    lens: LogitLens
    sae: LoadedSAE
    layer: int
    encoder: ChatEncoder
    dtype: torch.dtype
    saved_dtype: torch.dtype
    adapter_rank: int = 0

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the base model."""
        return self.encoder.tokenizer

    def cut(self, args: SparseRMTrainingConfig, texts: Sequence[TokenizedText]) -> FrozenParts:
        """Cut the base model in place, move it to its device and data type, and check that the SAE fits.

        Args:
            args: Settings.
            texts: Training texts; the SAE is checked on some of them.

        Raises:
            SparseRMError: The base model cannot be cut, or the SAE does not fit.
        """
        state, layer = process_state(), self.layer
        if args.check_sae:  # the check also tries the next layer, in case the SAE belongs there
            layer = min(layer + 1, self.base_model.config.get_text_config().num_hidden_layers)
        base = prepare_base_model(self.base_model, layer, state.device, self.dtype)
        if not args.slim and state.is_main_process:
            check_quantized_reload(base, Path(args.output_dir))
        if args.check_sae:
            self.sae.autoencoder.to(state.device)
            ids, bos = [list(text.ids) for text in texts], self.tokenizer.bos_token_id
            verdict = check_before_training(base, self.sae, self.layer, ids, bos, self.base_name)
            if state.is_main_process:
                logger.info(verdict.sentence)
        return replace(self, base_model=cut_base_model(base, self.layer))


def load_parts(
    model: str | PreTrainedModel,
    sae: str | LoadedSAE | None,
    args: SparseRMTrainingConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    revision: str | None,
) -> FrozenParts:
    """Load base model, SAE and tokenizer, and check that they fit together; see `SparseRMTrainer` for the arguments.

    Raises:
        SparseRMError: A part cannot be loaded, or does not fit.
    """
    given = name_of(model)
    name = unpacked(given)
    local = Path(name).exists()
    if args.slim:
        check_slim(given, isinstance(model, str), local and args.push_to_hub)
    if args.adapter_rank:
        needs_extra("An adapter", "adapter", "peft")
        if {os.environ.get(name) for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")} & {"true", "True"}:
            raise SparseRMError(
                "An adapter is trained in one process or with plain data parallelism: start the command without FSDP "
                "and DeepSpeed, or leave adapter_rank out."
            )
    dtype = named_dtype(args.dtype, process_state().device)
    base = _load_base(model, name, revision, args.quantization, dtype)
    check_quantized(base, given, args.dtype, args.quantization)
    if args.adapter_rank and is_quantized(base):
        raise SparseRMError(
            f"{given!r} is quantised, and an adapter cannot be merged into quantised weights: leave adapter_rank out, "
            "or take the base model without quantisation."
        )
    text_config, commit = base.config.get_text_config(), commit_of(base.config)
    loaded = sae if isinstance(sae, LoadedSAE) else load_sae(chosen_sae(sae, text_config, name))
    layer = matching_layer(loaded, text_config, name, args.layer)
    check_k(args, loaded.autoencoder.d_sae, loaded.autoencoder.d_in)
    return FrozenParts(
        base_model=base,
        base_name=name,
        # A path means nothing on another machine, but a slim checkpoint loads its base model from that path.
        recorded_name=Path(given).name if local and not args.slim else name,
        revision=commit,
        lens=LogitLens(base),
        sae=loaded,
        layer=layer,
        encoder=_make_encoder(copy.deepcopy(tokenizer) or load_tokenizer(name, commit), text_config, args),
        dtype=dtype,
        saved_dtype=saved_dtype(base, dtype),
    )


def name_of(model: str | PreTrainedModel) -> str:
    """Return the name of a base model: the given name, or the name that a model in memory was loaded by."""
    return model if isinstance(model, str) else model.config.name_or_path or ""


def _load_base(
    model: str | PreTrainedModel, name: str, revision: str | None, quantization: str, dtype: torch.dtype
) -> PreTrainedModel:
    if isinstance(model, str):
        return load_language_model(name, revision, quantization, dtype)
    return copy.deepcopy(model)  # the copy is cut in place


def _make_encoder(
    tokenizer: PreTrainedTokenizerBase, text_config: PretrainedConfig, args: SparseRMTrainingConfig
) -> ChatEncoder:
    tokenizer = prepare_tokenizer(tokenizer)
    tokenizer.model_max_length = longest_text(text_config, args.max_length)  # saved: scoring truncates as training did
    marks = find_marks(tokenizer)
    if args.pooling == "response_mean" and not marks["assistant_header"]:
        raise SparseRMError(
            "The chat template writes no header before an answer, so the response cannot be told from the prompt: "
            "use --pooling mean or last."
        )
    return ChatEncoder(tokenizer, marks, max_length=tokenizer.model_max_length)


def check_slim(base: str, by_name: bool, unreachable: bool) -> None:
    """Raise a `SparseRMError` if a slim checkpoint would not find its base model again.

    Args:
        base: Name of the base model.
        by_name: True if the base model was given by its name, False if it was given in memory.
        unreachable: True if the base model is a local folder and the checkpoint goes to the Hub.
    """
    if not by_name:
        raise SparseRMError(
            "A slim checkpoint loads its base model by name, but this base model was given in memory: save it to a "
            "folder and give that folder, or leave slim out."
        )
    if unreachable:
        raise SparseRMError(
            f"A slim checkpoint on the Hub needs a base model on the Hub, but {base!r} is a local folder: give a base "
            "model from the Hub, or leave slim out."
        )
