"""The pooler of a reward model in vLLM, which turns the hidden states of a batch into rewards."""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.pooler import PoolingParamsUpdate
from vllm.model_executor.layers.pooler.abstract import Pooler

from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..modeling.pooling_sparserm import normalised_tokens, pooled_tokens
from ..modeling.response_sparserm import find_responses


class RewardPooler(Pooler):
    """Turn hidden states into rewards.

    A long text may come in several chunks, one in each call. The sum of its pooled tokens is kept from call to call,
    so that chunks do not change the reward.

    Args:
        head: A reward model without its base model: directions, head and configuration.
    """

    def __init__(self, head: SparseRMForSequenceClassification):
        super().__init__()
        self.head = head

    def get_supported_tasks(self) -> set[str]:
        """Return the tasks `classify`, for /classify and /pooling, and `embed`, for /v1/embeddings and /pooling."""
        return {"classify", "embed"}

    def get_pooling_updates(self, task: str) -> PoolingParamsUpdate:
        """Ask vLLM for the token ids, in which the response is found."""
        return PoolingParamsUpdate(requires_token_ids=True)

    def forward(self, hidden_states: torch.Tensor, pooling_metadata: Any) -> list[torch.Tensor | None]:
        """Compute the rewards of a batch.

        A reward is never put through an activation function, whatever a request says.

        Args:
            hidden_states: (tokens of all texts, d_model) residual streams, one text after the other.
            pooling_metadata: vLLM's `PoolingMetadata`, with the start of each text and its number of tokens so far.

        Returns:
            A reward (1,) in float32 for each text; None for a text with chunks still to come.
        """
        cursor = pooling_metadata.get_pooling_cursor()
        chunks = hidden_states.split(cursor.num_scheduled_tokens_cpu.tolist())
        stops, lengths = cursor.seq_lens_cpu.tolist(), cursor.prompt_lens_cpu.tolist()
        ids = pooling_metadata.get_prompt_token_ids_cpu()
        sums, counts = [], []
        for chunk, stop, length, text, state in zip(
            chunks, stops, lengths, ids, pooling_metadata.pooling_states, strict=True
        ):
            where = self.pooled(text, length)  # (T,)
            total = self.add_chunk(
                state.hidden_states_cache, chunk, where[stop - len(chunk) : stop], stop == len(chunk)
            )
            if stop == length:
                state.clean()
                sums.append(total)
                counts.append(int(where.sum()))
        rewards = iter(self.rewards(sums, counts)) if sums else iter(())
        return [next(rewards) if stop == length else None for stop, length in zip(stops, lengths, strict=True)]

    def pooled(self, ids: torch.Tensor, length: int) -> torch.Tensor:
        """Mark the pooled tokens among the token ids (T,) of a text, as (length,) bool.

        Args:
            ids: Token ids; vLLM's trial run at its start gives fewer than `length`.
            length: Number of tokens of the text.
        """
        config = self.head.config
        responses = find_responses(ids[None], torch.ones_like(ids[None]), config)
        return pooled_tokens(torch.ones((1, length), dtype=torch.long), responses, config.pooling)[0]

    def add_chunk(
        self, kept: list[torch.Tensor], chunk: torch.Tensor, where: torch.Tensor, is_first: bool
    ) -> torch.Tensor:
        """Add the pooled tokens of a chunk to the sum of the previous chunks, and keep the new sum.

        Args:
            kept: vLLM's memory of a text, changed in place. It holds the sum of the previous chunks.
            chunk: (T, d_model) residual stream.
            where: (T,) bool, true for the pooled tokens.
            is_first: True if the text starts with this chunk, for the first time or again after an interruption.

        Returns:
            (d_model,) sum in float32.
        """
        places = where.nonzero()[:, 0]  # on the CPU; consecutive
        first, stop = (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
        tokens = chunk[None, first:stop]
        everywhere = torch.ones(tokens.shape[:2], dtype=torch.bool, device=chunk.device)
        total = normalised_tokens(tokens, everywhere, self.head.config.representation_norm).sum((0, 1))
        if kept and not is_first:
            total = total + kept[0]
        kept[:] = [total]
        return total

    def rewards(self, sums: list[torch.Tensor], counts: list[int]) -> torch.Tensor:
        """Turn the sums (d_model,) of B texts' pooled tokens and the token counts into rewards (B, 1) in float32."""
        stacked = torch.stack(sums)
        number = torch.tensor(counts, device=stacked.device)[:, None]  # (B, 1)
        features = self.head.project(stacked / number.clamp(min=1), number > 0)
        return self.head.reward(features)
