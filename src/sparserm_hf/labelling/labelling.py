"""`sparserm label`: responses are written, represented and shown on a page; the labels make a reward model."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..align import read_questions, read_rows
from ..conversations import Messages, load_preferences
from ..evaluation import RowName
from ..runtime import SparseRMError, process_state
from ..sae import LoadedSAE
from ..server import run_app
from ..training import SparseRMTrainer
from .label_files import HELD_OUT_FILE, TRAINING_FILE, LabelFiles, pair_key
from .labelling_settings import LabellingConfig
from .page import create_page
from .pool import Pool, pairs_of
from .session import EXCLUDED_FILE, Session

RESPONSES_FILE = "responses.jsonl"
STOP_SECONDS = 2  # seconds after a stop in which requests of the page are still answered


def label(
    questions: Iterable[Mapping[str, Any]],
    config: LabellingConfig,
    model: str,
    sae: str | LoadedSAE | None = None,
    policy: str | None = None,
    revision: str | None = None,
) -> None:
    """Serve a page on which pairs of responses are labelled, until the process is stopped.

    Each answer is written at once into `labels.jsonl` or, for a fifth of the prompts, `held-out.jsonl`. The page's
    button trains a reward model on the first file, measures it on the second, and saves it in `reward-model`.

    Args:
        questions: Rows with a `prompt` or a `question`, a string or messages; without a policy they have `responses`
            too, a list of strings.
        config: Settings.
        model: Base model: a Hub id, a folder or a GGUF file.
        sae: SAE: anything that `load_sae` takes; None and `auto` choose a published SAE of the base model.
        policy: Language model that writes the responses: a Hub id, a folder or a GGUF file.
        revision: Revision of the base model on the Hub.

    Raises:
        SparseRMError: A model cannot be loaded, a row is malformed, or the folder holds something else.

    Example:
        ```python
        from threading import Thread

        from sparserm_hf import LabellingConfig, label

        asked = [{"question": "What is the capital of Italy?", "responses": ["Rome.", "Milan.", "Rome, of course."]}]
        settings = LabellingConfig("my-new-labels", port=0)
        page = Thread(target=label, args=(asked, settings, "my-base-model", "my-sae"), daemon=True)
        page.start()
        page.join(5)  # seconds; by then the address of the page is printed
        ```
    """
    labels, excluded = LabelFiles(config.folder).rows, _read_excluded(config.folder / EXCLUDED_FILE)
    rows = pairs_of(questions if policy is None else _responses(questions, policy, config))
    known = {pair_key(row) for row in rows}
    rows += [row for row in labels if pair_key(row) not in known]  # labels on other responses count too
    pool = Pool.represent(rows, SparseRMTrainer(model, sae, config.training(), rows, revision=revision))

    def finish(excluded: list[int]) -> str:
        return train_on_labels(config, model, sae, revision, excluded)

    token, session = secrets.token_urlsafe(16), Session(pool, config.folder, finish, excluded, config.seed)
    run_app(create_page(session, token), "127.0.0.1", config.port, STOP_SECONDS, end=f"/#{token}")


def _responses(questions: Iterable[Mapping[str, Any]], policy: str, config: LabellingConfig) -> list[dict[str, Any]]:
    """Have the policy write responses, or read the responses that it wrote in an earlier session."""
    asked, path = read_questions(questions), config.folder / RESPONSES_FILE
    if not path.is_file():
        _write_responses(asked, policy, config, path)
    try:
        found = [{"prompt": r["prompt"], "responses": [of["text"] for of in r["responses"]]} for r in read_rows(path)]
    except (KeyError, TypeError, ValueError):
        found = []
    if [row["prompt"] for row in found] != asked or any(len(r["responses"]) != config.num_responses for r in found):
        raise SparseRMError(
            f"{path} holds something else than {config.num_responses} responses to each of these questions: name "
            "another output_dir, or remove that file."
        )
    return found


def _write_responses(asked: list[Messages], policy: str, config: LabellingConfig, path: Path) -> None:
    from ..align import Policy, write_responses

    writer = Policy.load(policy, process_state().device)
    writer.check_lengths(asked, None, config.max_new_tokens)
    write_responses(writer, asked, config.writing(), config.seed, path)


def _read_excluded(path: Path) -> list[int]:
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(type(latent) is int and latent >= 0 for latent in found):
        raise SparseRMError(f"{path} must hold a list of ids of latents: mend or remove it.")
    return found


def train_on_labels(
    config: LabellingConfig, model: str, sae: str | LoadedSAE | None, revision: str | None, excluded: list[int]
) -> str:
    """Train a reward model on the labels of a folder, as `sparserm train` does, and save it.

    Returns:
        A sentence on the model and its accuracy.

    Raises:
        SparseRMError: There are too few labels.
    """
    training, held_out = (config.folder / name for name in (TRAINING_FILE, HELD_OUT_FILE))
    if not training.is_file():
        raise SparseRMError("There are no labels to train on yet: answer some pairs first.")
    files = LabelFiles(config.folder)
    settings = config.training(",".join(map(str, excluded)))
    trainer = SparseRMTrainer(
        model,
        sae,
        settings,
        load_preferences(str(training)),
        load_preferences(str(held_out)) if files.held_out else None,
        revision=revision,
    )
    trainer.train()
    trainer.save_model()
    saved = f"Saved {settings.output_dir}, trained on {len(files.training)} labels"
    if trainer.evaluation is None:
        return f"{saved}."
    found = trainer.evaluation.metrics[RowName.REWARD_MODEL]
    return f"{saved}: {found} right on {found.pairs} held-out labels."
