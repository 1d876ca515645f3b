"""Quantised base models stay packed, in training, on disk and when a checkpoint is loaded; what cannot is refused."""

import pytest
import torch
import transformers
from datasets import Dataset
from sparserm_hf.modeling.modeling_sparserm import SparseRMForSequenceClassification
from sparserm_hf.modeling.quantized_sparserm import plain_tensors
from test_portability import ENVIRONMENTS, score_elsewhere
from tiny import tiny_causal_lm, tiny_sae, tiny_settings, tiny_tokenizer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, FineGrainedFP8Config, LlamaConfig, TorchAoConfig
from world import make_rows, save_sae

from sparserm_hf.base_models.fingerprints import fingerprint_module
from sparserm_hf.runtime.checkpoint_folders import save_tokenizer
from sparserm_hf.runtime.errors import SparseRMError
from sparserm_hf.scoring.reward_models import encoder_of, load_reward_model
from sparserm_hf.scoring.scored_texts import score_texts
from sparserm_hf.training.config import SparseRMTrainingConfig
from sparserm_hf.training.trainer import SparseRMTrainer

pytest.importorskip("bitsandbytes", reason="`make test` puts it on the path")
WIDTH = 128  # bitsandbytes packs 64 numbers at a time
PAIRS = Dataset.from_list(make_rows(40))
CONVERSATIONS = [row["prompt"] + row[side] for row in make_rows(4, seed=2) for side in ("chosen", "rejected")]
FOUR_BIT = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base model that can be packed, as it is and packed, and an SAE."""
    root = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "head_dim": 32}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**tiny_settings("llama") | shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0 if parameter.ndim > 1 else 1.0)
    model.save_pretrained(root / "base")
    nested = BitsAndBytesConfig(**FOUR_BIT, bnb_4bit_use_double_quant=True)
    packed = AutoModelForCausalLM.from_pretrained(root / "base", quantization_config=nested, dtype=torch.float32)
    packed.save_pretrained(root / "nf4")
    for name in ("base", "nf4"):
        save_tokenizer(tiny_tokenizer(), root / name)
    save_sae(root / "sae", sae=tiny_sae("jumprelu", d_in=WIDTH))
    return root


@pytest.fixture(scope="module")
def torchao(world):
    """The name of a base model that torchao has packed."""
    if transformers.__version__ < "5":
        pytest.skip("transformers 4 saves what torchao has packed as a pickle alone")
    from torchao.quantization import Int8WeightOnlyConfig

    packed = TorchAoConfig(Int8WeightOnlyConfig())
    AutoModelForCausalLM.from_pretrained(world / "base", quantization_config=packed).save_pretrained(world / "torchao")
    save_tokenizer(tiny_tokenizer(), world / "torchao")
    return "torchao"


def trainer(world, base, folder, **settings):
    args = SparseRMTrainingConfig(str(folder), k=2, check_sae=False, cache_dir=str(world / "cache"), **settings)
    return SparseRMTrainer(base if not isinstance(base, str) else str(world / base), str(world / "sae"), args, PAIRS)


def save(world, base, folder, **settings):
    """Train and save; the rewards of the model in memory."""
    trained = trainer(world, base, folder, **settings)
    trained.train()
    trained.save_model()
    return rewards(trained.model, trained.processing_class)


def rewards(model, tokenizer):
    encode = encoder_of(model, tokenizer)
    return score_texts(model, [encode(messages) for messages in CONVERSATIONS]).rewards


WAYS = {
    "4 bit on loading": ("base", {"quantization": "bnb-4bit"}),
    "8 bit on loading": ("base", {"quantization": "bnb-8bit"}),
    "packed in 4 bit": ("nf4", {}),
}
# Scores conversations with checkpoints, where nothing of ours is installed.
ELSEWHERE = """
import importlib.util, json, sys
assert importlib.util.find_spec("sparserm_hf") is None
import torch, transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer
job, rewards = json.load(sys.stdin), {}
for folder in job["folders"]:
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in job["conversations"]]
    with torch.no_grad():
        inputs = [tokenizer(text, add_special_tokens=False, return_tensors="pt") for text in texts]
        rewards[folder] = [model(x["input_ids"], x["attention_mask"]).logits.item() for x in inputs]
print(json.dumps([transformers.__version__, rewards]))
"""


@pytest.fixture(scope="module")
def checkpoints(world, tmp_path_factory):
    """The rewards of the model in memory for the folder of each way, self-contained and slim."""
    root, expected = tmp_path_factory.mktemp("checkpoints"), {}
    for number, (base, settings) in enumerate(WAYS.values()):
        for slim in (False, True):
            folder = root / f"{number}-{'slim' if slim else 'whole'}"
            dtype = "float32" if settings else "auto"
            expected[folder] = save(world, base, folder, slim=slim, dtype=dtype, **settings)
            assert expected[folder].std() > 1e-3
    return expected


def test_a_quantised_base_trains_and_its_checkpoint_loads(checkpoints, world, equal):
    """They were refused, though 9B parameters in 4 bits are what fits on the cards that people have."""
    for folder, expected in checkpoints.items():
        model, tokenizer = load_reward_model(str(folder), torch.device("cpu"))
        kind = type(model.model.layers[0].mlp.up_proj).__name__
        assert kind == ("Linear8bitLt" if folder.name.startswith("1") else "Linear4bit")
        assert {p.dtype for p in model.score.parameters()} == {model.directions.dtype} == {torch.float32}
        assert [name for name, p in model.named_parameters() if p.requires_grad] == ["score.weight", "score.bias"]
        equal("a quantised base, loaded", expected, rewards(model, tokenizer))
        size = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
        cut = sum(file.stat().st_size for file in (world / "base").glob("*.safetensors")) // 2  # 2 of 4 layers
        assert size < (5_000 if model.config.slim else cut / 2)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_quantised_checkpoint_loads_without_this_package(environment, checkpoints, equal):
    found = score_elsewhere(environment, list(checkpoints), ELSEWHERE, CONVERSATIONS, beside="quantized")
    for folder, expected in checkpoints.items():
        equal(f"a quantised base under transformers {environment}", expected, found[str(folder)], 2e-3)


def test_a_checkpoint_that_was_trained_unquantised_can_be_loaded_quantised(world, tmp_path):
    """By the argument that any model is loaded so with; saved again, it stays so."""
    for slim in (False, True):
        expected = save(world, "base", tmp_path / f"model {slim}", slim=slim)
        packed = BitsAndBytesConfig(**FOUR_BIT)
        name = str(tmp_path / f"model {slim}")
        model = SparseRMForSequenceClassification.from_pretrained(name, quantization_config=packed)
        _, tokenizer = load_reward_model(name, torch.device("cpu"))
        assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
        found = rewards(model, tokenizer)
        assert 0 < abs(found - expected).max() < 3 * expected.std(), "close, and not the same"
        model.save_pretrained(tmp_path / f"again {slim}")
        again = SparseRMForSequenceClassification.from_pretrained(tmp_path / f"again {slim}")
        assert again.config.slim == slim
        assert rewards(again, tokenizer) == pytest.approx(found, abs=1e-5)
        if not slim:
            assert rewards(again.to_slim(), tokenizer) == pytest.approx(found, abs=1e-5)


def test_a_model_that_was_loaded_quantised_trains(world, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(world / "nf4", dtype="auto")
    assert save(world, model, tmp_path / "model") == pytest.approx(save(world, "nf4", tmp_path / "named"), abs=1e-5)


def test_packed_weights_that_do_not_load_again_are_refused_first(world, torchao, tmp_path):
    """torchao's load again in a plain model only, and GPTQ's kernels rearrange theirs: tried before training is."""
    with pytest.raises(SparseRMError, match=r"quantised by torchao, cannot be saved and loaded again .* --slim"):
        trainer(world, torchao, tmp_path / "model")
    assert not list(tmp_path.iterdir())
    expected = save(world, torchao, tmp_path / "slim", slim=True)
    assert rewards(*load_reward_model(str(tmp_path / "slim"), torch.device("cpu"))) == pytest.approx(expected)


def test_what_cannot_be_quantised_is_refused(world, tmp_path, monkeypatch):
    with pytest.raises(SparseRMError, match=r"is quantised when it is loaded, but .* was given in memory"):
        trainer(world, tiny_causal_lm(), tmp_path / "model", quantization="bnb-4bit")
    with pytest.raises(SparseRMError, match="run in the type that they were packed for, float32: leave --dtype out"):
        trainer(world, "nf4", tmp_path / "model", dtype="bfloat16")
    with pytest.raises(SparseRMError, match="quantization is 'int3', but must be one of none, bnb-4bit, bnb-8bit"):
        SparseRMTrainingConfig("out", quantization="int3")
    monkeypatch.setattr("sparserm_hf.base_models.quantization.find_spec", lambda name: None)
    with pytest.raises(SparseRMError, match=r"pip install '\.\[quantization\]'"):
        trainer(world, "base", tmp_path / "model", quantization="bnb-8bit")
    assert not list(tmp_path.iterdir())


def test_a_slim_model_whose_quantised_base_changed_is_refused(world, tmp_path):
    save(world, "nf4", tmp_path / "model", slim=True)
    model = SparseRMForSequenceClassification.from_pretrained(tmp_path / "model")
    model.model.layers[0].mlp.up_proj.weight.data[:8] += 1
    with pytest.raises(ValueError, match="and it is quantised: merge an adapter into the base model before"):
        model.save_pretrained(tmp_path / "again")


@pytest.mark.parametrize("base", ["nf4", "torchao"])
def test_packed_weights_have_a_fingerprint(base, world, request):
    """The cache's key: each packed number counts, and saving or running the model changes none."""
    if base == "torchao":
        request.getfixturevalue("torchao")
    model = AutoModelForCausalLM.from_pretrained(world / base)
    first = fingerprint_module(model)
    model(torch.tensor([[1, 5, 6]]))
    assert fingerprint_module(model) == first
    name = next(name for name in plain_tensors(model.state_dict()) if "up_proj" in name)
    part = model.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        packed = part.data if base == "nf4" else part.qdata
        packed.view(-1)[0] += 1
    assert fingerprint_module(model) != first, name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="transformers runs FP8 on a GPU alone: not run in our gate")
@pytest.mark.parametrize("slim", [False, True])
def test_fp8(slim, world, tmp_path):
    packed = AutoModelForCausalLM.from_pretrained(
        world / "base", quantization_config=FineGrainedFP8Config(), device_map="cuda"
    )
    packed.save_pretrained(tmp_path / "fp8")
    save_tokenizer(tiny_tokenizer(), tmp_path / "fp8")
    expected = save(world, str(tmp_path / "fp8"), tmp_path / "model", slim=slim)
    assert rewards(*load_reward_model(str(tmp_path / "model"), torch.device("cuda"))) == pytest.approx(expected)
