"""Importing the package is quick, and the auto classes know its model whatever is imported first."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = sorted(
    f"sparserm_hf.{'.'.join(path.relative_to(folder).with_suffix('').parts)}"
    for folder, pattern in ((ROOT / "src" / "sparserm_hf", "*/**/*.py"), (ROOT, "modeling/*_sparserm.py"))
    for path in folder.glob(pattern)
    if not path.stem.startswith("__")
)
KNOWN = """
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
config = AutoConfig.for_model("sparserm")
for auto in (AutoModel, AutoModelForSequenceClassification):
    assert auto._model_mapping[type(config)].__name__ == "SparseRMForSequenceClassification"
"""


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_nothing_heavy_is_imported():
    heavy = {"torch", "transformers", "datasets", "matplotlib", "sklearn", "scipy", "rich"}
    ended = run(f"import sys, sparserm_hf; print({heavy} & set(sys.modules))")
    assert ended.stdout.strip() == "set()", ended.stdout + ended.stderr


FIRST = [
    "import sparserm_hf",
    "from transformers import AutoModel; import sparserm_hf",
    "from transformers import AutoConfig; import sparserm_hf",
    "import sparserm_hf; from transformers import PreTrainedModel",
    "import sparserm_hf; from transformers import Trainer",
    "from sparserm_hf import *",
    *(f"import sparserm_hf.modeling.{name}_sparserm" for name in ("backbone", "configuration", "quantized", "slim")),
]


def test_the_auto_classes_know_the_model():
    """A circular import was hit when a file of ours was the first to load transformers' auto classes.

    Each import comes first in a process of its own, split off from one that has imported nothing of transformers.
    """
    ended = run(
        "import os, sys, datasets, matplotlib.figure, scipy.stats, sklearn.linear_model, torch.distributed.tensor\n"
        "assert 'transformers' not in sys.modules\n"
        f"for first in {FIRST}:\n"
        "    if not os.fork():\n"
        f"        exec(first + {KNOWN!r}, {{}})\n"
        "        os._exit(0)\n"
        "    assert os.wait()[1] == 0, first\n"
    )
    assert ended.returncode == 0, ended.stderr[-2000:]


def test_every_file_can_be_imported_first():
    """One process for each would take minutes: this one forgets what it has imported of ours.

    The files of the plugin for vLLM stop at vLLM where it is not installed.
    """
    names = [name for name in FILES if name != "sparserm_hf.conversations.template_process"]
    ended = run(
        "import importlib, sys, transformers.models.auto.modeling_auto\n"
        f"for name in {names}:\n"
        "    for known in [known for known in sys.modules if known.split('.')[0] == 'sparserm_hf']:\n"
        "        del sys.modules[known]\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except ModuleNotFoundError as error:\n"
        "        assert error.name == 'vllm' and '.vllm_' in name, error\n"
    )
    assert ended.returncode == 0, ended.stderr[-2000:]


def test_what_needs_an_extra_says_so():
    needed = {"IterativeAligner": "trl", "score_parquet": "ray", "label": "fastapi", "serve": "fastapi"}
    ended = run(
        f"import sys, sparserm_hf\nfor name, module in {needed}.items():\n"
        "    sys.modules[module] = None\n"
        "    try:\n        getattr(sparserm_hf, name)\n"
        "    except sparserm_hf.SparseRMError as error:\n        print(error)\n"
    )
    assert [line.partition(", as in")[0] for line in ended.stdout.splitlines()] == [
        "Alignment needs trl: install the extra `align`",
        "The Ray engine needs ray: install the extra `ray`",
        "The server needs fastapi: install the extra `serve`",
        "The server needs fastapi: install the extra `serve`",
    ]


def test_labelling_without_a_policy_needs_no_trainer():
    code = "import sys; sys.modules['peft'] = sys.modules['trl'] = None; from sparserm_hf.labelling import label"
    ended = run(code)
    assert ended.returncode == 0, ended.stderr[-2000:]
