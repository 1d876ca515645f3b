"""What filtering by SparseRM does to iterative alignment, beside other filters and none.

    python benchmarks/alignment.py DATA_DIR WORK_DIR [--seeds 0 1 2] [--rounds 3]

The policy is SmolLM2-135M-Instruct, the questions are those of the truthfulness task's training pairs, 200 a round;
the reward models are trained on its first 1,000 pairs, SparseRM by the defaults of `sparserm train`, TRL's
RewardTrainer with LoRA as `trl_reward.py` does. Measured on TruthfulQA's other questions and on 200 test pairs. The
first seed runs all rounds, the others the first one. Writes `results/alignment.md`, `.json` and `.png`; goes on where
it was stopped.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from layers import FITTED, RESULTS, load_pairs, machine, train_once
from trl_reward import as_dataset, trainer_for

from sparserm_hf import load_preferences
from sparserm_hf.align.aligner import IterativeAligner
from sparserm_hf.align.alignment_report import COLUMNS, change_cell, markdown, outcome_table, write_alignment_report
from sparserm_hf.align.arms import FIRST, SPARSERM
from sparserm_hf.align.measures import count_openings
from sparserm_hf.align.round_figures import SHARES
from sparserm_hf.align.round_files import read_rows
from sparserm_hf.align.settings import AlignmentConfig
from sparserm_hf.align.truthfulqa import load_truthfulqa
from sparserm_hf.cli.demo import find_base_model

TASK = "truthfulness"
QUESTIONS, TOKENS, HELD_OUT, TEST_PAIRS = 200, 40, 48, "train[:200]"
TEMPERATURE = 0.5  # at 0.9 most of what this policy writes has nothing to do with the question
LEARNING_RATE = 1e-3  # of the RewardTrainer, as its search in `trl_reward.py` found


def trl_reward_model(data: Path, folder: Path, task: str = TASK, rows: str = FITTED) -> str:
    """TRL's RewardTrainer with LoRA, on the same pairs, two epochs."""
    if not folder.is_dir():
        work = folder.with_name(f"{folder.name}-training")
        pairs = load_pairs(data, task, "train", rows)
        order = np.random.default_rng(0).permutation(len(pairs))
        trainer = trainer_for("lora", as_dataset(pairs, order), work, LEARNING_RATE, 0, gradient_checkpointing=False)
        trainer.train(resume_from_checkpoint=any(work.glob("checkpoint-*")))
        trainer.save_model(str(folder))
        trainer.processing_class.save_pretrained(folder)
    return str(folder)


def align(data: Path, work: Path, seed: int, rounds: int, draw: bool) -> dict:
    config = AlignmentConfig(
        str(work / f"seed-{seed}"),
        num_rounds=rounds,
        questions_per_round=QUESTIONS,
        held_out_questions=HELD_OUT,
        max_new_tokens=TOKENS,
        temperature=TEMPERATURE,
        generation_batch_size=64,
        seed=seed,
    )
    aligner = IterativeAligner(
        find_base_model(),
        train_once(work / "sparserm", data, TASK, FITTED),
        config,
        load_preferences(str(data / TASK / "train.jsonl.gz")),
        load_preferences(str(data / TASK / "test.jsonl.gz"), TEST_PAIRS),
        load_truthfulqa(data / "truthfulqa.csv"),
        controls=True,
        control_reward_model=trl_reward_model(data, work / "trl"),
    )
    outcome = aligner.run()
    write_alignment_report(aligner, outcome)
    if draw:
        shutil.copy(aligner.folder / "rounds.png", RESULTS / "alignment.png")
    ends = {FIRST: aligner.folder / "first"}
    ends |= {arm.name: aligner.place(arm, rounds) for arm in aligner.arms}
    return {
        "seed": seed,
        "first": outcome.first,
        "rounds": outcome.rounds,
        "table": outcome_table(outcome),
        "openings": openings({name: read_rows(place / "answers.jsonl") for name, place in ends.items()}),
    }


def openings(answers: dict[str, list[dict]]) -> list[str]:
    """With which two words the answers of each policy begin most often: where all begin alike, it has collapsed."""
    rows = []
    for name, found in answers.items():
        if found:
            counts = count_openings([answer["response"] for answer in found])
            words = [f"{words} … ({count})" for words, count in counts.most_common(3)]
            rows.append([name, str(len(found)), *words])
    return markdown(["filter", "answers", "most often", "then", "then"], rows)


def first_round(runs: list[dict]) -> list[str]:
    """Figures after one round, mean over the seeds, with the least and the most."""
    columns = {name: title for name, title in COLUMNS.items() if name in runs[0]["first"]}
    header = ["filter", "kept %", *columns.values()]
    rows = []
    for arm in (FIRST, *runs[0]["rounds"]):
        found = [run["first"] if arm == FIRST else run["rounds"][arm][0] for run in runs]
        kept = (
            "" if arm == FIRST else f"{100 * np.mean([figures['kept'] / figures['pairs'] for figures in found]):.0f}"
        )
        row = [arm, kept]
        for name in columns:
            factor = 100 if name in SHARES else 1
            values = [factor * figures[name] for figures in found]
            row.append(f"{np.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        rows.append(row)
    return markdown(header, rows)


def against(runs: list[dict], arm: str, number: int, name: str) -> str:
    """How far SparseRM's policies are ahead of another filter's after a round, over all seeds and questions."""
    each = [[run["rounds"][which][number - 1][f"each_{name}"] for run in runs] for which in (SPARSERM, arm)]
    # A question is the unit: the seeds share them, so that they are averaged first.
    return change_cell(*(np.mean(values, axis=0).tolist() for values in each))


def comparison(runs: list[dict], rounds: int) -> list[str]:
    """SparseRM's filter beside each other one, after each of the first rounds that both came to."""
    found = runs[0]["rounds"]
    rows = [
        [arm, str(number), *(against(runs, arm, number, name) for name in ("mc1", "mc2"))]
        for arm in found
        if arm != SPARSERM
        for number in range(1, min(rounds, len(found[SPARSERM]), len(found[arm])) + 1)
    ]
    return [
        "\nSparseRM's filter against the others, in points, with the 95% interval over questions:\n",
        *markdown(["", "round", "MC1", "MC2"], rows),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    work = args.work / "alignment"
    first, *others = args.seeds
    runs = [align(args.data, work, first, args.rounds, draw=True)]
    runs += [align(args.data, work, seed, 1, draw=False) for seed in others]
    header, rows = runs[0].pop("table")
    lines = [
        f"Made by `python benchmarks/alignment.py DATA_DIR WORK_DIR` on {machine()}.\n",
        f"{QUESTIONS} questions a round, responses of at most {TOKENS} tokens, three epochs of DPO with LoRA; "
        f"{len(runs[0]['first']['each_mc1'])} questions of TruthfulQA that no policy and no reward model has seen.\n",
        f"## After one round, {len(runs)} seeds: mean (least to most)\n",
        *first_round(runs),
        *comparison(runs, 1),
        f"\n## All rounds, seed {runs[0]['seed']}\n",
        "In brackets: the change since the first policy with its 95% interval over questions.\n",
        *markdown(header, rows),
        *comparison(runs[:1], args.rounds),
        f"\nHow the answers to held-out questions begin, after round {args.rounds}:\n",
        *runs[0].pop("openings"),
        "\n![figures by round](alignment.png)",
    ]
    (RESULTS / "alignment.md").write_text("\n".join(lines) + "\n")
    kept = [{name: run[name] for name in ("seed", "first", "rounds")} for run in runs]
    (RESULTS / "alignment.json").write_text(json.dumps(kept) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
