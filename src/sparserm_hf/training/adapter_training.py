"""Train a LoRA adapter in front of the SAE together with the reward head, with transformers' Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ..conversations import TokenizedPreferences
from ..evaluation import Layers, pair_accuracy
from ..modeling.autoencoder_sparserm import SparseAutoencoder
from ..modeling.pooling_sparserm import pool_representations
from ..representations import Pooling, Representer
from ..runtime import as_numpy, batch_tokens, last_whole_checkpoint, plan_batches, process_state, use_one_gpu

LEARNING_RATE = 1e-3  # of AdamW, decaying to zero
BATCH_SIZE = 8  # pairs
EPOCHS = 2
PENALTY = 0.1  # weight of `PairRewards.unexplained` in the loss
EVALUATIONS = 4  # evaluations in each epoch; a killed run loses at most the steps since the last evaluation
MEASURED_BATCHES = 4  # batches of held-out pairs on which `usual` is measured
MEASURED_TOKENS = 1024  # tokens of a batch that the SAE encodes, because its activations are the largest tensor


class PairRewards(nn.Module):
    """Compute the reward differences of preference pairs, with gradients for an adapter and a reward head.

    The state dict holds the trained weights only: the frozen base model and the SAE are not registered as submodules.

    Args:
        base_model: Cut base model with a trainable adapter.
        how: Pooling of a text.
        sae: SAE of the layer that the base model is cut after, on the same device.
        directions: (K, d_model) directions to project on.
        layers: (weight, bias) of each affine layer of the head, see `apply_layers`.
        pairs: Preference pairs.
    """

    directions: torch.Tensor

    def __init__(
        self,
        base_model: PreTrainedModel,
        how: Pooling,
        sae: SparseAutoencoder,
        directions: np.ndarray,
        layers: Layers,
        pairs: TokenizedPreferences,
    ):
        super().__init__()
        self.frozen = (base_model, sae)  # in a tuple, so that torch does not register the modules
        self.how, self.pairs, device = how, pairs, base_model.device
        self.adapter = nn.ParameterList(x for x in base_model.parameters() if x.requires_grad)
        self.head = nn.ParameterList(
            torch.from_numpy(tensor).float().to(device) for layer in layers for tensor in layer
        )
        self.usual = 1.0  # share of a token's squared norm that the SAE leaves unexplained without the adapter
        self.register_buffer("directions", torch.from_numpy(directions).float().to(device), persistent=False)

    def rewards(self, numbers: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the (n,) rewards of the texts with the given indices, and `unexplained` of their pooled tokens."""
        base_model, _ = self.frozen
        texts = Representer(base_model, None, [self.pairs.texts[i] for i in numbers], self.how)
        families, device, dtype = texts.families(), base_model.device, base_model.dtype
        order: list[int] = []
        vectors, tokens = [], []
        # Families of similar length run together, which saves padding and quadratic attention over the padding.
        for some in plan_batches([family.length for family in families], batch_tokens(device) // 4):
            members = [i for family in some for i in families[family].members]
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                hidden, pooled = texts.run([families[i] for i in some], members)  # (n, T, d_model), (n, T)
            vectors.append(pool_representations(hidden, pooled, self.how.representation_norm))
            tokens.append(hidden[pooled].float())
            order += members
        with torch.autocast(device.type, enabled=False):  # the launcher's autocast would round the rewards to bfloat16
            x = torch.cat(vectors)[np.argsort(order)] @ self.directions.T
            for i in range(0, len(self.head), 2):
                x = nn.functional.linear(torch.relu(x) if i else x, self.head[i], self.head[i + 1])
            return x[:, 0], self.unexplained(torch.cat(tokens))

    def unexplained(self, tokens: torch.Tensor) -> torch.Tensor:
        """Compute the mean of |x - reconstruction|^2 / |x|^2 over (N, d_model) tokens, divided by `usual`.

        Of many tokens, only every n-th token is measured.
        """
        _, sae = self.frozen
        tokens = tokens[:: 1 + len(tokens) // MEASURED_TOKENS]
        error = tokens - sae.decode(sae.encode(tokens), tokens)
        return (error.pow(2).sum(-1) / tokens.pow(2).sum(-1).clamp(min=1e-6)).mean() / self.usual

    def forward(self, pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the (B,) reward differences, chosen minus rejected, of the pairs with the given numbers (B,).

        Also returns `unexplained` of the pooled tokens.
        """
        sides = [[of[i] for i in pairs.tolist()] for of in (self.pairs.chosen, self.pairs.rejected)]
        numbers = sorted({number for side in sides for number in side})
        rewards, unexplained = self.rewards(numbers)
        chosen, rejected = (rewards[[numbers.index(number) for number in side]] for side in sides)
        return chosen - rejected, unexplained

    @property
    def layers(self) -> Layers:
        """(weight, bias) of each affine layer of the head."""
        arrays = [as_numpy(tensor) for tensor in self.head]
        return tuple(zip(arrays[::2], arrays[1::2], strict=True))


class PairTrainer(Trainer):
    """A trainer that minimises the Bradley-Terry loss of a `PairRewards`, plus a penalty on `unexplained`.

    The Bradley-Terry loss is -log sigmoid(difference - margin). Without the penalty, latents lose their meaning: the
    SAE was trained on the residual stream of the frozen base model.
    """

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, *args: Any, **_: Any) -> Any:  # noqa: D102
        differences, unexplained = model(inputs["pairs"])
        loss = nn.functional.softplus(inputs["margins"] - differences).mean() + PENALTY * unexplained
        return (loss, differences) if return_outputs else loss

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            loss, differences = self.compute_loss(model, inputs, return_outputs=True)
        return loss, differences, inputs["margins"]


class Progress(TrainerCallback):
    """A progress bar with the loss and the accuracy on the held-out pairs."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.shown: dict[str, str] = {}

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: D102
        hidden = not state.is_world_process_zero
        self.bar = tqdm(None, "Adapter", state.max_steps, initial=state.global_step, unit="step", disable=hidden)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: D102
        if self.bar is not None:
            self.bar.update(1)
        if state.global_step == state.max_steps:
            control.should_evaluate = True  # transformers 4 would not evaluate the last weights

    def on_log(self, args: TrainingArguments, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: D102
        logs = logs or {}
        if "loss" in logs:
            self.shown["loss"] = f"{logs['loss']:.2f}"
        if "eval_accuracy" in logs:
            self.shown["held-out accuracy"] = f"{100 * logs['eval_accuracy']:.1f}%"
        if self.bar is not None:
            self.bar.set_postfix(self.shown)

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: D102
        if self.bar is not None:
            self.bar.close()


def train(model: PairRewards, rows: np.ndarray, held_out: np.ndarray, seed: int, folder: Path) -> None:
    """Train adapter and head in place, and keep the weights with the lowest loss on held-out pairs.

    Args:
        model: Rewards of pairs.
        rows: Indices of the pairs to train on.
        held_out: Indices of the held-out pairs.
        seed: Seed of the order of the pairs.
        folder: Folder of the checkpoints, from which a killed run resumes.
    """
    processes = process_state().num_processes
    steps = -(-len(rows) // BATCH_SIZE)  # in an epoch
    every = max(1, -(-steps // EVALUATIONS))
    args = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=EPOCHS,
        learning_rate=LEARNING_RATE,
        per_device_train_batch_size=max(1, BATCH_SIZE // processes),
        per_device_eval_batch_size=BATCH_SIZE,
        eval_strategy="steps",
        eval_steps=every,
        save_steps=every,
        save_total_limit=1,
        logging_steps=5,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=False,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
        seed=seed,
        use_cpu=process_state().device.type == "cpu",
    )
    use_one_gpu(args)
    with torch.no_grad():  # before a checkpoint is loaded, while the new adapter still changes nothing
        batches = torch.from_numpy(held_out).split(BATCH_SIZE)[:MEASURED_BATCHES]
        model.usual = max(float(np.mean([model(batch)[1].item() for batch in batches])), 1e-6)
    trainer = PairTrainer(
        model=model,
        args=args,
        train_dataset=_rows(model.pairs, rows),
        eval_dataset=_rows(model.pairs, held_out),
        compute_metrics=_accuracy,
        callbacks=[Progress()],
    )
    trainer.remove_callback(PrinterCallback)
    with process_state().main_process_first():  # which removes incomplete checkpoints of a killed run
        checkpoint = last_whole_checkpoint(folder)
    trainer.train(resume_from_checkpoint=checkpoint)


def _rows(pairs: TokenizedPreferences, numbers: np.ndarray) -> Dataset:
    return Dataset.from_dict({"pairs": numbers, "margins": np.array(pairs.margins, dtype=np.float32)[numbers]})


def _accuracy(found: EvalPrediction) -> dict[str, float]:
    return {"accuracy": pair_accuracy(np.asarray(found.predictions))}
