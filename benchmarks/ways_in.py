"""One conversation, one reward: by how much the ways into a reward model disagree, for each kind of chat template.

    python benchmarks/ways_in.py

Tiny random reward models, in float32, with a tokenizer for each kind of template of `tests/chat_templates.py`. Each
conversation of each shape is scored in every way with every pooling; the reference is `score_rows` with messages.
Writes `docs/ways_in.md`, a page of the manual, and exits with 1 where a difference is larger than `BOUND`.
"""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import torch
import transformers
from rich.console import Console
from rich.markdown import Markdown
from sparserm_hf.modeling.fields_sparserm import POOLINGS

from sparserm_hf import SparseRMReward
from sparserm_hf.conversations.chat_templates import render
from sparserm_hf.conversations.messages import Conversation
from sparserm_hf.runtime.checkpoint_folders import save_tokenizer
from sparserm_hf.scoring.reward_models import load_reward_model
from sparserm_hf.scoring.scored_rows import score_rows

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from chat_templates import TEMPLATES, Example, make_examples, prepared, reward_model_for  # noqa: E402
from tiny import ARCHITECTURES  # noqa: E402

BOUND = 1e-4
BATCH = 8  # texts that are padded together


class Ways:
    """The ways into one reward model; each returns a reward for each example, or raises.

    Args:
        folder: Of the checkpoint.
        examples: Conversations that its chat template takes.
    """

    def __init__(self, folder: str, examples: list[Example]):
        self.folder, self.examples = folder, examples
        self.model, self.tokenizer = load_reward_model(folder, torch.device("cpu"), "float32")
        self.texts = [render(self.tokenizer, Conversation(ex.messages, ex.tools)) for ex in examples]
        ends = [ex.end for ex in examples]
        self.cut = [text[: text.rindex(end) + len(end)] for text, end in zip(self.texts, ends, strict=True)]
        self.bos = self.tokenizer.bos_token or ""
        self.writes_bos = bool(self.bos) and self.texts[0].startswith(self.bos)

    @property
    def more_bos(self) -> list[str]:
        """The rendered texts with another begin-of-text token."""
        return [self.bos + text for text in self.texts]

    @property
    def no_bos(self) -> list[str]:
        """The rendered texts without the begin-of-text token that the template writes."""
        return [text.removeprefix(self.bos) for text in self.texts]

    def score_rows(self, rows: list[dict] | None = None) -> list[float]:
        """The rewards of rows; by default those of the examples, as messages."""
        rows = [ex.row for ex in self.examples] if rows is None else rows
        return [row["reward"] for row in score_rows(self.model, self.tokenizer, rows)]

    def predict(self) -> list[float]:
        """`model.predict`, which travels with the checkpoint."""
        rows = [{"messages": ex.messages, "tools": ex.tools} for ex in self.examples]
        return self.model.predict(rows, self.tokenizer, batch_size=BATCH)

    def of_texts(self, texts: list[str]) -> list[float]:
        """The rewards of rendered texts, as `sparserm score` reads them."""
        return self.score_rows([{"text": text} for text in texts])

    @torch.no_grad()
    def forward(self, ids: list[list[int]], batch: int = 1, side: str = "right") -> list[float]:
        """`forward` on token ids, padded on one side."""
        rewards: list[float] = []
        for i in range(0, len(ids), batch):
            given = self.tokenizer.pad({"input_ids": ids[i : i + batch]}, padding_side=side, return_tensors="pt")
            rewards += self.model(**given).logits[:, 0].tolist()
        return rewards

    def ids(self, texts: list[str] | None = None) -> list[list[int]]:
        """Token ids of rendered texts; by default those of `apply_chat_template(tokenize=True)`."""
        if texts is not None:
            return [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        return [
            self.tokenizer.apply_chat_template(ex.messages, tools=ex.tools, tokenize=True)["input_ids"]
            for ex in self.examples
        ]

    def command_line(self) -> list[float]:
        """`sparserm score` on a JSON Lines file."""
        from sparserm_hf.cli.main import main

        with TemporaryDirectory() as folder:
            path, output = Path(folder, "rows.jsonl"), Path(folder, "scored.jsonl")
            path.write_text("".join(json.dumps(ex.row) + "\n" for ex in self.examples))
            assert main(["score", self.folder, str(path), "--output", str(output)]) == 0
            return [json.loads(line)["reward"] for line in output.read_text().splitlines()]

    def served(self, path: str) -> list[float]:
        """`POST` to one path of the server."""
        from fastapi.testclient import TestClient

        from sparserm_hf.server.app import create_app

        with TestClient(create_app(self.model, self.tokenizer, "model"), base_url="http://localhost") as client:
            if path == "/score":
                answer = client.post(path, json={"rows": [ex.row for ex in self.examples]}).json()
                return [row["reward"] for row in answer["rows"]]
            if path == "/get_reward":
                return client.post(path, json={"query": self.texts}).json()["rewards"]
            return [item["probs"][0] for item in client.post(path, json={"input": self.texts}).json()["data"]]

    def reward_function(self) -> list[float]:
        """`SparseRMReward`, called as trainers call it."""
        function = SparseRMReward(self.folder, dtype="float32")
        prompts, completions = [ex.prompt for ex in self.examples], [ex.completion for ex in self.examples]
        return function(prompts, completions, tools=[ex.tools for ex in self.examples])

    def grpo(self) -> list[float]:
        """TRL's GRPOTrainer with the model as its reward model: its own code, from messages to rewards."""
        import trl

        policy = transformers.AutoModelForCausalLM.from_config(
            transformers.CONFIG_MAPPING["llama"](**ARCHITECTURES["llama"] | {"vocab_size": len(self.tokenizer)})
        )
        trainer = trl.GRPOTrainer(
            policy,
            reward_funcs=self.model,
            args=trl.GRPOConfig(f"{self.folder}/grpo", report_to="none", use_cpu=True, bf16=False),
            train_dataset=datasets.Dataset.from_list([{"prompt": self.examples[0].prompt}] * 8),
            processing_class=prepared(TEMPLATES["SmolLM2"]),
            reward_processing_classes=self.tokenizer,
        )
        prompts, completions = [ex.prompt for ex in self.examples], [ex.completion for ex in self.examples]
        inputs = [{"prompt": prompt} for prompt in prompts]
        return trainer._calculate_rewards(inputs, prompts, completions, [[]] * len(prompts))[:, 0].tolist()

    @torch.no_grad()
    def reward_trainer(self) -> list[float]:
        """TRL's RewardTrainer: its tokenisation, its collator and its model."""
        import trl

        rows = [
            {
                "prompt": ex.prompt,
                "chosen": ex.completion,
                "rejected": [{"role": "assistant", "content": "No."}],
                "tools": json.dumps(ex.tools),
            }
            for ex in self.examples
        ]
        trainer = trl.RewardTrainer(
            self.model,
            args=trl.RewardConfig(
                f"{self.folder}/rewards", report_to="none", use_cpu=True, bf16=False, max_length=None
            ),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=self.tokenizer,
        )
        rewards: list[float] = []
        for i in range(0, len(rows), BATCH):
            examples = [trainer.train_dataset[j] for j in range(i, min(i + BATCH, len(rows)))]
            logits = trainer.model(**trainer.data_collator(examples), use_cache=False).logits[:, 0]
            rewards += logits[: len(examples)].tolist()  # then follow the rejected ones
        return rewards

    def pipeline(self, **kwargs: object) -> list[float]:
        """The text-classification pipeline of transformers on rendered texts."""
        classify = transformers.pipeline("text-classification", self.model, tokenizer=self.tokenizer, device="cpu")
        return [answer["score"] for answer in classify(self.texts, batch_size=BATCH, **kwargs)]


# Those that need neither a server nor a trainer; the tests run them.
CHEAP: dict[str, Callable[[Ways], list[float]]] = {
    "text": lambda ways: ways.of_texts(ways.texts),
    "text, no tail": lambda ways: ways.of_texts(ways.cut),
    "text, BOS added": lambda ways: ways.of_texts(ways.more_bos),
    "text, BOS removed": lambda ways: ways.of_texts(ways.no_bos),
    "`SparseRMReward`": Ways.reward_function,
    "`model.predict`": Ways.predict,
    "/get_reward": lambda ways: ways.served("/get_reward"),
    "ids, alone": lambda ways: ways.forward(ways.ids()),
    "ids, left padding": lambda ways: ways.forward(ways.ids(), BATCH, "left"),
    "ids, right padding": lambda ways: ways.forward(ways.ids(), BATCH, "right"),
    "ids, no tail": lambda ways: ways.forward(ways.ids(ways.cut), BATCH, "left"),
    "ids, BOS added": lambda ways: ways.forward(ways.ids(ways.more_bos), BATCH, "left"),
    "ids, BOS removed": lambda ways: ways.forward(ways.ids(ways.no_bos), BATCH, "left"),
}
WAYS = CHEAP | {
    "`sparserm score`": Ways.command_line,
    "/score": lambda ways: ways.served("/score"),
    "/classify": lambda ways: ways.served("/classify"),
    "TRL GRPO": Ways.grpo,
    "TRL RewardTrainer": Ways.reward_trainer,
    "pipeline, default": Ways.pipeline,
    "pipeline, no function": lambda ways: ways.pipeline(function_to_apply="none"),
}
NOTES = (
    "The tokenizer has no begin-of-text token.",
    "The template writes no begin-of-text token.",
    "TRL's GRPO gives a reward model no tool schemas, so that it reads another conversation: that one is held against "
    "`score_rows` without `tools`.",
)


def note_of(name: str, bos: str | None, writes_bos: bool) -> int:
    """Number of the note that says why a way does not exist for a tokenizer; 0 where it does."""
    if "BOS" in name and not bos:
        return 1
    return 2 if "BOS removed" in name and not writes_bos else 0


def differences(chat_name: str, pooling: str, names: dict[str, Callable], folder: str) -> dict[str, dict[str, float]]:
    """Largest absolute difference to `score_rows` with messages, by way and shape.

    Args:
        chat_name: Of one of `TEMPLATES`.
        pooling: One of `POOLINGS`.
        names: Ways, by name.
        folder: To save the reward model in.
    """
    tokenizer = prepared(TEMPLATES[chat_name])
    reward_model_for(tokenizer, pooling).save_pretrained(folder)
    save_tokenizer(tokenizer, Path(folder))
    ways = Ways(folder, make_examples(TEMPLATES[chat_name].shapes))
    reference = torch.tensor(ways.score_rows(), dtype=torch.float64)
    assert reference.std() > 1000 * BOUND, "the conversations must differ, or equality shows nothing"
    found: dict[str, dict[str, float]] = {}
    for name, way in names.items():
        if note_of(name, ways.bos, ways.writes_bos):
            continue
        expected = reference
        if name == "TRL GRPO":
            expected = torch.tensor(ways.score_rows([ex.row | {"tools": None} for ex in ways.examples]))
        apart = (torch.tensor(way(ways), dtype=torch.float64) - expected).abs().tolist()
        by_shape: dict[str, float] = {}
        for example, value in zip(ways.examples, apart, strict=True):
            by_shape[example.shape] = max(by_shape.get(example.shape, 0.0), value)
        found[name] = by_shape
    return found


def table(found: dict[str, dict[str, dict[str, dict[str, float]]]]) -> list[str]:
    """Templates x ways, the largest difference over shapes and poolings, in lines of Markdown."""
    lines = [f"| | {' | '.join(found)} |", f"|---|{'---|' * len(found)}"]
    for name in WAYS:
        cells = []
        for chat_name, by_pooling in found.items():
            values = [v for by_way in by_pooling.values() for v in by_way.get(name, {}).values()]
            note = " (3)" if name == "TRL GRPO" and "tools" in TEMPLATES[chat_name].shapes else ""
            missing = note_of(name, TEMPLATES[chat_name].bos, False)
            cells.append(f"{max(values):.0e}{note}" if values else f"n/a ({missing})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def shapes_table() -> list[str]:
    """Which shapes each template takes."""
    shapes = list(dict.fromkeys(shape for chat in TEMPLATES.values() for shape in chat.shapes))
    lines = [f"| | {' | '.join(shapes)} |", f"|---|{'---|' * len(shapes)}"]
    for chat in TEMPLATES.values():
        lines.append(f"| {chat.name} | {' | '.join('yes' if s in chat.shapes else 'n/a' for s in shapes)} |")
    return lines


def main() -> int:
    logging.getLogger("sparserm_hf").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    found: dict = {}
    broken = []
    for chat_name in TEMPLATES:
        for pooling in POOLINGS:
            with TemporaryDirectory() as folder:
                cell = differences(chat_name, pooling, WAYS, folder)
            found.setdefault(chat_name, {})[pooling] = cell
            broken += [
                f"{chat_name}, {pooling}, {name}, {shape}: {value:.1e}"
                for name, by_shape in cell.items()
                for shape, value in by_shape.items()
                if not value <= BOUND
            ]
        print(f"{chat_name} is done", file=sys.stderr, flush=True)
    values = [v for p in found.values() for w in p.values() for shapes in w.values() for v in shapes.values()]
    lines = [
        "# Ways into a reward model\n",
        "This page shows that a conversation has the same reward by every way into a reward model: see "
        "[One conversation, one reward](conversations.md). A row is a way in, and a column is a chat template. A cell "
        "is the largest absolute difference from the reward that `score_rows` gives to messages, over all shapes of "
        "conversations that the template takes and the poolings "
        f"{', '.join(f'`{pooling}`' for pooling in POOLINGS)}. The models are tiny, random and in float32. Made by "
        f"`python benchmarks/ways_in.py` with transformers {transformers.__version__}, torch {torch.__version__}.\n",
        *table(found),
        "",
        *(f"- ({i}) {note}" for i, note in enumerate(NOTES, 1)),
        f"\nOverall maximum: {max(values):.1e}, with a bound of {BOUND:.0e}, over {len(values)} cells (template x "
        f"pooling x way x shape), {len(broken)} of them above it.\n",
        *(f"- {line}" for line in broken),
        "## Shapes\n",
        "n/a: the template has no place for it (no system turn, no tools, a field that it does not read), or drops it "
        "(DeepSeek R1 drops reasoning, so that nothing is left of reasoning alone).\n",
        *shapes_table(),
    ]
    text = "\n".join(lines) + "\n"
    (HERE.parent / "docs" / "ways_in.md").write_text(text)
    Console(width=220).print(Markdown(text))
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
