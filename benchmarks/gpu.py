"""Tokens a second and model FLOPs utilisation of scoring and extraction, for the shapes of large base models.

    python benchmarks/gpu.py [--shapes gemma-2-2b gemma-2-9b llama-3.1-8b]

Random weights, layers as in the paper, random tokens: only the shapes matter. The data type is bfloat16, or float32
where the hardware does not multiply bfloat16. Utilisation is the share of what a large matrix product of the same type
reaches on the same device, measured first, so that the table can be made anywhere. Without a GPU it is made for the
shape of SmolLM2-135M. Texts of a pass have different lengths; only their tokens are counted, not the padding, which
FlashAttention leaves out. Writes `results/gpu.json` and `results/gpu.md`.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from layers import RESULTS, machine, seconds
from sparserm_hf.modeling.autoencoder_sparserm import SparseAutoencoder
from sparserm_hf.modeling.backbone_sparserm import cut_base_model, decoder_layers, decoder_of
from sparserm_hf.modeling.configuration_sparserm import SparseRMConfig
from sparserm_hf.modeling.modeling_sparserm import SparseRMForSequenceClassification
from sparserm_hf.modeling.pooling_sparserm import pool_representations
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from sparserm_hf.representations.activations import encode_texts, mean_and_largest
from sparserm_hf.runtime.devices import preferred_dtype

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = preferred_dtype(DEVICE)
LENGTH = 512
TOKENS = 65_536 if DEVICE.type == "cuda" else 4096  # of a pass


@dataclass(frozen=True)
class Shape:
    """A base model's public configuration, the layers that are kept and the width of its SAE."""

    config: dict
    layer: int
    d_sae: int


SHAPES = {
    "gemma-2-2b": Shape(
        {
            "model_type": "gemma2",
            "hidden_size": 2304,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "intermediate_size": 9216,
            "vocab_size": 256_000,
        },
        14,
        16_384,
    ),
    "gemma-2-9b": Shape(
        {
            "model_type": "gemma2",
            "hidden_size": 3584,
            "num_hidden_layers": 42,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 256,
            "intermediate_size": 14_336,
            "vocab_size": 256_000,
        },
        32,
        16_384,
    ),
    "llama-3.1-8b": Shape(
        {
            "model_type": "llama",
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 14_336,
            "vocab_size": 128_256,
        },
        16,
        32_768,
    ),
    "smollm2-135m": Shape(
        {
            "model_type": "llama",
            "hidden_size": 576,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "intermediate_size": 1536,
            "vocab_size": 49_152,
        },
        18,
        4608,
    ),
}


def best_of(call: Callable[[], object], repeats: int = 3) -> float:
    """Seconds of the best of some runs, after one that is not counted."""
    call()
    return min(seconds(call) for _ in range(repeats))


def reachable_flops() -> float:
    """FLOP/s of a large matrix product."""
    n = 8192 if DEVICE.type == "cuda" else 2048
    a, b = (torch.randn(n, n, dtype=DTYPE, device=DEVICE) for _ in range(2))
    return 2 * n**3 / best_of(lambda: a @ b)


def flops_a_token(model: PreTrainedModel, length: int) -> float:
    """FLOP of a forward pass: two for each weight of the layers, and causal attention over half the length."""
    weights = sum(p.numel() for p in decoder_layers(model).parameters())
    config = model.config
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    return 2 * weights + 2 * length * width * config.num_hidden_layers


def attentions() -> list[str]:
    """The implementations of attention that run here."""
    return ["sdpa", *(["flash_attention_2"] if is_flash_attn_2_available() else [])]


def random_texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, (B, T) each, of texts of half to all of `LENGTH` tokens, sorted as in any batch."""
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (TOKENS // LENGTH,), device=DEVICE).sort().values
    mask = (torch.arange(LENGTH, device=DEVICE) < lengths[:, None]).long()
    return torch.randint(3, 1000, mask.shape, device=DEVICE) * mask, mask


@torch.inference_mode()
def measure(shape: Shape) -> list[dict]:
    """A row for each way of running the shape."""
    torch.manual_seed(0)
    settings = dict(shape.config)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings, max_position_embeddings=8192)
    with torch.device(DEVICE):
        model = decoder_of(AutoModelForCausalLM.from_config(config, dtype=DTYPE)).eval()
    ids, mask = random_texts()
    tokens, length = int(mask.sum()), float(mask.sum(1).float().mean())
    reachable = reachable_flops()
    rows: list[dict] = []

    def row(name: str, module: torch.nn.Module, run: Callable[[Callable], object], work: float) -> None:
        for attention in attentions():
            model.set_attn_implementation(attention)
            for how, callable_ in (("", module), (", compiled", torch.compile(module))):
                speed = tokens / best_of(partial(run, callable_))
                used = speed * work / reachable
                rows.append(
                    {"": f"{name}{how}", "attention": attention, "tokens a second": speed, "utilisation": used}
                )
            torch.compiler.reset()

    def bare(m: Callable) -> Any:
        return m(ids, attention_mask=mask, use_cache=False)

    row("whole base model", model, bare, flops_a_token(model, length))
    cut_base_model(model, shape.layer)
    work = flops_a_token(model, length)
    row("cut base model", model, bare, work)
    described = SparseRMConfig(
        base_config=model.config,
        layer=shape.layer,
        pooling="mean",
        latents=[{"id": latent} for latent in range(256)],
    )
    reward_model = SparseRMForSequenceClassification(described, model).to(DEVICE).eval()
    row("scoring", reward_model, lambda m: m(ids, mask), work)
    with torch.device(DEVICE):
        sae = SparseAutoencoder(model.config.hidden_size, shape.d_sae, "jumprelu")
    sae.W_enc.normal_()

    def extract(m: Callable) -> object:
        hidden, pooled = bare(m).last_hidden_state, mask.bool()
        activations = [mean_and_largest(encoded) for encoded in encode_texts(hidden, pooled, sae)]
        return pool_representations(hidden, pooled, "rms"), activations

    row("extraction, SAE on every token", model, extract, work + 2 * model.config.hidden_size * shape.d_sae)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES))
    args = parser.parse_args()
    large = ["gemma-2-2b", "gemma-2-9b", "llama-3.1-8b"]
    names = args.shapes or (large if DEVICE.type == "cuda" else ["smollm2-135m"])
    results = {name: measure(SHAPES[name]) for name in tqdm(names)}
    reachable = f"{reachable_flops() / 1e12:.2f} TFLOP/s in a matrix product"
    lines = [
        f"{machine()}; {reachable}. Random weights in {str(DTYPE).removeprefix('torch.')}, "
        f"{TOKENS // LENGTH} texts of {LENGTH // 2} to {LENGTH} tokens a pass. Made by `python benchmarks/gpu.py`.\n"
    ]
    for name, rows in results.items():
        shape = SHAPES[name]
        lines += [f"\n## {name}, cut after layer {shape.layer} of {shape.config['num_hidden_layers']}\n"]
        lines += ["| | attention | tokens a second | utilisation |", "|---|---|---:|---:|"]
        lines += [
            f"| {r['']} | {r['attention']} | {r['tokens a second']:,.0f} | {r['utilisation']:.0%} |" for r in rows
        ]
    (RESULTS / "gpu.json").write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")
    (RESULTS / "gpu.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
