"""Run the cut base model and the SAE over batches of texts, and pool the results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from ..base_models import Family, can_pack, find_families, fingerprint_module, run_packed
from ..conversations import TokenizedText
from ..modeling.autoencoder_sparserm import SparseAutoencoder
from ..modeling.backbone_sparserm import residual_stream
from ..modeling.pooling_sparserm import pool_representations, pooled_tokens
from ..modeling.response_sparserm import find_prompts
from ..runtime import SparseRMError, attention_of, pad_texts
from .activations import encode_texts, mean_and_largest
from .shard_files import SparseRows

CACHE_FORMAT = 4  # raise it when the tensors of a shard change
TOKEN_TEXTS = 2_048  # number of texts whose activations are kept for each token: enough to name latents


@dataclass(frozen=True)
class Pooling:
    """Pooling of a text to one vector; the fields are those of `SparseRMConfig`.

    Attributes:
        pooling: Which tokens are pooled: `last`, `mean` or `response_mean`.
        representation_norm: How each token is normalised before it is pooled: `none` or `rms`.
        prompt_marks: `SparseRMConfig.response_marks`, by which the prompts are found and averaged too; None leaves
            prompts out.
    """

    pooling: str
    representation_norm: str
    prompt_marks: dict[str, Any] | None = None


@dataclass(frozen=True)
class Representer:
    """A cut base model and an SAE with the texts that they represent.

    Attributes:
        base_model: The cut base model, in eval mode on its device.
        sae: The SAE, on the same device; None leaves out activations.
        texts: The texts.
        how: Pooling and normalisation.
    """

    base_model: PreTrainedModel
    sae: SparseAutoencoder | None
    texts: list[TokenizedText]
    how: Pooling

    @cached_property
    def ids(self) -> list[tuple[int, ...]]:
        """Token ids of each text."""
        return [text.ids for text in self.texts]

    @cached_property
    def packed(self) -> bool:
        """True if the base model computes a beginning that several texts share only once."""
        return can_pack(self.base_model, max(map(len, self.ids)))

    def families(self) -> list[Family]:
        """Group the texts that are computed together; without packing, each text is alone."""
        if self.packed:
            return find_families(self.ids)
        return [Family((i,), len(ids), len(ids)) for i, ids in enumerate(self.ids)]

    def fingerprint(self, max_tokens: int) -> str:
        """Hash everything that changes the representations, to the last bit.

        Args:
            max_tokens: Batch size in tokens.
        """
        # `dtype` is left out: the base configuration in a reward model lacks it, but the representations are the same.
        config = {k: v for k, v in self.base_model.config.to_dict().items() if not k.startswith("_") and k != "dtype"}
        identity = {
            "format": CACHE_FORMAT,
            "base_model": fingerprint_module(self.base_model),
            "base_config": config,
            "versions": [torch.__version__, transformers.__version__],
            "attention": attention_of(self.base_model.config),
            "sae": [fingerprint_module(self.sae), self.sae.spec()] if self.sae else None,
            "how": {name: value for name, value in vars(self.how).items() if value is not None},
            "dtype": str(self.base_model.dtype),
            "device": self.base_model.device.type,
            "max_tokens": max_tokens,
            "packed": self.packed,
            "texts": hashlib.blake2b(json.dumps(self.texts).encode(), digest_size=16).hexdigest(),
        }
        return hashlib.blake2b(json.dumps(identity, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()

    @torch.inference_mode()
    def compute_shard(self, batches: Iterable[Sequence[Family]]) -> dict[str, torch.Tensor]:
        """Compute the tensors of a shard, which `StoredShard` reads.

        Args:
            batches: Batches of families of texts.

        Raises:
            SparseRMError: A representation is not finite.
        """
        means: list[torch.Tensor] = []
        prompts: list[torch.Tensor] = []
        pooled_rows, token_rows, token_texts = SparseRows(), SparseRows(), []
        for batch in batches:
            members = [i for family in batch for i in family.members]
            hidden, pooled = self.run(batch, members)
            mean = pool_representations(hidden, pooled, self.how.representation_norm)
            finite = torch.isfinite(mean).all(-1)
            if self.sae:
                by_text = []
                for i, encoded in zip(members, encode_texts(hidden, pooled, self.sae), strict=True):
                    by_text.append(mean_and_largest(encoded))
                    if i < TOKEN_TEXTS:
                        token_rows.add(encoded > 0, values=encoded)
                        token_texts += [i] * len(encoded)
                average, largest = map(torch.stack, zip(*by_text, strict=True))  # (B, d_sae) each
                finite &= torch.isfinite(largest).all(-1)
                # A latent fires exactly where its average is above zero too.
                pooled_rows.add(largest > 0, values=average, max_values=largest)
            self._check_finite(finite, members)
            means.append(mean.cpu())
            if self.how.prompt_marks:
                prompts.append(self._average_prompts(hidden, members).cpu())
        tensors = {"mean": torch.cat(means), "token_texts": torch.tensor(token_texts, dtype=torch.int64)}
        tensors |= {"prompt_mean": torch.cat(prompts)} if prompts else {}
        return tensors | pooled_rows.tensors("pooled") | token_rows.tensors("token")

    def _average_prompts(self, hidden: torch.Tensor, members: list[int]) -> torch.Tensor:
        """Average the tokens of the members' prompts, (B, d_model), from their residual streams (B, T, d_model)."""
        assert self.how.prompt_marks is not None
        ids, mask = pad_texts([self.ids[i] for i in members], hidden.device)
        places = find_prompts(ids, mask, [self.texts[i].place for i in members], self.how.prompt_marks)
        return pool_representations(hidden, pooled_tokens(mask, places, "mean"), self.how.representation_norm)

    def run(self, batch: Sequence[Family], members: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Run a batch through the base model.

        Args:
            batch: Families of texts.
            members: Numbers of these texts, family after family.

        Returns:
            (B, T, d_model) residual stream of the B members, and (B, T) bool, true for pooled tokens.
        """
        ids, mask = pad_texts([self.ids[i] for i in members], self.base_model.device)
        if self.packed:
            hidden = pad_sequence(run_packed(self.base_model, self.ids, batch), batch_first=True)
        else:
            hidden = residual_stream(self.base_model, ids, mask)
        return hidden, pooled_tokens(mask, [self.texts[i].place for i in members], self.how.pooling)

    def _check_finite(self, finite: torch.Tensor, members: list[int]) -> None:
        if finite.all():
            return
        worst = members[int((~finite).nonzero()[0])]
        raise SparseRMError(
            f"The representation of text {worst + 1} ({len(self.ids[worst])} tokens) is not finite, as the base model "
            f"overflows in {str(self.base_model.dtype).removeprefix('torch.')}: set dtype to float32, or look for "
            "broken weights in the base model."
        )
