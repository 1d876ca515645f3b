"""What training and scoring cost, beside TRL's RewardTrainer and beside what the hardware allows.

    python benchmarks/speed.py DATA_DIR [--stages training trl refit scoring prompts]

All ratios are of numbers measured in this one run. TRL is timed over some steps of its own training loop, the first
three not counted, and multiplied up to two epochs. Writes `results/speed.json` and `results/speed.md`; a stage that is
left out keeps what was measured before.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from layers import FITTED, RESULTS, load_pairs, machine, seconds
from sparserm_hf.modeling.backbone_sparserm import residual_stream
from sparserm_hf.modeling.pooling_sparserm import pooled_tokens
from sparserm_hf.modeling.response_sparserm import find_responses
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl_reward import Clock, as_dataset, trainer_for

from sparserm_hf import SparseRMTrainer, SparseRMTrainingConfig, load_preferences
from sparserm_hf.base_models.gguf import unpacked
from sparserm_hf.base_models.packing import find_families, run_packed
from sparserm_hf.cli.demo import find_base_model
from sparserm_hf.runtime.batches import batch_tokens, pad_texts, plan_batches
from sparserm_hf.scoring.reward_models import load_reward_model

TASK = "truthfulness"
STAGES = ("training", "trl", "refit", "scoring", "prompts")
TRL_STEPS, WARM_UP, EPOCHS, BATCH = 13, 3, 2, 8
SCORED_TEXTS = 512
PROMPT_TEXTS = 160


def trainer(data: Path, work: Path, **settings) -> SparseRMTrainer:
    args = SparseRMTrainingConfig(str(work / "model"), cache_dir=str(work / "cache"), controls=False, **settings)
    pairs = load_preferences(str(data / TASK / "train.jsonl.gz"), FITTED)
    return SparseRMTrainer(find_base_model(), args=args, train_dataset=pairs)


def training(data: Path, work: Path) -> dict[str, float]:
    """Seconds of `sparserm train` without a cache, as one command, and again by stage."""
    command = [str(Path(sys.executable).with_name("sparserm")), "train", "--model", find_base_model(), "--dataset"]
    command += [str(data / TASK / "train.jsonl.gz"), "--dataset_split", FITTED, "--no_controls"]
    command += ["--output_dir", str(work / "cold"), "--cache_dir", str(work / "cold-cache")]
    total = seconds(lambda: subprocess.run(command, check=True, capture_output=True))
    command[command.index("--cache_dir") + 1] += "-of-adapter"
    adapted = seconds(lambda: subprocess.run([*command, "--adapter_rank", "8"], check=True, capture_output=True))
    imports = seconds(lambda: subprocess.run([sys.executable, "-c", "import sparserm_hf.cli"], check=True))
    started = time.perf_counter()
    run = trainer(data, work)
    loading = time.perf_counter() - started
    metrics = run.train()
    saving = seconds(run.save_model)
    return {
        "whole command": total,
        "whole command, with adapter": adapted,
        "imports": imports,
        "loading, tokenising, checking the SAE": loading,
        "representations": metrics["representation_seconds"],
        "selection, cross-validation, fit": metrics["fit_seconds"],
        "saving": saving,
    }


def trl(data: Path, work: Path) -> dict[str, float]:
    """Seconds of TRL's RewardTrainer for two epochs of the same pairs."""
    pairs = load_pairs(data, TASK, "train", FITTED)
    steps = EPOCHS * -(-len(pairs) // BATCH)
    rows = np.random.default_rng(0).permutation(len(pairs))
    found = {}
    for method in ("lora", "full"):
        for checkpointing in (True, False):
            clock = Clock()
            started = time.perf_counter()
            run = trainer_for(
                method,
                as_dataset(pairs, rows),
                work,
                1e-4,
                0,
                gradient_checkpointing=checkpointing,
                max_steps=TRL_STEPS,
            )
            loading = time.perf_counter() - started
            run.add_callback(clock)
            run.train()
            name = f"{method}, gradient checkpointing {'on (the default)' if checkpointing else 'off'}"
            found[name] = loading + steps * float(np.mean(clock.steps[WARM_UP - 1 :]))
    return found


def refit(data: Path, work: Path) -> dict[str, float]:
    """Seconds of another fit from the cache."""
    found = {}
    trainer(data, work).train()  # so that the cache is there
    for settings in ({"k": 64}, {"k": "auto"}, {"loss": "bradley_terry"}, {"head_type": "mlp"}):
        run = trainer(data, work, check_sae=False, **settings)
        found[", ".join(f"{k} = {v}" for k, v in settings.items())] = seconds(run.train)
    return found


@torch.inference_mode()
def scoring(data: Path, work: Path) -> dict[str, float]:
    """Tokens a second of the reward model, of the whole base as a classifier, and of the bare cut base."""
    if not (work / "model").exists():
        run = trainer(data, work)
        run.train()
        run.save_model()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, _ = load_reward_model(str(work / "model"), device)
    base = unpacked(find_base_model())
    whole = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=model.dtype).to(device).eval()
    whole.config.pad_token_id = AutoTokenizer.from_pretrained(base).pad_token_id
    texts = [text.ids for text in load_pairs(data, "safety", "test").texts[:SCORED_TEXTS]]
    lengths = [len(text) for text in texts]
    plan = plan_batches(lengths, batch_tokens(device))
    batches = [pad_texts([texts[i] for i in batch], device) for batch in plan]
    # The same tokens without any padding: those of a batch, whose texts are about as long, in rows of their mean
    # length. One row for all texts would be another task: attention costs more on long texts.
    full = []
    for batch in plan:
        flat = torch.tensor([token for i in batch for token in texts[i]], device=device)
        full.append(flat[: len(flat) // len(batch) * len(batch)].view(len(batch), -1))
    total, config = sum(lengths), model.config
    states = [residual_stream(model.model, ids, mask) for ids, mask in batches]

    def pool_and_score() -> None:
        for hidden, (ids, mask) in zip(states, batches, strict=True):
            pooled = pooled_tokens(mask, find_responses(ids, mask, config), config.pooling)
            model.reward(model.features_of(hidden, pooled))

    runs = {
        "reward model": lambda: [model(ids, mask) for ids, mask in batches],
        "cut base without padding": lambda: [model.model(ids, use_cache=False) for ids in full],
        "whole base as a classifier": lambda: [whole(input_ids=ids, attention_mask=mask) for ids, mask in batches],
    }
    runs["reward model"]()
    # In turns, and the best of them: what else the machine does then touches all alike.
    turns = [[seconds(run) for run in runs.values()] for _ in range(3)]
    taken = dict(zip(runs, np.min(turns, axis=0), strict=True))
    found = {f"{name}, tokens a second": total / value for name, value in taken.items()}
    depth, layers = whole.config.num_hidden_layers, config.layer
    found["speed-up over the whole base"] = taken["whole base as a classifier"] / taken["reward model"]
    found["share of what the cut depth allows"] = found["speed-up over the whole base"] / (depth / layers)
    found["share of the cut base without padding"] = taken["cut base without padding"] / taken["reward model"]
    pool_and_score()
    found["share of time in pooling and head"] = seconds(pool_and_score) / taken["reward model"]
    return found


@torch.inference_mode()
def prompts(data: Path, work: Path) -> dict[str, float]:
    """What running shared prompts once gains on long dialogues, and what it changes."""
    base = trainer(data, work).base_model
    texts = [text.ids for text in load_pairs(data, "adversarial", "train", FITTED).texts[:PROMPT_TEXTS]]
    families = find_families(texts)
    means: dict[str, dict[int, torch.Tensor]] = {name: {} for name in ("shared", "padded", "alone")}

    def shared() -> None:
        for batch in plan_batches([family.length for family in families], batch_tokens(base.device)):
            some = [families[i] for i in batch]
            members = [i for family in some for i in family.members]
            for i, hidden in zip(members, run_packed(base, texts, some), strict=True):
                means["shared"][i] = hidden.float().mean(0)

    def padded() -> None:
        for batch in plan_batches([len(text) for text in texts], batch_tokens(base.device)):
            hidden = residual_stream(base, *pad_texts([texts[i] for i in batch], base.device))
            for row, i in enumerate(batch):
                means["padded"][i] = hidden[row, : len(texts[i])].float().mean(0)

    def alone() -> None:
        for i, text in enumerate(texts):
            means["alone"][i] = residual_stream(base, *pad_texts([text], base.device))[0].float().mean(0)

    def difference(one: str, other: str) -> float:
        pairs = [(means[one][i], means[other][i]) for i in range(len(texts))]
        return max(float((a - b).norm() / b.norm()) for a, b in pairs)

    padded()
    found = {"seconds, each text by itself": seconds(padded), "seconds, prompts shared": seconds(shared)}
    alone()
    return found | {
        "gain": found["seconds, each text by itself"] / found["seconds, prompts shared"],
        "tokens, each text by itself": sum(map(len, texts)),
        "tokens, prompts shared": sum(family.length for family in families),
        "largest relative difference, shared against padded": difference("shared", "padded"),
        "largest relative difference, padded against one text a batch": difference("padded", "alone"),
    }


def table(results: dict[str, dict[str, float]]) -> str:
    lines = [f"{machine()}. Made by `python benchmarks/speed.py`.\n"]
    if "training" in results and "trl" in results:
        ours = {
            name.replace("whole command", "sparserm train"): t
            for name, t in results["training"].items()
            if name.startswith("whole")
        }
        results["ratios"] = {
            f"TRL {name}, over {of}": t / own for of, own in ours.items() for name, t in results["trl"].items()
        }
    for stage, rows in results.items():
        lines += [f"\n| {stage} | |", "|---|---:|"]
        lines += [f"| {name} | {value:,.{0 if value >= 1000 else 2}f} |" for name, value in rows.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    args = parser.parse_args()
    path = RESULTS / "speed.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory() as work:
        for stage in tqdm(args.stages):
            results[stage] = globals()[stage](args.data, Path(work))
            path.write_text(json.dumps(results, indent=1) + "\n")
    text = table(results)
    path.write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "speed.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
