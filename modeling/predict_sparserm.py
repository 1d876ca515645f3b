"""The methods of a reward model that take conversations: `predict` and `rank`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from .further_heads_sparserm import HeadInput
from .messages_sparserm import in_parts, plain_messages, takes_parts_only
from .response_sparserm import find_response
from .special_tokens_sparserm import SpecialTokens
from .text_sparserm import EncodedText, encode_messages, encode_string, keep_end, reasoning_tags

MOST_REASON = 200  # characters of the reason for which a chat template refuses a conversation


class RankedResponse(NamedTuple):
    """A response with its index in the given list and its reward."""

    index: int
    reward: float
    response: str


class ConversationEncoder:
    """Encode conversations and strings for a reward model.

    Args:
        tokenizer: The reward model's tokenizer.
        config: The reward model's `SparseRMConfig`.
        vocabulary: Number of tokens in the reward model's embedding.

    Raises:
        ValueError: The tokenizer is not a fast one.
    """

    def __init__(self, tokenizer: Any, config: Any, vocabulary: int):
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"The tokenizer is a {type(tokenizer).__name__}, but must be a fast one: load the reward model's by "
                "AutoTokenizer.from_pretrained."
            )
        self.tokenizer, self.config, self.vocabulary = tokenizer, config, vocabulary
        self.specials = SpecialTokens(tokenizer)
        self.tags = reasoning_tags(tokenizer, config.response_marks)
        self.parts_only = takes_parts_only(lambda messages: tokenizer.apply_chat_template(messages, tokenize=False))

    def __call__(self, text: Any, where: str) -> EncodedText:
        """Encode a conversation, a row or a string; see `ScoresConversations.predict`.

        Raises:
            ValueError: The text has none of these forms, is empty, is refused by the chat template, or has a token
                that the reward model does not know.
        """
        marks, place = self.config.response_marks, None
        row = text if isinstance(text, Mapping) else {"messages": text}
        messages = [] if isinstance(text, str) else plain_messages(row.get("messages"), where)
        try:
            if isinstance(text, str):
                text.encode()  # half of a surrogate pair is no text
                ids = encode_string(text, self.tokenizer, marks)
            else:
                ids, place = encode_messages(messages, self._renderer(row), self.specials, self.tags, marks)
        except Exception as error:  # a template may raise anything
            why = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
            raise ValueError(f"{where} cannot be encoded: {why:.{MOST_REASON}}.") from error
        if place is None:
            response = find_response(ids, marks, self.config.response_marker_ids)
            if response is None or not ids:
                raise ValueError(f"{where} holds no response: end it with the assistant's turn.")
            place = response.start, response.stop
        if max(ids) >= self.vocabulary:
            raise ValueError(
                f"{where} has the token id {max(ids)}, but the reward model has {self.vocabulary} tokens: use the "
                "tokenizer that it was trained with."
            )
        most = min(self.tokenizer.model_max_length, getattr(self.config, "max_position_embeddings", None) or len(ids))
        ids, (start, stop) = keep_end(ids, place, most, self.tokenizer.bos_token_id)
        return EncodedText(ids, (start, stop))

    def _renderer(self, row: Mapping[str, Any]) -> Callable[[list[dict[str, Any]]], str]:
        given = self.specials.hide({"tools": row.get("tools"), **(row.get("chat_template_kwargs") or {})})

        def render(messages: list[dict[str, Any]]) -> str:
            shaped = [in_parts(message) for message in messages] if self.parts_only else messages
            written = self.tokenizer.apply_chat_template(shaped, tokenize=False, **given)
            written.encode()
            return written

        return render


class ScoresConversations:
    """The part of a reward model that takes conversations: `predict` and `rank`."""

    config: Any
    directions: torch.Tensor
    head_input: Any
    get_input_embeddings: Any
    reward: Any
    objective_rewards: Any

    @torch.inference_mode()
    def predict(self, conversations: Sequence[Any], tokenizer: Any, batch_size: int = 16) -> list[float]:
        """Compute the rewards of conversations.

        The spelling of a special token inside a content is ordinary text, so that a response cannot fake a turn.

        Args:
            conversations: Each a list of messages that ends with the assistant's message, a row with such `messages`
                and perhaps `tools` and `chat_template_kwargs`, or a string.
            tokenizer: The reward model's tokenizer, a fast one.
            batch_size: Number of texts in a batch, at least 1. A batch has texts of similar length.

        Returns:
            A reward for each conversation.

        Raises:
            ValueError: A conversation does not end with the assistant's message, has a content that is no text, or is
                refused by the chat template; a text is empty; the tokenizer is another model's; `conversations` is a
                single conversation; or `batch_size` is below 1.

        Example:
            ```python
            from sparserm_hf import load_reward_model

            model, tokenizer = load_reward_model("my-reward-model")
            question = {"role": "user", "content": "What is the capital of Italy?"}
            rewards = model.predict([[question, {"role": "assistant", "content": "Rome."}]], tokenizer)
            ```
        """
        return self.reward(*self._head_input_of(conversations, tokenizer, batch_size))[:, 0].tolist()

    @torch.inference_mode()
    def predict_objectives(
        self, conversations: Sequence[Any], tokenizer: Any, batch_size: int = 16
    ) -> list[dict[str, float]]:
        """Compute the rewards of conversations by objective, with a combined reward model.

        Args:
            conversations: See `predict`.
            tokenizer: The reward model's tokenizer, a fast one.
            batch_size: See `predict`.

        Returns:
            For each conversation, its rewards by objective name.

        Raises:
            ValueError: The reward model is not a combined one, or see `predict`.

        Example:
            ```python
            from sparserm_hf import combine, load_reward_model

            combine(["my-reward-model", "another-reward-model"], "my-combined-reward-model")
            model, tokenizer = load_reward_model("my-combined-reward-model")
            question = {"role": "user", "content": "What is the capital of Italy?"}
            print(model.predict_objectives([[question, {"role": "assistant", "content": "Rome."}]], tokenizer))
            ```
        """
        names = self.config.objective_names
        if not names:
            raise ValueError("This reward model has one objective: call predict.")
        rewards = self.objective_rewards(self._head_input_of(conversations, tokenizer, batch_size).features)
        return [dict(zip(names, row, strict=True)) for row in rewards.tolist()]

    def _head_input_of(self, conversations: Sequence[Any], tokenizer: Any, batch_size: int) -> HeadInput:
        """Turn N conversations into the head's input; see `predict`."""
        if batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size}, but must be at least 1.")
        given = list_of(conversations, "conversations", "conversation")
        if given and isinstance(given[0], Mapping) and "role" in given[0]:
            raise ValueError("`conversations` is a single conversation: put it into a list.")
        encode = ConversationEncoder(tokenizer, self.config, self.get_input_embeddings().num_embeddings)
        texts = [encode(text, f"Conversation {number}") for number, text in enumerate(given, 1)]
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i].ids))
        device, config = self.directions.device, self.config
        features = torch.zeros((len(texts), len(config.latents)), device=device)
        shares = torch.ones((len(texts), len(config.objectives)), device=device) if config.gate else None
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            ids = [torch.tensor(texts[i].ids) for i in batch]
            mask = nn.utils.rnn.pad_sequence([torch.ones_like(x) for x in ids], batch_first=True)
            padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)
            places = [texts[i].place for i in batch]
            features[batch], of_batch = self.head_input(padded.to(device), mask.to(device), responses=places)
            if shares is not None:
                shares[batch] = of_batch
        return HeadInput(features, shares)

    def rank(
        self, prompt: str | Sequence[Mapping[str, Any]], responses: Sequence[str], tokenizer: Any, batch_size: int = 16
    ) -> list[RankedResponse]:
        """Rank responses to a prompt by their rewards.

        Args:
            prompt: A string, or the messages before the response.
            responses: The responses.
            tokenizer: The reward model's tokenizer, a fast one.
            batch_size: See `predict`.

        Returns:
            The responses with index and reward, the best first.

        Raises:
            ValueError: `responses` is a single string, or see `predict`.

        Example:
            ```python
            from sparserm_hf import load_reward_model

            model, tokenizer = load_reward_model("my-reward-model")
            best = model.rank("What is the capital of Italy?", ["Milan.", "Rome."], tokenizer)[0]
            print(best.reward, best.response)
            ```
        """
        asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        given = list_of(responses, "responses", "response")
        conversations = [[*asked, {"role": "assistant", "content": response}] for response in given]
        rewards = self.predict(conversations, tokenizer, batch_size)
        ranked = [RankedResponse(i, reward, given[i]) for i, reward in enumerate(rewards)]
        return sorted(ranked, key=lambda response: -response.reward)


def list_of(values: Any, name: str, singular: str) -> list[Any]:
    """Return an argument that holds several texts as a list.

    Raises:
        ValueError: The argument is a single text or row.
    """
    if isinstance(values, (str, Mapping)):
        raise ValueError(f"`{name}` is a single {singular}: put it into a list.")
    return list(values)
