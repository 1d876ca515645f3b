"""Any SAE to the embedded form."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import SparseRMError, reason
from ..modeling.autoencoder_sparserm import ARCHITECTURES, NORMALIZATIONS, SparseAutoencoder

CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae_weights.safetensors"  # sae-lens' own names
RESIDUAL_HOOK = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")


@dataclass(frozen=True)
class LoadedSAE:
    """An SAE in the embedded form, and where it came from.

    Attributes:
        autoencoder: The SAE, in float32 on the CPU.
        source: Provenance: source, release, sae_id, repo, revision, hook_name, neuronpedia_id; what is not known is
            left out.
    """

    autoencoder: SparseAutoencoder
    source: dict[str, Any] = field(default_factory=dict)

    @property
    def layer(self) -> int | None:
        """Decoder layers to keep so that the base model ends where this SAE reads; None where no hook is named.

        Raises:
            SparseRMError: The SAE reads something else than the residual stream.
        """
        hook = self.source.get("hook_name")
        if hook is None:
            return None
        match = RESIDUAL_HOOK.fullmatch(hook)
        if not match:
            raise SparseRMError(
                f"The SAE {self.source.get('source')!r} was trained on the hook {hook!r}, but SparseRM reads the "
                "residual stream: it needs an SAE on blocks.<layer>.hook_resid_post or hook_resid_pre."
            )
        return int(match[1]) + (match[2] == "post")


def load_sae(name: str) -> LoadedSAE:
    """Load an SAE.

    Args:
        name: A folder in sae-lens' format, `release/sae_id` out of sae-lens' registry, or `owner/repo` or
            `owner/repo/folder` on the Hub.

    Raises:
        SparseRMError: It is missing, broken, or of a kind that cannot be embedded.
    """
    path = Path(name).expanduser()
    if path.exists():
        return _load_folder(path)
    return _load_with_sae_lens(name)


def _load_folder(path: Path) -> LoadedSAE:
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (path / file).is_file():
            raise SparseRMError(f"The SAE {str(path)!r} must be a folder with {CONFIG_FILE} and {WEIGHTS_FILE}.")
    try:
        config = json.loads((path / CONFIG_FILE).read_text())
        weights = load_file(path / WEIGHTS_FILE)
    except (json.JSONDecodeError, SafetensorError) as error:
        raise SparseRMError(f"The SAE {str(path)!r} is broken: {error}.") from error
    source = {"source": path.resolve().name}  # not the path, which is of this machine only
    if "metadata" not in config:  # written by sae-lens before 6, with other names: sae-lens knows them all
        from sae_lens import SAE

        sae = SAE.load_from_disk(path)
        config, weights = sae.cfg.to_dict(), sae.state_dict()
    return _embed(config, weights, source)


def _load_with_sae_lens(name: str) -> LoadedSAE:
    from sae_lens import SAE  # seconds to import
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    release, _, sae_id = name.partition("/")
    known = get_pretrained_saes_directory()
    if release in known:
        repo = known[release].repo_id
    else:
        owner, repo_name, *folder = name.split("/") if name.count("/") else (name, "")
        release = repo = f"{owner}/{repo_name}"
        sae_id = "/".join(folder) or "."
    try:
        sae = SAE.from_pretrained(release, sae_id)
    except Exception as error:  # sae-lens, huggingface_hub and the file readers raise a dozen kinds
        raise SparseRMError(
            f"The SAE {name!r} is neither a folder nor to be had as a release of sae-lens or a repository on the "
            f"Hub: {reason(error)}"
        ) from error
    source = {"source": name, "release": release, "sae_id": sae_id, "repo": repo, "revision": _cached_commit(repo)}
    return _embed(sae.cfg.to_dict(), sae.state_dict(), source)


def _cached_commit(repo: str) -> str | None:
    """The commit of a repository on the Hub whose files are in the cache; sae-lens always takes the main branch."""
    ref = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "refs" / "main"
    return ref.read_text().strip() if ref.is_file() else None


def _embed(config: dict[str, Any], weights: dict[str, torch.Tensor], source: dict[str, Any]) -> LoadedSAE:
    """From sae-lens' configuration and tensors to the embedded form."""
    name = source["source"]
    metadata = config.get("metadata") or {}
    architecture = config.get("architecture", "standard")
    normalization = config.get("normalize_activations", "none")
    if architecture not in ARCHITECTURES:
        raise SparseRMError(
            f"The SAE {name!r} is a {architecture}; those that can be embedded are {', '.join(ARCHITECTURES)}."
        )
    if normalization not in NORMALIZATIONS:
        raise SparseRMError(
            f"The SAE {name!r} expects activations normalised by {normalization!r}, whose factor is not in its files: "
            "fold it into the weights with sae-lens' fold_activation_norm_scaling_factor and save it again."
        )
    try:
        sae = SparseAutoencoder(
            config["d_in"],
            config["d_sae"],
            architecture,
            config.get("k"),
            normalization,
            config.get("apply_b_dec_to_input", True),
            config.get("rescale_acts_by_decoder_norm", False),
        )
        sae.load_state_dict({key: value.float() for key, value in weights.items() if key in sae.state_dict()})
    except KeyError as error:
        raise SparseRMError(f"The SAE {name!r} is broken: its {CONFIG_FILE} does not say {error}.") from error
    except (RuntimeError, ValueError) as error:  # load_state_dict: missing tensors, wrong shapes; our own: a bad k
        raise SparseRMError(f"The SAE {name!r} is broken: {' '.join(str(error).split())}") from error
    found = {
        "hook_name": metadata.get("hook_name") or config.get("hook_name"),
        "neuronpedia_id": metadata.get("neuronpedia_id"),
        "model_name": metadata.get("model_name") or config.get("model_name"),
    }
    return LoadedSAE(sae, source | {key: value for key, value in found.items() if value is not None})
