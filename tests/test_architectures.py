"""Every causal and vision-language architecture of transformers: it trains and reloads, or is refused with a sentence.

`pytest tests/test_architectures.py --write-architectures` writes the table of docs/architectures.md.
"""

import json
import subprocess
from pathlib import Path

import pytest
import torch
import transformers
from architectures import KINDS, SEEING, tiny_model
from sparserm_hf.modeling.backbone_sparserm import cut_base_model, decoder_of, residual_stream
from sparserm_hf.modeling.modeling_sparserm import SparseRMForSequenceClassification
from tiny import reward_model_on, tiny_texts
from transformers import CONFIG_MAPPING

from sparserm_hf.base_models.cutting import prepare_base_model
from sparserm_hf.base_models.loading import load_language_model
from sparserm_hf.base_models.packing import can_pack
from sparserm_hf.runtime.errors import SparseRMError

ROOT = Path(__file__).parents[1]
MANUAL = ROOT / "docs" / "architectures.md"
TEXTS = tiny_texts()[:3]
# What people align: none of them may be lost.
MUST_WORK = """
llama mistral mixtral qwen2 qwen2_moe qwen3 qwen3_moe gemma gemma2 gemma3_text phi phi3 gpt2 gpt_neo gpt_neox gptj opt
bloom falcon mpt olmo olmo2 olmo3 cohere cohere2 granite granitemoe stablelm starcoder2 glm glm4 smollm3 mamba jamba
lfm2 helium exaone4 ernie4_5 persimmon xglm biogpt codegen gpt_oss llama4_text deepseek_v3
deepseek_v2 mamba2 bamba falcon_h1 granitemoehybrid zamba2 nemotron qwen3_next qwen3_5_text gemma4_text minimax
hunyuan_v1_dense gemma3 gemma4 llama4 mllama qwen2_vl qwen2_5_vl qwen3_vl qwen3_5 llava mistral3 smolvlm internvl
"""
KEPT = MUST_WORK.split()
# Of these, what transformers 4.57 does not know, runs on a GPU alone, or finds no weights of.
NEW = "jamba qwen3_5_text qwen3_5 gemma4_text gemma4 granitemoehybrid zamba2 mllama".split()  # noqa: SIM905
PAGE = """# Base models

This page lists the kinds of base models that train and load again. The tests try every causal architecture of
transformers {version}, and every vision-language architecture by its text side, as a tiny random model. The model is
cut after two of its four layers, saved whole and [slim](how-it-works.md#what-is-in-a-checkpoint), and loaded again.
It is also loaded under transformers 4.57 without this package. *Works* means that all of these give the same
rewards, also with padding before the text, unless the last column says otherwise. {works} of {all} kinds work.
{refused} kinds are refused with a sentence before anything is computed; most of them are encoder-decoders and models
that read in both directions. The other kinds could not be made tiny for the test.

- *Prompts shared*: the prompt of a pair is computed once for both responses.
- *By its text side*: a vision-language model is loaded whole, and only its text side is used and saved.
  Conversations with images are refused.
- *Whole configuration*: the configuration in the checkpoint describes all layers. The layers that the checkpoint
  does not keep are built and dropped.

`tests/test_architectures.py` makes the table. [Quantised base models](quantization.md) have a page of their own, and
[Choose or train an SAE](saes.md) comes next.

| kind | | |
|---|---|---|
{rows}
"""
FOUND: dict[str, tuple[str, str]] = {}  # by kind: the verdict, and what else is to be said


def rewards(model, padding=0):
    """Of each text alone, with some padding before it."""
    found = []
    for ids in TEXTS:
        mask = torch.tensor([[0] * padding + [1] * len(ids)])
        with torch.no_grad():
            found.append(model(torch.tensor([[7] * padding + ids]), mask).logits.item())
    return found


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder for those that work, with the rewards that they must give."""
    return tmp_path_factory.mktemp("architectures")


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_and_reloads_or_is_refused(kind, checkpoints):
    try:
        model = tiny_model(kind)
        for ids in TEXTS:
            residual_stream(decoder_of(model), torch.tensor([ids]), torch.ones(1, len(ids)))
        folder = checkpoints / kind
        model.save_pretrained(folder / "base")
    except Exception as error:  # whatever its configuration wants
        FOUND[kind] = "not tried", f"cannot be made tiny: {' '.join(str(error).split())[:70]}"
        assert kind not in KEPT
        return
    try:
        model = load_language_model(str(folder / "base"))
        base = prepare_base_model(model, 2, torch.device("cpu"), torch.float32)
    except SparseRMError as error:
        by_test = isinstance(error.__cause__, RuntimeError)  # a weight has another shape than its configuration says
        FOUND[kind] = "not tried" if by_test else "refused", str(error).replace(f"{folder}/", "")
        assert kind not in KEPT
        return
    notes = {
        "prompts shared": can_pack(base, 40),
        "by its text side": kind in SEEING and base.config.model_type != kind,
        "whole configuration": hasattr(base.config, "kept_layers"),
    }
    model = reward_model_on(base, 2, base_model_name_or_path=str(folder / "base"))
    expected = rewards(model)
    assert rewards(model, padding=3) == pytest.approx(expected, abs=1e-4)
    for form, saved in (("whole", model), ("slim", model.to_slim())):
        saved.save_pretrained(folder / form)
        again = SparseRMForSequenceClassification.from_pretrained(folder / form)
        assert rewards(again) == pytest.approx(expected, abs=1e-4), form
    (folder / "rewards.json").write_text(json.dumps(expected))
    FOUND[kind] = "works", "; ".join(note for note, holds in notes.items() if holds)


def test_what_is_no_causal_language_model_is_told_so(tmp_path):
    """Of encoder-decoders by their configuration alone: there are no weights here."""
    for kind in ("t5", "bart"):
        CONFIG_MAPPING[kind]().save_pretrained(tmp_path / kind)
        with pytest.raises(
            SparseRMError, match="it is an encoder-decoder model, but SparseRM needs a causal language"
        ):
            load_language_model(str(tmp_path / kind))
    CONFIG_MAPPING["vit"]().save_pretrained(tmp_path / "vit")
    with pytest.raises(SparseRMError, match="models of the kind 'vit' are not causal language models"):
        load_language_model(str(tmp_path / "vit"))
    for kind, sentence in {
        "bart": "is half of an encoder-decoder",
        "roberta": "attends in both directions",
    }.items():
        with pytest.raises(SparseRMError, match=sentence):
            prepare_base_model(tiny_model(kind), 2, torch.device("cpu"), torch.float32)


def test_configurations_that_cannot_be_cut_stay_whole():
    """Gemma 4 makes the last of any number of layers attend to all tokens: cut, it would be built otherwise."""
    whole = tiny_model("gemma4_text")
    assert whole.config.layer_types[0] == "sliding_attention"
    base = cut_base_model(cut_base_model(whole, 3), 1)
    assert (base.config.kept_layers, base.config.num_hidden_layers, len(base.layers)) == (1, 4, 1)
    llama = cut_base_model(tiny_model("llama"), 1).config
    assert llama.num_hidden_layers == 1 and not hasattr(llama, "kept_layers")


SCORE = """
import json, sys, torch
from pathlib import Path
import transformers; transformers.logging.set_verbosity_error()
from transformers import AutoModelForSequenceClassification
texts, found = json.loads(sys.argv[2]), {}
for folder in sorted(Path(sys.argv[1]).glob("*/whole")):
    try:
        model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
        with torch.no_grad():
            rewards = [model(torch.tensor([ids]), torch.ones(1, len(ids))).logits.item() for ids in texts]
        found[folder.parent.name] = rewards
    except Exception as error:
        found[folder.parent.name] = f"{type(error).__name__}: {error}"[:200]
print(json.dumps(found))
"""


def test_they_score_the_same_under_transformers_4_without_this_package(checkpoints):
    """But for kinds that transformers 4.57 does not know yet."""
    python = ROOT / ".venv-transformers-4" / "bin" / "python"
    if not python.exists():
        pytest.skip("make test sets up .venv-transformers-4")
    run = subprocess.run([python, "-c", SCORE, checkpoints, json.dumps(TEXTS)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    wrong = {}
    for kind, given in found.items():
        expected = json.loads((checkpoints / kind / "rewards.json").read_text())
        verdict, note = FOUND[kind]
        if given == pytest.approx(expected, rel=1e-3, abs=1e-3):
            continue
        what = "not" if isinstance(given, str) else "with other rewards"
        FOUND[kind] = verdict, "; ".join(filter(None, [note, f"{what} under transformers 4.57"]))
        if kind in KEPT and kind not in NEW:
            wrong[kind] = given
    assert not wrong, "\n".join(f"{kind}: {what}" for kind, what in wrong.items())


def test_the_manual_tells_it(request):
    if len(FOUND) < len(KINDS):
        pytest.skip("only a run of all kinds can tell")
    counts = {verdict: sum(found[0] == verdict for found in FOUND.values()) for verdict in ("works", "refused")}
    rows = (f"| {kind} | {verdict} | {note.replace('|', ' ')} |" for kind, (verdict, note) in sorted(FOUND.items()))
    text = PAGE.format(version=transformers.__version__, all=len(KINDS), rows="\n".join(rows), **counts)
    if request.config.getoption("--write-architectures"):
        MANUAL.write_text(text)
    rows = (line.strip("| ").split(" | ") for line in MANUAL.read_text().splitlines() if line.startswith("| "))
    told = {row[0]: row[1] for row in rows if row[0] in FOUND}  # a newer transformers may know more kinds
    assert told == {kind: FOUND[kind][0] for kind in told} and len(told) > 150
