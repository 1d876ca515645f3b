"""The stock form: a plain classifier of transformers with the same rewards, or a reason why not."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import PAD, tiny_reward_model, tiny_texts, tiny_tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
from world import without_package

from sparserm_hf.checkpoints import save_tokenizer
from sparserm_hf.cli import main
from sparserm_hf.errors import SparseRMError
from sparserm_hf.integrations.stock import export_stock, to_stock
from sparserm_hf.preferences.templates import encode
from sparserm_hf.representations import pad_texts

CLASSES = {
    "llama": "LlamaForSequenceClassification",
    "qwen2": "Qwen2ForSequenceClassification",
    "qwen3": "Qwen3ForSequenceClassification",
    "gemma2": "Gemma2ForSequenceClassification",
    "gemma3_text": "Gemma3TextForSequenceClassification",
    "mistral": "MistralForSequenceClassification",
    "phi3": "Phi3ForSequenceClassification",
}


def exportable(architecture="llama", **config):
    return tiny_reward_model(architecture, pooling="last", **config)


@pytest.mark.parametrize(("architecture", "name"), CLASSES.items())
def test_it_has_the_same_rewards(architecture, name, tmp_path, equal):
    model = exportable(architecture, steering={"3": 0.5})
    export_stock(model, tiny_tokenizer(), tmp_path / "stock", "tiny")
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "stock")
    assert type(stock).__name__ == name
    ids, mask = pad_texts(tiny_texts(), torch.device("cpu"))
    with torch.no_grad():
        ours = model(ids, mask).logits
        theirs = stock(input_ids=ids, attention_mask=mask).logits + stock.config.reward_offset
    assert stock.config.pad_token_id == PAD and ours.std() > 0.1
    equal(f"the stock form, {name}", ours, theirs)
    assert not list((tmp_path / "stock").glob("*.py"))
    card = (tmp_path / "stock" / "README.md").read_text()
    assert ("eager" in card) == (architecture == "gemma2")


def test_padding_with_the_token_that_responses_end_with(tmp_path):
    """Llama 3.1 has no pad token, so that padding is done with the end of the turn; classifiers then skip that too."""
    model, tokenizer = exportable(), tiny_tokenizer()
    tokenizer.pad_token = "<|end|>"
    tokenizer.chat_template = (
        "<bos> {% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|>"
        "{% if not loop.last %} {% endif %}{% endfor %}"
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    export_stock(model, tokenizer, tmp_path / "stock", "tiny")
    saved = AutoTokenizer.from_pretrained(tmp_path / "stock")
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "stock")
    assert saved.pad_token != "<|end|>" and stock.config.pad_token_id == saved.pad_token_id
    conversation = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2 w3"}]
    ids = torch.tensor([encode(saved, conversation)])
    assert ids[0, -1] == tokenizer.pad_token_id
    with torch.no_grad():
        theirs = stock(input_ids=ids, attention_mask=torch.ones_like(ids)).logits + stock.config.reward_offset
        torch.testing.assert_close(theirs, model(ids, torch.ones_like(ids)).logits, rtol=1e-4, atol=1e-4)


def test_the_folded_direction_by_hand():
    model = exportable()
    stock = to_stock(model)
    direction = model.score.weight @ model.directions
    torch.testing.assert_close(stock.score.weight, direction)
    assert stock.config.reward_offset == pytest.approx(model.score.bias.item())
    assert torch.equal(stock.model.norm.weight, torch.ones_like(stock.model.norm.weight))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"pooling": "mean"}, "pools by mean; train with --pooling last"),
        ({"readings": ["mean_activation"]}, "reads activations"),
        ({"head_type": "mlp"}, "head is an MLP"),
        ({"representation_norm": "none"}, "divide tokens by their rms"),
        ({"architecture": "gpt2"}, "LayerNorm, does more than divide"),
        ({"architecture": "gpt_neox"}, "other weights|does more than divide|no sequence classifier"),
    ],
)
def test_what_would_not_be_exact_is_refused_with_the_reason(config, reason, tmp_path):
    model = tiny_reward_model(**{"pooling": "last"} | config)
    with pytest.raises(SparseRMError, match=reason):
        export_stock(model, tiny_tokenizer(), tmp_path / "stock", "tiny")
    assert not (tmp_path / "stock").exists()


def test_a_residual_stream_below_the_epsilon_of_the_norm_is_noticed(tmp_path):
    model = exportable()
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.mul_(1e-3)
    with pytest.raises(SparseRMError, match="too small for the epsilon"):
        export_stock(model, tiny_tokenizer(), tmp_path / "stock", "tiny")


def test_the_command_writes_what_a_process_without_this_package_scores_with(tmp_path, capsys):
    model = exportable()
    model.save_pretrained(tmp_path / "model")
    save_tokenizer(tiny_tokenizer(), tmp_path / "model")
    command = ["export", str(tmp_path / "model"), "--stock", "--output_dir", str(tmp_path / "stock")]
    assert main(command) == 0
    assert main(command) == 2 and "not empty" in capsys.readouterr().err
    code = (
        "from transformers import pipeline\n"
        f"print(pipeline('text-classification', model={str(tmp_path / 'stock')!r})('w1 w2 w3')[0]['score'])"
    )
    shown = without_package(code)
    assert shown.returncode == 0, shown.stderr
    ours = pipeline("text-classification", model=str(tmp_path / "model"))("w1 w2 w3")[0]["score"]
    assert float(shown.stdout) + model.score.bias.item() == pytest.approx(ours, abs=1e-4)
    assert load_file(Path(tmp_path / "stock" / "model.safetensors"))["score.weight"].shape == (1, 32)
