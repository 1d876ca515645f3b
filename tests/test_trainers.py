"""Trainers that pin what this package does not: their own code asks for rewards, each in an environment of its own.

`make test-trainers` sets these environments up and runs this file. OpenRLHF and verl ask `sparserm serve`.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from chat_templates import assistant, user
from documented import snippet
from world import start_server, write_jsonl

from sparserm_hf.scoring.reward_models import load_reward_model

ROOT = Path(__file__).parent.parent
CONVERSATIONS = [[user(f"w{i} w2"), assistant(f"w{i + 3} w7 w{i}")] for i in range(6)]

# The executor of a rollout, which gets what a policy would have written. The rest of its package needs a GPU.
OPENRLHF = """
import asyncio, json, sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
sys.modules["openrlhf.utils"] = package = ModuleType("openrlhf.utils")
package.__path__ = [find_spec("openrlhf").submodule_search_locations[0] + "/utils"]
from openrlhf.utils.agent import SingleTurnAgentExecutor
from transformers import PreTrainedTokenizerFast

job = json.load(sys.stdin)
tokenizer = PreTrainedTokenizerFast.from_pretrained(job["model"])

class Policy:
    def __init__(self, ids):
        self.ids = ids

    async def generate(self, prompt, sampling_params, multi_modal_data=None):
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=self.ids, finish_reason="stop", logprobs=None)])

async def ask(messages):
    executor = SingleTurnAgentExecutor(job["address"] + "/get_reward")
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    response = tokenizer.apply_chat_template(messages, tokenize=False)[len(prompt):]
    ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    sampling = SimpleNamespace(max_tokens=64, logprobs=None)
    return (await executor.execute(prompt, None, sampling, 512, tokenizer, Policy(ids)))["reward"][0]

async def ask_all():
    return await asyncio.gather(*map(ask, job["conversations"]))

print(json.dumps(asyncio.run(ask_all())))
"""

# The worker that computes the rewards of rollouts, with the trainer's own configuration.
VERL = """
import asyncio, json, sys
import numpy as np
import torch
from hydra import compose, initialize_config_module
from verl import DataProto
from verl.experimental.reward_loop import RewardLoopWorker

job = json.load(sys.stdin)
with initialize_config_module("verl.trainer.config", version_base=None):
    config = compose("ppo_trainer", ["actor_rollout_ref.model.path=" + job["model"], *job["settings"]])

def rollout(messages):
    tokenizer = worker.input_tokenizer
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    response = tokenizer.apply_chat_template(messages, tokenize=False)[len(prompt):]
    prompt, response = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, response))
    padded = response + [tokenizer.pad_token_id] * 3
    mask = [1] * (len(prompt) + len(response)) + [0] * 3
    others = {
        "raw_prompt": messages[:-1],
        "data_source": "",
        "reward_model": {"ground_truth": ""},
        "extra_info": {"question": messages[0]["content"]},
    }
    arrays = {name: np.empty(1, dtype=object) for name in others}
    for name, value in others.items():
        arrays[name][0] = value
    return DataProto.from_dict({"responses": torch.tensor([padded]), "attention_mask": torch.tensor([mask])}, arrays)

async def ask_all():
    global worker
    worker = RewardLoopWorker(config, job["address"].removeprefix("http://"))
    data = DataProto.concat([rollout(messages) for messages in job["conversations"]])
    return [answer["reward_score"] for answer in await worker.compute_score_batch(data)]

print(json.dumps(asyncio.run(ask_all())))
"""


@pytest.fixture(scope="module")
def job(trained):
    """A server, the reward model that it serves, and conversations with their rewards."""
    model, tokenizer = load_reward_model(str(trained), "cpu")
    process, address = start_server(trained)
    asked = {"address": address, "model": str(trained), "conversations": CONVERSATIONS}
    yield asked, model.predict(CONVERSATIONS, tokenizer)
    process.kill()


def program(trainer, name="python"):
    """A program in the environment of a trainer."""
    return ROOT / f".venv-{trainer}" / "bin" / name


def in_environment_of(trainer, claim):
    """Mark a test that needs the environment of a trainer."""
    absent = pytest.mark.skipif(not program(trainer).exists(), reason=f"make test-trainers sets up .venv-{trainer}")
    return lambda test: absent(pytest.mark.works_with(trainer, claim, f".venv-{trainer}")(test))


def run(command, text=None, folder=None):
    """What a command prints, in an environment that does not find what is installed here."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(command, input=text, cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


def rewards_by(trainer, code, job):
    """The rewards that the code of a trainer gets, in its environment."""
    return json.loads(run([program(trainer), "-c", code], json.dumps(job)).splitlines()[-1])


@in_environment_of("openrlhf", "rewards of `sparserm serve`")
def test_openrlhf(job, equal):
    job, expected = job
    equal("OpenRLHF's executor", expected, rewards_by("openrlhf", OPENRLHF, job), 1e-6)


@in_environment_of("verl", "rewards of `sparserm serve`: a reward function, a reward model")
def test_verl(job, tmp_path, equal):
    job, expected = job
    file = tmp_path / "reward.py"
    file.write_text(snippet("trainers.md", "compute_score").replace("http://localhost:8000", job["address"]))
    by_function = [f"reward.custom_reward_function.path={file}"]
    equal("verl's worker, reward function", expected, rewards_by("verl", VERL, job | {"settings": by_function}), 1e-6)
    reward_model = "reward.reward_model"
    for engine in ("vllm", "sglang"):
        settings = [f"{reward_model}.enable=True", f"{reward_model}.model_path={job['model']}"]
        settings += [f"{reward_model}.rollout.name={engine}"]
        equal(f"verl's worker, as of {engine}", expected, rewards_by("verl", VERL, job | {"settings": settings}), 1e-6)


@in_environment_of("ms-swift", "`SparseRMReward` as its GRPO's reward function")
def test_ms_swift(world, trained, tmp_path, equal):
    swift = program("ms-swift", "swift")
    (tmp_path / "reward.py").write_text(snippet("trainers.md", "orms").replace("my-reward-model", str(trained)))
    write_jsonl(tmp_path / "questions.jsonl", [{"messages": messages[:-1]} for messages in CONVERSATIONS])
    command = [swift, "rlhf", "--rlhf_type", "grpo", "--external_plugins", "reward.py", "--reward_funcs", "sparserm"]
    command += ["--model", str(world / "base"), "--model_type", "llama", "--dataset", "questions.jsonl"]
    command += ["--template", "llama", "--template_backend", "jinja", "--system", "w1", "--torch_dtype", "float32"]
    command += ["--num_generations", "2", "--per_device_train_batch_size", "2", "--max_completion_length", "8"]
    command += ["--max_steps", "1", "--log_completions", "true", "--report_to", "none", "--output_dir", "out"]
    run(command, folder=tmp_path)
    logged = json.loads(next(tmp_path.glob("out/*/completions.jsonl")).read_text().splitlines()[0])
    questions = [re.search(r"<\|user\|> (.*?) <\|end\|>", prompt)[1] for prompt in logged["prompt"]]
    conversations = [
        [{"role": "system", "content": "w1"}, user(question), assistant(said)]
        for question, said in zip(questions, logged["completion"], strict=True)
    ]
    model, tokenizer = load_reward_model(str(trained), "cpu")
    equal("ms-swift's GRPO, reward function", model.predict(conversations, tokenizer), logged["Reward"], 1e-6)
