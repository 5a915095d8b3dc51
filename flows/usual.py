"""How long a model or a tool usually takes: what the pages hold a running step against."""

import threading
import time
from datetime import UTC, datetime, timedelta

from flows import analytics
from flows.analytics import Question

Usual = dict[str, dict[str, list[float]]]
"""`{"llm_thinking": {model: [p50_ms, p95_ms]}, "tool_call": {tool: [p50_ms, p95_ms]}}`"""

LOOK_BACK = timedelta(days=7)
LEAST_SAMPLES = 20
"""With fewer, nobody can say what is usual."""

KEPT_S = 60.0
_STARTS = {"llm_complete": "llm_thinking", "tool_result": "tool_call"}

_lock = threading.Lock()
_kept: tuple[float, Usual] | None = None


def usual() -> Usual:
    """What was usual in the last seven days, for each model and tool with at least 20 samples.

    Asked of the database once a minute and process (a few queries), by one thread; the others get
    the earlier answer meanwhile.
    """
    global _kept
    kept = _kept
    if kept is not None and time.monotonic() - kept[0] < KEPT_S:
        return kept[1]
    # whoever comes while another asks takes the old answer; only the very first have to wait
    if not _lock.acquire(blocking=kept is None):
        assert kept is not None
        return kept[1]
    try:
        if _kept is None or _kept is kept:
            _kept = (time.monotonic(), _asked())
        return _kept[1]
    finally:
        _lock.release()


def forget() -> None:
    """Ask the database at the next call (for tests and for whoever changed what is stored)."""
    global _kept
    _kept = None


def _asked() -> Usual:
    now = datetime.now(UTC)
    found: Usual = {start: {} for start in _STARTS.values()}
    for step in analytics.steps(Question(now - LOOK_BACK, now)):
        start = _STARTS.get(step.checkpoint)
        times = step.time
        if start and step.name and times.count >= LEAST_SAMPLES and times.p50 is not None and times.p95 is not None:
            found[start][step.name] = [round(times.p50, 3), round(times.p95, 3)]
    return found
