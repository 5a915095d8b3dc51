"""The persister: a plain synchronous loop that moves checkpoints from the hand-off log to PostgreSQL.

Claim, store, commit, then acknowledge and delete. Killed anywhere, it loses nothing: what was not
acknowledged is read again by whoever holds the shard next, and storing twice is storing once.

One consumer per shard at a time, by a lease, so that parents come before their children. All
holders use the same consumer name: what an earlier one left pending is read first. Persisters that
are alive share the shards evenly.

Nearly all of a batch's time is PostgreSQL's, so a process has two of them, each with its own thread,
connections and shards: while one reads, waits for the disk or acknowledges, the other's rows go in.
"""

import json
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import redis
from django.db import Error, IntegrityError, connections
from redis.exceptions import RedisError, ResponseError

from flows import keys
from flows.pruning import is_gone
from flows.redis import sync_client
from flows.store import is_refusal, lacked_parent, missing_parents, store

logger = logging.getLogger(__name__)

LEASE_MS = 5_000
RENEW_EVERY_S = 1.5
BATCH_ENTRIES = 2_000
"""At most; a checkpoint has half a kilobyte mostly, and 9 at most."""

BLOCK_MS = 500
GATHER_S = 0.1
GATHER_BELOW = 200
"""Fewer new entries than this, of turns that all go on, wait so long at most for others before they are stored: one
statement for a whole turn costs a fraction of one for each of its parts, and the turn is not disturbed before
its first token. The end of a turn is stored at once: whoever has heard `done` may ask for it."""

_IS_END = b'"checkpoint":"flow_end"'

PARENT_PATIENCE_S = 300.0
"""How long an entry may wait for its parent before it counts as poison."""

WITHHELD_EVERY_S = 1.0
LOOK_BACK_EVERY_S = 5.0
"""How often a shard's pending entries are read again. An answer of Redis that was lost on its way,
or repeated by the client without a word, leaves entries that count as delivered."""

FLOOD_LETTERS = 100
FLOOD_WINDOW_S = 3600
"""More set aside than this, in this time, is no longer a few strange entries: something is wrong with the
table or with a writer. From then on nothing more is set aside. What is refused stays in the log, where it
is safe, and is tried again; /readyz and the ledger page say so."""

REFUSED_AGAIN_S = 30.0
"""How often what is refused is tried again in a flood: each try costs as many statements as entries."""

PAUSE_S = (0.1, 0.2, 0.5, 1.0, 2.0)

# Each may write while Redis is full (`maxmemory` with noeviction): the persister is what makes room again.
_WHEN_FULL = "#!lua flags=allow-oom\n"

# KEYS: lease. ARGV: worker, milliseconds. 1: held by this worker now.
_TAKE = (
    _WHEN_FULL
    + """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
)
# KEYS: persisters. ARGV: worker, milliseconds. How many are alive, this one among them.
_IS_HERE = (
    _WHEN_FULL
    + """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('ZCARD', KEYS[1])
"""
)
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"

# KEYS: hash. ARGV: seconds to live, then fields and values. By Redis' own clock, so that no two machines'
# clocks are compared.
_TELL = (
    _WHEN_FULL
    + """
local now = redis.call('TIME')
redis.call('HSET', KEYS[1], 'at', now[1] .. '.' .. string.format('%06d', now[2]), unpack(ARGV, 2))
return redis.call('EXPIRE', KEYS[1], ARGV[1])
"""
)

# KEYS: shard. ARGV: group.
_MAKE_GROUP = _WHEN_FULL + "return redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')"

# KEYS: dead letters, shard. ARGV: group, entry, document, number of the shard, reason, letters allowed,
# window in ms. Set aside and taken out of the log in one step, so that it is never in both nor in none.
# 0: there are too many already, and the entry stays where it is.
_SET_ASIDE = (
    _WHEN_FULL
    + """
local now = redis.call('TIME')
local since = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000) - ARGV[7])
if #redis.call('XRANGE', KEYS[1], since, '+', 'COUNT', ARGV[6]) >= tonumber(ARGV[6]) then return 0 end
redis.call('XADD', KEYS[1], '*', 'd', ARGV[3], 'shard', ARGV[4], 'entry', ARGV[2], 'reason', ARGV[5])
redis.call('XACK', KEYS[2], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[2], ARGV[2])
return 1
"""
)


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
    gone: int = 0
    """late, of turns that are no longer kept"""


@dataclass(slots=True)
class Shard:
    """A shard this persister holds, and how far a pass over its pending entries is.

    A pass goes from the first to the last, however many of them have to wait: those that can be stored
    stand behind them."""

    number: int
    left_over: bool = True
    """whether there may be pending entries, an earlier holder's or withheld ones: they are read before new ones"""
    reached: bytes = b"0"
    """up to where this pass has read"""
    withheld: bool = False
    """whether something of this shard has to wait, as far as this pass has seen"""
    waits_s: float = 0.0
    """how long"""
    rests_until: float = 0.0
    """after a pass that withheld something: when the next one begins"""

    @property
    def may_read_new(self) -> bool:
        """New entries must not overtake pending ones; of those that wait for their parent it may be among them."""
        return not self.left_over or self.withheld or self.rests_until > 0

    def begin_pass(self) -> None:
        """See what is pending, from the first on, unless a pass is under way."""
        self.left_over = True

    def start_over(self) -> None:
        """Whatever the pass under way has found: begin with the first again, now."""
        self.left_over, self.withheld = True, False
        self.reached, self.waits_s, self.rests_until = b"0", 0.0, 0.0

    def end_pass(self, now: float) -> None:
        """All that was pending was tried once; what is withheld is tried again later."""
        self.left_over = self.withheld
        self.rests_until = now + self.waits_s if self.withheld else 0.0
        self.reached, self.withheld, self.waits_s = b"0", False, 0.0

    def withhold(self, seconds: float) -> None:
        """Something of this shard has to wait so long."""
        self.left_over = self.withheld = True
        self.waits_s = max(self.waits_s, seconds)


class Loop:
    """What runs beside the web processes, step by step, until `stop()`: the sweep and the watch list.
    Without Redis this is all there is to do; the Persister is a Loop that also reads the log."""

    def __init__(self) -> None:
        self._running = True
        self._beside: list[Callable[[], None]] = []
        self._failing: set[Callable[[], None]] = set()

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
        """What fails here must not keep checkpoints from being stored: with Redis full the sweep cannot append,
        and only storing makes room."""
        for work in self._beside:
            try:
                work()
                self._failing.discard(work)
            except (Error, RedisError, OSError) as problem:
                if work not in self._failing:
                    logger.warning("work beside the log waits: %s: %s", type(problem).__name__, problem)
                self._failing.add(work)
                connections.close_all()

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
        self._held_back: set[tuple[int, bytes]] = set()
        """what is refused and may not be set aside: there is a flood of it"""
        self._alongside: list[Persister] = []

    def alongside(self, other: "Persister") -> None:
        """Let another one run in this process, in a thread of its own, from `run()` to `stop()`."""
        self._alongside.append(other)

    def run(self) -> None:
        threads = [Thread(target=other.run, name=f"persister {other.name[:8]}") for other in self._alongside]
        for thread in threads:
            thread.start()
        super().run()
        for thread in threads:
            thread.join()

    def stop(self, *_: Any) -> None:
        super().stop()
        for other in self._alongside:
            other.stop()

    def step(self) -> int:
        """Renew, read one batch, store it, acknowledge it; returns how many entries it took.

        Raises what Redis or PostgreSQL raise; what was read and not stored is read again."""
        try:
            self._hold_shards()
            self._work_beside()
            self._look_back()
            taken = self._persist(self._read_left_over())
            # with work in hand there is no waiting for more
            entries = self._read_new(block_ms=None if taken else BLOCK_MS)
            return taken + self._persist(entries if taken else self._gather(entries))
        except Exception:
            # what was read and not dealt with is pending now, behind where a pass may stand
            for shard in self.shards.values():
                shard.start_over()
            raise

    def _gather(self, entries: list[LogEntry]) -> list[LogEntry]:
        """These, and what comes until a turn ends, or the time is up, or there is enough."""
        deadline = time.monotonic() + GATHER_S
        come = entries
        while come and len(entries) < GATHER_BELOW and not any(_IS_END in entry.document for entry in come):
            left_ms = int((deadline - time.monotonic()) * 1000)
            if left_ms <= 0:
                break
            come = self._read_new(block_ms=left_ms)
            entries = [*entries, *come]
        return entries

    def _look_back(self) -> None:
        """Every few seconds: see what is pending in every shard."""
        now = time.monotonic()
        if now - self._looked_back >= LOOK_BACK_EVERY_S:
            self._looked_back = now
            for shard in self.shards.values():
                shard.begin_pass()

    # --- leases -------------------------------------------------------------------------------------

    def _hold_shards(self) -> None:
        """Every few seconds: renew what is held, take what is free, and leave what is more than an even share."""
        now = time.monotonic()
        if now - self._renewed < RENEW_EVERY_S and self._renewed:
            return
        self._renewed = now
        alive: Any = self._redis.eval(_IS_HERE, 1, keys.PERSISTERS, self.name, LEASE_MS)
        share = -(-keys.SHARDS // alive)
        for number in sorted(self.shards)[share:]:
            # nothing of it is in hand between two steps; what is pending is read first by whoever takes it
            self._redis.eval(_RELEASE, 1, keys.shard_lease(number), self.name)
            self._let_go(number)
        free = [number for number in range(keys.SHARDS) if number not in self.shards]
        for number in [*self.shards, *free]:
            if number not in self.shards and len(self.shards) >= share:
                break
            if not self._redis.eval(_TAKE, 1, keys.shard_lease(number), self.name, LEASE_MS):
                # never ours, or paused for longer than the lease: somebody else reads it now
                self._let_go(number)
            elif number not in self.shards:
                self.shards[number] = Shard(number)
        self._tell()

    def _let_go(self, number: int) -> None:
        if self.shards.pop(number, None) is not None:
            self._held_back = {key for key in self._held_back if key[0] != number}
            self._first_withheld = {key: since for key, since in self._first_withheld.items() if key[0] != number}

    def _finish(self) -> None:
        try:
            for number in self.shards:
                self._redis.eval(_RELEASE, 1, keys.shard_lease(number), self.name)
            self._redis.zrem(keys.PERSISTERS, self.name)
            self._redis.close()
        except (RedisError, OSError):
            logger.info("the leases run out by themselves")

    def _tell(self) -> None:
        """What /readyz and the ledger page show of the persister."""
        facts = {
            "worker": self.name,
            "stored": self.counts.stored,
            "repeated": self.counts.repeated,
            "dead": self.counts.dead,
            # a shard's has one writer, its holder
            **{keys.held_back(number): self._held_back_of(number) for number in self.shards},
        }
        words: list[Any] = [word for fact in facts.items() for word in fact]
        self._redis.eval(_TELL, 1, keys.PERSISTER, 3600, *words)

    def _held_back_of(self, number: int) -> int:
        return sum(shard == number for shard, _ in self._held_back)

    # --- reading --------------------------------------------------------------------------------------

    def _read_left_over(self) -> list[LogEntry]:
        """The next of what an earlier holder left pending, or what waited for a parent."""
        now = time.monotonic()
        pending = [shard for shard in self.shards.values() if shard.left_over and shard.rests_until <= now]
        if not pending:
            return []
        entries = self._read_streams({keys.log_shard(shard.number): shard.reached for shard in pending}, block_ms=None)
        last = {entry.shard: entry.entry_id for entry in entries}
        for shard in pending:
            if shard.number in last:
                shard.reached = last[shard.number]
            else:
                shard.end_pass(now)
        return entries

    def _read_new(self, *, block_ms: int | None) -> list[LogEntry]:
        """What nobody read yet."""
        if not self.shards:
            self._pause(BLOCK_MS / 1000)
            return []
        ready = [shard.number for shard in self.shards.values() if shard.may_read_new]
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
            LogEntry(int(name.rpartition(b":")[2]), entry_id, _document(fields or {}))
            for name, streamed in pairs
            for entry_id, fields in _flat(streamed)
        ]

    def _make_groups(self) -> None:
        """Make the consumer groups, from the beginning of each shard: after a flush that repeats
        nothing an idempotent store does not ignore."""
        for name in keys.LOG_SHARDS:
            try:
                self._redis.eval(_MAKE_GROUP, 1, name, keys.GROUP)
            except ResponseError as problem:
                if "BUSYGROUP" not in str(problem):
                    raise

    # --- storing ----------------------------------------------------------------------------------------

    def _persist(self, entries: Sequence[LogEntry]) -> int:
        """Store, then acknowledge what is dealt with; returns how many entries there were."""
        if not entries:
            return 0
        stored = self._store(entries)
        done = {(entry.shard, entry.entry_id) for entry in [*stored.withheld, *stored.set_aside]}
        self._acknowledge([entry for entry in entries if (entry.shard, entry.entry_id) not in done])
        for entry in stored.withheld:
            if entry.shard in self.shards:
                held_back = (entry.shard, entry.entry_id) in self._held_back
                self.shards[entry.shard].withhold(REFUSED_AGAIN_S if held_back else WITHHELD_EVERY_S)
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
            self._forget((entry.shard, entry.entry_id))
        self.counts.stored += new
        self.counts.repeated += len(entries) - new
        return Stored()

    def _store_parts(self, entries: Sequence[LogEntry]) -> "Stored":
        """Halve until what is wrong stands alone: the rest of the batch is stored, in order."""
        middle = len(entries) // 2
        first = self._store(entries[:middle])
        second = self._store(entries[middle:])
        return Stored([*first.withheld, *second.withheld], [*first.set_aside, *second.set_aside])

    def _judge(self, entry: LogEntry, problem: Exception) -> "Stored":
        """One entry that was refused alone: not yet (its parent may still come), or never."""
        key = (entry.shard, entry.entry_id)
        # its parent may be stored by now: after a failover two persisters may read one shard for a moment
        if isinstance(problem, Error) and lacked_parent(problem):
            since = self._first_withheld.setdefault(key, time.monotonic())
            if time.monotonic() - since < PARENT_PATIENCE_S:
                return Stored([entry])
            if is_gone(entry.document):
                self._forget(key)
                self.counts.gone += 1
                logger.info("left out a late checkpoint of a turn that is no longer kept")
                return Stored()
        return self._set_aside(entry, problem)

    def _set_aside(self, entry: LogEntry, problem: Exception) -> "Stored":
        """To the dead-letter stream, with the reason. In a flood it is held back instead: it stays in the log."""
        key = (entry.shard, entry.entry_id)
        reason = str(problem).partition("\n")[0][:300]
        words: list[Any] = [keys.GROUP, entry.entry_id, entry.document, entry.shard, reason]
        limits = (FLOOD_LETTERS, FLOOD_WINDOW_S * 1000)
        if not self._redis.eval(_SET_ASIDE, 2, keys.DEAD_LETTERS, keys.log_shard(entry.shard), *words, *limits):
            if not self._held_back:
                logger.critical(
                    "%d log entries were refused within an hour: what is refused now stays in the log, and history"
                    " misses it until the cause is mended (the last: %s)",
                    FLOOD_LETTERS,
                    type(problem).__name__,
                )
            self._held_back.add(key)
            return Stored([entry])
        self._forget(key)
        self.counts.dead += 1
        logger.error(
            "set aside log entry %s of shard %d: %s", entry.entry_id.decode(), entry.shard, type(problem).__name__
        )
        return Stored([], [entry])

    def _forget(self, key: tuple[int, bytes]) -> None:
        self._first_withheld.pop(key, None)
        self._held_back.discard(key)

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
    """What became of a batch: all of it is stored, except what is withheld or was set aside."""

    withheld: list[LogEntry] = field(default_factory=list)
    set_aside: list[LogEntry] = field(default_factory=list)


def _document(fields: dict[bytes, bytes]) -> bytes:
    """The document of an entry; of a stranger's entry what it has, which cannot be stored and is set
    aside. An entry that was deleted while it was pending has nothing at all."""
    if b"d" in fields or not fields:
        return fields.get(b"d", b"")
    return json.dumps(
        {name.decode(errors="replace"): value.decode(errors="replace") for name, value in fields.items()}
    ).encode()


def _flat(streamed: Any) -> Any:
    """redis-py answers XREADGROUP as one list of pairs, or, under RESP3, as a list of such lists."""
    if streamed and isinstance(streamed[0], list) and (not streamed[0] or not isinstance(streamed[0][0], bytes)):
        return (pair for part in streamed for pair in part)
    return streamed


@dataclass(slots=True)
class Replayed:
    """What became of dead letters."""

    stored: int = 0
    """stored now, or known already"""
    gone: int = 0
    """of turns that are no longer kept"""
    refused: list[dict[str, Any]] = field(default_factory=list)
    """`{"letter", "shard", "entry", "reason", "document"}` of what cannot be stored still"""


def replay_dead_letters(client: redis.Redis, *, limit: int | None = None) -> Replayed:
    """Try to store what was set aside, the oldest first. What is stored leaves the dead-letter stream;
    the rest stays. Raises what Redis and PostgreSQL raise when they are away."""
    replayed = Replayed()
    tried, after = 0, "-"
    while limit is None or tried < limit:
        page = 1_000 if limit is None else min(1_000, limit - tried)
        letters: Any = client.xrange(keys.DEAD_LETTERS, after, count=page)
        if not letters:
            break
        for letter_id, fields in letters:
            problem = _store_alone(fields[b"d"])
            if problem is None:
                client.xdel(keys.DEAD_LETTERS, letter_id)
                replayed.stored += 1
            elif problem is GONE:
                client.xdel(keys.DEAD_LETTERS, letter_id)
                replayed.gone += 1
            else:
                replayed.refused.append(_as_letter(letter_id, fields, problem))
        tried += len(letters)
        after = f"({letters[-1][0].decode()}"
    return replayed


GONE = "its turn is no longer kept"


def _store_alone(document: bytes) -> str | None:
    """Store one document; why it was refused (GONE: it will never be missed), else None."""
    try:
        store([document])
    except (Error, UnicodeDecodeError) as problem:
        if isinstance(problem, Error) and not is_refusal(problem):
            raise
        if isinstance(problem, IntegrityError) and missing_parents([document]) and is_gone(document):
            return GONE
        return str(problem).partition("\n")[0][:300]
    return None


def _as_letter(letter_id: bytes, fields: dict[bytes, bytes], reason: str) -> dict[str, Any]:
    return {
        "letter": letter_id.decode(),
        "shard": int(fields.get(b"shard", b"-1")),
        "entry": fields.get(b"entry", b"").decode(),
        "reason": reason,
        "document": fields[b"d"].decode(errors="backslashreplace"),
    }
