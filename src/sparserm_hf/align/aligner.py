"""Rounds of alignment: the policy writes pairs, a filter drops some, DPO trains on the others, the policy is measured.

`policy.py` generates, `responses.py` filters by the rewards of `sparse_judge.py`, `dpo.py` trains, `measures.py`
measures.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ..base_models import fingerprint_module
from ..monitoring import ALARM
from ..runtime import SparseRMError, process_state, replacing_folder
from ..scoring import ClassifierRewardModel
from .arms import CLASSIFIER, DENSE, NO_FILTER, RANDOM, SPARSERM, Arm, Outcome
from .dpo import TRAINING, train_adapter
from .measures import Measures
from .policy import Policy
from .questions import Contrast, Questions, read_questions
from .responses import Judge, Row, conversations, filter_pairs, keep_as_many, reasons, write_responses
from .round_figures import draw_rewards
from .round_files import read_rows, write_json, write_rows
from .settings import AlignmentConfig
from .sparse_judge import SparseJudge
from .truthfulqa import Item, drop_asked

logger = logging.getLogger(__name__)

# Settings that may change when an interrupted run is continued.
MAY_CHANGE = ("output_dir", "num_rounds", "max_kl", "max_length_ratio")
MAY_CHANGE_FOR_MEMORY = ("generation_batch_size", "train_batch_size", "gradient_checkpointing")
MANY = 1000  # distance between the seeds of two rounds


class IterativeAligner:
    """Align a policy with a reward model, in rounds (SparseRM, arXiv 2511.07896, section on online alignment).

    In each round the policy writes pairs of responses, the reward model drops some pairs, and DPO trains a LoRA
    adapter of the policy on the kept pairs. Each filter that is run is called an arm.

    Args:
        policy: Instruction-tuned model: Hub id, folder or GGUF file.
        reward_model: SparseRM checkpoint: folder or Hub id. Its base model may differ from the policy.
        config: Settings of the run.
        questions: Rows with a `prompt` or a `question`.
        eval_pairs: Preference pairs, for the preference accuracy. Pairs whose prompt is in `questions` are left out.
        truthfulqa: Items of TruthfulQA, for MC1 and MC2. Items whose question is in `questions` are left out.
        controls: Also run without a filter, with a random filter and with the dense control as the filter.
        control_reward_model: Sequence classifier to run as a filter too, such as TRL's `RewardTrainer` trains.
        revision: Revision of the policy on the Hub.
        reward_revision: Revision of the reward model on the Hub.

    Raises:
        SparseRMError: An argument is wrong, or the output folder holds a run with other settings.

    Example:
        ```python
        from sparserm_hf import AlignmentConfig, IterativeAligner, write_alignment_report

        config = AlignmentConfig("aligned", num_rounds=1, held_out_questions=2, max_new_tokens=8)
        questions = [{"question": f"Is {n} a prime number?"} for n in range(20)]
        aligner = IterativeAligner("my-policy", "my-reward-model", config, questions)
        outcome = aligner.run()
        print(outcome.adapter, write_alignment_report(aligner, outcome))
        ```
    """

    def __init__(
        self,
        policy: str,
        reward_model: str,
        config: AlignmentConfig,
        questions: Iterable[Mapping[str, Any]],
        eval_pairs: Any = None,
        truthfulqa: list[Item] | None = None,
        controls: bool = False,
        control_reward_model: str | None = None,
        revision: str | None = None,
        reward_revision: str | None = None,
    ):
        if process_state().num_processes > 1:
            raise SparseRMError("sparserm align runs in one process: start it without a launcher.")
        self.policy, self.config = policy, config
        self.device, self.folder = process_state().device, Path(config.output_dir)
        self.contrast = Contrast.load(config.task) if config.pairs == "contrast" else None
        given = read_questions(questions)
        self.questions = Questions.split(given, config)
        # Drop all questions of the file, not only those of the rounds, so that added rounds keep the same items.
        items = drop_asked(truthfulqa or [], (question[-1]["content"] for question in given))
        self.measures = Measures.of(self.questions.held_out, eval_pairs, items).without(given)
        self.judge = SparseJudge.load(reward_model, reward_revision)
        control = ClassifierRewardModel.load(control_reward_model, self.device) if control_reward_model else None
        if controls:
            self.judge.check_controls(reward_model)
        self.arms = self._make_arms(controls, control)
        self.load = partial(Policy.load, policy, self.device, revision=revision)
        # Errors of the policy, and texts too long for it, must show before a file is written.
        loaded = self.load()
        loaded.check_lengths(given, self.contrast, config.max_new_tokens)
        loaded.check_pairs(self.measures.pairs)
        models = {
            "policy": policy,
            "revision": revision,
            "reward_model": reward_model,
            "reward_revision": reward_revision,
            "policy's weights": fingerprint_module(loaded.model),
            "control_reward_model": control_reward_model,
            "control reward model's weights": control and fingerprint_module(control.model),
        }
        self._take_up(asdict(config) | models | self._digests())

    def _make_arms(self, controls: bool, control: Judge | None) -> list[Arm]:
        arms = [Arm(SPARSERM, self.judge)]
        if controls:
            if self.contrast:  # for best-of-n, only a judge says which of the n responses is better
                arms.append(Arm(NO_FILTER))
            arms += [Arm(RANDOM, like=self.judge), Arm(DENSE, self.judge.dense)]
        return [*arms, Arm(CLASSIFIER, control)] if control else arms

    def _digests(self) -> dict[str, str]:
        """Fingerprints of the reward model's head, of the questions, and of the evaluation data."""
        return {
            "reward model's head": _digest(self.judge.fingerprint),
            "what is asked": _digest([self.contrast and asdict(self.contrast), self.questions.rounds[0]]),
            "evaluation data": _digest(asdict(self.measures)),
        }

    def _take_up(self, settings: dict[str, Any]) -> None:
        """Continue the run in the folder if its settings are the same; begin a run if the folder is empty."""
        path = self.folder / "settings.json"
        if not path.is_file():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise SparseRMError(
                    f"The output folder {str(self.folder)!r} holds something else than a run: name another "
                    "folder, or empty it."
                )
            write_json(path, settings)
            return
        before = json.loads(path.read_text("utf-8"))
        controls = (
            "control_reward_model",
            "control reward model's weights",
        )  # a continued run may add or drop this model
        settings |= {name: settings[name] or before.get(name) for name in controls}
        for name, value in settings.items():
            added = name in controls and before.get(name) is None
            if before.get(name) != value and name not in (*MAY_CHANGE, *MAY_CHANGE_FOR_MEMORY) and not added:
                raise SparseRMError(
                    f"{self.folder} holds a run with other settings: {name} is {before.get(name)!r} there and "
                    f"{value!r} now. Name another folder, or use the settings of that run."
                )
        if before.get("train_batch_size") != settings["train_batch_size"]:
            for begun in self.folder.rglob(f"*{TRAINING}"):  # the Trainer counts its steps in the old batch size
                shutil.rmtree(begun)
        write_json(path, settings)

    def run(self) -> Outcome:
        """Run all rounds of all arms; rounds that are finished already are not run again."""
        first = self._measure(self.folder / "first", None)
        rounds: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in self.arms}
        ended: dict[str, str] = {}
        for arm in self.arms:
            for number in range(1, self.config.num_rounds + 1):
                figures = self._round(arm, number, first)
                if figures is None:
                    ended[arm.name] = f"no pair of round {number} was kept"
                    break
                figures["stopped"] = self._runaway(figures, first)
                rounds[arm.name].append(figures)
                if figures["stopped"]:
                    ended[arm.name] = f"stopped after round {number}: {figures['stopped']}"
                    break
        sound = [figures for figures in rounds[SPARSERM] if not figures["stopped"]]
        best = max(sound, key=lambda figures: figures["reward"], default=None)
        adapter = None
        if best:
            adapter = self.folder / "adapter"
            with replacing_folder(adapter) as temporary:
                shutil.copytree(self.place(self.arms[0], best["round"]) / "adapter", temporary, dirs_exist_ok=True)
        return Outcome(first, rounds, ended, best["round"] if best else None, adapter)

    def place(self, arm: Arm, number: int) -> Path:
        """Return the folder of a round of an arm."""
        return self.folder / arm.folder / f"round-{number}"

    def _round(self, arm: Arm, number: int, first: dict[str, Any]) -> dict[str, Any] | None:
        """Run a round and return its figures; None if no pair was kept."""
        place = self.place(arm, number)
        file = place / "metrics.json"
        if file.is_file():
            return json.loads(file.read_text("utf-8"))
        logger.info("Round %d, %s", number, arm.name)
        before = self.place(arm, number - 1) / "adapter" if number > 1 else None
        pairs = self._pairs(arm, number, before)
        kept = [pair for pair in pairs if pair["kept"]]
        logger.info("Kept %d of %d pairs: %s", len(kept), len(pairs), reasons(pairs))
        if not kept:
            if arm.name == SPARSERM and number == 1:
                raise SparseRMError(
                    f"None of the {len(pairs)} pairs of round {number} was kept ({reasons(pairs)}): look at "
                    f"{place / 'pairs.jsonl'}, then start a new folder with a lower min_margin or another task."
                )
            return None
        adapter = place / "adapter"
        if not adapter.is_dir():
            policy = self.load(before, trainable=True)
            train_adapter(policy, kept, self.config, self.config.seed + MANY * number, adapter)
        figures = self._measure(place, adapter)
        figures |= {"round": number, "pairs": len(pairs), "kept": len(kept), "reasons": reasons(pairs)}
        write_json(file, figures)
        return figures

    def _pairs(self, arm: Arm, number: int, before: Path | None) -> list[Row]:
        """Return the pairs of a round, scored and filtered. In the first round all arms share the same responses."""
        place, config = self.place(arm, number), self.config
        path = place / "pairs.jsonl"
        if path.is_file():
            return read_rows(path)
        responses = (self.folder / "first" if number == 1 else place) / "responses.jsonl"
        seed = config.seed + MANY * MANY * number
        if responses.is_file():
            rows = read_rows(responses)
        else:
            rows = write_responses(self.load(before), self.questions.rounds[number - 1], config, seed, responses)
        texts = conversations(rows)
        rewards = arm.judge(texts).reshape(len(rows), -1) if arm.judge else None
        pairs = filter_pairs(rows, rewards, config, seed)
        if arm.like:
            counted = filter_pairs(rows, arm.like(texts).reshape(len(rows), -1), config, seed)
            pairs = keep_as_many(pairs, sum(pair["kept"] for pair in counted), seed)
        if arm.name == SPARSERM:
            drift = self.judge.drift(texts)
            for alarm in drift.alarms(ALARM):
                logger.info("The policy's responses differ from the reward model's training data: %s.", alarm)
            write_json(place / "drift.json", drift.flat())
            draw_rewards(pairs, place / "rewards.png")
        write_rows(path, pairs)
        return pairs

    def _measure(self, place: Path, adapter: Path | None) -> dict[str, Any]:
        file = place / "figures.json"
        if file.is_file():
            return json.loads(file.read_text("utf-8"))
        figures, answers = self.measures.take(self.load(adapter), self.judge, self.config)
        write_rows(place / "answers.jsonl", answers)
        write_json(file, figures)
        return figures

    def _runaway(self, figures: dict[str, Any], first: dict[str, Any]) -> str:
        """Return the reason to stop an arm after a round; empty if there is none."""
        if not figures["kl"] <= self.config.max_kl:
            return f"KL is {figures['kl']:.1f} nats a response, above max_kl = {self.config.max_kl:g}"
        ratio = figures["tokens"] / first["tokens"]
        if not 1 / self.config.max_length_ratio <= ratio <= self.config.max_length_ratio:
            return f"responses are {ratio:.2f} times as long as at first, beyond max_length_ratio"
        return ""


def _digest(value: Any) -> str:
    return f"of fingerprint {blake2b(json.dumps(value).encode(), digest_size=4).hexdigest()}"
