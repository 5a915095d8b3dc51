"""Where the next page begins: an opaque word that is good for one question only.

It holds the place (value, id) of a row given out, which way to go on from there, and a signature
over both and the question (which list, which filters, which order). History makes and reads it;
nobody else looks inside.
"""

import base64
import binascii
import hmac
import json
import struct
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from django.utils.crypto import salted_hmac

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_CENTIMICRO = Decimal("1e-8")  # money has eight digits after the point
_PLACE_BYTES = 1 + 8 + 16
# 25 + 17 bytes make 56 characters without padding or spare bits: each place has one spelling only
_SIGNATURE_BYTES = 17
_TIME, _FLOAT, _WHOLE, _MONEY = range(4)
_BACKWARDS = 0x80

Question = dict[str, str | None]
Value = datetime | Decimal | float | int


class BadCursor(ValueError):
    """Malformed, tampered with, or given out for another question."""


@dataclass(frozen=True, slots=True)
class Place:
    """One row's place in a list ordered by (value, id), and whether the page before it is meant."""

    value: Value
    id: uuid.UUID
    backwards: bool = False


def encode(place: Place, question: Question) -> str:
    """The cursor that continues `question` from `place`: 56 URL-safe characters."""
    kind, value = _packed(place.value)
    body = bytes([kind | (_BACKWARDS if place.backwards else 0)]) + value + place.id.bytes
    return base64.urlsafe_b64encode(body + _signature(body, question)).decode()


def decode(text: str, question: Question) -> Place:
    """The place in a cursor that was given out for this very question; raises BadCursor otherwise."""
    try:
        raw = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise BadCursor from None
    body, signature = raw[:_PLACE_BYTES], raw[_PLACE_BYTES:]
    if base64.urlsafe_b64encode(raw).decode() != text or not hmac.compare_digest(signature, _signature(body, question)):
        raise BadCursor
    kind = body[0] & ~_BACKWARDS
    return Place(_unpacked(kind, body[1:9]), uuid.UUID(bytes=body[9:]), backwards=bool(body[0] & _BACKWARDS))


def _packed(value: Value) -> tuple[int, bytes]:
    """What kind of value, and its eight bytes."""
    if isinstance(value, datetime):
        return _TIME, struct.pack(">q", (value - _EPOCH) // _MICROSECOND)
    if isinstance(value, float):
        return _FLOAT, struct.pack(">d", value)
    if isinstance(value, Decimal):
        return _MONEY, struct.pack(">q", int(value / _CENTIMICRO))
    return _WHOLE, struct.pack(">q", value)


def _unpacked(kind: int, value: bytes) -> Value:
    if kind == _FLOAT:
        return float(struct.unpack(">d", value)[0])
    whole = int(struct.unpack(">q", value)[0])
    if kind == _TIME:
        return _EPOCH + whole * _MICROSECOND
    return whole * _CENTIMICRO if kind == _MONEY else whole


def _signature(body: bytes, question: Question) -> bytes:
    words = json.dumps(question, sort_keys=True).encode()
    return salted_hmac("flows.cursor", body + words, algorithm="sha256").digest()[:_SIGNATURE_BYTES]
