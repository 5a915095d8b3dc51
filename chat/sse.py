"""Events as bytes of text/event-stream. Pure: the last step of an answer before the socket."""

import json
from collections.abc import Mapping
from typing import Any

HEARTBEAT = b": still here\n\n"


def encode(data: object) -> str:
    """JSON on one line: no line break can end the event early."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def event(name: str, data: Mapping[str, Any]) -> bytes:
    """One event: its name, its data as JSON, an empty line."""
    return f"event: {name}\ndata: {encode(data)}\n\n".encode()
