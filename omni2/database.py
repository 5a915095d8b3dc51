"""How async code reaches PostgreSQL: one short synchronous function at a time.

No connection is held while a turn streams: the function runs in one of a few threads, and its
connection is back in the pool before the caller continues. The threads are as many as the pool
has connections, so a thread never waits for one.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from django.conf import settings
from django.db import close_old_connections, connections

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
