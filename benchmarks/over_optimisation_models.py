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
from layers import train_once
from transformers import AutoConfig

from sparserm_hf import SAETrainingConfig, SAETrainingData, edit_model, load_preferences, train_sae
from sparserm_hf.base_models.gguf import unpacked

SETTINGS: dict[str, dict[str, Any]] = {"plain": {}, "debiased": {"debias": "length"}, "ensemble": {"ensemble": 20}}
SAE_TOKENS = 60_000


def train_sae_once(folder: Path, base: str, path: str) -> str:
    """Train an SAE on the texts of a file after half of the layers of a base model, unless it is there."""
    if not folder.is_dir():
        layer = AutoConfig.from_pretrained(unpacked(base)).num_hidden_layers // 2
        train_sae(
            SAETrainingData(base, path, layer=layer, output_dir=str(folder)),
            SAETrainingConfig(total_tokens=SAE_TOKENS, d_sae=2048, buffer_tokens=20_000),
        )
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("judge_base")
    parser.add_argument("--task", default="truthfulness")
    args = parser.parse_args()
    path = str(args.data / args.task / "train.jsonl.gz")
    half = len(load_preferences(path)) // 2
    ours, judges = f"train[:{half}]", f"train[{half}:]"
    for name, settings in SETTINGS.items():
        train_once(args.work / name, args.data, args.task, ours, check_sae=False, **settings)
    if not (args.work / "pessimistic").is_dir():
        edit_model(str(args.work / "ensemble"), args.work / "pessimistic", pessimism=1.0)
    sae = train_sae_once(args.work / "judge-sae", args.judge_base, path)
    train_once(args.work / "judge", args.data, args.task, judges, args.judge_base, sae, check_sae=False)
    trl_reward_model(args.data, args.work / "lora", args.task, ours)


if __name__ == "__main__":
    main()
