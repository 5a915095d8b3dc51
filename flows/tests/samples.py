"""Random turns of every kind, as documents: what the tests of the figures are made of."""

import json
import math
import random
import uuid
from datetime import datetime, timedelta
from typing import Any

USERS = ("ann@example.com", "bob@example.com", "cem@example.com")
MODELS = ("m-small", "m-large")
TOOLS = ("clock", "search", "calculator")


class Sample:
    """Makes one turn after the other; the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.rows: list[dict[str, Any]] = []

    def turn(self, began: datetime) -> None:
        chance = self.chance
        self.user_id, self.session_id = chance.choice(USERS), str(uuid.UUID(int=chance.getrandbits(128)))
        self.at, self.turn_id = began, ""
        kind = chance.choice(["done"] * 5 + ["signed_out", "blocked", "limit", "failed", "left", "running", "stands"])
        if kind == "signed_out":
            root = self.add("auth_check", None, status="failed", reason="expired", duration_ms=self.ms())
            return self.end(root, "refused")
        root = self.add("auth_check", None, status="passed", question="how late?", duration_ms=self.ms())
        if kind == "blocked":
            self.add("block_check", root, status="failed", code="user_blocked", duration_ms=self.ms())
            return self.end(root, "refused")
        check = self.add("block_check", root, status="passed", duration_ms=self.ms())
        if kind == "limit":
            self.add("usage_check", check, status="failed", code="usage_limit", duration_ms=self.ms())
            return self.end(root, "refused")
        check = self.add("usage_check", check, status="passed", duration_ms=self.ms())
        if kind == "stands":
            return None
        model = chance.choice(MODELS)
        thinking = self.add("llm_thinking", check, status="started", model=model)
        for _ in range(chance.choice([0, 0, 1, 3])):
            self.call(thinking)
        if kind == "running":
            return None
        status = {"failed": "error", "left": "cancelled"}.get(kind, "ok")
        spoke = {"ttft_ms": self.ms()} if status == "ok" else {}
        cost = chance.choice([None, 0.25])
        tokens = {"input_tokens": chance.randint(1, 99), "output_tokens": chance.randint(1, 99)}
        self.add("llm_complete", thinking, status=status, duration_ms=self.ms(), cost_usd=cost, **tokens, **spoke)
        if kind == "failed":
            self.add("error", thinking, code=chance.choice(["llm_failed", "llm_timeout"]))
        return self.end(root, {"failed": "failed", "left": "disconnected"}.get(kind, "completed"), **spoke)

    def call(self, thinking: str) -> None:
        tool, status = self.chance.choice(TOOLS), self.chance.choice(["ok", "ok", "error", "cancelled"])
        call = self.add("tool_call", thinking, status="started", tool=tool)
        if self.chance.random() < 0.9:
            self.add("tool_result", call, status=status, tool=tool, duration_ms=self.ms())

    def ms(self) -> float:
        return round(math.exp(self.chance.gauss(4, 2)), 3)

    def end(self, root: str, outcome: str, **more: Any) -> None:
        self.add("flow_end", root, outcome=outcome, duration_ms=self.ms(), **more)

    def add(self, checkpoint: str, parent: str | None, /, **metadata: Any) -> str:
        flow_id = str(uuid.UUID(int=self.chance.getrandbits(128)))
        self.turn_id = self.turn_id or flow_id
        self.at += timedelta(milliseconds=1)
        self.rows.append(
            {
                "flow_id": flow_id,
                "user_id": self.user_id,
                "session_id": self.session_id,
                "turn_id": self.turn_id,
                "checkpoint": checkpoint,
                "parent_id": parent,
                "metadata": metadata,
                "created_at": self.at.isoformat(),
            }
        )
        return flow_id

    def documents(self) -> list[bytes]:
        return [json.dumps(row).encode() for row in self.rows]
