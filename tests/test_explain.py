"""Explanations: exact sums, token by token, true under intervention; steering that lasts."""

import json

import pytest
import torch
from fastapi.testclient import TestClient
from tiny import D_MODEL, HEADER, tiny_reward_model, tiny_texts, tiny_tokenizer
from transformers import AutoModelForSequenceClassification, pipeline
from world import make_rows, without_package, write_jsonl

from sparserm_hf import SparseRMReward, explain
from sparserm_hf.cli.main import main
from sparserm_hf.explanations.text_explanation import contrast
from sparserm_hf.runtime.batches import pad_texts
from sparserm_hf.scoring.reward_models import load_reward_model
from sparserm_hf.scoring.scored_rows import score_rows
from sparserm_hf.server.app import create_app

MESSAGES = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3 w9 w4 w5 w21"}]


@pytest.mark.parametrize("steering", [{}, {"11": 0.0, "40": 2.5}], ids=["as trained", "steered"])
@pytest.mark.parametrize("norm", ["rms", "none"])
@pytest.mark.parametrize("pooling", ["response_mean", "mean", "last"])
def test_a_reward_is_the_sum_of_its_parts(pooling, norm, steering):
    model = tiny_reward_model(pooling=pooling, representation_norm=norm, steering=steering)
    texts = tiny_texts()
    ids, mask = pad_texts(texts, torch.device("cpu"))
    found = model.explain(ids, mask)
    with torch.no_grad():
        rewards = model(ids, mask).logits[:, 0]
    scale = rewards.abs().max()
    assert torch.equal(found.reward, rewards)
    close = {"rtol": 1e-4, "atol": 1e-4 * scale.item()}
    torch.testing.assert_close(found.bias + (found.weight * found.features).sum(-1), rewards, **close)
    torch.testing.assert_close(found.base + found.contributions.sum(-1), rewards, **close)
    torch.testing.assert_close(found.token_contributions.sum(1), found.contributions)
    for i in range(len(texts)):
        last = int(found.response[i].nonzero()[-1])
        torch.testing.assert_close(found.running_reward[i, last], rewards[i], **close)
    # The running reward is that of the text that ends there, once it has come to a response.
    text = texts[0]
    start = int(found.response[0].nonzero()[0])
    for end in range(max(start, text.index(*HEADER) + 1), len(text), 2):
        with torch.no_grad():
            alone = model(torch.tensor([text[: end + 1]]), torch.ones(1, end + 1)).logits[0, 0]
        torch.testing.assert_close(found.running_reward[0, end], alone, **close)
    torch.testing.assert_close(found.running_reward[0, :start], found.base.expand(start))


@pytest.mark.parametrize("pooling", ["last", "response_mean"])
def test_an_empty_response_is_explained_too(pooling):
    model = tiny_reward_model(pooling=pooling)
    empty = model.score(model.empty_features).item()
    ids = torch.tensor([[1, 9, 30, 3, 4, 5]])  # ends with the assistant header and the end of its turn
    found = model.explain(ids)
    assert found.reward.item() == pytest.approx(empty, abs=1e-5) and not found.response.any()
    torch.testing.assert_close(found.base + found.contributions.sum(-1), found.reward, rtol=1e-4, atol=1e-4)
    explanation = explain(model, tiny_tokenizer(), [MESSAGES[0], {"role": "assistant", "content": " "}])
    assert explanation.reward == pytest.approx(empty, abs=1e-5) and explanation.tokens == []
    assert abs(explanation.unexplained) < 1e-4 and explanation.latents


def test_a_text_of_which_nothing_is_read_is_explained_as_an_empty_response():
    """Its features are those of the worst training response: there is no token to take a direction out of."""
    model = tiny_reward_model()
    explanation = explain(model, tiny_tokenizer(), "w1")
    assert explanation.reward == model.score(model.empty_features).item() and explanation.tokens == []
    assert abs(explanation.unexplained) < 1e-4
    assert all(e.removed is None and e.as_stated is None and e.tokens == [] for e in explanation.latents)


def test_a_model_in_bfloat16_throughout_explains_itself():
    model = tiny_reward_model().to(torch.bfloat16)
    ids, mask = pad_texts(tiny_texts(), torch.device("cpu"))
    found = model.explain(ids, mask)
    with torch.no_grad():
        torch.testing.assert_close(found.reward, model(ids, mask).logits[:, 0])
    assert model.rewards_without(model.config.latent_ids[:2], ids, mask).shape == (6, 2)


def test_padding_on_either_side_changes_no_explanation():
    model, texts = tiny_reward_model(), tiny_texts()
    right = model.explain(*pad_texts(texts, torch.device("cpu")))
    width = max(map(len, texts))
    padded = torch.tensor([[0] * (width - len(text)) + text for text in texts])
    left = model.explain(padded, (padded != 0).long())
    torch.testing.assert_close(left.contributions, right.contributions, rtol=1e-4, atol=1e-3)
    for i, text in enumerate(texts):
        parts = right.token_contributions[i, : len(text)]
        torch.testing.assert_close(left.token_contributions[i, width - len(text) :], parts, rtol=1e-4, atol=1e-3)


def planted(cosine):
    """A reward that one direction decides; of those beside it one overlaps with it, and counts for half as much."""
    model = tiny_reward_model(representation_norm="none")
    directions = torch.eye(D_MODEL)[: len(model.config.latents)]
    directions[1] = cosine * directions[0] + (1 - cosine**2) ** 0.5 * directions[1]
    model.directions = directions
    with torch.no_grad():
        model.score.weight.zero_()
        model.score.weight[0, 0], model.score.weight[0, 1] = 1.0, 0.5
    return model


def test_a_direction_set_to_its_average_takes_away_what_it_adds():
    """Only where no other direction has a part of it; where one does, that is said."""
    tokenizer = tiny_tokenizer()
    apart, overlapping = (explain(planted(cosine), tokenizer, MESSAGES) for cosine in (0.0, 0.8))
    for explanation in (apart, overlapping):
        assert {effect.latent for effect in explanation.latents[:2]} == {3, 11}
        assert all(effect.contribution == 0 for effect in explanation.latents[2:])
        assert abs(explanation.unexplained) < 1e-4
    assert all(effect.as_stated for effect in apart.latents)
    by_latent = {effect.latent: effect for effect in overlapping.latents}
    assert not by_latent[3].as_stated
    expected = -by_latent[3].contribution * (1 + 0.5 * 0.8)
    assert by_latent[3].removed == pytest.approx(expected, rel=1e-4)


def test_a_pair_is_explained_by_what_differs(trained):
    model, tokenizer = load_reward_model(str(trained), torch.device("cpu"))
    row = make_rows(1, seed=6)[0]
    chosen, rejected = (explain(model, tokenizer, row["prompt"] + row[side]) for side in ("chosen", "rejected"))
    difference = contrast(chosen, rejected)
    assert sum(difference.values()) == pytest.approx(chosen.reward - rejected.reward, abs=1e-4)
    sizes = [abs(value) for value in difference.values()]
    assert sizes == sorted(sizes, reverse=True) and set(difference) == set(model.config.latent_ids)


def test_an_mlp_is_attributed_by_integrated_gradients():
    model = tiny_reward_model(head_type="mlp", head_hidden_size=8)
    explanation = explain(model, tiny_tokenizer(), MESSAGES)
    total = sum(effect.contribution for effect in explanation.latents)
    assert explanation.unexplained == pytest.approx(explanation.reward - explanation.base - total, abs=1e-5)
    assert abs(explanation.unexplained) < 0.01 * abs(explanation.reward - explanation.base)
    assert explanation.tokens[-1].running_reward == pytest.approx(explanation.reward, rel=1e-4)
    assert sum(token.contribution for token in explanation.tokens) == pytest.approx(total, rel=1e-3)
    ids = torch.tensor([tiny_texts()[0]])
    with pytest.raises(ValueError, match="not a sum over its features"):
        model.explain(ids)


def test_the_command_explains_texts_and_pairs(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    row = make_rows(1, seed=6)[0]
    rows = [row, {"id": 7, "prompt": row["prompt"], "completion": row["chosen"]}]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert main(["explain", str(trained), source, "--top", "3"]) == 0
    printed = capsys.readouterr().out
    assert "Row 1" in printed and "chosen loses by 0." in printed and "of latents" in printed
    assert row["chosen"][0]["content"] in printed.replace("\n", " ")
    out = tmp_path / "out.jsonl"
    assert main(["explain", str(trained), source, "--output", str(out)]) == 0
    pair, text = (json.loads(line) for line in out.read_text().splitlines())
    model, tokenizer = load_reward_model(str(trained), torch.device("cpu"))
    scored = list(score_rows(model, tokenizer, rows))
    assert pair["chosen_reward"] == pytest.approx(scored[0]["chosen_reward"], abs=1e-4)
    assert text["reward"] == pytest.approx(scored[1]["reward"], abs=1e-4) and text["id"] == 7
    explanation = text["explanation"]
    parts = sum(latent["contribution"] for latent in explanation["latents"])
    assert explanation["base"] + parts == pytest.approx(text["reward"], abs=1e-4)
    assert len(explanation["latents"]) == len(model.config.latents)
    assert sum(latent["removed"] is not None for latent in explanation["latents"]) == 10
    assert next(iter(pair["difference"].values())) == max(pair["difference"].values(), key=abs)
    assert main(["explain", str(trained), source, "--output", str(out)]) == 2, "nothing is overwritten"
    bad = write_jsonl(tmp_path / "bad.jsonl", [row, {"nothing": 1}])
    assert main(["explain", str(trained), bad, "--output", str(tmp_path / "some.jsonl")]) == 2
    assert f"{bad}, row 2 has the columns nothing" in capsys.readouterr().err
    first, second = map(json.loads, (tmp_path / "some.jsonl").read_text().splitlines())
    assert first["difference"] and "row 2 has the columns nothing" in second["reward_error"]


def test_it_explains_without_this_package(reward_model):
    code = f"""
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained({reward_model!r}, trust_remote_code=True)
found = model.explain(torch.tensor([[1, 9, 3, 4, 5, 12, 7, 30]]))
assert abs(found.base + found.contributions.sum() - found.reward).item() < 1e-3
print(model.rewards_without([model.config.latents[0].id], torch.tensor([[1, 9, 3, 4, 5, 12]])).shape)
"""
    run = without_package(code)
    assert run.returncode == 0 and "torch.Size([1, 1])" in run.stdout, run.stderr


def test_steering_lasts_wherever_the_model_goes_and_can_be_undone(trained, tmp_path):
    model, tokenizer = load_reward_model(str(trained), torch.device("cpu"))
    rows = [{"messages": row["prompt"] + row["chosen"]} for row in make_rows(6, seed=8)]
    before = [row["reward"] for row in score_rows(model, tokenizer, rows)]
    latent = explain(model, tokenizer, rows[0]["messages"]).latents[0].latent
    model.steer({latent: 0.0})
    steered = [row["reward"] for row in score_rows(model, tokenizer, rows)]
    dropped = next(e for e in explain(model, tokenizer, rows[0]["messages"]).latents if e.latent == latent)
    assert dropped.contribution == 0 and dropped.own == 0 and steered[0] != pytest.approx(before[0], abs=1e-4)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    again, tokenizer = load_reward_model(str(tmp_path / "model"), torch.device("cpu"))
    assert [row["reward"] for row in score_rows(again, tokenizer, rows)] == pytest.approx(steered, abs=1e-5)
    function = SparseRMReward(str(tmp_path / "model"))
    messages = [row["messages"] for row in rows]
    given = function([m[:1] for m in messages], [m[1:] for m in messages])
    assert given == pytest.approx(steered, abs=1e-4)
    texts = [tokenizer.apply_chat_template(m, tokenize=False) for m in messages]
    found = pipeline("text-classification", model=again, tokenizer=tokenizer)(texts)
    assert [entry["score"] for entry in found] == pytest.approx(steered, abs=1e-4)
    with TestClient(create_app(again, tokenizer, "model"), base_url="http://localhost") as client:
        served = client.post("/score", json={"rows": rows}).json()
    assert [row["reward"] for row in served["rows"]] == pytest.approx(steered, abs=1e-4)
    again.steer({latent: 1.0})
    assert again.config.steering == {}
    assert [row["reward"] for row in score_rows(again, tokenizer, rows)] == pytest.approx(before, abs=1e-5)


@pytest.mark.parametrize(
    "factors, sentence", [({1: 2.0}, "Latent 1 is not one"), ({3: float("nan")}, "finite number")]
)
def test_steering_refuses_what_it_cannot_do(factors, sentence):
    model = tiny_reward_model()
    with pytest.raises(ValueError, match=sentence):
        model.steer(factors)
    assert model.config.steering == {}


def test_explanations_name_what_the_user_named(reward_model, tmp_path, capsys):
    model = AutoModelForSequenceClassification.from_pretrained(reward_model)
    model.config.change_latents(label={8: "politeness", 3: "[/INST] [b]"})
    model.save_pretrained(reward_model)
    model, tokenizer = load_reward_model(reward_model, torch.device("cpu"))
    names = {effect.latent: effect.name for effect in explain(model, tokenizer, MESSAGES).latents}
    assert names[8] == "politeness" and names[11] == ""
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"messages": MESSAGES}])
    assert main(["explain", reward_model, rows]) == 0
    assert "[/INST] [b]" in capsys.readouterr().out  # as it is: not taken for markup


def test_latents_are_shown_with_the_passages_they_fire_on(world, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    cache = ["--cache_dir", str(tmp_path / "cache")]
    assert main(["latents", str(trained), str(world / "train.jsonl"), "--top", "2", "--examples", "1", *cache]) == 0
    printed = capsys.readouterr().out
    assert "120 pairs" in " ".join(printed.split()), "a long path breaks the title"
    assert "strongest" in printed and "weakest" in printed
    out = tmp_path / "latents.jsonl"
    arguments = [str(trained), str(world / "train.jsonl"), "--top", "16", "--output", str(out), *cache]
    assert main(["latents", *arguments]) == 0
    reports = [json.loads(line) for line in out.read_text().splitlines()]
    model, tokenizer = load_reward_model(str(trained), torch.device("cpu"))
    assert {report["latent"] for report in reports} == set(model.config.latent_ids)
    importances = [report["importance"] for report in reports]
    assert importances == sorted(importances, reverse=True) and importances[0] > 0
    for report in reports:
        # On the training pairs the separation is the difference of the two rates.
        assert report["firing_chosen"] - report["firing_rejected"] == pytest.approx(report["separation"], abs=1e-5)
        assert abs(report["length_correlation"]) <= 1 and report["link"] is None
        strengths = [max(passage["activations"]) for passage in report["strongest"]]
        assert strengths == sorted(strengths, reverse=True) and min(strengths) > 0  # only where it fires
        for passage in report["strongest"]:
            assert len(passage["tokens"]) == len(passage["activations"])
    # The strongest passage of all, looked up by hand.
    report = reports[0]
    strongest = 0.0
    for row in map(json.loads, (world / "train.jsonl").read_text().splitlines()):
        for side in ("chosen", "rejected"):
            text = tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=False)
            ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
            with torch.no_grad():
                hidden = model.model(input_ids=ids).last_hidden_state[0].float()
            start = max(
                i
                for i, token in enumerate(ids[0].tolist())
                if token == tokenizer.convert_tokens_to_ids("<|assistant|>")
            )
            strongest = max(strongest, model.sae.encode(hidden[start + 1 :])[:, report["latent"]].max().item())
    assert max(report["strongest"][0]["activations"]) == pytest.approx(strongest, rel=1e-3)
