"""Limits of the server, so that one caller cannot take it down."""

MAX_BODY = 32 * 2**20  # bytes of a request
BODY_SECONDS = 60  # for a request to arrive
MAX_TEXTS = 4096  # texts or rows of a request
MAX_EXPLAINED = 16  # rows of a request to explain
MAX_CHARACTERS = 1_000_000  # of a row or text; tokenising that many takes about a second
MAX_WAITING = 16_384  # texts in the queue
