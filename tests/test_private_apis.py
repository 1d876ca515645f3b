"""Private attributes of other libraries stand in one file, which names the versions that they were seen in."""

import ast
import inspect
from pathlib import Path

from tiny import tiny_causal_lm
from transformers import TrainingArguments

from sparserm_hf.runtime import private_apis

ROOT = Path(__file__).parent.parent
FILES = [
    path
    for path in (ROOT / "src").rglob("*.py")
    if path.name != "private_apis.py" and not path.is_relative_to(ROOT / "src" / "sparserm_hf" / "modeling")
]
# `modeling` travels to the Hub alone, so that it cannot use `private_apis`. transformers 4.57 to 5.24 have these.
IN_MODELING = {"_attn_implementation", "_from_config", "_tied_weights_keys"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_uses(path: Path) -> set[str]:
    """Private attributes and names that a file uses and does not define."""
    used, defined = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                defined.add(node.attr)
            case ast.Attribute():
                used.add(node.attr)
            case ast.FunctionDef() | ast.ClassDef():
                defined.add(node.name)
            case ast.Call(func=ast.Name(id="getattr" | "hasattr" | "setattr"), args=[_, ast.Constant(name), *_]):
                used.add(str(name))
            case ast.ImportFrom():
                used |= {name for name in (node.module or "").split(".")} | {alias.name for alias in node.names}
            case ast.Import():
                used |= {part for alias in node.names for part in alias.name.split(".")}
    return {name for name in used - defined if is_private(name)}


def test_no_other_file_uses_a_private_attribute_of_a_library():
    assert {str(path): private_uses(path) for path in FILES if private_uses(path)} == {}


def test_modeling_uses_a_few_of_transformers():
    # A NamedTuple's `_replace` is public.
    used = set().union(*map(private_uses, (ROOT / "modeling").glob("*.py"))) - {"_replace"}
    assert used == IN_MODELING


def test_each_function_names_its_versions():
    functions = [f for f in vars(private_apis).values() if inspect.isfunction(f)]
    assert functions and all("Seen in " in function.__doc__ for function in functions)


def test_the_libraries_still_have_them(tmp_path):
    model = tiny_causal_lm()
    assert private_apis.attention_of(model.config) in ("sdpa", "eager")
    assert private_apis.keeps_state(model) is False
    assert private_apis.commit_of(model.config) is None
    assert isinstance(private_apis.cpu_multiplies_bfloat16(), bool)
    assert "gemma-scope-2b-pt-res-canonical" in private_apis.sae_lens_registry()
    old = {"d_in": 4, "d_sae": 8, "hook_point": "blocks.1.hook_resid_post", "model_name": "tiny", "device": "cpu"}
    assert private_apis.current_sae_lens_config(old)["metadata"]["hook_name"] == old["hook_point"]
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    private_apis.use_one_gpu(args)
    assert args.n_gpu <= 1
