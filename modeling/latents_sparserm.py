"""The selected latents of a reward model, as records in its configuration."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .fields_sparserm import IDS, LATENT_KINDS, OLD_LATENT_KINDS, SCORE_KINDS, short

CLEAR_F1, CLEAR_PRECISION = 0.1, 0.2  # a name with lower scores says hardly anything about its latent


@dataclass(frozen=True)
class Latent:
    """A selected latent: a unit of the SAE whose decoder direction the reward model projects on.

    Attributes:
        id: Index of the latent in the SAE.
        side: `chosen` or `rejected`: the responses on which the latent fires more often.
        separation: Share of chosen responses minus share of rejected responses on which the latent fires.
        stability: Share of cross-validation folds that select the latent for its side; None if unknown.
        purity: Cosine between the direction that texts are projected on and the latent's decoder direction.
        name: Name made from the tokens that the latent fires on; None if no name was found.
        name_score: `precision`, `recall` and `f1` of the name on held-out responses; None without a name.
        description: Description by the SAE's publisher.
        promotes: Words that the decoder direction promotes through the unembedding.
        suppresses: Words that the decoder direction suppresses.
        label: Name given by the user; it is shown instead of every other name.
        steering: Factor on the distance of the feature from its training mean. 0 drops the latent, 1 changes nothing.

    Example:
        >>> latent = Latent(7, "chosen", name='"sorry"', name_score={"precision": 0.9, "recall": 0.5, "f1": 0.64})
        >>> latent.title, latent.title_f1
        ('"sorry"', 0.64)
    """

    id: int
    side: str = "chosen"
    separation: float = 0.0
    stability: float | None = None
    purity: float = 1.0
    name: str | None = None
    name_score: dict[str, float] | None = None
    description: str | None = None
    promotes: list[str] = field(default_factory=list)
    suppresses: list[str] = field(default_factory=list)
    label: str | None = None
    steering: float = 1.0

    @property
    def title(self) -> str:
        """The name to show: the label, or else the description, the name, the promoted words, or an empty string."""
        if given := self.label or self.description:
            return given
        if self.name and self.name_score:
            clear = self.name_score["f1"] >= CLEAR_F1 and self.name_score["precision"] >= CLEAR_PRECISION
            return self.name if clear else f"unclear: {self.name}"
        return f"promotes {', '.join(self.promotes[:3])}" if self.promotes else ""

    @property
    def title_f1(self) -> float | None:
        """F1 of the title as a predictor of the latent's firing; None if the title was not tested."""
        return None if self.label or self.description or not self.name_score else self.name_score["f1"]


def as_records(latents: Sequence[Latent]) -> list[dict[str, Any]]:
    """Turn latents into objects for a JSON file."""
    return [asdict(latent) for latent in latents]


def as_latents(given: Any, old: dict[str, Any]) -> list[Latent]:
    """Make latents from the records in a configuration, or from the fields of an earlier version.

    Args:
        given: A list of latents, of their records or, until version 0.3, of ids; or None.
        old: Further fields of latents until version 0.3, by name; see ``OLD_LATENT_KINDS``.

    Raises:
        ValueError: A field has a value of the wrong kind, or a list does not have one value for each latent.
    """
    given = [] if given is None else given
    if not isinstance(given, (list, tuple)) or not (all(map(IDS.holds, [[x] for x in given])) or _are_records(given)):
        raise ValueError(f"latents is {short(given)}, but must be a list of records, each with an id.")
    if not _are_records(given):
        return _from_old(given, old)
    latents = []
    for record in given:
        record = vars(record) if isinstance(record, Latent) else record
        _check_record(record)
        latents.append(Latent(**{name: record[name] for name in LATENT_KINDS if name in record}))
    return latents


def _are_records(given: Sequence[Any]) -> bool:
    return all(isinstance(x, Latent) or (isinstance(x, dict) and "id" in x) for x in given)


def _check_record(record: dict[str, Any]) -> None:
    for name, kind in LATENT_KINDS.items():
        if name in record and not kind.holds(record[name]):
            raise ValueError(f"A latent has {name} = {short(record[name])}, but it must be {kind.needed}.")


def changed_latents(latents: Sequence[Latent], changes: dict[str, dict[int, Any]]) -> list[Latent]:
    """Change fields of some latents; see `SparseRMConfig.change_latents`."""
    changed = {latent.id: latent for latent in latents}
    for name, values in changes.items():
        for number, value in values.items():
            if number not in changed:
                raise ValueError(
                    f"Latent {number} is not one of this model's {len(latents)}: config.latent_ids lists them."
                )
            if not LATENT_KINDS[name].holds(value):
                raise ValueError(
                    f"Latent {number} has {name} = {short(value)}, but it must be {LATENT_KINDS[name].needed}."
                )
            changed[number] = replace(changed[number], **{name: value})
    return [changed[latent.id] for latent in latents]


def _from_old(ids: Sequence[Any], old: dict[str, Any]) -> list[Latent]:
    for name, values in old.items():
        if values is None:
            continue
        if not OLD_LATENT_KINDS[name].holds(values):
            raise ValueError(f"{name} is {short(values)}, but must be {OLD_LATENT_KINDS[name].needed}.")
        if isinstance(values, (list, tuple)) and values and len(values) != len(ids):
            raise ValueError(f"{name} has {len(values)} items, but must have one for each of {len(ids)} latents.")
    records: list[dict[str, Any]] = [{"id": latent} for latent in ids]
    by_position = {"side": "latent_sides", "separation": "latent_separations", "stability": "latent_stabilities"}
    by_position |= {"purity": "latent_purities", "promotes": "latent_promotes", "suppresses": "latent_suppresses"}
    for name, old_name in by_position.items():
        for record, value in zip(records, old.get(old_name) or [], strict=False):
            record[name] = value
    for record, name in zip(records, old.get("latent_names") or [], strict=False):
        if name:
            record |= {"name": name["name"], "name_score": {k: name[k] for k in SCORE_KINDS if k in name}}
    by_id = {"description": "latent_descriptions", "label": "latent_labels", "steering": "steering"}
    for name, old_name in by_id.items():
        values = old.get(old_name) or {}
        for record in records:
            if str(record["id"]) in values:
                record[name] = values[str(record["id"])]
    return [Latent(**record) for record in records]
