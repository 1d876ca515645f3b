"""The Hub, end to end: the real client, a server on loopback, models loaded by processes without this package."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from world import train_arguments, without_package

pytest.importorskip("fastapi")
from hub_server import TOKEN, running_hub

from sparserm_hf.cli.main import main
from sparserm_hf.scoring.reward_models import load_reward_model
from sparserm_hf.scoring.scored_rows import score_rows

pytestmark = pytest.mark.works_with(
    "huggingface_hub",
    "`push_to_hub`, `from_pretrained`: private, branches, commits, offline; a failed push leaves what was there",
)

ROW = {"prompt": [{"role": "user", "content": "w1 w2"}], "completion": [{"role": "assistant", "content": "w3 w4"}]}
LOAD = """
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
for revision in REVISIONS:
    where = dict(trust_remote_code=True, revision=revision)
    model = AutoModelForSequenceClassification.from_pretrained('me/rm', **where)
    tokenizer = AutoTokenizer.from_pretrained('me/rm', **where)
    text = tokenizer.apply_chat_template(ROW['prompt'] + ROW['completion'], tokenize=False)
    with torch.no_grad():
        print(model(**tokenizer(text, return_tensors='pt', add_special_tokens=False)).logits.item())
"""


@pytest.fixture
def hub():
    with running_hub() as running:
        yield running


def environment(hub, home, token=TOKEN, **others):
    names = ("HF_HUB_OFFLINE", "HF_HOME", "HF_TOKEN")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    home.mkdir(exist_ok=True)
    ours = {"HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    return kept | ours | ({"HF_TOKEN": token} if token else {}) | others


def push(hub, world, tmp_path, folder=None, **settings):
    """`sparserm train --push_to_hub`; also the folder that was pushed."""
    folder = folder or tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
    arguments = train_arguments(world, folder, push_to_hub=True, hub_model_id="me/rm", **settings)
    command = [sys.executable, "-m", "sparserm_hf.cli", *arguments]
    run = subprocess.run(command, env=environment(hub, tmp_path / "home"), capture_output=True, text=True)
    return run, folder


def upload(hub, tmp_path, folder, branch="main"):
    """Upload a folder by the real client."""
    code = (
        "from huggingface_hub import HfApi; api = HfApi(); api.create_repo('me/rm', exist_ok=True); "
        f"api.create_branch('me/rm', branch={branch!r}, exist_ok=True); "
        f"api.upload_folder(repo_id='me/rm', folder_path={str(folder)!r}, revision={branch!r})"
    )
    uploaded = without_package(code, environment(hub, tmp_path / "home"))
    assert uploaded.returncode == 0, uploaded.stderr


def load(hub, home, *revisions, **others):
    """Print a reward by each revision."""
    code = LOAD.replace("REVISIONS", repr(revisions or ("main",))).replace("ROW", repr(ROW))
    return without_package(code, environment(hub, home, **others))


def reward_of(folder):
    (row,) = score_rows(*load_reward_model(str(folder), torch.device("cpu")), [ROW])
    return pytest.approx(row["reward"], abs=1e-5)


def test_a_private_model_goes_up_and_comes_down_by_branch_commit_and_offline(hub, world, tmp_path):
    pushed, first = push(hub, world, tmp_path, hub_private_repo=True)
    assert pushed.returncode == 0, pushed.stderr
    repo = hub.repos["me/rm"]
    assert repo.private and {"README.md", "config.json", "modeling_sparserm.py", "model.safetensors"} <= set(
        repo.commits[repo.branches["main"]]
    )
    assert len(hub.large) == 3, "weights, controls and the reference of drift went up as large files"

    wide = tmp_path / "wide"
    assert main(train_arguments(world, wide, k=12)) == 0
    upload(hub, tmp_path, wide, "wide")
    home = tmp_path / "clean"
    loaded = load(hub, home, "main", "wide", repo.branches["main"])
    assert loaded.returncode == 0, loaded.stderr
    assert [float(line) for line in loaded.stdout.split()] == [reward_of(folder) for folder in (first, wide, first)]
    offline = load(hub, home, HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert offline.returncode == 0 and float(offline.stdout) == reward_of(first)
    stranger = load(hub, tmp_path / "stranger", token=None)
    assert stranger.returncode != 0 and "private or gated" in stranger.stderr


def test_a_push_takes_what_was_written_and_removes_what_is_stale(hub, world, trained, tmp_path):
    """Secrets and notes in the output folder went up, and a model without controls kept those of the one before."""
    folder = tmp_path / "out"
    upload(hub, tmp_path, trained)
    repo = hub.repos["me/rm"]
    assert "controls.safetensors" in repo.commits[repo.branches["main"]]
    shutil.copytree(trained, folder)
    repo.commits[repo.branches["main"]] |= {"paper.pdf": b"theirs", "more/model.safetensors": b"theirs"}
    (tmp_path / "secret").write_text("hf_secret")
    (folder / ".env").write_text("HF_TOKEN=hf_secret")
    (folder / "tokenizer_notes.txt").write_text("hf_secret")
    (folder / "evaluation.json").symlink_to(tmp_path / "secret")
    (folder / "runs").mkdir()
    (folder / "runs" / "events").write_text("hf_secret")
    pushed, _ = push(hub, world, tmp_path, folder, controls=False)
    assert pushed.returncode == 0, pushed.stderr
    files = repo.commits[repo.branches["main"]]
    assert not any(b"hf_secret" in content for content in files.values())
    assert {"paper.pdf", "more/model.safetensors", "model.safetensors"} <= files.keys()
    assert "controls.safetensors" not in files
    assert (folder / ".env").exists(), "and here it stays"


@pytest.mark.parametrize("step", ["lfs", "commit"])
def test_a_push_that_fails_half_way_leaves_the_earlier_version_and_the_folder(step, hub, world, trained, tmp_path):
    upload(hub, tmp_path, trained)
    earlier = dict(hub.repos["me/rm"].branches)
    hub.fails = step
    failed, folder = push(hub, world, tmp_path, k=12)
    last = failed.stderr.strip().splitlines()[-1]
    assert failed.returncode == 2 and last.startswith("sparserm: error: "), failed.stderr
    assert {"lfs": "full", "commit": "Not now"}[step] in last and "The checkpoint on this machine is complete" in last
    assert "HTTP/1.1" not in failed.stderr, "the client's log stays out"
    assert reward_of(folder) != reward_of(trained), "the new model lies in its folder all the same"
    assert hub.repos["me/rm"].branches == earlier
    loaded = load(hub, tmp_path / "clean")
    assert loaded.returncode == 0 and float(loaded.stdout) == reward_of(trained)
    hub.fails = None
    again, _ = push(hub, world, tmp_path, k=12)
    assert again.returncode == 0
    assert float(load(hub, tmp_path / "clean").stdout) == reward_of(folder)


def test_the_command_line_takes_a_model_from_the_hub(hub, world, trained, tmp_path):
    upload(hub, tmp_path, trained)
    command = [sys.executable, "-m", "sparserm_hf.cli", "evaluate", "me/rm", str(world / "test.jsonl")]
    shown = subprocess.run(
        [*command, "--cache_dir", str(tmp_path / "cache")],
        env=environment(hub, tmp_path / "clean"), capture_output=True, text=True,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "dense representation" in shown.stdout, "the controls came along"


def test_a_steered_copy_scores_the_same_after_a_push_and_a_pull(hub, trained, tmp_path):
    latent = load_reward_model(str(trained), torch.device("cpu"))[0].config.latents[0].id
    steered = tmp_path / "steered"
    assert main(["edit", str(trained), "--steer", f"{latent}=0", "--output_dir", str(steered)]) == 0
    assert reward_of(steered) != reward_of(trained).expected
    upload(hub, tmp_path, steered)
    pulled = load(hub, tmp_path / "elsewhere")
    assert float(pulled.stdout) == reward_of(steered), pulled.stderr
