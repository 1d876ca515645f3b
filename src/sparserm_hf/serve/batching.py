"""Score the texts of many callers together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from ..conversations.encoding import TokenizedText
from ..scoring import Scores

T = TypeVar("T")


class QueueFullError(Exception):
    """More texts wait than may wait."""


@dataclass(frozen=True)
class _Request:
    texts: list[TokenizedText]
    answer: asyncio.Future[Scores]


class Batcher:
    """A queue of requests and one thread that scores as many of them at once as fit.

    While the thread scores, requests gather; it then takes all of them up to `max_tokens`. So a lone request waits for
    nothing, and many share batches of similar lengths.

    Args:
        score: From texts to their scores.
        max_waiting: Most texts that may wait.
        max_tokens: Tokens at which the thread takes no further request.
    """

    def __init__(self, score: Callable[[list[TokenizedText]], Scores], max_waiting: int, max_tokens: int):
        self.score, self.max_waiting, self.max_tokens = score, max_waiting, max_tokens
        self.waiting = 0  # texts
        self._requests: deque[_Request] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "score")

    async def submit(self, texts: list[TokenizedText]) -> Scores:
        """Scores of a request's texts, when its turn has come.

        Raises:
            QueueFullError: Too many texts wait already.
        """
        if self.waiting + len(texts) > self.max_waiting:
            raise QueueFullError
        request = _Request(texts, asyncio.get_running_loop().create_future())
        self._requests.append(request)
        self.waiting += len(texts)
        self._arrived.set()
        return await request.answer

    async def alone(self, compute: Callable[[], T], texts: int) -> T:
        """Run something else on some texts in the thread that scores, between two batches.

        Raises:
            QueueFullError: Too many texts wait already.
        """
        if self.waiting + texts > self.max_waiting:
            raise QueueFullError
        self.waiting += texts
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, compute)
        finally:
            self.waiting -= texts

    async def run(self) -> None:
        """Serve requests for ever; cancel it when all are answered."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            batch = self._take()
            texts = [text for request in batch for text in request.texts]
            try:
                scores = await loop.run_in_executor(self._thread, self.score, texts)
            except Exception as error:  # every caller is told
                for request in batch:
                    if not request.answer.done():
                        request.answer.set_exception(error)
                continue
            start = 0
            for request in batch:
                stop = start + len(request.texts)
                if not request.answer.done():  # its caller may have left
                    request.answer.set_result(Scores(scores.features[start:stop], scores.rewards[start:stop]))
                start = stop

    def _take(self) -> list[_Request]:
        batch: list[_Request] = []
        tokens = 0
        while self._requests and (not batch or tokens < self.max_tokens):
            batch.append(self._requests.popleft())
            tokens += sum(len(text.ids) for text in batch[-1].texts)
            self.waiting -= len(batch[-1].texts)
        if not self._requests:
            self._arrived.clear()
        return batch
