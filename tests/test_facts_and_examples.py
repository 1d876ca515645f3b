"""The demo's facts are true and give nothing away; the examples run as they stand."""

import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from sparserm_hf.modeling.backbone_sparserm import decoder_of
from tiny import tiny_causal_lm, tiny_tokenizer

from sparserm_hf.cli.demo import TRAIN_PAIRS, score_in_plain_transformers
from sparserm_hf.conversations.chat_templates import encode
from sparserm_hf.demo.facts import make_facts
from sparserm_hf.runtime.checkpoints import save_tokenizer
from sparserm_hf.sae.hooks import collect_residual_streams
from sparserm_hf.sae.loading.choosing import SHIPPED_SAE, default_sae
from sparserm_hf.sae.loading.loaded_sae import load_sae

EXAMPLES = Path(__file__).parent.parent / "examples"


def answer(row, side):
    return row[side][0]["content"]


def test_there_are_enough_facts_of_enough_kinds_and_each_is_asked_once():
    rows = make_facts()
    assert len(rows) >= 1200 and len({row["kind"] for row in rows}) >= 6
    questions = [row["prompt"][0]["content"] for row in rows]
    assert len(set(questions)) == len(questions)
    assert make_facts(seed=0) == rows != make_facts(seed=1)


def test_arithmetic_answers_are_right_and_wrong_as_labelled():
    checked = 0
    for row in make_facts():
        words = row["prompt"][0]["content"].rstrip("?").split()
        if row["kind"] in ("sum", "difference", "product"):
            a, operation, b = words[2:]
            right = {"plus": int(a) + int(b), "minus": int(a) - int(b), "times": int(a) * int(b)}[operation]
            assert answer(row, "chosen").endswith(f"is {right}.")
            assert not answer(row, "rejected").endswith(f" {right}.")
            checked += 1
        if row["kind"] == "order":
            a, b = int(words[4].rstrip(",")), int(words[6])
            right = max(a, b) if words[3] == "larger," else min(a, b)
            assert answer(row, "chosen").endswith(f"is {right}.") and answer(row, "rejected").endswith(
                f"is {a + b - right}."
            )
            checked += 1
    assert checked > 400


def test_some_facts_by_hand():
    chosen = {row["prompt"][0]["content"]: answer(row, "chosen") for row in make_facts()}
    for question, right in {
        "What is the capital of Japan?": "The capital of Japan is Tokyo.",
        "On which continent is Kenya?": "Kenya is in Africa.",
        "What is the chemical symbol of sodium?": "The symbol of sodium is Na.",
        "What is the atomic number of iron?": "The atomic number of iron is 26.",
        "Which month comes right after December?": "The month that comes right after December is January.",
        "How many centimetres are there in 3 metres?": "There are 300 centimetres in 3 metres.",
        "What kind of animal is an ant?": "An ant is a kind of insect.",
        "What is the opposite of hot?": "The opposite of hot is cold.",
    }.items():
        assert chosen[question] == right


@pytest.mark.parametrize("part", [slice(None, TRAIN_PAIRS), slice(TRAIN_PAIRS, None)])
def test_neither_length_nor_words_tell_the_true_answer(part):
    """Each answer's words are chosen as often as they are rejected, in training and in test data alike."""
    rows = make_facts()[part]
    assert len(rows) % 2 == 0
    balance = Counter()
    for row in rows:
        balance.update(answer(row, "chosen").split())
        balance.subtract(answer(row, "rejected").split())
    assert not any(balance.values())
    differences = [len(answer(row, "chosen")) - len(answer(row, "rejected")) for row in rows]
    assert sum(d > 0 for d in differences) == sum(d < 0 for d in differences)


def test_the_shipped_sae_fits_the_package_and_its_base_model():
    size = sum(file.stat().st_size for file in SHIPPED_SAE.iterdir())
    assert size <= 12 * 2**20
    sae = load_sae(str(SHIPPED_SAE))
    assert sae.autoencoder.d_in == 576 and sae.source["model_name"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert sae.layer == 18
    config = tiny_causal_lm().config
    for name, value in {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    }.items():
        setattr(config, name, value)
    assert default_sae(config, "any name") == str(SHIPPED_SAE)


def test_the_examples_run(tmp_path, capsys, monkeypatch):
    from test_sae_check import principal_sae, save_sae
    from test_training import make_rows, write_jsonl

    assert all(len(path.read_text().splitlines()) <= 60 for path in EXAMPLES.glob("*.py"))
    base, model = str(tmp_path / "base"), str(tmp_path / "model")
    causal_lm, tokenizer, rows = tiny_causal_lm(), tiny_tokenizer(), make_rows(60)
    causal_lm.save_pretrained(base)
    save_tokenizer(tokenizer, Path(base))
    pairs = write_jsonl(tmp_path / "pairs.jsonl", rows)
    texts = [encode(tokenizer, row["prompt"] + row["chosen"]) for row in rows]
    tokens = collect_residual_streams(decoder_of(causal_lm), texts, [2], tokenizer.bos_token_id, "test")[2]
    save_sae(tmp_path / "sae", principal_sae(tokens), "blocks.1.hook_resid_post")
    runpy.run_path(str(EXAMPLES / "train.py"))["main"](base, pairs, model, str(tmp_path / "sae"))
    assert "dense representation" in capsys.readouterr().out
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / "best_of_n.py"), model, base, "w1 w2", "4"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    rewards = [float(line.split()[0]) for line in result.stdout.splitlines()]
    assert len(rewards) == 4 and rewards == sorted(rewards, reverse=True)
    conversation = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    _, scored = score_in_plain_transformers(Path(model), [conversation])
    assert len(scored) == 1

    from huggingface_hub import HfApi, RepoUrl

    uploads = []

    def upload_folder(self, *, folder_path, **kwargs):
        uploads.append({path.name: path.stat().st_size for path in Path(folder_path).iterdir()})

    monkeypatch.setattr(HfApi, "create_repo", lambda *a, **k: RepoUrl("https://huggingface.co/me/rm"))
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    push = runpy.run_path(str(EXAMPLES / "push_to_hub.py"))["main"]
    push(model, "me/rm")
    assert {"README.md", "modeling_sparserm.py", "tokenizer.json", "controls.safetensors"} <= set(uploads[0])
