"""Checkpoints in environments that have torch, transformers and safetensors, and nothing of ours.

`make test` sets these environments up, one with transformers 4.57.6 and one with the newest 5.x.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from tiny import ARCHITECTURES, OBJECTIVES, tiny_causal_lm, tiny_encoder, tiny_reward_model, tiny_texts, tiny_tokenizer
from world import make_rows

from sparserm_hf.integrations.stock_export import write_stock
from sparserm_hf.runtime.checkpoint_folders import save_tokenizer
from sparserm_hf.scoring.scored_texts import score_texts

ROOT = Path(__file__).parent.parent
ENVIRONMENTS = [4, 5]
CONVERSATIONS = [row["prompt"] + row[side] for row in make_rows(3) for side in ("chosen", "rejected")]

# Scores token ids with both auto classes, and a text with the saved tokenizer, for each folder on standard input.
SCORE = """
import importlib.util, json, sys
for name in ("sparserm_hf", "sae_lens", "datasets", "accelerate"):
    assert importlib.util.find_spec(name) is None, name + " must not be here"
import torch, transformers
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
job = json.load(sys.stdin)
results = {}
for folder in job["folders"]:
    rewards = []
    for auto in (AutoModel, AutoModelForSequenceClassification):
        model = auto.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
        assert not model.training and model.config.num_labels == 1
        with torch.no_grad():
            rewards.append([model(torch.tensor([t]), torch.ones(1, len(t))).logits.item() for t in job["texts"]])
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    messages = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]
    ids = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)["input_ids"]
    model.save_pretrained(folder + "-resaved")
    again = AutoModel.from_pretrained(folder + "-resaved", trust_remote_code=True, dtype=torch.float32)
    with torch.no_grad():
        rewards.append([again(torch.tensor([t]), torch.ones(1, len(t))).logits.item() for t in job["texts"]])
    results[folder] = {"rewards": rewards, "ids": ids}
print(json.dumps([transformers.__version__, results]))
"""


SCORE_STOCK = """
import json, sys
import torch, transformers
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast
job = json.load(sys.stdin)
results = {}
for folder in job["folders"]:
    # As the card of the stock form of a Gemma 2 says.
    how = {"attn_implementation": "eager"} if "gemma2" in folder and transformers.__version__ < "5" else {}
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, **how)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)  # AutoTokenizer takes it for Qwen 2's own
    with torch.no_grad():
        texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in job["conversations"]]
        logits = [model(**tokenizer(t, add_special_tokens=False, return_tensors="pt")).logits.item() for t in texts]
    results[folder] = [logit + model.config.reward_offset for logit in logits]
print(json.dumps([transformers.__version__, results]))
"""


def score_elsewhere(
    environment: int,
    folders: list[Path],
    script: str = SCORE,
    conversations: list = CONVERSATIONS,
    beside: str = "",
) -> dict:
    """Run a script in an environment; with `beside`, also with the packages in that folder of the environment."""
    place = ROOT / f".venv-transformers-{environment}"
    if not (place / (f"{beside}.installed" if beside else "bin/python")).exists():
        pytest.skip(f"{place.name} is not set up: run the tests by `make test`")
    job = json.dumps({"folders": list(map(str, folders)), "texts": tiny_texts(), "conversations": conversations})
    result = subprocess.run(
        [str(place / "bin" / "python"), "-c", script],
        input=job,
        capture_output=True,
        text=True,
        cwd=folders[0].parent,
        env=os.environ | ({"PYTHONPATH": str(place / beside)} if beside else {}),
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    version, results = json.loads(result.stdout.splitlines()[-1])
    assert version.startswith(f"{environment}.")
    return results


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Both forms of a checkpoint for each architecture, and combined ones, with the rewards that they must give."""
    root = tmp_path_factory.mktemp("checkpoints")
    expected = {}
    for architecture in ARCHITECTURES:
        tiny_causal_lm(architecture).save_pretrained(root / f"{architecture}-base")
        model = tiny_reward_model(architecture, base_model_name_or_path=str(root / f"{architecture}-base"))
        with torch.no_grad():
            rewards = [model(torch.tensor([t]), torch.ones(1, len(t))).logits.item() for t in tiny_texts()]
        for form, saved in (("whole", model), ("slim", model.to_slim())):
            folder = root / f"{architecture}-{form}"
            saved.save_pretrained(folder)
            save_tokenizer(tiny_tokenizer(), folder)
            expected[str(folder)] = rewards
    for name, gate in (("combined", False), ("gated", True)):
        combined = tiny_reward_model(objectives=OBJECTIVES, gate=gate)
        combined.weigh({})
        combined.save_pretrained(root / name)
        save_tokenizer(tiny_tokenizer(), root / name)
        with torch.no_grad():
            outputs = [combined(torch.tensor([t]), torch.ones(1, len(t))) for t in tiny_texts()]
        expected[str(root / name)] = [output.logits.item() for output in outputs]
    return expected


@pytest.mark.works_with(
    "transformers",
    "`AutoModel` and `AutoModelForSequenceClassification` with `trust_remote_code=True`, nothing of ours installed, "
    "saved again: Gemma 2 and 3, GPT-2, GPT-NeoX, Llama, Mistral, Phi-3, Qwen 2 and 3",
    ".venv-transformers-4",
    ".venv-transformers-5",
)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_rewards_are_the_same_everywhere(environment, checkpoints, equal):
    """transformers 4 once took its own default for a rope_theta that it could not find: -13.01 for -13.10."""
    results = score_elsewhere(environment, [Path(folder) for folder in checkpoints])
    ids = tiny_tokenizer()("<|user|> w1 w2 <|end|> <|assistant|> w3 <|end|> ", add_special_tokens=False)["input_ids"]
    for folder, rewards in checkpoints.items():
        for given in results[folder]["rewards"]:
            equal(f"transformers {environment} without this package", rewards, given)
        assert results[folder]["ids"] == ids


@pytest.mark.works_with(
    "transformers",
    "the stock form, without remote code: Gemma 2 and 3, Llama, Mistral, Phi-3, Qwen 2 and 3",
    ".venv-transformers-4",
    ".venv-transformers-5",
)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_so_are_those_of_the_stock_form(environment, tmp_path, equal):
    """Its configuration, too, was once read by transformers 4 with a rope_theta of its own: 0.39 off."""
    expected = {}
    for architecture in set(ARCHITECTURES) - {"gpt2", "gpt_neox"}:  # whose final norms do more than divide
        model = tiny_reward_model(architecture, pooling="last")
        folder = tmp_path / architecture
        write_stock(model, tiny_tokenizer(), folder, "tiny")
        texts = [tiny_encoder()(messages) for messages in CONVERSATIONS]
        expected[str(folder)] = torch.tensor(score_texts(model, texts).rewards)
    for folder, rewards in score_elsewhere(environment, [Path(folder) for folder in expected], SCORE_STOCK).items():
        equal(f"the stock form in transformers {environment} without this package", expected[folder], rewards)
