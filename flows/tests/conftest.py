"""What the tests of the checkpoints' road share: an empty log, and a tracker of their own."""

from collections.abc import AsyncIterator, Iterator

import pytest

from flows.redis import get_redis, sync_client
from flows.tracker import FlowTracker


@pytest.fixture
def empty_log() -> Iterator[None]:
    """Redis without anything in it."""
    client = sync_client()
    client.flushall()
    yield
    client.close()


@pytest.fixture
async def tracker(empty_log: None) -> AsyncIterator[FlowTracker]:
    """A tracker with a flusher on this test's loop."""
    made = FlowTracker()
    yield made
    if made.flusher is not None:
        await made.flusher.stop()
    await get_redis().aclose()


@pytest.fixture
def monitored(tracker: FlowTracker) -> FlowTracker:
    """The tracker, with everybody monitored."""
    tracker.is_monitored = lambda user_id: True
    return tracker
