"""The result of an evaluation: a reward model beside its controls, on the same preference pairs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from ..conversations import style_differences
from ..modeling.fields_sparserm import FINITE
from ..runtime import reading, shown, visible
from .attacks import Attack
from .calibration_error import calibration_error
from .claims import CheckedClaims
from .controls import check_arrays
from .metrics import PairMetrics, correlation, pair_metrics, pairs_by_length
from .row_names import RowName

EVALUATION_FILE = "evaluation.safetensors"


@dataclass(frozen=True, repr=False)
class Evaluation:
    """A reward model and its controls on the same N preference pairs.

    Attributes:
        margins: (N,) reward differences, chosen minus rejected, by row name; see `RowName`.
        styles: (N, 2) measures of the chosen and rejected responses, by style; see `measure_styles`.
        temperature: Temperature in units of reward: sigmoid(margin / temperature) is the probability that the chosen
            response is preferred.
        attacks: Success of responses made of the chat template's own tokens; measured by the trainer, else empty.
        claims: Checked claims of explanations; checked by the trainer, else None. None for an MLP head, too.
        own: Indices of the pairs that belong to each objective, by its name; empty if the pairs name no objectives.

    Example:
        >>> margins = {"SparseRM": np.array([0.5, 1.5, -0.2]), "length alone": np.array([0.1, 0.0, -0.1])}
        >>> Evaluation(margins, {"tokens": np.array([[9, 4], [5, 5], [3, 7]])}, temperature=1.0)
        Evaluation of 3 pairs, accuracy (95% interval):
          SparseRM      66.7% (20.8 to 93.9)
          length alone  50.0% (20.8 to 93.9)
    """

    margins: dict[str, np.ndarray]
    styles: dict[str, np.ndarray]
    temperature: float
    attacks: tuple[Attack, ...] = ()
    claims: CheckedClaims | None = None
    own: dict[str, np.ndarray] = field(default_factory=dict)

    def __repr__(self) -> str:
        measured = self.metrics | {RowName.own(name): metrics for name, metrics in self.by_objective.items()}
        width = max(len(visible(name)) for name in measured)
        rows = [f"  {visible(name):{width}}  {metrics}" for name, metrics in measured.items()]
        return "\n".join([f"Evaluation of {self.pairs} pairs, accuracy (95% interval):", *rows])

    @property
    def pairs(self) -> int:
        """Number of preference pairs, N."""
        return len(self.margins[RowName.REWARD_MODEL])

    @property
    def metrics(self) -> dict[str, PairMetrics]:
        """Accuracy, interval and mean margin by row name, the reward model first."""
        return {name: pair_metrics(margins) for name, margins in self.margins.items()}

    @property
    def reward_model(self) -> PairMetrics:
        """Accuracy, interval and mean margin of the reward model."""
        return pair_metrics(self.margins[RowName.REWARD_MODEL])

    @property
    def controls(self) -> dict[str, PairMetrics]:
        """Accuracy, interval and mean margin of each control, by row name."""
        ours = (RowName.REWARD_MODEL, RowName.FROZEN)
        return {name: metrics for name, metrics in self.metrics.items() if name not in ours}

    @property
    def by_objective(self) -> dict[str, PairMetrics]:
        """Accuracy, interval and mean margin of each objective alone on the pairs that belong to it."""
        return {name: pair_metrics(self.margins[RowName.alone(name)][of]) for name, of in self.own.items()}

    @property
    def by_length(self) -> dict[str, np.ndarray]:
        """Indices of the pairs whose chosen response is shorter, as long, or longer than the rejected response."""
        return pairs_by_length(self.styles["tokens"])

    def metrics_by_length(self, name: str = RowName.REWARD_MODEL) -> dict[str, PairMetrics]:
        """Measure a row on each kind of pairs of `by_length`; empty kinds are left out."""
        return {kind: pair_metrics(self.margins[name][of]) for kind, of in self.by_length.items() if len(of)}

    def style_correlations(self, name: str = RowName.REWARD_MODEL) -> dict[str, float]:
        """Correlate a row's margins with the style differences of the pairs, by style; 0 if a style is constant."""
        differences = style_differences(self.styles)  # (N, styles)
        return {style: correlation(self.margins[name], differences[:, i]) for i, style in enumerate(self.styles)}

    @property
    def calibration_error(self) -> float:
        """Expected calibration error of the reward model's probabilities, from 0 to 1."""
        return calibration_error(self.margins[RowName.REWARD_MODEL], self.temperature)

    def flat(self) -> dict[str, float]:
        """Flatten the metrics into one dictionary for trackers and model cards."""
        flat: dict[str, float] = {
            "eval_pairs": self.pairs,
            "eval_calibration_error": self.calibration_error,
            "eval_calibration_error_uncalibrated": calibration_error(self.margins[RowName.REWARD_MODEL], 1.0),
        }
        for name, metrics in self.metrics.items():
            prefix = "eval" if name == RowName.REWARD_MODEL else f"eval_{name.replace(' ', '_')}"
            flat |= {
                f"{prefix}_accuracy": metrics.accuracy,
                f"{prefix}_accuracy_low": metrics.low,
                f"{prefix}_accuracy_high": metrics.high,
                f"{prefix}_margin": metrics.margin,
            }
        for name, metrics in self.by_objective.items():
            flat[f"eval_{RowName.own(name).replace(' ', '_')}_accuracy"] = metrics.accuracy
        for kind, metrics in self.metrics_by_length().items():
            flat[f"eval_{kind.replace(' ', '_')}_accuracy"] = metrics.accuracy
        if self.claims:
            flat |= {"eval_claims": self.claims.claims, "eval_claims_held": self.claims.held}
        return flat | {
            f"eval_{style.replace(' ', '_')}_correlation": value for style, value in self.style_correlations().items()
        }

    def save(self, path: Path) -> None:
        """Write the evaluation to a file beside the checkpoint; the file holds no text."""
        parts = {"margins": self.margins, "styles": self.styles, "own": self.own}
        tensors = {f"{part}/{name}": np.ascontiguousarray(x) for part, of in parts.items() for name, x in of.items()}
        described: dict[str, Any] = {part: list(of) for part, of in parts.items()}
        described |= {"temperature": self.temperature, "attacks": [asdict(attack) for attack in self.attacks]}
        described["claims"] = asdict(self.claims) if self.claims else None
        # One key: safetensors writes several in random order, and the file would differ from run to run.
        save_file(tensors, path, metadata={"evaluation": json.dumps(described)})

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Load an evaluation that `save` wrote.

        Raises:
            SparseRMError: The file is broken.
        """
        with reading(f"The file {path.name} beside the reward model"), safe_open(path, "numpy") as file:
            described = json.loads(file.metadata()["evaluation"])
            temperature = described.pop("temperature")
            attacks = tuple(Attack.from_dict(attack) for attack in described.pop("attacks", []))  # none in version 0.1
            claims = described.pop("claims", None)  # none up to version 0.4
            parts = {part: {name: file.get_tensor(f"{part}/{name}") for name in of} for part, of in described.items()}
            checked = CheckedClaims(**claims) if claims else None
            evaluation = cls(**parts, temperature=float(temperature), attacks=attacks, claims=checked)
            check_arrays(evaluation.margins, dict.fromkeys(evaluation.margins, (evaluation.pairs,)))
            for name, of in evaluation.own.items():
                is_among = of.ndim == 1 and of.dtype.kind in "iu" and set(of.tolist()) <= set(range(evaluation.pairs))
                if not is_among or not of.size or RowName.alone(name) not in evaluation.margins:
                    raise ValueError(f"the pairs of the objective {shown(name)} are not among its pairs")
            check_arrays(evaluation.styles, dict.fromkeys(("tokens", *evaluation.styles), (evaluation.pairs, 2)))
            if not evaluation.pairs or not FINITE.holds(temperature) or temperature <= 0:
                raise ValueError(f"it has {evaluation.pairs} pairs and the temperature {shown(temperature)}")
            return evaluation
