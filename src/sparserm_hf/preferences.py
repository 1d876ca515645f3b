"""Preference pairs: loaded, checked, put through the chat template, tokenised."""

from __future__ import annotations

import gzip
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from datasets import Dataset, load_dataset
from jinja2 import TemplateError
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from .errors import SparseRMError

logger = logging.getLogger(__name__)

Messages = list[dict[str, str]]
Text = str | Messages

# For base models without a chat template of their own; saved with the reward model. A turn is
# "User: ..." or "Assistant: ...", turns are apart by an empty line, an answer ends with the end-of-text token.
PLAIN_CHAT_TEMPLATE = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token or '' }}{% endif %}\n\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
FORMATS = (
    "Each row needs `chosen` and `rejected`, both strings or both lists of {'role', 'content'}, and may have a "
    "`prompt` of the same form and a number `margin`."
)


@dataclass(frozen=True)
class TokenizedPreferences:
    """Preference pairs as token ids; pair i is `texts[chosen[i]]` against `texts[rejected[i]]`.

    Attributes:
        texts: Token ids of each distinct text.
        chosen: Index of each pair's chosen text.
        rejected: Index of each pair's rejected text.
        margins: How much better each chosen response is at least; 0 where the data does not say.
        groups: For each pair, the number of its prompt: pairs of one prompt must not be split between training and
            validation.
        left_out: How many pairs were left out, by reason.
        truncated: How many pairs lost the start of their prompt.
    """

    texts: list[list[int]]
    chosen: list[int]
    rejected: list[int]
    margins: list[float]
    groups: list[int]
    left_out: dict[str, int]
    truncated: int

    def __len__(self) -> int:
        return len(self.chosen)

    def summary(self) -> str:
        """One line: how many pairs, and what happened to the rest."""
        parts = [f"{len(self)} pairs, {len(self.texts)} distinct texts"]
        parts += [f"{count} left out ({reason})" for reason, count in sorted(self.left_out.items())]
        if self.truncated:
            parts.append(f"{self.truncated} lost the start of their prompt")
        return "; ".join(parts)


def _open_text(path: Path) -> TextIO:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def iterate_json(path: Path | TextIO) -> Iterator[dict[str, Any]]:
    """Rows of a JSON Lines stream or file (.gz too), or of a .json file that holds one list.

    Raises:
        SparseRMError: A line is not a JSON object; its number is told.
    """
    name = str(path) if isinstance(path, Path) else "standard input"
    try:
        with _open_text(path) if isinstance(path, Path) else path as stream:
            lines: Iterable[str] = stream
            if isinstance(path, Path) and ".json" in path.suffixes:
                content = stream.read()
                if content.lstrip().startswith("["):
                    yield from json.loads(content)
                    return
                lines = content.splitlines()
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _json_object(line, f"{name}: line {number}")
    except json.JSONDecodeError as error:
        raise SparseRMError(f"{name}: line {error.lineno} is broken JSON ({error.msg}).") from None
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise SparseRMError(f"{name} cannot be read as text: {error}.") from None


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise SparseRMError(f"{where} is broken JSON ({error.msg}).") from None
    if not isinstance(row, dict):
        raise SparseRMError(f'{where} is not a JSON object such as {{"chosen": "...", "rejected": "..."}}.')
    return row


def load_preferences(source: str, split: str = "train") -> Dataset:
    """Load preference pairs.

    Args:
        source: A local .json, .jsonl, .jsonl.gz, .csv or .parquet file, or the id of a dataset on the Hub.
        split: Which split of a dataset on the Hub; slices such as `train[:1000]` work for local files too.

    Raises:
        SparseRMError: The file is missing, empty, broken or of another kind.
    """
    path = Path(source)
    suffix = next((s for s in path.suffixes if s in (".json", ".jsonl", ".csv", ".parquet")), None)
    if not suffix:
        if path.is_file():
            raise SparseRMError(f"{source} is not a .json, .jsonl, .jsonl.gz, .csv or .parquet file.")
        try:
            return load_dataset(source, split=split)
        except Exception as error:  # datasets and huggingface_hub raise a dozen kinds
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise SparseRMError(f"The dataset {source!r}, split {split!r}, cannot be loaded: {reason[0]}") from error
    if not path.is_file():
        raise SparseRMError(f"There is no file {source}.")
    if suffix in (".json", ".jsonl"):
        rows = list(iterate_json(path))
        try:
            dataset = Dataset.from_list(rows)
        except Exception as error:  # pyarrow's, for columns of mixed kinds
            raise SparseRMError(f"{source}: the rows are not of one form ({error}). {FORMATS}") from error
    else:
        try:
            dataset = load_dataset(suffix[1:], data_files=source, split="train")
        except Exception as error:
            raise SparseRMError(f"{source} cannot be read as {suffix[1:]}: {error}") from error
    if len(dataset) == 0:
        raise SparseRMError(f"{source} is empty. {FORMATS}")
    start, stop = _slice_of(split, len(dataset))
    return dataset.select(range(start, stop))


def _slice_of(split: str, length: int) -> tuple[int, int]:
    """The rows that a split such as `train`, `train[:1000]` or `train[1000:]` names in a local file."""
    inner = split.partition("[")[2].rstrip("]")
    if not inner:
        return 0, length
    start, colon, stop = inner.partition(":")
    if not colon or not all(part == "" or part.isdigit() for part in (start, stop)):
        raise SparseRMError(f"The split {split!r} of a local file must look like train, train[:1000] or train[200:].")
    return min(int(start or 0), length), min(int(stop or length), length)


def check_columns(columns: Iterable[str]) -> None:
    """Raise a `SparseRMError` unless the columns hold preference pairs."""
    missing = [name for name in ("chosen", "rejected") if name not in columns]
    if missing:
        raise SparseRMError(
            f"The column {missing[0]!r} is missing; the columns are {', '.join(columns) or 'none'}. {FORMATS}"
        )


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    )


def split_prompt(row: Mapping[str, Any], number: int) -> tuple[Text, Text, Text]:
    """Check a row and return its prompt, chosen and rejected response.

    Where the prompt is implicit it is what chosen and rejected begin with: messages in common, or characters.

    Args:
        row: A row in one of TRL's preference formats.
        number: Its number, from 1, for the error.

    Raises:
        SparseRMError: A value is missing or of another form.
    """
    texts = [row.get(name) for name in ("prompt", "chosen", "rejected")]
    given = [text for text in texts if text is not None]
    if texts[1] is None or texts[2] is None:
        raise SparseRMError(f"Row {number} has no {'chosen' if texts[1] is None else 'rejected'} response. {FORMATS}")
    if all(isinstance(text, str) for text in given) or all(_is_messages(text) for text in given):
        prompt, chosen, rejected = texts
        if prompt is None:
            length = common_prefix_length(chosen, rejected)
            prompt, chosen, rejected = chosen[:length], chosen[length:], rejected[length:]
        return prompt, chosen, rejected
    kinds = ", ".join(f"{n} is {type(t).__name__}" for n, t in zip(("prompt", "chosen", "rejected"), texts, strict=True))
    raise SparseRMError(f"Row {number} is of another form: {kinds}. {FORMATS}")


def common_prefix_length(a: Any, b: Any) -> int:
    """Number of leading items that two sequences have in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _is_empty(response: Text) -> bool:
    return not any((part if isinstance(part, str) else part["content"]).strip() for part in response)


def encode(tokenizer: PreTrainedTokenizerBase, text: Text, add_generation_prompt: bool = False) -> list[int]:
    """Token ids of a plain text, or of messages put through the chat template; never with a doubled BOS.

    Raises:
        SparseRMError: The chat template refuses the messages.
    """
    if not isinstance(text, str):
        try:
            text = tokenizer.apply_chat_template(text, tokenize=False, add_generation_prompt=add_generation_prompt)
        except TemplateError as error:
            raise SparseRMError(f"The chat template refuses a conversation: {error}.") from error
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    has_bos = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    return tokenizer(text, add_special_tokens=not has_bos)["input_ids"]


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Give a tokenizer, in place, what a reward model needs: a pad token, a chat template, truncation on the left.

    Raises:
        SparseRMError: It has neither a pad nor an end-of-text token.
    """
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise SparseRMError(
                "The tokenizer has neither a pad token nor an end-of-text token: set tokenizer.pad_token to a token "
                "of its vocabulary."
            )
        logger.info("The tokenizer has no pad token; %s is used.", tokenizer.eos_token)
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        logger.info("The tokenizer has no chat template; the plain one of sparserm-hf is used and saved.")
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    tokenizer.truncation_side = "left"
    return tokenizer


def assistant_header_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that the chat template puts before every assistant message, whatever stands around them.

    Empty where there are none. Found by rendering several conversations and keeping the longest run of tokens that
    stands between the question and the answer in all of them: at the edges a token may merge with the text.
    """
    runs = []
    for question in ("What is it?", "Tell me more.", "x"):
        for answer in ("It is this.", "\n\nThis.", "1. this", " that"):
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            text = tokenizer.apply_chat_template(messages, tokenize=False)
            end = text.rindex(answer.strip())
            start = text.rindex(question, 0, end) + len(question)
            tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            spans = zip(tokens["input_ids"], tokens["offset_mapping"], strict=True)
            runs.append([token for token, (left, right) in spans if start <= left < right <= end])
    shortest = min(runs, key=len)
    for length in range(len(shortest), 0, -1):
        for i in range(len(shortest) - length + 1):
            candidate = shortest[i : i + length]
            if all(any(run[j : j + length] == candidate for j in range(len(run))) for run in runs):
                return candidate
    return []


def truncate(ids: list[int], prompt_length: int, max_length: int, bos: int | None) -> list[int] | None:
    """Take tokens off the start of the prompt until `max_length` are left; None where the response is too long.

    A begin-of-text token at the start stays.
    """
    if len(ids) <= max_length:
        return ids
    head = ids[:1] if ids[0] == bos else []
    keep = max_length - len(head)
    return None if len(ids) - prompt_length > keep else head + ids[len(ids) - keep :]


def tokenize_preferences(
    rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> TokenizedPreferences:
    """Check and tokenise preference pairs in any of TRL's formats.

    Left out and counted: pairs with an empty response, with twice the same text, or with a response longer than
    `max_length`. Longer pairs lose the start of their prompt, never the response.

    Args:
        rows: A `datasets.Dataset` or any iterable of rows.
        tokenizer: With a chat template, see `prepare_tokenizer`.
        max_length: Most tokens a text may have.

    Raises:
        SparseRMError: A row is of another form, or no pair is left.
    """
    index: dict[tuple[int, ...], int] = {}
    prompts: dict[str, int] = {}
    pairs: list[tuple[int, int, float, int]] = []
    left_out: Counter[str] = Counter()
    truncated = 0
    number = 0
    for number, row in enumerate(tqdm(rows, desc="Tokenising", unit="pair", delay=2), 1):
        if number == 1:
            check_columns(list(row))
        prompt, *responses = split_prompt(row, number)
        if any(map(_is_empty, responses)):
            left_out["empty response"] += 1
            continue
        ids = [encode(tokenizer, prompt + response) for response in responses]
        if ids[0] == ids[1]:
            left_out["chosen and rejected are identical"] += 1
            continue
        if max(map(len, ids)) > max_length:
            prompt_ids = encode(tokenizer, prompt, add_generation_prompt=True)
            bos = tokenizer.bos_token_id
            shorter = [truncate(x, common_prefix_length(prompt_ids, x), max_length, bos) for x in ids]
            if shorter[0] is None or shorter[1] is None:
                left_out[f"response longer than max_length = {max_length}"] += 1
                continue
            truncated += 1
            ids = [shorter[0], shorter[1]]
        chosen, rejected = (index.setdefault(tuple(x), len(index)) for x in ids)
        margin = row.get("margin")
        group = prompts.setdefault(json.dumps(prompt), len(prompts))
        pairs.append((chosen, rejected, float(margin) if margin is not None else 0.0, group))
    if not pairs:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise SparseRMError(f"No usable pair in {number} rows{f' ({reasons})' if reasons else ''}. {FORMATS}")
    columns = [list(column) for column in zip(*pairs, strict=True)]
    return TokenizedPreferences([list(text) for text in index], *columns, dict(left_out), truncated)
