"""Train an SAE on residual-stream tokens, measure it on held-out texts, and save it."""

from __future__ import annotations

import hashlib
import shutil
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ...base_models import fingerprint_module
from ...runtime import SparseRMError, replacing_folder
from ..fit import MIN_TOKENS, Fit, measure_fit
from ..loading.loaded_sae import load_sae
from .resuming import CHECKPOINT, resume, save_checkpoint
from .sae_config import SAETrainingConfig
from .sae_lens_trainer import new_trainer
from .saving import edit_config, save_sae
from .training_tokens import ResidualTokens, TokenSource, shuffled_tokens

if TYPE_CHECKING:
    from sae_lens import SAETrainer

HELD_OUT_TOKENS = 40_000


def _show(bar: tqdm, trainer: SAETrainer, output: Any) -> None:
    """Show explained variance, L0 and the share of dead latents beside the progress bar."""
    with torch.no_grad():
        inputs, latents = output.sae_in.float(), output.feature_acts
        unexplained = (inputs - output.sae_out).pow(2).sum() / (inputs - inputs.mean(0)).pow(2).sum()
        active = (latents > 0).float().sum(-1).mean()
        dead = trainer.dead_neurons.float().mean()
    bar.set_postfix_str(f"explained variance {1 - unexplained:.3f}, L0 {active:.1f}, dead {100 * dead:.1f}%")


def train_on_tokens(
    source: TokenSource,
    config: SAETrainingConfig,
    checkpoint: Path | None = None,
    run: Mapping[str, Any] | None = None,
) -> Any:
    """Train an SAE on tokens of norm sqrt(d_model).

    Args:
        source: Source of the tokens.
        config: Training settings.
        checkpoint: Folder of the checkpoints. A killed run resumes from it and ends with the same weights, bit by bit.
        run: Facts that identify the run besides the settings. A checkpoint with other facts is refused.

    Returns:
        The SAE in sae-lens' training form.

    Raises:
        SparseRMError: The checkpoint belongs to another run, or is broken.
    """
    first = source(0)
    trainer = new_trainer(config, first.shape[1], first.device)
    trainer.sae.b_dec.data.copy_(first.mean(0))
    run = {**asdict(config), **(run or {}), "step of the base model": len(first)}
    del run["checkpoint_seconds"]  # it makes no difference to the SAE
    position = resume(trainer, checkpoint, run) if checkpoint else 0
    saved = time.monotonic()
    total, done = config.steps * config.step_tokens, trainer.n_training_samples
    with tqdm(total=total, initial=done, desc="Training the SAE", unit="token", unit_scale=True) as bar:
        while trainer.n_training_steps < config.steps:
            left = config.steps - trainer.n_training_steps
            needed = min(config.buffer_tokens, left * config.step_tokens)
            tokens, position = shuffled_tokens(source, position, needed, config.step_tokens, config.seed)
            for batch in tokens.split(config.step_tokens)[:left]:
                _step(trainer, batch, bar)
            finished = trainer.n_training_steps == config.steps  # a failure after this checkpoint costs no training
            if checkpoint and (finished or time.monotonic() - saved >= config.checkpoint_seconds):
                save_checkpoint(trainer, checkpoint, position, run)
                saved = time.monotonic()
    if config.architecture == "batchtopk":
        _set_threshold(trainer.sae, source, position, config)
    trainer.set_final_sae_metadata()
    return trainer.sae


def _step(trainer: SAETrainer, batch: torch.Tensor, bar: tqdm) -> None:
    trainer.maybe_reset_sparsity()
    output = trainer.step(batch)
    trainer.n_training_steps += 1
    bar.update(len(batch))
    if trainer.n_training_steps % 10 == 0:
        _show(bar, trainer, output)


@torch.no_grad()
def _set_threshold(sae: Any, source: TokenSource, position: int, config: SAETrainingConfig) -> None:
    """Give a BatchTopK SAE the mean threshold of eight more batches, computed with the final weights.

    The running mean of sae-lens starts at zero: after 100 steps it would let 3 k latents fire.
    """
    tokens, _ = shuffled_tokens(source, position, 8 * config.step_tokens, config.step_tokens, config.seed)
    thresholds = []
    for batch in tokens.split(config.step_tokens):
        sae.encode(batch)
        thresholds.append(sae.activation_fn.threshold)
    sae.topk_threshold.fill_(sum(thresholds) / len(thresholds))


def _fingerprint(texts: Sequence[Sequence[int]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        digest.update(array("i", [len(text), *text]).tobytes())
    return digest.hexdigest()


def _held_out_every(texts: Sequence[Sequence[int]]) -> int:
    """Compute n, where every n-th text is held out: 20, less for few texts, more if 40,000 tokens would be exceeded.

    Raises:
        SparseRMError: There is too little text.
    """
    total = sum(map(len, texts))
    every = min(max(2, min(20, total // (4 * MIN_TOKENS)), total // HELD_OUT_TOKENS), len(texts))
    if every < 2 or sum(len(text) - 1 for text in texts[every - 1 :: every]) < MIN_TOKENS:
        raise SparseRMError(
            f"{len(texts)} texts with {total} tokens are not enough to train and measure an SAE: give more."
        )
    return every


def train_and_save(
    base_model: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    output_dir: Path,
    config: SAETrainingConfig,
    metadata: Mapping[str, Any],
) -> Fit:
    """Train an SAE on the output of a cut base model and save it in sae-lens' own format.

    Args:
        base_model: Base model that `modeling.backbone_sparserm.cut_base_model` has cut.
        texts: Token ids of each text. Some texts are held out, the others are repeated up to `total_tokens`.
        output_dir: Folder for `cfg.json` and `sae_weights.safetensors`; until they are written, for checkpoints.
        config: Training settings.
        metadata: Facts for `cfg.json`, at least `model_name` and `hook_name`.

    Returns:
        Fit of the saved SAE to the held-out texts.

    Raises:
        SparseRMError: There is too little text, the residual stream is not finite, or there is a checkpoint of another
            run.
    """
    every = _held_out_every(texts)
    (output_dir / CHECKPOINT).mkdir(parents=True, exist_ok=True)  # fails now, not after the training
    training_texts = [text for i, text in enumerate(texts) if (i + 1) % every]
    source = ResidualTokens(base_model, training_texts, config.sink_ratio, config.seed)
    held_out = ResidualTokens(base_model, texts[every - 1 :: every], config.sink_ratio)
    run = {"base model": fingerprint_module(base_model), "set of texts": _fingerprint(texts)}
    sae = train_on_tokens(source, config, output_dir / CHECKPOINT, {**metadata, **run})
    with replacing_folder(output_dir) as temporary:
        save_sae(sae, temporary, metadata)
        saved = load_sae(str(temporary)).autoencoder.to(base_model.device)
        fit = measure_fit(saved, torch.cat([held_out(i) for i in range(len(held_out))]))
        measured = {name: getattr(fit, name) for name in ("explained_variance", "l0", "dead_share")}
        edit_config(temporary, {**measured, "tokens_trained_on": config.steps * config.step_tokens})
    shutil.rmtree(output_dir / CHECKPOINT, ignore_errors=True)
    return fit
