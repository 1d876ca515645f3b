"""Download SAEs from the Hub, by their name in sae-lens' registry or by repository, or find them in the cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.file_download import repo_folder_name

from ...runtime import reason, sae_lens_registry
from .formats import CONFIGS, FORMATS, ParsedSAE, from_sae_lens, is_centred
from .local_saes import holds_sae, listed, not_an_sae, read_sae
from .weight_files import UnusableSAEError

if TYPE_CHECKING:
    from sae_lens.loading.pretrained_saes_directory import PretrainedSAELookup

# Formats in sae-lens' registry that `formats` parses, and formats of one or two releases that sae-lens must load.
READ_HERE = {None, "dictionary_learning_1", "gemma_2", "gemma_3", "llama_scope", "qwen_scope", "sparsify"}
READ_BY_SAE_LENS = {"deepseek_r1", "goodfire", "llama_scope_r1_distill"}


def read_from_hub(name: str) -> ParsedSAE:
    """Read an SAE on the Hub.

    Args:
        name: `release/sae_id` in sae-lens' registry; or `owner/repo`, `owner/repo/folder` or `owner/repo/file`.
            `@revision` may follow.

    Raises:
        UnusableSAEError: There is no such SAE, or it cannot be read.
    """
    path, _, revision = name.partition("@")
    release, _, sae_id = path.partition("/")
    known = sae_lens_registry().get(release)
    if known is not None:
        return _read_registered(known, sae_id, revision or None)
    owner_and_repo, folder = path.split("/")[:2], "/".join(path.split("/")[2:])
    parsed = _read_repository("/".join(owner_and_repo), folder, revision or None)
    return replace(parsed, source=parsed.source | {"sae_id": folder or None})


def _read_registered(known: PretrainedSAELookup, sae_id: str, revision: str | None) -> ParsedSAE:
    """Read an SAE of sae-lens' registry, and add the facts that are in the registry but not in the SAE's files."""
    if sae_id not in known.saes_map:
        raise UnusableSAEError(f"is not in sae-lens' registry: {known.release} has {listed(sorted(known.saes_map))}.")
    if known.conversion_func in READ_HERE:
        parsed = _read_repository(known.repo_id, known.saes_map[sae_id], revision)
    elif known.conversion_func in READ_BY_SAE_LENS:
        if revision:
            raise UnusableSAEError(f"is loaded by sae-lens, which takes no revision: leave @{revision} out.")
        parsed = _read_with_sae_lens(known, sae_id)
    else:
        raise UnusableSAEError(
            f"is in the format {known.conversion_func}, which cannot be embedded: SparseRM needs an SAE that "
            "reconstructs the residual stream."
        )
    overrides = dict(known.config_overrides or {})
    if "normalize_activations" in overrides:
        parsed = replace(parsed, normalization=overrides["normalize_activations"])
    if is_centred(overrides.get("model_from_pretrained_kwargs")):
        parsed = replace(parsed, centred=True)
    if parsed.normalization == "expected_average_only_in" and sae_id in known.norm_scaling_factor:
        parsed = replace(parsed, normalization="none", input_scale=known.norm_scaling_factor[sae_id])
    facts = {
        "release": known.release,
        "sae_id": sae_id,
        "model_name": parsed.source.get("model_name") or known.model,
        "neuronpedia_id": known.neuronpedia_id.get(sae_id),
    }
    return replace(parsed, source=parsed.source | facts)


def _read_repository(repo: str, folder: str, revision: str | None) -> ParsedSAE:
    """Read a folder or file of a repository at one commit; only files outside the cache are downloaded."""
    is_file = any(Path(folder).match(pattern) for pattern in FORMATS)
    inside = Path(folder).parent if is_file else Path(folder)
    wanted = [folder] if is_file else [(inside / pattern).as_posix() for pattern in FORMATS if "*" not in pattern]
    wanted += [(place / config).as_posix() for place in (inside, inside.parent) for config in CONFIGS]
    try:
        snapshot = _cached(repo, revision, wanted)
        if snapshot is None or not holds_sae(snapshot / folder):
            snapshot = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
        if not holds_sae(snapshot / folder):
            files = HfApi().list_repo_files(repo, revision=snapshot.name)
            raise UnusableSAEError(not_an_sae([file for file in files if file.startswith(folder)]))
    except UnusableSAEError:
        raise
    except Exception as error:  # huggingface_hub and its dependencies raise a dozen kinds
        raise UnusableSAEError(
            "is neither a file or folder here, nor a release of sae-lens, and cannot be downloaded from the Hub: "
            f"{reason(error).rstrip('.')}."
        ) from error
    parsed = read_sae(snapshot / folder, f"{repo}/{folder}")
    return replace(parsed, source=parsed.source | {"repo": repo, "revision": snapshot.name})


def _cached(repo: str, revision: str | None, wanted: list[str]) -> Path | None:
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted, local_files_only=True))
    except FileNotFoundError:
        return None


def _read_with_sae_lens(known: PretrainedSAELookup, sae_id: str) -> ParsedSAE:
    """Read an SAE through sae-lens, which needs a connection to the Hub even for cached files."""
    from sae_lens import SAE

    try:
        sae = SAE.from_pretrained(known.release, sae_id)
    except Exception as error:  # sae-lens, huggingface_hub and safetensors raise a dozen kinds
        raise UnusableSAEError(f"cannot be read by sae-lens: {reason(error).rstrip('.')}.") from error
    parsed = from_sae_lens(sae.cfg.to_dict(), sae.state_dict())
    repo = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=known.repo_id, repo_type="model")
    main = repo / "refs" / "main"  # sae-lens always loads this branch
    revision = main.read_text().strip() if main.is_file() else None
    return replace(parsed, source=parsed.source | {"repo": known.repo_id, "revision": revision})
