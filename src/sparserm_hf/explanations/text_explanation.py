"""The explanation of one reward: its latents and its tokens, as text and as HTML."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from ..evaluation import holds
from ..runtime import visible
from .pages import render_page

SHOWN_LATENTS = 10  # number of latents in a notebook; a repr shows half as many
SHOWN_TOKENS = 300  # number of tokens of a response in a notebook


@dataclass(frozen=True)
class LatentEffect:
    """The contribution of one selected latent to a reward.

    Attributes:
        latent: Id of the latent in the SAE.
        side: `chosen` or `rejected`: the side that the latent was selected for.
        name: Name of the latent, see `Latent.title`; empty if it has none.
        name_f1: F1 of the name as a predictor of the latent's firing on held-out responses; None if it is not tested.
        purity: Cosine of the latent's direction with the SAE's own decoder direction.
        value: Feature of the latent: the projection of the average token on its direction.
        average: Feature of the average training response.
        contribution: Amount added to the reward: the loss of reward if `value` becomes `average`.
        own: Same as `contribution`, which had this name before version 0.3.
        tokens: Contribution of each response token through this latent.
        removed: Measured change of the reward when the latent's part of every pooled token of the residual stream is
            set to its training average; None if it was not measured.
        by_objective: Split of the contribution by objective; empty unless the reward model is a combined one.
    """

    latent: int
    side: str
    name: str
    name_f1: float | None
    purity: float
    value: float
    average: float
    contribution: float
    own: float
    tokens: list[float]
    removed: float | None
    by_objective: dict[str, float] = field(default_factory=dict)

    @property
    def as_stated(self) -> bool | None:
        """True if the measured fall of the reward equals the contribution to within 10%; None if not measured."""
        if self.removed is None:
            return None
        return holds(self.contribution, self.removed)


@dataclass(frozen=True)
class TokenEffect:
    """The contribution of one response token to a reward.

    Attributes:
        text: The token as text, with the space before it.
        contribution: Amount added to the reward, through all latents.
        running_reward: Reward of the text that ends with this token.
    """

    text: str
    contribution: float
    running_reward: float


@dataclass(frozen=True)
class PromptLatent:
    """A latent of the prompt that moves the share of an objective.

    Attributes:
        latent: Id of the latent in the SAE.
        name: Name of the latent, see `Latent.title`; empty if it has none.
        contribution: Amount added to the logarithm of the share, minus the mean over the objectives: zero for a prompt
            in which the latent is as strong as in the average prompt.
    """

    latent: int
    name: str
    contribution: float

    def __str__(self) -> str:
        return f"{visible(self.name) or 'no name'} (latent {self.latent}) {self.contribution:+.2f}"


@dataclass(frozen=True)
class ObjectiveEffect:
    """The reward of one objective of a combined reward model, and its part of the combined reward.

    Attributes:
        name: Name of the objective.
        reward: Reward of the objective, as its own reward model gives it.
        contribution: Amount added to the combined reward: `weight * (reward - reward_mean) / reward_std`, and with a
            gate times the share.
        share: Factor by which the objective counts more or less for this prompt; None without a gate.
        reasons: The latents of the prompt that moved the share most; empty without a gate, and without a prompt.
    """

    name: str
    reward: float
    contribution: float
    share: float | None = None
    reasons: list[PromptLatent] = field(default_factory=list)


@dataclass(frozen=True)
class OtherLatents:
    """Number of the latents that a list leaves out, and the sum of their contributions."""

    count: int
    contribution: float


@dataclass(frozen=True, repr=False)
class TextExplanation:
    """Why a text got its reward: `reward = base + sum of contributions - penalty + unexplained`.

    A notebook shows it as the response with coloured tokens above a bar for each of the top latents.

    Attributes:
        reward: Reward of the text, as `sparserm score` gives it.
        base: Reward of the average training response.
        latents: All latents of the model, the largest contributions first.
        tokens: Tokens of the response.
        unexplained: Remainder: a rounding error with a linear head; the error of integrated gradients with an
            MLP head.
        objectives: Objectives, whose contributions add up to the reward; empty unless the model is a combined one.
        deviation: Standard deviation of the reward over the ensemble; None without an ensemble.
        penalty: Amount that pessimism subtracts: `config.pessimism * deviation`.

    Example:
        >>> effect = LatentEffect(8, "chosen", "politeness", 0.9, 0.98, 1.5, 0.5, 0.4, 0.4, [0.1, 0.3], None)
        >>> TextExplanation(0.9, 0.5, [effect], [TokenEffect("Yes", 0.1, 0.6), TokenEffect(", sir", 0.3, 0.9)], 0.0)
        Reward 0.900 = 0.500 of the average response +0.400 of latents
          +0.400  politeness (latent 8)
    """

    reward: float
    base: float
    latents: list[LatentEffect]
    tokens: list[TokenEffect]
    unexplained: float
    objectives: list[ObjectiveEffect] = field(default_factory=list)
    deviation: float | None = None
    penalty: float = 0.0

    @property
    def added(self) -> float:
        """Sum of the contributions of all latents."""
        return self.reward - self.base + self.penalty - self.unexplained

    def __repr__(self) -> str:
        shown = self.latents[: SHOWN_LATENTS // 2]
        rows = [f"  {e.contribution:+.3f}  {visible(e.name) or 'no name'} (latent {e.latent})" for e in shown]
        others = self.others(len(shown))
        rest = [f"  {others.contribution:+.3f}  {others.count} other latents"] if others.count else []
        parts = [f"  = {self.by_objective}"] if self.objectives else []
        parts += [f"  {self.by_prompt}"] if self.by_prompt else []
        return "\n".join([self.summary, *parts, *rows, *rest])

    def others(self, top: int) -> OtherLatents:
        """Sum up all latents but the `top` largest, for the last line of a list of the `top` largest."""
        rest = self.latents[top:]
        return OtherLatents(len(rest), sum(effect.contribution for effect in rest))

    @property
    def summary(self) -> str:
        """The sum in one line: the reward, the average response's reward, and the contributions of the latents."""
        rest = f" {-self.penalty:+.3f} for uncertainty" if self.penalty else ""
        rest += f" {self.unexplained:+.3f} unexplained" if round(self.unexplained, 3) else ""
        spread = "" if self.deviation is None else f" (± {self.deviation:.3f})"
        terms = f"{self.base:.3f} of the average response {self.added:+.3f} of latents{rest}"
        return f"Reward {self.reward:.3f}{spread} = {terms}"

    @property
    def by_objective(self) -> str:
        """The sum over objectives in one line; empty unless the reward model is a combined one."""
        return " ".join(f"{part.contribution:+.3f} of {visible(part.name)}" for part in self.objectives)

    @property
    def by_prompt(self) -> str:
        """The share of each objective in one line, with the prompt's latents that moved it; empty without a gate."""
        shares = [
            f"{visible(part.name)} counts {part.share:.2f} times"
            + (f" ({', '.join(map(str, part.reasons))})" if part.reasons else "")
            for part in self.objectives
            if part.share is not None
        ]
        return f"For this prompt, {'; '.join(shares)}" if shares else ""

    def _repr_html_(self) -> str:
        """Render the explanation for a notebook: no scripts, everything escaped, for light and dark pages."""
        latents = self.latents[:SHOWN_LATENTS]
        return render_page(
            "explanation.html",
            sum=self.summary,
            by_objective=self.by_objective,
            by_prompt=self.by_prompt,
            tokens=self.tokens[:SHOWN_TOKENS],
            left_out=len(self.tokens) - SHOWN_TOKENS,
            latents=latents,
            others=self.others(SHOWN_LATENTS),
            largest_token=max((abs(token.contribution) for token in self.tokens), default=0.0) or 1.0,
            largest_latent=max((abs(effect.contribution) for effect in latents), default=0.0) or 1.0,
        )


def contrast(chosen: TextExplanation, rejected: TextExplanation) -> dict[int, float]:
    """Split the difference of two rewards by latent.

    Args:
        chosen: Explanation of one response.
        rejected: Explanation of the other response.

    Returns:
        Contribution of each latent to the difference, chosen minus rejected, by latent id, the largest first.

    Example:
        >>> effects = [LatentEffect(8, "chosen", "", None, 1.0, x, 0.5, x, x, [], None) for x in (0.5, 0.25)]
        >>> contrast(*(TextExplanation(e.value, 0.0, [e], [], 0.0) for e in effects))
        {8: 0.25}
    """
    difference: dict[int, float] = defaultdict(float)
    for sign, explanation in ((1.0, chosen), (-1.0, rejected)):
        for effect in explanation.latents:
            difference[effect.latent] += sign * effect.contribution
    return dict(sorted(difference.items(), key=lambda item: -abs(item[1])))
