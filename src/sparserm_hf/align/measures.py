"""Figures of a policy: from its answers to held-out questions, and from its likelihoods of given responses."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..conversations import Messages, Preference, check_columns, encode, parse_preference, row_name
from ..runtime import SparseRMError, common_prefix_length
from .judges import SparseJudge
from .policy import Policy, memory_advice
from .responses import Row
from .settings import AlignmentConfig
from .truthfulqa import Item, multiple_choice

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measures:
    """Data on which policies are measured.

    Attributes:
        held_out: Questions that it answers.
        pairs: Preference pairs; may be none.
        items: TruthfulQA's questions; may be none.
    """

    held_out: list[Messages]
    pairs: list[Preference]
    items: list[Item]

    @classmethod
    def of(cls, held_out: list[Messages], rows: Any, items: list[Item]) -> Measures:
        """Check and split preference pairs, as `load_preferences` gives them.

        Raises:
            SparseRMError: A pair is of another form, or has no prompt.
        """
        pairs = []
        for number, row in enumerate(rows or [], 1):
            check_columns(list(row))
            pair = parse_preference(row, row_name(number))
            if not pair.prompt:
                raise SparseRMError(f"Evaluation pair {number} has no prompt, so a policy cannot be asked it.")
            pairs.append(pair)
        return cls(held_out, pairs, items)

    def without(self, questions: Iterable[Messages]) -> Measures:
        """Leave out the pairs that end with one of some questions.

        Raises:
            SparseRMError: No pair is left.
        """
        asked = {question[-1]["content"].strip() for question in questions}
        pairs = [pair for pair in self.pairs if _last_message(pair.prompt).strip() not in asked]
        if len(pairs) < len(self.pairs):
            logger.info("Measured on the %d of %d preference pairs not among these.", len(pairs), len(self.pairs))
        if self.pairs and not pairs:
            raise SparseRMError("All evaluation pairs ask what is among the questions: leave some out of these.")
        return replace(self, pairs=pairs)

    def take(self, policy: Policy, judge: SparseJudge, config: AlignmentConfig) -> tuple[dict[str, Any], list[Row]]:
        """Measure a policy.

        Args:
            policy: With the adapter of a round or, the first policy, without.
            judge: The reward model.
            config: The settings; the answers are sampled with the same seed for every policy.

        Returns:
            The figures, and the answers with their rewards. Figures: `reward`, the mean; `tokens` of an answer, and
            the share that was `cut`; `alike`, the largest share that begins alike; `kl`, mean nats of an answer from
            the first policy; `outside`, share of the reward model's features that are outside their range in
            training; `preference_accuracy`, share of the pairs whose chosen response has the higher likelihood;
            `mc1` and `mc2` of TruthfulQA, and each question's.
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
    """(N,) 1 where the policy gives the chosen response the higher likelihood, one half where both are as likely."""
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
