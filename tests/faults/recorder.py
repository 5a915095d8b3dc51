"""One more process that records turns, as it were: the run itself, into the product's Redis, at a pace of its own."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from django.conf import settings

from flows.redis import get_redis
from flows.tracker import FlowTracker
from tests.running import Running

A_TURN = 20
TICK_S = 0.01


class Recorder:
    """Turns of one user, one after the other; `made` are their checkpoints' flow_ids, in order."""

    def __init__(self, tracker: FlowTracker, user_id: str, *, size: int = 0) -> None:
        self.tracker, self.user_id = tracker, user_id
        self.metadata: dict[str, Any] = {"text": "x" * size} if size else {}
        self.made: list[str] = []
        self._turn: Any = None
        self._root: Any = None
        self._of_turn = 0

    def record(self) -> None:
        """The next checkpoint; a plain call, as in life."""
        if self._turn is None:
            self._turn = self.tracker.begin(user_id=self.user_id, session_id=str(uuid.uuid4()))
            self._of_turn, self._root = 0, self._turn.record("auth_check", status="passed")
            made = self._root
        elif self._of_turn < A_TURN - 1:
            made = self._turn.record("note", self._root, n=self._of_turn, **self.metadata)
        else:
            made, self._turn = self._turn.end("completed"), None
        self._of_turn += 1
        self.made.append(made.flow_id)

    async def run(self, rate: float, stop: asyncio.Event) -> None:
        """So many a second until `stop`, and the rest of the last turn."""
        began = time.monotonic()
        first = len(self.made)
        while not stop.is_set():
            due = int((time.monotonic() - began) * rate) - (len(self.made) - first)
            for _ in range(due):
                self.record()
            await asyncio.sleep(TICK_S)
        await self.end()

    async def end(self) -> None:
        """Close the turn; returns when all is acknowledged."""
        while self._turn is not None:
            self.record()
        assert self.tracker.flusher is not None
        assert await self.tracker.flusher.drain(30)


@asynccontextmanager
async def recorders(omni2: Running) -> AsyncIterator[FlowTracker]:
    """A tracker on this loop that writes to the product's Redis and publishes everything."""
    before, settings.REDIS_URL = settings.REDIS_URL, omni2.redis_url
    tracker = FlowTracker()
    tracker.is_monitored = lambda user_id: True
    try:
        yield tracker
    finally:
        if tracker.flusher is not None:
            await tracker.flusher.stop()
        await get_redis().aclose()
        settings.REDIS_URL = before
