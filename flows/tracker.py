"""FlowTracker: all that chat calls. Recording is a plain call: no await, no I/O, cannot raise.

A recorded checkpoint waits in a bounded queue for the flusher (flows.flusher), which no client's
disconnect can cancel.
"""

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any

from flows.checkpoints import Checkpoint, Envelope
from flows.counts import HourCount, HourCounts, Report
from flows.deadlines import Deadlines
from flows.flusher import Flusher

logger = logging.getLogger(__name__)

QUEUE_LIMIT = 100_000
"""Checkpoints waiting in one process. Beyond it new ones are given up, counted and said; only the ends of
turns are still taken, so that none stays open for ever: as many as there are running turns."""

QUEUE_IS_FULL = "the queue is full"

# The start of a step, and the name of what ends it.
STEP_ENDS = {"llm_thinking": "llm_complete", "tool_call": "tool_result"}


class TurnTrack(Envelope):
    """One running turn as the tracker sees it: its checkpoints so far, and how many are durable."""

    __slots__ = (
        "_open",
        "_waiters",
        "cancel",
        "checkpoints",
        "count",
        "ended",
        "in_postgres",
        "lost",
        "process_id",
        "refused",
        "settled",
        "taken",
        "tracker",
    )

    def __init__(self, tracker: "FlowTracker", user_id: str, session_id: str) -> None:
        super().__init__(user_id, session_id)
        self.tracker = tracker
        self.process_id = tracker.process_id
        # All of them, while the turn runs: with Redis away the whole turn goes to PostgreSQL, since
        # what Redis acknowledged may not have got there yet and a child needs its parent.
        self.checkpoints: list[Checkpoint] = []
        self.taken = 0
        """how many of `checkpoints` the flusher has taken from the queue"""
        self.in_postgres = 0
        """how many of `checkpoints`, from the first, went to PostgreSQL directly"""
        self.settled = 0
        """how many are acknowledged by Redis, or by PostgreSQL while Redis is away"""
        self.refused = 0
        """how many more the turn made that the full queue did not take"""
        self.lost = 0
        """how many of `checkpoints` could be kept nowhere after all"""
        self.count: HourCount = tracker.uncounted
        """where the ledger counts it"""
        self.ended = False
        self.cancel: Callable[[], None] | None = None
        """put here by whoever serves the turn: ends his work on it"""
        self._open: dict[Checkpoint, None] = {}
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    @property
    def recorded(self) -> int:
        """How many checkpoints the turn made, those that had to be given up included."""
        return len(self.checkpoints) + self.refused

    @property
    def given_up(self) -> int:
        """How many of them are kept nowhere."""
        return self.refused + self.lost

    @property
    def durable(self) -> int:
        """How many of them the log has acknowledged."""
        return self.settled

    def record(self, checkpoint: str, parent: Checkpoint | None = None, /, **metadata: Any) -> Checkpoint:
        """Write down one fact. Returns it, to be named as a parent; never waits and never raises.

        The metadata belongs to the tracker from now on: do not change it. After `end()` nothing is
        recorded any more; it is counted as late.
        """
        made = Checkpoint(self, checkpoint, parent, metadata)
        if not self.turn_id:
            self.turn_id = made.flow_id
            self.count = self.tracker.counts.of(self.process_id, self.turn_id)
        elif parent is None and not self.checkpoints:
            made.take_id(self.turn_id)
        if self.ended:
            made.dropped = True
            self.tracker.late += 1
            self.count.late += 1
            return made
        if checkpoint in STEP_ENDS:
            self._open[made] = None
        elif parent is not None and parent in self._open and STEP_ENDS[parent.checkpoint] == checkpoint:
            del self._open[parent]
        tracker = self.tracker
        queue = tracker.queue
        if (parent is not None and parent.dropped) or (len(queue) >= QUEUE_LIMIT and checkpoint != "flow_end"):
            self._refuse(made)
            return made
        self.checkpoints.append(made)
        queue.append(made)
        if tracker.sleeper is not None:
            tracker.wake()
        return made

    def _refuse(self, made: Checkpoint) -> None:
        made.dropped = True
        self.refused += 1
        self.count.give_up(1, QUEUE_IS_FULL)
        self.tracker.give_up(1, QUEUE_IS_FULL, self.turn_id)

    def end(self, outcome: str, /, **metadata: Any) -> Checkpoint | None:
        """Close what is still open as `cancelled`, then write the turn's one flow_end. Later calls
        do nothing and return None.

        The end says how many checkpoints the turn made, itself included, and how many of them had to be
        given up: by that the ledger tells whether all the others are stored."""
        if self.ended or not self.checkpoints:
            self._forget()
            return None
        root = self.checkpoints[0]
        # the innermost first
        for start in tuple(self._open)[::-1]:
            self.record(STEP_ENDS[start.checkpoint], start, status="cancelled", duration_ms=self._since(start))
        metadata.setdefault("duration_ms", self._since(root))
        metadata["checkpoints"] = self.recorded + 1
        if self.given_up:
            metadata["given_up"] = self.given_up
        flow_end = self.record("flow_end", root, outcome=outcome, **metadata)
        self._forget()
        return flow_end

    def abandon(self) -> None:
        """Stop recording and end the work on it: the sweep has written this turn's flow_end."""
        self._forget()
        if self.cancel is not None:
            self.cancel()

    def _forget(self) -> None:
        recorded = self.recorded
        if not self.ended and recorded:
            count = self.count
            count.ended += 1
            count.made += recorded
            if self.given_up >= recorded:
                count.turns_given_up += 1
        self.ended = True
        self.tracker.running.pop(self, None)

    @staticmethod
    def _since(start: Checkpoint) -> float:
        """Milliseconds since the step began, by the monotonic clock."""
        return round((time.monotonic() - start.made_at_s) * 1000, 3)

    # --- the flusher's side ---------------------------------------------------------------------

    def settle(self, count: int) -> None:
        """`count` more checkpoints are acknowledged, or given up after all."""
        self.settled += count
        self.count.durable += count
        if self._waiters:
            self._wake_waiters()

    def _wake_waiters(self) -> None:
        reached = self.settled + self.given_up
        waiting = []
        for target, future in self._waiters:
            if future.done():
                continue  # its time was up, or its caller went away
            if reached < target:
                waiting.append((target, future))
            else:
                future.set_result(None)
        self._waiters = waiting

    def lose(self, count: int, reason: str) -> None:
        """`count` checkpoints of this turn are given up: they can be kept nowhere."""
        was_given_up = self.given_up >= self.recorded
        self.lost += count
        self.count.give_up(count, reason)
        if self.ended and self.given_up >= self.recorded and not was_given_up:
            # nothing of it can ever be stored
            self.count.turns_given_up += 1
        self.tracker.give_up(count, reason, self.turn_id)
        self._wake_waiters()

    async def acknowledged(self, timeout_s: float = 0.25) -> int:
        """Wait until all that was recorded so far is durable, at most `timeout_s`; returns how many
        checkpoints are durable then. Never raises but for the caller's own cancellation."""
        target = self.recorded
        if self.settled + self.given_up < target:
            deadlines = self.tracker.deadlines_here()
            future: asyncio.Future[None] = deadlines.loop.create_future()
            self._waiters.append((target, future))
            deadlines.add(future, timeout_s)
            await future
        return self.settled


class FlowTracker:
    """The tracker of one process: its queue, its running turns and what it counted.

    Used by one event loop at a time; the flusher starts on the loop of the first turn, since Daphne
    has no start-up hook.
    """

    def __init__(self) -> None:
        self.process_id = str(uuid.uuid4())
        self.queue: deque[Checkpoint] = deque()
        self.running: dict[TurnTrack, None] = {}
        self.flusher: Flusher | None = None
        self.sleeper: Flusher | None = None
        """the flusher while it sleeps: the next checkpoint wakes it"""
        self.is_monitored: Callable[[str], bool] = lambda user_id: False
        """asked by the flusher for each user of a batch, in memory; wiring puts the watch list here"""
        self.given_up = 0
        self.late = 0
        self.counts = HourCounts()
        self.uncounted = HourCount("", 0)
        """of turns that are none of this process's: reported to nobody"""
        self._deadlines: Deadlines | None = None

    def deadlines_here(self) -> Deadlines:
        """The running loop's deadlines."""
        loop = asyncio.get_running_loop()
        if self._deadlines is None or self._deadlines.loop is not loop:
            self._deadlines = Deadlines(loop)
        return self._deadlines

    def begin(self, *, user_id: str, session_id: str, turn_id: str = "") -> TurnTrack:
        """A new turn of this user in this session. No I/O; its first `record` makes it real.

        `turn_id` is for a caller that had to reserve something under it before: the first
        checkpoint then takes it as its flow_id.

        Called on the event loop that serves the turn."""
        loop = asyncio.get_running_loop()
        if self.flusher is None or self.flusher.loop is not loop:
            self.flusher = Flusher(self, loop)
        track = TurnTrack(self, user_id, session_id)
        if turn_id:
            track.turn_id = turn_id
            track.count = self.counts.of(track.process_id, turn_id)
        self.running[track] = None
        return track

    def report(self) -> Report:
        """What this process made of its turns so far: its word in the ledger, said with each heartbeat."""
        return self.counts.report(self.running)

    def begin_again(self) -> None:
        """The sweep took this process for dead, while it stood still, and ended its turns: leave them, and
        go on under a new name."""
        logger.error("this process was declared dead while it stood still: it ends its turns")
        self.process_id = str(uuid.uuid4())
        for turn in list(self.running):
            turn.abandon()

    def wake(self) -> None:
        """Let the flusher look at the queue."""
        sleeper, self.sleeper = self.sleeper, None
        if sleeper is not None:
            sleeper.wake()

    def give_up(self, count: int, reason: str, turn_id: str) -> None:
        """Count what could not be kept; /readyz and the pages show the number."""
        self.given_up += count
        logger.error("gave up %d checkpoints: %s", count, reason, extra={"turn_id": turn_id})


tracker = FlowTracker()
