"""Load an SAE in any known format, and refuse one whose shapes or numbers are wrong: `load_sae`."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...modeling.autoencoder_sparserm import ARCHITECTURES, NORMALIZATIONS, SparseAutoencoder
from ...runtime import MOST_SHOWN, SparseRMError, kind_and_reason, reason, shown
from .folding import folded_weights
from .formats import ParsedSAE
from .hub_saes import read_from_hub
from .local_saes import read_sae
from .weight_files import UnusableSAEError

logger = logging.getLogger(__name__)

CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae_weights.safetensors"  # sae-lens' own names
RESIDUAL_HOOK = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")


@dataclass(frozen=True)
class LoadedSAE:
    """An SAE in the form that a SparseRM model embeds, with its origin.

    Attributes:
        autoencoder: SAE in float32 on the CPU.
        source: Known facts among source, format, release, sae_id, repo, revision (a commit), hook_name, model_name,
            neuronpedia_id.

    Example:
        >>> sae = LoadedSAE(SparseAutoencoder(d_in=2, d_sae=4), {"hook_name": "blocks.11.hook_resid_post"})
        >>> sae.layer
        12
    """

    autoencoder: SparseAutoencoder
    source: dict[str, Any] = field(default_factory=dict)

    @property
    def layer(self) -> int | None:
        """Layer whose output the SAE encodes, counted from 1; None if the SAE names no hook.

        Raises:
            SparseRMError: The SAE encodes something other than the residual stream.
        """
        hook = self.source.get("hook_name")
        if hook is None:
            return None
        match = RESIDUAL_HOOK.fullmatch(str(hook))
        if not match:
            raise SparseRMError(
                f"The SAE {self.source.get('source')!r} was trained on the hook {shown(hook)}, but SparseRM needs an "
                "SAE on the residual stream: blocks.<layer>.hook_resid_post or hook_resid_pre."
            )
        return int(match[1]) + (match[2] == "post")


def load_sae(name: str) -> LoadedSAE:
    """Load an SAE in any format of `loading.formats`. No code in its files is run.

    Files on this machine and in the Hub's cache are used without a network connection, but for four releases of the
    registry that sae-lens itself must load.

    Args:
        name: A folder or file with the SAE; `release/sae_id` in sae-lens' registry; or `owner/repo` or
            `owner/repo/folder` on the Hub. `@revision` may follow the last two.

    Raises:
        SparseRMError: The SAE is missing, broken, or of a kind that cannot be embedded.

    Example:
        ```python
        from sparserm_hf import load_sae

        sae = load_sae("my-sae")
        print(sae.layer, sae.autoencoder.d_sae, sae.source)
        ```
    """
    path = Path(
        os.path.abspath(Path(name).expanduser())
    )  # not resolved: links in the Hub's cache point to unnamed files
    try:
        if path.exists():
            # Only the end of the path is recorded: the rest means nothing on other machines.
            parsed, source = read_sae(path, path.as_posix()), path.name
        else:
            parsed, source = read_from_hub(name), name
        autoencoder = _embed(parsed)
    except UnusableSAEError as error:
        raise SparseRMError(f"The SAE {name!r} {error}") from error
    except (SparseRMError, ModuleNotFoundError, OSError):
        raise
    except Exception as error:  # the files may hold anything, such as a size with thousands of digits
        raise SparseRMError(
            f"The SAE {name!r} is broken: its files cannot be understood ({kind_and_reason(error)}): download or save "
            "it again."
        ) from error
    known = {"source": source} | {key: value for key, value in parsed.source.items() if value is not None}
    return LoadedSAE(autoencoder, known)


def _embed(parsed: ParsedSAE) -> SparseAutoencoder:
    """Build the embedded form of a parsed SAE.

    Raises:
        UnusableSAEError: The SAE is broken or of a kind that cannot be embedded.
    """
    if parsed.architecture not in ARCHITECTURES:
        raise UnusableSAEError(
            f"is a {str(parsed.architecture)[:MOST_SHOWN]}; only {', '.join(ARCHITECTURES)} can be embedded."
        )
    if parsed.normalization not in NORMALIZATIONS:
        raise UnusableSAEError(
            f"expects activations normalised by {shown(parsed.normalization)}, whose factor is not in its files: "
            "fold it into the weights with sae-lens' fold_activation_norm_scaling_factor (or "
            "fold_activation_whitening) and save it again."
        )
    k = parsed.k if parsed.architecture == "topk" else None
    for name, size in {"d_in": parsed.d_in, "d_sae": parsed.d_sae}.items():
        if not isinstance(size, int):
            raise UnusableSAEError(f"is broken: its {name} is {shown(size)}, but must be a whole number.")
    if parsed.architecture == "topk" and not isinstance(k, int):
        raise UnusableSAEError(f"is broken: its k is {shown(k)}, but must be a whole number.")
    try:
        with torch.device("meta"):  # the tensors come from the files
            sae = SparseAutoencoder(
                parsed.d_in,
                parsed.d_sae,
                parsed.architecture,
                k,
                parsed.normalization,
                parsed.apply_b_dec_to_input,
                parsed.rescale_acts_by_decoder_norm,
            )
    except (RuntimeError, ValueError) as error:  # a negative size; a k that cannot be
        raise UnusableSAEError(f"is broken: {reason(error)}") from error
    _check_shapes(parsed, {name: list(buffer.shape) for name, buffer in sae.named_buffers()})
    sae.load_state_dict(folded_weights(parsed), assign=True)
    _check_numbers(sae)
    return sae


def _check_shapes(parsed: ParsedSAE, expected: dict[str, list[int]]) -> None:
    what = f"a {parsed.architecture} SAE with d_in {parsed.d_in} and d_sae {parsed.d_sae}"
    found = {name: list(tensor.shape) for name, tensor in parsed.weights.items()}
    for name in (*expected, *found):
        if name not in found:
            raise UnusableSAEError(f"is broken: {what} needs {name}, which is not in its files.")
        if name not in expected:
            raise UnusableSAEError(f"is broken: {what} has no {name}, which is in its files.")
        if found[name] != expected[name]:
            raise UnusableSAEError(f"is broken: {name} of {what} has the shape {found[name]}, not {expected[name]}.")


def _check_numbers(sae: SparseAutoencoder) -> None:
    for name, tensor in sae.named_buffers():
        if not tensor.isfinite().all():
            raise UnusableSAEError(f"is broken: {name} holds numbers that are not finite.")
    if sae.architecture != "jumprelu":
        return
    # Without thresholds, a JumpReLU SAE is silently a plain ReLU SAE, in which hundreds of latents more fire.
    silent = int((sae.threshold <= 0).sum())
    if silent == sae.d_sae:
        raise UnusableSAEError(
            "is a jumprelu without thresholds: all of them are zero or less, because they were rounded away when it "
            "was saved or never measured in training. Save its thresholds in float32, or, where a plain ReLU is "
            "meant, with the architecture standard."
        )
    if silent:
        logger.warning(
            "%d of the SAE's %d thresholds are zero or less, perhaps rounded away when it was saved: those latents "
            "fire at any positive value.",
            silent,
            sae.d_sae,
        )
