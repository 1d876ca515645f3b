"""The stock form: a reward model folded into a plain sequence classifier of transformers, without remote code."""

from __future__ import annotations

import copy
import json
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from ..conversations import ChatFormat
from ..modeling.backbone_sparserm import final_norm_name
from ..modeling.configuration_sparserm import SparseRMConfig
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..runtime import SparseRMError, exact

KEEP = "use the SparseRM itself, which transformers loads with trust_remote_code=True"


def check_exact(config: SparseRMConfig) -> None:
    """Raise a `SparseRMError` unless a reward model of this configuration has a stock form."""
    reasons = {
        f"its head is an {config.head_type.upper()}; train with --head_type linear": config.head_type != "linear",
        f"it pools by {config.pooling}; train with --pooling last": config.pooling != "last",
        "it does not divide tokens by their rms; train with --representation_norm rms": config.representation_norm
        != "rms",
        "its gate makes the weights depend on the prompt; combine the models without --gate": config.gate,
        "its pessimism is no linear function; edit it with --pessimism 0": config.pessimism != 0,
        "it is of version 0.1, which reads the end of the turn too; train it anew": config.response_marks is None,
    }
    wrong = [reason for reason, applies in reasons.items() if applies]
    if wrong:
        raise SparseRMError(
            "The stock form, one linear layer on the last token after the final norm, would not be exact for this "
            f"reward model: {'; '.join(wrong)}."
        )


def folded(model: SparseRMForSequenceClassification) -> tuple[torch.Tensor, float]:
    """Compute the direction (1, d_model) and the constant that give the reward from the normalised last token.

    Returns:
        The direction and the constant: the reward is the direction's product with the token, plus the constant.
        transformers' classifiers have no bias that could hold the constant.
    """
    weight = exact(model.score.weight)  # (1, K)
    steered = exact(model.steering_factors())
    constant = exact(model.score.bias) + (weight * (1 - steered)) @ exact(model.feature_mean)
    return (weight * steered) @ exact(model.directions), float(constant)


def to_stock(model: SparseRMForSequenceClassification) -> PreTrainedModel:
    """Fold a reward model into the sequence classifier of its base model's architecture.

    The final norm, with its weights set to one, divides each token by its root mean square. `score` holds the folded
    direction. The rewards are lower by `config.reward_offset`, which changes no reward difference.

    Raises:
        SparseRMError: The stock form would not be exact; the error gives the reason.
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
        raise SparseRMError(f"transformers has no sequence classifier for {base.model_type}: {KEEP}.") from error
    decoder = stock.base_model
    missing, unexpected = decoder.load_state_dict(model.model.state_dict(), strict=False)
    norm_name = final_norm_name(decoder)
    if norm_name is None:
        raise SparseRMError(f"The stock form needs a final norm, but {base.model_type} has none: {KEEP}.")
    if unexpected or any(not name.startswith(f"{norm_name}.") for name in missing):
        raise SparseRMError(
            f"The sequence classifier of {base.model_type} has other weights than its base model: {KEEP}."
        )
    set_to_division(getattr(decoder, norm_name), base.model_type)
    stock.score.weight.data = weight.to(stock.score.weight)
    return stock.to(model.directions.device).eval()


def set_to_division(norm: nn.Module, architecture: str) -> None:
    """Make a final norm, in place, divide by the root mean square and do nothing else.

    Raises:
        SparseRMError: The norm does more than that.
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

    The copy's chat template ends a conversation with the content of the response. The copy pads with a special token,
    because no content ends with a special token. The pad token is the end of the turn if that is a special token: the
    classifier then skips an end of turn at the end of a text.

    Raises:
        SparseRMError: The tokenizer has no special token to pad with.
    """
    tail = ChatFormat.of(tokenizer).end_of_turn
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    # The unknown token is left out, because it may stand for any word.
    specials = [content for content in added if content != tokenizer.unk_token]
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
    # The line break keeps the template at the start of a line. Jinja drops this line break, and one at the end.
    return (
        f"{{% set rendered %}}\n{template.removesuffix(chr(10))}{{%+ endset %}}"
        f"{{% if rendered.endswith({json.dumps(tail, ensure_ascii=False)}) and not add_generation_prompt %}}"
        f"{{{{ rendered[:-{len(tail)}].rstrip() }}}}{{% else %}}{{{{ rendered }}}}{{% endif %}}"
    )
