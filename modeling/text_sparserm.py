"""From conversations to token ids, with nothing but the tokenizer: a content cannot write structure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from .response_sparserm import count_bos, find_response, trim
from .special_tokens_sparserm import SpecialTokens

ANSWER = "\ufdd2"  # stands for an answer in a rendering
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")  # of a message, by various templates
WHITESPACE = " \t\n\r\v\f"  # each is one byte, so that tokens of it are told from others


class EncodedText(NamedTuple):
    """Token ids of a text, and the place of its response in them: first index, index after the last."""

    ids: tuple[int, ...]
    place: tuple[int, int]


class RankedResponse(NamedTuple):
    """A response with its index in the given list and its reward."""

    index: int
    reward: float
    response: str


def encode_conversation(
    text: Any, tokenizer: Any, specials: SpecialTokens, tags: tuple[str, str], config: Any
) -> EncodedText:
    """Encode a conversation or a string for a reward model.

    Args:
        text: A list of messages that ends with the assistant's message, a row with such `messages` and perhaps
            `tools` and `chat_template_kwargs`, or a string.
        tokenizer: The reward model's tokenizer.
        specials: Its special tokens.
        tags: Texts that open and close a reasoning block.
        config: The reward model's `SparseRMConfig`.

    Raises:
        ValueError: The conversation does not end with the assistant's message, or the text is empty.
    """
    marks, place = config.response_marks, None
    if isinstance(text, str):
        ids = encode_string(text, tokenizer, marks)
    else:
        row = text if isinstance(text, Mapping) else {"messages": text}
        messages = row.get("messages")
        if not messages or messages[-1].get("role") != "assistant":
            raise ValueError("A conversation must end with a message of the role assistant, whose reward is computed.")
        given = specials.hide({"tools": row.get("tools"), **(row.get("chat_template_kwargs") or {})})

        def render(guarded: list[dict[str, Any]]) -> str:
            return tokenizer.apply_chat_template(guarded, tokenize=False, **given)

        ids, place = encode_messages(messages, render, specials, tags, marks)
    if place is None:
        response = find_response(ids, marks, config.response_marker_ids)
        if response is None or not ids:
            raise ValueError("The text holds no response: end it with the assistant's turn.")
        place = response.start, response.stop
    most = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or len(ids))
    ids, (start, stop) = keep_end(ids, place, most, tokenizer.bos_token_id)
    return EncodedText(ids, (start, stop))


def encode_string(text: str, tokenizer: Any, marks: dict[str, Any] | None) -> tuple[int, ...]:
    """Tokenize a string; it gets the begin-of-text tokens that training gave such a text."""
    bos = tokenizer.bos_token
    ids = tuple(tokenizer(text, add_special_tokens=not (bos and text.startswith(bos)))["input_ids"])
    if marks is None:
        return ids
    found, wanted = count_bos(ids, tokenizer.bos_token_id, marks)
    return (tokenizer.bos_token_id,) * (wanted - found) + ids[max(found - wanted, 0) :]


def encode_messages(
    messages: Sequence[Mapping[str, Any]],
    render: Callable[[list[dict[str, Any]]], str],
    specials: SpecialTokens,
    tags: tuple[str, str],
    marks: dict[str, Any] | None,
) -> tuple[tuple[int, ...], tuple[int, int] | None]:
    """Encode messages, of which no content can write structure.

    Args:
        messages: They end with the assistant's message.
        render: The chat template: from messages to text.
        specials: Special tokens of the tokenizer.
        tags: Texts that open and close a reasoning block.
        marks: `SparseRMConfig.response_marks`; None for a checkpoint of version 0.1.

    Returns:
        Token ids, and the place of the response; None if `find_response` has to find it.
    """
    last = messages[-1]
    guarded = [guard(message, specials, tags) for message in messages]
    written = render(guarded)
    region, content = (0, 0), last.get("content")
    if isinstance(content, str):
        # Rendered again with a placeholder in the place of the answer, the template shows where the answer stands.
        reasoning = content[: len(content) - len(answer_of(last, tags))]
        marked = guard({**last, "content": reasoning}, specials, tags)
        region = region_between(written, render([*guarded[:-1], marked | {"content": marked["content"] + ANSWER}]))
    text, region, fakes = specials.spell(written, region)
    region = without_whitespace(text, region)
    ids, spans = specials.tokenize(text, region, fakes)
    # A tool call belongs to the response.
    return ids, None if marks is None or last.get("tool_calls") else place_of(ids, spans, region, marks)


def region_between(written: str, around: str) -> tuple[int, int]:
    """Find the answer in a rendered text, by the same text rendered with a placeholder; (0, 0) if it is not found."""
    ahead, found, behind = around.rpartition(ANSWER)
    known = bool(found) and written.startswith(ahead) and written.endswith(behind)
    known = known and len(ahead) + len(behind) <= len(written)
    return (len(ahead), len(written) - len(behind)) if known else (0, 0)


def without_whitespace(text: str, region: tuple[int, int]) -> tuple[int, int]:
    """Shrink a region of a text by the whitespace at its ends: a token before it may take in the space between."""
    start, stop = region
    content = text[start:stop]
    return start + len(content) - len(content.lstrip(WHITESPACE)), start + len(content.rstrip(WHITESPACE))


def place_of(
    ids: Sequence[int], spans: Sequence[tuple[int, int]], region: tuple[int, int], marks: dict[str, Any]
) -> tuple[int, int] | None:
    """Find the tokens of a region, without whitespace and reasoning; None if there are none."""
    inside = [i for i, (left, right) in enumerate(spans) if max(left, region[0]) < min(right, region[1])]
    start, stop = trim(ids, marks, inside[0], inside[-1] + 1) if inside else (0, 0)
    return (start, stop) if start < stop else None


def reasoning_tags(tokenizer: Any, marks: dict[str, Any] | None) -> tuple[str, str]:
    """Find the texts that open and close a reasoning block, by their token ids in the marks."""
    begin, end = (
        tokenizer.decode(marks[name][0]).strip() if marks and marks[name] else ""
        for name in ("begin_of_reasoning", "end_of_reasoning")
    )
    return begin, end


def answer_of(message: Mapping[str, Any], tags: tuple[str, str]) -> str:
    """Return a content without the reasoning block that it begins with, or without the opening of an endless one."""
    content, (begin, end) = message["content"], tags
    if not end or any(message.get(name) for name in REASONING_FIELDS):
        return content
    block, closed, answer = content.partition(end)
    return answer if closed else block.lstrip().removeprefix(begin) if block.lstrip().startswith(begin) else block


def guard(message: Mapping[str, Any], specials: SpecialTokens, tags: tuple[str, str]) -> dict[str, Any]:
    """Hide the spellings of special tokens in a message, but for the tags around an assistant's reasoning."""
    guarded: dict[str, Any] = specials.hide(message)
    content = message.get("content")
    if message.get("role") != "assistant" or not isinstance(content, str):
        return guarded
    answer, (begin, end) = answer_of(message, tags), tags
    if answer == content:
        return guarded
    closed = end if content[: len(content) - len(answer)].endswith(end) else ""
    block = content[: len(content) - len(answer) - len(closed)]
    blank = block[: len(block) - len(block.lstrip())]
    opened = begin if block.lstrip().startswith(begin) else ""
    block = block[len(blank + opened) :]
    return guarded | {"content": blank + opened + specials.hide(block) + closed + specials.hide(answer)}


def keep_end(
    ids: tuple[int, ...], places: Sequence[int], most: int, bos: int | None
) -> tuple[tuple[int, ...], list[int]]:
    """Cut a text to at most `most` tokens.

    The tokens after the response go first: the same conversation may come with them or without. Then tokens go from
    the start of the text; a begin-of-text token stays.

    Args:
        ids: Token ids.
        places: Indices that move along, the last of them the index after the response.
        most: Most tokens that are kept.
        bos: The begin-of-text token.
    """
    if len(ids) <= most:
        return ids, list(places)
    ids = ids[: max(places[-1], most)]
    head = ids[: int(ids[0] == bos)]
    taken = len(ids) - most
    return head + ids[taken + len(head) :], [max(i - taken, len(head)) if i else 0 for i in places]


def as_conversations(prompt: str | Sequence[Mapping[str, Any]], responses: Sequence[str]) -> list[Any]:
    """Make a conversation out of a prompt and each of some responses."""
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return [[*asked, {"role": "assistant", "content": response}] for response in responses]


class ScoresConversations:
    """The part of a reward model that takes conversations: `predict` and `rank`."""

    config: Any
    directions: torch.Tensor
    extract_features: Any
    reward: Any

    @torch.inference_mode()
    def predict(self, conversations: Sequence[Any], tokenizer: Any, batch_size: int = 16) -> list[float]:
        """Compute the rewards of conversations.

        The spelling of a special token inside a content is ordinary text, so that a response cannot write structure.

        Args:
            conversations: Each a list of messages that ends with the assistant's message, a row with such `messages`
                and perhaps `tools`, or a string.
            tokenizer: The reward model's tokenizer, a fast one.
            batch_size: Texts that are run at once, those of similar length together.

        Returns:
            A reward for each conversation.

        Raises:
            ValueError: A conversation does not end with the assistant's message, or a text is empty.

        Example:
            ```python
            from sparserm_hf import load_reward_model

            model, tokenizer = load_reward_model("my-reward-model")
            question = {"role": "user", "content": "What is the capital of Italy?"}
            rewards = model.predict([[question, {"role": "assistant", "content": "Rome."}]], tokenizer)
            ```
        """
        specials, tags = SpecialTokens(tokenizer), reasoning_tags(tokenizer, self.config.response_marks)
        texts = [encode_conversation(text, tokenizer, specials, tags, self.config) for text in conversations]
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i].ids))
        rewards = [0.0] * len(texts)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            ids = [torch.tensor(texts[i].ids) for i in batch]
            mask = nn.utils.rnn.pad_sequence([torch.ones_like(x) for x in ids], batch_first=True)
            padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)
            device = self.directions.device
            features = self.extract_features(
                padded.to(device), mask.to(device), responses=[texts[i].place for i in batch]
            )
            for i, reward in zip(batch, self.reward(features)[:, 0].tolist(), strict=True):
                rewards[i] = reward
        return rewards

    def rank(
        self, prompt: Any, responses: Sequence[str], tokenizer: Any, batch_size: int = 16
    ) -> list[RankedResponse]:
        """Rank responses to a prompt by their rewards.

        Args:
            prompt: A string, or the messages before the response.
            responses: The responses.
            tokenizer: The reward model's tokenizer, a fast one.
            batch_size: See `predict`.

        Returns:
            The responses with index and reward, the best first.

        Example:
            ```python
            from sparserm_hf import load_reward_model

            model, tokenizer = load_reward_model("my-reward-model")
            best = model.rank("What is the capital of Italy?", ["Milan.", "Rome."], tokenizer)[0]
            print(best.reward, best.response)
            ```
        """
        rewards = self.predict(as_conversations(prompt, responses), tokenizer, batch_size)
        ranked = [RankedResponse(i, reward, responses[i]) for i, reward in enumerate(rewards)]
        return sorted(ranked, key=lambda response: -response.reward)
