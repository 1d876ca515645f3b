"""Requests and answers of the server, as its OpenAPI describes them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema, model_validator

from .limits import MAX_EXPLAINED, MAX_TEXTS

Row = dict[str, Any]


def listed(value: Any) -> Any:
    """Put a string into a list; leave other values unchanged."""
    return [value] if isinstance(value, str) else value


ONE_OR_MORE = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_TEXTS},
    ]
}


class GetReward(BaseModel):
    """OpenRLHF's request: whole texts, prompt and response, as strings."""

    query: list[str] = Field(min_length=1, max_length=MAX_TEXTS)
    prompts: list[str] | None = None
    labels: list[Any] | None = None


class Rewards(BaseModel):
    """OpenRLHF's answer.

    With a linear head, `extra_logs` holds what each group of features adds to each reward. It also holds the rewards
    by objective of a combined reward model, and the `deviation` of an ensemble.
    """

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


Texts = Annotated[
    list[str],
    Field(min_length=1, max_length=MAX_TEXTS),
    BeforeValidator(listed),
    WithJsonSchema(ONE_OR_MORE, mode="validation"),
]


class Classify(BaseModel):
    """vLLM's request, as verl's reward loop sends it: whole texts, or the messages of one conversation."""

    input: Texts | None = None
    messages: list[Row] | None = Field(default=None, min_length=1)
    model: str | None = None

    @model_validator(mode="after")
    def check_one_of(self) -> Classify:
        """Refuse a request with both forms or with none."""
        if (self.input is None) == (self.messages is None):
            raise ValueError("Give either `input` or `messages`")
        return self


class Embed(BaseModel):
    """SGLang's request for rewards, as verl's reward loop sends it, in the form of OpenAI's embeddings."""

    input: Texts
    model: str | None = None


class Embedding(BaseModel):
    """The reward of one text, as an embedding of one number."""

    object: str = "embedding"
    index: int
    embedding: list[float]


class Embeddings(BaseModel):
    """SGLang's answer."""

    object: str = "list"
    model: str
    data: list[Embedding]


class Classified(BaseModel):
    """The reward of one text, where vLLM puts a probability."""

    index: int
    label: str = "reward"
    probs: list[float]
    num_classes: int = 1


class Classification(BaseModel):
    """vLLM's answer."""

    object: str = "list"
    model: str
    data: list[Classified]


class Score(BaseModel):
    """Rows as `sparserm score` takes them."""

    rows: list[Row] = Field(min_length=1, max_length=MAX_TEXTS)


class Explain(BaseModel):
    """Rows as `sparserm explain` takes them, and the number of latents to name."""

    rows: list[Row] = Field(min_length=1, max_length=MAX_EXPLAINED)
    top: int = Field(default=10, ge=1)


class Rows(BaseModel):
    """The rows of the request, with their rewards or explanations added."""

    rows: list[Row]


class Health(BaseModel):
    """The state of the server."""

    status: str = "ok"
    model: str


class Refusal(BaseModel):
    """An answer that reports an error in one sentence."""

    error: str
