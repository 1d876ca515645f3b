"""Where an SAE's files are in a folder, and what they say."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from ...runtime import reason
from .formats import FORMATS, ParsedSAE
from .weight_files import UnusableSAEError

PICKLES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}


def read_sae(path: Path, where: str) -> ParsedSAE:
    """Read an SAE in any of the formats, told apart by the name of the file that holds its weights.

    Args:
        path: That file, or the folder it is in.
        where: The names that the SAE was published under, repository and folder, or its path: some formats write the
            layer nowhere else.

    Raises:
        UnusableSAEError: There is no SAE, more than one, or one that cannot be read.
    """
    file = weights_file(path)
    reader = next(reader for pattern, reader in FORMATS.items() if file.match(pattern))
    try:
        return reader(file, where)
    except UnusableSAEError:
        raise
    except KeyError as error:
        raise UnusableSAEError(f"is broken: its files do not say {error}.") from error
    # A list where an object belongs, text where a number does, tensors that do not go together.
    except (AttributeError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise UnusableSAEError(f"is broken: its files cannot be understood: {reason(error).rstrip('.')}.") from error


def weights_file(path: Path) -> Path:
    """The one file with an SAE's weights that a path names or holds.

    Raises:
        UnusableSAEError: There is none, or there are several.
    """
    if path.is_file():
        if not any(path.match(pattern) for pattern in FORMATS):
            raise UnusableSAEError(not_an_sae([path.name]))
        return path
    found = [file for pattern in FORMATS for file in sorted(path.glob(pattern))]
    if len(found) > 1:
        names = [file.relative_to(path).as_posix() for file in found]
        raise UnusableSAEError(f"holds several SAEs, name one of them: {listed(names)}.")
    if not found:
        files = [file for file in islice(path.rglob("*"), 10_000) if file.is_file()]
        raise UnusableSAEError(not_an_sae([file.relative_to(path).as_posix() for file in files]))
    return found[0]


def holds_sae(path: Path) -> bool:
    """Whether a path is, or is a folder that holds, the weights of an SAE."""
    return any(path.match(pattern) if path.is_file() else any(path.glob(pattern)) for pattern in FORMATS)


def not_an_sae(files: list[str]) -> str:
    """Why no SAE can be read out of a folder or repository that holds the given files, none of them its weights."""
    saes = set()
    for file in map(Path, files):
        for pattern in FORMATS:
            if file.match(pattern):  # one to a folder, but for those that are told apart by the file's name
                saes.add(file.as_posix() if "*" in pattern else file.parents[pattern.count("/")].as_posix())
    if saes:
        return f"holds several SAEs, name one of them: {listed(sorted(saes))}."
    pickles = sorted(f for f in files if Path(f).suffix in PICKLES)
    if pickles:
        return (
            f"is refused: {listed(pickles)} is pickled, which could run any program, and in no format known here: "
            "save its tensors with safetensors.torch.save_file or, out of sae-lens, with sae.save_model."
        )
    return f"must hold one of the files {', '.join(FORMATS)}, but holds {listed(sorted(files)) or 'nothing'}."


def listed(names: list[str]) -> str:
    """The first names of a list that may be long."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
