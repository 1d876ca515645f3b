"""Whatever a checkpoint, an SAE or a row of somebody else holds: exit code 0, or one sentence and exit code 2."""

import gzip
import json
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hostile import ATTACKS, Case, attack, attacks, edit_json, fault, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sparserm_hf.modeling.configuration_sparserm import SparseRMConfig
from sparserm_hf.modeling.fields_sparserm import FIELDS, check_base_fields
from test_rows_of_any_kind import ANYTHING
from tiny import tiny_tokenizer
from transformers import CONFIG_MAPPING

from sparserm_hf.conversations.chat_templates import render
from sparserm_hf.conversations.template_process import MOST_SECONDS
from sparserm_hf.conversations.template_renderer import Renderer, TemplateError

# The same examples in every run, and none remembered from another.
EXAMPLES = settings(
    derandomize=True, database=None, deadline=None, max_examples=40, suppress_health_check=list(HealthCheck)
)


def outcome_of(kind, case, world):
    with TemporaryDirectory() as folder:
        before = {path.name for path in Path(folder).iterdir()}
        found = attack(kind, case, world, Path(folder))
        written = {path.name for path in Path(folder).iterdir()} - before
    assert written <= {"model", "sae", "base", "rows.jsonl", "rows.jsonl.gz", "report.html"}, "a file is left half-way"
    return found


@pytest.fixture(scope="module")
def cases(world, trained):
    return attacks(world)


@pytest.mark.parametrize("kind", ATTACKS)
def test_what_is_hostile_ends_in_one_sentence(kind, cases, world, record_property):
    """About sixty such files ended in a traceback, and some in a hang or in gigabytes of memory."""

    tries = []

    @EXAMPLES
    @given(st.sampled_from(cases[kind]))
    def holds(case):
        tries.append(case)
        outcome = outcome_of(kind, case, world)
        assert fault(outcome) is None, f"{case.name}: {fault(outcome)}: {outcome.err[-500:]}"

    holds()
    record_property("tries", len(tries))


@EXAMPLES
@given(st.sampled_from(sorted(FIELDS)), ANYTHING)
def test_any_value_of_any_field_is_taken_or_named(field, value):
    try:
        SparseRMConfig(**{field: value}).to_json_string(use_diff=False)
    except ValueError as error:
        assert field in str(error) and len(str(error)) < 1500 and "\n" not in str(error)


@EXAMPLES
@given(
    st.dictionaries(st.sampled_from(["model_type", "hidden_size", "num_hidden_layers", "rope_parameters"]), ANYTHING)
)
def test_any_base_configuration_is_taken_or_refused_as_a_value(fields):
    try:
        SparseRMConfig(base_config={"model_type": "llama"} | fields)
    except ValueError as error:
        assert "base_config" in str(error)


def test_no_configuration_of_transformers_is_taken_for_an_attack():
    """A Doge has 16384 experts in each layer: they are rows of one embedding, and no modules."""
    tried = 0
    for config in CONFIG_MAPPING.values():
        try:
            fields = json.loads(config().to_json_string(use_diff=False))
        except Exception:  # it needs arguments, or a package that is not here
            continue
        check_base_fields(fields)
        check_base_fields(fields | {"rope_theta": 45913273344.0})  # published with a Llama 3 for four million tokens
        tried += 1
    assert tried > 300


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("layer",), -1, "layer is -1, but must be a whole number from 0 to 1000"),
        (("latents",), [{"side": "chosen"}], "latents is [{'side': 'chosen'}], but must be a list of records"),
        (("latents", 0, "side"), "best", "A latent has side = 'best', but it must be one of chosen, rejected"),
        (("reward_std",), float("nan"), "reward_std is nan, but must be a finite number, 0 or more"),
        (("latents", 0, "steering"), "x", "A latent has steering = 'x', but it must be a finite number"),
        (("base_config", "num_hidden_layers"), 10**9, "base_config has 1000000000 layers"),
        (("base_config", "model_type"), "theirs", "base_config has the model_type 'theirs'"),
        (("base_config", "num_attention_heads"), 0, "cannot be loaded"),
    ],
)
def test_the_sentence_names_the_field_and_what_is_needed(path, value, said, world, trained):
    started = time.process_time()  # whatever else runs on the machine
    outcome = outcome_of("configuration", Case("", edit_json("model/config.json", path, value)), world)
    assert outcome.code == 2 and said in outcome.err and time.process_time() - started < 10


def test_a_packed_line_of_a_gigabyte_takes_little_memory(world, trained):
    """A few hundred kilobytes unpacked to gigabytes before the first character was looked at."""
    bomb = gzip.compress(b'{"text": "') + gzip.compress(b"w" * 2**20) * 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome = outcome_of("rows", Case("", write("rows.jsonl.gz", bomb)), world)
    assert outcome.code == 2 and "line 1 has more than 16,777,216 characters" in outcome.err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB


def test_a_template_that_loops_is_given_up_and_others_go_on():
    renderer, loop = Renderer(), "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    asked = {"conversations": [[{"role": "user", "content": "x"}]]}
    told = []
    for _ in range(4):
        with pytest.raises(TemplateError, match=f"more than {MOST_SECONDS} seconds") as caught:
            renderer.render(chat_template=loop, **asked)
        told.append("already" in str(caught.value))
    assert told == [False, False, True, True], "what exceeded its limits twice is not rendered again"
    assert renderer.render(chat_template="{{ messages[0].content }}", **asked) == "x"
    renderer.stop()


def test_the_process_renders_as_transformers_does():
    tokenizer = tiny_tokenizer(
        "{{ bos_token }}{% for m in messages %}{{ m | tojson }}{% generation %}\u20ac{% endgeneration %}{% endfor %}"
    )
    messages = [{"role": "user", "content": "\u00e9\n\x00", "n": [1, None, 2.5, (3,)]}]
    assert render(tokenizer, messages) == tokenizer.apply_chat_template(messages, tokenize=False)


def test_a_template_is_refused_in_one_sentence(world, trained):
    case = Case("", edit_json("model/tokenizer_config.json", ("chat_template",), "{{ 'a' * 10**10 }}"))

    def change(folder):
        (folder / "model" / "chat_template.jinja").unlink(missing_ok=True)
        case.change(folder)

    outcome = outcome_of("templates", Case("", change), world)
    assert outcome.code == 2 and "is refused by the chat template: it needs more than a gigabyte" in outcome.err


def test_token_ids_that_the_model_does_not_have_are_told(world, trained):
    """The embedding raised an IndexError, and on a GPU stopped the whole process."""

    def change(folder):
        path = folder / "model" / "tokenizer.json"
        content = json.loads(path.read_text())
        content["model"]["vocab"]["w5"] = 5000
        path.write_text(json.dumps(content))
        (folder / "rows.jsonl").write_text('{"text": "w1 w5"}\n')

    outcome = outcome_of("rows", Case("", change), world)
    assert outcome.code == 2 and "token id 5000" in outcome.err
