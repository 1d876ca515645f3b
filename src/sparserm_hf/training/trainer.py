"""The method as one recipe: preference pairs, a base model and an SAE in, a reward model out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..base_models import move
from ..conversations import TokenizedPreferences, TokenizedText
from ..evaluation import Control, DriftReference, Evaluation, find_twin
from ..hub_cards.render import render_combined_card, render_model_card
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..representations import Pooling, Representations, collect_representations
from ..runtime import (
    SparseRMError,
    as_numpy,
    check_output_dir,
    default_cache_dir,
    process_state,
    push_folder,
    report_metrics,
)
from ..sae import LoadedSAE
from .adapter import adapt
from .assembly import assemble_model
from .checkpoint import write_checkpoint
from .config import SparseRMTrainingConfig
from .control_fitting import fit_controls
from .debiasing import avoided_styles
from .joint_training import join_pairs, train_objectives
from .latent_records import latent_records, warn_of_purity
from .meaning import compare_meanings
from .objective_rows import EvaluationPairs, split_objectives, tokenize_objectives
from .parts import load_parts, name_of
from .represented_texts import PairIndices, RepresentedTexts
from .run_facts import RunFacts, training_metrics, validation_metrics
from .steps import FittedRewardHead, carry_over, fit, project, select
from .trained_model import TrainedModel


class SparseRMTrainer:
    """Train a SparseRM reward model from preference pairs.

    Args:
        model: Base model: a Hub id, a folder, a GGUF file, or a transformers model (which is copied, not changed).
        sae: SAE: anything that `load_sae` takes, or a `LoadedSAE`. None and `auto` choose an SAE that was published
            for the base model.
        args: Settings. By default the reward model goes to a folder named after the base model.
        train_dataset: Preference pairs in any of TRL's formats. With several values in a column `objective`, or a
            mapping from objectives to datasets, a combined reward model is trained.
        eval_dataset: Preference pairs to evaluate on; a column `objective` says which objective a pair belongs to.
        processing_class: Tokenizer (copied, not changed); by default the base model's.
        revision: Revision of the base model on the Hub. The checkpoint always records the commit.

    Attributes:
        model: The reward model; None before `train`.
        base_model: The cut base model, with the adapter if one was trained.
        frozen: The reward model without the adapter; None if no adapter was trained.
        controls: The fitted controls.
        reference: Statistics of the training responses for `sparserm monitor`; None before `train`.
        evaluation: Margins of the reward model and its controls on each evaluated pair; None before `evaluate`.
        evaluated: The pairs of that evaluation.
        objectives: The training pairs of each objective; empty unless there are several.
        metrics: The metrics of training and evaluation.

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
        train_dataset: Dataset | Mapping[str, Dataset] | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        revision: str | None = None,
    ):
        self.args = args or SparseRMTrainingConfig(f"{Path(name_of(model)).name}-SparseRM")
        check_output_dir(Path(self.args.output_dir))
        rows = split_objectives(train_dataset, self.args)
        self.state = process_state()
        parts = load_parts(model, sae, self.args, processing_class, revision)
        self.encoder, self.processing_class = parts.encoder, parts.tokenizer
        given = tokenize_objectives(rows, self.encoder)
        self.train_pairs, self.objectives = join_pairs(list(given.values())), given if len(given) > 1 else {}
        held_out = None if eval_dataset is None else EvaluationPairs.of(eval_dataset, self.encoder, self.objectives)
        self._held_out, self.eval_pairs = held_out, held_out and held_out.pairs
        self.parts = self._frozen_parts = parts.cut(self.args, self.train_pairs.texts)
        self.sae, self.layer = self.parts.sae, self.parts.layer
        self.model: SparseRMForSequenceClassification | None = None
        self.frozen: SparseRMForSequenceClassification | None = None
        self.controls: list[Control] = []
        self.reference: DriftReference | None = None
        self.evaluation: Evaluation | None = None
        self.evaluated: TokenizedPreferences | None = None
        self.metrics: dict[str, float] = {}

    @property
    def base_model(self) -> PreTrainedModel:  # noqa: D102
        return self.parts.base_model

    def train(self) -> dict[str, float]:
        """Run the recipe: represent, select, project, fit, fit controls, adapt, assemble, measure reference, evaluate.

        Returns:
            Seconds of each stage, accuracy on the pairs held out while the head was fitted, and, with an evaluation
            set, the metrics of `evaluate`.

        Raises:
            SparseRMError: There are too few pairs, or too few latents fire.
        """
        args, pairs = self.args, self.train_pairs
        self.parts, self.frozen, self.metrics = self._frozen_parts, None, {}
        if self.objectives:
            joint = train_objectives(self.parts, self.objectives, pairs, self.represent, args, self.cache_dir)
            self.model, self.reference, self.metrics = joint.model, joint.reference, joint.metrics
        else:
            self._train()
        if self.eval_pairs is not None:
            self.evaluate()
        else:
            self.metrics |= compare_meanings(*self._trained(), self.sae, self.train_pairs)
        report_metrics(args.report_to, args.output_dir, asdict(args), self.metrics)
        return self.metrics

    def _train(self) -> None:
        args, started = self.args, time.perf_counter()
        styles = avoided_styles(self.train_pairs, self.processing_class, args.debias_names)
        pairs = PairIndices.of(self.train_pairs, styles)
        cached = self.represent(self.train_pairs.texts)
        texts = RepresentedTexts.of(cached, as_numpy(self.sae.autoencoder.W_dec))
        represented = time.perf_counter()
        selected = select(texts, pairs, args)
        projection = project(texts, selected, args)
        fitted = fit(selected, projection, pairs, args)
        self.controls = fit_controls(fitted, texts, self.train_pairs.lengths, pairs, args) if args.controls else []
        fit_seconds = time.perf_counter() - represented
        if args.adapter_rank:
            self.frozen = self.assemble(fitted, cached)
            fitted, cached = self.adapt(fitted, pairs)
        self.model = self.assemble(fitted, cached)
        self.reference = self.measure_reference(fitted, cached)
        trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        counted = training_metrics(self.train_pairs, self.parts, trainable, represented - started, fit_seconds)
        self.metrics = counted | validation_metrics(fitted.head) | self.metrics

    def adapt(self, fitted: FittedRewardHead, pairs: PairIndices) -> tuple[FittedRewardHead, Representations]:
        """Train an adapter with the fitted head, merge it into `base_model`, and represent the training texts anew."""
        started = time.perf_counter()
        adapted = adapt(self.parts, fitted, self.train_pairs, pairs, self.args, self.cache_dir)
        self.parts = replace(self.parts, base_model=adapted.base_model, adapter_rank=self.args.adapter_rank)
        cached = self.represent(self.train_pairs.texts)
        texts = RepresentedTexts.of(cached, as_numpy(self.sae.autoencoder.W_dec))
        fitted = carry_over(fitted, adapted.layers, texts, pairs, adapted.held_out)
        self.metrics |= {"trainable_parameters": adapted.parameters, "adapter_seconds": time.perf_counter() - started}
        return fitted, cached

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
        held_out = self._held_out
        if eval_dataset is not None:
            held_out = EvaluationPairs.of(eval_dataset, self.encoder, self.objectives)
        if held_out is None:
            raise SparseRMError("There are no pairs to evaluate on: pass eval_dataset.")
        pairs = self.evaluated = held_out.pairs
        trained, frozen = self._trained()
        self.evaluation = replace(trained.evaluate(self.controls, pairs, self.encoder, frozen), own=held_out.own)
        of_adapter = compare_meanings(trained, frozen, self.sae, self.train_pairs, pairs, self.evaluation.claims)
        metrics = self.evaluation.flat() | of_adapter
        self.metrics |= metrics
        return metrics

    def _trained(self) -> tuple[TrainedModel, TrainedModel | None]:
        assert self.model is not None
        trained, base = TrainedModel(self.model, self.base_model, self.represent), self._frozen_parts.base_model
        if self.frozen is None:
            return trained, None
        return trained, TrainedModel(self.frozen, base, partial(self.represent, base_model=base))

    def represent(self, texts: list[TokenizedText], base_model: PreTrainedModel | None = None) -> Representations:
        """Represent texts by a base model and the SAE; representations in the cache are loaded.

        Args:
            texts: The texts.
            base_model: The base model; by default `base_model`.
        """
        pooling = Pooling(self.args.pooling, self.args.representation_norm)
        sae = self.sae.autoencoder.to(self.state.device)
        return collect_representations(base_model or self.base_model, sae, texts, pooling, self.cache_dir)

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
        """Compute the statistics of the training responses with which `sparserm monitor` compares other responses."""
        features, twin = fitted.projection.features, None if self.frozen else find_twin(self.controls)
        of_twin = twin.rewards(texts, self.train_pairs.lengths, []) if twin else None
        return DriftReference.of(features, fitted.head.rewards(features), of_twin)

    def save_model(self, output_dir: str | None = None) -> None:
        """Write model, tokenizer, controls, evaluation and model card; a failure leaves the folder as it was before.

        Args:
            output_dir: Folder to write to. By default the folder of the settings; if the settings say `push_to_hub`,
                the model is then uploaded too.

        Raises:
            SparseRMError: Nothing is trained yet, the folder holds other files, or the upload failed.
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
        model = self.model.to_slim() if self.args.slim else self.model
        # With an adapter, all controls but length read the frozen base model, which the checkpoint does not hold.
        controls = [control for control in self.controls if not self.frozen or control.reads == "length"]
        facts = RunFacts.of(self.args, self.parts, self.objectives or {"": self.train_pairs}, self.evaluated)
        name = self.args.hub_model_id or folder.name
        if self.objectives:
            card = render_combined_card(name, model.config, self.evaluation, facts)
        else:
            card = render_model_card(name, model.config, facts, self.metrics, self.evaluation)
        return write_checkpoint(folder, model, self.processing_class, controls, self.reference, self.evaluation, card)

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
