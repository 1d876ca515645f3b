"""The policy: load it, let it write responses, compute likelihoods and the KL divergence from the first policy."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..base_models import Family, can_pack, find_families, lay_out, load_language_model, load_tokenizer, unpacked
from ..conversations import Messages, Preference, encode
from ..runtime import SparseRMError, as_numpy, common_prefix_length, exact, pad_texts, plan_batches, without_extra
from .questions import Contrast

try:
    from peft import PeftModel
except ModuleNotFoundError as error:
    raise without_extra("A policy", error, "align") from None

LOGITS = 2**26  # largest number of logits in a batch


@dataclass(frozen=True)
class Response:
    """A response that a policy wrote.

    Attributes:
        text: The response.
        tokens: Number of its tokens, including the end-of-turn token.
        cut: True if it was cut at the maximum number of tokens.
    """

    text: str
    tokens: int
    cut: bool


@dataclass(frozen=True)
class Policy:
    """A causal language model and its tokenizer.

    Attributes:
        model: The language model, with an adapter or without.
        tokenizer: Its tokenizer, which has a chat template.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(
        cls,
        name: str,
        device: torch.device,
        adapter: Path | None = None,
        revision: str | None = None,
        trainable: bool = False,
    ) -> Policy:
        """Load a policy, in the data type that it was published in.

        Args:
            name: Folder, Hub id or GGUF file of an instruction-tuned model.
            device: Device that the policy runs on.
            adapter: Folder of a LoRA adapter.
            revision: Revision of the model on the Hub.
            trainable: Whether the adapter will be trained further.

        Raises:
            SparseRMError: The policy cannot be loaded, or has no chat template.
        """
        name = unpacked(name)
        tokenizer = load_tokenizer(name, revision)
        if tokenizer.chat_template is None:
            raise SparseRMError(
                f"The tokenizer of the policy {name!r} has no chat template, so the policy cannot be asked questions: "
                "choose an instruction-tuned model, or set tokenizer.chat_template and save the tokenizer."
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "left"
        model: PreTrainedModel | PeftModel = load_language_model(name, revision)
        if adapter:
            model = PeftModel.from_pretrained(model, adapter, is_trainable=trainable)
        return cls(model.to(device).eval(), tokenizer)  # type: ignore[arg-type]

    def check_lengths(self, questions: Iterable[Messages], contrast: Contrast | None, max_new_tokens: int) -> None:
        """Raise a `SparseRMError` if a question with a response may have more tokens than the policy can take."""
        limit = self.positions
        if not limit:
            return
        for number, question in enumerate(questions, 1):
            for prompt in contrast.ask(question) if contrast else (question,):
                if 2 * sum(len(message["content"].encode()) for message in prompt) < limit - max_new_tokens:
                    continue  # a token has at least one byte, and the template adds few tokens
                tokens = len(encode(self.tokenizer, prompt, add_generation_prompt=True))
                if tokens + max_new_tokens > limit:
                    raise SparseRMError(
                        f"Question {number} has {tokens} tokens in its prompt; with a response of {max_new_tokens} "
                        f"tokens that is more than the {limit} that the policy can take: shorten the question, or "
                        "lower max_new_tokens."
                    )

    def check_pairs(self, pairs: Iterable[Preference]) -> None:
        """Raise a `SparseRMError` if a preference pair has more tokens than the policy can take."""
        limit = self.positions
        if not limit:
            return
        for number, pair in enumerate(pairs, 1):
            tokens = max(len(encode(self.tokenizer, whole)) for whole in pair.joined)
            if tokens > limit:
                raise SparseRMError(
                    f"Evaluation pair {number} has {tokens} tokens, more than the {limit} that the policy can take: "
                    "leave the pair out."
                )

    @property
    def positions(self) -> int | None:
        """Largest number of tokens of a text that the policy can take; None without a limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def write(self, prompts: Sequence[Messages], max_new_tokens: int, temperature: float, seed: int) -> list[Response]:
        """Sample a response to each prompt, all of them in one batch.

        Args:
            prompts: Messages that end with the user's message.
            max_new_tokens: Largest number of tokens of a response.
            temperature: Sampling temperature; tokens are sampled without top-k or top-p.
            seed: The same seed, prompts and machine give the same responses.
        """
        ids = [{"input_ids": encode(self.tokenizer, prompt, add_generation_prompt=True)} for prompt in prompts]
        batch = self.tokenizer.pad(ids, return_tensors="pt").to(self.model.device)
        torch.manual_seed(seed)
        with torch.inference_mode():
            written = self.model.generate(  # type: ignore[operator]
                **batch,
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=max_new_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
            )[:, batch["input_ids"].shape[1] :]
        ends = self.model.generation_config.eos_token_id
        ends = torch.tensor([ends] if isinstance(ends, int) else ends or [self.tokenizer.eos_token_id])
        responses = []
        for row in written.cpu():
            stops = torch.isin(row, ends).nonzero()
            tokens = int(stops[0]) + 1 if len(stops) else len(row)
            text = str(self.tokenizer.decode(row[:tokens], skip_special_tokens=True)).strip()
            responses.append(Response(text, tokens, not len(stops)))
        return responses

    def encode_response(self, prompt: Messages, response: str) -> tuple[list[int], int]:
        """Encode a prompt with a response; return the token ids, and how many of them belong to the prompt."""
        answer = [{"role": "assistant", "content": response}]
        asked = encode(self.tokenizer, prompt, add_generation_prompt=True)
        ids = encode(self.tokenizer, prompt + answer)
        return ids, common_prefix_length(asked, ids)

    @property
    def batch_tokens(self) -> int:
        """Largest number of tokens in a batch, so that its logits fit into memory."""
        return max(LOGITS // self.model.config.get_text_config().vocab_size, 1)

    @torch.inference_mode()
    def log_likelihoods(self, texts: Sequence[list[int]], starts: Sequence[int], what: str) -> np.ndarray:
        """Sum the log-probabilities of each text's tokens from its start index on, (N,), in nats.

        The common prefix of all texts is run once. So is a prefix that some texts share, such as the question before
        its answers.

        Args:
            texts: Token ids of each text.
            starts: Index of the first token of each text that is summed; at least 1.
            what: Name of the progress bar.
        """
        shared = min(common_prefix_length(min(texts), max(texts)), min(starts) - 1)
        prefix = None
        if shared:
            ids = torch.tensor([texts[0][:shared]], device=self.model.device)
            prefix = self.model(ids, use_cache=True).past_key_values
        own = [text[shared:] for text in texts]
        packed = can_pack(self.model, max(map(len, texts)))
        families = find_families(own) if packed else [Family((i,), len(text), len(text)) for i, text in enumerate(own)]
        found = np.zeros(len(texts))
        with tqdm(total=len(texts), desc=what, unit="text", delay=2) as bar:
            for batch in plan_batches([family.length for family in families], self.batch_tokens):
                layout = lay_out(own, [families[i] for i in batch])
                # (B, 1, T, T) or (B, T): without packing all padding is on the right, where no token attends to it.
                mask = layout.mask(self.model.dtype) if packed else torch.ones_like(layout.ids)
                cache = None
                if prefix is not None:
                    cache = copy.deepcopy(prefix)
                    cache.batch_repeat_interleave(len(batch))
                    seen = mask.new_full((*mask.shape[:-1], shared), 0 if packed else 1)
                    mask = torch.cat([seen, mask], -1)
                logits = self.model(
                    layout.ids.to(self.model.device),
                    attention_mask=mask.to(self.model.device),
                    position_ids=(layout.positions + shared).to(self.model.device),
                    past_key_values=cache,
                    use_cache=bool(cache),
                ).logits
                members = [member for i in batch for member in families[i].members]
                for member, (row, where) in zip(members, layout.places, strict=True):
                    start = starts[member] - shared
                    scores = logits[row, where[start - 1 : -1].to(logits.device)].float()  # (tokens, V)
                    targets = torch.tensor(own[member][start:], device=logits.device)
                    likely = scores.gather(1, targets[:, None])[:, 0] - scores.logsumexp(-1)
                    found[member] = exact(likely).sum()
                bar.update(len(members))
        return found

    @torch.inference_mode()
    def divergences(self, texts: Sequence[list[int]], starts: Sequence[int]) -> np.ndarray:
        """Compute the KL divergence of the policy from itself without its adapter, (N,), in nats.

        It is summed over the tokens of each response. At each token it is the exact sum over the vocabulary.

        Args:
            texts: Token ids of N prompts, each with the response that the policy wrote.
            starts: Index of the first token of each response.
        """
        found = np.zeros(len(texts))
        if not isinstance(self.model, PeftModel):
            return found
        for batch in plan_batches([len(text) for text in texts], self.batch_tokens):
            ids, mask = pad_texts([texts[i] for i in batch], self.model.device)
            counted = _counted(mask, [starts[i] for i in batch])
            now = self.model(ids, attention_mask=mask).logits[:, :-1][counted].float().log_softmax(-1)  # (tokens, V)
            with self.model.disable_adapter():
                first = self.model(ids, attention_mask=mask).logits[:, :-1][counted].float().log_softmax(-1)
            found[batch] = _sum_by_text((now.exp() * (now - first)).sum(-1), counted)
        return found


def _counted(mask: torch.Tensor, starts: Sequence[int]) -> torch.Tensor:
    """Mark the positions (B, T - 1) whose next token is not padding, and stands at its text's start or later."""
    place = torch.arange(1, mask.shape[1], device=mask.device)
    return mask[:, 1:].bool() & (place >= torch.tensor(starts, device=mask.device)[:, None])


def _sum_by_text(values: torch.Tensor, counted: torch.Tensor) -> np.ndarray:
    """Sum the values (tokens,) of the marked positions (B, T - 1) by text, (B,)."""
    rows = counted.nonzero()[:, 0].cpu().numpy()
    return np.bincount(rows, weights=as_numpy(values), minlength=len(counted))
