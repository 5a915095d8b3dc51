"""A turn's summary as its definition says, made of the rows by plain Python: what flows/store.py has to come to.

It knows nothing of SQL, of batches and of orders: the same rows give the same summary.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any
from uuid import UUID

from flows.models import STAGES, Turn, tag, tool_tag

Document = dict[str, Any]
"""A checkpoint as the log carries it, parsed."""

CHECKS = {"auth_check": "signed_in", "block_check": "not_blocked", "usage_check": "within_limits"}
FAILED = ("failed", "error")


def summary_of(rows: Iterable[Document]) -> dict[str, Any]:
    """The columns of `Turn` of the one turn whose rows these are, in any order."""
    rows = sorted(rows, key=lambda row: (row["created_at"], row["flow_id"]))
    end = next((row for row in rows if row["checkpoint"] == "flow_end"), None)
    ended: Document = end["metadata"] if end else {}
    answered = _facts(rows, "llm_complete")
    costs = [_money(cost) for facts in answered if (cost := number(facts.get("cost_usd"))) is not None]
    return {
        "turn_id": UUID(rows[0]["turn_id"]),
        "session_id": rows[0]["session_id"],
        "user_id": rows[0]["user_id"],
        "started_at": datetime.fromisoformat(rows[0]["created_at"]),
        "ended_at": datetime.fromisoformat(end["created_at"]) if end else None,
        "duration_ms": number(ended.get("duration_ms")),
        "outcome": text(ended.get("outcome"), 20),
        "question": _first(facts.get("question") for facts in _facts(rows, "auth_check")) or "",
        "model": text(_first(facts.get("model") for facts in _facts(rows[::-1], "llm_thinking")), 200),
        "checkpoints": len(rows),
        "tool_calls": len(_facts(rows, "tool_call")),
        "input_tokens": sum(int(number(facts.get("input_tokens")) or 0) for facts in answered),
        "output_tokens": sum(int(number(facts.get("output_tokens")) or 0) for facts in answered),
        "cost_usd": sum(costs, Decimal(0)) if costs else None,
        "ttft_ms": _first([number(ended.get("ttft_ms")), *(number(facts.get("ttft_ms")) for facts in answered)]),
        "error": _error(rows),
        "process_id": UUID(process) if (process := rows[0]["metadata"].get("process")) else None,
        "tags": _tags(rows),
        "stage": max(at for at, key in STAGES.items() if key in _reached(rows)),
        "steps": Counter(_steps(rows)),
    }


def stored_summaries(turn_ids: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """turn_id → what is stored of it (None: of all turns), in the same words. One query."""
    turns = Turn.objects.all() if turn_ids is None else Turn.objects.filter(turn_id__in=turn_ids)
    return {str(turn["turn_id"]): _in_any_order(dict(turn)) for turn in turns.values()}


def _in_any_order(turn: dict[str, Any]) -> dict[str, Any]:
    """Tags are a set, and the steps are as many as there were, in whatever order they were stored."""
    tags, steps, step_ms = turn.pop("tags"), turn.pop("steps"), turn.pop("step_ms")
    assert len(tags) == len(set(tags))
    return {**turn, "tags": set(tags), "steps": Counter(zip(steps, map(_single, step_ms), strict=True))}


def number(value: Any) -> float | None:
    return max(value, 0) if isinstance(value, int | float) else None


def text(value: Any, length: int) -> str | None:
    return None if value is None else str(value)[:length]


def _single(value: float | None) -> float | None:
    """In the four bytes the column has."""
    return None if value is None else struct.unpack("f", struct.pack("f", value))[0]


def _money(value: float) -> Decimal:
    """As its column rounds."""
    return Decimal(str(value)).quantize(Decimal("1e-8"), ROUND_HALF_UP)


def _first(values: Iterable[Any]) -> Any:
    return next((value for value in values if value is not None), None)


def _facts(rows: Sequence[Document], checkpoint: str) -> list[Document]:
    return [row["metadata"] for row in rows if row["checkpoint"] == checkpoint]


def _error(rows: Sequence[Document]) -> str | None:
    """The code of the last error; without one, why the first check failed that says it."""
    codes = (facts.get("code") for facts in _facts(rows[::-1], "error"))
    failed = [row for row in rows if row["checkpoint"].endswith("_check") and row["metadata"].get("status") == "failed"]
    return text(_first([*codes, *map(_why, failed)]), 10_000)


def _why(row: Document) -> str | None:
    """Never the reason of a block."""
    code, reason = row["metadata"].get("code"), row["metadata"].get("reason")
    return text(_first([code, "user_blocked" if row["checkpoint"] == "block_check" else reason]), 10_000)


def _tags(rows: Sequence[Document]) -> set[str]:
    tags: set[str] = set()
    for row in rows:
        name, facts = row["checkpoint"], row["metadata"]
        status, tool = text(facts.get("status"), 50), text(facts.get("tool"), 200)
        tags.add(tag(name))
        if status is not None:
            tags |= {tag(name, status), tag(None, status)}
        if name == "tool_call" and tool is not None:
            tags.add(tool_tag(tool))
    return tags


def _reached(rows: Sequence[Document]) -> set[str]:
    keys = {"begun"}
    for row in rows:
        name, facts = row["checkpoint"], row["metadata"]
        if name in CHECKS and facts.get("status") == "passed":
            keys.add(CHECKS[name])
        if name == "llm_thinking":
            keys.add("model_called")
        if name in ("llm_complete", "flow_end") and facts.get("ttft_ms") is not None:
            keys.add("first_token")
        if name == "flow_end" and facts.get("outcome") == "completed":
            keys.add("completed")
    return keys


def _steps(rows: Sequence[Document]) -> Iterable[tuple[str, float | None]]:
    for row in rows:
        name, facts = row["checkpoint"], row["metadata"]
        tool, ms = text(facts.get("tool"), 200) or "", _single(number(facts.get("duration_ms")))
        failed = facts.get("status") in FAILED
        if name == "tool_call":
            yield f"c{tool}", ms
        elif name == "tool_result":
            yield f"{'R' if failed else 'r'}{tool}", ms
        elif name != "flow_end" and (failed or ms is not None):
            yield f"{'S' if failed else 's'}{name}", ms
