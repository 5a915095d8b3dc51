"""What was said in a turn: question, tool calls, answer, and why there is none. Pure: no database.

Made from checkpoints alone, so it holds what OMNI2_CAPTURE kept and no more. The same lines are
drawn by static/js/transcript.js; a browser test holds the two equal.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flows import words
from flows.capture import PREVIEW_CHARACTERS

Row = Mapping[str, Any]
LEFT = frozenset({"disconnected", "stopped", "abandoned"})


@dataclass(slots=True)
class Line:
    """One thing that was said; `flow_id` is the checkpoint that says it.

    `part`: asked, tool, answer, problem or end. `text` is what was asked or answered, a tool's
    arguments, or why; `result` what a tool gave back. `cut`: only the beginning was kept.
    """

    flow_id: str
    part: str
    label: str
    text: str
    state: str = "ok"
    result: str = ""
    cut: bool = False


def lines_of(rows: Iterable[Row]) -> list[Line]:
    """The lines of one turn, from its checkpoints in order. Linear."""
    lines: list[Line] = []
    calls: dict[str, Line] = {}
    over = False
    for row in rows:
        name = row["checkpoint"]
        if name == "tool_result" and (call := calls.get(row["parent_id"])):
            _finish(call, row)
        elif line := _line(row):
            lines.append(line)
            if name == "tool_call":
                calls[row["flow_id"]] = line
        over = over or name == "flow_end"
    for call in calls.values() if over else ():
        if call.state == "running":
            call.state, call.result = "open", "did not finish"
    return lines


def _line(row: Row) -> Line | None:
    name, data, flow_id = row["checkpoint"], row["metadata"], row["flow_id"]
    if name == "auth_check" and data.get("status") != "failed":
        return _spoken("asked", row, "question", "Question")
    if name == "llm_complete" and _is_answer(data):
        return _spoken("answer", row, "answer", "Answer")
    said = words.describe(row, None, over=False)
    if name == "tool_call":
        given = words.text(data["arguments"]) if "arguments" in data else ""
        return Line(flow_id, "tool", said.label, given, "running", cut=_is_cut(data, "arguments"))
    if name == "error" or (said.kind == "check" and said.state == "refused"):
        return Line(flow_id, "problem", said.label, said.facts, said.state)
    if name == "flow_end" and str(data.get("outcome")) in LEFT:
        return Line(flow_id, "end", said.label, said.facts, said.state)
    return None


def _spoken(part: str, row: Row, key: str, label: str) -> Line:
    said = row["metadata"].get(key)
    if not isinstance(said, str) or not said:
        return Line(row["flow_id"], part, label, "", "missing")
    return Line(row["flow_id"], part, label, said, cut=_is_cut(row["metadata"], key))


def _is_answer(data: Mapping[str, Any]) -> bool:
    """Whether a round of the model said something: with tools it mostly says nothing."""
    if data.get("answer"):
        return True
    return data.get("status") == "ok" and "tool" not in str(data.get("finish_reason") or "")


def _finish(call: Line, row: Row) -> None:
    data = row["metadata"]
    call.state = {"error": "failed", "failed": "failed", "cancelled": "cancelled"}.get(str(data.get("status")), "ok")
    key = "error" if data.get("error") is not None else "result"
    call.result = words.text(data[key]) if data.get(key) is not None else ""
    call.cut = call.cut or _is_cut(data, key)


def _is_cut(data: Mapping[str, Any], key: str) -> bool:
    said = data.get(key)
    return data.get("_cut") is True or (isinstance(said, str) and len(said) == PREVIEW_CHARACTERS and said[-1] == "…")
