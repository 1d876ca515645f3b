"""Write a trained SAE to a folder in sae-lens' own format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from ..loading.loaded_sae import CONFIG_FILE, WEIGHTS_FILE


def save_sae(sae: Any, folder: Path, metadata: Mapping[str, Any]) -> None:
    """Save a trained SAE in sae-lens' own format: matrices in bfloat16, biases and thresholds in float32.

    Args:
        sae: SAE in sae-lens' training form, as `train_on_tokens` returns it.
        folder: New folder.
        metadata: Facts to add to the metadata in `cfg.json`.
    """
    sae.save_inference_model(folder)
    weights = load_file(folder / WEIGHTS_FILE)
    weights |= {name: weights[name].bfloat16() for name in ("W_enc", "W_dec")}
    save_file(weights, folder / WEIGHTS_FILE)
    # The training tokens were normalised before the SAE saw them; the saved SAE normalises its input itself.
    edit_config(folder, metadata, normalize_activations="constant_norm_rescale", device="cpu")


def edit_config(folder: Path, metadata: Mapping[str, Any], **settings: str) -> None:
    """Add facts to the metadata in a saved SAE's `cfg.json`, and change some of its settings."""
    config = json.loads((folder / CONFIG_FILE).read_text()) | settings
    config["metadata"] |= {key: value for key, value in metadata.items() if value is not None}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
