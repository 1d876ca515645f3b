"""Words that a direction of the residual stream promotes and suppresses."""

from __future__ import annotations

import copy
from collections.abc import Container

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling.backbone_sparserm import decoder_of, final_norm_name
from ..runtime import SparseRMError

WORDS = 6  # promoted by a direction, and as many suppressed
CANDIDATES = 400  # tokens to take the words from: most are pieces of words, or variants of one word


class LogitLens:
    """The final norm and the unembedding of a base model, which cutting removes.

    The logit lens (nostalgebraist, 2020) skips all later layers: a direction promotes the tokens whose logits it
    raises most.

    Args:
        model: A causal language model that is not cut.

    Raises:
        SparseRMError: The architecture is unknown.
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
        """Find the words that each direction promotes most, and the words that it suppresses most.

        Args:
            directions: (K, d_model) decoder directions.
            tokenizer: Tokenizer of the base model.
            known: All words, in lower case. Other tokens are pieces of words, and left out.

        Returns:
            K lists of promoted words and K lists of suppressed words; both empty for a model without an unembedding.
        """
        if self.unembedding is None:
            return [], []
        weight = self.unembedding.weight  # (vocabulary, d_model)
        norm = self.norm.to(weight.device, torch.float32)
        # With a norm of sqrt(d_model), as a token has, so that the epsilon of the final norm does not matter.
        unit = torch.nn.functional.normalize(directions.to(weight.device, torch.float32), dim=-1)
        z = norm(unit * unit.shape[1] ** 0.5)
        z = z - norm(torch.zeros_like(unit))  # the bias of a LayerNorm does not depend on the direction
        logits = (z.to(weight.dtype) @ weight.T).float()

        def top_words(scores: torch.Tensor) -> list[list[str]]:
            tokens = scores.topk(min(CANDIDATES, scores.shape[1])).indices.tolist()
            return [distinct_words(tokenizer, row, known) for row in tokens]

        return top_words(logits), top_words(-logits)


def distinct_words(tokenizer: PreTrainedTokenizerBase, tokens: list[int], known: Container[str]) -> list[str]:
    """Take the first ``WORDS`` distinct known words from a list of tokens, whatever their spaces and capitals."""
    found: dict[str, str] = {}
    for token in tokens:
        word = str(tokenizer.decode([token])).strip()
        if word.casefold() in known:
            found.setdefault(word.casefold(), word)
    return list(found.values())[:WORDS]
