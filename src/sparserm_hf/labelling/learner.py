"""Learn from the labels so far: fit a reward head with an ensemble, and find the pair that it doubts most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..training import FittedRewardHead, PairIndices, RepresentedTexts, RewardHeadConfig, fit_reward_head

CONFIG = RewardHeadConfig(k=8, ensemble=20)  # for speed, k is the smallest that `train` chooses by itself


@dataclass(frozen=True)
class Answer:
    """An answer: which response of a pair is chosen.

    Attributes:
        pair: Index of the pair.
        chosen: 0 for the pair's first response, 1 for its second.
    """

    pair: int
    chosen: int


@dataclass(frozen=True)
class Pairs:
    """P pairs of texts that can be labelled.

    Attributes:
        texts: (P, 2) indices of the texts.
        groups: (P,) number of each pair's prompt.
    """

    texts: np.ndarray
    groups: np.ndarray

    def labelled(self, answers: Sequence[Answer]) -> PairIndices:
        """Take the pairs of N answers as preference pairs."""
        pairs, chosen = (np.array([getattr(of, name) for of in answers], int) for name in ("pair", "chosen"))
        return PairIndices(self.texts[pairs, chosen], self.texts[pairs, 1 - chosen], self.groups[pairs])

    def margins(self, rewards: np.ndarray, answers: Sequence[Answer]) -> np.ndarray:
        """Compute the (N,) reward differences of answers, chosen minus rejected, from the (T,) rewards of texts."""
        both = rewards[self.texts]
        return np.array([both[of.pair, of.chosen] - both[of.pair, 1 - of.chosen] for of in answers])


@dataclass(frozen=True)
class Learned:
    """A reward head that is fitted to the answers so far.

    Attributes:
        fitted: The head, its latents and its ensemble.
        rewards: (T,) rewards of all texts.
        doubts: (P,) disagreement of the ensemble on each pair: the standard deviation of the reward difference over
            the heads, divided by the absolute value of its mean.
    """

    fitted: FittedRewardHead
    rewards: np.ndarray
    doubts: np.ndarray

    def importances(self) -> np.ndarray:
        """(2K,) standard deviation of each latent's contribution over the texts, with the sign of the weight."""
        ((weight, _),) = self.fitted.head.layers
        return weight[0] * self.fitted.projection.features.std(0)


def learn(
    texts: RepresentedTexts, pairs: Pairs, answers: Sequence[Answer], excluded: Sequence[int] = (), seed: int = 42
) -> Learned:
    """Fit a reward head and an ensemble to answers.

    Args:
        texts: T represented texts.
        pairs: P pairs of these texts.
        answers: Answers on pairs, about at least `FEWEST_PROMPTS` prompts.
        excluded: Ids of latents that must not be selected.
        seed: Seed of folds and ensemble.

    Raises:
        SparseRMError: Too few latents fire, or the answers are about too few prompts.
    """
    config = replace(CONFIG, exclude_latents=",".join(map(str, excluded)), seed=seed)
    fitted = fit_reward_head(texts, pairs.labelled(answers), config)
    assert fitted.ensemble is not None
    features = fitted.projection.features
    of_heads = features @ fitted.ensemble.weights.T  # (T, E)
    margins = of_heads[pairs.texts[:, 0]] - of_heads[pairs.texts[:, 1]]  # (P, E)
    doubts = margins.std(1) / np.maximum(np.abs(margins.mean(1)), 1e-12)
    return Learned(fitted, fitted.head.rewards(features), doubts)


def pick(
    pairs: Pairs, left: np.ndarray, answers: Sequence[Answer], learned: Learned | None, draw: np.random.Generator
) -> int:
    """Pick the pair to answer next.

    With an ensemble, this is the pair with the largest doubt. Without an ensemble, it is a random pair, if possible of
    a prompt that has no answer yet.

    Args:
        pairs: The pairs.
        left: Indices of the pairs to pick from, at least one.
        answers: The answers so far.
        learned: Latest result of `learn`, which may lack the last answers; None before there is an ensemble.
        draw: Generator of random numbers.
    """
    if learned is not None:
        return int(left[learned.doubts[left].argmax()])
    seen = np.unique(pairs.groups[[answer.pair for answer in answers]]) if answers else np.array([], int)
    fresh = left[~np.isin(pairs.groups[left], seen)]
    return int(draw.choice(fresh if len(fresh) else left))
