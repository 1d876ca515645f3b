"""Train an SAE on a base model and a dataset: `train_sae`, the call behind `sparserm sae train`."""

from __future__ import annotations

import json
import logging
from array import array
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import CommitOperationAdd, HfApi

from ...base_models import load_base_model, load_tokenizer, longest_text, prepare_base_model, unpacked
from ...conversations import load_texts, prepare_tokenizer
from ...hub_cards.render import render_sae_card
from ...runtime import SparseRMError, commit_of, named_dtype, process_state
from ..fit import Fit
from ..loading.loaded_sae import CONFIG_FILE, WEIGHTS_FILE
from .resuming import CHECKPOINT
from .sae_config import SAETrainingConfig
from .training_loop import train_and_save

logger = logging.getLogger(__name__)

CARD = "README.md"


@dataclass(frozen=True)
class SAETrainingData:
    """Base model, texts and output folder of an SAE training. Each option is described in its `help`.

    Raises:
        SparseRMError: A value is out of range, or the output folder holds something other than an SAE.

    Example:
        >>> data = SAETrainingData("my-base-model", "my-texts.jsonl", layer=12, output_dir="my-new-sae")
        >>> data.hook_name
        'blocks.11.hook_resid_post'
    """

    model: str = field(metadata={"help": "Base model: a Hub id, a folder, or a GGUF file."})
    dataset: str = field(
        metadata={"help": "Texts: a .txt, .json, .jsonl(.gz), .csv, .parquet file or a Hub id, which is streamed."}
    )
    layer: int = field(metadata={"help": "Decoder layer whose output the SAE encodes, counted from 1."})
    output_dir: str = field(
        metadata={"help": "Folder for the SAE, in sae-lens' own format; an SAE in the folder is replaced."}
    )
    dataset_split: str = field(
        default="train", metadata={"help": "Split of the dataset, or a slice like train[:1000]."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset on the Hub."})
    max_length: int = field(
        default=512, metadata={"help": "Maximum number of tokens of a text; longer plain texts are split."}
    )
    revision: str | None = field(
        default=None, metadata={"help": "Revision of the base model; its commit is recorded."}
    )
    dtype: Literal["auto", "bfloat16", "float32"] = field(
        default="auto", metadata={"help": "Data type of the base model, as for `sparserm train`."}
    )
    push_to_hub: bool = field(default=False, metadata={"help": "Push the SAE and its card to the Hub."})
    hub_model_id: str | None = field(
        default=None, metadata={"help": "Repository on the Hub; by default the name of the output folder."}
    )
    hub_private_repo: bool = field(default=False, metadata={"help": "Make the repository private."})

    def __post_init__(self) -> None:
        if self.layer < 1 or self.max_length < 2:
            raise SparseRMError(
                f"layer is {self.layer} and max_length is {self.max_length}, but layer must be at least 1 and "
                "max_length at least 2."
            )
        folder = Path(self.output_dir)
        ours = {CONFIG_FILE, WEIGHTS_FILE, CARD, CHECKPOINT}
        if folder.is_file() or (folder.is_dir() and not {file.name for file in folder.iterdir()} <= ours):
            raise SparseRMError(
                f"The output folder {self.output_dir!r} holds something else than an SAE: name another folder, or "
                "empty it."
            )

    @property
    def hook_name(self) -> str:
        """Name of the layer's output in sae-lens."""
        return f"blocks.{self.layer - 1}.hook_resid_post"


def train_sae(data: SAETrainingData, config: SAETrainingConfig | None = None) -> Fit:
    """Train an SAE and save it with its card. A killed run resumes from its checkpoint.

    Args:
        data: Base model, texts and output folder.
        config: Training settings; by default those of the shipped SAE.

    Returns:
        Fit of the SAE to held-out texts.

    Raises:
        SparseRMError: The base model, the dataset or the settings cannot be used.

    Example:
        ```python
        from sparserm_hf import SAETrainingConfig, SAETrainingData, train_sae

        data = SAETrainingData("my-base-model", "my-texts.jsonl", layer=2, output_dir="my-new-sae")
        fit = train_sae(data, SAETrainingConfig(total_tokens=4096, d_sae=64, k=8))
        print(fit.explained_variance)
        ```
    """
    config = config or SAETrainingConfig()
    device = _only_device()
    folder, repo = Path(data.output_dir), _make_repository(data)
    name = unpacked(data.model)
    base = load_base_model(name, data.revision)
    revision = commit_of(base.config)
    tokenizer = prepare_tokenizer(load_tokenizer(name, revision))
    base = prepare_base_model(base, data.layer, device, named_dtype(data.dtype, device))
    max_length = longest_text(base.config, data.max_length)
    texts = load_texts(
        data.dataset, tokenizer, config.total_tokens, max_length, data.dataset_split, data.dataset_config
    )
    logger.info("%s texts, %s tokens.", f"{len(texts):,}", f"{sum(map(len, texts)):,}")
    metadata = {
        "model_name": _portable_name(name),
        "model_revision": revision,
        "hook_name": data.hook_name,
        "dataset_path": _portable_name(data.dataset),
        "context_size": max_length,
        "prepend_bos": tokenizer.bos_token_id is not None and texts[0][0] == tokenizer.bos_token_id,
    }
    fit = train_and_save(base, [array("i", text) for text in texts], folder, config, metadata)
    sae_config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CARD).write_text(render_sae_card(repo, sae_config, asdict(config), data.push_to_hub))
    if data.push_to_hub:
        push_sae(folder, repo, data.hook_name)
    return fit


def _only_device() -> torch.device:
    """Return the device of this process, or raise an error if there are several processes."""
    state = process_state()
    if state.num_processes > 1:
        raise SparseRMError("sparserm sae train runs in one process: start it without a launcher.")
    return state.device


def _portable_name(name: str) -> str:
    """Shorten a path to its last part, as the rest means nothing on other machines; keep an id on the Hub."""
    return Path(name).name if Path(name).exists() else name


def _make_repository(data: SAETrainingData) -> str:
    """Make the repository on the Hub, so that a wrong name or token fails before the training; return its id.

    Without `push_to_hub`, the id is the name of the output folder and nothing is made.
    """
    repo = Path(data.output_dir).name
    if not data.push_to_hub:
        return repo
    return HfApi().create_repo(data.hub_model_id or repo, private=data.hub_private_repo, exist_ok=True).repo_id


def push_sae(folder: Path, repo_id: str, hook_name: str) -> str:
    """Upload an SAE and its card in one commit. As in sae-lens, the SAE goes into a folder named after its hook.

    Args:
        folder: Folder that `train_sae` has written.
        repo_id: Existing repository.
        hook_name: Hook whose activations the SAE encodes, such as `blocks.11.hook_resid_post`.

    Returns:
        URL of the commit.
    """
    places = {CARD: CARD} | {name: f"{hook_name}/{name}" for name in (CONFIG_FILE, WEIGHTS_FILE)}
    operations = [CommitOperationAdd(place, folder / name) for name, place in places.items()]
    return HfApi().create_commit(repo_id, operations, commit_message="Add SAE").commit_url
