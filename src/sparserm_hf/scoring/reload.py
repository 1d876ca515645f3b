"""Load a checkpoint that was just written, and check that its rewards are those of the model in memory."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..base_models import move, run_probe
from ..conversations import TokenizedText
from ..modeling.backbone_sparserm import decoder_layers
from ..modeling.configuration_sparserm import SparseRMConfig
from ..modeling.modeling_sparserm import SparseRMForSequenceClassification
from ..modeling.quantized_sparserm import is_quantized
from ..runtime import SparseRMError, reason, temporary_beside
from .reward_models import encoder_of, load_reward_model

CONVERSATION = [
    {"role": "user", "content": "What is the capital of Italy?"},
    {"role": "assistant", "content": "The capital of Italy is Rome, a city of about three million people."},
]
TOLERANCE = 1e-3  # relative to the reward, on one device
BETWEEN_DEVICES = 0.1  # in standard deviations of the rewards, if the two models run on different devices


def check_reload(folder: Path, model: SparseRMForSequenceClassification, tokenizer: PreTrainedTokenizerBase) -> None:
    """Load a checkpoint, and compare its token ids and its reward of a conversation with the model in memory.

    Args:
        folder: The checkpoint.
        model: The model that was saved.
        tokenizer: The tokenizer that was saved.

    Raises:
        SparseRMError: The checkpoint cannot be loaded, or gives other token ids or another reward.
    """
    # A CPU runs other kernels on packed weights, so a quantised model is compared on its own device.
    packed = hasattr(model.config.base_config, "quantization_config")
    device = model.device if packed else torch.device("cpu")
    again, their_tokenizer = load_reward_model(str(folder), device, "saved")
    text, theirs = (
        encoder_of(of, tokens)(CONVERSATION) for of, tokens in ((model, tokenizer), (again, their_tokenizer))
    )
    if text != theirs:
        raise SparseRMError(
            "The saved tokenizer gives other token ids than the tokenizer in memory, so nothing was written: please "
            "report the base model."
        )
    expected, found = _reward(model, text), _reward(again, text)
    moved = model.directions.device != again.directions.device
    tolerance = BETWEEN_DEVICES * model.config.reward_std if moved else TOLERANCE * max(abs(expected), 1.0)
    if not abs(found - expected) <= tolerance:
        raise SparseRMError(
            f"The saved model gives a reward of {found:.4f}, but the model in memory gives {expected:.4f}, so nothing "
            "was written: please report the base model."
        )


def check_quantized_reload(base_model: PreTrainedModel, folder: Path) -> None:
    """Refuse a quantised base model that cannot be saved, before anything expensive is computed.

    Some kernels rearrange the packed weights that they load, so that these weights cannot be saved again.

    Args:
        base_model: The cut base model. Nothing is done unless it is quantised.
        folder: Folder of the future checkpoint. The base model is saved beside it for a moment.

    Raises:
        SparseRMError: The base model cannot be saved, cannot be loaded again, or runs differently after loading.
    """
    if not is_quantized(base_model):
        return
    settings = base_model.config.quantization_config
    method = settings["quant_method"] if isinstance(settings, dict) else settings.quant_method
    needed = "train on the base model that it was quantised from, or save only the head with --slim."
    config = SparseRMConfig(base_config=base_model.config, layer=len(decoder_layers(base_model)), latents=[0])
    model = SparseRMForSequenceClassification(config, base_model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(folder) as temporary:
        try:
            model.save_pretrained(temporary)
            again = move(SparseRMForSequenceClassification.from_pretrained(temporary), base_model.device)
        except Exception as error:  # each kind of quantisation raises its own errors
            raise SparseRMError(
                f"This base model, quantised by {getattr(method, 'value', method)}, cannot be saved and loaded again "
                f"({reason(error)}): {needed}"
            ) from error
        if not torch.equal(run_probe(again.model), run_probe(base_model)):
            raise SparseRMError(f"This quantised base model runs differently after it is saved and loaded: {needed}")


@torch.no_grad()
def _reward(model: SparseRMForSequenceClassification, text: TokenizedText) -> float:
    ids = torch.tensor([text.ids], device=model.directions.device)
    return float(model(ids, torch.ones_like(ids)).logits[0, 0])
