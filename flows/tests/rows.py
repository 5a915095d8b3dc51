"""Rows for the tests of history, stored as the persister stores them."""

import json
import uuid
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from flows.models import InteractionFlow
from flows.store import store

BEGIN = datetime(2026, 11, 22, 6, 0, tzinfo=UTC)
_ticks = count(1)


def tick() -> datetime:
    """Strictly later at every call."""
    return BEGIN + timedelta(milliseconds=next(_ticks))


class StoredTurn:
    """A turn in the table; `add()` stores one more checkpoint and returns its flow_id."""

    def __init__(self, user_id: str, session_id: str | None = None, **root: Any) -> None:
        self.user_id, self.session_id = user_id, session_id or str(uuid.uuid4())
        self.turn_id = ""
        self.root = self.add("auth_check", None, status="passed", **root)

    def add(self, checkpoint: str, parent: str | None, /, **metadata: Any) -> str:
        flow_id = str(uuid.uuid4())
        self.turn_id = self.turn_id or flow_id
        document = {
            "flow_id": flow_id,
            "user_id": self.user_id,
            "session_id": self.session_id,
            "turn_id": self.turn_id,
            "checkpoint": checkpoint,
            "parent_id": parent,
            "metadata": metadata,
            "created_at": tick().isoformat(timespec="microseconds").replace("+00:00", "Z"),
        }
        store([json.dumps(document).encode()])
        return flow_id

    def end(self, outcome: str = "completed") -> "StoredTurn":
        self.add("flow_end", self.root, outcome=outcome, duration_ms=12.5)
        return self

    def with_tool(self, tool: str) -> "StoredTurn":
        thinking = self.add("llm_thinking", self.root, status="started", model="m-1")
        call = self.add("tool_call", thinking, status="started", tool=tool)
        self.add("tool_result", call, status="ok", tool=tool)
        self.add("llm_complete", thinking, status="ok", input_tokens=3, output_tokens=4, cost_usd=0.25, ttft_ms=1.5)
        return self


def bare_row(user_id: str, **fields: Any) -> InteractionFlow:
    """A row from outside: the original's columns only."""
    values = {"session_id": str(uuid.uuid4()), "checkpoint": "auth_check", "metadata": {"a": 1}, "created_at": tick()}
    return InteractionFlow.objects.create(user_id=user_id, **{**values, **fields})
