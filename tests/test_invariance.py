"""The score of a text does not depend on its batch, padding side, amount, pad token, mask, dtype or a reload."""

import pytest
import torch
from sparserm_hf.modeling.backbone_sparserm import residual_stream
from sparserm_hf.modeling.modeling_sparserm import SparseRMForSequenceClassification
from tiny import ARCHITECTURES, BOS, EOS, PAD, tiny_reward_model, tiny_texts
from transformers import AutoModelForSequenceClassification


def pad_batch(texts, side="right", extra=0, pad=PAD):
    width = max(map(len, texts)) + extra
    fill = [[pad] * (width - len(text)) for text in texts]
    ids = [text + f if side == "right" else f + text for text, f in zip(texts, fill, strict=True)]
    mask = [
        [1] * len(t) + [0] * len(f) if side == "right" else [0] * len(f) + [1] * len(t)
        for t, f in zip(texts, fill, strict=True)
    ]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


@torch.no_grad()
def rewards(model, **batch):
    return model(**batch).logits[:, 0]


@pytest.mark.parametrize("pooling", ["last", "mean", "response_mean"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_score_depends_on_the_text_alone(architecture, pooling, tmp_path):
    norm = "none" if pooling == "last" else "rms"
    model = tiny_reward_model(architecture, pooling=pooling, representation_norm=norm)
    texts = tiny_texts()
    alone = torch.cat([rewards(model, **pad_batch([text])) for text in texts])
    assert alone.std() > 0.05, "the texts must differ, or the test shows nothing"

    def check(batch, scorer=model, tolerance=2e-4):
        torch.testing.assert_close(rewards(scorer, **batch).cpu(), alone, rtol=tolerance, atol=tolerance)

    check(pad_batch(texts))
    check(pad_batch(texts, side="left"))
    check(pad_batch(texts, side="left", extra=7))
    check(pad_batch(texts, extra=5))
    check(pad_batch(texts, extra=5, pad=EOS))  # pad == eos: the mask decides, not the id
    check({"input_ids": pad_batch(texts, extra=3)["input_ids"]})  # no mask: the pad token decides
    check({"input_ids": pad_batch(texts, side="left", extra=3)["input_ids"]})

    model.save_pretrained(tmp_path)
    reloaded = SparseRMForSequenceClassification.from_pretrained(tmp_path)
    check(pad_batch(texts), scorer=reloaded)
    assert all(torch.equal(value, reloaded.state_dict()[name]) for name, value in model.state_dict().items()), (
        "a reload must give the same bits"
    )
    half = SparseRMForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16 and half.score.weight.dtype == torch.float32
    assert half.directions.dtype == torch.float32 and half.sae.W_enc.dtype == torch.float32
    # bfloat16 rounds what the base model computes; that must stay small beside the spread of the rewards.
    error = (rewards(half, **pad_batch(texts)) - alone).abs().max()
    assert error < 0.15 * alone.std(), f"bfloat16 moves the rewards by {error:.3f}, their spread is {alone.std():.3f}"
    left = rewards(half, **pad_batch(texts, side="left", extra=4))
    assert (left - rewards(half, **pad_batch(texts))).abs().max() < 0.15 * alone.std()


def test_missing_mask_is_refused_where_padding_cannot_be_told_from_text():
    """SmolLM2's pad token is also its end-of-turn token: a text may well end with it."""
    model = tiny_reward_model()
    model.config.pad_token_id = EOS
    with pytest.raises(ValueError, match="pass attention_mask"):
        model(input_ids=torch.tensor([[BOS, 7, 8, EOS]]))
    inside = torch.tensor([[BOS, 7, EOS, 8]])  # the token stands inside the text only: nothing to tell apart
    torch.testing.assert_close(model(input_ids=inside).logits, model(inside, torch.ones_like(inside)).logits)
    model.config.pad_token_id = None
    with pytest.raises(ValueError, match="pass attention_mask"):
        model(input_ids=torch.tensor([[BOS, 7], [BOS, 8]]))


@pytest.mark.parametrize("eos", [EOS, [EOS], [EOS, 5], None])
@pytest.mark.parametrize("pad", [BOS, EOS])
def test_a_pad_token_that_begins_or_ends_texts_is_asked_about(pad, eos):
    """With a list of end-of-text tokens, as Llama 3 has, the begin-of-text token was once masked without a word."""
    model = tiny_reward_model()
    model.config.pad_token_id, model.config.eos_token_id = pad, eos
    texts = [[*ids, EOS] for ids in tiny_texts()[:3]]
    for side in ("left", "right"):
        batch = pad_batch(texts, side, extra=2, pad=pad)
        expected = torch.cat([rewards(model, **pad_batch([text])) for text in texts])
        torch.testing.assert_close(rewards(model, **batch), expected, rtol=2e-4, atol=2e-4)
        if pad == EOS and eos is None:  # then it is a pad token and nothing else
            continue
        with pytest.raises(
            ValueError, match=rf"The pad token \({pad}\) is also the end-of-text or begin-of-text token"
        ):
            rewards(model, input_ids=batch["input_ids"])
    plain = torch.tensor([texts[0][1:-1]])  # nothing of it is a pad token
    assert torch.equal(rewards(model, input_ids=plain), rewards(model, input_ids=plain, attention_mask=plain * 0 + 1))


def test_the_rightmost_attended_token_counts_not_the_number_of_them():
    """A zeroed first token once moved `last` pooling one token to the left (mask.sum() - 1)."""
    model = tiny_reward_model(pooling="last")
    ids = torch.tensor([[BOS, 7, 8, 9, 10]])
    mask = torch.tensor([[0, 1, 1, 1, 1]])
    torch.testing.assert_close(model(ids, mask).logits, model(ids[:, 1:], mask[:, 1:]).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling", ["last", "mean", "response_mean"])
@pytest.mark.parametrize("norm", ["none", "rms"])
def test_a_text_of_one_token_gets_the_reward_of_an_empty_response(pooling, norm):
    """Its only token is the attention sink, whose norm is over a hundred times that of any other."""
    model = tiny_reward_model(pooling=pooling, representation_norm=norm)
    empty = model.score(model.empty_features)
    for mask in ([[1]], [[1, 0, 0]], [[0, 0, 1]]):
        ids = torch.full((1, len(mask[0])), 9)
        torch.testing.assert_close(model(ids, torch.tensor(mask)).logits[0], empty)


def test_rewards_stay_float32_under_autocast():
    """2,000 distinct rewards once collapsed to 193 because the head ran in bfloat16 under autocast."""
    model = tiny_reward_model()
    batch = pad_batch(tiny_texts())
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(**batch).logits
        features = model.extract_features(**batch)
    assert logits.dtype == torch.float32 and features.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
    torch.testing.assert_close(logits, model.score(features), rtol=0, atol=0)


def test_what_trainers_pass_is_ignored():
    model = tiny_reward_model()
    batch = pad_batch(tiny_texts())
    extras = {
        "use_cache": True,
        "position_ids": torch.zeros_like(batch["input_ids"]),
        "return_dict": True,
        "labels": torch.zeros(6, 1),
        "output_hidden_states": True,
    }
    assert torch.equal(model(**batch, **extras).logits, model(**batch).logits)
    model.config.pooling = "mean"
    batch = pad_batch(tiny_texts()[:2])  # which end with the response: embeddings do not show where it ends
    ids, mask, _ = model.locate(**batch)  # without the begin-of-text tokens that no conversation has
    embeds = model.get_input_embeddings()(ids)
    by_embeds = model(inputs_embeds=embeds, attention_mask=mask).logits
    torch.testing.assert_close(by_embeds, model(**batch).logits)
    with pytest.raises(ValueError, match="attention_mask"):
        model(inputs_embeds=embeds)


def test_only_the_head_is_trainable_and_the_base_stays_in_eval_mode(tmp_path):
    model = tiny_reward_model(head_type="mlp")
    model.save_pretrained(tmp_path)
    for candidate in (model, SparseRMForSequenceClassification.from_pretrained(tmp_path)):
        assert not candidate.training
        candidate.train()
        assert candidate.score.training and not candidate.model.training
        trainable = {name for name, parameter in candidate.named_parameters() if parameter.requires_grad}
        assert trainable == {"score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias"}


def test_auto_classes_know_the_model_once_the_package_is_imported(tmp_path):
    import sparserm_hf  # noqa: F401

    model = tiny_reward_model()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is SparseRMForSequenceClassification


@torch.no_grad()
def test_a_wrapped_base_model_still_gets_its_positions():
    """What wraps a model, such as FSDP, takes any arguments: without positions, left padding would move a text."""

    class Wrapper(torch.nn.Module):
        def __init__(self, inside):
            super().__init__()
            self.inside = inside

        def forward(self, *args, **kwargs):
            return self.inside(*args, **kwargs)

    base = tiny_reward_model("gpt2").model
    ids, mask = torch.tensor([[PAD, PAD, BOS, 7, 8]]), torch.tensor([[0, 0, 1, 1, 1]])
    bare, wrapped = (residual_stream(model, ids, mask) for model in (base, Wrapper(base)))
    assert torch.equal(bare, wrapped)
