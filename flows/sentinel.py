"""Where the primary is: asked of the sentinels whenever a connection is made.

Both kinds of clients use redis-py's pools for it. Only the question itself is ours. redis-py believes the first
sentinel that answers and reorders its list while it asks, which several tasks at once turn into a list with one
sentinel twice and another one missing. Here all are asked, and the newest configuration counts: a sentinel
that was cut off from the others still names the old primary.
"""

import asyncio
import weakref
from collections.abc import Iterable
from functools import cache
from typing import Any

import redis.asyncio.sentinel
import redis.sentinel
from django.conf import settings
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.retry import Retry as SyncRetry
from redis.sentinel import MasterNotFoundError

ASK_TIMEOUT_S = 0.25
"""How long one sentinel may take: an append gives up after a second, and the question comes before it."""

ASKING = {"socket_connect_timeout": ASK_TIMEOUT_S, "socket_timeout": ASK_TIMEOUT_S, "client_name": "omni2"}

Address = tuple[str, int]


class AsyncSentinels(redis.asyncio.sentinel.Sentinel):
    """The sentinels, all asked at the same time."""

    async def discover_master(self, service_name: str) -> Address:
        """Address of the primary; raises MasterNotFoundError, a ConnectionError, while there is none."""
        asked = (sentinel.sentinel_masters() for sentinel in self.sentinels)
        return _newest(service_name, await asyncio.gather(*asked, return_exceptions=True))


class Sentinels(redis.sentinel.Sentinel):
    """The sentinels, asked one after the other."""

    def discover_master(self, service_name: str) -> Address:
        """Address of the primary; raises MasterNotFoundError, a ConnectionError, while there is none."""
        return _newest(service_name, [_asked(sentinel) for sentinel in self.sentinels])


def _asked(sentinel: Any) -> Any:
    try:
        return sentinel.sentinel_masters()
    except (redis.RedisError, OSError) as problem:
        return problem


def _newest(name: str, answers: Iterable[Any]) -> Address:
    """The primary that the newest configuration names, if it is up."""
    states = [answer[name] for answer in answers if isinstance(answer, dict) and name in answer]
    if not states:
        raise MasterNotFoundError(f"no sentinel that answers knows {name!r}")
    newest = max(states, key=lambda state: (int(state["config-epoch"]), not _is_down(state)))
    if _is_down(newest):
        raise MasterNotFoundError(f"the sentinels wait for a new primary of {name!r}")
    return newest["ip"], int(newest["port"])


def _is_down(state: dict[str, Any]) -> bool:
    return bool(not state["is_master"] or state["is_sdown"] or state["is_odown"])


class BlockingPool(redis.asyncio.sentinel.SentinelConnectionPool, redis.asyncio.BlockingConnectionPool):
    """Connections to the primary; whoever wants one waits until one is free."""


class OwnConnection(redis.asyncio.sentinel.SentinelManagedConnection):
    """A connection outside any pool. It asks through a pool, and knows that only weakly."""

    asks: Any


def blocking_pool(**options: Any) -> BlockingPool:
    """A pool of connections to the primary, on the running loop."""
    return BlockingPool(  # type: ignore[no-untyped-call]
        settings.REDIS_SENTINEL_MASTER, _async_sentinels(), **_login(), **options
    )


def new_connection(**options: Any) -> OwnConnection:
    """A connection to the primary, not yet connected, on the running loop."""
    pool = redis.asyncio.sentinel.SentinelConnectionPool(  # type: ignore[no-untyped-call]
        settings.REDIS_SENTINEL_MASTER, _async_sentinels(), connection_class=OwnConnection, **_login(), **options
    )
    connection: OwnConnection = pool.make_connection()  # type: ignore[no-untyped-call]
    connection.asks = pool
    return connection


def sync_pool(**options: Any) -> redis.sentinel.SentinelConnectionPool:
    """A pool of connections to the primary, for synchronous processes."""
    return redis.sentinel.SentinelConnectionPool(  # type: ignore[no-untyped-call]
        settings.REDIS_SENTINEL_MASTER, _sentinels(), **_login(), **options
    )


def _login() -> dict[str, Any]:
    return {"password": settings.REDIS_PASSWORD or None, "db": settings.REDIS_DB}


def asking() -> dict[str, Any]:
    """The options of a connection to a sentinel."""
    return {**ASKING, "password": settings.REDIS_SENTINEL_PASSWORD or None}


_of_loop: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncSentinels]" = weakref.WeakKeyDictionary()


def _async_sentinels() -> AsyncSentinels:
    loop = asyncio.get_running_loop()
    if loop not in _of_loop:
        _of_loop[loop] = AsyncSentinels(  # type: ignore[no-untyped-call]
            settings.REDIS_SENTINELS, sentinel_kwargs={**asking(), "retry": Retry(NoBackoff(), 0)}
        )
    return _of_loop[loop]


@cache
def _sentinels() -> Sentinels:
    """One for the process: its connections may be used from any thread."""
    return Sentinels(  # type: ignore[no-untyped-call]
        settings.REDIS_SENTINELS, sentinel_kwargs={**asking(), "retry": SyncRetry(NoBackoff(), 0)}
    )
