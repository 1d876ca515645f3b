"""`sparserm edit`: a steered copy, its effect shown, and the way back."""

import pytest
import torch
from huggingface_hub import metadata_load
from world import make_rows

from sparserm_hf.cli.main import main
from sparserm_hf.evaluation.controls import CONTROLS_FILE
from sparserm_hf.scoring.reward_models import load_reward_model
from sparserm_hf.scoring.scored_rows import score_rows

ROWS = [{"messages": row["prompt"] + row["chosen"]} for row in make_rows(6, seed=8)]


def rewards(folder):
    return [row["reward"] for row in score_rows(*load_reward_model(str(folder), torch.device("cpu")), ROWS)]


def test_an_edited_copy_shows_its_effect_keeps_what_was_there_and_can_be_undone(world, trained, tmp_path, capsys):
    config = load_reward_model(str(trained), torch.device("cpu"))[0].config
    dropped, damped = config.latent_ids[0], config.latent_ids[-1]
    arguments = ["--steer", f"{dropped}=0", "--steer", f"{damped}=0.5", "--label", f"{dropped}=the good words"]
    pairs = ["--dataset", str(world / "test.jsonl"), "--cache_dir", str(tmp_path / "cache")]
    edited = tmp_path / "edited"
    assert main(["edit", str(trained), *arguments, *pairs, "--output_dir", str(edited)]) == 0
    printed = capsys.readouterr().out
    assert "before" in printed and "after" in printed and "60 pairs" in printed
    assert rewards(edited) != pytest.approx(rewards(trained), abs=1e-3)
    kept = load_reward_model(str(edited), torch.device("cpu"))[0].config
    assert kept.steering == {dropped: 0.0, damped: 0.5}
    assert [latent.label for latent in kept.latents] == ["the good words"] + [None] * (len(kept.latents) - 1)
    assert (edited / CONTROLS_FILE).read_bytes() == (trained / CONTROLS_FILE).read_bytes()
    assert (edited / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    card = (edited / "README.md").read_text()
    assert f"| {dropped} | the good words | 0 |" in card
    assert "# edited\n" in card and 'name = "edited"' in card
    metadata = metadata_load(edited / "README.md")  # the accuracies were measured before
    assert metadata["model_name"] == "edited" and "model-index" not in metadata
    (edited / "README.md").write_text(card + "\n## Contact\n\nMe.\n")
    assert main(["evaluate", str(edited), str(world / "test.jsonl"), "--cache_dir", str(tmp_path / "cache")]) == 0

    undone = tmp_path / "undone"
    back = ["--steer", f"{dropped}=1", f"{damped}=1", "--label", f"{dropped}="]
    capsys.readouterr()
    assert main(["edit", str(edited), *back, "--output_dir", str(undone)]) == 0
    assert "not measured" in capsys.readouterr().out
    assert rewards(undone) == rewards(trained)
    assert load_reward_model(str(undone), torch.device("cpu"))[0].config.latents[0].label is None
    card = (undone / "README.md").read_text()
    assert "## Steering" not in card and "## Contact" in card


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ([], "nothing to edit"),
        (["--steer", "999=0"], "Latent 999 is not one of this model's 16"),
        (["--label", "999=x"], "Latent 999 is not one of this model's 16"),
        (["--steer", "{latent}=much"], "must be a number"),
        (["--steer", "{latent}=nan"], "finite number"),
    ],
)
def test_what_cannot_be_edited_is_told_and_nothing_is_written(arguments, sentence, trained, tmp_path, capsys):
    latent = load_reward_model(str(trained), torch.device("cpu"))[0].config.latents[0].id
    arguments = [argument.format(latent=latent) for argument in arguments]
    assert main(["edit", str(trained), *arguments, "--output_dir", str(tmp_path / "out")]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(trained, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["edit", str(trained), "--steer", "1=0", "--output_dir", str(tmp_path)]) == 2
    assert "something else" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["edit", str(trained), "--steer", "one=0", "--output_dir", str(tmp_path / "new")])
    assert "must look like 123=VALUE" in capsys.readouterr().err
