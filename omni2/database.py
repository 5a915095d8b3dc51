"""How async code reaches PostgreSQL: one short synchronous function at a time.

No connection is held while a turn streams: the function runs in one of a few threads, and its
connection is back in the pool before the caller continues. The threads are as many as the pool
has connections, so a thread never waits for one.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, close_old_connections, connections

P = ParamSpec("P")
T = TypeVar("T")

_executor: ThreadPoolExecutor | None = None


def _give_back(work: Callable[[], T]) -> T:
    close_old_connections()
    try:
        return work()
    finally:
        # with a pool, close() returns the connection instead of ending it
        connections.close_all()


async def in_database(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a synchronous function that uses the ORM and return its result.

    One thread hop; the connection is returned to the pool before this returns. Cancelling the
    caller does not stop the function: it commits or fails by itself.
    """
    global _executor
    if _executor is None:
        _executor = ThreadPoolExecutor(
            max_workers=max(2, settings.DATABASE_POOL_SIZE - 2), thread_name_prefix="database"
        )
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_executor, partial(_give_back, partial(work, *args, **kwargs)))


def limit_statements(seconds: int) -> None:
    """Let PostgreSQL break off any statement of this process that takes longer. To be called before the first
    connection; not for migrations, and not for the persister, which has nothing else to do."""
    options = connections.settings[DEFAULT_DB_ALIAS]["OPTIONS"]
    options["options"] = f"{options.get('options', '')} -c statement_timeout={seconds * 1000}".strip()


class Lane:
    """One thread with a connection of its own, outside the pool, for what may never wait behind others:
    a heartbeat that stands in the queue of a busy process says that the process is dead."""

    STATEMENT_TIMEOUT_S = 5

    def __init__(self, name: str) -> None:
        self._name = name
        self._executor: ThreadPoolExecutor | None = None

    async def run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As `in_database`, but after nobody except what this lane was given before."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix=self._name, initializer=self._take_connection)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, partial(self._do, partial(work, *args, **kwargs)))

    def _take_connection(self) -> None:
        # Django keeps connections by thread
        shared = connections[DEFAULT_DB_ALIAS]
        options = {name: value for name, value in shared.settings_dict["OPTIONS"].items() if name != "pool"}
        options["options"] = f"{options.get('options', '')} -c statement_timeout={self.STATEMENT_TIMEOUT_S * 1000}"
        options["application_name"] = f"omni2 {self._name}"
        own: dict[str, Any] = {
            **shared.settings_dict,
            "OPTIONS": options,
            "CONN_MAX_AGE": None,
            "CONN_HEALTH_CHECKS": True,
        }
        connections[DEFAULT_DB_ALIAS] = shared.__class__(own, DEFAULT_DB_ALIAS)

    @staticmethod
    def _do(work: Callable[[], T]) -> T:
        close_old_connections()
        try:
            return work()
        except Exception:
            # whatever it was: the next one begins with a fresh connection
            connections.close_all()
            raise

    async def close(self) -> None:
        """End the connection; the lane can be used again."""
        executor, self._executor = self._executor, None
        if executor is not None:
            await asyncio.get_running_loop().run_in_executor(executor, connections.close_all)
            executor.shutdown(wait=False)
