"""What is replaced is the old one or the new one, whenever the writer is killed, and nothing is left beside it."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import torch
from safetensors import SafetensorError
from tiny import tiny_reward_model, tiny_rewards, tiny_tokenizer
from world import train_arguments

from sparserm_hf.runtime import atomic_files as replacing
from sparserm_hf.runtime.atomic_files import replacing_file, replacing_folder
from sparserm_hf.runtime.checkpoint_folders import check_output_dir, save_tokenizer
from sparserm_hf.runtime.errors import SparseRMError
from sparserm_hf.scoring.reward_models import load_reward_model

OPERATIONS = {"open", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "shutil.rmtree"}


def write(folder, content):
    """As much of a checkpoint as takes all kinds of file operations."""
    with replacing_folder(folder) as temporary:
        for name in ("config.json", "model.safetensors", f"model-{content}.safetensors"):
            (temporary / name).write_text(content)
        (temporary / "additional_chat_templates").mkdir()
        (temporary / "additional_chat_templates" / f"{content}.jinja").write_text(content)


def write_file(path, content):
    with replacing_file(path) as temporary:
        temporary.write_text(content)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def no_exchange(*_):
    raise OSError(22, "Invalid argument")


def killed_at(number, job, *arguments):
    """Run a job in a process that SIGKILL ends just before its file operation of this number; whether it did."""

    def run():
        seen = 0

        def count(event, _):
            nonlocal seen
            if event in OPERATIONS and (seen := seen + 1) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        job(*arguments)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.parametrize("exchanges", [True, False], ids=["exchanged", "renamed twice"])
@pytest.mark.parametrize("notes", [False, True])
def test_a_kill_between_any_two_file_operations_leaves_one_or_the_other(
    exchanges, notes, tmp_path, monkeypatch, record_property
):
    """A kill between the renames of files mixed two models: 6 of 14 points."""
    if not exchanges:
        monkeypatch.setattr(replacing, "_exchange", no_exchange)
    folder = tmp_path / "model"
    write(folder, "old")
    if notes:
        (folder / "runs").mkdir()
        (folder / "runs" / "notes.md").write_text("mine")
    theirs = contents(folder / "runs") if notes else {}
    old = contents(folder)
    shutil.copytree(folder, tmp_path / "before")
    write(folder, "new")
    new = contents(folder)
    assert old != new and {f"runs/{name}" for name in theirs} <= new.keys()
    found, number = [], 1
    while True:
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "before", folder)
        if not killed_at(number, write, folder, "new"):
            break
        between = not folder.exists()  # of two renames: the next writer puts the old one back
        if between:
            assert not exchanges
            with pytest.raises(ZeroDivisionError), replacing_folder(folder):
                raise ZeroDivisionError
            assert contents(folder) == old
        assert contents(folder) in (old, new), f"killed before operation {number}"
        found.append(contents(folder) == new)
        write(folder, "new")
        assert contents(folder) == new
        assert {path.name for path in tmp_path.iterdir()} == {"model", "before"}, "what the kill left is swept"
        number += 1
    record_property("tries", len(found))
    assert len(found) > 15 and found == sorted(found), "old up to some operation, and new from then on"
    assert True in found and False in found


def test_a_kill_leaves_one_file_or_the_other(tmp_path, record_property):
    path, number, found = tmp_path / "scores.jsonl", 1, set()
    while True:
        path.write_text("old")
        if not killed_at(number, write_file, path, "new"):
            break
        found.add(path.read_text())
        write_file(path, "newer")
        assert path.read_text() == "newer" and [file.name for file in tmp_path.iterdir()] == ["scores.jsonl"]
        number += 1
    record_property("tries", number - 1)
    assert found == {"old", "new"}


def test_what_another_process_is_writing_is_not_swept(tmp_path):
    with replacing_folder(tmp_path / "model") as one:
        (one / "config.json").write_text("one")
        write(tmp_path / "model", "two")
        assert one.exists()
    assert (tmp_path / "model" / "config.json").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_reader_gets_the_old_model_or_the_new_one(tmp_path, record_property):
    """Loading reads file after file: of the old folder, and then of the new one."""
    folder, models = tmp_path / "model", [tiny_reward_model(), tiny_reward_model()]
    models[1].score.weight.data += 1
    expected = [tiny_rewards(model) for model in models]
    for name, model in zip("ab", models, strict=True):
        model.save_pretrained(tmp_path / name)
        save_tokenizer(tiny_tokenizer(), tmp_path / name)
    done = threading.Event()

    def replace():
        number = 0
        while not done.is_set():
            with replacing_folder(folder) as temporary:
                shutil.copytree(tmp_path / "ab"[number % 2], temporary, dirs_exist_ok=True)
            number += 1
            done.wait(0.05)

    shutil.copytree(tmp_path / "a", folder)
    writer = threading.Thread(target=replace)
    writer.start()
    try:
        found = [tiny_rewards(load_reward_model(str(folder), torch.device("cpu"))[0]) for _ in range(20)]
    finally:
        done.set()
        writer.join()
    record_property("tries", len(found))
    assert all(any(torch.equal(rewards, one) for one in expected) for rewards in found)


def test_what_is_not_ours_stays(tmp_path):
    folder, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    elsewhere.mkdir()
    write(folder, "old")
    (folder / "notes.md").write_text("mine")
    (folder / "runs").mkdir()
    (folder / "runs" / "events").write_text("logs")
    (folder / "data").symlink_to("../elsewhere")
    with (folder / "runs" / "events").open("a") as logging:
        write(folder, "new")
        logging.write(", and more")
    assert (folder / "notes.md").read_text() == "mine" and (folder / "data").resolve() == elsewhere
    assert (folder / "runs" / "events").read_text() == "logs, and more", "whoever writes there goes on"
    assert not (folder / "model-old.safetensors").exists()
    assert [file.name for file in (folder / "additional_chat_templates").iterdir()] == ["new.jinja"]


def test_a_link_to_a_folder_stays_one(tmp_path):
    write(tmp_path / "disk" / "model", "old")
    (tmp_path / "model").symlink_to(tmp_path / "disk" / "model")
    write(tmp_path / "model", "new")
    assert (tmp_path / "model").is_symlink()
    assert (tmp_path / "disk" / "model" / "config.json").read_text() == "new"


def test_a_volume_itself_cannot_be_replaced():
    with pytest.raises(SparseRMError, match="'/proc' is the root of a volume: name a folder inside it"):
        check_output_dir(type(replacing.Path())("/proc"))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), "No space left"),
        # safetensors has an exception of its own for it, which once reached the user as a traceback.
        (SafetensorError("I/O error: No space left on device (os error 28)"), r"model cannot be written: .*No space"),
    ],
)
def test_a_failed_save_leaves_the_old_checkpoint(error, told, tmp_path):
    write(tmp_path / "model", "old")
    before = contents(tmp_path / "model")
    with pytest.raises(OSError, match=told), replacing_folder(tmp_path / "model") as temporary:
        (temporary / "model.safetensors").write_text("half")
        raise error
    assert contents(tmp_path / "model") == before and [file.name for file in tmp_path.iterdir()] == ["model"]


def test_sigterm_ends_a_command_as_ctrl_c_does(world, tmp_path):
    """By default Python drops everything on SIGTERM, and half a checkpoint stayed beside the old one."""
    code = (
        "import os, signal, sys\n"
        "from sparserm_hf.training import checkpoint\n"
        "from sparserm_hf.cli import main\n"
        "checkpoint.check_reload = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *train_arguments(world, tmp_path / "model")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 128 + signal.SIGTERM
    assert "sparserm: interrupted" in ended.stderr and "Traceback" not in ended.stderr
    assert not list(tmp_path.iterdir())
