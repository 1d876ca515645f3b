"""Vision-language base models: trained by their text side, and nothing with an image goes in.

A multimodal Gemma 3 with `--slim` once trained, said that it was done, and never loaded again.
"""

import json

import pytest
import torch
from architectures import tiny_model
from test_portability import CONVERSATIONS, ENVIRONMENTS, score_elsewhere
from tiny import CHAT_TEMPLATE, tiny_encoder, tiny_texts, tiny_tokenizer
from transformers import AutoModelForSequenceClassification
from world import make_rows, train_arguments, write_jsonl

from sparserm_hf.cli.main import main
from sparserm_hf.conversations.tokenized_preferences import tokenize_preferences
from sparserm_hf.runtime.checkpoint_folders import save_tokenizer
from sparserm_hf.runtime.errors import SparseRMError
from sparserm_hf.scoring.reward_models import load_reward_model
from sparserm_hf.scoring.scored_rows import score_rows
from sparserm_hf.scoring.scored_texts import score_texts

CPU = torch.device("cpu")
KINDS = ["gemma3", "qwen2_5_vl", "llava"]
PARTS = "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}"
PARTS_TEMPLATE = CHAT_TEMPLATE.replace("{{ m['content'] }}", PARTS)


@pytest.fixture(scope="module", params=KINDS)
def trained(request, world, tmp_path_factory):
    """Checkpoints of both forms, on one kind of vision-language model."""
    root = tmp_path_factory.mktemp(request.param)
    base = tiny_model(request.param)
    with torch.no_grad():
        for parameter in base.get_decoder().parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)
    base.save_pretrained(root / "base")
    save_tokenizer(tiny_tokenizer(), root / "base")
    folders = [root / "whole", root / "slim"]
    for folder, slim in zip(folders, (False, True), strict=True):
        changes = {
            "model": root / "base",
            "slim": slim,
            "cache_dir": root / "cache",
            "controls": False,
            "dtype": "float32",
        }
        assert main(train_arguments(world, folder, **changes)) == 0
    return folders


def rewards_of(folder):
    model, tokenizer = load_reward_model(str(folder), CPU, "float32")
    return score_texts(model, [tiny_encoder(tokenizer)(messages) for messages in CONVERSATIONS]).rewards


def test_both_forms_load_again_with_the_same_rewards(trained):
    given = [rewards_of(folder) for folder in trained]
    assert given[0] == pytest.approx(given[1], abs=1e-5) and torch.tensor(given[0]).std() > 0.01
    whole = AutoModelForSequenceClassification.from_pretrained(trained[0])
    assert not any("vision" in name or "visual" in name for name in whole.state_dict())
    assert whole.config.base_config.get_text_config() is whole.config.base_config


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_they_score_the_same_without_this_package(trained, environment):
    found = score_elsewhere(environment, trained)
    model, _ = load_reward_model(str(trained[0]), CPU, "float32")
    with torch.no_grad():
        expected = [model(torch.tensor([ids]), torch.ones(1, len(ids))).logits.item() for ids in tiny_texts()]
    for folder in trained:
        for rewards in found[str(folder)]["rewards"]:
            assert rewards == pytest.approx(expected, rel=1e-4, abs=1e-4)


PICTURE = {"type": "image", "image": "a.png"}
SEEN = [{"role": "user", "content": [PICTURE, {"type": "text", "text": "w1"}]}, {"role": "assistant", "content": "w2"}]


@pytest.mark.parametrize("kind", ["image", "video", "audio", "image_url", "input_audio"])
def test_images_videos_and_sound_are_refused_by_name(kind, world, tmp_path, capsys):
    prompt = [{"role": "user", "content": [PICTURE | {"type": kind}, {"type": "text", "text": "w1"}]}]
    pair = make_rows(1)[0] | {"prompt": prompt}
    sentence = rf"message 1 has a `content` with a part of the type '{kind}', but SparseRM scores text only"
    with pytest.raises(SparseRMError, match=f"^Row 1, `prompt`: {sentence}"):
        tokenize_preferences([pair], tiny_encoder())
    data = write_jsonl(tmp_path / "seen.jsonl", [pair])
    assert main(train_arguments(world, tmp_path / "out", dataset=data)) == 2
    assert f"of the type '{kind}'" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("column", ["images", "image", "videos", "audio"])
def test_so_are_columns_of_them(column):
    """Their placeholders in the text alone would have been read, and the pictures left out without a word."""
    row = make_rows(1)[0]
    with pytest.raises(SparseRMError, match=rf"^Row 1 has `{column}`, but SparseRM scores text only"):
        tokenize_preferences([row | {column: ["a.png"]}], tiny_encoder())
    for nothing in (None, [], ""):
        assert len(tokenize_preferences([row | {column: nothing}], tiny_encoder())) == 1


def test_scoring_refuses_them_row_by_row(reward_model):
    model, tokenizer = load_reward_model(reward_model, CPU)
    good, bad = score_rows(model, tokenizer, [{"text": "w1"}, {"messages": SEEN}])
    assert "reward" in good and "with a part of the type 'image'" in json.dumps(bad)


def test_a_template_that_writes_parts_alone_writes_strings_too():
    """As SmolVLM's does: of a string it wrote nothing, so that no response was found."""
    plain, parts = (tiny_encoder(tiny_tokenizer(template)) for template in (CHAT_TEMPLATE, PARTS_TEMPLATE))
    messages = CONVERSATIONS[0]
    assert parts(messages) == plain(messages)
    as_parts = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]
    assert parts(as_parts) == plain(messages)
