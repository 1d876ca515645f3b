"""Write the stock form of a reward model, after a check that its rewards are the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from ..conversations import ChatEncoder, render
from ..modeling.configuration_sparserm import legacy_rope_fields
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..runtime import SparseRMError, as_numpy, replacing_folder, save_tokenizer
from ..scoring import load_reward_model, score_texts
from .stock import folded, stock_tokenizer, to_stock

# Largest difference that the check after folding lets pass, in standard deviations of the reward.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
PROBE_TOKENS, PROBES = 32, 4


def probe_responses(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Make responses to check the stock form on: random tokens, and texts with common endings."""
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
    """Compute the largest difference of a model's and its stock form's rewards, in standard deviations of the reward.

    Both get the same messages, each through its own tokenizer's chat template.

    Args:
        model: The reward model.
        stock: The stock form.
        tokenizer: Tokenizer of the reward model.
        own_tokenizer: Tokenizer of the stock form.

    Raises:
        SparseRMError: The token ids of a response change when the text after the response is left out.
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
    """Write the README of a stock form.

    Args:
        class_name: Class of the stock form in transformers.
        source: Name of the reward model.
        offset: Amount by which the rewards of the stock form are lower.
        softcapped: True if the base model's attention has softcapping.
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


def write_stock(
    model: SparseRMForSequenceClassification, tokenizer: PreTrainedTokenizerBase, folder: Path, source: str
) -> float:
    """Write the stock form of a loaded reward model; see `export_stock`. `source` names the model in the card."""
    if folder.exists() and any(folder.iterdir()):
        raise SparseRMError(f"The output folder {str(folder)!r} is not empty: name another folder, or empty it.")
    stock = to_stock(model)
    own_tokenizer = stock_tokenizer(tokenizer)
    stock.config.pad_token_id = own_tokenizer.pad_token_id
    with replacing_folder(folder) as temporary:
        # The direction is saved in float32, so that loading in float32 loses no digits.
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
        # Under transformers 4, only eager attention applies softcapping.
        how = {"attn_implementation": "eager"} if softcapped else {}
        again = AutoModelForSequenceClassification.from_pretrained(temporary, trust_remote_code=False, **how)
        again = again.to(model.directions.device).eval()
        difference = largest_difference(model, again, tokenizer, own_tokenizer)
        if not difference <= TOLERANCE[model.model.dtype]:
            raise SparseRMError(
                f"The stock form differs by {difference:.2g} standard deviations of the reward: the base "
                "model's residual stream is too small for the epsilon of its final norm, or its weights are broken."
            )
    return difference


def export_stock(model: str, output_dir: str | Path, dtype: str = "saved", revision: str | None = None) -> float:
    """Write a reward model as a plain sequence classifier of transformers, with its tokenizer and a card.

    The classifier needs no remote code. Its rewards are lower by `reward_offset` in its configuration. The folder is
    written only if the classifier loads again and gives the same rewards on probe conversations. The head must be
    linear, the pooling `last` and the representation norm `rms`.

    Args:
        model: Folder or Hub id of the reward model.
        output_dir: New or empty folder.
        dtype: Type of the weights: `saved` (as in the checkpoint), `float32` or `bfloat16`.
        revision: Revision of the reward model on the Hub.

    Returns:
        Largest difference of the rewards on the probe conversations, in standard deviations of the reward.

    Raises:
        SparseRMError: The classifier would not be exact, or the folder is not empty.

    Example:
        ```python
        from sparserm_hf import export_stock

        export_stock("my-last-token-model", "stock")
        ```
    """
    loaded, tokenizer = load_reward_model(model, dtype=dtype, revision=revision)
    return write_stock(loaded, tokenizer, Path(output_dir), model)
