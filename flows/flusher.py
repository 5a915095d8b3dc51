"""One task a process that carries checkpoints from the tracker's queue to the log.

Group commit: whatever waits goes in one round trip, so concurrent turns share it; while a batch is
on its way the next one gathers. The connection is the flusher's own, so that no client's disconnect
can cancel a write half-way.

When Redis was restarted, failed over or flushed, what it acknowledged lately may be gone (`appendfsync
everysec`, a replica that lagged behind): the turns that may not be stored yet are appended once more.

With Redis away (an error, or no answer within a second) the circuit opens: whole turns go straight
to PostgreSQL through the same idempotent `store()`. When Redis answers again, what went around it
is appended to the users' streams and the epoch changes, so that watchers take a fresh snapshot.
A write of unknown fate may so end up in both places; every reader knows a flow_id it has.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import Error, connection
from redis.exceptions import NoScriptError, RedisError

from flows import keys, log
from flows.checkpoints import Checkpoint
from flows.redis import new_connection, was_cancelled
from flows.store import is_refusal, store
from flows.wire import Wire
from omni2.database import in_database

if TYPE_CHECKING:
    from flows.tracker import FlowTracker, TurnTrack

logger = logging.getLogger(__name__)

BATCH_CHECKPOINTS = 500
BATCH_BYTES = 1024 * 1024
APPEND_TIMEOUT_S = 1.0
PROBE_EVERY_S = 1.0
STORE_TIMEOUT_S = 10.0
RETRY_PAUSE_S = (0.1, 0.2, 0.5, 1.0, 2.0)
AGAIN_WITHIN_S = 5.0
"""How long a turn that ended is kept at least, should Redis lose what it acknowledged: an append-only file that is
synced every second may be two behind. Then it is kept until it is stored."""

AGAIN_CHECKPOINTS = 20_000
"""So much of turns that ended is kept beyond that time, while the persister is behind or away."""

LOOK_EVERY_S = 2.0

KEPT_FOR_REDIS = 20_000
"""Checkpoints that went around Redis and are appended when it is back; beyond it the oldest are
left out (watchers get them from PostgreSQL in their fresh snapshot)."""


class DeclaredDead(Exception):
    """The sweep took this process for dead, while it stood still, and ended its turns."""


# What Redis and the way to it can answer with; a wrong argument of ours is not among them.
REDIS_AWAY = (RedisError, OSError, TimeoutError, asyncio.IncompleteReadError)


async def _answers() -> bool:
    """Whether Redis answers within a second, on a connection of its own."""
    connection = new_connection(client_name="omni2-probe")
    try:
        async with asyncio.timeout(APPEND_TIMEOUT_S):
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_command("PING", check_health=False)
            await connection.read_response()
    except REDIS_AWAY:
        return False
    finally:
        with contextlib.suppress(*REDIS_AWAY):
            await connection.disconnect(nowait=True)
    return True


_IS_DEAD = "SELECT FROM serving_processes WHERE process_id = %s AND ended_at IS NOT NULL"


def _store_if_alive(process_id: str, documents: Sequence[bytes]) -> None:
    """`store()` while Redis is away, where no fence can be asked. Raises DeclaredDead besides what it raises."""
    with connection.cursor() as cursor:
        cursor.execute(_IS_DEAD, [process_id])
        if cursor.fetchone() is not None:
            raise DeclaredDead
    store(documents)


class Flusher:
    """The writer of one FlowTracker on one event loop."""

    def __init__(self, tracker: "FlowTracker", loop: asyncio.AbstractEventLoop) -> None:
        self.tracker = tracker
        self.loop = loop
        self.redis_away = not settings.REDIS_ENABLED
        self.postgres_away = False
        self.batches = 0
        self._wire: Wire | None = None
        self._run_id = b""
        self._next_probe = 0.0
        self._asking: asyncio.Task[bool] | None = None
        self._around: list[Checkpoint] = []
        self._left_out: set[str] = set()
        """users of whom more went around Redis than is kept: their streams begin anew, without a gap"""
        self._origin = b""
        self._next_look = time.monotonic() + LOOK_EVERY_S
        self._ended: deque[tuple[float, TurnTrack]] = deque()
        """turns whose end Redis acknowledged and that may not be stored yet, and when it did"""
        self._ended_rows = 0
        self._sleep: asyncio.Future[None] | None = None
        self._busy = False
        self._ending = False
        self._task = loop.create_task(self._run(), name="flusher")

    # --- life -----------------------------------------------------------------------------------

    def wake(self) -> None:
        """Called by the tracker when something waits and the flusher sleeps."""
        if self._sleep is not None and not self._sleep.done():
            self._sleep.set_result(None)

    async def drain(self, timeout_s: float) -> bool:
        """Wait until all that was recorded is written; False when the time was up first."""
        deadline = time.monotonic() + timeout_s
        while (self.tracker.queue or self._busy) and time.monotonic() < deadline:
            self.tracker.wake()
            await asyncio.sleep(0.005)
        return not self.tracker.queue and not self._busy

    async def stop(self) -> None:
        """End the task and its connection; what still waits stays in the queue."""
        # said twice: redis-py sends under asyncio.wait_for, which on Python 3.11 can swallow a cancellation
        self._ending = True
        if self._asking is not None:
            self._asking.cancel()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self._disconnect()

    async def _run(self) -> None:
        while not self._is_over():
            if not self.tracker.queue:
                await self._rest()
            batch: list[Checkpoint] = []
            try:
                await self._probe()
                batch = self._take()
                if batch:
                    self._busy = True
                    await self._deliver(batch)
                await self._look_after_the_log()
            except Exception:  # the one door of this worker: nothing may end it
                logger.exception("the flusher failed and tries again")
                self._put_back(batch)
                await asyncio.sleep(RETRY_PAUSE_S[-1])
            finally:
                self._busy = False

    def _is_over(self) -> bool:
        # a loop that ends cancels its tasks once, and waits for them for ever
        return self._ending or was_cancelled()

    async def _rest(self) -> None:
        """Sleep until a checkpoint comes; while Redis is away, at most until the next probe, and while it
        may still lose what it acknowledged, until the next look at it."""
        self._sleep = self.loop.create_future()
        rests_for_s = self._rests_for()
        if rests_for_s is not None:
            self.tracker.deadlines_here().add(self._sleep, rests_for_s)
        self.tracker.sleeper = self
        try:
            if self.tracker.queue:  # recorded between the look and the sleep, by another thread
                return
            await self._sleep
        finally:
            self.tracker.sleeper = None
            self._sleep = None

    def _rests_for(self) -> float | None:
        if not settings.REDIS_ENABLED:
            return None
        if self.redis_away:
            return PROBE_EVERY_S
        return LOOK_EVERY_S if self._ended or self.tracker.running else None

    # --- batches --------------------------------------------------------------------------------

    def _take(self) -> list[Checkpoint]:
        queue = self.tracker.queue
        batch: list[Checkpoint] = []
        size = 0
        while queue and len(batch) < BATCH_CHECKPOINTS and size < BATCH_BYTES:
            checkpoint = queue.popleft()
            checkpoint.turn.taken += 1
            size += len(checkpoint.document)
            batch.append(checkpoint)
        return batch

    def _put_back(self, batch: Sequence[Checkpoint]) -> None:
        for checkpoint in reversed(batch):
            checkpoint.turn.taken -= 1
            self.tracker.queue.appendleft(checkpoint)

    @staticmethod
    def _settle(batch: Sequence[Checkpoint]) -> None:
        counts: dict[TurnTrack, int] = {}
        for checkpoint in batch:
            counts[checkpoint.turn] = counts.get(checkpoint.turn, 0) + 1
        for turn, count in counts.items():
            turn.settle(count)

    async def _deliver(self, batch: list[Checkpoint]) -> None:
        """Make one batch durable somewhere, however long it takes."""
        attempt = 0
        while not self._is_over() and (batch := self._of_the_living(batch)):
            try:
                if await self._try_once(batch):
                    return None
            except DeclaredDead:
                self.tracker.begin_again()
                continue
            pause = RETRY_PAUSE_S[min(attempt, len(RETRY_PAUSE_S) - 1)]
            attempt += 1
            await asyncio.sleep(pause)
            await self._probe()
        return self._put_back(batch)

    async def _try_once(self, batch: list[Checkpoint]) -> bool:
        """Whether it is durable now: in Redis, or in PostgreSQL while Redis is away."""
        if not self.redis_away:
            try:
                origin = await self._append(batch)
                if origin != self._origin:
                    await self._append_again(batch, origin)
            except REDIS_AWAY as problem:
                await self._open_circuit(problem)
            else:
                self.batches += 1
                self._settle(batch)
                self._remember_ends(batch)
                return True
        return await self._store(batch)

    def _of_the_living(self, batch: list[Checkpoint]) -> list[Checkpoint]:
        """The batch without the turns that the sweep has ended: what they did after their end is given up,
        and counted."""
        process_id = self.tracker.process_id
        living = [checkpoint for checkpoint in batch if checkpoint.turn.process_id == process_id]
        if len(living) < len(batch):
            lost = Counter(checkpoint.turn for checkpoint in batch if checkpoint.turn.process_id != process_id)
            for turn, count in lost.items():
                turn.lose(count, "their turn was ended while this process stood still")
        return living

    # --- Redis ----------------------------------------------------------------------------------

    async def _connected(self) -> Wire:
        """The connection; a fresh one when it was closed, that knows which Redis process it talks to: after a
        restart the first append makes a new epoch."""
        wire = self._wire
        if wire is None or not wire.is_open:
            connection = new_connection(client_name="omni2-flusher")
            async with asyncio.timeout(APPEND_TIMEOUT_S):
                await connection.connect()  # type: ignore[no-untyped-call]
            self._wire = wire = Wire(connection, self.tracker.deadlines_here())
            info = bytes(await wire.ask((b"INFO", b"server"), APPEND_TIMEOUT_S))
            self._run_id = info.partition(b"run_id:")[2][:40]
        return wire

    async def _disconnect(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            with contextlib.suppress(*REDIS_AWAY):
                await wire.close()

    async def _ask(self, words: Sequence[bytes | str]) -> Any:
        """Redis' answer within a second. Raises what REDIS_AWAY names."""
        wire = await self._connected()
        return await wire.ask(words, APPEND_TIMEOUT_S)

    async def _append(self, batch: Sequence[Checkpoint], *, way: log.Way = "live") -> bytes:
        """Append, and return the log's origin. Raises what REDIS_AWAY names, or DeclaredDead."""
        # one connection for all of it: the words name the Redis process they are for
        wire = await self._connected()
        words = log.pack_append(
            batch, self.tracker.is_monitored, run_id=self._run_id, way=way, writer=self.tracker.process_id
        )
        try:
            answer = await wire.ask(words, APPEND_TIMEOUT_S)
        except NoScriptError:
            await wire.ask((b"SCRIPT", b"LOAD", log.APPEND.source), APPEND_TIMEOUT_S)
            answer = await wire.ask(words, APPEND_TIMEOUT_S)
        if answer == log.FENCED:
            raise DeclaredDead
        return bytes(answer)

    async def _look_after_the_log(self) -> None:
        """See every few seconds whether the log is still the one that acknowledged, and how far it is stored."""
        now = time.monotonic()
        if self.redis_away or not self._origin or now < self._next_look:
            return
        self._next_look = now + LOOK_EVERY_S
        try:
            origin, waits_ms = await self._ask(log.pack_origin())
            if origin != self._origin:
                await self._append_again((), bytes(origin))
        except REDIS_AWAY as problem:
            if self.tracker.queue:
                await self._open_circuit(problem)
            else:
                # with nothing to write there is nothing to take another way
                await self._disconnect()
        except DeclaredDead:
            self.tracker.begin_again()
        else:
            # What was acknowledged before the oldest entry that waits is stored. Redis says how long that one
            # waits, to the millisecond, so no two clocks are compared; asked was at `now` or later.
            self._forget_ends(now - max(AGAIN_WITHIN_S, (waits_ms + 1) / 1000))
            self._forget_too_many(now)

    def _forget_ends(self, before: float, *, down_to: int = 0) -> None:
        """Forget turns that ended before that moment, the oldest first, until so many checkpoints are left."""
        while self._ended and self._ended[0][0] < before and self._ended_rows > down_to:
            _, turn = self._ended.popleft()
            self._ended_rows -= turn.recorded

    def _remember_ends(self, batch: Sequence[Checkpoint]) -> None:
        now = time.monotonic()
        for checkpoint in batch:
            if checkpoint.checkpoint == "flow_end":
                self._ended.append((now, checkpoint.turn))
                self._ended_rows += checkpoint.turn.recorded
        self._forget_too_many(now)

    def _forget_too_many(self, now: float) -> None:
        self._forget_ends(now - AGAIN_WITHIN_S, down_to=AGAIN_CHECKPOINTS)

    async def _append_again(self, batch: Sequence[Checkpoint], origin: bytes) -> None:
        """The log is not the one that acknowledged what went before this batch: append once more the turns
        that run, and those that ended lately, each from its first checkpoint on, this batch's too. Whoever has
        them already (table, relay, pages) knows them by their ids, and whoever finds a turn's first
        checkpoint in a stream finds all the others behind it."""
        if self._origin:
            ended = (turn for _, turn in self._ended)
            turns = dict.fromkeys([*ended, *self.tracker.running, *(checkpoint.turn for checkpoint in batch)])
            rows = [row for turn in turns for row in turn.checkpoints[: turn.taken]]
            logger.warning("Redis was restarted or flushed: %d checkpoints are appended once more", len(rows))
            for start in range(0, len(rows), BATCH_CHECKPOINTS):
                await self._append(rows[start : start + BATCH_CHECKPOINTS], way="again")
        self._origin = origin

    async def _open_circuit(self, problem: BaseException) -> None:
        await self._disconnect()
        self.redis_away = True
        self._next_probe = time.monotonic() + PROBE_EVERY_S
        logger.warning("Redis does not take checkpoints (%s): they go to PostgreSQL", type(problem).__name__)

    async def _probe(self) -> None:
        """With the circuit open, see once a second whether Redis is back. Asked is beside the flusher: a Redis
        that hangs takes the whole time-out to say nothing, and what waits in the queue must not wait for that."""
        if not self.redis_away or not settings.REDIS_ENABLED:
            return
        if self._asking is None:
            if time.monotonic() >= self._next_probe:
                self._next_probe = time.monotonic() + PROBE_EVERY_S
                self._asking = self.loop.create_task(_answers(), name="flusher asks Redis")
                self._asking.add_done_callback(lambda _: self.tracker.wake())
            return
        if not self._asking.done():
            return
        asked, self._asking = self._asking, None
        if not asked.result():
            return
        try:
            await self._come_back()
        except REDIS_AWAY:
            await self._disconnect()
            return
        except DeclaredDead:
            # what went around Redis is stored; under the new name it may be appended
            self.tracker.begin_again()
            return
        self.redis_away = False
        logger.warning("Redis takes checkpoints again")

    async def _come_back(self) -> None:
        """Append what went around the log, if anything did, to the users' streams (it is in PostgreSQL
        already, so not to the hand-off log), then change the epoch."""
        around = self._around
        if not around and not self._left_out:
            # nothing was missed, so nobody has to begin anew
            return
        if self._left_out:
            await self._ask((b"DEL", *map(keys.user_stream, self._left_out)))
        for start in range(0, len(around), BATCH_CHECKPOINTS):
            await self._append(around[start : start + BATCH_CHECKPOINTS], way="around")
        await self._ask((b"EVAL", log.NEW_EPOCH.source, b"1", keys.EPOCH, log.new_epoch_name()))
        self._around = []
        self._left_out = set()

    # --- PostgreSQL, while Redis is away ------------------------------------------------------------

    async def _store(self, batch: list[Checkpoint]) -> bool:
        """Store the whole of the batch's turns as far as the queue gave them out. False when
        PostgreSQL is away too."""
        turns = list(dict.fromkeys(checkpoint.turn for checkpoint in batch))
        rows = [row for turn in turns for row in turn.checkpoints[turn.in_postgres : turn.taken]]
        try:
            async with asyncio.timeout(STORE_TIMEOUT_S):
                await in_database(_store_if_alive, self.tracker.process_id, [row.document for row in rows])
        except (Error, TimeoutError, OSError) as problem:
            if isinstance(problem, Error) and is_refusal(problem):
                return await self._store_one_by_one(batch, turns)
            if not self.postgres_away:
                logger.warning("neither Redis nor PostgreSQL takes checkpoints (%s): they wait", type(problem).__name__)
            self.postgres_away = True
            return False
        self.postgres_away = False
        for turn in turns:
            turn.in_postgres = turn.taken
        self._settle(batch)
        if settings.REDIS_ENABLED:
            self._keep_for_redis(rows)
        return True

    def _keep_for_redis(self, rows: Sequence[Checkpoint]) -> None:
        self._around += rows
        left_out, self._around = self._around[:-KEPT_FOR_REDIS], self._around[-KEPT_FOR_REDIS:]
        self._left_out.update(row.user_id for row in left_out)

    async def _store_one_by_one(self, batch: list[Checkpoint], turns: Sequence["TurnTrack"]) -> bool:
        """One turn that cannot be stored must not hold the others up, nor one checkpoint the rest of its turn."""
        if len(turns) == 1:
            return await self._store_what_can_be(batch)
        waiting = list(batch)
        for turn in turns:
            own = [checkpoint for checkpoint in batch if checkpoint.turn is turn]
            if not await self._store(own):
                batch[:] = waiting
                return False
            waiting = [checkpoint for checkpoint in waiting if checkpoint.turn is not turn]
        return True

    async def _store_what_can_be(self, batch: list[Checkpoint]) -> bool:
        """Row by row; what PostgreSQL refuses is given up, and counted."""
        turn, own, refused = batch[0].turn, set(batch), 0
        for row in turn.checkpoints[turn.in_postgres : turn.taken]:
            try:
                async with asyncio.timeout(STORE_TIMEOUT_S):
                    await in_database(_store_if_alive, self.tracker.process_id, [row.document])
            except (Error, TimeoutError, OSError) as problem:
                if not (isinstance(problem, Error) and is_refusal(problem)):
                    self.postgres_away = True
                    return False
                # what Redis acknowledged before is the persister's to judge
                refused += row in own
        turn.in_postgres = turn.taken
        if refused:
            turn.lose(refused, "PostgreSQL refuses them")
        turn.settle(len(batch) - refused)
        return True
