"""Many short waits with one timer.

A timer of asyncio costs about 5 µs, as much as recording three checkpoints, and each turn waits
twice; nearly all of these waits end long before their time. So they share one timer, set for the
earliest.
"""

import asyncio


class Deadlines:
    """Ends futures of one event loop with None when their time is up."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._waiting: list[tuple[float, asyncio.Future[None]]] = []
        self._rings_at = float("inf")
        self._timer: asyncio.TimerHandle | None = None

    def add(self, future: "asyncio.Future[None]", timeout_s: float) -> None:
        """End the future in `timeout_s` unless it is done by then."""
        deadline = self.loop.time() + timeout_s
        self._waiting.append((deadline, future))
        if deadline < self._rings_at:
            self._set(deadline)

    def _set(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = deadline
        self._timer = self.loop.call_at(deadline, self._ring)

    def _ring(self) -> None:
        now = self.loop.time()
        waiting, self._waiting = self._waiting, []
        self._timer, self._rings_at = None, float("inf")
        for deadline, future in waiting:
            if future.done():
                continue
            # the loop may ring a hair early, by its clock's resolution
            if deadline <= now + 0.001:
                future.set_result(None)
            else:
                self._waiting.append((deadline, future))
        if self._waiting:
            self._set(min(deadline for deadline, _ in self._waiting))
