"""The stock form: a reward model folded into a plain sequence classifier of transformers, without code of its own."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoints import replacing_folder, save_tokenizer
from ..errors import SparseRMError
from ..modeling.backbone_sparserm import final_norm_name
from ..modeling.configuration_sparserm import SparseRMConfig, legacy_rope_fields
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..preferences.templates import encode

# Largest difference that the check after folding lets pass, in standard deviations of the reward.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
PROBE_TOKENS, PROBES = 32, 4


def check_exact(config: SparseRMConfig) -> None:
    """Raise a `SparseRMError` unless a reward model of this configuration has a stock form."""
    reasons = {
        f"its head is an {config.head_type.upper()}; train with --head_type linear": config.head_type != "linear",
        f"it pools by {config.pooling}; train with --pooling last": config.pooling != "last",
        "it reads activations; train with --features projection": config.reads_activations,
        "it does not divide tokens by their rms; train with --representation_norm rms": config.representation_norm
        != "rms",
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
    weight = model.score.weight.detach().double()  # (1, F)
    steered = model.steering_factors().double()
    directions = model.directions.double().repeat(len(model.config.readings), 1)  # (F, d_model)
    constant = model.score.bias.detach().double() + (weight * (1 - steered)) @ model.feature_mean.double()
    return (weight * steered) @ directions, float(constant)


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
        stock = AutoModelForSequenceClassification.from_config(config, dtype=model.model.dtype)
    except ValueError as error:
        raise SparseRMError(f"transformers has no sequence classifier for {base.model_type}.") from error
    decoder = stock.base_model
    missing, unexpected = decoder.load_state_dict(model.model.state_dict(), strict=False)
    norm_name = final_norm_name(decoder)
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


def with_padding(tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedTokenizerBase, int]:
    """A tokenizer that pads with a token that no response ends with, and the token that they end with.

    transformers' classifiers read the last token that is not the pad token, whatever the mask says. Where padding is
    done with the end-of-text token and each response ends with one, that would be the token before.

    Raises:
        SparseRMError: It has no other token to pad with.
    """
    ids = encode(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}])
    if ids[-1] == tokenizer.pad_token_id:
        tokenizer = copy.deepcopy(tokenizer)
        used = {*ids, tokenizer.bos_token_id, tokenizer.eos_token_id}
        added = tokenizer.added_tokens_decoder.items()
        specials = [token.content for i, token in added if token.special and i not in used]
        if not specials:
            raise SparseRMError(
                f"The stock form would not be exact: responses end with {tokenizer.pad_token!r}, which is the pad "
                "token too, and the tokenizer has no other special token to pad with."
            )
        tokenizer.pad_token = specials[0]
    return tokenizer, ids[-1]


@torch.inference_mode()
def largest_difference(model: SparseRMForSequenceClassification, stock: PreTrainedModel, last: int) -> float:
    """Between the rewards of a model and its stock form, in standard deviations of the reward.

    On random tokens, with the one that all responses end with behind them.
    """
    specials = {stock.config.pad_token_id, model.config.pad_token_id, model.config.eos_token_id}
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (PROBES, PROBE_TOKENS), generator=generator)
    ids = torch.where(torch.isin(ids, torch.tensor([i for i in specials if isinstance(i, int)])), 7, ids)
    ids[:, -1] = last
    ids, mask = ids.to(model.directions.device), torch.ones_like(ids, device=model.directions.device)
    ours = model(ids, mask).logits
    theirs = stock(input_ids=ids, attention_mask=mask).logits.float() + stock.config.reward_offset
    return float((ours - theirs).abs().max() / max(model.config.reward_std, 1e-6))


def export_stock(
    model: SparseRMForSequenceClassification, tokenizer: PreTrainedTokenizerBase, folder: Path, source: str
) -> float:
    """Write the stock form of a reward model, with its tokenizer, after checking that it gives the same rewards.

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
    tokenizer, last = with_padding(tokenizer)
    stock.config.pad_token_id = tokenizer.pad_token_id
    difference = largest_difference(model, stock, last)
    if not difference <= TOLERANCE[model.model.dtype]:
        raise SparseRMError(
            f"The stock form differs by {difference:.2g} standard deviations of the reward on random tokens: the base "
            "model's residual stream is too small for the epsilon of its final norm, or its weights are broken."
        )
    with replacing_folder(folder) as temporary:
        # Whoever loads it in float32 gets all digits.
        stock.get_parameter("score.weight").data = folded(model)[0].float()
        stock.save_pretrained(temporary)
        config_file = temporary / "config.json"
        config = json.loads(config_file.read_text())
        config |= legacy_rope_fields(config)
        config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        save_tokenizer(tokenizer, temporary)
        softcapping = (
            "Under transformers 4 load it with `attn_implementation='eager'`: its sdpa leaves the softcapping out.\n"
        )
        (temporary / "README.md").write_text(
            f"# Stock form of {source}\n\nA `{type(stock).__name__}` with the rewards of a SparseRM reward model, "
            f"lower by {stock.config.reward_offset:.6g} (`reward_offset` in its configuration), without remote code. "
            "The text must end with the response's last token: padding goes behind it, with the tokenizer's pad token."
            "\n" + (softcapping if config.get("attn_logit_softcapping") else "")
        )
    return difference
