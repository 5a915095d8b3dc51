"""The persister: a plain synchronous loop that moves checkpoints from the hand-off log to PostgreSQL.

Claim, store, commit, then acknowledge and delete. Killed anywhere, it loses nothing: what was not
acknowledged is read again by whoever holds the shard next, and storing twice is storing once.

One consumer per shard at a time, by a lease, so that parents come before their children. All
holders use the same consumer name: what an earlier one left pending is read first.
"""

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis
from django.db import Error, IntegrityError, connections
from redis.exceptions import RedisError, ResponseError

from flows import keys
from flows.redis import sync_client
from flows.store import is_refusal, missing_parents, store

logger = logging.getLogger(__name__)

LEASE_MS = 10_000
RENEW_EVERY_S = 3.0
BATCH_ENTRIES = 1_000
BLOCK_MS = 500
PARENT_PATIENCE_S = 300.0
"""How long an entry may wait for its parent before it counts as poison."""

WITHHELD_EVERY_S = 1.0
LOOK_BACK_EVERY_S = 5.0
"""How often a shard's pending entries are read again. An answer of Redis that was lost on its way,
or repeated by the client without a word, leaves entries that count as delivered."""

PAUSE_S = (0.1, 0.2, 0.5, 1.0, 2.0)

_RENEW = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry of a hand-off shard."""

    shard: int
    entry_id: bytes
    document: bytes


@dataclass(slots=True)
class Counts:
    """What this persister did since it started."""

    stored: int = 0
    repeated: int = 0
    dead: int = 0


@dataclass(slots=True)
class Shard:
    """A shard this persister holds."""

    number: int
    left_over: bool = True
    """whether pending entries of an earlier holder may be there: they are read before new ones"""
    withheld: bool = False
    """whether what is left over only waits for its parents"""
    withheld_until: float = 0.0


class Loop:
    """What runs beside the web processes, step by step, until `stop()`: the sweep and the watch list.
    Without Redis this is all there is to do; the Persister is a Loop that also reads the log."""

    def __init__(self) -> None:
        self._running = True
        self._beside: list[Callable[[], None]] = []

    def beside(self, work: Callable[[], None]) -> None:
        """Let `work` be called between steps; it decides itself whether it is time."""
        self._beside.append(work)

    def stop(self, *_: Any) -> None:
        """End after the step in hand."""
        self._running = False

    def run(self) -> None:
        """Step until `stop()`. Survives Redis and PostgreSQL being away: it waits."""
        trouble = 0
        while self._running:
            try:
                self.step()
                trouble = 0
            except Exception as problem:  # the one door of this worker: nothing may end it
                expected = isinstance(problem, Error | RedisError | OSError)
                if trouble == 0 or not expected:
                    logger.warning("waits: %s: %s", type(problem).__name__, problem, exc_info=not expected)
                connections.close_all()
                self._pause(PAUSE_S[min(trouble, len(PAUSE_S) - 1)])
                trouble += 1
        self._finish()
        connections.close_all()

    def step(self) -> int:
        """Do what is due beside, then rest; returns how many entries were taken: none."""
        self._work_beside()
        self._pause(BLOCK_MS / 1000)
        return 0

    def _work_beside(self) -> None:
        for work in self._beside:
            work()

    def _finish(self) -> None:
        """The last thing before the end."""

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._running and time.monotonic() < deadline:
            time.sleep(0.05)


class Persister(Loop):
    """One worker. Any number of them share the shards."""

    def __init__(self) -> None:
        super().__init__()
        self.name = uuid.uuid4().hex
        self.counts = Counts()
        self.shards: dict[int, Shard] = {}
        self._redis: redis.Redis = sync_client()
        self._renewed = 0.0
        self._looked_back = 0.0
        self._first_withheld: dict[tuple[int, bytes], float] = {}

    def step(self) -> int:
        """Renew, read one batch, store it, acknowledge it; returns how many entries it took.

        Raises what Redis or PostgreSQL raise; what was read and not stored is read again."""
        try:
            self._hold_shards()
            self._work_beside()
            self._look_back()
            taken = self._persist(self._read_left_over())
            # with work in hand there is no waiting for more
            return taken + self._persist(self._read_new(block_ms=None if taken else BLOCK_MS))
        except Exception:
            self._looked_back = 0.0
            raise

    def _look_back(self) -> None:
        """After a failure, and every few seconds: see what is pending in every shard."""
        now = time.monotonic()
        if now - self._looked_back >= LOOK_BACK_EVERY_S:
            self._looked_back = now
            for shard in self.shards.values():
                shard.left_over = True

    # --- leases -------------------------------------------------------------------------------------

    def _hold_shards(self) -> None:
        """Renew what is held and take what is free, every few seconds."""
        now = time.monotonic()
        if now - self._renewed < RENEW_EVERY_S and self._renewed:
            return
        self._renewed = now
        for number in range(keys.SHARDS):
            lease = keys.shard_lease(number)
            if number in self.shards and not self._redis.eval(_RENEW, 1, lease, self.name, LEASE_MS):
                # paused for longer than the lease: somebody else may read it by now
                del self.shards[number]
            if number not in self.shards and self._redis.set(lease, self.name, nx=True, px=LEASE_MS):
                self.shards[number] = Shard(number)
        self._tell()

    def _finish(self) -> None:
        try:
            for number in self.shards:
                self._redis.eval(_RELEASE, 1, keys.shard_lease(number), self.name)
            self._redis.close()
        except (RedisError, OSError):
            logger.info("the leases run out by themselves")

    def _tell(self) -> None:
        """What /readyz shows of the persister."""
        facts: dict[Any, Any] = {
            "worker": self.name,
            "at": time.time(),
            "stored": self.counts.stored,
            "repeated": self.counts.repeated,
            "dead": self.counts.dead,
        }
        self._redis.hset(keys.PERSISTER, mapping=facts)
        self._redis.expire(keys.PERSISTER, 3600)

    # --- reading --------------------------------------------------------------------------------------

    def _read_left_over(self) -> list[LogEntry]:
        """What an earlier holder left pending, or what waited for a parent."""
        now = time.monotonic()
        pending = [shard for shard in self.shards.values() if shard.left_over and shard.withheld_until <= now]
        if not pending:
            return []
        entries = self._read_streams({keys.log_shard(shard.number): "0" for shard in pending}, block_ms=None)
        seen = {entry.shard for entry in entries}
        for shard in pending:
            shard.left_over = shard.number in seen
        return entries

    def _read_new(self, *, block_ms: int | None) -> list[LogEntry]:
        """What nobody read yet. A shard whose entries wait for a parent goes on: the parent may be next."""
        if not self.shards:
            self._pause(BLOCK_MS / 1000)
            return []
        # before all that is left over is stored, new entries of that shard would overtake it
        ready = [shard.number for shard in self.shards.values() if not shard.left_over or shard.withheld]
        if not ready:
            return []
        return self._read_streams({keys.log_shard(number): ">" for number in ready}, block_ms=block_ms)

    def _read_streams(self, streams: dict[Any, Any], *, block_ms: int | None) -> list[LogEntry]:
        each = max(1, BATCH_ENTRIES // len(streams))
        try:
            answer: Any = self._redis.xreadgroup(keys.GROUP, keys.CONSUMER, streams, count=each, block=block_ms)
        except ResponseError as problem:
            if "NOGROUP" not in str(problem):
                raise
            self._make_groups()
            return []
        pairs = answer.items() if isinstance(answer, dict) else answer or ()
        return [
            LogEntry(int(name.rpartition(b":")[2]), entry_id, (fields or {}).get(b"d", b""))
            for name, streamed in pairs
            for entry_id, fields in _flat(streamed)
        ]

    def _make_groups(self) -> None:
        """Make the consumer groups, from the beginning of each shard: after a flush that repeats
        nothing an idempotent store does not ignore."""
        for name in keys.LOG_SHARDS:
            try:
                self._redis.xgroup_create(name, keys.GROUP, id="0", mkstream=True)
            except ResponseError as problem:
                if "BUSYGROUP" not in str(problem):
                    raise

    # --- storing ----------------------------------------------------------------------------------------

    def _persist(self, entries: Sequence[LogEntry]) -> int:
        """Store, then acknowledge what is dealt with; returns how many entries there were."""
        if not entries:
            return 0
        stored = self._store(entries)
        withheld = {(entry.shard, entry.entry_id) for entry in stored.withheld}
        self._acknowledge([entry for entry in entries if (entry.shard, entry.entry_id) not in withheld])
        waiting = {entry.shard for entry in stored.withheld}
        for number in {entry.shard for entry in entries}:
            shard = self.shards.get(number)
            if shard is None:
                continue
            shard.withheld = number in waiting
            if shard.withheld:
                shard.left_over = True
                shard.withheld_until = time.monotonic() + WITHHELD_EVERY_S
        return len(entries)

    def _store(self, entries: Sequence[LogEntry]) -> "Stored":
        """Store what can be stored now; what cannot be a row is set aside, what misses its parent is
        withheld. Raises OperationalError and the like when PostgreSQL is away: nothing is acknowledged."""
        try:
            # an entry deleted while it was pending comes back empty: there is nothing to store
            new = store([entry.document for entry in entries if entry.document])
        except (Error, UnicodeDecodeError) as problem:
            if isinstance(problem, Error) and not is_refusal(problem):
                raise
            return self._judge(entries[0], problem) if len(entries) == 1 else self._store_parts(entries)
        for entry in entries:
            self._first_withheld.pop((entry.shard, entry.entry_id), None)
        self.counts.stored += new
        self.counts.repeated += len(entries) - new
        return Stored()

    def _store_parts(self, entries: Sequence[LogEntry]) -> "Stored":
        """Halve until what is wrong stands alone: the rest of the batch is stored, in order."""
        middle = len(entries) // 2
        first = self._store(entries[:middle])
        second = self._store(entries[middle:])
        return Stored([*first.withheld, *second.withheld])

    def _judge(self, entry: LogEntry, problem: Exception) -> "Stored":
        """One entry that was refused alone: not yet (its parent may still come), or never."""
        key = (entry.shard, entry.entry_id)
        if isinstance(problem, IntegrityError) and missing_parents([entry.document]):
            since = self._first_withheld.setdefault(key, time.monotonic())
            if time.monotonic() - since < PARENT_PATIENCE_S:
                return Stored([entry])
        self._first_withheld.pop(key, None)
        self._set_aside(entry, problem)
        return Stored()

    def _set_aside(self, entry: LogEntry, problem: Exception) -> None:
        """To the dead-letter stream, with the reason; the log keeps it until that is done."""
        reason = str(problem).partition("\n")[0][:300]
        letter = {
            "d": entry.document,
            "shard": entry.shard,
            "entry": entry.entry_id,
            "reason": reason,
            "at": time.time(),
        }
        self._redis.xadd(keys.DEAD_LETTERS, letter)  # type: ignore[arg-type]
        self.counts.dead += 1
        logger.error(
            "set aside log entry %s of shard %d: %s", entry.entry_id.decode(), entry.shard, type(problem).__name__
        )

    def _acknowledge(self, entries: Sequence[LogEntry]) -> None:
        """After the commit: acknowledge and delete, all shards in one trip."""
        by_shard: dict[int, list[bytes]] = {}
        for entry in entries:
            by_shard.setdefault(entry.shard, []).append(entry.entry_id)
        pipeline = self._redis.pipeline(transaction=False)
        for number, ids in by_shard.items():
            pipeline.xack(keys.log_shard(number), keys.GROUP, *ids)
            pipeline.xdel(keys.log_shard(number), *ids)
        if by_shard:
            pipeline.execute()


@dataclass(slots=True)
class Stored:
    """What became of a batch: all of it is dealt with, except what is withheld."""

    withheld: list[LogEntry] = field(default_factory=list)


def _flat(streamed: Any) -> Any:
    """redis-py answers XREADGROUP as one list of pairs, or, under RESP3, as a list of such lists."""
    if streamed and isinstance(streamed[0], list) and (not streamed[0] or not isinstance(streamed[0][0], bytes)):
        return (pair for part in streamed for pair in part)
    return streamed


def replay_dead_letters(client: redis.Redis, *, limit: int = 1_000) -> tuple[int, int]:
    """Try to store what was set aside; (stored or known already, still refused). What is stored
    leaves the dead-letter stream; the rest stays."""
    good = bad = 0
    letters: Any = client.xrange(keys.DEAD_LETTERS, count=limit)
    for letter_id, fields in letters:
        try:
            store([fields[b"d"]])
        except (Error, ValueError) as problem:
            if isinstance(problem, Error) and not is_refusal(problem):
                raise
            bad += 1
            continue
        client.xdel(keys.DEAD_LETTERS, letter_id)
        good += 1
    return good, bad
