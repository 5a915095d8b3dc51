"""Many turns at random, as the persister gets them: every way a turn can go, some with strange names.

store(documents(Random(1), 500, since=…, until=…, users=["bob@example.com"]))
"""

import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

MODELS = ("openai:gpt-5.2", "local", "anthropic:claude-sonnet-5", '<b onclick="x()">model</b>')
TOOLS = ("search_invoices", "exchange_rate", "calendar", "<script>alert(1)</script>", 'a"b&c=d #%?', "شؤون🙂")
QUESTIONS = ("Which invoices of the Oslo office are overdue?", "Translate page 4", "<img src=x onerror=alert(1)>", "")
CODES = ("llm_timeout", "llm_failed", "tool_failed", "internal_error", "<i>odd</i> code")
# A turn goes one of these ways, as often as the weight says.
WAYS = {
    "completed": 68,
    "failed": 9,
    "not_let_in": 2,
    "blocked": 4,
    "over_limit": 7,
    "left": 4,
    "left_after_error": 1,
    "stopped": 2,
    "abandoned": 1,
    "running": 2,
}


class _Turn:
    def __init__(self, random: Random, at: datetime, user_id: str) -> None:
        self.random, self.at, self.began = random, at, at
        self.ids = {"user_id": user_id, "session_id": str(uuid.UUID(int=random.getrandbits(128), version=4))}
        self.turn_id: str | None = None
        self.made: list[bytes] = []

    def add(self, checkpoint: str, parent: str | None, /, **metadata: Any) -> str:
        flow_id = str(uuid.UUID(int=self.random.getrandbits(128), version=4))
        self.turn_id = self.turn_id or flow_id
        at = self.at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        document = {"flow_id": flow_id, **self.ids, "turn_id": self.turn_id, "checkpoint": checkpoint}
        self.made.append(json.dumps({**document, "parent_id": parent, "metadata": metadata, "created_at": at}).encode())
        self.at += timedelta(microseconds=1)
        return flow_id

    def took(self, middle_ms: float) -> float:
        """Time passes: around so many milliseconds, sometimes ten times as much."""
        ms = round(middle_ms * self.random.lognormvariate(0, 0.7), 3)
        self.at += timedelta(milliseconds=ms)
        return ms

    def end(self, root: str, outcome: str, **more: Any) -> None:
        passed = (self.at - self.began) / timedelta(milliseconds=1)
        self.add("flow_end", root, outcome=outcome, duration_ms=round(passed, 3), **more)


def documents(
    random: Random, count: int, *, since: datetime, until: datetime, users: Sequence[str], ways: Sequence[str] = ()
) -> list[bytes]:
    """`count` turns that began between the two times, each a few checkpoints."""
    made: list[bytes] = []
    for _ in range(count):
        at = since + (until - since) * random.random()
        way = random.choice(ways) if ways else random.choices(list(WAYS), list(WAYS.values()))[0]
        made += _turn(_Turn(random, at, random.choice(users)), way)
    return made


def _turn(turn: _Turn, way: str) -> list[bytes]:
    random, question = turn.random, turn.random.choice(QUESTIONS)
    let_in = way != "not_let_in"
    root = turn.add(
        "auth_check",
        None,
        status="passed" if let_in else "failed",
        question=question,
        duration_ms=turn.took(2),
        **({} if let_in else {"reason": "revoked"}),
    )
    if not let_in:
        turn.end(root, "refused")
        return turn.made
    for check, refused, reason in (("block_check", "blocked", "rude"), ("usage_check", "over_limit", "usage_limit")):
        status = "failed" if way == refused else "passed"
        why = {"reason": reason} if way == refused else {}
        step = turn.add(check, root, status=status, duration_ms=turn.took(1), **why)
        if way == refused:
            turn.end(root, "refused")
            return turn.made
    for number in range(1, random.choice((1, 1, 1, 2, 3)) + 1):
        if _round(turn, step, way, number):
            break
    if way != "running":
        turn.end(root, "disconnected" if way.startswith("left") else way)
    return turn.made


def _round(turn: _Turn, parent: str, way: str, number: int) -> bool:
    """One round of the model with its tools; whether it is the last."""
    random, model = turn.random, turn.random.choice(MODELS)
    thinking = turn.add("llm_thinking", parent, status="started", model=model, round=number)
    if way in {"running", "abandoned"} and random.random() < 0.6:
        return True
    for tool in random.sample(TOOLS, random.choice((0, 0, 1, 2))):
        call = turn.add("tool_call", thinking, status="started", tool=tool)
        failed = random.random() < (0.3 if tool == "exchange_rate" else 0.05)
        turn.add("tool_result", call, status="error" if failed else "ok", tool=tool, duration_ms=turn.took(400))
    if way in {"failed", "left_after_error"} and random.random() < 0.7:
        turn.add("llm_complete", thinking, status="error", duration_ms=turn.took(9000))
        turn.add("error", thinking, code=random.choice(CODES), message="It did not work.")
        return True
    if way in {"left", "stopped"} and random.random() < 0.5:
        turn.add("llm_complete", thinking, status="cancelled", duration_ms=turn.took(900))
        return True
    first = turn.took(600)
    figures = {"input_tokens": random.randint(50, 4000), "output_tokens": random.randint(5, 900), "ttft_ms": first}
    cost = {} if model == "local" else {"cost_usd": round(random.random() / 50, 6)}
    turn.add("llm_complete", thinking, status="ok", duration_ms=first + turn.took(2500), **figures, **cost)
    return False
