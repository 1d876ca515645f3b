"""Chat templates are programs of somebody else: they are rendered in a process of its own, with limits.

transformers renders in a sandbox that keeps a template from files and from Python's insides, but not from a loop that
never ends or from a text of a billion characters. No limit inside a Python process holds against both: one long
operation cannot be interrupted, and memory that is taken is not given back. A process can be ended.
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
MOST_FAILURES = 2  # renderings that a template may fail to end, before it is not rendered any more


class TemplateError(Exception):
    """Why a chat template could not be rendered."""


class Renderer:
    """Renders chat templates one by one. The process starts with the first one, and again after it was ended.

    Example:
        >>> Renderer().render(chat_template="{{ messages[0].content }}!", conversations=[[{"content": "Hello"}]])
        'Hello!'
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0  # the process that started it: a fork of that one must start its own
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
        """End the process, if this process started one."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.communicate()

    def _ask(self, request: bytes) -> bytes:
        """Wait for the answer to a request; None if the process ended."""
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self.stop()
            self._owner = os.getpid()
            self._process = subprocess.Popen(
                [sys.executable, str(SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"USE_TORCH": "0"},  # transformers 4 would import it, which takes seconds
            )
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(request)
            self._process.stdin.flush()
            return self._process.stdout.readline()
        except BrokenPipeError:
            return b""
        except BaseException:  # interrupted before the answer: the next request would get it
            self.stop()
            raise


RENDERER = Renderer()
