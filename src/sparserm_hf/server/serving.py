"""Serve a reward model."""

from __future__ import annotations

from pathlib import Path

from ..runtime import process_state
from ..scoring import load_reward_model
from .app import create_app
from .listening import check_host, run_app


def serve(
    model: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    max_length: int | None = None,
    dtype: str = "auto",
    revision: str | None = None,
    exact: bool = False,
) -> None:
    """Serve the rewards of a reward model over HTTP until the process is stopped.

    Args:
        model: Folder or Hub id of the reward model.
        host: Address to listen on. An address that other machines can reach needs a token.
        port: Port; 0 takes a free port.
        token: Bearer token that every request but `/health` must carry. Without a token, only this machine is served.
        max_length: Maximum number of tokens of a text; a longer text loses its start. Default: as in training.
        dtype: Type that the reward model runs in: `auto`, `float32` or `bfloat16`.
        revision: Revision of the reward model on the Hub.
        exact: Score each text alone, so that other requests do not change a bit of its reward.

    Raises:
        SparseRMError: The reward model cannot be loaded, the port is taken, or a token is missing.

    Example:
        ```python
        from threading import Thread

        from sparserm_hf import serve

        server = Thread(target=serve, args=("my-reward-model",), kwargs={"port": 0}, daemon=True)
        server.start()
        server.join(2)  # seconds; by then the server has printed its address
        ```
    """
    check_host(host, token)
    loaded, tokenizer = load_reward_model(model, process_state().device, dtype, revision)
    run_app(create_app(loaded, tokenizer, Path(model).name, token, max_length, exact=exact), host, port)
