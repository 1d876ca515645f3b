"""The page on which pairs are labelled, as an HTTP application."""

from __future__ import annotations

from importlib import resources
from typing import Literal

from fastapi import FastAPI, HTTPException
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from ..server import BODY_SECONDS, CheckHost, ReceiveBody, RequireToken, answer_errors
from .session import Session, StaleError, State

PAGE = resources.files(__package__) / "label.html"
MAX_BODY = 10_000  # bytes of a request


class Answered(BaseModel):
    """An answer on the pair that is shown."""

    pair: int
    number: int
    side: Literal["left", "right", "neither"]


class Switched(BaseModel):
    """A latent that is switched on or off."""

    latent: int
    on: bool


def create_page(session: Session, token: str) -> FastAPI:
    """Create the application of a session's page.

    Args:
        session: The session.
        token: Bearer token that every request but the page itself must carry. The page reads it from the fragment
            of its address, which a browser does not send.
    """
    app = FastAPI(title="the labelling page", docs_url=None, redoc_url=None, openapi_url=None)

    def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text("utf-8"), headers={"Cache-Control": "no-store"})

    def answer(body: Answered) -> State:
        try:
            return session.answer(body.pair, body.number, body.side)
        except StaleError:
            raise HTTPException(409, "This pair was answered elsewhere: the next one is shown.") from None

    def switch(body: Switched) -> State:
        if not 0 <= body.latent < session.pool.texts.decoder.shape[0]:
            raise HTTPException(422, f"latent: The SAE has no latent {body.latent}.")
        return session.switch(body.latent, body.on)

    app.get("/", response_class=HTMLResponse)(page)
    app.get("/state")(session.state)
    app.post("/answer")(answer)
    app.post("/undo")(session.undo)
    app.post("/latent")(switch)
    app.post("/finish")(session.finish)
    answer_errors(app)
    app.add_middleware(ReceiveBody, limit=MAX_BODY, seconds=BODY_SECONDS)
    app.add_middleware(RequireToken, token=token, free=("/",))
    app.add_middleware(CheckHost)
    return app
