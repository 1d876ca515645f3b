"""The demo's pairs, the shipped SAE, and the examples, which run as they stand."""

import gzip
import re
import runpy
import subprocess
import sys
from pathlib import Path

from sparserm_hf.modeling.backbone_sparserm import decoder_of
from tiny import tiny_causal_lm, tiny_tokenizer

from sparserm_hf.cli import demo, main
from sparserm_hf.cli.demo import ASKED, PAIRS
from sparserm_hf.conversations import load_preferences
from sparserm_hf.conversations.chat_templates import encode
from sparserm_hf.runtime.checkpoint_folders import save_tokenizer
from sparserm_hf.sae.hooks import collect_residual_streams
from sparserm_hf.sae.loading.choosing import SHIPPED_SAE, default_sae
from sparserm_hf.sae.loading.loaded_sae import load_sae

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_demos_pairs_are_told_apart_by_question():
    train, test = (load_preferences(str(PAIRS / f"{split}.jsonl.gz")).to_list() for split in ("train", "test"))
    asked = [{row["prompt"][0]["content"] for row in rows} for rows in (train, test)]
    assert (len(train), len(test)) == (1000, 581) and not asked[0] & asked[1]
    assert all(row["chosen"] != row["rejected"] for row in train + test)
    assert ASKED in asked[1]
    assert "Apache License 2.0" in (PAIRS / "README.md").read_text()


def test_the_demo_shows_what_the_package_is_for(tmp_path, monkeypatch, capsys):
    """With a few of its pairs, and the real base model."""
    for split, count in (("train", 40), ("test", 24)):
        lines = gzip.decompress((PAIRS / f"{split}.jsonl.gz").read_bytes()).splitlines(keepends=True)[:count]
        (tmp_path / f"{split}.jsonl.gz").write_bytes(gzip.compress(b"".join(lines)))
    monkeypatch.setattr(demo, "PAIRS", tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    assert main(["demo", "--output_dir", str(tmp_path / "demo")]) == 0
    shown = capsys.readouterr().out
    for said in ("Held-out questions, 24 pairs", "dense representation", "chosen wins by", "chosen loses by", ASKED):
        assert said in shown
    ranked = re.findall(r"^ +([+-]\d\.\d\d)  \S", shown, flags=re.MULTILINE)
    assert len(ranked) == 8 and ranked == sorted(ranked, key=float, reverse=True)
    assert "<title>" in (tmp_path / "demo" / "report.html").read_text()
    assert len((tmp_path / "demo" / "train.jsonl").read_text().splitlines()) == 40


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

    from huggingface_hub import HfApi, RepoUrl

    uploads = []

    def upload_folder(self, *, folder_path, **kwargs):
        uploads.append({path.name: path.stat().st_size for path in Path(folder_path).iterdir()})

    monkeypatch.setattr(HfApi, "create_repo", lambda *a, **k: RepoUrl("https://huggingface.co/me/rm"))
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    push = runpy.run_path(str(EXAMPLES / "push_to_hub.py"))["main"]
    push(model, "me/rm")
    assert {"README.md", "modeling_sparserm.py", "tokenizer.json", "controls.safetensors"} <= set(uploads[0])
