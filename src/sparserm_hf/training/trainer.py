"""The method as one recipe: preference pairs, a base model and an SAE in, a reward model out."""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..base_models import (
    LogitLens,
    check_quantized,
    count_parameters,
    load_language_model,
    load_tokenizer,
    longest_text,
    move,
    prepare_base_model,
    saved_dtype,
    unpacked,
)
from ..conversations import (
    STYLES,
    ChatEncoder,
    TokenizedPreferences,
    TokenizedText,
    find_marks,
    measure_styles,
    prepare_tokenizer,
    style_differences,
    tokenize_preferences,
)
from ..evaluation import (
    CONTROLS_FILE,
    EVALUATION_FILE,
    REFERENCE_FILE,
    Control,
    DriftReference,
    Evaluation,
    evaluate_representations,
    find_twin,
    measure_attacks,
    reward_represented,
    save_controls,
    save_png,
)
from ..hub_cards.render import PLOT_FILE, render_model_card
from ..modeling.backbone_sparserm import cut_base_model
from ..modeling.configuration_sparserm import SparseRMConfig
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..representations import Pooling, Representations, collect_representations
from ..runtime import (
    SparseRMError,
    as_numpy,
    check_output_dir,
    check_slim,
    default_cache_dir,
    named_dtype,
    process_state,
    push_folder,
    replacing_folder,
    report_metrics,
    save_tokenizer,
)
from ..sae import LoadedSAE, check_before_training, chosen_sae, load_sae, matching_layer
from ..scoring import check_quantized_reload, check_reload
from .assembly import build_model
from .calibration import fit_temperature
from .config import SparseRMTrainingConfig
from .control_fitting import fit_controls
from .fitting import HeadFitter, check_k
from .head import FittedHead
from .latent_records import latent_fields, warn_of_purity
from .selection import Selection

logger = logging.getLogger(__name__)


class SparseRMTrainer:
    """Train a SparseRM reward model.

    Args:
        model: The base model: a Hub id, a folder, a GGUF file, or a transformers model (which is copied, not changed).
        sae: The SAE: anything `load_sae` takes, or a `LoadedSAE`. By default, or as `auto`, `default_sae` chooses.
        args: The settings; by default the model goes to a folder named after the base model.
        train_dataset: Preference pairs in any of TRL's formats.
        eval_dataset: Preference pairs to evaluate on.
        processing_class: The tokenizer (copied, not changed); by default the base model's.
        revision: Revision of the base model on the Hub; the commit is recorded whatever is given.

    Raises:
        SparseRMError: Something given is wrong. Nothing is written.
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
        self.base_name = model if isinstance(model, str) else model.config._name_or_path
        self.args = args or SparseRMTrainingConfig(f"{Path(self.base_name).name}-SparseRM")
        check_output_dir(Path(self.args.output_dir))
        if train_dataset is None:
            raise SparseRMError("train_dataset is missing: pass preference pairs, see load_preferences.")
        self.state = process_state()
        given = self.base_name
        self.base_name = unpacked(given)
        local = Path(self.base_name).exists()
        # Of a local base model only the name is recorded, unless the checkpoint has to load it from where it is.
        self.recorded_name = Path(given).name if local and not self.args.slim else self.base_name
        if self.args.slim:
            check_slim(given, isinstance(model, str), local and self.args.push_to_hub)
        dtype = named_dtype(self.args.dtype, self.state.device)
        how = (revision, self.args.quantization, dtype)
        base = load_language_model(self.base_name, *how) if isinstance(model, str) else copy.deepcopy(model)
        check_quantized(base, given, self.args.dtype, self.args.quantization)
        self.lens = LogitLens(base)
        text_config = base.config.get_text_config()
        self.base_revision = getattr(base.config, "_commit_hash", None)
        self.sae = sae if isinstance(sae, LoadedSAE) else load_sae(chosen_sae(sae, text_config, self.base_name))
        self.layer = matching_layer(self.sae, text_config, self.base_name, self.args.layer)
        check_k(self.args, self.sae.autoencoder.d_sae, self.sae.autoencoder.d_in)
        self.processing_class = prepare_tokenizer(
            copy.deepcopy(processing_class) or load_tokenizer(self.base_name, self.base_revision)
        )
        # Saved with the tokenizer: scoring truncates as training did.
        self.processing_class.model_max_length = longest_text(text_config, self.args.max_length)
        self.how = Pooling(self.args.pooling, self.args.representation_norm)
        self.encoder = self._encoder()
        self.train_pairs = self._tokenize(train_dataset, "training")
        self.eval_pairs = self._tokenize(eval_dataset, "evaluation") if eval_dataset is not None else None
        self.saved_dtype = saved_dtype(base, dtype)
        self.base_model = self._prepare_base(base, dtype)
        self.model: SparseRMForSequenceClassification | None = None
        self.controls: list[Control] = []
        self.reference: DriftReference | None = None
        self.evaluation: Evaluation | None = None
        self.metrics: dict[str, float] = {}

    def _prepare_base(self, base: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
        """Cut the base model, move it to its device and type, and check on the way that the SAE fits."""
        depth = base.config.get_text_config().num_hidden_layers
        layer = min(self.layer + 1, depth) if self.args.check_sae else self.layer  # the SAE may belong to the next
        base = prepare_base_model(base, layer, self.state.device, dtype)
        if not self.args.slim and self.state.is_main_process:
            check_quantized_reload(base, Path(self.args.output_dir))
        if self.args.check_sae:
            self.sae.autoencoder.to(self.state.device)
            bos = self.processing_class.bos_token_id
            texts = [list(text.ids) for text in self.train_pairs.texts]
            verdict = check_before_training(base, self.sae, self.layer, texts, bos, self.base_name)
            if self.state.is_main_process:
                logger.info(verdict.sentence)
        return cut_base_model(base, self.layer)

    def _encoder(self) -> ChatEncoder:
        tokenizer = self.processing_class
        marks = find_marks(tokenizer)
        if self.args.pooling == "response_mean" and not marks["assistant_header"]:
            raise SparseRMError(
                "The chat template puts no tokens of its own before an answer, so that the response cannot be told "
                "from the prompt: use --pooling mean or last."
            )
        return ChatEncoder(tokenizer, marks, max_length=tokenizer.model_max_length)

    def _tokenize(self, dataset: Dataset, what: str) -> TokenizedPreferences:
        pairs = tokenize_preferences(dataset, self.encoder)
        if self.state.is_main_process:
            logger.info("%s data: %s", what.capitalize(), pairs.summary())
        return pairs

    def train(self) -> dict[str, float]:
        """Run the recipe; `self.model` is the reward model from then on.

        Returns:
            Seconds of each stage, accuracy on the pairs that were held out while the head was fitted, and, with an
            evaluation set, the metrics of `evaluate`.

        Raises:
            SparseRMError: Too few pairs or live latents.
        """
        started = time.perf_counter()
        if len(self.train_pairs) < 2:
            raise SparseRMError("One usable pair is not enough to tell directions from chance: at least 2 are needed.")
        fitter = self.fitter
        represented = time.perf_counter()
        head = fitter.fit(fitter.read_selected)
        self.model = self.assemble(fitter.select(), head)
        self.controls = fit_controls(fitter) if self.args.controls else []
        self.reference = self.refer(head)
        fitted = time.perf_counter()
        self.metrics = {
            "train_pairs": len(self.train_pairs),
            "trainable_parameters": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            "base_parameters": count_parameters(self.base_model.config),
            "representation_seconds": represented - started,
            "fit_seconds": fitted - represented,
        }
        if head.validation_accuracy is not None:
            self.metrics["validation_accuracy"] = head.validation_accuracy
        if self.eval_pairs is not None:
            self.metrics |= self.evaluate()
        report_metrics(self.args.report_to, self.args.output_dir, asdict(self.args), self.metrics)
        return self.metrics

    def evaluate(self, eval_dataset: Dataset | None = None) -> dict[str, float]:
        """Evaluate the trained model and its controls; `self.evaluation` then holds the margin of every pair.

        Args:
            eval_dataset: Preference pairs; by default the evaluation set given before.

        Returns:
            `eval_accuracy`, its 95% interval and mean margin, and the same for each control.

        Raises:
            SparseRMError: Nothing is trained yet, or there are no pairs.
        """
        if self.model is None:
            raise SparseRMError("There is no model to evaluate yet: call train() first.")
        pairs = self._tokenize(eval_dataset, "evaluation") if eval_dataset is not None else self.eval_pairs
        if pairs is None:
            raise SparseRMError("There is nothing to evaluate on: pass eval_dataset.")
        model, latents = self.model, self.model.config.latents
        styles = measure_styles(pairs, self.processing_class)
        represented = self.represent(pairs.texts)
        evaluation = evaluate_representations(model, self.controls, represented, pairs, styles, latents)

        def reward(texts: list[TokenizedText]) -> np.ndarray:
            return reward_represented(model, self.represent(texts))

        self.evaluation = replace(evaluation, attacks=tuple(measure_attacks(pairs, self.encoder, reward)))
        return self.evaluation.flat()

    def represent(self, texts: list[TokenizedText]) -> Representations:
        """Representations of some texts, from the cache where they are there."""
        sae = self.sae.autoencoder.to(self.state.device)
        return collect_representations(self.base_model, sae, texts, self.how, self.cache_dir)

    @property
    def cache_dir(self) -> Path:
        """Where representations and the descriptions of latents are kept."""
        return Path(self.args.cache_dir) if self.args.cache_dir else default_cache_dir()

    @cached_property
    def train_representations(self) -> Representations:
        """Representations of the training texts."""
        return self.represent(self.train_pairs.texts)

    @cached_property
    def fitter(self) -> HeadFitter:
        """What selects latents and fits heads on the training pairs."""
        args, pairs = self.args, self.train_pairs
        differences = None
        if args.debias_names:
            styles = measure_styles(pairs, self.processing_class)
            avoided = {style: styles[style] for name in args.debias_names for style in STYLES[name]}
            differences = style_differences(avoided)
            for style, column in zip(avoided, differences.T, strict=True):
                if self.state.is_main_process and not column.std() > 0:
                    logger.info("No reward can follow the number of %s: it does not differ within pairs.", style)
        decoder = as_numpy(self.sae.autoencoder.W_dec)  # (d_sae, d_model)
        return HeadFitter(args, pairs, self.train_representations, decoder, differences)

    def assemble(self, selection: Selection, head: FittedHead) -> SparseRMForSequenceClassification:
        """Put base model, SAE and fitted head together."""
        args, sae = self.args, self.sae.autoencoder
        directions = self.fitter.directions(selection)
        if self.state.is_main_process:
            warn_of_purity(selection.latents, directions.purities)
        tokenizer, site = self.processing_class, self.sae.source.get("neuronpedia_id")
        facts = latent_fields(self.fitter, selection, directions, self.lens, tokenizer, site, self.cache_dir)
        config = SparseRMConfig(
            base_config=self.base_model.config,
            base_model_name_or_path=self.recorded_name,
            base_model_revision=self.base_revision,
            layer=self.layer,
            pooling=args.pooling,
            response_marks=self.encoder.marks,
            representation_norm=args.representation_norm,
            directions=args.directions,
            k_accuracies={str(k): round(accuracy, 6) for k, accuracy in self.fitter.k_accuracies.items()},
            head_type=args.head_type,
            head_hidden_size=args.head_hidden_size,
            sae=sae.spec(),
            sae_source=self.sae.source,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            run_dtype=str(self.base_model.dtype).removeprefix("torch."),
            **facts,
        )
        config._name_or_path = args.output_dir  # trainers load the tokenizer from it
        features = self.fitter.project(directions.rows)
        rewards = head.rewards(features)
        config.reward_mean, config.reward_std = float(rewards.mean()), float(rewards.std())
        if head.held_out_margins is not None:
            config.reward_temperature = fit_temperature(head.held_out_margins)
        parts = (sae, directions.rows, head, features.mean(0), features[rewards.argmin()])
        return move(build_model(config, self.base_model, self.saved_dtype, *parts), self.state.device)

    def refer(self, head: FittedHead) -> DriftReference:
        """What the training responses were like, for `sparserm monitor` to hold others against."""
        fitter = self.fitter
        features, lengths = fitter.read_selected(np.arange(len(fitter.pairs))), self.train_pairs.lengths
        twin = find_twin(self.controls)
        of_twin = twin.rewards(fitter.texts, lengths, []) if twin else None
        return DriftReference.of(features, head.rewards(features), of_twin)

    def save_model(self, output_dir: str | None = None) -> None:
        """Write model, tokenizer, controls and model card; a failure leaves what was there before.

        Without `output_dir` to the folder of the settings, and to the Hub where these say so.
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
            name, settings = self.args.hub_model_id or folder.name, asdict(self.args)
            card = render_model_card(name, model.config, settings, self.metrics, self.evaluation)
            (temporary / "README.md").write_text(card)
            check_reload(temporary, model, self.processing_class)
            return [file.relative_to(temporary).as_posix() for file in temporary.rglob("*") if file.is_file()]

    def push_to_hub(self, commit_message: str = "Add SparseRM reward model", **kwargs: Any) -> str:
        """Save the model and upload it, tokenizer and card included; see `push_folder`.

        Args:
            commit_message: Of the commit on the Hub.
            kwargs: Passed to `HfApi.upload_folder`.

        Returns:
            The address of the commit; empty in all processes but the main one.
        """
        folder, private = Path(self.args.output_dir), self.args.hub_private_repo
        files = self._write(folder)
        self.state.wait_for_everyone()
        if not self.state.is_main_process:
            return ""
        return push_folder(folder, files, self.args.hub_model_id, private, commit_message=commit_message, **kwargs)
