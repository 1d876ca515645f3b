"""The loop: each round the policy writes pairs, a filter drops some, DPO trains on the rest, and all is measured."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ..base_models import fingerprint_module
from ..monitoring import ALARM
from ..runtime import SparseRMError, process_state, replacing_folder
from .dpo import TRAINING, train_adapter
from .judges import ClassifierJudge, SparseJudge
from .measures import Measures
from .policy import Policy
from .questions import Contrast, Questions, read_questions
from .responses import Judge, Row, conversations, filter_pairs, keep_as_many, reasons, write_responses
from .round_figures import draw_rewards
from .round_files import read_rows, write_json, write_rows
from .settings import AlignmentConfig
from .truthfulqa import Item, without

logger = logging.getLogger(__name__)

SPARSERM, NO_FILTER, RANDOM, DENSE, CLASSIFIER = "SparseRM", "no filter", "random filter", "dense", "RewardTrainer"
FIRST = "first policy"
# Settings that a run may be taken up with though it was begun with others.
MAY_CHANGE = ("output_dir", "num_rounds", "max_kl", "max_length_ratio")
MAY_CHANGE_FOR_MEMORY = ("generation_batch_size", "train_batch_size", "gradient_checkpointing")
MANY = 1000  # seeds of a round


@dataclass(frozen=True)
class Arm:
    """One way to filter.

    Attributes:
        name: What it is called.
        judge: Rewards of conversations; None where nothing is judged.
        like: Keeps as many pairs as this judge would, drawn at random.
    """

    name: str
    judge: Judge | None = None
    like: Judge | None = None

    @property
    def folder(self) -> str:
        """What its folder is called."""
        return self.name.lower().replace(" ", "-")


@dataclass(frozen=True)
class Outcome:
    """What came out of a run.

    Attributes:
        first: Figures of the first policy.
        rounds: Figures of each round, by arm.
        ended: Why an arm ended before its last round, by arm.
        best: The round of the reward model's own arm whose answers it rewards most; None where none came to its end.
        adapter: Where that round's adapter is.
    """

    first: dict[str, Any]
    rounds: dict[str, list[dict[str, Any]]]
    ended: dict[str, str]
    best: int | None
    adapter: Path | None


class IterativeAligner:
    """Align a policy with a reward model, in rounds (SparseRM, arXiv 2511.07896, section on online alignment).

    Args:
        policy: An instruction-tuned model: Hub id, folder or GGUF file.
        reward_model: A SparseRM checkpoint: folder or Hub id. Its base model may be another.
        config: The settings.
        questions: Rows with a `prompt` or a `question`.
        eval_pairs: Preference pairs, for the preference accuracy; those that ask one of `questions` are left out.
        truthfulqa: Questions of TruthfulQA, for MC1 and MC2; those that are among `questions` are left out.
        controls: Whether the other filters are run too: none, a random one, the dense control.
        control_reward_model: A sequence classifier that is run as a filter too, such as TRL's `RewardTrainer` makes.
        revision: Of the policy on the Hub.
        reward_revision: Of the reward model on the Hub.

    Raises:
        SparseRMError: Something given is wrong, or the folder holds a run with other settings.
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
        self.policy, self.revision, self.config = policy, revision, config
        self.device, self.folder = process_state().device, Path(config.output_dir)
        contrast = Contrast.load(config.task) if config.pairs == "contrast" else None
        given = read_questions(questions)
        self.questions = Questions.split(given, config)
        # All of them, whichever rounds there are: a run that grows is measured on the same.
        items = without(truthfulqa or [], (question[-1]["content"] for question in given))
        if truthfulqa:
            logger.info(
                "Measured on the %d of %d questions of TruthfulQA not among these.", len(items), len(truthfulqa)
            )
            if not items:
                raise SparseRMError("All questions of TruthfulQA are among the questions: leave some out of these.")
        self.measures = Measures.of(self.questions.held_out, eval_pairs, items).without(given)
        self.judge = SparseJudge.load(reward_model, reward_revision)
        self.arms = [Arm(SPARSERM, self.judge)]
        if controls:
            self.judge.check_controls(reward_model)
            if config.pairs == "contrast":  # of n samples none is better without a judge
                self.arms.append(Arm(NO_FILTER))
            self.arms += [Arm(RANDOM, like=self.judge), Arm(DENSE, self.judge.dense)]
        control = ClassifierJudge.load(control_reward_model, self.device) if control_reward_model else None
        if control:
            self.arms.append(Arm(CLASSIFIER, control))
        self.load = partial(Policy.load, policy, self.device, revision=revision)
        # What is wrong with it, or too long for it, shows before anything is written.
        loaded = self.load()
        loaded.check_lengths(given, contrast, config.max_new_tokens)
        loaded.check_pairs(self.measures.pairs)
        self._take_up(
            asdict(config)
            | {
                "policy": policy,
                "revision": revision,
                "reward_model": reward_model,
                "reward_revision": reward_revision,
                "policy's weights": fingerprint_module(loaded.model),
                "control_reward_model": control_reward_model,
                "control reward model's weights": control and fingerprint_module(control.model),
                "reward model's head": _digest(self.judge.fingerprint),
                "what is asked": _digest([contrast and asdict(contrast), self.questions.rounds[0]]),
                "evaluation data": _digest(asdict(self.measures)),
            }
        )

    def _take_up(self, settings: dict[str, Any]) -> None:
        """Go on with the run in the folder, if its settings are the same; else begin one where it is empty."""
        path = self.folder / "settings.json"
        if not path.is_file():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise SparseRMError(f"{self.folder} holds something else than a run; name a new folder or empty it.")
            write_json(path, settings)
            return
        before = json.loads(path.read_text("utf-8"))
        controls = ("control_reward_model", "control reward model's weights")  # may be added, and left out
        settings |= {name: settings[name] or before.get(name) for name in controls}
        for name, value in settings.items():
            added = name in controls and before.get(name) is None
            if before.get(name) != value and name not in (*MAY_CHANGE, *MAY_CHANGE_FOR_MEMORY) and not added:
                raise SparseRMError(
                    f"{self.folder} holds a run with other settings: {name} is {before.get(name)!r} there and "
                    f"{value!r} now. Name another folder, or go on with what it was begun with."
                )
        if before.get("train_batch_size") != settings["train_batch_size"]:
            for begun in self.folder.rglob(f"*{TRAINING}"):  # its steps are others
                shutil.rmtree(begun)
        write_json(path, settings)

    def run(self) -> Outcome:
        """Run all rounds of all arms, or what is missing of them."""
        first = self._measure(self.folder / "first", None)
        rounds: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in self.arms}
        ended: dict[str, str] = {}
        for arm in self.arms:
            for number in range(1, self.config.num_rounds + 1):
                figures = self._round(arm, number, first)
                if figures is None:
                    ended[arm.name] = f"nothing was kept of the pairs of round {number}"
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
        """The folder of an arm's round."""
        return self.folder / arm.folder / f"round-{number}"

    def _round(self, arm: Arm, number: int, first: dict[str, Any]) -> dict[str, Any] | None:
        """One round; None where nothing was kept."""
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
                    f"Nothing was kept of the {len(pairs)} pairs of round {number} ({reasons(pairs)}): look at "
                    f"{place / 'pairs.jsonl'}; in a new folder, lower min_margin or ask otherwise (task)."
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
        """The pairs of a round, scored and filtered; what the first policy wrote is the same for all arms."""
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
                logger.info("What the policy writes is unlike what the reward model was trained on: %s.", alarm)
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
        """Why to stop; empty if all is well."""
        if not figures["kl"] <= self.config.max_kl:
            return f"KL is {figures['kl']:.1f} nats a response, above max_kl = {self.config.max_kl:g}"
        ratio = figures["tokens"] / first["tokens"]
        if not 1 / self.config.max_length_ratio <= ratio <= self.config.max_length_ratio:
            return f"responses are {ratio:.2f} times as long as at first, beyond max_length_ratio"
        return ""


def _digest(value: Any) -> str:
    return f"of fingerprint {blake2b(json.dumps(value).encode(), digest_size=4).hexdigest()}"
