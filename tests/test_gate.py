"""The gate of a combined reward model: the prompt tells how much each objective counts, and the reward stays exact."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sparserm_hf.modeling.configuration_sparserm import SparseRMConfig
from sparserm_hf.modeling.modeling_sparserm import SparseRMForSequenceClassification
from sparserm_hf.modeling.response_sparserm import find_prompts
from test_joint_training import even_rows
from tiny import BOS, HEADER, OBJECTIVES, tiny_reward_model, tiny_texts, tiny_tokenizer
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments, pipeline
from world import make_rows, train_arguments, without_package, write_jsonl

from sparserm_hf import SparseRMError, SparseRMReward, combine, evaluate, load_reward_model, monitor, score_rows
from sparserm_hf.align.sparse_judge import SparseJudge
from sparserm_hf.cli.main import main
from sparserm_hf.evaluation import RowName, SavedRewardModel, reward_represented
from sparserm_hf.explanations import report_latents
from sparserm_hf.explanations.explained_rows import explain_rows
from sparserm_hf.integrations.stock import to_stock
from sparserm_hf.runtime.batches import pad_texts
from sparserm_hf.runtime.checkpoint_folders import save_tokenizer
from sparserm_hf.scoring.scored_texts import score_texts
from sparserm_hf.training.gating import fit_gate

CPU = torch.device("cpu")


def planted_rows(count, seed, tells=True):
    """Pairs of a response of low odd words with one of high even words; the prompt tells if low or even is wanted.

    Prompts of w60 to w62 want low words, those of w70 to w72 even words. Without `tells`, all want either at random.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        low, even = rng.integers(0, 15, 24) * 2 + 1, rng.integers(15, 30, 24) * 2
        wants_low = bool(rng.integers(2))
        first = 60 if (wants_low if tells else rng.integers(2)) else 70
        texts = [" ".join(f"w{i}" for i in words) for words in (low, even)]
        prompt = " ".join(f"w{i}" for i in rng.integers(first, first + 3, 6))
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in texts[:: 1 if wants_low else -1])
        rows.append({"prompt": [{"role": "user", "content": prompt}], "chosen": chosen, "rejected": rejected})
    return rows


ROWS = [{"messages": row["prompt"] + row["chosen"]} for row in planted_rows(4, seed=8)]
ROWS += [{"messages": [*ROWS[0]["messages"][:1], {"role": "assistant", "content": ""}]}]


@pytest.fixture(scope="module")
def members(world, tmp_path_factory):
    """Folders of two models, of which one prefers low words and the other even words."""
    root = tmp_path_factory.mktemp("members")
    for name, rows in (("low", make_rows(240)), ("even", even_rows(240, seed=1))):
        data = write_jsonl(root / f"{name}.jsonl", rows)
        assert main(train_arguments(world, root / name, dataset=data, controls=False)) == 0
    return [str(root / "low"), str(root / "even")]


@pytest.fixture(scope="module")
def gated(members, world, tmp_path_factory):
    """The folder of the two combined, with a gate."""
    root = tmp_path_factory.mktemp("gated")
    pairs = write_jsonl(root / "pairs.jsonl", planted_rows(200, seed=2))
    arguments = ["--gate", "--dataset", pairs, "--weights", "1", "1", "--cache_dir", str(world / "cache")]
    assert main(["combine", *members, *arguments, "--output_dir", str(root / "both")]) == 0
    return str(root / "both")


def tiny_gated_model(**config):
    """A random combined reward model whose gate reads two latents, and weighs objectives by 0.2 to 1.8."""
    model = tiny_reward_model(objectives=OBJECTIVES, gate=True, **config)
    model.weigh({"b": 2.0})
    with torch.no_grad():
        model.score.gate.weight.zero_()
        model.score.gate.weight[0, :2] = torch.tensor([0.2, -0.04])
    return model


def test_the_gate_finds_out_which_objective_decides(gated, world):
    test = planted_rows(400, seed=5)
    accuracies = evaluate(gated, test, cache_dir=world / "cache").metrics
    gate, plain = (accuracies[name].accuracy for name in (RowName.REWARD_MODEL, RowName.UNGATED))
    alone = max(accuracies[RowName.alone(name)].accuracy for name in ("low", "even"))
    assert gate > 0.8 and plain < 0.6 and alone < 0.6
    model, tokenizer = load_reward_model(gated, CPU)
    for row in test[:10]:
        (explained,) = explain_rows(model, tokenizer, [{"messages": row["prompt"] + row["chosen"]}])
        low, even = explained.explanations["reward"].objectives
        wants_low = int(row["prompt"][0]["content"][1]) == 6
        assert (low.share > even.share) == wants_low and low.share + even.share == pytest.approx(2)


def test_the_reason_is_the_latent_that_the_world_was_made_with():
    rng = np.random.default_rng(0)
    prompts, margins = rng.normal(size=(500, 6)), rng.normal(size=(500, 3))
    deciding = np.digitize(prompts[:, 3], [-0.4, 0.4])
    margins[np.arange(500), deciding] = np.abs(margins[np.arange(500), deciding])
    gate = fit_gate(prompts, margins, np.arange(500))
    assert gate.helps and (np.abs(gate.weight).argmax(1)[[0, 2]] == 3).all()
    model, tokenizer = tiny_gated_model(), tiny_tokenizer()
    (explained,) = explain_rows(model, tokenizer, ROWS[:1])
    for part in explained.explanations["reward"].objectives:
        assert {reason.latent for reason in part.reasons[:2]} == {3, 11} and part.reasons[2].contribution == 0


def test_prompts_that_tell_nothing_get_no_gate(members, world, tmp_path, caplog):
    rows, where = planted_rows(200, seed=2, tells=False), tmp_path / "both"
    found = combine(members, where, [1, 1], rows, cache_dir=world / "cache", gate=True)
    assert "the model is written without a gate" in caplog.text and RowName.UNGATED not in found.metrics
    model, _ = load_reward_model(str(where), CPU)
    assert not model.config.gate and "gate" not in json.loads((where / "config.json").read_text())
    assert not any("score.gate" in name for name in model.state_dict())
    assert model(torch.tensor([[BOS, 5, 6]])).shares is None


def test_an_explanation_sums_up_and_names_the_prompts_latents(gated, capsys, tmp_path):
    model, tokenizer = load_reward_model(gated, CPU)
    for explained in explain_rows(model, tokenizer, ROWS):
        found = explained.explanations["reward"]
        assert found.base + found.added == pytest.approx(found.reward, abs=1e-5) and abs(found.unexplained) < 1e-5
        assert sum(part.contribution for part in found.objectives) == pytest.approx(found.reward, abs=1e-4)
        for effect in found.latents:
            assert sum(effect.by_objective.values()) == pytest.approx(effect.contribution, abs=1e-4)
        if found.tokens:
            assert sum(token.contribution for token in found.tokens) == pytest.approx(found.added, abs=1e-4)
        (first, _) = explained.as_json()["explanation"]["objectives"]
        assert first["share"] > 0 and len(first["reasons"]) == 3
        assert "For this prompt, " in repr(found) and "For this prompt, " in found._repr_html_()
    assert main(["explain", gated, write_jsonl(tmp_path / "rows.jsonl", ROWS[:1])]) == 0
    assert "For this prompt, " in capsys.readouterr().out


def test_a_claim_holds_where_the_directions_are_orthonormal():
    model = tiny_gated_model(representation_norm="none")
    model.directions = torch.linalg.qr(model.directions.T).Q.T.contiguous()
    text = torch.tensor([tiny_texts()[0]])
    found = model.explain(text)
    assert (model(text).shares - 1).abs().max() > 0.1
    lost = found.reward[:, None] - model.rewards_without(model.config.latent_ids, text)
    torch.testing.assert_close(lost, found.contributions, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        found.bias + (found.weight * found.features).sum(-1), found.reward, rtol=1e-4, atol=1e-3
    )


def test_every_way_in_gives_the_same_reward(gated, world, equal):
    saved = SavedRewardModel.load(gated)
    model, tokenizer = saved.model, saved.tokenizer
    scored = list(score_rows(model, tokenizer, ROWS))
    rewards = [row["reward"] for row in scored]
    texts = [saved.encoder()(row["messages"]) for row in ROWS]
    ids, mask = pad_texts([text.ids for text in texts], CPU)
    with torch.no_grad():
        output = model(ids, mask)
    equal("gate, `forward`", rewards, output.logits[:, 0].tolist(), 1e-5)
    equal("gate, `predict`", rewards, model.predict([row["messages"] for row in ROWS], tokenizer), 1e-5)
    equal("gate, `explain`", rewards, model.explain(ids, mask).reward.tolist(), 1e-5)
    cached = saved.represent(texts, world / "cache")  # one prompt is shared
    equal("gate, cached", rewards, reward_represented(model, cached).tolist(), 1e-5)
    plain = model.reward(model.extract_features(ids, mask))
    above = (output.logits - plain)[:, 0]
    assert (above.abs() > 0.1).any(), "without a gate the rewards must differ, or the test shows nothing"
    expected = output.shares * (output.rewards - torch.tensor([of["reward_mean"] for of in model.config.objectives]))
    expected = (expected * model.objective_factors()).sum(1)
    torch.testing.assert_close(output.logits[:, 0], expected, rtol=1e-4, atol=1e-4)


def test_a_reward_depends_on_the_text_alone(tmp_path):
    model = tiny_gated_model()
    alone = torch.tensor([model(torch.tensor([text])).logits.item() for text in tiny_texts()])
    ids, mask = pad_texts(tiny_texts(), CPU)
    left = [torch.nn.functional.pad(x.flip(1), (0, 3)).flip(1) for x in (ids, mask)]  # not the texts reversed
    shares = model(ids, mask).shares
    torch.testing.assert_close(model(ids, mask).logits[:, 0], alone, rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(model(*left).logits[:, 0], alone, rtol=2e-4, atol=2e-4)
    # A text without a prompt counts plainly; so does one whose prompt is a single token, an attention sink.
    assert [bool((row - 1).abs().max() > 0) for row in shares] == [True, False, True, False, False, True]
    model.save_pretrained(tmp_path)
    again = SparseRMForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(again(ids, mask).logits, model(ids, mask).logits)
    half = SparseRMForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.score.gate.weight.dtype == half.score.gate.average.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in half.score.gate.parameters())


def test_a_reasoning_block_and_the_response_do_not_move_the_gate():
    model = tiny_gated_model()
    prompt = [BOS, 9, 10, 11]
    shares = [model(torch.tensor([[*prompt, *HEADER, *words]])).shares for words in ([20, 21], [30], [])]
    for other in shares[1:]:
        torch.testing.assert_close(other, shares[0])
    text = torch.tensor([[*prompt, *HEADER, 20, 21, 22]])  # 20 may be reasoning, so that the response starts at 21
    start = len(prompt) + len(HEADER)
    found = [
        find_prompts(text, torch.ones_like(text), [(at, 8)], model.config.response_marks) for at in (start, start + 1)
    ]
    assert found == [[(0, len(prompt))]] * 2


def test_steering_the_response_leaves_the_gate():
    model = tiny_gated_model()
    text = torch.tensor([tiny_texts()[0]])
    before = model(text)
    model.steer({3: 0.0})
    after = model(text)
    assert torch.equal(before.shares, after.shares) and not torch.equal(before.logits, after.logits)


def test_other_weights_keep_the_gate_and_an_empty_response_stays_the_worst(gated):
    model, tokenizer = load_reward_model(gated, CPU)
    prompt = ROWS[0]["messages"][:1]
    training = [row[side] for row in (*make_rows(40), *even_rows(40, 1)) for side in ("chosen", "rejected")]
    rows = [{"messages": [*prompt, *response]} for response in training]
    for weights in ((1.0, 1.0), (2.0, -1.0), (-1.0, -1.0)):
        model.weigh(dict(zip(("low", "even"), weights, strict=True)))
        *others, empty = (row["reward"] for row in score_rows(model, tokenizer, [*rows, ROWS[-1]]))
        assert empty < np.quantile(others, 0.05), weights
    assert model.config.gate


def test_transformers_and_trl_take_the_checkpoint(gated, tmp_path):
    expected = [row["reward"] for row in score_rows(*load_reward_model(gated, CPU), ROWS)]
    _, tokenizer = load_reward_model(gated, CPU)
    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in ROWS]
    code = (
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n"
        f"model = AutoModelForSequenceClassification.from_pretrained({gated!r}, trust_remote_code=True).float()\n"
        f"tokenizer = AutoTokenizer.from_pretrained({gated!r})\n"
        f"print('rewards', model.predict({[row['messages'] for row in ROWS]!r}, tokenizer))\n"
    )
    ran = without_package(code)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.split("rewards")[1].splitlines()[0]) == pytest.approx(expected, abs=1e-4)
    model = AutoModelForSequenceClassification.from_pretrained(gated, dtype=torch.float32)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
    found = [row["score"] for row in classify(texts, add_special_tokens=False, function_to_apply="none")]
    assert found == pytest.approx(expected, abs=1e-4)
    rows = [{"input_ids": [5, 6, 7], "labels": 0.5}, {"input_ids": [8, 9], "labels": -0.5}]
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, max_steps=1, save_strategy="no")
    trainer = Trainer(model, args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    assert trainer.predict(rows).predictions.shape == (2, 1)
    logged, reward = {}, SparseRMReward(gated)
    prompt, response = ROWS[0]["messages"][:1], ROWS[0]["messages"][1:]
    (found,) = reward([prompt], [response], log_metric=lambda name, value: logged.update({name: value}))
    assert found == pytest.approx(expected[0], abs=1e-4)
    model, _ = load_reward_model(gated, CPU)
    (explained,) = explain_rows(model, tokenizer, ROWS[:1])
    base = explained.explanations["reward"].base
    assert logged["both/chosen"] + logged["both/rejected"] == pytest.approx(found - base, abs=1e-4)


def test_the_server_and_a_slim_copy_and_the_monitor_know_the_gate(gated, world, tmp_path, monkeypatch):
    testclient = pytest.importorskip("fastapi.testclient")
    from sparserm_hf.server.app import create_app

    model, tokenizer = load_reward_model(gated, CPU)
    expected = [row["reward"] for row in score_rows(model, tokenizer, ROWS)]
    with testclient.TestClient(create_app(model, tokenizer, "both"), "http://localhost") as client:
        rows = client.post("/score", json={"rows": ROWS}).json()["rows"]
        assert [row["reward"] for row in rows] == pytest.approx(expected, abs=1e-5)
        (row,) = client.post("/explain", json={"rows": ROWS[:1]}).json()["rows"]
        assert row["explanation"]["objectives"][0]["share"] > 0
        assert client.post("/get_reward", json={"query": ["w1 w2"]}).json()["extra_logs"].keys() >= {"low", "even"}
    monkeypatch.chdir(world)  # where the slim checkpoint finds its base model
    model.to_slim().save_pretrained(tmp_path / "slim")
    save_tokenizer(tokenizer, tmp_path / "slim")
    slim = score_rows(*load_reward_model(str(tmp_path / "slim"), CPU), ROWS)
    assert [row["reward"] for row in slim] == pytest.approx(expected, abs=1e-5)
    pairs = planted_rows(200, seed=2)
    answers = [{"messages": row["prompt"] + row[side]} for row in pairs for side in ("chosen", "rejected")]
    assert abs(monitor(gated, answers).reward_shift) < 1e-3  # the pairs that the statistics are of
    latents = report_latents(gated, pairs, top=3, cache_dir=world / "cache").latents
    texts = [row["messages"] for row in answers]
    effects = {latent.latent: [] for latent in latents}
    for explained in explain_rows(model, tokenizer, [{"messages": text} for text in texts[:40]]):
        for effect in explained.explanations["reward"].latents:
            effects.get(effect.latent, []).append(effect.contribution)
    for latent in latents:
        assert latent.importance == pytest.approx(np.std(effects[latent.latent]), rel=0.35)
    assert "A gate reads the prompt" in Path(gated, "README.md").read_text(encoding="utf-8")


def test_scores_do_not_depend_on_the_batch(gated):
    saved = SavedRewardModel.load(gated)
    texts = [saved.encoder()(row["messages"]) for row in ROWS]
    together, alone = score_texts(saved.model, texts), [score_texts(saved.model, [text]) for text in texts]
    np.testing.assert_allclose(together.rewards, np.concatenate([one.rewards for one in alone]), atol=1e-5)
    assert together.shares.shape == (len(ROWS), 2)


def test_what_a_gate_cannot_do_is_refused(members, gated, tmp_path):
    with pytest.raises(SparseRMError, match="A gate is fitted to pairs"):
        combine(members, tmp_path / "out", gate=True)
    model, _ = load_reward_model(gated, CPU)
    with pytest.raises(SparseRMError, match="its gate makes the weights depend on the prompt"):
        to_stock(model)
    with pytest.raises(SparseRMError, match="it is a combined one"):
        combine([members[0], gated], tmp_path / "out")
    with pytest.raises(ValueError, match="pass input_ids"):
        last = tiny_gated_model(pooling="last")
        last(inputs_embeds=torch.zeros(1, 3, last.config.hidden_size), attention_mask=torch.ones(1, 3))
    with pytest.raises(ValueError, match="gate is true, but there are 0 objectives"):
        SparseRMConfig(gate=True)
    assert not (tmp_path / "out").exists()
    steered = tmp_path / "steered"
    latent = model.config.latent_ids[0]
    assert main(["edit", gated, "--steer", f"{latent}=0", "--output_dir", str(steered)]) == 0
    with pytest.raises(SparseRMError, match="has a gate and steered latents"):
        SparseJudge.load(str(steered))


def test_trl_trains_with_it_and_trains_it(gated, policy, tmp_path):
    trl = pytest.importorskip("trl")
    from test_trl import SETTINGS, weights_changed_by

    args = trl.RewardConfig(str(tmp_path / "rewards"), max_steps=2, learning_rate=1e-2, **SETTINGS)
    trainer = trl.RewardTrainer(model=gated, args=args, train_dataset=Dataset.from_list(make_rows(16)))
    assert weights_changed_by(trainer) == {"score.weight", "score.bias"}
    seen = []

    class Spying(trl.GRPOTrainer):
        def _calculate_rewards(self, inputs, prompts, completions, completion_ids):
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids)
            seen.append((prompts, completions, rewards[:, 0]))
            return rewards

    args = trl.GRPOConfig(str(tmp_path / "out"), max_steps=1, num_generations=2, max_completion_length=8, **SETTINGS)
    prompts = Dataset.from_list([{"prompt": row["prompt"]} for row in planted_rows(8, seed=4)])
    Spying(policy, gated, args=args, train_dataset=prompts, processing_class=tiny_tokenizer()).train()
    ((asked, answers, rewards),) = seen
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in zip(asked, answers, strict=True)]
    expected = [row["reward"] for row in score_rows(*load_reward_model(gated, CPU), rows)]
    assert rewards.tolist() == pytest.approx(expected, abs=1e-4)
