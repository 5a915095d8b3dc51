"""Where the next page begins: an opaque word that is good for one question only.

It holds the place (time, id) of the last row given out, and a signature over that place and the
question (which list, with which filters). History makes and reads it; nobody else looks inside.
"""

import base64
import binascii
import hmac
import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.utils.crypto import salted_hmac

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_TIME_BYTES = 8
_PLACE_BYTES = _TIME_BYTES + 16
# 24 + 18 bytes make 56 characters without padding or spare bits: each place has one spelling only
_SIGNATURE_BYTES = 18

Question = dict[str, str | None]


class BadCursor(ValueError):
    """Malformed, tampered with, or given out for another question."""


@dataclass(frozen=True, slots=True)
class Place:
    """One row's place in a list ordered by (time, id)."""

    at: datetime
    id: uuid.UUID


def encode(place: Place, question: Question) -> str:
    """The cursor that continues `question` after `place`: 56 URL-safe characters."""
    microseconds = (place.at - _EPOCH) // _MICROSECOND
    body = microseconds.to_bytes(_TIME_BYTES, "big", signed=True) + place.id.bytes
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
    microseconds = int.from_bytes(body[:_TIME_BYTES], "big", signed=True)
    return Place(_EPOCH + microseconds * _MICROSECOND, uuid.UUID(bytes=body[_TIME_BYTES:]))


def _signature(body: bytes, question: Question) -> bytes:
    words = json.dumps(question, sort_keys=True).encode()
    return salted_hmac("flows.cursor", body + words, algorithm="sha256").digest()[:_SIGNATURE_BYTES]
