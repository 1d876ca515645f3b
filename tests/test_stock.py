"""The stock form: a plain classifier of transformers with the same rewards, or a reason why not."""

from pathlib import Path

import pytest
import torch
from chat_templates import TEMPLATES, ChatTemplate, make_examples, prepared, reward_model_for
from safetensors.torch import load_file
from tiny import tiny_encoder, tiny_reward_model, tiny_texts, tiny_tokenizer
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast, pipeline
from world import make_rows, without_package

from sparserm_hf.cli.main import main
from sparserm_hf.conversations.chat_templates import render
from sparserm_hf.conversations.messages import Conversation
from sparserm_hf.integrations.stock import stock_tokenizer, to_stock, without_tail
from sparserm_hf.integrations.stock_export import write_stock
from sparserm_hf.runtime.batches import pad_texts
from sparserm_hf.runtime.checkpoint_folders import save_tokenizer
from sparserm_hf.runtime.errors import SparseRMError
from sparserm_hf.scoring.reward_models import encoder_of
from sparserm_hf.scoring.scored_texts import score_texts

CLASSES = {
    "llama": "LlamaForSequenceClassification",
    "qwen2": "Qwen2ForSequenceClassification",
    "qwen3": "Qwen3ForSequenceClassification",
    "gemma2": "Gemma2ForSequenceClassification",
    "gemma3_text": "Gemma3TextForSequenceClassification",
    "mistral": "MistralForSequenceClassification",
    "phi3": "Phi3ForSequenceClassification",
}


load_tokenizer = PreTrainedTokenizerFast.from_pretrained


def exportable(architecture="llama", **config):
    return tiny_reward_model(architecture, pooling="last", **config)


def load_stock(folder):
    """Load a stock form as the card of a Gemma 2 says."""
    return AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")


def stock_rewards(folder, texts):
    """Rewards of rendered texts, by the saved model and tokenizer of a stock form, in one padded batch."""
    # Not AutoTokenizer: it takes every tokenizer beside a Qwen 2 for Qwen 2's own.
    stock, tokenizer = load_stock(folder), load_tokenizer(folder)
    assert stock.config.pad_token_id == tokenizer.pad_token_id
    with torch.no_grad():
        logits = stock(**tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")).logits
    return logits[:, 0] + stock.config.reward_offset


@pytest.mark.parametrize(("architecture", "name"), CLASSES.items())
def test_it_has_the_same_rewards(architecture, name, tmp_path, equal):
    model = exportable(architecture, steering={"3": 0.5})
    write_stock(model, tiny_tokenizer(), tmp_path / "stock", "tiny")
    stock = load_stock(tmp_path / "stock")
    assert type(stock).__name__ == name
    conversations = [row["prompt"] + row["chosen"] for row in make_rows(6)]
    ours = torch.tensor(score_texts(model, [tiny_encoder()(messages) for messages in conversations]).rewards)
    saved = load_tokenizer(tmp_path / "stock")
    theirs = stock_rewards(tmp_path / "stock", [render(saved, messages) for messages in conversations])
    assert ours.std() > 0.1
    equal(f"the stock form, {name}", ours, theirs)
    ids, mask = pad_texts([tiny_texts()[i] for i in (1, 3)], torch.device("cpu"))  # plain ones
    ids[mask == 0] = saved.pad_token_id
    with torch.no_grad():
        theirs = stock(input_ids=ids, attention_mask=mask).logits + stock.config.reward_offset
        equal(f"the stock form, {name}", model(ids, mask).logits, theirs)
    assert not list((tmp_path / "stock").glob("*.py"))
    card = (tmp_path / "stock" / "README.md").read_text()
    assert "without end of turn" in card and ("eager" in card) == (architecture == "gemma2")


@pytest.mark.parametrize("chat", TEMPLATES.values(), ids=TEMPLATES)
def test_messages_through_its_own_template_are_exact(chat, tmp_path):
    """Its classifier reads the last token; a template writes the end of the turn after the response."""
    tokenizer = prepared(chat)
    model = reward_model_for(tokenizer, "last")
    write_stock(model, tokenizer, tmp_path / "stock", "tiny")
    saved, encoder = load_tokenizer(tmp_path / "stock"), encoder_of(model, tokenizer)
    examples = make_examples([shape for shape in chat.shapes if shape != "reasoning alone"])
    conversations = [Conversation(example.messages, example.tools) for example in examples]
    theirs = stock_rewards(tmp_path / "stock", [render(saved, conversation) for conversation in conversations])
    ours = torch.tensor(score_texts(model, [encoder(conversation) for conversation in conversations]).rewards)
    torch.testing.assert_close(theirs, ours.float(), rtol=1e-3, atol=1e-3)
    asked = [Conversation(example.prompt, example.tools) for example in examples]
    assert all(render(saved, prompt, True) == render(tokenizer, prompt, True) for prompt in asked)


def test_padding_skips_the_end_of_a_turn(tmp_path):
    """Completions of a policy end with it, whatever the template writes; the classifier skips the pad token."""
    model, tokenizer = exportable(), tiny_tokenizer()
    write_stock(model, tokenizer, tmp_path / "stock", "tiny")
    messages = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2 w3"}]
    whole = render(tokenizer, messages)
    assert whole.strip().endswith("<|end|>") and load_tokenizer(tmp_path / "stock").pad_token == "<|end|>"
    ours = score_texts(model, [tiny_encoder()(messages)]).rewards
    assert stock_rewards(tmp_path / "stock", [whole]).tolist() == pytest.approx(ours.tolist(), abs=1e-4)


def test_a_pad_token_that_a_response_may_end_with_is_refused():
    """Any word that a tokenizer does not know is its `<unk>`."""
    tokenizer = tiny_tokenizer("{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} \n{% endfor %}", "<unk>")
    assert stock_tokenizer(tokenizer).pad_token == "<eos>"
    tokenizer.eos_token = None
    with pytest.raises(SparseRMError, match="no special token to pad with"):
        stock_tokenizer(tokenizer)


def test_a_response_whose_last_token_takes_in_what_follows_is_refused(tmp_path):
    template = "{% for m in messages %}{{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
    tokenizer = prepared(ChatTemplate("plain", template, ("<|endoftext|>",), "<|endoftext|>", split="llama3"))
    with pytest.raises(SparseRMError, match="the last token of a response depends on the text"):
        write_stock(reward_model_for(tokenizer, "last"), tokenizer, tmp_path / "stock", "tiny")


@pytest.mark.parametrize(
    "start", ["", "\n", "  {% if true %}  \n{% endif %}", "{% macro f(x) %}{{ x }}{% endmacro %}"]
)
@pytest.mark.parametrize("end", ["", "\n", "\n\n", "{% if true %}\n{% endif %}\n", "  \n  "])
def test_a_template_writes_the_same_apart_from_its_tail(start, end):
    """Jinja drops line breaks and spaces around blocks, and a line break at the end of a template."""
    template = start + "{% set x = 1 %}\n  {{ messages[0].content }}" + end
    tokenizer, messages = tiny_tokenizer(template), [{"role": "assistant", "content": "a "}]
    written = tokenizer.apply_chat_template(messages, tokenize=False)
    ahead, content, tail = written.partition("a ")
    tokenizer.chat_template = without_tail(template, "no tail of its own")
    assert tokenizer.apply_chat_template(messages, tokenize=False) == written
    tokenizer.chat_template = without_tail(template, tail)
    assert tokenizer.apply_chat_template(messages, tokenize=False) == ahead + ("a" if tail else content)


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
        ({"head_type": "mlp"}, "head is an MLP"),
        ({"representation_norm": "none"}, "divide tokens by their rms"),
        ({"response_marks": None}, "version 0.1, which reads the end of the turn too; train it anew"),
        ({"architecture": "gpt2"}, "LayerNorm, does more than divide"),
        ({"architecture": "gpt_neox"}, "other weights|does more than divide|no sequence classifier"),
    ],
)
def test_what_would_not_be_exact_is_refused_with_the_reason(config, reason, tmp_path):
    model = tiny_reward_model(**{"pooling": "last"} | config)
    with pytest.raises(SparseRMError, match=reason):
        write_stock(model, tiny_tokenizer(), tmp_path / "stock", "tiny")
    assert not (tmp_path / "stock").exists()


def test_a_residual_stream_below_the_epsilon_of_the_norm_is_noticed(tmp_path):
    model = exportable()
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.mul_(1e-3)
    with pytest.raises(SparseRMError, match="too small for the epsilon"):
        write_stock(model, tiny_tokenizer(), tmp_path / "stock", "tiny")


def test_the_command_writes_what_a_process_without_this_package_scores_with(tmp_path, capsys):
    model = exportable()
    model.save_pretrained(tmp_path / "model")
    save_tokenizer(tiny_tokenizer(), tmp_path / "model")
    command = ["export", str(tmp_path / "model"), "--output_dir", str(tmp_path / "stock")]
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
