"""A checkpoint folder: may it be written to, the tokenizer that goes into it, and its way to the Hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from glob import escape
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers import PreTrainedTokenizerBase

from .atomic_files import is_own
from .errors import SparseRMError

LOGS = "runs"  # folder inside the output folder that trackers write to


def check_output_dir(folder: Path) -> None:
    """Raise a `SparseRMError` unless a checkpoint may be written there: it is new, empty, or holds a SparseRM."""
    if folder.is_file():
        raise SparseRMError(f"The output folder {str(folder)!r} is a file; name a folder.")
    if folder.is_mount():
        raise SparseRMError(f"The output folder {str(folder)!r} is the root of a volume; name a folder inside it.")
    config = folder / "config.json"
    if not folder.is_dir() or {file.name for file in folder.iterdir()} <= {LOGS}:
        return
    try:
        is_ours = json.loads(config.read_text()).get("model_type") == "sparserm"
    except (OSError, ValueError, AttributeError):
        is_ours = False
    if not is_ours:
        raise SparseRMError(
            f"The output folder {str(folder)!r} holds something else than a SparseRM; name a new one or empty it."
        )


def check_output_file(path: Path | None) -> None:
    """Raise a `SparseRMError` if a file that is to be written is there already, or its folder is not."""
    if path and path.exists():
        raise SparseRMError(f"{path} exists already: name another file, or remove it.")
    if path and not path.parent.is_dir():
        raise SparseRMError(f"There is no folder {path.parent} to write {path.name} into: make it first.")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer so that transformers 4 reads it too.

    transformers 5 names the class `TokenizersBackend` and keeps additional special tokens in a list, neither of which
    transformers 4 understands; it understands what is written here, and so does transformers 5.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    for name in ("model_max_length", "truncation_side"):  # set after loading, these are not saved by themselves
        config[name] = getattr(tokenizer, name)
    for name in ("is_local", "local_files_only", "name_or_path"):  # of the machine that it was saved on
        config.pop(name, None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


def push_folder(folder: Path, files: Sequence[str], repo_id: str | None, private: bool, **kwargs: Any) -> str:
    """Upload a checkpoint to the Hub, and nothing else that lies in its folder.

    Files of an earlier checkpoint that this one does not have are removed there.

    Args:
        folder: The checkpoint.
        files: What was written into it.
        repo_id: The repository, which is made where it is missing; by default named after the folder.
        private: Whether it is made private.
        kwargs: Passed to `HfApi.upload_folder`.

    Returns:
        The address of the commit.

    Raises:
        SparseRMError: The upload failed.
    """
    api, name = HfApi(), repo_id or folder.name
    try:
        repo = api.create_repo(name, private=private, exist_ok=True)
        there = api.list_repo_files(repo.repo_id, revision=kwargs.get("revision"))
        ours = {"allow_patterns": list(map(escape, files)), "delete_patterns": [escape(x) for x in there if is_own(x)]}
        return api.upload_folder(folder_path=folder, repo_id=repo.repo_id, **ours | kwargs).commit_url
    except (OSError, RuntimeError, ValueError) as error:  # the client raises all of them
        telling = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        why = " ".join(str(telling).split()) or type(telling).__name__
        raise SparseRMError(
            f"{folder} could not be uploaded to {name}: {why}. It is whole on this machine, and what was on the Hub "
            "is as it was."
        ) from error
