"""FSDP of accelerate and ZeRO-3 of DeepSpeed, as TRL sets them up, in two processes without a GPU."""

import json
import os
import subprocess
from functools import cache

import pytest
from tiny import OBJECTIVES, tiny_reward_model
from world import TWO_PROCESSES

SETUP = """
import json, sys
from types import SimpleNamespace as Namespace
import torch
import torch.distributed as dist
from accelerate import FullyShardedDataParallelPlugin
from transformers import AutoModelForSequenceClassification
from trl.models.utils import prepare_deepspeed, prepare_fsdp

folder, *ways = sys.argv[1:]
ids = torch.tensor([[1, 9, 3, 4, 5, 12, 7, 30], [1, 8, 3, 4, 5, 9, 17, 31]])
mask = torch.ones_like(ids)

def with_zero3(model):
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    config |= {"bf16": {"enabled": model.dtype == torch.bfloat16}}
    sharded = prepare_deepspeed(model, Namespace(state=Namespace(deepspeed_plugin=Namespace(deepspeed_config=config))))
    return sharded, sum(p.ds_tensor.numel() for p in model.parameters())

def with_fsdp(model, version):
    how = {"reshard_after_forward": True} if version == 2 else {"use_orig_params": True}
    plugin = FullyShardedDataParallelPlugin(version, auto_wrap_policy="transformer_based_wrap", **how)
    accelerator = Namespace(state=Namespace(fsdp_plugin=plugin), device=torch.device("cpu"), parallelism_config=None)
    sharded = prepare_fsdp(model, accelerator)
    sharded(ids, mask).logits.sum().backward()
    trained = [name for name, parameter in sharded.named_parameters() if parameter.grad is not None]
    assert trained and all("score" in name for name in trained), trained
    return sharded, sum((p.to_local() if version == 2 else p).numel() for p in sharded.parameters())

if ways == ["ZeRO-3"]:
    import deepspeed
    # Not compiled for a minute: its own sum for the processes of one CPU, in place of gloo's.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
else:
    dist.init_process_group("gloo")
results = {}
for way, dtype in ((way, dtype) for way in ways for dtype in (torch.float32, torch.bfloat16)):
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, dtype=dtype)
    with torch.no_grad():
        alone = model(ids, mask).logits
    whole = sum(p.numel() for p in model.parameters())
    sharded, mine = with_zero3(model) if way == "ZeRO-3" else with_fsdp(model, int(way[-1]))
    with torch.no_grad():
        results[f"{way} in {dtype}"] = [alone[:, 0].tolist(), sharded(ids, mask).logits[:, 0].tolist(), mine / whole]
if dist.get_rank() == 0:
    print("RESULT" + json.dumps(results))
"""


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """Starts two processes once for both versions of FSDP, and once for ZeRO-3: most of the time is importing."""
    folder = tmp_path_factory.mktemp("sharded")
    # With every kind of head, each of which FSDP must gather before it is called.
    tiny_reward_model(objectives=OBJECTIVES, ensemble=4, gate=True).save_pretrained(folder)
    (folder / "script.py").write_text(SETUP)

    @cache
    def started(*ways):
        run = subprocess.run(
            [*TWO_PROCESSES, str(folder / "script.py"), str(folder), *ways],
            env=os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout.split("RESULT")[1].splitlines()[0])

    return started


FSDP = pytest.mark.works_with("accelerate", "FSDP 1 and FSDP 2, in float32 and bfloat16")
ZERO = pytest.mark.works_with("deepspeed", "ZeRO-3, in float32 and bfloat16")


@pytest.mark.parametrize(
    "way", [pytest.param("FSDP 1", marks=FSDP), pytest.param("FSDP 2", marks=FSDP), pytest.param("ZeRO-3", marks=ZERO)]
)
def test_a_sharded_model_gives_the_rewards_of_a_whole_one(way, started, equal):
    found = started("ZeRO-3") if way == "ZeRO-3" else started("FSDP 1", "FSDP 2")
    for dtype in ("float32", "bfloat16"):
        alone, sharded, share = found[f"{way} in torch.{dtype}"]
        rounded = way == "ZeRO-3" and dtype == "bfloat16"  # DeepSpeed rounds the head with all the rest
        equal(f"{way} in {dtype}, two processes", alone, sharded, 0.02 if rounded else 1e-6)
        assert share == pytest.approx(0.5, abs=0.02)
