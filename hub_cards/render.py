"""Render the model card from what training knows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

TEMPLATE = Path(__file__).parent / "model_card.md"
SAE_TEMPLATE = Path(__file__).parent / "sae_card.md"


def render_model_card(name: str, config: Any, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """Markdown of the model card, metadata included.

    Args:
        name: Of the model.
        config: Its `SparseRMConfig`.
        settings: The training settings.
        metrics: What `SparseRMTrainer.train` returned.
    """
    on_hub = config.base_model_revision is not None
    data = ModelCardData(
        base_model=config.base_model_name_or_path if on_hub else None,
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["reward-model", "sparserm", "sparse-autoencoder", "interpretability", "trl"],
    )
    rows = {
        key.removeprefix("eval_").removesuffix("accuracy").rstrip("_").replace("_", " ") or "SparseRM": {
            "accuracy": value,
            "low": metrics[f"{key}_low"],
            "high": metrics[f"{key}_high"],
        }
        for key, value in metrics.items()
        if key.startswith("eval_") and key.endswith("accuracy")
    }
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=name,
        config=config,
        base_name=config.base_model_name_or_path if on_hub else Path(config.base_model_name_or_path).name,
        sae_name=config.sae_source.get("source", "unknown"),
        settings=settings,
        metrics=metrics,
        rows=rows,
        latents=list(
            zip(
                config.latents,
                config.latent_sides,
                config.latent_separations,
                config.latent_promotes,
                strict=True,
            )
        ),
    )
    return str(card)


def render_sae_card(name: str, sae: Mapping[str, Any], settings: Mapping[str, Any], on_hub: bool) -> str:
    """Markdown of an SAE's card, metadata included.

    Args:
        name: Of the repository, or of the folder.
        sae: Its `cfg.json` in sae-lens' format; `metadata` holds what was measured too.
        settings: The training settings.
        on_hub: Whether it is pushed.
    """
    metadata = sae["metadata"]
    data = ModelCardData(
        base_model=metadata["model_name"] if metadata.get("model_revision") else None,
        library_name="saelens",
        tags=["sparse-autoencoder", "interpretability", "sparserm"],
    )
    card = ModelCard.from_template(
        data,
        template_path=str(SAE_TEMPLATE),
        name=name,
        metadata=metadata,
        hook_name=metadata["hook_name"],
        d_sae=sae["d_sae"],
        on_hub=on_hub,
        settings=settings,
    )
    return str(card)
