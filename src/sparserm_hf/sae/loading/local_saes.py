"""Find the weights file of an SAE in a folder, and read the SAE in the format of that file."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from ...runtime import reason
from .formats import FORMATS, ParsedSAE
from .weight_files import UnusableSAEError

PICKLES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}


def read_sae(path: Path, where: str) -> ParsedSAE:
    """Read an SAE. The name of its weights file tells the format.

    Args:
        path: Weights file, or its folder.
        where: Repository and folder of the SAE, or its path: the only place where some formats name the layer.

    Raises:
        UnusableSAEError: There is no SAE, there are several, or the SAE cannot be read.
    """
    file = weights_file(path)
    reader = next(reader for pattern, reader in FORMATS.items() if file.match(pattern))
    try:
        return reader(file, where)
    except UnusableSAEError:
        raise
    except KeyError as error:
        raise UnusableSAEError(f"is broken: its files do not say {error}.") from error
    # A list instead of an object, text instead of a number, tensors of incompatible shapes.
    except (AttributeError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise UnusableSAEError(f"is broken: its files cannot be understood: {reason(error).rstrip('.')}.") from error


def weights_file(path: Path) -> Path:
    """Find the weights file of an SAE.

    Args:
        path: Weights file, or its folder.

    Raises:
        UnusableSAEError: There is no weights file, or there are several.
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
    """Tell if a path is the weights file of an SAE, or its folder."""
    return any(path.match(pattern) if path.is_file() else any(path.glob(pattern)) for pattern in FORMATS)


def not_an_sae(files: list[str]) -> str:
    """Explain why a folder or repository with the given files has no SAE at the requested place."""
    saes = set()
    for file in map(Path, files):
        for pattern in FORMATS:
            if file.match(pattern):  # one SAE in a folder, or one in each file
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
    """Join the first eight names, and count the others.

    Example:
        >>> listed(["a", "b"])
        'a, b'
    """
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
