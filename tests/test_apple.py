"""On an Apple GPU: float64 raises there, and `.double()` in six files once made every `sparserm score` fail."""

import json

import pytest
import torch
from apple import GPU, OnGPU, apple_gpu
from world import make_rows, train_arguments, write_jsonl

from sparserm_hf.cli.main import main
from sparserm_hf.runtime.devices import as_numpy
from sparserm_hf.scoring import scored_texts


def test_the_emulation_raises_where_the_gpu_does():
    with apple_gpu():
        tensor = torch.ones(3).to(GPU)
        assert isinstance(tensor, OnGPU) and (tensor * 2).device == GPU and torch.zeros(2, device=GPU).sum() == 0
        for double in (
            lambda: tensor.double(),
            lambda: tensor.to(torch.float64),
            lambda: torch.ones(3, dtype=torch.float64).to(GPU),
            lambda: torch.zeros(3, dtype=torch.float64, device=GPU),
            lambda: tensor.sum(dtype=torch.float64),
        ):
            with pytest.raises(TypeError, match="float64"):
                double()
        with pytest.raises(RuntimeError, match="same device"):
            tensor + torch.ones(3)
        with pytest.raises((RuntimeError, TypeError)):
            tensor.numpy()
        assert tensor.cpu().double().dtype == torch.float64 and as_numpy(tensor).tolist() == [1, 1, 1]


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """Checkpoints that were trained on the GPU and on the CPU."""
    root = tmp_path_factory.mktemp("apple")
    changes = {"eval_dataset": world / "test.jsonl", "dtype": "float32", "debias": "length", "ensemble": 3}
    run_on_gpu(*train_arguments(world, root / "gpu", cache_dir=root / "cache", **changes))
    assert main(train_arguments(world, root / "cpu", cache_dir=root / "cache-of-cpu", **changes)) == 0
    return root


def run_on_gpu(*arguments):
    """Run a command of ours, which must compute something there."""
    before = OnGPU.operations
    with apple_gpu():
        assert main([str(argument) for argument in arguments]) == 0
    assert OnGPU.operations > before + 100


def test_every_command_runs_there_and_scores_as_on_the_cpu(trained, tmp_path):
    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(8, seed=5))
    given = []
    for name, run in (("gpu", run_on_gpu), ("cpu", lambda *arguments: main([*map(str, arguments)]))):
        run("score", trained / name, rows, "--output", tmp_path / f"{name}.jsonl", "--dtype", "float32")
        lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        given.append([json.loads(line)["chosen_reward"] for line in lines])
    assert given[0] == pytest.approx(given[1], abs=1e-3) and len(given[0]) == 8
    latent = json.loads((trained / "gpu" / "config.json").read_text())["latents"][0]["id"]
    run_on_gpu("explain", trained / "gpu", rows)
    run_on_gpu("evaluate", trained / "gpu", rows)
    run_on_gpu("latents", trained / "gpu", rows)
    run_on_gpu("monitor", trained / "gpu", rows)
    run_on_gpu("report", trained / "gpu", "--dataset", rows, "--output", tmp_path / "report.html")
    edited = ("--dataset", rows, "--output_dir", tmp_path / "edited")
    run_on_gpu("edit", trained / "gpu", "--steer", f"{latent}=0", *edited)
    run_on_gpu("combine", trained / "gpu", tmp_path / "edited", "--dataset", rows, "--output_dir", tmp_path / "both")
    run_on_gpu("score", tmp_path / "both", rows, "--output", tmp_path / "both.jsonl")
    run_on_gpu("explain", tmp_path / "both", rows)


def test_what_once_failed_there_fails_here(trained, tmp_path, monkeypatch):
    """The emulation is worth nothing if it lets double precision pass."""
    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(2))
    monkeypatch.setattr(scored_texts, "as_numpy", lambda tensor: tensor.double().cpu().numpy())
    with apple_gpu(), pytest.raises(TypeError, match="float64"):
        main(["score", str(trained / "gpu"), rows, "--output", str(tmp_path / "scores.jsonl")])
