"""Render the model card from the facts that training knows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

TEMPLATE = Path(__file__).parent / "model_card.md"
PLOT_FILE = "evaluation.png"
COMBINED_TEMPLATE = Path(__file__).parent / "combined_card.md"
SAE_TEMPLATE = Path(__file__).parent / "sae_card.md"
# Metrics of the latents' meaning, without and with an adapter: end of the metric's name, title, and scale.
ADAPTER_ROWS = (
    ("claims", "claims of explanations that hold, %", 100),
    ("name_f1", "mean F1 of the latents' names, %", 100),
    ("explained_variance", "variance that the SAE explains, %", 100),
    ("l0", "latents that fire on a token", 1),
)
TAGS = ["reward-model", "sparserm", "sparse-autoencoder", "interpretability", "trl"]
# The weights have the licences of the base model and the SAE, which the card's text names.
LICENSE = {"license": "other", "license_name": "base-model-and-sae"}


def render_model_card(name: str, config: Any, facts: Any, metrics: Mapping[str, float], evaluation: Any = None) -> str:
    """Markdown of the model card, metadata included.

    Args:
        name: Name of the model.
        config: The model's `SparseRMConfig`.
        facts: The `RunFacts` of its training.
        metrics: Metrics that `SparseRMTrainer.train` returned.
        evaluation: An `Evaluation` on the held-out pairs of `facts`, whose plot lies beside the card.
    """
    card_data = {
        "datasets": sorted({of.source.name for of in facts.data.values() if of.source.on_hub}) or None,
        "tags": TAGS,
        "model_name": name.rpartition("/")[2],
        "eval_results": _eval_results(evaluation, facts.data["held-out"].source) if evaluation else None,
    }
    tested = [x.title_f1 for x in config.latents if x.title_f1 is not None]
    further = {
        "facts": facts,
        "metrics": metrics,
        "adapter_rows": ADAPTER_ROWS,
        "latents": config.latents,
        "tested": tested,
    }
    return _render(TEMPLATE, name, config, evaluation, card_data, **further)


def render_combined_card(name: str, config: Any, evaluation: Any = None, facts: Any = None) -> str:
    """Markdown of the card of a combined reward model, metadata included.

    Args:
        name: Name of the model.
        config: The model's `SparseRMConfig`.
        evaluation: An `Evaluation` on preference pairs, whose plot lies beside the card.
        facts: The `RunFacts` of a joint training; None if separately trained models were combined.
    """
    sources = [of.source for of in facts.data.values()] if facts else []
    card_data = {
        "datasets": sorted({source.name for source in sources if source.on_hub}) or None,
        "tags": [*TAGS, "multi-objective"],
        "model_name": name.rpartition("/")[2],
    }
    return _render(COMBINED_TEMPLATE, name, config, evaluation, card_data, facts=facts)


def _render(
    template: Path, name: str, config: Any, evaluation: Any, card_data: Mapping[str, Any], **further: Any
) -> str:
    """Render the card of a reward model from a template: add the metadata and the names that every such card has."""
    on_hub, base = config.base_model_revision is not None, config.base_model_name_or_path
    data = ModelCardData(
        base_model=base if on_hub else None,
        library_name="transformers",
        pipeline_tag="text-classification",
        **card_data,
        **LICENSE,
        license_link=f"https://huggingface.co/{base}" if on_hub else None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(template),
        name=name,
        config=config,
        base_name=base if on_hub else Path(base).name,
        sae_name=config.sae_source.get("source", "unknown"),
        evaluation=evaluation,
        plot=PLOT_FILE,
        text=as_text,
        code=as_code,
        **further,
    )
    return str(card)


def _eval_results(evaluation: Any, source: Any) -> list[EvalResult]:
    """Accuracies of the reward model and its controls, for the `model-index` of the metadata."""
    rows = {"accuracy": evaluation.reward_model}
    rows |= {f"accuracy of the control: {name}": row for name, row in evaluation.controls.items()}
    return [
        EvalResult(
            task_type="text-classification",
            task_name="Preference modelling",
            dataset_type=source.name if source.on_hub else "preference-pairs",
            dataset_name=f"{row.pairs} held-out preference pairs{source.name and f' of {source.name}'}",
            dataset_split=source.split or None,
            metric_type="accuracy",
            metric_name=name,
            metric_value=round(row.accuracy, 4),
            metric_args={"interval_95": [round(row.low, 4), round(row.high, 4)]},
        )
        for name, row in rows.items()
    ]


def render_sae_card(name: str, sae: Mapping[str, Any], settings: Mapping[str, Any], on_hub: bool) -> str:
    """Markdown of an SAE's card, metadata included.

    Args:
        name: Name of the repository or folder.
        sae: The SAE's `cfg.json` in sae-lens' format, whose `metadata` holds the measurements too.
        settings: Settings of the training.
        on_hub: True if the SAE is pushed to the Hub.
    """
    metadata = sae["metadata"]
    dataset = metadata["dataset_path"]
    data = ModelCardData(
        base_model=metadata["model_name"] if metadata.get("model_revision") else None,
        datasets=[dataset] if "/" in dataset else None,  # not a path, of which only the last part is recorded
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
        steps=metadata["tokens_trained_on"] // settings["step_tokens"],
        code=as_code,
    )
    return str(card)


def as_text(value: Any) -> str:
    r"""Escape a foreign text for Markdown: it stays on its line and in its cell, and reads as it was written.

    Example:
        >>> print(as_text("<b>*not*|"))
        \<b\>\*not\*\|
    """
    return re.sub(r"([\\`*_{}\[\]<>()#|~&$:!])", r"\\\1", _one_line(value))


def as_code(value: Any) -> str:
    """Write a foreign text as a code span of Markdown that ends where the text ends.

    Example:
        >>> print(as_code("a`b"))
        `` a`b ``
    """
    line = _one_line(value).replace("|", r"\|")  # for a cell of a table
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    space = " " if longest else ""
    return f"{'`' * (longest + 1)}{space}{line}{space}{'`' * (longest + 1)}"


def _one_line(value: Any) -> str:
    """Put a text on one line, without characters that cannot be seen."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
