"""What a checkpoint and an outcome are called and say, on pages that work without JavaScript.

The same words stand in static/js/words.js for the pages that move; browser tests hold them equal.
Metadata may come from outside: nothing here trusts its types, and nothing raises.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from types import MappingProxyType
from typing import Any, NamedTuple

Row = Mapping[str, Any]
Metadata = Mapping[str, Any]

CHECKPOINTS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "auth_check": {"icon": "key", "kind": "check", "ok": "Signed in", "refused": "Not let in"},
        "block_check": {"icon": "shield_person", "kind": "check", "ok": "Not blocked", "refused": "Blocked"},
        "usage_check": {"icon": "speed", "kind": "check", "ok": "Within limits", "refused": "Over limit"},
        "mcp_permission_check": {
            "icon": "policy",
            "kind": "check",
            "ok": "Tool servers offered",
            "refused": "No tool servers offered",
        },
        "tool_filter": {"icon": "filter_alt", "kind": "check", "ok": "Tools offered", "refused": "No tools offered"},
        "llm_thinking": {
            "icon": "neurology",
            "kind": "model",
            "running": "Model thinking",
            "open": "Model did not finish",
        },
        "llm_complete": {
            "icon": "neurology",
            "kind": "model",
            "ok": "Model answered",
            "failed": "Model failed",
            "cancelled": "Model stopped",
        },
        "tool_call": {"icon": "build", "kind": "tool"},
        "tool_result": {"icon": "build", "kind": "tool"},
        "tool_approval": {"icon": "front_hand", "kind": "check"},
        "client_result": {"icon": "build", "kind": "tool"},
        "error": {"icon": "error", "kind": "error", "failed": "Failed"},
        "flow_end": {"icon": "flag", "kind": "end"},
    }
)
UNKNOWN: Mapping[str, str] = MappingProxyType({"icon": "help_center", "kind": "other"})

OUTCOMES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "completed": {"icon": "check_circle", "state": "ok", "label": "Completed"},
        "refused": {"icon": "block", "state": "refused", "label": "Refused"},
        "failed": {"icon": "error", "state": "failed", "label": "Failed"},
        "disconnected": {"icon": "logout", "state": "left", "label": "Left"},
        "stopped": {"icon": "stop_circle", "state": "refused", "label": "Stopped"},
        "abandoned": {"icon": "link_off", "state": "left", "label": "Abandoned"},
    }
)
RUNNING: Mapping[str, str] = MappingProxyType({"icon": "pending", "state": "running", "label": "Running"})

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "inactive": "the account is not active",
        "expired": "the token has expired",
        "revoked": "the token was revoked",
        "user_blocked": "blocked",
        "usage_limit": "over the limit",
        "too_many_turns": "too many turns at once",
        "too_many_refusals": "too many refused questions",
        "llm_failed": "the model failed",
        "llm_timeout": "the model did not answer in time",
        "llm_rate_limited": "the model has too much to do",
        "llm_unavailable": "the model cannot be reached",
        "context_too_long": "too long for the model",
        "content_refused": "the model declined to answer",
        "model_not_found": "there is no such model for this user",
        "tool_failed": "a tool failed",
        "too_many_rounds": "too many rounds of tools",
        "too_many_tool_calls": "too many tools at once",
        "internal_error": "something went wrong",
        "server_stopping": "the server was restarted",
        "stopped": "stopped",
    }
)


def outcome(code: str | None) -> Mapping[str, str]:
    """Icon, state and label of how a turn ended; None: it runs."""
    if code is None:
        return RUNNING
    return OUTCOMES.get(code, {"icon": "flag", "state": "left", "label": code})


def reason(code: str) -> str:
    """A code of a refusal or an error in words."""
    return REASONS.get(code, code.replace("_", " "))


class Said(NamedTuple):
    """What one row shows. `state`: running, ok, refused, failed, cancelled, open (never ended) or left."""

    icon: str
    kind: str
    state: str
    label: str
    facts: str


def describe(start: Row, end: Row | None, *, over: bool) -> Said:
    """One row: a checkpoint and, for a step with two, the one that ended it; `over`: its turn has ended."""
    last, name = end or start, str(start["checkpoint"])
    known = CHECKPOINTS.get(name, UNKNOWN)
    state = state_of(start, end, over=over)
    label = CHECKPOINTS.get(last["checkpoint"], UNKNOWN).get(state) or known.get(state) or name
    own_label, facts = _WORDS.get(name, _other)(start, end, state)
    return Said(known["icon"], known["kind"], state, own_label or label, facts)


def state_of(start: Row, end: Row | None, *, over: bool) -> str:
    """What became of a step: see `Said.state`."""
    name, metadata = start["checkpoint"], start["metadata"]
    if name in {"llm_thinking", "tool_call"} and end is None:
        return "open" if over else "running"
    if name == "error":
        return "refused" if metadata.get("code") == "stopped" else "failed"
    if name == "flow_end":
        return outcome(str(metadata.get("outcome")))["state"]
    status = (end or start)["metadata"].get("status")
    if status == "failed":
        return "refused" if CHECKPOINTS.get(name, UNKNOWN)["kind"] == "check" else "failed"
    return _STATES.get(str(status), "ok")


_STATES: Mapping[str, str] = MappingProxyType(
    {"error": "failed", "cancelled": "cancelled", "declined": "refused", "expired": "refused"}
)


# --- the words of each checkpoint: its label, where it is not the table's, and its facts ------------

Words = tuple[str, str]


def _auth_check(start: Row, end: Row | None, state: str) -> Words:
    data = start["metadata"]
    name = data.get("token") if data.get("token") is not None else data.get("token_name")
    token = f"token “{short(name, 40)}”" if _is_text(name) else "token"
    by = {"session": "browser session", "token": token}.get(str(data.get("method")), "")
    why = data.get("reason")
    return "", _join(reason(short(why)) if why else "", by) if state == "refused" else by


def _block_check(start: Row, end: Row | None, state: str) -> Words:
    why = start["metadata"].get("message")
    why = start["metadata"].get("reason") if why is None else why
    return "", short(why) if state == "refused" and why is not None else ""


def _usage_check(start: Row, end: Row | None, state: str) -> Words:
    """The limit that was reached, or how many of today's requests this one was."""
    data = start["metadata"]
    used, limit, name = data.get("used"), data.get("limit"), data.get("limit_name") or "requests_per_day"
    if not is_number(used):
        return "", short(data["reason"]) if _is_text(data.get("reason")) else ""
    amount, unit, when = _LIMITS.get(str(name), (count, str(name), ""))
    numbers = f"{amount(used)} of {amount(limit)}" if is_number(limit) else amount(used)
    said = " ".join(part for part in (numbers, unit, when) if part)
    resets = data.get("resets_at")
    if state != "refused" or not when or not _is_text(resets):
        return "", said
    return "", f"{said}, free again {_hour(resets, dated=when == 'this month')}"


def _tools_offered(start: Row, end: Row | None, state: str) -> Words:
    data = start["metadata"]
    noun = "server" if start.get("checkpoint") == "mcp_permission_check" else "tool"
    offered, total, withheld = data.get("offered"), data.get("total"), data.get("withheld")
    names = [_withheld(one) for one in withheld] if isinstance(withheld, list) else []
    together = _many(total)
    if together is None and isinstance(withheld, list) and offered is not None:
        together = (_many(offered) or 0) + len(withheld)
    numbers = ""
    if offered is not None:
        tools = _many(offered) or 0
        numbers = (
            f"{count(tools)} {noun if tools == 1 else noun + 's'}" if together is None else f"{tools} of {together}"
        )
    why = short(data.get("reason") or "") if state == "refused" else ""
    return "", _join(numbers, "without " + short(", ".join(names)) if names else "", why)


def _withheld(one: Any) -> str:
    if isinstance(one, dict) and (name := one.get("tool") or one.get("server")):
        return f"{plain(name)} ({plain(one.get('reason') or 'withheld')})"
    return plain(one)


def _llm_thinking(start: Row, end: Row | None, state: str) -> Words:
    asked, answer = start["metadata"], end["metadata"] if end else {}
    number = asked.get("round")
    model, again = asked.get("model"), f"round {plain(number)}" if is_number(number) and number > 1 else ""
    attempt, replaced = asked.get("attempt"), asked.get("instead_of")
    again = _join(
        again,
        f"attempt {plain(attempt)}" if is_number(attempt) and attempt > 1 else "",
        f"instead of {short(replaced, 60)}" if _is_text(replaced) else "",
    )
    if state in {"running", "open"}:
        return "", _join(again, model)
    chose = state == "ok" and "tool" in str(answer.get("finish_reason") or "")
    used: list[Any] = [answer.get("input_tokens"), answer.get("output_tokens")]
    tokens = sum(one for one in used if is_number(one))
    code = answer.get("code")
    why = answer.get("error") if answer.get("error") is not None else reason(short(code)) if _is_text(code) else None
    facts = _join(
        short(why) if state == "failed" and why is not None else "",
        f"{count(tokens)} tok" if tokens else "",
        money(answer["cost_usd"]) if is_number(answer.get("cost_usd")) and answer["cost_usd"] else "",
        f"first token {duration(answer['ttft_ms'])}" if is_number(answer.get("ttft_ms")) else "",
        again,
        model,
    )
    return "Model chose tools" if chose else CHECKPOINTS["llm_complete"].get(state, ""), facts


def _llm_complete(start: Row, end: Row | None, state: str) -> Words:
    return _llm_thinking({"metadata": {}}, start, state)


def _tool_call(start: Row, end: Row | None, state: str) -> Words:
    data, result = start["metadata"], end["metadata"] if end else {}
    why: Any = ""
    if state == "failed":
        why = next((result[key] for key in ("error", "message") if result.get(key) is not None), "failed")
    left = {"open": "did not finish", "cancelled": "cancelled"}.get(state, "")
    if state == "ok" and result.get("status") == "handed_over":
        left = "handed to the client"
    given = short(text(data["arguments"]), 120) if "arguments" in data else ""
    tool = data.get("tool")
    return short("tool" if tool is None else tool, 60), _join(short(text(why), 120), left, given)


def _tool_result(start: Row, end: Row | None, state: str) -> Words:
    tool = start["metadata"].get("tool")
    return _tool_call({"metadata": {"tool": tool}}, start, state)


def _tool_approval(start: Row, end: Row | None, state: str) -> Words:
    data = start["metadata"]
    seconds, tool = data.get("expires_in_s"), data.get("tool")
    asked = data.get("status") == "started"
    within = f"within {duration(seconds * 1000)}" if asked and is_number(seconds) else ""
    label = _APPROVALS.get(str(data.get("status")), "The user is asked for his yes")
    return label, _join("" if tool is None else short(tool, 60), within)


def _client_result(start: Row, end: Row | None, state: str) -> Words:
    """What a tool of the client answered, to a call of a turn before."""
    tool, result = start["metadata"].get("tool"), start["metadata"].get("result")
    return short("tool" if tool is None else tool, 60), _join("the client's result", short(text(result or ""), 120))


def _error(start: Row, end: Row | None, state: str) -> Words:
    code, message = start["metadata"].get("code"), start["metadata"].get("message")
    label = _capital(REASONS[code]) if isinstance(code, str) and code in REASONS else "Failed"
    if code == "stopped":
        by, why = _stopper(start["metadata"]), start["metadata"].get("reason")
        return f"Stopped by {by}" if by else label, _join(short(why) if _is_text(why) else "", _quoted(message))
    return label, _join(short("" if message is None else message), code if label == "Failed" else "")


def _stopper(data: Metadata) -> str:
    """Who stopped the turn, by name; "" when that is not known or not for this reader."""
    return next((short(data[key], 60) for key in ("stopped_by_name", "stopped_by") if _is_text(data.get(key))), "")


def _quoted(message: Any) -> str:
    return f"“{short(message)}”" if _is_text(message) else ""


def _flow_end(start: Row, end: Row | None, state: str) -> Words:
    data = start["metadata"]
    how, by, took = data.get("outcome"), _stopper(data), data.get("duration_ms")
    label = OUTCOMES.get(str(how), {"label": "Ended"})["label"]
    if how == "stopped" and by:
        label = f"Stopped by {by}"
    after = f"after {duration(took)}" if is_number(took) and how != "refused" else ""
    return label, _join(_ENDED.get(str(how), ""), after)


def _other(start: Row, end: Row | None, state: str) -> Words:
    told = (f"{key} {plain(value)}" for key, value in start["metadata"].items() if isinstance(value, str | int | float))
    return short(start["checkpoint"], 60), short(" · ".join(told))


_WORDS: Mapping[str, Callable[[Row, Row | None, str], Words]] = MappingProxyType(
    {
        "auth_check": _auth_check,
        "block_check": _block_check,
        "usage_check": _usage_check,
        "mcp_permission_check": _tools_offered,
        "tool_filter": _tools_offered,
        "llm_thinking": _llm_thinking,
        "llm_complete": _llm_complete,
        "tool_call": _tool_call,
        "tool_result": _tool_result,
        "tool_approval": _tool_approval,
        "client_result": _client_result,
        "error": _error,
        "flow_end": _flow_end,
    }
)
_APPROVALS: Mapping[str, str] = MappingProxyType(
    {
        "approved": "The user said yes",
        "declined": "The user said no",
        "expired": "The user did not answer in time",
        "cancelled": "Nobody waits for the user any more",
    }
)
_ENDED: Mapping[str, str] = MappingProxyType(
    {
        "refused": "no model was called",
        "abandoned": "the process serving it went away",
        "disconnected": "the client went away",
    }
)


# --- pieces of text ----------------------------------------------------------------------------------


def short(value: Any, most: int = 160) -> str:
    """One line of at most `most` characters: texts of metadata may be long or hold line breaks."""
    line = " ".join(plain(value).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def text(value: Any) -> str:
    """Arguments in short: office “Oslo”, year 2026. They come as the JSON the model wrote; cut off or
    broken, they are shown as they are."""
    if not isinstance(value, str):
        return _in_short(value)
    try:
        read = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return _in_short(read) if isinstance(read, dict | list) else value


def _in_short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_in_short, value))
    if isinstance(value, dict):
        return ", ".join(
            f"{key} “{one}”" if isinstance(one, str) else f"{key} {_in_short(one)}" for key, one in value.items()
        )
    return plain(value)


def plain(value: Any) -> str:
    """A value of JSON as JavaScript says it: true, null, 1 for 1.0."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def count(number: Any) -> str:
    """1,204; at most three digits after the point."""
    rounded = round(float(number), 3)
    return f"{int(rounded):,}" if rounded.is_integer() else f"{rounded:,}"


def _many(value: Any) -> int | None:
    if isinstance(value, list):
        return len(value)
    return int(value) if is_number(value) else None


def _hour(iso: str, *, dated: bool = False) -> str:
    """14:02 UTC, or 1 Dec 14:02 UTC; the text itself when it is no time."""
    try:
        at = datetime.fromisoformat(iso).astimezone(UTC)
        return f"{at.day} {at:%b %H:%M} UTC" if dated else f"{at:%H:%M} UTC"
    except (ValueError, OverflowError):
        return short(iso, 40)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def is_number(value: Any) -> bool:
    """A number one can reckon with: finite, and no integer beyond a double."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def _join(*facts: Any) -> str:
    told: Iterable[str] = (fact for fact in facts if _is_text(fact))
    return " · ".join(told)


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def duration(ms: object) -> str:
    """<1 ms, 3 ms, 1.4 s, 2 min 05 s, 1 h 12 min; empty for what is no number."""
    if not isinstance(ms, int | float) or not is_number(ms):
        return ""
    if ms < 0.5:
        return "<1 ms"
    if ms < 999.5:
        return f"{_rounded(ms, 0)} ms"
    if ms < 59_950:
        return f"{_rounded(ms / 1000, 1)} s"
    seconds = math.floor(ms / 1000 + 0.5)
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def _rounded(number: float, places: int) -> Decimal:
    """As JavaScript rounds: what lies in the middle goes up."""
    return Decimal(number).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)


def money(usd: Any) -> str:
    """As many digits as it needs: $0.004, $12.40; empty when there is no price."""
    if usd is None:
        return ""
    value = float(usd)
    if value == 0:
        return "$0"
    if value >= 1:
        return f"${value:.2f}"
    digits = next((places for places in range(2, 8) if round(value, places) >= 10 ** (1 - places)), 8)
    text = f"{value:.{digits}f}"
    whole, _, fraction = text.partition(".")
    return f"${whole}.{fraction[:2]}{fraction[2:].rstrip('0')}"


_LIMITS: Mapping[str, tuple[Callable[[Any], str], str, str]] = MappingProxyType(
    {
        "requests_per_minute": (count, "requests", "this minute"),
        "tokens_per_minute": (count, "tokens", "this minute"),
        "requests_per_month": (count, "requests", "this month"),
        "tokens_per_month": (count, "tokens", "this month"),
        "cost_usd_per_month": (money, "", "this month"),
        "requests_per_day": (count, "requests", "today"),
        "tokens_per_day": (count, "tokens", "today"),
        "cost_usd_per_day": (money, "", "today"),
        "turns_at_once": (count, "turns at once", ""),
    }
)
