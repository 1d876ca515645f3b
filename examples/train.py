"""Train a reward model on preference pairs and print how good it is.

    python examples/train.py BASE_MODEL PAIRS.jsonl OUTPUT_DIR [SAE]

BASE_MODEL is a Hub id, a folder or a GGUF file; PAIRS may also be the id of a dataset on the Hub.
"""

import sys

from sparserm_hf import SparseRMTrainer, SparseRMTrainingConfig, load_preferences


def main(base_model: str, pairs: str, output_dir: str, sae: str | None = None) -> None:
    dataset = load_preferences(pairs)
    held_out = len(dataset) // 5
    trainer = SparseRMTrainer(
        model=base_model,
        sae=sae,  # None: the SAE that fits the base model, where the package knows one
        args=SparseRMTrainingConfig(output_dir, k=min(128, len(dataset) // 8)),
        train_dataset=dataset.select(range(held_out, len(dataset))),
        eval_dataset=dataset.select(range(held_out)),
    )
    trainer.train()
    trainer.save_model()
    for name, metrics in trainer.evaluation.metrics.items():
        print(f"{name:22} {100 * metrics.accuracy:5.1f} %  ({100 * metrics.low:.1f} to {100 * metrics.high:.1f})")


if __name__ == "__main__":
    main(*sys.argv[1:])
