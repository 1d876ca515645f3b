"""Write the folder of a trained reward model: weights, tokenizer, controls, evaluation, model card."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..evaluation import (
    CONTROLS_FILE,
    EVALUATION_FILE,
    REFERENCE_FILE,
    Control,
    DriftReference,
    Evaluation,
    save_controls,
    save_png,
)
from ..hub_cards.render import PLOT_FILE
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..runtime import check_output_dir, replacing_folder, save_tokenizer
from ..scoring import check_reload


def write_checkpoint(
    folder: Path,
    model: SparseRMForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    controls: list[Control],
    reference: DriftReference | None,
    evaluation: Evaluation | None,
    card: str,
) -> list[str]:
    """Write a reward model with all files that belong to it; a failure leaves the folder as it was before.

    Args:
        folder: Folder to write to.
        model: The reward model.
        tokenizer: Its tokenizer.
        controls: Controls that later evaluations can compute from the reward model's own representations.
        reference: Statistics of the training responses.
        evaluation: Evaluation on held-out pairs.
        card: The model card.

    Returns:
        Paths of the files in the folder.

    Raises:
        SparseRMError: The folder holds other files, or the saved model gives other rewards when it is loaded.
    """
    check_output_dir(folder)
    with replacing_folder(folder) as temporary:
        model.save_pretrained(temporary)
        save_tokenizer(tokenizer, temporary)
        if controls:
            save_controls(controls, temporary / CONTROLS_FILE)
        if reference:
            reference.save(temporary / REFERENCE_FILE)
        if evaluation:
            evaluation.save(temporary / EVALUATION_FILE)
            save_png(evaluation, temporary / PLOT_FILE)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        check_reload(temporary, model, tokenizer)
        return [file.relative_to(temporary).as_posix() for file in temporary.rglob("*") if file.is_file()]
