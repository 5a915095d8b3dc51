"""What a checkpoint and an outcome are called on pages that work without JavaScript.

The same tables stand in static/js/words.js for the pages that move; a browser test holds them equal.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

Row = Mapping[str, Any]

CHECKPOINTS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "auth_check": {"icon": "key", "kind": "check", "ok": "Signed in", "refused": "Not let in"},
        "block_check": {"icon": "shield_person", "kind": "check", "ok": "Not blocked", "refused": "Blocked"},
        "usage_check": {"icon": "speed", "kind": "check", "ok": "Within limits", "refused": "Over limit"},
        "mcp_permission_check": {
            "icon": "policy",
            "kind": "check",
            "ok": "Tools offered",
            "refused": "No tools offered",
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
        "usage_limit": "over the daily limit",
        "too_many_turns": "too many turns at once",
        "too_many_refusals": "too many refused questions",
        "llm_failed": "the model failed",
        "llm_timeout": "the model did not answer in time",
        "llm_rate_limited": "the model has too much to do",
        "llm_unavailable": "the model cannot be reached",
        "context_too_long": "too long for the model",
        "tool_failed": "a tool failed",
        "too_many_rounds": "too many rounds of tools",
        "too_many_tool_calls": "too many tools at once",
        "internal_error": "something went wrong",
        "server_stopping": "the server was restarted",
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


def state_of(start: Row, end: Row | None, *, over: bool) -> str:
    """running, ok, refused, failed, cancelled, open (never ended) or left: what became of a step."""
    name, metadata = start["checkpoint"], start["metadata"]
    if name in {"llm_thinking", "tool_call"} and end is None:
        return "open" if over else "running"
    if name == "error":
        return "failed"
    if name == "flow_end":
        return outcome(str(metadata.get("outcome")))["state"]
    status = (end or start)["metadata"].get("status")
    if status == "failed":
        return "refused" if CHECKPOINTS.get(name, UNKNOWN)["kind"] == "check" else "failed"
    return {"error": "failed", "cancelled": "cancelled"}.get(str(status), "ok")


def label(start: Row, end: Row | None, state: str) -> str:
    """What one row is called."""
    name, metadata = start["checkpoint"], start["metadata"]
    if name in {"tool_call", "tool_result"}:
        return str(metadata.get("tool") or "tool")
    if name == "flow_end":
        return outcome(str(metadata.get("outcome")))["label"]
    known = CHECKPOINTS.get((end or start)["checkpoint"], UNKNOWN)
    return known.get(state) or CHECKPOINTS.get(name, UNKNOWN).get(state) or str(name)


def duration(ms: object) -> str:
    """<1 ms, 3 ms, 1.4 s, 2 min 05 s, 1 h 12 min; empty for what is no number."""
    if not isinstance(ms, int | float) or isinstance(ms, bool):
        return ""
    if ms < 0.5:
        return "<1 ms"
    if ms < 999.5:
        return f"{round(ms)} ms"
    if ms < 59_950:
        return f"{ms / 1000:.1f} s"
    seconds = round(ms / 1000)
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


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
