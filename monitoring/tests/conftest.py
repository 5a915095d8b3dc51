"""What the tests of live delivery share: an empty log, a tracker that asks the watch list, tokens."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flows.redis import get_redis, sync_client
from flows.tracker import FlowTracker
from monitoring import consumers
from monitoring.watchlist import watchlist as the_watchlist


@pytest.fixture
def olga_token(olga: Any, token_of: Any) -> str:
    """The token of an operator: may watch, and may see all."""
    return token_of(olga)


@pytest.fixture
async def live(db: None) -> AsyncIterator[FlowTracker]:
    """An empty Redis, the process's watch list running, and a tracker that publishes by it."""
    with sync_client() as client:
        client.flushall()
    await the_watchlist.start()
    await the_watchlist.refresh()
    tracker = FlowTracker()
    tracker.is_monitored = the_watchlist.is_monitored
    yield tracker
    if tracker.flusher is not None:
        await tracker.flusher.stop()
    await the_watchlist.stop()
    # a line of the access log that came late would be found by the next test
    await asyncio.gather(*consumers._last_lines)
    await get_redis().aclose()
