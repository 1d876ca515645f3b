"""Measure a policy: rewards, lengths and common beginnings of its answers, and which responses it finds likelier."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..conversations import Messages, Preference, check_columns, encode, parse_preference, row_name
from ..runtime import SparseRMError, common_prefix_length, memory_advice
from .policy import Policy
from .responses import Row
from .settings import AlignmentConfig
from .sparse_judge import SparseJudge
from .truthfulqa import Item, multiple_choice

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measures:
    """Data on which policies are measured.

    Attributes:
        held_out: Questions that the policy answers.
        pairs: Preference pairs; may be empty.
        items: Items of TruthfulQA; may be empty.
    """

    held_out: list[Messages]
    pairs: list[Preference]
    items: list[Item]

    @classmethod
    def of(cls, held_out: list[Messages], rows: Any, items: list[Item]) -> Measures:
        """Collect the data; `rows` are preference pairs in the form that `load_preferences` returns.

        Raises:
            SparseRMError: A pair is malformed, or has no prompt.
        """
        pairs = []
        for number, row in enumerate(rows or [], 1):
            check_columns(list(row))
            pair = parse_preference(row, row_name(number))
            if not pair.prompt:
                raise SparseRMError(
                    f"Evaluation pair {number} has no prompt for the policy: add a `prompt`, or leave the pair out."
                )
            pairs.append(pair)
        return cls(held_out, pairs, items)

    def without(self, questions: Iterable[Messages]) -> Measures:
        """Leave out the pairs whose prompt ends with one of the given questions.

        Raises:
            SparseRMError: No pair is left.
        """
        asked = {question[-1]["content"].strip() for question in questions}
        pairs = [pair for pair in self.pairs if _last_message(pair.prompt).strip() not in asked]
        if len(pairs) < len(self.pairs):
            logger.info(
                "Policies are measured on %d of %d preference pairs: the questions hold the others.",
                len(pairs),
                len(self.pairs),
            )
        if self.pairs and not pairs:
            raise SparseRMError(
                "The prompts of all evaluation pairs are among the questions: leave some questions out, or give other "
                "pairs."
            )
        return replace(self, pairs=pairs)

    def take(self, policy: Policy, judge: SparseJudge, config: AlignmentConfig) -> tuple[dict[str, Any], list[Row]]:
        """Measure a policy.

        Args:
            policy: The policy, with the adapter of a round; the first policy has none.
            judge: The reward model.
            config: The settings; the answers are sampled with the same seed for every policy.

        Returns:
            The figures, and the answers with their rewards. The figures are the mean `reward` of the answers; their
            mean number of `tokens`, and the share of answers that were `cut`; `alike`, the largest share of answers
            that begin with the same two words; `kl`, the mean KL divergence of an answer from the first policy, in
            nats; `outside`, the share of the reward model's features that are outside their range in training;
            `preference_accuracy`, the share of pairs whose chosen response has the higher likelihood; `mc1` and `mc2`
            of TruthfulQA, as means and for each question.
        """
        with memory_advice("writing answers", "lower generation_batch_size"):
            rows = self._answer(policy, config)
        with memory_advice("measuring the policy", "shorter answers (max_new_tokens) and evaluation pairs take less"):
            texts = [[*row["prompt"], {"role": "assistant", "content": row["response"]}] for row in rows]
            encoded = [policy.encode_response(row["prompt"], row["response"]) for row in rows]
            kl = policy.divergences([ids for ids, _ in encoded], [start for _, start in encoded])
            rewards, drift = judge(texts), judge.drift(texts)
            figures: dict[str, Any] = {
                "reward": float(rewards.mean()),
                "tokens": float(np.mean([row["tokens"] for row in rows])),
                "cut": float(np.mean([row["cut"] for row in rows])),
                "alike": alike([row["response"] for row in rows]),
                "kl": float(kl.mean()),
                "outside": drift.outside_share,
            }
            if self.pairs:
                right = preference_accuracy(policy, self.pairs)
                figures |= {"preference_accuracy": float(right.mean())}
            if self.items:
                choice = multiple_choice(policy, self.items)
                figures |= {"mc1": float(choice.mc1.mean()), "mc2": float(choice.mc2.mean())}
                figures |= {"each_mc1": choice.mc1.tolist(), "each_mc2": np.round(choice.mc2, 6).tolist()}
        return figures, [row | {"reward": float(reward)} for row, reward in zip(rows, rewards, strict=True)]

    def _answer(self, policy: Policy, config: AlignmentConfig) -> list[Row]:
        size, rows = config.generation_batch_size, []
        for start in range(0, len(self.held_out), size):
            asked = self.held_out[start : start + size]
            written = policy.write(asked, config.max_new_tokens, config.temperature, config.seed + start)
            for prompt, response in zip(asked, written, strict=True):
                rows.append(
                    {"prompt": prompt, "response": response.text, "tokens": response.tokens, "cut": response.cut}
                )
        return rows


def count_openings(responses: Sequence[str]) -> Counter[str]:
    """Count the responses by their first two words."""
    return Counter(" ".join(response.split()[:2]) for response in responses)


def alike(responses: Sequence[str]) -> float:
    """Compute the largest share of responses with the same first two words: near 1 for a collapsed policy."""
    return count_openings(responses).most_common(1)[0][1] / len(responses)


def preference_accuracy(policy: Policy, pairs: Sequence[Preference]) -> np.ndarray:
    """Compare the likelihoods of the responses of N pairs.

    Returns:
        (N,) with 1 if the chosen response has the higher likelihood, 0 if the rejected response has it, one half if
        both are equal.
    """
    texts, starts = [], []
    for pair in pairs:
        asked = encode(policy.tokenizer, pair.prompt, add_generation_prompt=True)
        for whole in pair.joined:
            ids = encode(policy.tokenizer, whole)
            texts.append(ids)
            starts.append(max(common_prefix_length(asked, ids), 1))
    likely = policy.log_likelihoods(texts, starts, "Preferences").reshape(-1, 2)
    return (np.sign(likely[:, 0] - likely[:, 1]) + 1) / 2


def _last_message(prompt: str | Messages) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]
