"""Render chat templates in a separate process with limits, and give up on a template that exceeds them twice.

A template is somebody else's program. transformers renders it in a sandbox, which keeps it from files and from
Python's internals, but not from an endless loop or from a text of a billion characters. No limit inside a Python
process stops both: one long operation cannot be interrupted, and memory is not given back. A process can be ended.
`template_process.py` is the code of that process.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from threading import RLock
from typing import Any

from .template_process import MOST_SECONDS

SCRIPT = Path(__file__).with_name("template_process.py")
MOST_FAILURES = 2  # a template that has exceeded its limits so often is not rendered again


class TemplateError(Exception):
    """A chat template that raised an error, or took too much time or memory."""


class Renderer:
    """Render chat templates one by one. The process starts with the first request, and anew after it was ended.

    Example:
        >>> Renderer().render(chat_template="{{ messages[0].content }}!", conversations=[[{"content": "Hello"}]])
        'Hello!'
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0  # id of the process that started `_process`: after a fork, the child must start its own
        self._failures: dict[str, int] = {}  # by template
        self._lock = RLock()
        atexit.register(self.stop)

    def render(self, **request: Any) -> str:
        """Render one conversation.

        Args:
            request: Arguments of transformers' `render_jinja_template`, with one conversation.

        Raises:
            TemplateError: The template raises an error, or takes too much time or memory.
        """
        template = request["chat_template"]
        with self._lock:
            if self._failures.get(template, 0) >= MOST_FAILURES:
                raise TemplateError(f"it took more than {MOST_SECONDS} seconds {MOST_FAILURES} times already")
            answer = self._ask(pickle.dumps(request))
            if not answer:
                self.stop()
                self._failures[template] = self._failures.get(template, 0) + 1
                raise TemplateError(f"it takes more than {MOST_SECONDS} seconds, or too much memory")
        answered = json.loads(answer)
        if "error" in answered:
            raise TemplateError(answered["error"])
        return str(answered["text"])

    def stop(self) -> None:
        """End the rendering process, if this process started it."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.communicate()

    def _ask(self, request: bytes) -> bytes:
        """Wait for the answer to a request; it is empty if the rendering process ended."""
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self.stop()
            self._owner = os.getpid()
            self._process = subprocess.Popen(
                [sys.executable, str(SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"USE_TORCH": "0"},  # else transformers 4 imports torch, which takes seconds
            )
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(request)
            self._process.stdin.flush()
            return self._process.stdout.readline()
        except BrokenPipeError:
            return b""
        except BaseException:  # interrupted: the next request would get this request's answer
            self.stop()
            raise


RENDERER = Renderer()
