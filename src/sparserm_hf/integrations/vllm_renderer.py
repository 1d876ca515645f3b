"""vLLM's renderer for a reward model: it turns texts and messages into the token ids of `sparserm score`."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from vllm.renderers.hf import HfRenderer

from ..modeling.predict_sparserm import ConversationEncoder
from ..modeling.text_sparserm import with_trained_bos

# Settings that render a prompt for generation. They are dropped: a reward model gets whole conversations.
FOR_ANSWERS = ("add_generation_prompt", "continue_final_message", "tokenize", "return_dict")


class RewardRenderer(HfRenderer):
    """Tokenise requests for a reward model.

    A text gets as many begin-of-text tokens as in training, whatever the request holds. The content of a message
    cannot create the special tokens of the chat template.
    """

    @cached_property
    def encoder(self) -> ConversationEncoder:
        """The encoder that `predict` uses."""
        config = self.model_config.hf_config
        return ConversationEncoder(self.get_tokenizer(), config, config.vocab_size)

    def render_messages(self, messages: list[Any], params: Any) -> tuple[list[Any], Any]:
        """Encode a conversation that ends with the assistant's message.

        Raises:
            ValueError: The request has a chat template of its own, or `ConversationEncoder` refuses the conversation.
        """
        settings = dict(params.chat_template_kwargs)
        if params.chat_template is not None or settings.pop("chat_template", None) is not None:
            raise ValueError("A reward model scores conversations by its own chat template: leave chat_template out.")
        tools = settings.pop("tools", None)
        settings = {name: value for name, value in settings.items() if name not in FOR_ANSWERS}
        plain = [dict(message) for message in messages]
        row = {"messages": plain, "tools": tools, "chat_template_kwargs": settings}
        return plain, {"prompt_token_ids": list(self.encoder(row, "The conversation").ids)}

    async def render_messages_async(self, messages: list[Any], params: Any) -> tuple[list[Any], Any]:
        """Encode a conversation, see `render_messages`."""
        return self.render_messages(messages, params)

    def _tokenize_prompt(self, prompt: Any, params: Any) -> Any:
        """Tokenise a string."""
        return self._build_tokens_prompt(self.encoder(prompt["prompt"], "The text").ids, prompt)

    def tokenize_prompt(self, prompt: Any, params: Any) -> Any:
        """Tokenise a string, or take its token ids, with the begin-of-text tokens of training."""
        return self._aligned(super().tokenize_prompt(prompt, params))

    async def tokenize_prompt_async(self, prompt: Any, params: Any) -> Any:
        """Tokenise a string, see `tokenize_prompt`."""
        return self._aligned(await super().tokenize_prompt_async(prompt, params))

    def _aligned(self, prompt: Any) -> Any:
        config = self.model_config.hf_config
        if config.response_marks is not None and "prompt_token_ids" in prompt:
            ids = with_trained_bos(prompt["prompt_token_ids"], config.bos_token_id, config.response_marks)
            if len(ids) <= self.model_config.max_model_len:
                prompt["prompt_token_ids"] = list(ids)
        return prompt

    def warmup(self, chat_params: Any) -> None:
        """Do nothing: vLLM would render a conversation without a response."""
