"""What is answered at the door, before anybody is asked: too many turns at once in this process, or a
database that gives no answer to anyone.

Each open turn costs memory and a connection to the model; a database that hangs costs each request
its whole patience. Both are known without asking again for every request.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings

from chat.checks import Refused

BUSY_RETRY_S = 2
DATABASE_RETRY_S = 5
PROBE_EVERY_S = 1.0


class Turnstile:
    """Counts the requests that are being worked on, from their checks to their last word."""

    def __init__(self) -> None:
        self.inside = 0

    def is_full(self) -> bool:
        return self.inside >= settings.MAX_TURNS

    @contextmanager
    def passed(self) -> Iterator[None]:
        """While a request is inside. Raises Refused (503 `server_busy`) when there is no room."""
        if self.is_full():
            raise server_busy()
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


class DatabaseDoor:
    """Closed once the database could not be reached; then one request a second tries it again, and the
    others are refused at once. The first that is answered opens it."""

    def __init__(self) -> None:
        self.closed = False
        self.answered_at_s = time.monotonic()
        """when it last answered anybody"""
        self._next_probe_s = 0.0

    def pass_or_refuse(self) -> None:
        """Raises Refused (503 `database_unavailable`) while it is known that asking is in vain."""
        if not self.closed:
            return
        now_s = time.monotonic()
        if now_s < self._next_probe_s:
            raise database_unavailable()
        self._next_probe_s = now_s + PROBE_EVERY_S

    def answered(self) -> None:
        self.answered_at_s = time.monotonic()
        self.closed = False

    def failed(self) -> None:
        self.closed = True
        self._next_probe_s = time.monotonic() + PROBE_EVERY_S


def server_busy() -> Refused:
    """The answer to a request beyond OMNI2_MAX_TURNS."""
    words = "This server answers as many questions as it can at the moment."
    return Refused.because(503, "server_busy", words, retry_after_s=BUSY_RETRY_S)


def database_unavailable() -> Refused:
    """The answer to a request that cannot be checked, let alone written down."""
    words = "Omni2 cannot reach its database at the moment."
    return Refused.because(503, "database_unavailable", words, retry_after_s=DATABASE_RETRY_S)


turnstile = Turnstile()
database = DatabaseDoor()
