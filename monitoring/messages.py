"""What a watcher's socket says (SPEC, section 7), as text; and the Pub/Sub message, read without parsing its JSON.

Pure functions: bytes from Redis in, frames for the socket out. A checkpoint's document is never
parsed or encoded again on its way: the bytes the flusher wrote stand in the frame.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from flows.checkpoints import iso_time
from flows.history import wire_time
from monitoring.watchlist import Change, Period

PART_CHECKPOINTS = 200
PART_BYTES = 512 * 1024

Place = tuple[int, int]
"""A stream id as numbers (milliseconds, sequence): where a reader stands."""

START: Place = (0, 0)

# Exactly what flows.log publishes: this key order, no spaces.
_EVENT = re.compile(
    rb'\{"cursor":"([0-9A-Za-z]{1,40})\.(\d{1,20})-(\d{1,20})","prev":(?:"[0-9A-Za-z]{1,40}\.(\d{1,20})-(\d{1,20})"|null),'
    rb'"checkpoint":(\{"flow_id":"([0-9a-f-]{36})".*\})\}',
    re.DOTALL,
)


class NotAnEvent(ValueError):
    """Something else was published on a user's channel."""


@dataclass(frozen=True, slots=True)
class Event:
    """One Pub/Sub message: a new entry of the user's stream, and the entry before it."""

    epoch: str
    place: Place
    prev: Place
    flow_id: bytes
    document: bytes


def read_event(data: bytes) -> Event:
    """About two microseconds, however long the document. Raises NotAnEvent."""
    found = _EVENT.fullmatch(data)
    if found is None:
        raise NotAnEvent(data[:80])
    epoch, millisecond, sequence, prev_millisecond, prev_sequence, document, flow_id = found.groups()
    # null: the stream was empty, nothing comes between its beginning and this entry
    prev = START if prev_millisecond is None else (int(prev_millisecond), int(prev_sequence))
    return Event(epoch.decode(), (int(millisecond), int(sequence)), prev, flow_id, document)


def _text(message: dict[str, Any]) -> str:
    return orjson.dumps(message).decode()


def checkpoint(cursor: str, document: bytes) -> bytes:
    """A live frame. Made once for all watchers of the user."""
    return b'{"type":"checkpoint","cursor":"%b","checkpoint":%b,"sent_at":"%b"}' % (
        cursor.encode(),
        document,
        iso_time(time.time_ns() // 1000).encode(),
    )


def snapshot(documents: Sequence[bytes], *, complete: bool, cursor: str | None, more: bool) -> str:
    """One part of a snapshot."""
    head = _text({"type": "snapshot", "complete": complete, "cursor": cursor, "more": more})
    return f'{head[:-1]},"checkpoints":[{b",".join(documents).decode()}]}}'


def in_parts(documents: Sequence[bytes]) -> list[Sequence[bytes]]:
    """Cut into parts of at most 200 documents and about half a megabyte; at least one part, maybe empty."""
    parts: list[Sequence[bytes]] = []
    start, size = 0, 0
    for place, document in enumerate(documents):
        if place > start and (place - start == PART_CHECKPOINTS or size + len(document) > PART_BYTES):
            parts.append(documents[start:place])
            start, size = place, 0
        size += len(document)
    parts.append(documents[start:])
    return parts


def hello(user_id: str, period: Period | None, *, server_time: datetime, live: str) -> str:
    """The first message. `live`: "on", "degraded" (Redis is away for now) or "off" (REDIS_ENABLED=false)."""
    monitoring = {
        "active": period is not None,
        "expires_at": period and wire_time(period.expires_at),
        "enabled_by": period and period.enabled_by,
    }
    return _text(
        {
            "type": "hello",
            "user_id": user_id,
            "monitoring": monitoring,
            "server_time": wire_time(server_time),
            "live": live,
        }
    )


def monitoring(change: Change, period: Period | None) -> str:
    """Monitoring of the user changed."""
    return _text(
        {
            "type": "monitoring",
            "active": period is not None,
            "expires_at": period and wire_time(period.expires_at),
            "reason": change,
        }
    )


def ping(*, server_time: datetime, live: str) -> str:
    """Sent every 15 s, and when `live` changes."""
    return _text({"type": "ping", "server_time": wire_time(server_time), "live": live})
