"""The Checkpoint: one fact about a turn, a frozen value with its own id, encoded to JSON once.

First station of its journey: the tracker makes it, the flusher asks for its `document`, and those
same bytes are the stream entry, the Pub/Sub payload, the frame's body and the row.
"""

import json
import math
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from random import getrandbits
from typing import TYPE_CHECKING, Any

import orjson

from flows.capture import mask

if TYPE_CHECKING:
    from flows.tracker import TurnTrack

METADATA_BYTES = 8192
NAME_CHARACTERS = 50
DEPTH = 32

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_last_moment_us = 0


_clock: Callable[[], int] = time.time_ns


def use_clock(clock: Callable[[], int]) -> None:
    """Let this process take the times of its checkpoints from another clock (nanoseconds since 1970, as
    time.time_ns): wiring gives it PostgreSQL's, by which everything else here is judged."""
    global _clock
    _clock = clock


def next_moment_us() -> int:
    """Now, in microseconds since 1970, strictly later than every moment given out before in this process.

    One thread of a process records, so there is no lock: it would cost as much as the rest."""
    global _last_moment_us
    moment = _clock() // 1000
    if moment <= _last_moment_us:
        moment = _last_moment_us + 1
    _last_moment_us = moment
    return moment


_MICROSECONDS = tuple(f"7{microsecond * 4096 // 1000:03x}-" for microsecond in range(1000))
_millisecond_text: tuple[int, str] = (-1, "")


def uuid7(moment_us: int) -> str:
    """UUIDv7 text (RFC 9562): 48 bits of milliseconds, then the microsecond in the 12 bits of rand_a
    (its method 3), so that ids of one process sort like their moments; 62 bits are random."""
    global _millisecond_text
    millisecond, microsecond = divmod(moment_us, 1000)
    known, text = _millisecond_text
    if known != millisecond:
        digits = f"{millisecond:012x}"
        text = f"{digits[:8]}-{digits[8:]}-"
        _millisecond_text = (millisecond, text)
    # from a plain generator: an id is not a secret, rights are checked and never guessed
    return f"{text}{_MICROSECONDS[microsecond]}{0x8000 | getrandbits(14):x}-{getrandbits(48):012x}"


_second_text: tuple[int, str] = (-1, "")


def iso_time(moment_us: int) -> str:
    """`2026-11-22T06:00:00.123456Z`, always with six digits."""
    global _second_text
    second, microsecond = divmod(moment_us, 1_000_000)
    known, text = _second_text
    if known != second:
        text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        _second_text = (second, text)
    return f"{text}.{microsecond:06d}Z"


def clean_text(text: str) -> str:
    """The text with NUL and lone surrogates replaced by U+FFFD: PostgreSQL's jsonb takes neither."""
    if text.isascii() and "\x00" not in text:
        return text
    return _LONE_SURROGATE.sub("\ufffd", text.replace("\x00", "\ufffd"))


def _clean(value: Any, depth: int = 0) -> Any:
    """The value as JSON can hold it: see `encode_metadata`."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= 1024 else None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict) and depth < DEPTH:
        return {clean_text(str(key)): _clean(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset) and depth < DEPTH:
        return [_clean(item, depth + 1) for item in value]
    return clean_text(value if isinstance(value, str) else "…" if depth >= DEPTH else str(value))


def _cut_strings(value: Any, length: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= length else value[:length] + "…"
    if isinstance(value, dict):
        return {key if len(key) <= 64 else key[:64] + "…": _cut_strings(item, length) for key, item in value.items()}
    if isinstance(value, list):
        return [_cut_strings(item, length) for item in value]
    return value


def _plain_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _cut(metadata: dict[str, Any]) -> bytes:
    """At most METADATA_BYTES: the longest strings are shortened first, then whole fields go."""
    for length in (4096, 2048, 1024, 512, 256, 128, 64, 32):
        shortened = _plain_json({**_cut_strings(metadata, length), "_cut": True})
        if len(shortened) <= METADATA_BYTES:
            return shortened
    kept: dict[str, Any] = {"_cut": True}
    size = len(b'{"_cut":true}')
    for key, value in _cut_strings(metadata, 32).items():
        room = len(_plain_json({key: value}))
        if size + room <= METADATA_BYTES:
            kept[key] = value
            size += room
    kept["_cut"] = True
    return _plain_json(kept)


def encode_metadata(metadata: dict[str, Any]) -> bytes:
    """Metadata as JSON of at most 8 KiB: always valid for PostgreSQL, never an exception.

    NUL and lone surrogates become U+FFFD, non-finite numbers null, what JSON has no word for its
    text; well-known kinds of keys are masked; what is too long is cut and marked `"_cut": true`.
    """
    try:
        try:
            # orjson makes null of nan and inf, and refuses lone surrogates and integers above 64 bits
            raw = orjson.dumps(metadata, default=str, option=orjson.OPT_NON_STR_KEYS)
            if b"\\u0000" in raw:
                raw = _plain_json(_clean(metadata))
        except (TypeError, ValueError, RecursionError):
            raw = _plain_json(_clean(metadata))
        raw = mask(raw)
        if len(raw) <= METADATA_BYTES:
            return raw
        return _cut(_clean(json.loads(raw)))
    except Exception:  # noqa: BLE001 - a strange value must not cost a turn its checkpoint
        return b'{"_cut":true,"_problem":"metadata could not be encoded"}'


@lru_cache(maxsize=256)
def _name_as_json(checkpoint: str) -> str:
    """The names of steps are few, and each comes again and again."""
    return orjson.dumps(clean_text(checkpoint)[:NAME_CHARACTERS]).decode()


class Checkpoint:
    """One fact about a turn. Made by `TurnTrack.record`; treat it as frozen, its metadata too.

    Making one costs about a microsecond: id, times and JSON are worked out when first asked for,
    which is the flusher's time and not the turn's.
    """

    __slots__ = (
        "_document",
        "_flow_id",
        "checkpoint",
        "dropped",
        "made_at_s",
        "metadata",
        "moment_us",
        "parent",
        "turn",
    )

    def __init__(
        self, turn: "TurnTrack", checkpoint: str, parent: "Checkpoint | None", metadata: dict[str, Any]
    ) -> None:
        self.turn = turn
        self.checkpoint = checkpoint
        self.parent = parent
        self.metadata = metadata
        self.moment_us = next_moment_us()
        self.made_at_s = time.monotonic()
        self.dropped = False
        self._flow_id = ""
        self._document = b""

    @classmethod
    def known(cls, turn: "TurnTrack", flow_id: str) -> "Checkpoint":
        """One that is stored already, to be named as a parent."""
        stored = cls(turn, "", None, {})
        stored.take_id(flow_id)
        return stored

    def take_id(self, flow_id: str) -> None:
        """Use this id, which was reserved before the checkpoint was made."""
        self._flow_id = flow_id

    @property
    def flow_id(self) -> str:
        if not self._flow_id:
            self._flow_id = uuid7(self.moment_us)
        return self._flow_id

    @property
    def parent_id(self) -> str | None:
        return self.parent.flow_id if self.parent is not None else None

    @property
    def user_id(self) -> str:
        return self.turn.user_id

    @property
    def session_id(self) -> str:
        return self.turn.session_id

    @property
    def turn_id(self) -> str:
        return self.turn.turn_id

    @property
    def created_at(self) -> str:
        return iso_time(self.moment_us)

    @property
    def document(self) -> bytes:
        """The JSON document of SPEC's one shape, in UTF-8; begins `{"flow_id":"<36 characters>"`."""
        if not self._document:
            parent = f'"{self.parent.flow_id}"' if self.parent is not None else "null"
            # one expression: three times as fast as joining encoded parts
            self._document = (
                f'{{"flow_id":"{self.flow_id}{self.turn.envelope},"checkpoint":{_name_as_json(self.checkpoint)}'
                f',"parent_id":{parent},"metadata":{encode_metadata(self.metadata).decode()}'
                f',"created_at":"{iso_time(self.moment_us)}"}}'
            ).encode()
        return self._document

    def as_dict(self) -> dict[str, Any]:
        """The document, parsed."""
        document: dict[str, Any] = json.loads(self.document)
        return document

    def __repr__(self) -> str:
        return f"<{self.checkpoint} {self.flow_id}>"


class Envelope:
    """What all checkpoints of a turn share. The id is that of its first checkpoint."""

    __slots__ = ("_envelope", "session_id", "turn_id", "user_id")

    def __init__(self, user_id: str, session_id: str) -> None:
        self.user_id = clean_text(user_id)[:255]
        self.session_id = clean_text(session_id)[:255]
        self.turn_id = ""
        self._envelope = ""

    @property
    def envelope(self) -> str:
        """`","user_id":…,"session_id":…,"turn_id":"…"`: the same text in every document of the turn."""
        if not self._envelope:
            user_id, session_id = orjson.dumps(self.user_id).decode(), orjson.dumps(self.session_id).decode()
            self._envelope = f'","user_id":{user_id},"session_id":{session_id},"turn_id":"{self.turn_id}"'
        return self._envelope
