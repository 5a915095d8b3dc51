"""The flusher's way to Redis: a connection that is asked one thing at a time.

redis-py makes it (address, TLS, password, database, name), then its transport speaks to the protocol here:
one write, one future, hiredis for the answer. What redis-py does besides for each command (packing it word by
word in Python, a task for sending, a stream for reading, timers of its own) cost more than all the rest of a batch.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import hiredis
from redis.asyncio import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, NoScriptError, ResponseError

from flows.deadlines import Deadlines

_NOTHING_YET = object()


def _refusal(text: str) -> ResponseError:
    """What Redis answers instead, as the exception redis-py would raise, as far as anybody here asks."""
    return (NoScriptError if text.startswith("NOSCRIPT") else ResponseError)(text)


class Wire(asyncio.Protocol):
    """Ask, wait, ask again: never two at once."""

    def __init__(self, connection: Connection, deadlines: Deadlines) -> None:
        """Takes over a connection of redis-py that is connected and waits for nothing."""
        self._connection = connection
        self._deadlines = deadlines
        self._answers = hiredis.Reader(protocolError=InvalidResponse, replyError=_refusal, notEnoughData=_NOTHING_YET)
        self._asked: asyncio.Future[Any] | None = None
        self._transport: Any = connection._writer.transport  # type: ignore[union-attr]
        self._transport.set_protocol(self)

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    async def ask(self, words: Sequence[bytes | str], timeout_s: float) -> Any:
        """The answer, which must not be nil. Raises ResponseError when Redis refuses; OSError, RedisError or
        TimeoutError when there is no answer, and then, as after a cancellation, the connection is closed: a
        late answer is never taken for another's."""
        if not self.is_open:
            raise RedisConnectionError("the connection to Redis was closed")
        asked = self._asked = self._deadlines.loop.create_future()
        self._deadlines.add(asked, timeout_s)
        self._transport.write(hiredis.pack_command(tuple(words)))  # type: ignore[arg-type]  # its tuple is of any length
        try:
            answer = await asked
        except BaseException:
            self._transport.abort()
            raise
        if answer is None:
            self._transport.abort()
            raise TimeoutError("Redis did not answer in time")
        if isinstance(answer, ResponseError):
            raise answer
        return answer

    async def close(self) -> None:
        await self._connection.disconnect(nowait=True)

    # --- called by the transport ------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._answers.feed(data)
        try:
            answer = self._answers.gets()
            while isinstance(answer, hiredis.PushNotification):  # a word of Redis' own, of maintenance for example
                answer = self._answers.gets()
        except InvalidResponse as problem:
            return self._fail(problem)
        if answer is not _NOTHING_YET and self._asked is not None and not self._asked.done():
            self._asked.set_result(answer)
        return None

    def connection_lost(self, problem: Exception | None) -> None:
        self._fail(problem or RedisConnectionError("Redis closed the connection"))

    def _fail(self, problem: Exception) -> None:
        if self._asked is not None and not self._asked.done():
            self._asked.set_exception(problem)
