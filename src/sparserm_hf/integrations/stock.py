"""The stock form: a reward model folded into a plain sequence classifier of transformers, without code of its own."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from ..conversations import ChatEncoder, ChatFormat, render
from ..modeling.backbone_sparserm import final_norm_name
from ..modeling.configuration_sparserm import SparseRMConfig, legacy_rope_fields
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..runtime import SparseRMError, as_numpy, exact, replacing_folder, save_tokenizer
from ..scoring import score_texts

# Largest difference that the check after folding lets pass, in standard deviations of the reward.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
PROBE_TOKENS, PROBES = 32, 4


def check_exact(config: SparseRMConfig) -> None:
    """Raise a `SparseRMError` unless a reward model of this configuration has a stock form."""
    reasons = {
        f"its head is an {config.head_type.upper()}; train with --head_type linear": config.head_type != "linear",
        f"it pools by {config.pooling}; train with --pooling last": config.pooling != "last",
        "it does not divide tokens by their rms; train with --representation_norm rms": config.representation_norm
        != "rms",
        "it is of version 0.1, which reads the end of the turn too; train it anew": config.response_marks is None,
    }
    wrong = [reason for reason, applies in reasons.items() if applies]
    if wrong:
        raise SparseRMError(
            "The stock form, one linear layer on the last token behind the final norm, would not be exact for this "
            f"reward model: {'; '.join(wrong)}."
        )


def folded(model: SparseRMForSequenceClassification) -> tuple[torch.Tensor, float]:
    """The direction (1, d_model) whose product with the normalised last token is the reward, but for a constant.

    Returns:
        The direction and the constant. transformers' classifiers have no bias that could hold it.
    """
    weight = exact(model.score.weight)  # (1, K)
    steered = exact(model.steering_factors())
    constant = exact(model.score.bias) + (weight * (1 - steered)) @ exact(model.feature_mean)
    return (weight * steered) @ exact(model.directions), float(constant)


def to_stock(model: SparseRMForSequenceClassification) -> PreTrainedModel:
    """Fold a reward model into the sequence classifier of its base model's architecture.

    With `representation_norm="rms"` the final norm, its weights set to one, takes over the division, and `score`
    holds the folded direction. The rewards are lower by `config.reward_offset`, which no comparison notices.

    Raises:
        SparseRMError: It would not be exact, with the reason.
    """
    check_exact(model.config)
    weight, constant = folded(model)
    base = model.config.base_config
    settings: dict[str, Any] = {"num_labels": 1, "id2label": {0: "reward"}, "label2id": {"reward": 0}}
    config = copy.deepcopy(base)
    for name, value in settings.items():
        setattr(config, name, value)
    config.problem_type = "regression"  # else the pipeline applies a sigmoid
    config.pad_token_id = model.config.pad_token_id
    config.reward_offset = constant
    try:
        stock = AutoModelForSequenceClassification.from_config(
            config, dtype=model.model.dtype, trust_remote_code=False
        )
    except ValueError as error:
        raise SparseRMError(f"transformers has no sequence classifier for {base.model_type}.") from error
    decoder = stock.base_model
    missing, unexpected = decoder.load_state_dict(model.model.state_dict(), strict=False)
    norm_name = final_norm_name(decoder)
    if norm_name is None:
        raise SparseRMError(f"The stock form needs a final norm, and {base.model_type} has none.")
    if unexpected or any(not name.startswith(f"{norm_name}.") for name in missing):
        raise SparseRMError(f"The sequence classifier of {base.model_type} has other weights than its base model.")
    set_to_division(getattr(decoder, norm_name), base.model_type)
    stock.score.weight.data = weight.to(stock.score.weight)
    return stock.to(model.directions.device).eval()


def set_to_division(norm: nn.Module, architecture: str) -> None:
    """Make a final norm, in place, divide by the root mean square and do nothing else.

    Raises:
        SparseRMError: It does more than that.
    """
    weight = norm.get_parameter("weight")
    probe = 10 * torch.randn(8, len(weight), generator=torch.Generator().manual_seed(0))
    wanted = probe / probe.pow(2).mean(-1, keepdim=True).sqrt()
    tolerance = 1e-4 if weight.dtype == torch.float32 else 2e-2
    for value in (1.0, 0.0):  # Gemma's norms multiply by one plus their weight
        nn.init.constant_(weight, value)
        if torch.allclose(norm(probe.to(weight)), wanted.to(weight), rtol=tolerance, atol=tolerance):
            return
    raise SparseRMError(
        f"The stock form would not be exact: the final norm of {architecture}, {type(norm).__name__}, does more than "
        "divide by the root mean square."
    )


def stock_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Copy a tokenizer for the stock form, whose classifier reads the last token that is not the pad token.

    The copy's chat template ends a conversation with the content of the response. It pads with a special token, which
    no content ends with: with the end of the turn where that is one, so that a text may end with it after all.

    Raises:
        SparseRMError: The tokenizer has no special token to pad with.
    """
    tail = ChatFormat.of(tokenizer).end_of_turn
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    specials = [content for content in added if content != tokenizer.unk_token]  # which may stand for any word
    end = [content for content in specials if tail.strip().startswith(content)]
    pads = [token for token in (*end, tokenizer.pad_token, tokenizer.eos_token) if token in specials]
    if not pads:
        raise SparseRMError(
            "The stock form would not be exact: the tokenizer has no special token to pad with, and a response may "
            "end with any other token."
        )
    tokenizer, templates = copy.deepcopy(tokenizer), tokenizer.chat_template
    tokenizer.pad_token = pads[0]
    if isinstance(templates, dict):  # several, by name
        tokenizer.chat_template = {name: without_tail(template, tail) for name, template in templates.items()}
    else:
        tokenizer.chat_template = without_tail(str(templates), tail)
    return tokenizer


def without_tail(template: str, tail: str) -> str:
    """Change a chat template so that it leaves out the text `tail` after the final response, and whitespace before it.

    A rendering with a generation prompt stays as it is.

    >>> import jinja2
    >>> template = without_tail("{{ messages[0]['content'] }}<end>", "<end>")
    >>> jinja2.Template(template, trim_blocks=True).render(messages=[{"content": "Yes. "}])
    'Yes.'
    """
    if not tail:
        return template
    # The line break keeps the template at the start of a line. Jinja drops it, and one at the end of a template.
    return (
        f"{{% set rendered %}}\n{template.removesuffix(chr(10))}{{%+ endset %}}"
        f"{{% if rendered.endswith({json.dumps(tail, ensure_ascii=False)}) and not add_generation_prompt %}}"
        f"{{{{ rendered[:-{len(tail)}].rstrip() }}}}{{% else %}}{{{{ rendered }}}}{{% endif %}}"
    )


def probe_responses(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Responses that the stock form is checked on: random tokens, and ends of the usual kinds."""
    added = list(tokenizer.added_tokens_decoder)
    ids = torch.randint(0, len(tokenizer), (PROBES, PROBE_TOKENS), generator=torch.Generator().manual_seed(0))
    texts = [str(tokenizer.decode(row[~torch.isin(row, torch.tensor(added))])) for row in ids]
    return [*(text.strip() for text in texts), "Yes", "It is this.", "(no)", "- 1\n- 2", 'He said: "No!"', "`x = 3;`"]


@torch.inference_mode()
def largest_difference(
    model: SparseRMForSequenceClassification,
    stock: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    own_tokenizer: PreTrainedTokenizerBase,
) -> float:
    """Between the rewards of a model and its stock form, in standard deviations of the reward.

    Each gets the same messages through its own tokenizer's chat template.

    Raises:
        SparseRMError: The tokens of a response are others where the text ends with it.
    """
    question = {"role": "user", "content": "What is it?"}
    probes = [[question, {"role": "assistant", "content": text}] for text in probe_responses(tokenizer)]
    encoder = ChatEncoder(tokenizer, model.config.response_marks)
    texts = [encoder(messages) for messages in probes]
    rendered = [render(own_tokenizer, messages) for messages in probes]
    batch = own_tokenizer(rendered, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
    written = [
        ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    if written != [list(text.ids[: text.stop]) for text in texts]:
        raise SparseRMError(
            "The stock form would not be exact: with this chat template, the last token of a response depends on the "
            "text that the template writes after it."
        )
    batch = {name: batch[name].to(model.directions.device) for name in ("input_ids", "attention_mask")}
    theirs = as_numpy(stock(**batch).logits[:, 0]) + stock.config.reward_offset
    return float(np.abs(score_texts(model, texts).rewards - theirs).max() / max(model.config.reward_std, 1e-6))


def write_card(class_name: str, source: str, offset: float, softcapped: bool) -> str:
    """The README of a stock form.

    Args:
        class_name: Its class in transformers.
        source: The reward model that it was made of.
        offset: By how much its rewards are lower.
        softcapped: Whether its attention has softcapping.
    """
    text = (
        f"# Stock form of {source}\n\nA `{class_name}` with the rewards of a SparseRM reward model, lower by "
        f"{offset:.6g} (`reward_offset` in its configuration), without remote code.\n\n"
        "It reads the last token before the padding. The reward is right where that token is the last one of the "
        "response's content. The tokenizer's chat template writes such texts: it leaves out the end of the turn. "
        "Tokenise its output with `add_special_tokens=False`. A text from elsewhere must also end with the "
        "response's content, without end of turn and without whitespace after it. Pad with the tokenizer's pad token. "
        "An empty response, or one of nothing but reasoning, has no reward here.\n"
    )
    warning = (
        "\nUnder transformers 4 load it with `attn_implementation='eager'`: its sdpa leaves the softcapping out.\n"
    )
    return text + (warning if softcapped else "")


def export_stock(
    model: SparseRMForSequenceClassification, tokenizer: PreTrainedTokenizerBase, folder: Path, source: str
) -> float:
    """Write the stock form of a reward model, with its tokenizer, once it loads again and gives the same rewards.

    Args:
        model: The reward model.
        tokenizer: Its tokenizer.
        folder: A new or empty folder.
        source: Where the reward model came from, for the card.

    Returns:
        The largest difference that the check saw, in standard deviations of the reward.

    Raises:
        SparseRMError: The form is not exact, or the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise SparseRMError(f"The output folder {str(folder)!r} is not empty: name a new one.")
    stock = to_stock(model)
    own_tokenizer = stock_tokenizer(tokenizer)
    stock.config.pad_token_id = own_tokenizer.pad_token_id
    with replacing_folder(folder) as temporary:
        # Whoever loads it in float32 gets all digits.
        stock.get_parameter("score.weight").data = folded(model)[0].float()
        stock.save_pretrained(temporary)
        config_file = temporary / "config.json"
        config = json.loads(config_file.read_text())
        config |= legacy_rope_fields(config)
        config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        save_tokenizer(own_tokenizer, temporary)
        softcapped = bool(config.get("attn_logit_softcapping"))
        (temporary / "README.md").write_text(
            write_card(type(stock).__name__, source, stock.config.reward_offset, softcapped)
        )
        how = {"attn_implementation": "eager"} if softcapped else {}  # which alone caps, under transformers 4
        again = AutoModelForSequenceClassification.from_pretrained(temporary, trust_remote_code=False, **how)
        again = again.to(model.directions.device).eval()
        difference = largest_difference(model, again, tokenizer, own_tokenizer)
        if not difference <= TOLERANCE[model.model.dtype]:
            raise SparseRMError(
                f"The stock form differs by {difference:.2g} standard deviations of the reward: the base "
                "model's residual stream is too small for the epsilon of its final norm, or its weights are broken."
            )
    return difference
