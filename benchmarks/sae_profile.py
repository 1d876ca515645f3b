"""Where the time of SAE training goes: a profile of the whole loop, base model included.

    python benchmarks/sae_profile.py DATASET [TOKENS]

DATASET is what `sparserm sae train` takes. The base model is SmolLM2-135M-Instruct, cut after layer 15. Prints the
share of matrix products and attention, and the costliest other operations.
"""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sparserm_hf.modeling.backbone_sparserm import cut_base_model
from torch.profiler import ProfilerActivity, profile

from sparserm_hf.base_models import load_base_model, load_tokenizer, materialise_gguf
from sparserm_hf.demo.run import find_base_model
from sparserm_hf.preferences.templates import prepare_tokenizer
from sparserm_hf.preferences.texts import load_texts
from sparserm_hf.representations import default_cache_dir
from sparserm_hf.sae.tokens import ResidualTokens
from sparserm_hf.sae.training import SAETrainingConfig, fit_sae

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::_scaled_dot_product")


def main(dataset: str, tokens: int = 40_960) -> None:
    base = materialise_gguf(Path(find_base_model()), default_cache_dir())
    model = cut_base_model(load_base_model(base), 15).eval()
    texts = load_texts(dataset, prepare_tokenizer(load_tokenizer(base)), tokens, 320)
    config = SAETrainingConfig(total_tokens=tokens, buffer_tokens=tokens)
    fit_sae(ResidualTokens(model, texts), SAETrainingConfig(total_tokens=2048, buffer_tokens=2048))  # warm up
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        fit_sae(ResidualTokens(model, texts), config)
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    table = Table(title=f"{tokens:,} tokens, {total / 1e6:.0f} s of operations")
    table.add_column("operation")
    table.add_column("share %", justify="right")
    products = [event for event in events if event.key.startswith(PRODUCTS)]
    table.add_row(
        "matrix products and attention",
        f"{100 * sum(e.self_cpu_time_total for e in products) / total:.1f}",
        style="bold",
    )
    others = sorted((e for e in events if e not in products), key=lambda e: -e.self_cpu_time_total)
    for event in others[:10]:
        table.add_row(event.key, f"{100 * event.self_cpu_time_total / total:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
