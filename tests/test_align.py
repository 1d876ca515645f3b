"""The loop of alignment: what a round writes, what is kept and why, where it goes on, and what stops it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_causal_lm, tiny_settings, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer
from world import make_rows, options, write_jsonl

from sparserm_hf.align import aligner, dpo, measures
from sparserm_hf.align import responses as pairs
from sparserm_hf.align.arms import Outcome
from sparserm_hf.align.measures import preference_accuracy
from sparserm_hf.align.policy import Policy
from sparserm_hf.align.questions import Contrast, Questions, read_questions
from sparserm_hf.align.responses import filter_pairs, keep_as_many
from sparserm_hf.align.round_files import read_rows
from sparserm_hf.align.settings import AlignmentConfig
from sparserm_hf.align.truthfulqa import PROMPT, Item, drop_asked, load_truthfulqa, multiple_choice
from sparserm_hf.cli.alignment_tables import print_outcome
from sparserm_hf.cli.demo import find_base_model
from sparserm_hf.cli.main import main
from sparserm_hf.conversations.preferences import parse_preference
from sparserm_hf.runtime.checkpoint_folders import save_tokenizer
from sparserm_hf.runtime.devices import memory_advice
from sparserm_hf.runtime.errors import SparseRMError

CPU = torch.device("cpu")
QUESTION = [{"role": "user", "content": "w1 w2"}]


def config(**changes):
    return AlignmentConfig("unused", **changes)


# Questions and the two ways of asking them.


def test_questions_are_distinct_and_as_messages():
    rows = [{"question": "w1"}, {"prompt": "w1"}, {"prompt": QUESTION, "chosen": "x"}]
    assert read_questions(rows) == [[{"role": "user", "content": "w1"}], QUESTION]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "w1"}], "Row 1 has the columns text; it needs a `prompt` or a `question`."),
        ([{"prompt": [{"role": "assistant", "content": "w1"}]}], "ends with a message of the assistant"),
        ([], "There are no questions: give rows"),
    ],
)
def test_what_is_no_question_is_refused(rows, message):
    with pytest.raises(SparseRMError, match=message):
        read_questions(rows)


def test_held_out_questions_are_never_trained_on_and_rounds_differ():
    questions = read_questions({"prompt": f"w{i}"} for i in range(20))
    split = Questions.split(questions, config(held_out_questions=5, questions_per_round=6, num_rounds=3))
    trained = [q for of_round in split.rounds for q in of_round]
    assert len(split.held_out) == 5 and [len(r) for r in split.rounds] == [6, 6, 6]
    assert not any(q in trained for q in split.held_out)
    assert not any(q in split.rounds[1] for q in split.rounds[0])
    with pytest.raises(SparseRMError, match="none is left to train on"):
        Questions.split(questions, config(held_out_questions=20))


def test_a_task_asks_both_ways_about_the_last_message_and_keeps_braces():
    dialogue = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    preferred, opposite = Contrast("well: {question}", "badly: {question}").ask(
        [*dialogue, {"role": "user", "content": "{x}"}]
    )
    assert preferred == [*dialogue, {"role": "user", "content": "well: {x}"}]
    assert opposite[-1]["content"] == "badly: {x}"


@pytest.mark.parametrize("task", ["truthfulness", "harmlessness"])
def test_tasks_of_the_package_load(task):
    contrast = Contrast.load(task)
    assert contrast.preferred != contrast.opposite


@pytest.mark.parametrize("text", ["[", "preferred: x {question}", "preferred: x\nopposite: y"])
def test_a_task_of_another_form_is_refused(tmp_path, text):
    (tmp_path / "task.yaml").write_text(text)
    with pytest.raises(SparseRMError, match=r"task\.yaml"):
        Contrast.load(str(tmp_path / "task.yaml"))
    with pytest.raises(SparseRMError, match="neither a YAML file nor one of harmlessness, truthfulness"):
        Contrast.load("kindness")


# What is kept, and why not.


def written(*texts):
    return {"prompt": QUESTION, "responses": [{"text": text, "tokens": 1, "cut": False} for text in texts]}


def test_contrast_drops_what_the_reward_model_sees_the_other_way_round():
    rows = [written("a", "b"), written("a", "b"), written("a", "a"), written("a", ""), written("a", "b")]
    rewards = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.0], [1.0, 0.9]])
    found = filter_pairs(rows, rewards, config(min_margin=0.5), seed=0)
    assert [pair["reason"] for pair in found] == [
        "kept",
        "the reward model sees it the other way round",
        "identical responses",
        "an empty response",
        "rewards closer than min_margin",
    ]
    assert [pair["kept"] for pair in found] == [True, False, False, False, False]
    assert found[1]["chosen"] == [{"role": "assistant", "content": "a"}]  # the order that was asked for stays
    unfiltered = filter_pairs(rows, None, config(), seed=0)
    assert [pair["kept"] for pair in unfiltered] == [True, True, False, False, True]


def test_best_of_n_takes_the_highest_against_the_lowest():
    rows, rewards = [written("a", "b", "c")], np.array([[1.0, -1.0, 3.0]])
    (pair,) = filter_pairs(rows, rewards, config(pairs="best-of-n", num_samples=3), seed=0)
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("c", "b")
    assert (pair["chosen_reward"], pair["rejected_reward"]) == (3.0, -1.0)


def test_a_random_filter_keeps_as_many_and_says_so():
    found = keep_as_many(filter_pairs([written("a", "b")] * 30 + [written("a", "a")], None, config(), 0), 10, seed=1)
    assert sum(pair["kept"] for pair in found) == 10
    assert [pair["reason"] for pair in found].count("left out at random") == 20
    assert found[-1]["reason"] == "identical responses"


# Likelihoods, against a plain reference.


def with_adapter(policy, strength=0.3):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    model = get_peft_model(policy.model, LoraConfig(target_modules="all-linear", r=2))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, strength)
    return Policy(model.eval(), policy.tokenizer)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("shared", [0, 7])
def test_likelihoods_are_those_of_each_text_by_itself(architecture, shared):
    policy = Policy(tiny_causal_lm(architecture), tiny_tokenizer())
    generator = torch.Generator().manual_seed(0)
    prefix = torch.randint(6, 96, (shared,), generator=generator).tolist()
    texts = [prefix + torch.randint(6, 96, (n,), generator=generator).tolist() for n in (9, 4, 17, 5)]
    texts += [[*texts[0][:-3], 8, 9], [*texts[0][:-3], 10, 11, 12, 13]]  # two that begin like another
    starts = [shared + start for start in (2, 1, 9, 3, 6, 5)]
    for text, start, found in zip(texts, starts, policy.log_likelihoods(texts, starts, "Test"), strict=True):
        with torch.no_grad():
            likely = policy.model(torch.tensor([text])).logits[0].log_softmax(-1)
        assert found == pytest.approx(sum(float(likely[t - 1, text[t]]) for t in range(start, len(text))), abs=1e-4)


def test_divergence_from_the_first_policy_is_the_sum_over_the_vocabulary():
    policy = with_adapter(Policy(tiny_causal_lm(), tiny_tokenizer()))
    texts, starts = [list(range(6, 20)), list(range(30, 36))], [5, 2]
    found = policy.divergences(texts, starts)
    for text, start, kl in zip(texts, starts, found, strict=True):
        ids = torch.tensor([text])
        with torch.no_grad():
            now = policy.model(ids).logits[0].log_softmax(-1)
            with policy.model.disable_adapter():
                first = policy.model(ids).logits[0].log_softmax(-1)
        by_hand = (now.exp() * (now - first)).sum(-1)[start - 1 : -1].sum()
        assert kl == pytest.approx(float(by_hand), rel=1e-4) and kl > 0.1
    assert (with_adapter(Policy(tiny_causal_lm(), tiny_tokenizer()), 0.0).divergences(texts, starts) < 1e-5).all()


def test_preference_accuracy_counts_the_likelier_response():
    policy = Policy(tiny_causal_lm(), tiny_tokenizer())
    pairs = [parse_preference(row, "A pair") for row in make_rows(12)]
    right = preference_accuracy(policy, pairs)
    swapped = preference_accuracy(
        policy, [replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in pairs]
    )
    assert (right + swapped == 1).all() and 0 < right.mean() < 1


# TruthfulQA.

ITEMS = [
    Item("Why do veins look blue?", "Light.", ["Light.", "Because of light."], ["Blue blood.", "Paint."]),
    Item("Can pigs fly?", "No.", ["No.", "Pigs cannot fly."], ["Yes.", "When nobody looks.", "Some can."]),
    Item("What is 1 + 1?", "Two.", ["Two."], ["Three."]),
    Item("Who knows?", "Nobody.", ["I have no comment.", "Nobody."], ["Everybody.", "The government does."]),
]


def letters_policy():
    """A policy that reads letters: the benchmark's texts are not those of the tiny world."""
    alphabet = sorted(set(PROMPT + "".join(repr(item) for item in ITEMS)))
    vocabulary = {letter: i for i, letter in enumerate(["<pad>", "<eos>", "<unk>", *alphabet])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    settings = tiny_settings("llama") | {"vocab_size": len(vocabulary), "max_position_embeddings": 4096}
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG_MAPPING["llama"](**settings)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4.0)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", chat_template="x"
    )
    return Policy(model, fast)


@pytest.mark.works_with("lm-eval", "TruthfulQA's MC1 and MC2 of `sparserm align` are those of its tasks")
@pytest.mark.parametrize("kind", ["a random policy", "SmolLM2-135M-Instruct"])
def test_multiple_choice_is_that_of_lm_evaluation_harness(kind, tmp_path):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM

    if kind == "a random policy":
        policy, items = letters_policy(), ITEMS
    else:  # the harness reads the whole prompt for each answer: enough of them for one question right, and one wrong
        policy, items = Policy.load(find_base_model(), CPU), ITEMS[:2]
        policy.model.float()
    docs = [
        {
            "question": item.question,
            "mc1_targets": {"choices": [item.best, *item.incorrect], "labels": [1] + [0] * len(item.incorrect)},
            "mc2_targets": {
                "choices": [*item.correct, *item.incorrect],
                "labels": [1] * len(item.correct) + [0] * len(item.incorrect),
            },
        }
        for item in items
    ]
    write_jsonl(tmp_path / "docs.jsonl", docs)
    found = multiple_choice(policy, items)
    theirs = harness(lm_eval, HFLM(policy.model, tokenizer=policy.tokenizer, batch_size=2), tmp_path / "docs.jsonl")
    assert found.mc1.tolist() == theirs["truthfulqa_mc1"]
    assert found.mc2.tolist() == pytest.approx(theirs["truthfulqa_mc2"], abs=1e-5)
    assert 0 < found.mc1.mean() < 1  # not all the same, or the test would show little


def harness(lm_eval, model, docs):
    """What lm-evaluation-harness makes of each question, by its own two tasks, on our rows."""

    import yaml

    folder = Path(lm_eval.__file__).parent / "tasks" / "truthfulqa"
    from lm_eval.tasks.truthfulqa.utils import process_results_mc2

    task = yaml.safe_load((folder / "truthfulqa_mc1.yaml").read_text())
    task |= {"dataset_path": "json", "dataset_name": None, "validation_split": "train", "tag": None}
    task |= {"dataset_kwargs": {"data_files": str(docs)}}
    second = task | {
        "task": "truthfulqa_mc2",
        "doc_to_choice": "{{mc2_targets.choices}}",
        "process_results": process_results_mc2,
    }
    results = lm_eval.simple_evaluate(model, tasks=[task, second], log_samples=True, bootstrap_iters=0)
    return {name: [sample["acc"] for sample in samples] for name, samples in results["samples"].items()}


def test_truthfulqa_is_read_and_what_is_trained_on_left_out(tmp_path):
    header = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
    (tmp_path / "t.csv").write_text(
        header + 'A,B,Why?,"So, yes","So, yes; Because.",No ; Never;,s\nA,B,How?,Thus,Thus,Not,s\n',
        encoding="utf-8-sig",
    )
    items = load_truthfulqa(tmp_path / "t.csv")
    assert items[0] == Item("Why?", "So, yes.", ["So, yes.", "Because."], ["No.", "Never."])
    assert drop_asked(items, ["Why? "]) == items[1:]
    (tmp_path / "u.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SparseRMError, match=r"not TruthfulQA\.csv"):
        load_truthfulqa(tmp_path / "u.csv")
    (tmp_path / "v.csv").write_text(header + "A,B,Why?,So,So,,s\n")
    with pytest.raises(SparseRMError, match="an empty cell at the question 'Why"):
        load_truthfulqa(tmp_path / "v.csv")


# The whole loop.


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked")
    rng = np.random.default_rng(4)
    questions = [{"question": " ".join(f"w{i}" for i in rng.integers(0, 60, 4))} for _ in range(24)]
    (folder / "task.yaml").write_text("preferred: 'w1 w2 {question}'\nopposite: 'w40 w41 {question}'\n")
    write_jsonl(folder / "questions.jsonl", questions)
    write_jsonl(folder / "pairs.jsonl", make_rows(8, seed=2))
    header = "Question,Best Answer,Correct Answers,Incorrect Answers\n"
    lines = [f"w{i} w7,w{i + 1} w5 ,w{i + 1} w5 ; w2 w{i} ,w{i + 2} w3 ; w9 w4 \n" for i in range(6)]
    asked_too = f"{questions[0]['question']},w1,w1,w2\n"
    (folder / "truthfulqa.csv").write_text("".join([header, asked_too, *lines]))
    return folder


def arguments(trained, policy, asked, out, **changes):
    given = {
        "policy": policy,
        "reward_model": trained,
        "questions": asked / "questions.jsonl",
        "eval_dataset": asked / "pairs.jsonl",
        "truthfulqa": asked / "truthfulqa.csv",
        "output_dir": out,
        "task": asked / "task.yaml",
        "num_rounds": 2,
        "questions_per_round": 10,
        "held_out_questions": 4,
        "max_new_tokens": 8,
        "generation_batch_size": 6,
        "num_train_epochs": 2,
        "lora_rank": 2,
        "learning_rate": 1e-2,
        "max_kl": 1e6,
        "max_length_ratio": 1e6,
    } | changes
    return ["align", *options(given)]


def contents(folder):
    """What a run leaves, without what merely tells where it was."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "settings.json" and path.suffix != ".md"
    }


@pytest.fixture(scope="module")
def finished(trained, asked, tmp_path_factory):
    """A run with all controls."""
    folder = tmp_path_factory.mktemp("finished")
    tiny_causal_lm(seed=1).save_pretrained(folder / "policy")
    save_tokenizer(tiny_tokenizer(), folder / "policy")
    assert main(arguments(trained, folder / "policy", asked, folder / "run", controls=True)) == 0
    return folder


def test_answers_that_begin_alike_are_counted():
    assert measures.alike(["This is so.", "This is  not", "This was", "", "This is"]) == 0.6
    assert measures.alike(["", ""]) == 1.0


@pytest.mark.parametrize(("first", "after", "warned"), [(0.1, 0.7, True), (0.1, 0.4, False), (0.8, 0.8, False)])
def test_a_policy_with_one_opening_left_is_warned_of(capsys, first, after, warned):
    figures = {"reward": 1.0, "kl": 0.0, "tokens": 9.0, "outside": 0.0, "alike": first, "cut": 0.0}
    kept = figures | {"reward": 2.0, "alike": after, "round": 1, "pairs": 9, "kept": 9, "stopped": ""}
    print_outcome(Outcome(figures, {"SparseRM": [kept]}, {}, 1, Path("adapter")), "a run")
    assert ("begin with the same two words" in capsys.readouterr().out) == warned


def test_a_run_shows_what_was_kept_and_what_came_of_it(finished):
    run = finished / "run"
    results = json.loads((run / "results.json").read_text())
    assert list(results["rounds"]) == ["SparseRM", "no filter", "random filter", "dense"]
    assert [len(rounds) for rounds in results["rounds"].values()] == [2, 2, 2, 2]
    for name, rounds in results["rounds"].items():
        for figures in rounds:
            pairs_of = read_rows(run / name.lower().replace(" ", "-") / f"round-{figures['round']}" / "pairs.jsonl")
            assert figures["pairs"] == len(pairs_of) == 10
            assert figures["kept"] == sum(pair["kept"] for pair in pairs_of) > 0
            assert figures["kl"] > 0 and figures["stopped"] == ""
    first = [rounds[0] for rounds in results["rounds"].values()]
    assert first[2]["kept"] == first[0]["kept"] < first[1]["kept"] == 10  # the random filter as many as SparseRM
    assert results["first"]["kl"] == 0
    assert len(results["first"]["each_mc1"]) == 6  # but for the one that is asked
    assert 0 < results["first"]["mc2"] < 1 and results["first"]["mc2"] != first[0]["mc2"]
    assert {"report.md", "rounds.png", "adapter", "first"} <= {path.name for path in run.iterdir()}
    assert (run / "sparserm" / "round-1" / "rewards.png").read_bytes().startswith(b"\x89PNG")
    report = (run / "report.md").read_text()
    assert "| SparseRM | 2 |" in report and "Answers to held-out questions" in report


def test_rewards_of_pairs_are_those_of_the_command_score(finished, trained, tmp_path):
    rows = read_rows(finished / "run" / "sparserm" / "round-1" / "pairs.jsonl")
    write_jsonl(tmp_path / "pairs.jsonl", [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in rows])
    assert (
        main(["score", str(trained), str(tmp_path / "pairs.jsonl"), "--output", str(tmp_path / "scored.jsonl")]) == 0
    )
    for row, scored in zip(rows, read_rows(tmp_path / "scored.jsonl"), strict=True):
        assert row["chosen_reward"] == pytest.approx(scored["chosen_reward"], abs=1e-4)
        assert row["rejected_reward"] == pytest.approx(scored["rejected_reward"], abs=1e-4)


def test_the_adapter_that_is_kept_loads_as_a_model(finished):
    results = json.loads((finished / "run" / "results.json").read_text())
    best = max(results["rounds"]["SparseRM"], key=lambda figures: figures["reward"])
    assert results["best"] == best["round"]
    model = AutoModelForCausalLM.from_pretrained(finished / "run" / "adapter")
    untouched = AutoModelForCausalLM.from_pretrained(finished / "policy")
    ids = torch.tensor([[5, 9, 20]])
    assert not torch.allclose(model(ids).logits, untouched(ids).logits, atol=1e-3)


def test_a_second_round_starts_from_the_first(finished):
    """Its adapter is that of the first, trained on: a fresh one would be as far from the first as from nothing."""
    from safetensors.torch import load_file

    rounds = [
        load_file(finished / "run" / "sparserm" / f"round-{n}" / "adapter" / "adapter_model.safetensors")
        for n in (1, 2)
    ]
    assert rounds[0].keys() == rounds[1].keys()  # no copy of the reference beside it
    step = sum(float((rounds[1][name] - rounds[0][name]).norm()) ** 2 for name in rounds[0]) ** 0.5
    size = sum(float(rounds[0][name].norm()) ** 2 for name in rounds[0]) ** 0.5
    assert 0 < step < size


class Killed(BaseException):
    """As if the process had been killed."""


def kill_at(monkeypatch, module, name, call):
    """The n-th call of something does not return."""
    real, calls = getattr(module, name), []

    def fatal(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, fatal)


@pytest.mark.works_with("trl", "`sparserm align`: `DPOTrainer` with LoRA; a killed run goes on and ends the same")
@pytest.mark.parametrize(
    "stage", ["writing", "filtering", "training", "checkpoint", "training again", "saving", "measuring"]
)
def test_a_run_that_was_killed_goes_on_and_ends_the_same(finished, trained, asked, tmp_path, stage):
    from sparserm_hf.align import policy

    where = {
        "writing": (policy.Policy, "write", 4),  # the first answers the held-out questions
        "filtering": (aligner, "filter_pairs", 2),
        "training": (Trainer, "_save_checkpoint", 2),
        "checkpoint": (Trainer, "_save_optimizer_and_scheduler", 2),  # leaves a half of it
        "training again": (Trainer, "_save_checkpoint", 4),  # the second round: there is a reference beside it
        "saving": (dpo, "replacing_folder", 1),
        "measuring": (policy.Policy, "divergences", 3),
    }[stage]
    command = arguments(trained, finished / "policy", asked, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, *where)
        with pytest.raises(Killed):
            main(command)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.jsonl")}
    assert main(command) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())  # nothing is done twice
    whole = {name: data for name, data in contents(finished / "run").items() if name.startswith("sparserm/")}
    gone_on = contents(tmp_path / "run")
    text = [name for name in whole if name.endswith((".jsonl", "metrics.json"))]
    assert len(text) == 7 and all(gone_on[name] == whole[name] for name in text)
    assert not list((tmp_path / "run").rglob("*-training")) and not list((tmp_path / "run").rglob("*.part"))


def test_a_finished_run_is_not_done_again_and_may_grow(finished, trained, asked, tmp_path, monkeypatch):
    shutil.copytree(finished / "run", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Policy, "write", None)
        patch.setattr(dpo, "DPOTrainer", None)
        assert main(arguments(trained, finished / "policy", asked, tmp_path / "run", controls=True)) == 0
    assert main(arguments(trained, finished / "policy", asked, tmp_path / "run", num_rounds=3)) == 0
    assert len(json.loads((tmp_path / "run" / "results.json").read_text())["rounds"]["SparseRM"]) == 3


def test_best_of_n_on_a_policy_of_another_family(trained, asked, tmp_path, capsys):
    tiny_causal_lm("gpt2", seed=3).save_pretrained(tmp_path / "gpt2")
    save_tokenizer(tiny_tokenizer(), tmp_path / "gpt2")
    changes = {
        "truthfulqa": None,
        "pairs": "best-of-n",
        "num_samples": 3,
        "num_rounds": 1,
        "controls": True,
        "min_margin": 0.01,
    }
    assert main(arguments(trained, tmp_path / "gpt2", asked, tmp_path / "run", **changes)) == 0
    for pair in read_rows(tmp_path / "run" / "sparserm" / "round-1" / "pairs.jsonl"):
        assert not pair["kept"] or pair["chosen_reward"] >= pair["rejected_reward"] + 0.01
    assert "no filter" not in capsys.readouterr().out


def test_a_classifier_may_be_the_filter_too(finished, trained, asked, tmp_path):
    """TRL's own reward model: here a random one."""
    from transformers import AutoModelForSequenceClassification

    classifier = AutoModelForSequenceClassification.from_pretrained(finished / "policy", num_labels=1)
    classifier.save_pretrained(tmp_path / "classifier")
    save_tokenizer(tiny_tokenizer(), tmp_path / "classifier")
    command = arguments(trained, finished / "policy", asked, tmp_path / "run", num_rounds=1)
    assert main([*command, "--control_reward_model", str(tmp_path / "classifier")]) == 0
    (row, *_) = read_rows(tmp_path / "run" / "rewardtrainer" / "round-1" / "pairs.jsonl")
    ids = torch.tensor(tiny_tokenizer().apply_chat_template(row["prompt"] + row["chosen"], return_dict=False))[None]
    with torch.no_grad():
        assert row["chosen_reward"] == pytest.approx(float(classifier.eval()(ids).logits), abs=1e-4)


# Bad input.


def error_of(capsys, command):
    assert main(command) == 2
    return capsys.readouterr().err


def test_a_policy_without_a_chat_template_is_refused(trained, asked, tmp_path, capsys):
    tiny_causal_lm().save_pretrained(tmp_path / "base")
    save_tokenizer(tiny_tokenizer(chat_template=None), tmp_path / "base")
    error = error_of(capsys, arguments(trained, tmp_path / "base", asked, tmp_path / "run"))
    assert "has no chat template" in error and not (tmp_path / "run").exists()


def test_nothing_kept_says_where_to_look(finished, trained, asked, tmp_path, capsys):
    command = arguments(trained, finished / "policy", asked, tmp_path / "run", min_margin=1e6)
    error = error_of(capsys, command)
    assert "None of the 10 pairs of round 1 was kept" in error and "lower min_margin" in error
    assert len(read_rows(tmp_path / "run" / "sparserm" / "round-1" / "pairs.jsonl")) == 10


def test_nothing_kept_in_a_later_round_ends_that_filter_alone(finished, trained, asked, tmp_path, capsys, monkeypatch):
    def drop_all(rows, rewards, config, seed):
        found = filter_pairs(rows, rewards, config, seed)
        return [pair | {"kept": False} for pair in found] if (tmp_path / "run/sparserm/round-2").exists() else found

    monkeypatch.setattr(aligner, "filter_pairs", drop_all)
    assert main(arguments(trained, finished / "policy", asked, tmp_path / "run")) == 0
    assert "SparseRM ended early, no pair of round 2 was kept" in capsys.readouterr().out
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_a_run_with_other_settings_is_not_gone_on_with(finished, trained, asked, capsys):
    error = error_of(capsys, arguments(trained, finished / "policy", asked, finished / "run", beta=0.2))
    assert "beta is 0.1 there and 0.2 now" in error


def test_a_run_is_not_gone_on_with_when_what_decides_it_changed(finished, trained, asked, tmp_path, capsys):
    for folder in ("run", "policy"):
        shutil.copytree(finished / folder, tmp_path / folder)
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    begun = {"policy": str(tmp_path / "policy"), "control_reward_model": "mine"}
    (tmp_path / "run" / "settings.json").write_text(json.dumps(settings | begun))
    command = arguments(trained, tmp_path / "policy", asked, tmp_path / "run")
    assert main(command) == 0  # one filter less
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["control_reward_model"] == "mine"
    (tmp_path / "task.yaml").write_text("preferred: 'w3 {question}'\nopposite: 'w4 {question}'\n")
    (tmp_path / "run" / "settings.json").write_text(
        json.dumps(settings | begun | {"task": str(tmp_path / "task.yaml"), "reward model's head": "of fingerprint 0"})
    )
    assert "reward model's head is 'of fingerprint 0' there" in error_of(
        capsys, [*command, "--task", str(tmp_path / "task.yaml")]
    )
    (tmp_path / "run" / "settings.json").write_text(
        json.dumps(settings | begun | {"task": str(tmp_path / "task.yaml")})
    )
    assert "what is asked is" in error_of(capsys, [*command, "--task", str(tmp_path / "task.yaml")])


def test_a_classifier_that_was_never_trained_is_refused(finished, trained, asked, tmp_path, capsys):
    command = arguments(trained, finished / "policy", asked, tmp_path / "run")
    error = error_of(capsys, [*command, "--control_reward_model", str(finished / "policy")])
    assert "is no trained reward model, as its weights lack score.weight" in error and not (tmp_path / "run").exists()


def test_what_is_too_long_for_the_policy_is_refused(finished, trained, asked, tmp_path, capsys):
    rows = [{"question": "w1"}, {"question": " ".join(["w2"] * 600)}]
    command = arguments(trained, finished / "policy", asked, tmp_path / "run", held_out_questions=1)
    error = error_of(capsys, [*command, "--questions", str(write_jsonl(tmp_path / "questions.jsonl", rows))])
    assert "Question 2 has 6" in error and "that the policy can take" in error and not (tmp_path / "run").exists()


def test_evaluation_pairs_that_are_trained_on_are_left_out(finished, trained, asked, tmp_path, capsys):
    question = json.loads((asked / "questions.jsonl").read_text().splitlines()[0])["question"]
    rows = [{"prompt": question, "chosen": "w1", "rejected": "w2"}]
    command = arguments(trained, finished / "policy", asked, tmp_path / "run")
    path = write_jsonl(tmp_path / "pairs.jsonl", rows)
    assert "The prompts of all evaluation pairs are among" in error_of(capsys, [*command, "--eval_dataset", str(path)])


def test_a_training_that_diverges_says_so(finished, trained, asked, tmp_path, capsys, monkeypatch):
    def diverge(trainer, **kwargs):
        for parameter in trainer.model.parameters():
            parameter.data.fill_(float("nan"))

    monkeypatch.setattr(dpo.DPOTrainer, "train", diverge)
    error = error_of(capsys, arguments(trained, finished / "policy", asked, tmp_path / "run"))
    assert "diverged: start a new folder with a lower learning_rate" in error
    assert not list((tmp_path / "run").rglob("adapter_model.safetensors"))


def test_truthfulqa_that_is_all_trained_on_is_refused(finished, trained, asked, tmp_path, capsys):
    text = "Question,Best Answer,Correct Answers,Incorrect Answers\n"
    question = json.loads((asked / "questions.jsonl").read_text().splitlines()[0])["question"]
    (tmp_path / "t.csv").write_text(f"{text}{question},w1,w1,w2\n")
    command = arguments(trained, finished / "policy", asked, tmp_path / "run", truthfulqa=tmp_path / "t.csv")
    assert "All questions of TruthfulQA are among" in error_of(capsys, command) and not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_left_alone(finished, trained, asked, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    error = error_of(capsys, arguments(trained, finished / "policy", asked, tmp_path))
    assert "holds something else than a run" in error and [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_out_of_memory_names_the_setting_to_lower(finished, trained, asked, tmp_path, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    command = arguments(trained, finished / "policy", asked, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(pairs.Policy, "write", full)
        assert "lower generation_batch_size. Finished work is kept" in error_of(capsys, command)
    command += ["--generation_batch_size", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(dpo.DPOTrainer, "train", full)
        assert "lower train_batch_size, or set gradient_checkpointing" in error_of(capsys, command)
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, Trainer, "_save_checkpoint", 2)
        with pytest.raises(Killed):
            main(command)
    command += ["--train_batch_size", "2", "--gradient_checkpointing"]
    assert main(command) == 0
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["train_batch_size"] == 2


def test_other_errors_are_not_taken_for_full_memory():
    """An assert on a GPU is an error of its own kind, and was reported as full memory."""

    class AcceleratorError(RuntimeError):
        pass

    with pytest.raises(AcceleratorError), memory_advice("training", "lower it"):
        raise AcceleratorError("device-side assert triggered")
    with pytest.raises(SparseRMError, match="lower it"), memory_advice("training", "lower it"):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


def test_a_policy_that_was_trained_anew_is_another(finished, trained, asked, tmp_path, capsys):
    """By name it was the same: the old adapter was put on the new weights, and KL counted from both."""
    shutil.copytree(finished / "policy", tmp_path / "policy")
    shutil.copytree(finished / "run", tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    (tmp_path / "run" / "settings.json").write_text(json.dumps(settings | {"policy": str(tmp_path / "policy")}))
    command = arguments(trained, tmp_path / "policy", asked, tmp_path / "run")
    assert main(command) == 0
    tiny_causal_lm(seed=2).save_pretrained(tmp_path / "policy")
    assert "policy's weights is" in error_of(capsys, command)


def test_evaluation_pairs_that_cannot_be_asked_are_refused_at_once(finished, trained, asked, tmp_path, capsys):
    said = [[{"role": "assistant", "content": text}] for text in ("w1", "w2")]
    long = {"prompt": "w1 w2", "chosen": "w3 " * 200, "rejected": "w4"}
    for pair, message in (
        (dict(zip(("chosen", "rejected"), said, strict=True)), "Evaluation pair 1 has no prompt"),
        (long, "more than the 128 that the policy can take"),
    ):
        path = write_jsonl(tmp_path / "pairs.jsonl", [pair])
        command = arguments(trained, finished / "policy", asked, tmp_path / "run", eval_dataset=path)
        assert message in error_of(capsys, command)
        assert not (tmp_path / "run").exists()


def test_a_policy_that_runs_away_is_stopped_and_not_kept(finished, trained, asked, tmp_path, capsys):
    command = arguments(trained, finished / "policy", asked, tmp_path / "run", max_kl=1e-9)
    assert main(command) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(results["rounds"]["SparseRM"]) == 1 and "above max_kl" in results["rounds"]["SparseRM"][0]["stopped"]
    assert results["best"] is None and not (tmp_path / "run" / "adapter").exists()
    assert "there is no adapter to keep" in capsys.readouterr().out
    assert main([*command, "--max_kl", "1e6"]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [figures["stopped"] for figures in results["rounds"]["SparseRM"]] == ["", ""]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": "best-of"}, "contrast, best-of-n"),
        ({"num_samples": 1}, "at least 2"),
        ({"temperature": 0.0}, "greater than 0"),
        ({"max_length_ratio": 1.0}, "greater than 1"),
        ({"seed": -1}, "at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(SparseRMError, match=message):
        config(**changes)


# TRL's own ways, as examples.


@pytest.mark.works_with("trl", "`examples/grpo.py` and `examples/online_dpo.py`, with LoRA")
@pytest.mark.parametrize("example", ["grpo", "online_dpo"])
def test_examples_of_other_ways_to_align_run(example, finished, trained, tmp_path, capsys):
    import runpy

    questions = write_jsonl(tmp_path / "questions.jsonl", [{"prompt": f"w{i} w{i + 1}"} for i in range(16)])
    path = Path(__file__).parent.parent / "examples" / f"{example}.py"
    run = runpy.run_path(str(path))["main"]
    run(str(trained), str(finished / "policy"), questions, str(tmp_path / "out"), "1")
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    logged = capsys.readouterr().out
    assert "loss" in logged and ("drift/outside" in logged) == (example == "grpo")
