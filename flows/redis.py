"""get_redis(): one Redis client per event loop, and the settings every connection shares."""

import asyncio
import weakref
from typing import Any

import redis as sync_redis
import redis.asyncio
from django.conf import settings
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.retry import Retry as SyncRetry

from flows import sentinel

CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 5.0
CONNECTIONS = 50

POOLED = "omni2"
"""The name Redis shows for a connection of a pool (CLIENT LIST); one of its own has another."""

_clients: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, redis.asyncio.Redis]" = weakref.WeakKeyDictionary()


class RedisDisabled(ConnectionError):
    """REDIS_ENABLED is false: there is no Redis to talk to."""


def connection_options() -> dict[str, Any]:
    """Time-outs on every wait; no silent retry: a repeated append would be a second entry, and a
    caller that waits for an answer learns soon that there is none."""
    return {"socket_connect_timeout": CONNECT_TIMEOUT_S, "socket_timeout": ANSWER_TIMEOUT_S, "client_name": POOLED}


def get_redis() -> redis.asyncio.Redis:
    """The running loop's client, made on first use; bytes in, bytes out. Waits for a free
    connection instead of failing. Raises RedisDisabled when Redis is switched off."""
    if not settings.REDIS_ENABLED:
        raise RedisDisabled("Redis is switched off (REDIS_ENABLED=false)")
    loop = asyncio.get_running_loop()
    client = _clients.get(loop)
    if client is None:
        options: dict[str, Any] = {
            "max_connections": CONNECTIONS,
            "timeout": ANSWER_TIMEOUT_S,
            "retry": Retry(NoBackoff(), 1),
            **connection_options(),
        }
        pool: redis.asyncio.BlockingConnectionPool
        if settings.REDIS_SENTINELS:
            pool = sentinel.blocking_pool(**options)
        else:
            pool = redis.asyncio.BlockingConnectionPool.from_url(settings.REDIS_URL, **options)
        client = redis.asyncio.Redis(connection_pool=pool)
        _clients[loop] = client
    return client


def new_connection(**options: Any) -> redis.asyncio.Connection:
    """A connection of one's own, not yet connected: for the flusher and the relay, which no request can cancel.
    With sentinels it goes to whoever is the primary when it is connected."""
    if not settings.REDIS_ENABLED:
        raise RedisDisabled("Redis is switched off (REDIS_ENABLED=false)")
    options = {"retry": Retry(NoBackoff(), 0), **connection_options(), **options}
    if settings.REDIS_SENTINELS:
        return sentinel.new_connection(**options)
    pool = redis.asyncio.ConnectionPool.from_url(settings.REDIS_URL, **options)
    connection: redis.asyncio.Connection = pool.make_connection()  # type: ignore[no-untyped-call]
    return connection


def sync_client() -> sync_redis.Redis:
    """A client for synchronous processes (persister, commands)."""
    if not settings.REDIS_ENABLED:
        raise RedisDisabled("Redis is switched off (REDIS_ENABLED=false)")
    options = {"retry": SyncRetry(NoBackoff(), 1), **connection_options()}
    if settings.REDIS_SENTINELS:
        return sync_redis.Redis.from_pool(sentinel.sync_pool(**options))
    return sync_redis.Redis.from_url(settings.REDIS_URL, **options)


def was_cancelled() -> bool:
    """Whether somebody cancelled the running task, even if nobody in between let it through:
    `asyncio.wait_for` of Python 3.11, inside redis-py, can swallow a cancellation."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
