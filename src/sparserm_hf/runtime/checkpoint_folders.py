"""Checkpoint folders: check that they may be written, save tokenizers into them, upload them to the Hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from glob import escape
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers import PreTrainedTokenizerBase

from .atomic_files import is_own
from .errors import SparseRMError

LOGS = "runs"  # folder of the trackers inside the output folder


def check_output_dir(folder: Path) -> None:
    """Check that a checkpoint may be written into a folder: it is new or empty, or holds a SparseRM checkpoint.

    Raises:
        SparseRMError: The folder is a file or a volume, or holds other files.

    Example:
        >>> check_output_dir(Path("no-such-folder"))
    """
    if folder.is_file():
        raise SparseRMError(f"The output folder {str(folder)!r} is a file: name a folder.")
    if folder.is_mount():
        raise SparseRMError(f"The output folder {str(folder)!r} is the root of a volume: name a folder inside it.")
    config = folder / "config.json"
    if not folder.is_dir() or {file.name for file in folder.iterdir()} <= {LOGS}:
        return
    try:
        is_ours = json.loads(config.read_text()).get("model_type") == "sparserm"
    except (OSError, ValueError, AttributeError):
        is_ours = False
    if not is_ours:
        raise SparseRMError(
            f"The output folder {str(folder)!r} holds something else than a SparseRM: name another folder, or "
            "empty it."
        )


def check_output_file(path: Path | None) -> None:
    """Check that a file can be written without replacing another one.

    Args:
        path: The file; None for standard output.

    Raises:
        SparseRMError: The file exists, or its folder does not.

    Example:
        >>> check_output_file(Path("no-such-file.jsonl"))
    """
    if path and path.exists():
        raise SparseRMError(f"{path} exists already: name another file, or remove it.")
    if path and not path.parent.is_dir():
        raise SparseRMError(f"There is no folder {path.parent} to write {path.name} into: make it first.")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer in a form that transformers 4 and 5 read.

    By itself, transformers 5 names the class `TokenizersBackend` and lists additional special tokens under a name that
    transformers 4 does not know.

    Args:
        tokenizer: The tokenizer.
        folder: Folder to save it into.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    for name in ("model_max_length", "truncation_side"):  # transformers does not save later changes of these
        config[name] = getattr(tokenizer, name)
    for name in ("is_local", "local_files_only", "name_or_path"):  # they describe this machine
        config.pop(name, None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


def push_folder(folder: Path, files: Sequence[str], repo_id: str | None, private: bool, **kwargs: Any) -> str:
    """Upload a checkpoint to the Hub, without other files of its folder.

    Files of an earlier checkpoint that the new one does not have are removed from the repository.

    Args:
        folder: The checkpoint.
        files: Names of the files to upload.
        repo_id: Id of the repository, which is created if it does not exist; by default the name of the folder.
        private: Create a private repository.
        kwargs: Passed to `HfApi.upload_folder`.

    Returns:
        URL of the commit.

    Raises:
        SparseRMError: The upload failed.
    """
    api, name = HfApi(), repo_id or folder.name
    try:
        repo = api.create_repo(name, private=private, exist_ok=True)
        there = api.list_repo_files(repo.repo_id, revision=kwargs.get("revision"))
        ours = {"allow_patterns": list(map(escape, files)), "delete_patterns": [escape(x) for x in there if is_own(x)]}
        return api.upload_folder(folder_path=folder, repo_id=repo.repo_id, **ours | kwargs).commit_url
    except (OSError, RuntimeError, ValueError) as error:  # the client raises each of these
        telling = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        why = " ".join(str(telling).split()) or type(telling).__name__
        raise SparseRMError(
            f"{folder} could not be uploaded to {name}: {why}. The checkpoint on this machine is complete, and the "
            "files on the Hub are unchanged."
        ) from error


def last_whole_checkpoint(folder: Path) -> str | None:
    """Find the Trainer's last complete checkpoint; incomplete checkpoints are removed."""
    from transformers.trainer_utils import get_last_checkpoint  # imports peft, which takes a second

    for state in (checkpoint / "trainer_state.json" for checkpoint in folder.glob("checkpoint-*")):
        try:
            json.loads(state.read_text("utf-8"))  # the file that the Trainer writes last
        except (OSError, ValueError):
            shutil.rmtree(state.parent)
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None
