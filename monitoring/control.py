"""The word between processes that monitoring or a setting changed: PostgreSQL has it, ask it now.

Only a wake-up call. Without Redis, or when a message is lost, the watch list asks by itself within
half a second; the message carries nothing that is believed.
"""

import asyncio
import logging
import threading
from collections.abc import Callable

from redis.exceptions import RedisError

from flows import keys
from flows.redis import RedisDisabled, get_redis, sync_client

logger = logging.getLogger(__name__)

RETRY_S = 1.0  # the watch list asks PostgreSQL twice in that time anyway


def announce(change: str) -> None:
    """Tell every process, after the commit. Returns at once and never raises: a thread of its own
    does the one PUBLISH, so a Redis that hangs cannot hold an admin's request."""
    threading.Thread(target=_publish, args=(change,), name="monitoring-control", daemon=True).start()


def _publish(change: str) -> None:
    try:
        with sync_client() as client:
            client.publish(keys.CONTROL_CHANNEL, change)
    except RedisDisabled:
        return
    except (RedisError, OSError) as problem:
        logger.warning("could not announce %s, processes find it by themselves: %s", change, problem)


async def listen(wake: Callable[[], None]) -> None:
    """Call `wake` at each word from another process, and once after each (re)connection, since a
    word may have been missed before it. Ends only when Redis is switched off."""
    while True:
        try:
            async with get_redis().pubsub(ignore_subscribe_messages=False) as subscription:
                await subscription.subscribe(keys.CONTROL_CHANNEL)
                _obey_cancellation()
                async for _ in subscription.listen():
                    wake()
        except RedisDisabled:
            return
        except (RedisError, OSError):
            logger.debug("no control channel for now", exc_info=True)
        await asyncio.sleep(RETRY_S)


def _obey_cancellation() -> None:
    """redis-py sends under wait_for(), which before Python 3.12 can swallow a cancellation that meets
    the end of the sending; this task would then listen for ever."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
