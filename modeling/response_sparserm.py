"""Find the final response, without its reasoning, among token ids, by the marks that a chat template writes."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PretrainedConfig

# Entries of `SparseRMConfig.response_marks`. Headers, `end_of_turn` and the two marks of reasoning are lists of token
# id sequences; each sequence is one way in which the mark is tokenised.
MARKS = (
    "assistant_header",  # text of the template before an assistant's turn
    "other_headers",  # text before the turns of other roles
    "end_of_turn",  # text after an assistant's turn
    "specials",  # token ids that never stand inside an assistant's turn, so that each ends the turn
    "begin_of_reasoning",
    "end_of_reasoning",
    "whitespace",  # ids of tokens that are only whitespace
    "bos_in_conversation",  # number of begin-of-text tokens at the start of a rendered conversation
    "bos_in_text",  # number of begin-of-text tokens at the start of a plain text
)


class Response(NamedTuple):
    """Place of the final response in a text.

    Attributes:
        header: Index of the first token of its assistant header; 0 in a plain text.
        turn: Index of the first token after the header; 0 in a plain text.
        start: Index of the first token of the response's content.
        stop: Index after the last token of the content. An empty response has `start == stop`.
    """

    header: int
    turn: int
    start: int
    stop: int


def occurrences(ids: Sequence[int], sequences: list[list[int]], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield (first index, index after the last) of each place in `ids[start:stop]` that holds one of the sequences."""
    ids = list(ids)
    for sequence in sequences:
        i = start
        while sequence:
            try:
                i = ids.index(sequence[0], i, stop)
            except ValueError:
                break
            if i + len(sequence) <= stop and ids[i : i + len(sequence)] == sequence:
                yield i, i + len(sequence)
            i += 1


def find_response(ids: Sequence[int], marks: dict[str, Any] | None, old_header: list[int]) -> Response | None:
    """Find the content of the final response in a text.

    The response starts at the first assistant header after the last header of another role, so that a response cannot
    move its own start by writing a header. It ends at the first end of turn, or at any other special token that the
    template does not write inside an assistant's turn. A reasoning block before the answer is left out; without an
    answer, the reasoning is the response. Whitespace around the content is left out.

    Args:
        ids: Token ids of a text, without padding.
        marks: `SparseRMConfig.response_marks`. Without them, as in a checkpoint of version 0.1, the response starts
            after the last `old_header` and ends with the text.
        old_header: `SparseRMConfig.response_marker_ids`.

    Returns:
        The response. If the text has no header, it is the whole text, without whitespace at both ends and ends of turn
        at its end. It is empty if another role has the last turn. None if the text has headers, but none of the
        assistant's.
    """
    if marks is None:
        found = max(occurrences(ids, [old_header], 0, len(ids)), default=(0, 0))
        return Response(*found, found[1], len(ids))
    stop = len(ids)
    headers = final_headers(ids, marks)
    if not headers:
        if any(True for _ in occurrences(ids, marks["assistant_header"], 0, stop)):
            return Response(stop, stop, stop, stop)  # another role has the last turn
        if any(True for _ in occurrences(ids, marks["other_headers"], 0, stop)):
            return None
        start, stop = trim(ids, marks, 0, stop, ends=True)
        return Response(0, 0, start, stop)
    header = min(start for start, _ in headers)
    turn = max(end for start, end in headers if start == header)
    specials = set(marks["specials"])
    stop = next((i for i in range(turn, stop) if ids[i] in specials), stop)
    stop = min((start for start, _ in occurrences(ids, marks["end_of_turn"], turn, stop)), default=stop)
    return Response(header, turn, *skip_reasoning(ids, marks, turn, stop))


def final_headers(ids: Sequence[int], marks: dict[str, Any]) -> list[tuple[int, int]]:
    """List where the assistant's headers start and end that come after the last header of another role."""
    others = occurrences(ids, marks["other_headers"], 0, len(ids))
    last_other = max((start for start, _ in others), default=-1)
    return list(occurrences(ids, marks["assistant_header"], last_other + 1, len(ids)))


def is_conversation(ids: Sequence[int], marks: dict[str, Any]) -> bool:
    """Tell if a text holds a header of the chat template, which makes it a conversation."""
    headers = marks["assistant_header"] + marks["other_headers"]
    return any(True for _ in occurrences(ids, headers, 0, len(ids)))


def count_bos(ids: Sequence[int], bos: int | None, marks: dict[str, Any]) -> tuple[int, int]:
    """Count the begin-of-text tokens that a text has, and return also the number that it must have to be scored."""
    if bos is None:
        return 0, 0
    found = next((i for i, token in enumerate(ids) if token != bos), len(ids))
    if is_conversation(ids, marks):
        return found, marks["bos_in_conversation"]
    return found, max(marks["bos_in_text"], min(found, 1))


def skip_reasoning(ids: Sequence[int], marks: dict[str, Any], start: int, stop: int) -> tuple[int, int]:
    """Find the answer in a turn `ids[start:stop]`; without an answer, find the reasoning."""
    turn = start
    start, stop = trim(ids, marks, turn, stop)
    # SentencePiece may write a space before the opening tag: it belongs to the tag's tokens, and is whitespace too.
    begins = [end for at, end in occurrences(ids, marks["begin_of_reasoning"], turn, stop) if at <= start]
    inside = max(begins, default=start)  # after the opening tag
    end = min(occurrences(ids, marks["end_of_reasoning"], inside, stop), default=None)
    if end is None:
        return trim(ids, marks, inside, stop)
    answer = trim(ids, marks, end[1], stop)
    return answer if answer[0] < answer[1] else trim(ids, marks, inside, end[0])


def trim(ids: Sequence[int], marks: dict[str, Any], start: int, stop: int, ends: bool = False) -> tuple[int, int]:
    """Shrink `ids[start:stop]` by whitespace at both ends and, with `ends`, by ends of turn at its end."""
    blank = set(marks["whitespace"])
    closing = {sequence[0] for sequence in marks["end_of_turn"] if ends and len(sequence) == 1}
    while start < stop and ids[stop - 1] in blank | closing:
        stop -= 1
    while start < stop and ids[start] in blank:
        start += 1
    return start, stop


def align_bos(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, bos: int | None, marks: dict[str, Any], longest: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give texts as many begin-of-text tokens as in training: surplus ones are masked, a missing one is added.

    A tokenizer may add a second begin-of-text token to a rendered conversation, and a trainer may leave it out.

    Args:
        input_ids: (B, T) token ids.
        attention_mask: (B, T) attention mask.
        bos: Id of the begin-of-text token.
        marks: `SparseRMConfig.response_marks`.
        longest: Largest number of tokens that the base model takes.

    Returns:
        Token ids and mask, (B, T), or (B, T + 1) if a token was added to any text.
    """
    attention_mask, missing = attention_mask.clone(), []
    for ids, mask in zip(input_ids, attention_mask, strict=True):
        where = mask.nonzero()[:, 0]
        found, wanted = count_bos(ids[where].tolist(), bos, marks)
        mask[where[: max(found - wanted, 0)]] = 0
        missing.append(found < wanted and (longest is None or len(where) < longest))
    if any(missing):  # never more than one
        added = torch.tensor(missing, device=input_ids.device).to(attention_mask.dtype).unsqueeze(1)  # (B, 1)
        attention_mask = torch.cat([added, attention_mask], 1)
        input_ids = torch.cat([torch.full_like(input_ids[:, :1], bos or 0), input_ids], 1)
    return input_ids, attention_mask


def find_responses(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, config: PretrainedConfig
) -> list[tuple[int, int]]:
    """Find the content of the final response among the attended tokens of each of B texts (B, T).

    Returns:
        Index of the first token of each response, and the index after its last token; equal for a missing response.
    """
    found = []
    for ids, mask in zip(input_ids, attention_mask, strict=True):
        response = find_response(ids[mask.bool()].tolist(), config.response_marks, config.response_marker_ids)
        found.append((response.start, response.stop) if response else (0, 0))
    return found


def find_prompts(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    responses: Sequence[tuple[int, int]],
    marks: dict[str, Any],
) -> list[tuple[int, int]]:
    """Find the prompt among the attended tokens of each of B texts (B, T): all before the response's header.

    A reasoning block before the response is no part of the prompt, so that the prompt is the same for all responses.

    Args:
        input_ids: (B, T) token ids.
        attention_mask: (B, T) attention mask.
        responses: Place of the response in each text, see `find_responses`.
        marks: `SparseRMConfig.response_marks`.

    Returns:
        The index 0 and the index after the last token of each prompt; (0, 0) without a prompt, as in a plain text.
    """
    found = []
    for ids, mask, (start, _) in zip(input_ids, attention_mask, responses, strict=True):
        before = ids[mask.bool()][:start].tolist()
        found.append((0, min((at for at, _ in final_headers(before, marks)), default=0)))
    return found


def mask_from_padding(input_ids: torch.Tensor, config: PretrainedConfig) -> torch.Tensor:
    """Mark the tokens (B, T) of the texts: all but the pad tokens at either end.

    Args:
        input_ids: (B, T) token ids.
        config: Configuration with the ids of the special tokens.

    Raises:
        ValueError: Padding cannot be told from text: there is no pad token, or it may begin or end a text.
    """
    pad, bos, eos = config.pad_token_id, config.bos_token_id, config.eos_token_id
    if pad is None:
        if input_ids.shape[0] == 1:
            return torch.ones_like(input_ids)
        raise ValueError("Padding cannot be told from text without a pad token: pass attention_mask.")
    text = input_ids != pad
    mask = (text.cumsum(-1) > 0) & (text.flip(-1).cumsum(-1).flip(-1) > 0)
    if pad in (bos, *(eos if isinstance(eos, list) else [eos])) and not mask.all():
        raise ValueError(
            f"The pad token ({pad}) is also the end-of-text or begin-of-text token, so padding cannot be told from "
            "text: pass attention_mask."
        )
    return mask.long()
