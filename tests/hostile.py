"""Hostile files, by the class of attack: what somebody else's checkpoint, SAE or rows may hold.

`ATTACKS` names the classes. Each is a list of cases. A case changes a copy of a good folder; the command that reads
the folder must then end with exit code 0, or with one sentence and exit code 2.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from sparserm_hf.cli.main import main


class Case(NamedTuple):
    """One attack: its name, and what it does to a copy of the world, where `model`, `sae` and `rows.jsonl` are."""

    name: str
    change: Callable[[Path], Any]


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


DIGITS = "9" * 5000
DEEP = "[" * 100_000 + "]" * 100_000
VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 3, 2**31, 10**12, 10**40, -(10**40), 0.5, float("nan"), float("inf"), "", "x", "1",
    "auto", "\x1b[2J\x07", "\ud800", [], [0], [-1], ["x"], [[]], [None], [10**12], {}, {"x": 1}, {"0": None},
    {"model_type": "llama"}, [{"x": []}], "a" * 10_000,
]  # fmt: skip
RAW = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "a string": b'"sparserm"',
    "half an object": b'{"model_type": "spar',
    "no text": b"\xff\xfe\x00\x80",
    "NUL bytes": bytes(1000),
    "deep lists": DEEP.encode(),
    "deep objects": ('{"a":' * 50_000 + "1" + "}" * 50_000).encode(),
    "thousands of digits": f'{{"model_type": "sparserm", "layer": {DIGITS}}}'.encode(),
    "one name twice": b'{"model_type": "sparserm", "layer": 2, "layer": "x"}',
    "another kind": b'{"model_type": "llama"}',
    "a kind that is a list": b'{"model_type": ["sparserm"]}',
    "random bytes": np.random.default_rng(0).bytes(5000),
}


def write(file: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / file).write_bytes(content)


def edit_json(file: str, path: tuple[str, ...], value: Any, drop: bool = False) -> Callable[[Path], Any]:
    """Change one field of a JSON file, or take it out."""

    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        inner = content
        for name in path[:-1]:
            inner = inner[name]
        if drop:
            inner.pop(path[-1], None)
        else:
            inner[path[-1]] = value
        (folder / file).write_text(json.dumps(content))

    return change


def raw_cases(file: str) -> Iterator[Case]:
    for name, content in RAW.items():
        yield Case(f"{file}: {name}", write(file, content))
    for share in (0.1, 0.5, 0.99):
        yield Case(f"{file}: cut to {share}", cut(file, share))


def cut(file: str, share: float) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: int(share * len(content))])

    return change


def field_cases(world: Path, file: str, inside: str | None = None) -> Iterator[Case]:
    content = json.loads((world / file).read_text())
    for field in content[inside] if inside else content:
        path = (inside, field) if inside else (field,)
        yield Case(f"{file}: no {'.'.join(path)}", edit_json(file, path, None, drop=True))
        for i, value in enumerate(VALUES):
            yield Case(f"{file}: {'.'.join(path)} = value {i}", edit_json(file, path, value))


def tensor_cases(world: Path, file: str) -> Iterator[Case]:
    """Each tensor missing, of another shape or type, not finite; and other metadata."""
    with safe_open(world / file, "numpy") as opened:
        metadata = opened.metadata() or {}
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118

    def with_tensors(changed: dict[str, np.ndarray], described: dict[str, str] = metadata) -> Callable[[Path], Any]:
        return lambda folder: save_file(changed, folder / file, metadata=described or None)

    for name, tensor in tensors.items():
        yield Case(f"{file}: no {name}", with_tensors({k: v for k, v in tensors.items() if k != name}))
        for what, other in {
            "no numbers": np.zeros(0, tensor.dtype),
            "a scalar": np.zeros((), tensor.dtype),
            "one row more": np.concatenate([tensor, tensor[:1]]) if tensor.ndim else np.zeros(2),
            "another rank": tensor[None],
            "whole numbers": np.zeros(tensor.shape, np.int8),
            "flags": np.zeros(tensor.shape, bool),
            "NaN": np.full(tensor.shape, np.nan, np.float32),
            "infinity": np.full(tensor.shape, np.inf, np.float32),
        }.items():
            yield Case(f"{file}: {name} of {what}", with_tensors(tensors | {name: np.ascontiguousarray(other)}))
    yield Case(f"{file}: one more", with_tensors(tensors | {"more": np.zeros(3)}))
    yield Case(f"{file}: no tensors", with_tensors({}))
    for key in metadata:
        for what in (
            "",
            "null",
            "[]",
            "{}",
            '{"x": 5}',
            '{"x": "\\u001b"}',
            f'{{"x": {DIGITS}}}',
            DEEP,
            '{"[/]": "length"}',
        ):
            yield Case(f"{file}: metadata {what[:20]}", with_tensors(tensors, metadata | {key: what}))
        described = json.loads(metadata[key])
        for field in described:
            for value in VALUES[:20]:
                changed = json.dumps(described | {field: value})
                yield Case(f"{file}: metadata {field}", with_tensors(tensors, metadata | {key: changed}))
    yield Case(f"{file}: no metadata", with_tensors(tensors, {}))


def npz(**arrays: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        (folder / "sae" / "sae_weights.safetensors").unlink()
        np.savez(folder / "sae" / "params.npz", **arrays)

    return change


def false_shape(folder: Path) -> None:
    """An archive whose header claims far more numbers than there are."""
    import zipfile

    good = {name: np.zeros((4, 4), np.float32) for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}
    npz(**good)(folder)
    path = folder / "sae" / "params.npz"
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content.replace(b"(4, 4), }     ", b"(999999999,4)}"))


def packed_bomb(folder: Path) -> None:
    (folder / "sae" / "sae_weights.safetensors").unlink()
    np.savez_compressed(folder / "sae" / "params.npz", W_enc=np.zeros((2000, 4000), np.float32))


def sae_cases(world: Path) -> Iterator[Case]:
    yield from raw_cases("sae/cfg.json")
    yield from raw_cases("sae/sae_weights.safetensors")
    yield from field_cases(world, "sae/cfg.json")
    yield from tensor_cases(world, "sae/sae_weights.safetensors")
    yield Case("npz: nothing", npz())
    yield Case("npz: objects", npz(W_enc=np.array([{}], dtype=object)))
    yield Case("npz: text", npz(W_enc=np.array(["x"])))
    yield Case("npz: false shape", false_shape)
    yield Case("npz: bomb", packed_bomb)


ROWS = {
    "deep": '{"text": ' + DEEP + "}",
    "99 deep": '{"text": ' + "[" * 99 + "]" * 99 + "}",
    "digits": f'{{"text": "w1", "n": {DIGITS}}}',
    "digits as text": f'{{"text": {DIGITS}}}',
    "half a pair": '{"text": "w1 \\ud800"}',
    "half a pair as a name": '{"\\ud800": 1, "text": "w1"}',
    "NUL": '{"text": "w1\\u0000w2"}',
    "raw NUL": '{"text": "w1\x00w2"}',
    "NaN": '{"text": "w1", "margin": NaN}',
    "one name twice": '{"text": "w1", "text": 5}',
    "a list": "[1]",
    "a number": "5",
    "escapes": '{"text": "w1 \\u001b[2J", "\\u001b]0;x\\u0007": 1}',
    "no columns": "{}",
    "wrong role": '{"messages": [{"role": "\\u001b[2J", "content": "x"}]}',
    "many messages": json.dumps({"messages": [{"role": "user", "content": "w1"}] * 2000}),
    "a long word": json.dumps({"text": "w" * 100_000}),
}
TEMPLATES = {
    "a billion characters": "{{ 'a' * 10**9 }}",
    "ten billion characters": "{{ 'a' * 10**10 }}",
    "padding": "{{ '%0999999999d' % 1 }}",
    "centred": "{{ 'a'.center(10**9) }}",
    "doubling": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "replaced": "{% set n = namespace(x='aa') %}"
    "{% for i in '123456789' %}{% set n.x = n.x.replace('a', n.x) %}{% endfor %}",
    "a macro of itself": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "too long": "{{ 'a' * 40000000 }}",
    "an error": "{{ raise_exception('\x1b[2J no') }}",
    "Python's insides": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "broken": "{% for %}",
}
LOOPS = {"loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"}


def row_cases() -> Iterator[Case]:
    for name, line in ROWS.items():
        yield Case(name, write("rows.jsonl", f'{line}\n{{"text": "w1 w2"}}\n'.encode()))
        yield Case(f"{name}, packed", write("rows.jsonl.gz", gzip.compress(line.encode())))
    for name, content in RAW.items():
        yield Case(name, write("rows.jsonl", content))
    yield Case("no archive", write("rows.jsonl.gz", b"\x1f\x8b\x08garbage"))
    yield Case("half an archive", write("rows.jsonl.gz", gzip.compress(b'{"text": "w1"}\n' * 1000)[:-9]))
    yield Case("bomb", write("rows.jsonl.gz", gzip.compress(b'{"text": "' + b"w" * 2**25)))


def template_cases(templates: dict[str, str]) -> Iterator[Case]:
    for name, template in templates.items():
        yield Case(name, lambda folder, template=template: set_template(folder, template))


def set_template(folder: Path, template: str) -> None:
    (folder / "model" / "chat_template.jinja").unlink(missing_ok=True)
    edit_json("model/tokenizer_config.json", ("chat_template",), template)(folder)


SCORE = ["score", "model"]
COMMANDS = {
    "configuration": SCORE,
    "base configuration": SCORE,
    "tokenizer": SCORE,
    "drift": ["monitor", "model"],
    "controls": ["evaluate", "model"],
    "evaluation": ["report", "model"],
    "SAE": ["sae", "check"],
    "base model": ["sae", "check"],
    "rows": SCORE,
    "templates": SCORE,
    "loops": SCORE,
}


def attacks(world: Path) -> dict[str, list[Case]]:
    """The cases of each class."""
    sides = {
        kind: [*raw_cases(f"model/{kind}.safetensors"), *tensor_cases(world, f"model/{kind}.safetensors")]
        for kind in ("drift", "controls", "evaluation")
    }
    return {
        "configuration": [*raw_cases("model/config.json"), *field_cases(world, "model/config.json")],
        "base configuration": list(field_cases(world, "model/config.json", "base_config")),
        "tokenizer": [
            case
            for file in ("model/tokenizer.json", "model/tokenizer_config.json")
            for case in (*raw_cases(file), *field_cases(world, file))
        ],
        **sides,
        "SAE": list(sae_cases(world)),
        "base model": [
            case
            for file in ("config", "generation_config", "tokenizer", "tokenizer_config")
            for case in (*raw_cases(f"base/{file}.json"), *field_cases(world, f"base/{file}.json"))
        ],
        "rows": list(row_cases()),
        "templates": list(template_cases(TEMPLATES)),
        "loops": list(template_cases(LOOPS)),
    }


ATTACKS = tuple(COMMANDS)


def prepared(world: Path, folder: Path) -> Path:
    """A copy of what an attack may change."""
    shutil.copytree(world / "model", folder / "model", ignore=shutil.ignore_patterns("runs"))
    for part in ("sae", "base"):
        shutil.copytree(world / part, folder / part)
    rows = (world / "test.jsonl").read_text().splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(rows[:4]))
    return folder


def attack(kind: str, case: Case, world: Path, folder: Path) -> Outcome:
    """Change a copy of the world, and run the command that reads what was changed. An exception passes through."""
    case.change(prepared(world, folder))
    rows = next(str(path) for path in (folder / "rows.jsonl.gz", folder / "rows.jsonl") if path.exists())
    command, *rest = COMMANDS[kind]
    arguments = [command, *(str(folder / part) if part == "model" else part for part in rest)]
    if command == "sae":
        arguments += ["--model", str(folder / "base"), "--sae", str(folder / "sae")]
        arguments += ["--dataset", str(world / "train.jsonl"), "--max_tokens", "512", "--dtype", "float32"]
    elif command == "report":
        arguments += ["--output", str(folder / "report.html")]
    else:
        arguments += [rows]
    if command == "evaluate":
        arguments += ["--cache_dir", str(world / "cache")]
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(arguments)
    return Outcome(code, out.getvalue(), err.getvalue())


def fault(outcome: Outcome) -> str | None:
    """What is wrong with how a command ended; None where nothing is."""
    errors = [line for line in outcome.err.splitlines() if line.startswith("sparserm: error: ")]
    if "Traceback" in outcome.err or "Traceback" in outcome.out:
        return "a traceback"
    if outcome.code not in (0, 1, 2):
        return f"exit code {outcome.code}"
    if outcome.code == 2 and not errors:
        return "no sentence"
    if any(len(line) > 1200 for line in errors):
        return "a sentence of a page"
    steers = [c for c in outcome.err if (ord(c) < 32 and c not in "\n\r\t") or 0x7F <= ord(c) < 0xA0 or c in "\u202e"]
    return f"the terminal is steered by {steers[0]!r}" if steers else None
