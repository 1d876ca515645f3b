"""Train the reward models that `over_optimisation.py` compares, and a judge of another base.

    python benchmarks/over_optimisation_models.py DATA_DIR WORK_DIR JUDGE_BASE [--task truthfulness]

The reward models see the first half of the task's training pairs, on SmolLM2-135M-Instruct: WORK_DIR/plain (with its
dense control), /debiased, /pessimistic (an ensemble of 20 heads, pessimism 1), and /lora (TRL's RewardTrainer, as
`alignment.py` trains it). WORK_DIR/judge sees the other half, on JUDGE_BASE after half of its layers. What counts of
it is its dense control, so that its SAE is trained on few tokens. A model that is there is not trained again.
"""

import argparse
from pathlib import Path
from typing import Any

from alignment import trl_reward_model
from transformers import AutoConfig

from sparserm_hf import (
    SAETrainingConfig,
    SAETrainingData,
    SparseRMTrainer,
    SparseRMTrainingConfig,
    edit_model,
    load_preferences,
    train_sae,
)
from sparserm_hf.base_models.gguf import unpacked
from sparserm_hf.cli.demo import find_base_model

SAE_TOKENS = 60_000


def train(folder: Path, base: str, rows: Any, sae: str | None = None, **settings: Any) -> None:
    if not folder.is_dir():
        config = SparseRMTrainingConfig(str(folder), check_sae=False, **settings)
        trainer = SparseRMTrainer(base, sae, args=config, train_dataset=rows)
        trainer.train()
        trainer.save_model()


def train_judge(folder: Path, base: str, path: str, rows: str) -> None:
    if not folder.is_dir():
        layer, sae = AutoConfig.from_pretrained(unpacked(base)).num_hidden_layers // 2, folder.with_name("judge-sae")
        if not sae.is_dir():
            train_sae(
                SAETrainingData(base, path, layer=layer, output_dir=str(sae)),
                SAETrainingConfig(total_tokens=SAE_TOKENS, d_sae=2048, buffer_tokens=20_000),
            )
        train(folder, base, load_preferences(path, rows), str(sae))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("judge_base")
    parser.add_argument("--task", default="truthfulness")
    args = parser.parse_args()
    path = str(args.data / args.task / "train.jsonl.gz")
    half, base = len(load_preferences(path)) // 2, find_base_model()
    ours, judges = f"train[:{half}]", f"train[{half}:]"
    rows = load_preferences(path, ours)
    train(args.work / "plain", base, rows)
    train(args.work / "debiased", base, rows, debias="length")
    train(args.work / "ensemble", base, rows, ensemble=20)
    if not (args.work / "pessimistic").is_dir():
        edit_model(str(args.work / "ensemble"), args.work / "pessimistic", pessimism=1.0)
    train_judge(args.work / "judge", args.judge_base, path, judges)
    trl_reward_model(args.data, args.work / "lora", args.task, ours)


if __name__ == "__main__":
    main()
