"""What anyone would use instead: TRL's RewardTrainer on the same base model and pairs, LoRA and full fine-tuning.

    python benchmarks/trl_reward.py DATA_DIR WORK_DIR [--tasks ...] [--methods lora full] [--seeds 0] [--search TASK]

Two epochs, max_length 512, everything else TRL's default but two things that change no result: no gradient
checkpointing, and less padding. The learning rate comes from a search inside `train` of one task: fitted to half of
the pairs, judged on a fifth with other prompts. Each run leaves `results/trl/TASK-METHOD-SEED.json` with the margin of
every test pair; a run that is there is not done again, and one that was killed goes on from its last checkpoint in
WORK_DIR. `table.py` reads them.
"""

import argparse
import json
import shutil
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from layers import FITTED, RESULTS, TASKS, load_pairs, machine, measure
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, TrainerCallback
from transformers.modeling_outputs import SequenceClassifierOutput
from trl import RewardConfig, RewardTrainer

from sparserm_hf.align.dpo import last_whole_checkpoint
from sparserm_hf.base_models.gguf import unpacked
from sparserm_hf.cli.demo import find_base_model
from sparserm_hf.conversations.tokenized_preferences import TokenizedPreferences
from sparserm_hf.conversations.tokenizer_preparation import prepare_tokenizer
from sparserm_hf.evaluation.metrics import pair_accuracy
from sparserm_hf.runtime import preferred_dtype, process_state
from sparserm_hf.runtime.batches import pad_texts, plan_batches
from sparserm_hf.training.folds import group_folds

LEARNING_RATES = {"lora": (1e-4, 3e-4, 1e-3), "full": (1e-5, 3e-5, 1e-4)}
LORA = LoraConfig(task_type="SEQ_CLS", r=16, lora_alpha=32, target_modules="all-linear")


def run_by_length(
    model: torch.nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs
) -> SequenceClassifierOutput:
    """(B, 1) rewards as the model gives them, four sequences of similar length at a time: with less padding."""
    order = attention_mask.sum(1).argsort()
    rewards = []
    for rows in order.split(4):
        longest = int(attention_mask[rows].sum(1).max())  # padding is on the right
        cut = {"input_ids": input_ids[rows, :longest], "attention_mask": attention_mask[rows, :longest]}
        rewards.append(model(**cut, **kwargs).logits)
    return SequenceClassifierOutput(logits=torch.cat(rewards)[order.argsort()])


class LessPaddingTrainer(RewardTrainer):
    """TRL's trainer with the same batches, rewards and gradients: half of the tokens it would run are padding."""

    def compute_loss(self, model, inputs, *args, **kwargs):  # noqa: D102
        return super().compute_loss(partial(run_by_length, model), inputs, *args, **kwargs)


class Clock(TrainerCallback):
    """When each training step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:  # noqa: D102
        self.ends.append(time.perf_counter())

    @property
    def steps(self) -> np.ndarray:
        """Seconds of each step after the first."""
        return np.diff(self.ends)


def as_dataset(pairs: TokenizedPreferences, rows: np.ndarray) -> Dataset:
    """Token ids under the names that TRL looks for; it drops pairs above max_length itself."""
    return Dataset.from_dict(
        {
            "chosen_ids": [list(pairs.texts[pairs.chosen[i]].ids) for i in rows],
            "rejected_ids": [list(pairs.texts[pairs.rejected[i]].ids) for i in rows],
        }
    )


def trainer_for(
    method: str,
    dataset: Dataset,
    output: Path,
    learning_rate: float,
    seed: int,
    trainer_class: type[RewardTrainer] = RewardTrainer,
    **config,
) -> RewardTrainer:
    """TRL's trainer on SmolLM2, in bfloat16 where that is fast; trained weights are in float32."""
    base = unpacked(find_base_model())
    torch.manual_seed(seed)  # of the new head
    preferred = preferred_dtype(process_state().device)
    dtype = preferred if method == "lora" else torch.float32
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=dtype)
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(base))
    model.config.pad_token_id = tokenizer.pad_token_id
    args = RewardConfig(
        output_dir=str(output),
        num_train_epochs=2,
        max_length=512,
        learning_rate=learning_rate,
        seed=seed,
        save_strategy="steps",
        save_steps=20,
        save_total_limit=1,
        report_to="none",
        bf16=preferred == torch.bfloat16,  # TRL's default is True
        use_cpu=not torch.cuda.is_available(),
        **config,
    )
    peft = LORA if method == "lora" else None
    return trainer_class(model=model, args=args, train_dataset=dataset, processing_class=tokenizer, peft_config=peft)


@torch.inference_mode()
def margins_of(model: PreTrainedModel | PeftModel, pairs: TokenizedPreferences, rows: np.ndarray) -> np.ndarray:
    """(N,) reward differences of some pairs; the head is in float32, so that none are ties.

    The last token is looked up here: the model itself would find it by the pad token, whatever the mask says.
    """
    model.eval()
    classifier = model.base_model.model if isinstance(model, PeftModel) else model
    texts = [pairs.texts[side[i]].ids for side in (pairs.chosen, pairs.rejected) for i in rows]
    rewards = np.zeros(len(texts))
    for batch in plan_batches([len(text) for text in texts], 4096):
        ids, mask = pad_texts([texts[i] for i in batch], model.device)
        fast = preferred_dtype(model.device) == torch.bfloat16
        with torch.autocast(model.device.type, torch.bfloat16, enabled=fast):
            hidden = classifier.model(input_ids=ids, attention_mask=mask).last_hidden_state
        last = hidden[torch.arange(len(batch)), mask.sum(1) - 1]
        rewards[batch] = classifier.score.float()(last.float())[:, 0].cpu().numpy()
    return rewards[: len(rows)] - rewards[len(rows) :]


def bytes_shipped(model: PreTrainedModel | PeftModel) -> int:
    """What has to be uploaded: the adapter, or every weight in bfloat16."""
    if isinstance(model, PeftModel):
        return sum(t.numel() * t.element_size() for t in get_peft_model_state_dict(model).values())
    return 2 * sum(p.numel() for p in model.parameters())


def run(
    method: str, pairs: TokenizedPreferences, rows: np.ndarray, learning_rate: float, seed: int, work: Path
) -> tuple[RewardTrainer, float | None]:
    """Train once; also returns the seconds it takes, loading included, by the median step: pauses do not count.

    None where a killed run had no two steps left. Checkpoints are in `work`, to be removed when the result is kept.
    """
    clock, started = Clock(), time.perf_counter()
    dataset = as_dataset(pairs, rows)
    trainer = trainer_for(method, dataset, work, learning_rate, seed, LessPaddingTrainer, gradient_checkpointing=False)
    loading = time.perf_counter() - started
    trainer.add_callback(clock)
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(work))
    step = float(np.median(clock.steps)) if len(clock.steps) else None
    return trainer, step and loading + trainer.state.max_steps * step


def search(method: str, pairs: TokenizedPreferences, path: Path, work: Path) -> float:
    """The best learning rate on held-out training prompts; what was measured is kept in a file."""
    found = json.loads(path.read_text()) if path.exists() else {}
    fold = group_folds(np.array(pairs.groups), 10, seed=0)
    held_out = np.flatnonzero(fold >= 8)
    for learning_rate in LEARNING_RATES[method]:
        if str(learning_rate) not in found:
            folder = work / f"search-{method}-{learning_rate}"
            trainer, _ = run(method, pairs, np.flatnonzero(fold < 5), learning_rate, 0, folder)
            found[str(learning_rate)] = pair_accuracy(margins_of(trainer.model, pairs, held_out))
            path.write_text(json.dumps(found))
            shutil.rmtree(folder)
            print(f"{method}, learning rate {learning_rate}: {100 * found[str(learning_rate)]:.1f}", flush=True)
    return float(max(found, key=lambda name: found[name]))


def train_and_test(
    method: str, pairs: TokenizedPreferences, test: TokenizedPreferences, learning_rate: float, seed: int, work: Path
) -> dict:
    """What the table says of a run, with the margins of every test pair."""
    trainer, seconds = run(method, pairs, np.arange(len(pairs)), learning_rate, seed, work)
    return {
        "learning_rate": learning_rate,
        "seconds": seconds,
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "bytes": bytes_shipped(trainer.model),
        "margins": margins_of(trainer.model, test, np.arange(len(test))).round(6).tolist(),
        "machine": machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--methods", nargs="+", default=["lora", "full"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--search", default=TASKS[0], help="task that the learning rate is searched on")
    args = parser.parse_args()
    folder, work = RESULTS / "trl", args.work / "trl"
    folder.mkdir(parents=True, exist_ok=True)
    for method in args.methods:
        searched = load_pairs(args.data, args.search, "train", FITTED)
        learning_rate = search(method, searched, folder / f"search-{method}.json", work)
        for task in args.tasks:
            pairs, test = load_pairs(args.data, task, "train", FITTED), load_pairs(args.data, task, "test")
            for seed in args.seeds:
                name = f"{task}-{method}-{seed}"
                compute = partial(train_and_test, method, pairs, test, learning_rate, seed, work / name)
                result = measure(folder / f"{name}.json", compute)
                shutil.rmtree(work / name, ignore_errors=True)
                accuracy = 100 * pair_accuracy(np.array(result["margins"]))
                print(f"{task}, {method}, seed {seed}: {accuracy:.1f}", flush=True)


if __name__ == "__main__":
    main()
