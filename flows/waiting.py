"""What is on its way: the checkpoints in the hand-off log and those that were set aside, read and not taken.

For the ledger, which has to know of each whether it is stored by now. One trip to Redis; the log is empty nearly
always, and of one that is not only its beginning is read.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
from django.conf import settings
from redis.exceptions import RedisError

from flows import keys
from flows.redis import sync_client

READ_ENTRIES = 2_000
"""Of each shard. A log that is longer is said to be too long to judge, not read: it is minutes behind."""

READ_LETTERS = 2_000


@dataclass(frozen=True, slots=True)
class Waiting:
    """One checkpoint that may not be stored yet."""

    flow_id: UUID
    turn_id: UUID
    created_at: datetime
    process_id: UUID | None
    """only of the first checkpoint of a turn, which names it"""
    set_aside: bool
    swept: bool
    """whether it is the sweep's end of a turn, which no web process made"""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A checkpoint that was set aside; nothing of its content."""

    reason: str
    at: datetime
    checkpoint: str
    shard: int


@dataclass(frozen=True, slots=True)
class Road:
    """What lies between the web processes and PostgreSQL, at one moment."""

    enabled: bool = True
    answers: bool = True
    waiting: int = 0
    lag_s: float = 0.0
    silent_s: float | None = None
    """since a persister last said that it is alive; None: never"""
    held_back: int = 0
    """refused entries that stay in the log, since there is a flood of them"""
    dead_letters: int = 0
    complete: bool = True
    """whether all of it was read"""
    checkpoints: list[Waiting] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    """the newest first, at most READ_LETTERS"""

    @property
    def turn_ids(self) -> list[UUID]:
        """The turns of which something is on its way or set aside."""
        return list(dict.fromkeys(one.turn_id for one in self.checkpoints))

    def reasons(self) -> Iterator[dict[str, Any]]:
        """The dead letters by their reason: how many, of which checkpoints, the last one's time."""
        by_reason: dict[str, list[DeadLetter]] = {}
        for letter in self.letters:
            by_reason.setdefault(letter.reason, []).append(letter)
        for reason, letters in by_reason.items():
            yield {
                "reason": reason,
                "count": len(letters),
                "last": letters[0].at,
                "first": letters[-1].at,
                "checkpoints": Counter(letter.checkpoint for letter in letters).most_common(3),
                "shards": sorted({letter.shard for letter in letters}),
            }


def read_road() -> Road:
    """The log, the dead letters and the persister. One round trip; never raises: a Redis that does not answer is
    said by `answers`."""
    if not settings.REDIS_ENABLED:
        return Road(enabled=False)
    client = sync_client()
    try:
        pipeline = client.pipeline(transaction=False)
        pipeline.time()
        pipeline.hmget(keys.PERSISTER, "at", *map(keys.held_back, range(keys.SHARDS)))
        for name in keys.LOG_SHARDS:
            pipeline.xlen(name)
            pipeline.xrange(name, count=READ_ENTRIES)
        # after the log: what the persister sets aside leaves that last
        pipeline.xlen(keys.DEAD_LETTERS)
        pipeline.xrevrange(keys.DEAD_LETTERS, count=READ_LETTERS)
        now, (at, *held_back), *shards, dead, letters = pipeline.execute()
    except (RedisError, OSError):
        return Road(answers=False, complete=False)
    finally:
        client.close()
    entries = [entry for part in shards[1::2] for entry in part]
    waiting, now_ms = sum(shards[0::2]), now[0] * 1000 + now[1] // 1000
    oldest = min((int(entry_id.partition(b"-")[0]) for entry_id, _ in entries), default=now_ms)
    return Road(
        waiting=waiting,
        lag_s=round(max(0, now_ms - oldest) / 1000, 3),
        silent_s=round(max(0.0, now_ms / 1000 - float(at)), 1) if at else None,
        held_back=sum(int(each or 0) for each in held_back),
        dead_letters=dead,
        # entries may leave between the two commands of a shard, so fewer than counted is no sign of any left out
        complete=all(len(part) < READ_ENTRIES for part in shards[1::2]) and len(letters) < READ_LETTERS,
        checkpoints=[*_parsed(entries, set_aside=False), *_parsed(letters, set_aside=True)],
        letters=[_letter(letter_id, fields) for letter_id, fields in letters],
    )


def _parsed(entries: Iterable[Any], *, set_aside: bool) -> Iterator[Waiting]:
    for _, fields in entries:
        document = _document(fields)
        metadata = document.get("metadata")
        known = metadata if isinstance(metadata, dict) else {}
        process = known.get("process") if document.get("checkpoint") == "auth_check" else None
        try:
            yield Waiting(
                flow_id=UUID(document["flow_id"]),
                turn_id=UUID(document["turn_id"]),
                created_at=datetime.fromisoformat(document["created_at"]),
                process_id=UUID(process) if process else None,
                set_aside=set_aside,
                swept=known.get("outcome") == "abandoned",
            )
        except (KeyError, ValueError, TypeError, AttributeError):
            # not a checkpoint of a web process, whatever somebody put there: it can never be a row either
            continue


def _document(fields: dict[bytes, bytes]) -> dict[str, Any]:
    try:
        document = orjson.loads(fields.get(b"d", b""))
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _letter(letter_id: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    return DeadLetter(
        reason=fields.get(b"reason", b"").decode(errors="replace"),
        # by Redis' clock, which is in the id
        at=datetime.fromtimestamp(int(letter_id.partition(b"-")[0]) / 1000, UTC),
        checkpoint=str(_document(fields).get("checkpoint", "not a checkpoint"))[:50],
        shard=int(fields.get(b"shard", b"0")),
    )
