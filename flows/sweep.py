"""The sweep: ends the turns of web processes that died, as `abandoned`.

It judges by the process' heartbeat row and PostgreSQL's clock, never by how long a turn takes. The
claim is a conditional update. The flow_end goes through the log like any other checkpoint, so that
watchers see it; should the process come back, one flow_end per turn is a unique index.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Any
from uuid import UUID

import redis
from django.conf import settings
from django.db import connection, transaction
from redis.exceptions import NoScriptError

from flows import keys, log
from flows.checkpoints import Checkpoint
from flows.models import InteractionFlow
from flows.redis import sync_client
from flows.store import store
from flows.tracker import FlowTracker, TurnTrack

logger = logging.getLogger(__name__)

Row = tuple[Any, ...]
"""A turn of a dead process: turn_id, process_id, and what else was asked."""

SWEEP_EVERY_S = 3.0
PATIENCE_S = 30
"""A heartbeat unseen for longer means a dead process: six beats."""

HANG_S = 3.0

STEP_S = 5.0
"""PostgreSQL's clock may run ahead of ours by so much from one look to the next. More is a step of the
clock, after which every heartbeat looks old."""

LATER_S = 2.0
"""How long after its process' end a turn is swept at the earliest: what the process sent last is in
the log by then."""

LOOK_ENTRIES = 2000
"""How much of a shard is read to see whether something of a turn is still in it."""

RECOVERY_S = 20.0
"""No judgement this soon after the sweep's own start or PostgreSQL's: processes must get the time
to renew a heartbeat they could not write."""

_CLAIM = """
UPDATE serving_processes SET ended_at = clock_timestamp()
WHERE ended_at IS NULL AND seen_at < clock_timestamp() - make_interval(secs => %s)
  AND pg_postmaster_start_time() < clock_timestamp() - make_interval(secs => %s)
RETURNING process_id
"""

# Turns still without an end whose process has ended, in order or not. A turn whose process never
# wrote a heartbeat at all is judged by its own age.
_LEFT_OPEN = """
SELECT t.turn_id, t.process_id, t.user_id, t.session_id, t.started_at, greatest(p.seen_at, t.started_at) AS seen_at
FROM turns t LEFT JOIN serving_processes p USING (process_id)
WHERE t.outcome IS NULL
  AND (p.ended_at < %(before)s - make_interval(secs => %(later_s)s)
       OR (p.process_id IS NULL AND t.started_at < clock_timestamp() - interval '2 minutes'))
  AND EXISTS (SELECT FROM interaction_flows f WHERE f.flow_id = t.turn_id)
LIMIT 500
"""


# Also while Redis is full: whoever cannot be fenced off cannot be ended.
_FENCE = "#!lua flags=allow-oom\nreturn redis.call('SET', KEYS[1], '1', 'EX', ARGV[1])"


class Sweep:
    """Called beside the persister's loop; looks every few seconds."""

    def __init__(
        self,
        *,
        is_monitored: Callable[[str], bool],
        on_abandoned: Callable[[str, list[dict[str, Any]]], None],
        left_unsettled: Callable[[Any, float], Sequence[Row]] = lambda before, later_s: (),
    ) -> None:
        """`on_abandoned(turn_id, rounds)` gets the metadata of the turn's llm_complete checkpoints:
        what the dead process may not have counted as usage.

        `left_unsettled(before, later_s)`: (turn_id, process_id) of turns that are still to be settled though
        their process ended so long before, and though they have an end or no checkpoint at all in history."""
        self.is_monitored = is_monitored
        self.on_abandoned = on_abandoned
        self.left_unsettled = left_unsettled
        self.abandoned = 0
        self._looked: tuple[Any, float] | None = None
        self._tracker = FlowTracker()
        self._next = time.monotonic() + RECOVERY_S
        self._redis: redis.Redis | None = sync_client() if settings.REDIS_ENABLED else None

    def __call__(self) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        if now > self._next + RECOVERY_S:
            # this process stood still itself, or could not reach its servers: others may have, too
            self._next = now + RECOVERY_S
            return
        self._next = now + SWEEP_EVERY_S
        self.once()

    def once(self) -> int:
        """Claim dead processes; end the open turns of those claimed earlier, once the log is
        drained past that moment. Returns how many turns it ended."""
        asked = time.monotonic()
        before = self._postgres_now()
        if time.monotonic() - asked > HANG_S:
            # PostgreSQL stood still: every heartbeat looks old now
            self._next = time.monotonic() + RECOVERY_S
            return 0
        if self._clock_stepped(before, asked):
            logger.warning("PostgreSQL's clock was set forward: heartbeats are not judged for %d s", RECOVERY_S)
            self._next = asked + RECOVERY_S
            return 0
        claimed = self._claim()
        if claimed:
            logger.warning("%d web processes are dead", claimed)
        turns = self._nowhere_on_the_way(lambda: self._left_open(before))
        for turn in turns:
            self._abandon(*turn)
        for turn_id, *_ in self._nowhere_on_the_way(lambda: self.left_unsettled(before, LATER_S)):
            self._settle(turn_id)
        return len(turns)

    def _clock_stepped(self, postgres_now: Any, monotonic_s: float) -> bool:
        """Whether PostgreSQL's clock went on by much more than time did since the last look."""
        last, self._looked = self._looked, (postgres_now, monotonic_s)
        if last is None:
            return False
        return bool((postgres_now - last[0]).total_seconds() - (monotonic_s - last[1]) > STEP_S)

    @staticmethod
    def _postgres_now() -> Any:
        with connection.cursor() as cursor:
            cursor.execute("SELECT clock_timestamp()")
            return cursor.fetchone()[0]

    @staticmethod
    def _claim() -> int:
        """Declare silent processes dead; returns how many."""
        with connection.cursor() as cursor:
            cursor.execute(_CLAIM, [PATIENCE_S, RECOVERY_S])
            return len(cursor.fetchall())

    def _nowhere_on_the_way(self, find: Callable[[], Sequence[Row]]) -> Sequence[Row]:
        """The turns of dead processes that `find` finds, as far as nothing of them is left in the hand-off
        log (the persister deletes what it stored).

        First the processes are fenced off, so nothing of theirs is appended any more, should they only
        have stood still. Then the log is read, and then the turns are asked for again: what leaves the log
        in between is in PostgreSQL by then, its flow_end too."""
        found = find()
        if self._redis is None or not found:
            return found
        self._fence_off({str(process_id) for _, process_id, *_ in found if process_id})
        waiting = self._in_the_log([str(turn_id) for turn_id, *_ in found])
        # a turn that was not among them the first time may have a writer that is not fenced off
        seen = {turn_id for turn_id, *_ in found}
        return [row for row in find() if row[0] in seen and str(row[0]) not in waiting]

    def _in_the_log(self, turn_ids: Sequence[str]) -> set[str]:
        """Those of the turns of which something is in the hand-off log, or may be: their shard is too full
        to be read to its end. One round trip."""
        assert self._redis is not None
        shards = sorted({log.shard_of(turn_id) for turn_id in turn_ids})
        pipeline = self._redis.pipeline(transaction=False)
        for shard in shards:
            pipeline.xrange(keys.log_shard(shard), count=LOOK_ENTRIES)
        entries_of: dict[int, Any] = dict(zip(shards, pipeline.execute(), strict=True))

        def waits(turn_id: str) -> bool:
            entries = entries_of[log.shard_of(turn_id)]
            return len(entries) >= LOOK_ENTRIES or any(
                turn_id.encode() in fields.get(b"d", b"") for _, fields in entries
            )

        return {turn_id for turn_id in turn_ids if waits(turn_id)}

    def _fence_off(self, process_ids: Iterable[str]) -> None:
        """Let the log take nothing more of these processes; nor may they be half-way: one step each."""
        assert self._redis is not None
        for process_id in process_ids:
            self._redis.eval(_FENCE, 1, keys.fence(process_id), log.FENCE_SECONDS)

    @staticmethod
    def _left_open(before: Any) -> list[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            cursor.execute(_LEFT_OPEN, {"before": before, "later_s": LATER_S})
            rows: list[tuple[Any, ...]] = cursor.fetchall()
            return rows

    def _abandon(
        self, turn_id: Any, _process_id: Any, user_id: str, session_id: str, started_at: Any, seen_at: Any
    ) -> None:
        duration_ms = max(0.0, (seen_at - started_at).total_seconds() * 1000)
        flow_end = self._flow_end(str(turn_id), user_id, session_id, duration_ms)
        self._settle(turn_id)
        self._append([flow_end])
        self.abandoned += 1
        logger.warning("a turn was abandoned by its process", extra={"turn_id": turn_id})

    def _settle(self, turn_id: Any) -> None:
        with transaction.atomic():
            rounds = InteractionFlow.objects.filter(turn_id=turn_id, checkpoint="llm_complete").order_by("created_at")
            self.on_abandoned(str(turn_id), [dict(row or {}) for row in rounds.values_list("metadata", flat=True)])

    def _flow_end(self, turn_id: str, user_id: str, session_id: str, duration_ms: float) -> Checkpoint:
        track = TurnTrack(self._tracker, user_id, session_id)
        track.turn_id = turn_id
        metadata = {"outcome": "abandoned", "duration_ms": round(duration_ms, 3), "reason": "process_died"}
        made = Checkpoint(track, "flow_end", Checkpoint.known(track, turn_id), metadata)
        made.take_id(_id_of_the_end(turn_id))
        return made

    def _append(self, checkpoints: Iterable[Checkpoint]) -> None:
        lines = list(checkpoints)
        if self._redis is None:
            store([line.document for line in lines])
            return
        words = log.pack_append(lines, self.is_monitored)
        try:
            self._redis.execute_command(*words)  # type: ignore[no-untyped-call]
        except NoScriptError:
            self._redis.script_load(log.APPEND.source)
            self._redis.execute_command(*words)  # type: ignore[no-untyped-call]


def _id_of_the_end(turn_id: str) -> str:
    """The flow_id of a turn's abandoned end: always the same, a UUIDv7 of the turn's own time.

    Each persister sweeps. Should two of them end a turn at once, every reader takes the second entry
    for what it is, a repetition."""
    turn = UUID(turn_id)
    digest = int.from_bytes(sha256(b"abandoned " + turn.bytes).digest()[:8], "big")
    return str(UUID(int=turn.int >> 64 << 64 | 0b10 << 62 | digest >> 2))
