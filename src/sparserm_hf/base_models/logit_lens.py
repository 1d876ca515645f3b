"""What a direction of the residual stream says in words."""

from __future__ import annotations

import copy
from collections.abc import Container

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling.backbone_sparserm import decoder_of, final_norm_name
from ..runtime import SparseRMError

WORDS = 6  # for a direction, either way
CANDIDATES = 400  # tokens that they are taken from: most are pieces of words, or variants of one word


class LogitLens:
    """A base model's final norm and unembedding, kept when it is cut.

    A direction promotes the tokens whose logits it raises most if it goes straight there (nostalgebraist, 2020, the
    logit lens).

    Args:
        model: A causal language model that is not cut yet.

    Raises:
        SparseRMError: It is of an unknown architecture.
    """

    def __init__(self, model: PreTrainedModel):
        decoder = decoder_of(model)
        try:
            name = final_norm_name(decoder)
        except ValueError as error:
            raise SparseRMError(str(error)) from error
        self.norm = copy.deepcopy(getattr(decoder, name)) if name else torch.nn.Identity()
        self.unembedding = model.get_output_embeddings()

    @torch.no_grad()
    def words(
        self, directions: torch.Tensor, tokenizer: PreTrainedTokenizerBase, known: Container[str]
    ) -> tuple[list[list[str]], list[list[str]]]:
        """The words that each of (K, d_model) directions promotes most, and those that it suppresses most.

        Args:
            directions: (K, d_model) decoder directions.
            tokenizer: The model's.
            known: Words in lower case. A token that is none of them is a piece of a word, and left out.
        """
        if self.unembedding is None:
            return [], []
        weight = self.unembedding.weight  # (vocabulary, d_model)
        norm = self.norm.to(weight.device, torch.float32)
        # As long as a token of the residual stream after the norm, or the norm's epsilon would count.
        unit = torch.nn.functional.normalize(directions.to(weight.device, torch.float32), dim=-1)
        z = norm(unit * unit.shape[1] ** 0.5)
        z = z - norm(torch.zeros_like(unit))  # a LayerNorm's bias says nothing of the direction
        logits = (z.to(weight.dtype) @ weight.T).float()
        return tuple(  # type: ignore[return-value]
            [
                distinct_words(tokenizer, row, known)
                for row in (sign * logits).topk(min(CANDIDATES, logits.shape[1])).indices.tolist()
            ]
            for sign in (1, -1)
        )


def distinct_words(tokenizer: PreTrainedTokenizerBase, tokens: list[int], known: Container[str]) -> list[str]:
    """The first known words among some tokens, without those that differ in spaces and capitals only."""
    found: dict[str, str] = {}
    for token in tokens:
        word = str(tokenizer.decode([token])).strip()
        if word.casefold() in known:
            found.setdefault(word.casefold(), word)
    return list(found.values())[:WORDS]
