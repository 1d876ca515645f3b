"""Checks of the fields of a SparseRM configuration: the file may come from anybody and hold anything."""

from collections.abc import Callable
from typing import Any, NamedTuple

from .response_sparserm import MARKS

POOLINGS = ("last", "mean", "response_mean")
REPRESENTATION_NORMS = ("none", "rms")
DIRECTIONS = ("orthogonal", "raw")
HEAD_TYPES = ("linear", "mlp")

MOST = 2**31 - 1  # the largest size, token id or latent id
MOST_FRACTION = 1e30  # the largest absolute value of any other number
MOST_LAYERS = 1000  # of a base model; each is built before its weights are looked for
MOST_EXPERTS = 100_000  # in all layers of a base model together
ROWS_AS_EXPERTS = ("doge",)  # model types whose thousands of experts are only rows of one embedding
MOST_NESTED = 20  # levels of lists and objects in a base model's configuration
MOST_SHOWN = 60  # characters of a value in an error
MOST_REASON = 200  # characters of another library's error message


class Kind(NamedTuple):
    """A kind of value.

    Attributes:
        needed: The kind in words, such as "a finite number".
        holds: Function that tells if a value is of the kind.
    """

    needed: str
    holds: Callable[[Any], bool]


def whole(least: int, most: int = MOST) -> Kind:
    """Make the kind of whole numbers in a range."""
    return Kind(f"a whole number from {least} to {most}", lambda value: type(value) is int and least <= value <= most)


def number(least: float) -> Kind:
    """Make the kind of finite numbers that are not below `least`."""

    def holds(value: Any) -> bool:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and least <= value and abs(value) < 1e300

    return Kind("a finite number" if least < 0 else f"a finite number, {least} or more", holds)


def one_of(*known: str) -> Kind:
    """Make the kind of the given strings."""
    return Kind(f"one of {', '.join(known)}", lambda value: isinstance(value, str) and value in known)


def optional(kind: Kind) -> Kind:
    """Make a kind that also allows None."""
    return Kind(f"{kind.needed}, or null", lambda value: value is None or kind.holds(value))


def list_of(kind: Kind) -> Kind:
    """Make the kind of lists whose items are all of the given kind."""
    return Kind(
        f"a list of which each item is {kind.needed}",
        lambda value: isinstance(value, (list, tuple)) and all(map(kind.holds, value)),
    )


def dict_of(kind: Kind, of_digits: bool = False) -> Kind:
    """Make the kind of objects whose names are strings, or digits, and whose values are all of the given kind."""

    def holds(value: Any) -> bool:
        return isinstance(value, dict) and all(
            isinstance(name, str) and (not of_digits or (name.isdecimal() and len(name) < 20)) and kind.holds(item)
            for name, item in value.items()
        )

    return Kind(
        f"an object of which each name is {'digits' if of_digits else 'a string'}, each value {kind.needed}", holds
    )


def object_with(kinds: dict[str, Kind], *needed: str) -> Kind:
    """Make the kind of objects that have the needed names, and whose known fields are of the given kinds."""

    def holds(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and all(name in value for name in needed)
            and all(kind.holds(value[name]) for name, kind in kinds.items() if name in value)
        )

    return Kind("an object in which " + ", ".join(f"{name} is {kind.needed}" for name, kind in kinds.items()), holds)


# JSON can hold half of a surrogate pair, but no file with it can be written as UTF-8.
TEXT = Kind("a string", lambda value: isinstance(value, str) and value.encode(errors="ignore").decode() == value)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
FINITE = number(-float("inf"))
IDS = list_of(whole(0))
TOKEN = Kind("a token id, a list of them, or null", lambda x: x is None or whole(-1).holds(x) or IDS.holds(x))
ORIGIN = Kind("a string, a number, or null", lambda value: value is None or TEXT.holds(value) or FINITE.holds(value))

MARK_KINDS = {name: list_of(IDS) for name in MARKS}
MARK_KINDS |= {"specials": IDS, "whitespace": IDS, "bos_in_conversation": whole(0, 100), "bos_in_text": whole(0, 100)}
SAE_KINDS = {"d_in": whole(1), "d_sae": whole(1), "architecture": TEXT, "k": optional(whole(1)), "normalization": TEXT}
SCORE_KINDS = {"precision": FINITE, "recall": FINITE, "f1": FINITE}
NAME_KINDS = {"name": TEXT} | SCORE_KINDS
LATENT_KINDS = {
    "id": whole(0),
    "side": one_of("chosen", "rejected"),
    "separation": FINITE,
    "stability": optional(FINITE),
    "purity": FINITE,
    "name": optional(TEXT),
    "name_score": optional(object_with(SCORE_KINDS, "precision", "f1")),
    "description": optional(TEXT),
    "promotes": list_of(TEXT),
    "suppresses": list_of(TEXT),
    "label": optional(TEXT),
    "steering": FINITE,
}
OBJECTIVE_KINDS = {"name": TEXT, "weight": FINITE, "reward_mean": FINITE, "reward_std": number(1e-30)}
# Until version 0.3 each field of a latent was a separate list in the order of `latents`, or an object by latent id.
OLD_LATENT_KINDS = {
    "latent_sides": optional(list_of(LATENT_KINDS["side"])),
    "latent_separations": optional(list_of(FINITE)),
    "latent_stabilities": optional(list_of(optional(FINITE))),
    "latent_purities": optional(list_of(FINITE)),
    "latent_names": optional(list_of(optional(object_with(NAME_KINDS, "name", "precision", "f1")))),
    "latent_promotes": optional(list_of(list_of(TEXT))),
    "latent_suppresses": optional(list_of(list_of(TEXT))),
    "latent_descriptions": optional(dict_of(TEXT)),
    "latent_labels": optional(dict_of(TEXT)),
    "steering": optional(dict_of(FINITE)),
}
FIELDS = {
    "base_model_name_or_path": TEXT,
    "base_model_revision": optional(TEXT),
    "layer": whole(0, MOST_LAYERS),
    "pooling": one_of(*POOLINGS),
    "representation_norm": one_of(*REPRESENTATION_NORMS),
    "directions": one_of(*DIRECTIONS),
    "head_type": one_of(*HEAD_TYPES),
    "head_hidden_size": whole(1),
    "response_marks": optional(object_with(MARK_KINDS)),
    "response_marker_ids": optional(IDS),
    "k_accuracies": optional(dict_of(FINITE, of_digits=True)),
    "sae": optional(object_with(SAE_KINDS, "d_in", "d_sae")),
    "sae_source": optional(dict_of(ORIGIN)),
    "reward_mean": FINITE,
    "reward_std": number(0),
    "reward_temperature": number(1e-30),
    "adapter_rank": whole(0),
    "ensemble": Kind("0, or a whole number from 2 to 10000", lambda x: x == 0 or whole(2, 10_000).holds(x)),
    "pessimism": number(0),
    "objectives": list_of(object_with(OBJECTIVE_KINDS, *OBJECTIVE_KINDS)),
    "gate": FLAG,
    "slim": FLAG,
    "run_dtype": optional(one_of("float32", "bfloat16")),
    "weights_digest": optional(dict_of(dict_of(TEXT))),
    **dict.fromkeys(("hidden_size", "vocab_size", "max_position_embeddings"), optional(whole(1))),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), TOKEN),
}


def short(value: Any) -> str:
    """Show a value on one line, in at most ``MOST_SHOWN`` characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number with thousands of digits; objects that are nested too deep
        return f"a value of the type {type(value).__name__}"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def why(error: Exception) -> str:
    """Show another library's error on one line; an error without a message is shown by its type."""
    return " ".join(str(error).split())[:MOST_REASON] or type(error).__name__


def check_fields(given: dict[str, Any]) -> None:
    """Check the fields of a SparseRM configuration.

    Args:
        given: Values by name; a name that is not in ``FIELDS`` is not checked.

    Raises:
        ValueError: A value is not of the kind that ``FIELDS`` demands.
    """
    for name, kind in FIELDS.items():
        if name in given and not kind.holds(given[name]):
            raise ValueError(f"{name} is {short(given[name])}, but must be {kind.needed}.")


def check_base_fields(fields: Any, what: str = "base_config") -> None:
    """Check the configuration of a base model before a model is built from it.

    transformers checks the types of the fields. The sizes are checked here, because all layers are built before their
    weights are looked for: a small file could demand millions of layers.

    Args:
        fields: The configuration as a dict.
        what: Name of the configuration in errors.

    Raises:
        ValueError: The fields are not a configuration, or a number is too large for a model.
    """
    if not isinstance(fields, dict) or not isinstance(fields.get("model_type"), str):
        raise ValueError(f"{what} is {short(fields)}, but must be an object with a string model_type.")
    counts = {"layers": 1, "experts": 1}
    level: list[tuple[str, Any]] = list(fields.items())
    for _ in range(MOST_NESTED):
        for name, value in level:
            # Wavelengths of rotary embeddings may be larger than any size.
            most = MOST if type(value) is int and not str(name).endswith("theta") else MOST_FRACTION
            if isinstance(value, (int, float)) and not abs(value) <= most and abs(value) != float("inf"):
                raise ValueError(f"{what} has {short(name)} = {short(value)}, but no number may be above {most}.")
            for kind, endings in (("layers", ("layer", "layers", "blocks")), ("experts", ("experts",))):
                if str(name).endswith(endings) and type(value) is int:
                    counts[kind] = max(counts[kind], value)
        level = [
            (name, item)
            for name, value in level
            if isinstance(value, (dict, list, tuple))
            for name, item in (value.items() if isinstance(value, dict) else ((name, item) for item in value))
        ]
    if level:
        raise ValueError(f"{what} is nested more than {MOST_NESTED} deep: leave the nested field out.")
    experts = 1 if fields["model_type"] in ROWS_AS_EXPERTS else counts["experts"]
    if counts["layers"] > MOST_LAYERS or counts["layers"] * experts > MOST_EXPERTS:
        raise ValueError(
            f"{what} has {counts['layers']} layers of {counts['experts']} experts, but there may be at most "
            f"{MOST_LAYERS} layers, and {MOST_EXPERTS} experts in all."
        )
