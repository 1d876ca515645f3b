"""A labelling session: which pair comes next, the answers, and what is learned from them in the background."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from ..align import write_json
from ..evaluation import pair_metrics
from ..runtime import SparseRMError
from ..training import FEWEST_PROMPTS
from .label_files import EVERY, LabelFiles, is_held_out, pair_key
from .learner import Answer, Learned, learn, pick
from .pool import Pool

logger = logging.getLogger(__name__)

EXCLUDED_FILE = "excluded-latents.json"
SHOWN = 12  # latents in the list
SIDES = ("left", "right")

State = dict[str, Any]


class StaleError(Exception):
    """An answer is not about the pair that is shown now."""


class Session:
    """A labelling session in a folder, which continues an earlier session in the folder.

    All methods may be called from any thread. After a change, a head is fitted in the background.

    Args:
        pool: The pairs.
        folder: Folder of the labels.
        finish: Takes the ids of excluded latents, trains and saves a reward model, and describes it in a sentence.
        excluded: Ids of latents that must not be selected.
        seed: Seed of the random choices.
    """

    def __init__(
        self, pool: Pool, folder: Path, finish: Callable[[list[int]], str], excluded: list[int], seed: int = 42
    ):
        self.pool, self.folder, self.seed = pool, folder, seed
        self.files, self.excluded = LabelFiles(folder), excluded
        self._finish, self._draw = finish, np.random.default_rng(seed)
        self._held_out = np.array([is_held_out(row["prompt"]) for row in pool.rows])
        self._numbers = {pair_key(row): number for number, row in enumerate(pool.rows)}
        self._skipped: set[int] = set()
        self._learned: Learned | None = None
        self._names: dict[int, str] = {}
        self._message, self._finishing = "", False
        self._lock, self._worker = RLock(), ThreadPoolExecutor(1)
        self._version, self._fitted = 0, 0  # the present version of the labels, and the version that was fitted last
        self._current = self._pick()
        self._refit()

    def _answers(self, held_out: bool) -> list[Answer]:
        found = []
        for row in self.files.held_out if held_out else self.files.training:
            number = self._numbers.get(pair_key(row))
            if number is not None:  # a pair that cannot be trained on is not in the pool
                found.append(Answer(number, int(self.pool.rows[number]["chosen"] != row["chosen"])))
        return found

    def _pick(self) -> int | None:
        """Pick a pair. Every fifth is a random pair of a held-out prompt, for an accuracy without selection bias."""
        training, held_out = self._answers(held_out=False), self._answers(held_out=True)
        done = self._skipped | {answer.pair for answer in training + held_out}
        left = np.array([number for number in range(len(self.pool.rows)) if number not in done], int)
        parts = {of: left[self._held_out[left] == of] for of in (False, True)}
        wanted = len(self.files.rows) % EVERY == EVERY - 1
        part = parts[wanted] if len(parts[wanted]) else parts[not wanted]
        if not len(part):
            return None
        if self._held_out[part[0]]:
            return int(self._draw.choice(part))
        return pick(self.pool.pairs, part, training, self._learned, self._draw)

    def answer(self, pair: int, number: int, side: str) -> State:
        """Label the pair that is shown, or skip it.

        Args:
            pair: Index of the pair.
            number: Number of labels at the time when the pair was shown.
            side: `left` or `right`, the better response, or `neither` to skip the pair.

        Returns:
            The new state.

        Raises:
            StaleError: Another pair is shown by now.
        """
        with self._lock:
            if pair != self._current or number != len(self.files.rows):
                raise StaleError
            if side == "neither":
                self._skipped.add(pair)
            else:
                row = self.pool.rows[pair]
                both = [row[name] for name in self._order(pair)]
                chosen, rejected = both if side == SIDES[0] else reversed(both)
                self.files.add(row["prompt"], chosen, rejected)
                self._refit()
            self._current = self._pick()
            return self.state()

    def undo(self) -> State:
        """Take the last label back, and show its pair again; return the new state."""
        with self._lock:
            if self.files.rows:
                row = self.files.undo()
                self._current = self._numbers.get(pair_key(row), self._current)
                self._refit()
            return self.state()

    def switch(self, latent: int, on: bool) -> State:
        """Allow or forbid the reward model to use a latent; return the new state."""
        with self._lock:
            excluded = set(self.excluded) - {latent} | (set() if on else {latent})
            write_json(self.folder / EXCLUDED_FILE, sorted(excluded))
            self.excluded = sorted(excluded)
            self._refit()
            return self.state()

    def finish(self) -> State:
        """Train a reward model on the labels and save it, in the background; return the new state."""
        with self._lock:
            if not self._finishing:
                self._finishing, self._message = True, ""
                self._worker.submit(self._train)
            return self.state()

    def _train(self) -> None:
        message = "The reward model could not be trained; the log says why."
        try:
            message = self._finish(self.excluded)
        except (SparseRMError, OSError) as error:
            message = str(error)
        except Exception:
            logger.exception("Training on the labels failed.")
        finally:
            with self._lock:
                self._finishing, self._message = False, message

    def _refit(self) -> None:
        with self._lock:
            self._version += 1
            self._worker.submit(self._fit, self._version)

    def _fit(self, version: int) -> None:
        """Fit the head to the labels of a version, unless they have changed since."""
        with self._lock:
            if version != self._version:
                return
            answers, excluded = self._answers(held_out=False), self.excluded
        learned, names, message = None, dict[int, str](), ""
        try:
            if len(np.unique(self.pool.pairs.groups[[answer.pair for answer in answers]])) >= FEWEST_PROMPTS:
                learned = learn(self.pool.texts, self.pool.pairs, answers, excluded, self.seed)
                names = self.pool.names(learned.fitted.selected.latents.tolist() + excluded)
        except SparseRMError as error:
            message = str(error)
        except Exception:
            logger.exception("Fitting a head to the labels failed.")
            message = "No head could be fitted to the labels; the log says why."
        with self._lock:
            self._learned, self._names, self._fitted = learned, names, version
            self._message = message or self._message

    def wait(self) -> None:
        """Wait until everything in the background is done."""
        self._worker.submit(lambda: None).result()

    def _order(self, pair: int) -> tuple[str, str]:
        """Order the responses of a pair, the left one first: at random, but in the same order at every call."""
        names = ("chosen", "rejected")
        return names if np.random.default_rng([self.seed, pair]).random() < 0.5 else names[::-1]

    def state(self) -> State:
        """Describe the session as the page shows it."""
        with self._lock:
            return {
                "number": len(self.files.rows),
                "training": len(self.files.training),
                "pair": None if self._current is None else self._shown(self._current),
                "accuracy": self._accuracy(),
                "latents": self._latents(),
                "fitting": self._fitted != self._version,
                "finishing": self._finishing,
                "message": self._message,
            }

    def _shown(self, pair: int) -> State:
        row = self.pool.rows[pair]
        left, right = (row[name][-1]["content"] for name in self._order(pair))
        return {"id": pair, "prompt": row["prompt"], "left": left, "right": right}

    def _accuracy(self) -> State | None:
        held_out = self._answers(held_out=True)
        if self._learned is None or not held_out:
            return None
        found = pair_metrics(self.pool.pairs.margins(self._learned.rewards, held_out))
        return {"value": found.accuracy, "low": found.low, "high": found.high, "pairs": found.pairs}

    def _latents(self) -> list[State]:
        if self._learned is None:
            return [{"id": latent, "name": "", "share": 0.0, "on": False} for latent in self.excluded]
        ids, importances = self._learned.fitted.selected.latents.tolist(), self._learned.importances()
        largest = float(np.abs(importances).max()) or 1.0
        order = np.argsort(-np.abs(importances))[:SHOWN]
        seen = [
            {"id": ids[i], "name": self._names[ids[i]], "share": float(importances[i]) / largest, "on": True}
            for i in order
        ]
        listed = [{"id": of, "name": self._names.get(of, ""), "share": 0.0, "on": False} for of in self.excluded]
        return [of for of in seen if of["id"] not in self.excluded] + listed
