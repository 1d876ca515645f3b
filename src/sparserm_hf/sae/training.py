"""Train a sparse autoencoder on a base model's residual stream, with sae-lens."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..modeling.autoencoder_sparserm import SparseAutoencoder
from ..modeling.backbone_sparserm import residual_stream
from ..representations import pad_texts, plan_batches
from .formats import load_sae


@dataclass(frozen=True)
class SAETrainingConfig:
    """How an SAE is trained. The defaults are those of the SAE that the package ships."""

    d_sae: int = 4608
    k: int = 32
    total_tokens: int = 2_500_000
    batch_tokens: int = 2048  # SAE inputs per optimiser step
    learning_rate: float = 8e-4
    buffer_tokens: int = 150_000  # held in memory and shuffled, so that one step sees many texts
    sink_ratio: float = 3.0  # tokens above this many times the median norm are attention sinks
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.k <= self.d_sae:
            raise ValueError(f"k is {self.k}, but must be between 1 and d_sae = {self.d_sae}.")
        if self.total_tokens < self.batch_tokens:
            raise ValueError(
                f"total_tokens is {self.total_tokens}, less than one batch of {self.batch_tokens} tokens."
            )


def residual_tokens(
    base_model: PreTrainedModel, texts: list[list[int]], sink_ratio: float, seed: int, max_tokens: int = 2048
) -> Iterator[torch.Tensor]:
    """Endless stream of (N, d_model) residual-stream tokens, each divided by its root mean square.

    Left out, because they would be nearly all of the variance: each text's first token, and every token whose norm is
    more than `sink_ratio` times the batch's median.
    """
    batches = plan_batches([len(text) for text in texts], max_tokens)
    for epoch in itertools.count():
        generator = torch.Generator().manual_seed(seed + epoch)
        for number in torch.randperm(len(batches), generator=generator).tolist():
            ids, mask = pad_texts([texts[i] for i in batches[number]], base_model.device)
            with torch.no_grad():
                hidden = residual_stream(base_model, ids, mask).float()
            mask[:, 0] = 0
            tokens = hidden[mask.bool()]  # (N, d_model)
            rms = tokens.pow(2).mean(-1, keepdim=True).sqrt()
            yield (tokens / rms)[(rms < sink_ratio * rms.median()).squeeze(-1)]


def train_sae(
    base_model: PreTrainedModel,
    texts: list[list[int]],
    output_dir: Path,
    config: SAETrainingConfig,
    metadata: dict[str, object],
) -> dict[str, float]:
    """Train a BatchTopK SAE on the output of a cut base model and save it in sae-lens' own format.

    sae-lens saves it as a JumpReLU SAE with one threshold a latent, so each latent can be computed alone.

    Args:
        base_model: A base model that `modeling.backbone_sparserm.cut_base_model` has cut.
        texts: Token ids of the texts to train on, repeated as often as `total_tokens` asks for.
        output_dir: Where `cfg.json` and `sae_weights.safetensors` (bfloat16) go.
        config: The training settings.
        metadata: Written into `cfg.json`: at least `model_name` and `hook_name`.

    Returns:
        What `measure_sae` says of the saved SAE on tokens drawn after those that it was trained on.
    """
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.mixing_buffer import mixing_buffer
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(config.seed)
    stream = residual_tokens(base_model, texts, config.sink_ratio, config.seed)
    batches = mixing_buffer(config.buffer_tokens, config.batch_tokens, stream)
    first = next(batches)
    sae = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(
            d_in=first.shape[1],
            d_sae=config.d_sae,
            k=config.k,
            device=str(first.device),
            metadata=SAEMetadata(**metadata),
        )
    )
    sae.b_dec.data.copy_(first.mean(0))
    steps = config.total_tokens // config.batch_tokens
    trainer_config = SAETrainerConfig(
        total_training_samples=steps * config.batch_tokens,
        train_batch_size_samples=config.batch_tokens,
        lr=config.learning_rate,
        lr_end=config.learning_rate / 10,
        lr_warm_up_steps=steps // 20,
        lr_decay_steps=steps // 3,
        device=str(first.device),
        autocast=True,
        dead_feature_window=max(100, steps // 8),
        logger=LoggingConfig(log_to_wandb=False),
    )
    SAETrainer(trainer_config, sae, batches).fit()
    sae.to(dtype=torch.bfloat16)
    sae.save_inference_model(output_dir)
    cfg_path = output_dir / "cfg.json"
    cfg = json.loads(cfg_path.read_text())
    # Trained on tokens that were normalised beforehand; from here on the SAE does it itself.
    cfg |= {"normalize_activations": "constant_norm_rescale", "dtype": "bfloat16", "device": "cpu"}
    cfg_path.write_text(json.dumps(cfg))
    quality = measure_sae(load_sae(str(output_dir)).autoencoder, torch.cat([next(stream) for _ in range(10)]).cpu())
    cfg["metadata"] |= {**metadata, **quality, "tokens_trained_on": steps * config.batch_tokens}
    cfg_path.write_text(json.dumps(cfg, indent=2, sort_keys=True) + "\n")
    return quality


@torch.no_grad()
def measure_sae(sae: SparseAutoencoder, tokens: torch.Tensor) -> dict[str, float]:
    """Measure an SAE on (N, d_model) residual-stream tokens that it was not trained on.

    Returns:
        `l0`, the mean number of latents active on a token; `fraction_of_variance_unexplained` by the reconstruction;
        `dead_share`, the share of latents that fire on none of the tokens.
    """
    tokens = tokens.float()
    latents = sae.encode(tokens)
    residual = tokens - sae(tokens)
    return {
        "l0": (latents > 0).float().sum(-1).mean().item(),
        "fraction_of_variance_unexplained": (residual.pow(2).sum() / (tokens - tokens.mean(0)).pow(2).sum()).item(),
        "dead_share": (latents == 0).all(0).float().mean().item(),
    }
