"""The method as one recipe: preference pairs, a base model and an SAE in, a reward model out."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..base_models import count_parameters, move
from ..conversations import TokenizedPreferences, TokenizedText, measure_styles, tokenize_preferences
from ..evaluation import (
    CONTROLS_FILE,
    EVALUATION_FILE,
    REFERENCE_FILE,
    Control,
    DriftReference,
    Evaluation,
    check_claims,
    evaluate_representations,
    find_twin,
    measure_attacks,
    reward_represented,
    save_controls,
    save_png,
)
from ..hub_cards.render import PLOT_FILE, render_model_card
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..representations import Pooling, Representations, collect_representations
from ..runtime import (
    SparseRMError,
    as_numpy,
    check_output_dir,
    default_cache_dir,
    process_state,
    push_folder,
    replacing_folder,
    report_metrics,
    save_tokenizer,
)
from ..sae import LoadedSAE
from ..scoring import check_reload
from .assembly import assemble_model
from .config import SparseRMTrainingConfig
from .control_fitting import fit_controls
from .debiasing import avoided_styles
from .latent_records import latent_records, warn_of_purity
from .parts import load_parts, name_of
from .represented_texts import PairIndices, RepresentedTexts
from .run_facts import RunFacts
from .steps import FittedRewardHead, fit, project, select

logger = logging.getLogger(__name__)


class SparseRMTrainer:
    """Train a SparseRM reward model from preference pairs.

    Args:
        model: Base model: a Hub id, a folder, a GGUF file, or a transformers model (which is copied, not changed).
        sae: SAE: anything that `load_sae` takes, or a `LoadedSAE`. None and `auto` choose an SAE that was published
            for the base model.
        args: Settings. By default the reward model goes to a folder named after the base model.
        train_dataset: Preference pairs in any of TRL's formats.
        eval_dataset: Preference pairs to evaluate on.
        processing_class: Tokenizer (copied, not changed); by default the base model's.
        revision: Revision of the base model on the Hub. The checkpoint records its commit in any case.

    Attributes:
        model: The reward model; None before `train`.
        controls: The fitted controls.
        reference: Statistics of the training responses for `sparserm monitor`; None before `train`.
        evaluation: Margins of the reward model and its controls on each evaluated pair; None before `evaluate`.
        evaluated: The pairs of that evaluation.
        metrics: The metrics that `train` returned.

    Raises:
        SparseRMError: An argument is wrong. Nothing is written.

    Example:
        ```python
        from sparserm_hf import SparseRMTrainer, SparseRMTrainingConfig, load_preferences

        trainer = SparseRMTrainer(
            model="my-base-model",
            sae="my-sae",
            args=SparseRMTrainingConfig("my-new-reward-model"),
            train_dataset=load_preferences("my-pairs.jsonl"),
            eval_dataset=load_preferences("my-test-pairs.jsonl"),
        )
        metrics = trainer.train()
        trainer.save_model()
        ```
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        sae: str | LoadedSAE | None = None,
        args: SparseRMTrainingConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        revision: str | None = None,
    ):
        self.args = args or SparseRMTrainingConfig(f"{Path(name_of(model)).name}-SparseRM")
        check_output_dir(Path(self.args.output_dir))
        if train_dataset is None:
            raise SparseRMError("train_dataset is missing: pass preference pairs, see load_preferences.")
        self.state = process_state()
        parts = load_parts(model, sae, self.args, processing_class, revision)
        self.encoder, self.processing_class = parts.encoder, parts.tokenizer
        self.train_pairs = self._tokenize(train_dataset, "training")
        self.eval_pairs = self._tokenize(eval_dataset, "evaluation") if eval_dataset is not None else None
        self.parts = parts.cut(self.args, self.train_pairs.texts)
        self.base_model, self.sae, self.layer = self.parts.base_model, self.parts.sae, self.parts.layer
        self.model: SparseRMForSequenceClassification | None = None
        self.controls: list[Control] = []
        self.reference: DriftReference | None = None
        self.evaluation: Evaluation | None = None
        self.evaluated: TokenizedPreferences | None = None
        self.metrics: dict[str, float] = {}

    def _tokenize(self, dataset: Dataset, name: str) -> TokenizedPreferences:
        pairs = tokenize_preferences(dataset, self.encoder)
        if self.state.is_main_process:
            logger.info("%s data: %s", name.capitalize(), pairs.summary())
        return pairs

    def train(self) -> dict[str, float]:
        """Run the recipe: represent, select, project, fit, assemble, fit controls, measure reference, evaluate.

        `self.model` is the reward model from then on.

        Returns:
            Seconds of each stage, accuracy on the pairs held out while the head was fitted, and, with an evaluation
            set, the metrics of `evaluate`.

        Raises:
            SparseRMError: There are too few pairs, or too few latents fire.
        """
        args, started = self.args, time.perf_counter()
        pairs = PairIndices.of(self.train_pairs, self._avoided_styles())
        cached = self.represent(self.train_pairs.texts)
        texts = RepresentedTexts.of(cached, as_numpy(self.sae.autoencoder.W_dec))
        represented = time.perf_counter()
        selected = select(texts, pairs, args)
        projection = project(texts, selected, args)
        fitted = fit(selected, projection, pairs, args)
        self.model = self.assemble(fitted, cached)
        self.controls = fit_controls(fitted, texts, self.train_pairs.lengths, pairs, args) if args.controls else []
        self.reference = self.measure_reference(fitted, cached)
        self.metrics = self._count(fitted, represented - started, time.perf_counter() - represented)
        self.metrics |= self.evaluate() if self.eval_pairs is not None else {}
        report_metrics(args.report_to, args.output_dir, asdict(args), self.metrics)
        return self.metrics

    def _avoided_styles(self) -> np.ndarray | None:
        return avoided_styles(self.train_pairs, self.processing_class, self.args.debias_names)

    def _count(self, fitted: FittedRewardHead, representation_seconds: float, fit_seconds: float) -> dict[str, float]:
        """Collect the metrics of the training itself."""
        assert self.model is not None
        metrics: dict[str, float] = {
            "train_pairs": len(self.train_pairs),
            "trainable_parameters": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            "base_parameters": count_parameters(self.base_model.config),
            "representation_seconds": representation_seconds,
            "fit_seconds": fit_seconds,
        }
        if fitted.head.validation_accuracy is not None:
            metrics["validation_accuracy"] = fitted.head.validation_accuracy
        return metrics

    def evaluate(self, eval_dataset: Dataset | None = None) -> dict[str, float]:
        """Evaluate the trained model and its controls; `self.evaluation` then holds the margin of every pair.

        Args:
            eval_dataset: Preference pairs; by default the evaluation set that the trainer was given.

        Returns:
            `eval_accuracy`, its 95% interval and mean margin, and the same for each control.

        Raises:
            SparseRMError: Nothing is trained yet, or there are no pairs.
        """
        if self.model is None:
            raise SparseRMError("There is no model to evaluate yet: call train() first.")
        pairs = self._tokenize(eval_dataset, "evaluation") if eval_dataset is not None else self.eval_pairs
        if pairs is None:
            raise SparseRMError("There are no pairs to evaluate on: pass eval_dataset.")
        model, latents = self.model, self.model.config.latent_ids
        styles = measure_styles(pairs, self.processing_class)
        represented = self.represent(pairs.texts)
        evaluation = evaluate_representations(model, self.controls, represented, pairs, styles, latents)

        def reward(texts: list[TokenizedText]) -> np.ndarray:
            return reward_represented(model, self.represent(texts))

        attacks, claims = measure_attacks(pairs, self.encoder, reward), check_claims(model, self.base_model, pairs)
        self.evaluation = replace(evaluation, attacks=tuple(attacks), claims=claims)
        self.evaluated = pairs
        return self.evaluation.flat()

    def represent(self, texts: list[TokenizedText]) -> Representations:
        """Represent texts by the base model and the SAE; representations in the cache are loaded."""
        pooling = Pooling(self.args.pooling, self.args.representation_norm)
        sae = self.sae.autoencoder.to(self.state.device)
        return collect_representations(self.base_model, sae, texts, pooling, self.cache_dir)

    @property
    def cache_dir(self) -> Path:
        """Folder of cached representations and descriptions of latents."""
        return Path(self.args.cache_dir) if self.args.cache_dir else default_cache_dir()

    def assemble(self, fitted: FittedRewardHead, texts: Representations) -> SparseRMForSequenceClassification:
        """Assemble base model, SAE and fitted head into a reward model.

        Args:
            fitted: Selected latents, directions and head.
            texts: Representations of the training texts, by which the latents are named.
        """
        if self.state.is_main_process:
            warn_of_purity(fitted.selected.latents, fitted.projection.directions.purities)
        latents = latent_records(self.parts, fitted, self.train_pairs, texts, self.args.pooling, self.cache_dir)
        return move(assemble_model(self.parts, fitted, self.args, latents), self.state.device)

    def measure_reference(self, fitted: FittedRewardHead, texts: Representations) -> DriftReference:
        """Compute the statistics of the training responses that `sparserm monitor` compares others with."""
        features, twin = fitted.projection.features, find_twin(self.controls)
        of_twin = twin.rewards(texts, self.train_pairs.lengths, []) if twin else None
        return DriftReference.of(features, fitted.head.rewards(features), of_twin)

    def save_model(self, output_dir: str | None = None) -> None:
        """Write model, tokenizer, controls, evaluation and model card; a failure leaves the folder as it was before.

        Args:
            output_dir: Folder to write to. By default the folder of the settings; if the settings say `push_to_hub`,
                the model is then uploaded too.

        Raises:
            SparseRMError: Nothing is trained yet, the folder holds something else, or the upload failed.
        """
        if output_dir is None and self.args.push_to_hub:
            self.push_to_hub()
        else:
            self._write(Path(output_dir or self.args.output_dir))

    def _write(self, folder: Path) -> list[str]:
        if self.model is None:
            raise SparseRMError("There is no model to save yet: call train() first.")
        if not self.state.is_main_process:
            return []
        check_output_dir(folder)
        model = self.model.to_slim() if self.args.slim else self.model
        with replacing_folder(folder) as temporary:
            model.save_pretrained(temporary)
            save_tokenizer(self.processing_class, temporary)
            if self.controls:
                save_controls(self.controls, temporary / CONTROLS_FILE)
            if self.reference:
                self.reference.save(temporary / REFERENCE_FILE)
            if self.evaluation:
                self.evaluation.save(temporary / EVALUATION_FILE)
                save_png(self.evaluation, temporary / PLOT_FILE)
            name = self.args.hub_model_id or folder.name
            facts = RunFacts.of(self.args, self.parts, self.train_pairs, self.evaluated)
            card = render_model_card(name, model.config, facts, self.metrics, self.evaluation)
            (temporary / "README.md").write_text(card, encoding="utf-8")
            check_reload(temporary, model, self.processing_class)
            return [file.relative_to(temporary).as_posix() for file in temporary.rglob("*") if file.is_file()]

    def push_to_hub(self, commit_message: str = "Add SparseRM reward model", **kwargs: Any) -> str:
        """Save the model and upload it, tokenizer and card included; see `push_folder`.

        Args:
            commit_message: Message of the commit on the Hub.
            kwargs: Further arguments of `HfApi.upload_folder`.

        Returns:
            The address of the commit; empty in every process except the main one.

        Raises:
            SparseRMError: Nothing is trained yet, or the upload failed.
        """
        folder, private = Path(self.args.output_dir), self.args.hub_private_repo
        files = self._write(folder)
        self.state.wait_for_everyone()
        if not self.state.is_main_process:
            return ""
        return push_folder(folder, files, self.args.hub_model_id, private, commit_message=commit_message, **kwargs)
