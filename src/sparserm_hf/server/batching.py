"""Score the texts of many callers together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from ..conversations import TokenizedText
from ..scoring import Scores

T = TypeVar("T")


class QueueFullError(Exception):
    """The queue has no room for the texts of a request."""


class _Request:
    """The texts of a caller, and the scores that it has so far.

    Attributes:
        answer: Is done when all texts are scored, when scoring failed, or when the caller has left.
        waiting: Indices of the texts that are not scored yet, the shortest last.
    """

    def __init__(self, texts: list[TokenizedText]):
        self.texts = texts
        self.answer: asyncio.Future[Scores] = asyncio.get_running_loop().create_future()
        self.waiting = sorted(range(len(texts)), key=lambda i: len(texts[i].ids), reverse=True)
        self._scored: dict[int, tuple[np.ndarray, float, np.ndarray]] = {}

    def take(self, tokens: int) -> list[int]:
        """Take waiting texts, at least one, until they hold that many tokens; returns their indices."""
        taken: list[int] = []
        while self.waiting and tokens > 0:
            taken.append(self.waiting.pop())
            tokens -= len(self.texts[taken[-1]].ids)
        return taken

    def add(self, indices: list[int], scores: Scores) -> None:
        """Add scores of some of the texts; the last ones complete the answer."""
        self._scored |= dict(zip(indices, zip(*scores, strict=True), strict=True))
        if len(self._scored) == len(self.texts) and not self.answer.done():
            in_order = zip(*(self._scored[i] for i in range(len(self.texts))), strict=True)
            self.answer.set_result(Scores(*map(np.stack, in_order)))


Turn = list[tuple[_Request, list[int]]]  # requests, and which of their texts are scored now


class Batcher:
    """A queue of requests and one thread that scores as many of them at once as fit.

    While the thread scores, requests gather. The thread then takes texts of all requests, up to `share` tokens of each
    and `max_tokens` in all. So a lone request waits for nothing, many requests share batches of similar lengths, and a
    small request does not wait until a large one is done. A request whose caller has left is taken out of the queue.

    Args:
        score: Function that computes the scores of texts.
        max_waiting: Maximum number of waiting texts.
        max_tokens: Number of taken tokens at which the thread takes no further request.
        share: Number of taken tokens of a request at which the thread takes no more of its texts.
    """

    def __init__(self, score: Callable[[list[TokenizedText]], Scores], max_waiting: int, max_tokens: int, share: int):
        self.score, self.max_waiting, self.max_tokens, self.share = score, max_waiting, max_tokens, share
        self.waiting = 0  # texts
        self._requests: deque[_Request] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "score")

    async def submit(self, texts: list[TokenizedText]) -> Scores:
        """Wait for the scores of a request's texts; cancelling this call takes the request out of the queue.

        Raises:
            QueueFullError: Too many texts wait already.
        """
        self._check_room(len(texts))
        request = _Request(texts)
        self._requests.append(request)
        self.waiting += len(texts)
        self._arrived.set()
        try:
            return await request.answer
        finally:
            self.waiting -= len(request.waiting)
            request.waiting.clear()
            if request in self._requests:
                self._requests.remove(request)

    async def alone(self, computations: Sequence[Callable[[], T]], texts: int) -> list[T]:
        """Run computations on some texts in the thread that scores; batches can be scored between two computations.

        Raises:
            QueueFullError: Too many texts wait already.
        """
        self._check_room(texts)
        self.waiting += texts
        loop = asyncio.get_running_loop()
        try:
            return [await loop.run_in_executor(self._thread, compute) for compute in computations]
        finally:
            self.waiting -= texts

    def _check_room(self, texts: int) -> None:
        if self.waiting + texts > self.max_waiting:
            raise QueueFullError

    async def run(self) -> None:
        """Serve requests for ever; cancel it when all are answered."""
        try:
            while True:
                await self._arrived.wait()
                await self._score(self._take())
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _score(self, turn: Turn) -> None:
        """Score a turn's texts together. If that fails, score each request alone: only the bad one gets the error."""
        turn = [(request, taken) for request, taken in turn if not request.answer.done()]
        if not turn:
            return
        texts = [request.texts[i] for request, taken in turn for i in taken]
        try:
            scores = await asyncio.get_running_loop().run_in_executor(self._thread, self.score, texts)
        except Exception as error:
            for one in turn if len(turn) > 1 else []:
                await self._score([one])
            if len(turn) == 1 and not turn[0][0].answer.done():
                turn[0][0].answer.set_exception(error)
            return
        start = 0
        for request, taken in turn:
            stop = start + len(taken)
            request.add(taken, Scores(*(part[start:stop] for part in scores)))
            start = stop

    def _take(self) -> Turn:
        """Take the next texts; a request with texts left goes to the end of the queue."""
        turn: Turn = []
        tokens = 0
        for _ in range(len(self._requests)):
            if tokens >= self.max_tokens:
                break
            request = self._requests.popleft()
            taken = request.take(self.share)
            self.waiting -= len(taken)
            turn.append((request, taken))
            tokens += sum(len(request.texts[i].ids) for i in taken)
            if request.waiting and not request.answer.done():
                self._requests.append(request)
        if not self._requests:
            self._arrived.clear()
        return turn
