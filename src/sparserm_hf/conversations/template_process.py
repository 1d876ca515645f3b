"""The process that renders chat templates with limits on time and memory; `template_renderer.py` starts it.

It runs as a script and imports nothing from this package. Requests are pickled, as only the parent process writes
them. Answers are JSON, so that nothing a template has made is ever unpickled.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import pickle
import signal
import sys
from typing import Any, BinaryIO

MOST_SECONDS = 5  # of one rendering
MOST_BYTES = 2**30  # of memory for renderings; on Linux
MOST_WRITTEN = 2**25  # characters that a template may write
TOO_MUCH = "it needs more than a gigabyte of memory"


def limit_memory() -> None:
    """Limit this process to ``MOST_BYTES`` beyond the memory that it uses now; on Linux only."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MOST_BYTES, now + MOST_BYTES))


def answer(request: dict[str, Any]) -> dict[str, str]:
    """Render one conversation; the answer holds its `text`, or an `error` message."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts = render_jinja_template(**request)[0]
        if len(texts[0]) > MOST_WRITTEN:
            return {"error": f"it writes more than {MOST_WRITTEN:,} characters"}
        return {"text": texts[0]}
    except MemoryError:
        return {"error": TOO_MUCH}
    except Exception as error:  # a template may raise anything
        return {"error": next(iter(str(error).strip()[:1000].splitlines()), type(error).__name__)}


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests, each with one line, until there are no more."""
    with open(os.devnull, "w") as nowhere:
        while True:
            try:
                request = pickle.load(requests)
            except EOFError:
                return
            # faulthandler's own thread ends the process when the time is up, even within one long operation.
            faulthandler.dump_traceback_later(MOST_SECONDS, exit=True, file=nowhere)
            line = json.dumps(answer(request))
            faulthandler.cancel_dump_traceback_later()
            answers.write(line.encode() + b"\n")
            answers.flush()


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its modules would hide others of the same names
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted parent ends this process itself
    import transformers.utils.chat_template_utils  # noqa: F401  # takes seconds, outside any time limit

    limit_memory()
    serve(sys.stdin.buffer, sys.stdout.buffer)
