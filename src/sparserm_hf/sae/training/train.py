"""Train a sparse autoencoder on a base model's residual stream, with sae-lens."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ...base_models import fingerprint_module
from ...runtime import SparseRMError, preferred_dtype, reason, replacing_folder
from ..fit import MIN_TOKENS, Fit, measure_fit
from ..loading.loaded_sae import CONFIG_FILE, WEIGHTS_FILE, load_sae
from ..tokens import ResidualTokens, TokenReader, shuffled_tokens
from .sae_config import SAETrainingConfig

if TYPE_CHECKING:
    from sae_lens.training.sae_trainer import SAETrainer

logger = logging.getLogger(__name__)

CHECKPOINT, PROGRESS_FILE = "checkpoint", "progress.json"
HELD_OUT_TOKENS = 40_000


class BatchTopK(nn.Module):
    """Keep the k * B largest of (B, d_sae) activations and zero the rest, as sae-lens' module of this name does.

    That one sorts all of them, which on a CPU takes a quarter of a training step. This one sorts only those above nine
    tenths of the last step's threshold, unless they are too few.
    """

    def __init__(self, k: int):
        super().__init__()
        self.k, self.threshold = k, 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, d_sae) activations to those kept; of several at the threshold, all are."""
        count = self.k * len(x)
        with torch.no_grad():
            largest = x[x > 0.9 * self.threshold]
            if len(largest) < count:
                largest = x.flatten()
            threshold = largest.topk(count, sorted=False).values.min().clamp(min=torch.finfo(x.dtype).tiny)
            self.threshold = threshold.item()
        return torch.where(x >= threshold, x, 0.0)


def _new_trainer(config: SAETrainingConfig, d_in: int, device: torch.device) -> SAETrainer:
    """An untrained SAE in sae-lens' trainer, which is fed by hand, step by step."""
    import sae_lens
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(config.seed)
    d_sae = 8 * d_in if config.d_sae is None else config.d_sae
    if config.k > d_sae:
        raise SparseRMError(f"k is {config.k}, but must be between 1 and the number of latents, {d_sae}.")
    shape: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae, "device": str(device)}
    sae: Any
    if config.architecture == "batchtopk":
        sae = sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(k=config.k, **shape))
        sae.activation_fn = BatchTopK(config.k)
    elif config.architecture == "topk":
        sae = sae_lens.TopKTrainingSAE(sae_lens.TopKTrainingSAEConfig(k=config.k, **shape))
    else:
        settings = sae_lens.JumpReLUTrainingSAEConfig(
            jumprelu_sparsity_loss_mode="quadratic",  # around a number of active latents, as in Gemma Scope 2
            target_l0=config.k,
            l0_warm_up_steps=config.steps // 10,
            jumprelu_init_threshold=0.3,  # from sae-lens' 0.01 the thresholds do not get far in a short run
            jumprelu_bandwidth=0.3,
            **shape,
        )
        sae = sae_lens.JumpReLUTrainingSAE(settings)
    trainer_config = SAETrainerConfig(
        total_training_samples=config.steps * config.step_tokens,
        train_batch_size_samples=config.step_tokens,
        lr=config.learning_rate,
        lr_end=config.learning_rate / 10,
        lr_warm_up_steps=config.steps // 20,
        lr_decay_steps=config.steps // 3,
        device=str(device),
        autocast=preferred_dtype(device) == torch.bfloat16,
        dead_feature_window=max(100, config.steps // 8),
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(trainer_config, sae, iter(()))


def _save_checkpoint(trainer: SAETrainer, folder: Path, progress: Mapping[str, Any]) -> None:
    """Write a checkpoint under a new name, then remove the one before: a kill leaves one of them whole."""
    newest = folder / str(trainer.n_training_steps)
    with replacing_folder(newest) as temporary:
        trainer.save_checkpoint(".", temporary)
        (temporary / PROGRESS_FILE).write_text(json.dumps(progress))
    for other in folder.iterdir():
        if other != newest:
            shutil.rmtree(other)


def _resume(trainer: SAETrainer, folder: Path, run: Mapping[str, Any]) -> int:
    """Bring a trainer to the state that its newest checkpoint holds, if any; returns the position to read from.

    Raises:
        SparseRMError: The checkpoint is of another run, or broken.
    """
    checkpoints = [path for path in folder.glob("*") if path.name.isdigit()]
    if not checkpoints:
        return 0
    newest = max(checkpoints, key=lambda path: int(path.name))
    try:
        progress = json.loads((newest / PROGRESS_FILE).read_text())
        other = sorted(key for key in {*run, *progress["run"]} if run.get(key) != progress["run"].get(key))
        if other:
            raise SparseRMError(
                f"{folder} holds a run with another {other[0]} ({progress['run'].get(other[0])}, not "
                f"{run.get(other[0])}): remove that folder, or name another output folder."
            )
        trainer.sae.load_weights_from_checkpoint(newest)
        trainer.load_trainer_state(newest)
    except SparseRMError:
        raise
    except Exception as error:  # torch's and safetensors' readers raise a dozen kinds
        raise SparseRMError(f"The checkpoint {newest} is broken: remove that folder. ({reason(error)})") from error
    logger.info("Going on after %s of %s steps.", trainer.n_training_steps, trainer.cfg.total_training_steps)
    return int(progress["position"])


def _show(bar: tqdm, trainer: SAETrainer, output: Any) -> None:
    """Put explained variance, active latents a token and the share of dead latents beside the progress bar."""
    with torch.no_grad():
        inputs, latents = output.sae_in.float(), output.feature_acts
        unexplained = (inputs - output.sae_out).pow(2).sum() / (inputs - inputs.mean(0)).pow(2).sum()
        active = (latents > 0).float().sum(-1).mean()
        dead = trainer.dead_neurons.float().mean()
    bar.set_postfix_str(f"explained variance {1 - unexplained:.3f}, L0 {active:.1f}, dead {100 * dead:.1f}%")


def fit_sae(
    read: TokenReader, config: SAETrainingConfig, checkpoint: Path | None = None, run: Mapping[str, Any] | None = None
) -> Any:
    """Train an SAE on tokens of norm sqrt(d_model).

    Args:
        read: The tokens.
        config: The settings.
        checkpoint: Folder that the state is kept in; a killed run goes on from there and ends with the same bits.
        run: What the state belongs to besides the settings.

    Returns:
        The SAE in sae-lens' training form.

    Raises:
        SparseRMError: The checkpoint is of another run, or broken.
    """
    first = read(0)
    trainer = _new_trainer(config, first.shape[1], first.device)
    trainer.sae.b_dec.data.copy_(first.mean(0))
    run = {**asdict(config), **(run or {}), "step of the base model": len(first)}
    del run["checkpoint_seconds"]  # which makes no difference to the SAE
    position = _resume(trainer, checkpoint, run) if checkpoint else 0
    saved = time.monotonic()
    total, done = config.steps * config.step_tokens, trainer.n_training_samples
    with tqdm(total=total, initial=done, desc="Training the SAE", unit="token", unit_scale=True) as bar:
        while trainer.n_training_steps < config.steps:
            left = config.steps - trainer.n_training_steps
            needed = min(config.buffer_tokens, left * config.step_tokens)
            tokens, position = shuffled_tokens(read, position, needed, config.step_tokens, config.seed)
            for batch in tokens.split(config.step_tokens)[:left]:
                trainer.maybe_reset_sparsity()
                output = trainer.step(batch)
                trainer.n_training_steps += 1
                bar.update(len(batch))
                if trainer.n_training_steps % 10 == 0:
                    _show(bar, trainer, output)
            finished = trainer.n_training_steps == config.steps  # what may still fail then costs no training
            if checkpoint and (finished or time.monotonic() - saved >= config.checkpoint_seconds):
                _save_checkpoint(trainer, checkpoint, {"position": position, "run": run})
                saved = time.monotonic()
    if config.architecture == "batchtopk":
        _set_threshold(trainer.sae, read, position, config)
    trainer.set_final_sae_metadata()
    return trainer.sae


@torch.no_grad()
def _set_threshold(sae: Any, read: TokenReader, position: int, config: SAETrainingConfig) -> None:
    """Give a BatchTopK SAE the mean threshold of some further batches, with the final weights.

    sae-lens' own is a running mean that starts at zero: after 100 steps, three times as many latents as k would fire.
    """
    tokens, _ = shuffled_tokens(read, position, 8 * config.step_tokens, config.step_tokens, config.seed)
    thresholds = []
    for batch in tokens.split(config.step_tokens):
        sae.encode(batch)
        thresholds.append(sae.activation_fn.threshold)
    sae.topk_threshold.fill_(sum(thresholds) / len(thresholds))


def save_sae(sae: Any, folder: Path, metadata: Mapping[str, Any]) -> None:
    """Save a trained SAE in sae-lens' own format: matrices in bfloat16, biases and thresholds in float32.

    Args:
        sae: What `fit_sae` returned.
        folder: It is made.
        metadata: Added to sae-lens' own.
    """
    sae.save_inference_model(folder)
    weights = load_file(folder / WEIGHTS_FILE)
    weights |= {name: weights[name].bfloat16() for name in ("W_enc", "W_dec")}
    save_file(weights, folder / WEIGHTS_FILE)
    # Trained on tokens that were normalised beforehand; from here on the SAE does it itself.
    edit_config(folder, metadata, normalize_activations="constant_norm_rescale", device="cpu")


def edit_config(folder: Path, metadata: Mapping[str, Any], **settings: str) -> None:
    """Write what is known of an SAE into the metadata of its configuration, and change some of its settings."""
    config = json.loads((folder / CONFIG_FILE).read_text()) | settings
    config["metadata"] |= {key: value for key, value in metadata.items() if value is not None}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _fingerprint(texts: Sequence[Sequence[int]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        digest.update(array("i", [len(text), *text]).tobytes())
    return digest.hexdigest()


def fit_and_save(
    base_model: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    output_dir: Path,
    config: SAETrainingConfig,
    metadata: Mapping[str, Any],
) -> Fit:
    """Train an SAE on the output of a cut base model and save it in sae-lens' own format.

    Every twentieth text is held out for the measurement: more of few texts, fewer where that is over 40,000 tokens.

    Args:
        base_model: A base model that `modeling.backbone_sparserm.cut_base_model` has cut.
        texts: Token ids of the texts to train on, repeated as often as `total_tokens` asks for.
        output_dir: Where `cfg.json` and `sae_weights.safetensors` go, and a checkpoint until they are there.
        config: The training settings.
        metadata: Written into `cfg.json`: at least `model_name` and `hook_name`.

    Returns:
        What `measure_fit` says of the saved SAE on the texts held out.

    Raises:
        SparseRMError: Too little text, a base model that gives no numbers, or a checkpoint of another run.
    """
    total = sum(map(len, texts))
    every = min(max(2, min(20, total // (4 * MIN_TOKENS)), total // HELD_OUT_TOKENS), len(texts))
    kept_out = texts[every - 1 :: every]
    if sum(len(text) - 1 for text in kept_out) < MIN_TOKENS or every < 2:
        raise SparseRMError(
            f"{len(texts)} texts with {total} tokens are not enough to train and measure an SAE: give more."
        )
    (output_dir / CHECKPOINT).mkdir(parents=True, exist_ok=True)  # so that it is known now if that is not possible
    read = ResidualTokens(
        base_model, [text for i, text in enumerate(texts) if (i + 1) % every], config.sink_ratio, config.seed
    )
    held_out = ResidualTokens(base_model, kept_out, config.sink_ratio)
    run = {"base model": fingerprint_module(base_model), "set of texts": _fingerprint(texts)}
    sae = fit_sae(read, config, output_dir / CHECKPOINT, {**metadata, **run})
    with replacing_folder(output_dir) as temporary:
        save_sae(sae, temporary, metadata)
        saved = load_sae(str(temporary)).autoencoder.to(base_model.device)
        fit = measure_fit(saved, torch.cat([held_out(i) for i in range(len(held_out))]))
        measured = {name: getattr(fit, name) for name in ("explained_variance", "l0", "dead_share")}
        edit_config(temporary, {**measured, "tokens_trained_on": config.steps * config.step_tokens})
    shutil.rmtree(output_dir / CHECKPOINT, ignore_errors=True)
    return fit
