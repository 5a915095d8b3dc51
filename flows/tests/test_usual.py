"""What is usual: of the last seven days, of enough samples, asked once a minute."""

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from flows.store import store
from flows.usual import forget, usual

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _asks_anew() -> Iterator[None]:
    forget()
    yield
    forget()


def turns(count: int, *, ms: float, tool: str = "search", model: str = "m-1", days_ago: float = 1) -> None:
    """That many turns with one round of the model and one call, each as long as `ms`."""
    began = datetime.now(UTC) - timedelta(days=days_ago)
    rows = []
    for _ in range(count):
        turn_id, steps = str(uuid.uuid4()), [("llm_thinking", {"model": model}), ("tool_call", {"tool": tool})]
        ends = [("tool_result", {"tool": tool, "duration_ms": ms}), ("llm_complete", {"duration_ms": ms})]
        for number, (checkpoint, metadata) in enumerate(steps + ends):
            row = {"flow_id": turn_id if number == 0 else str(uuid.uuid4()), "turn_id": turn_id, "parent_id": None}
            row |= {"user_id": "bob@example.com", "session_id": "s", "created_at": began.isoformat()}
            rows.append({**row, "checkpoint": checkpoint, "metadata": metadata})
    store([json.dumps(row).encode() for row in rows])


def test_it_says_what_half_and_nearly_all_take() -> None:
    turns(95, ms=100)
    turns(5, ms=4000)
    turns(3, ms=9000, tool="rare", model="m-2")
    found = usual()
    assert set(found) == {"llm_thinking", "tool_call"}
    assert found["tool_call"] == {"search": [pytest.approx(100, rel=0.011), pytest.approx(100, rel=0.011)]}
    assert found["llm_thinking"] == {"m-1": [pytest.approx(100, rel=0.011), pytest.approx(100, rel=0.011)]}
    turns(1, ms=4000)
    forget()
    assert usual()["tool_call"]["search"][1] == pytest.approx(4000, rel=0.011)


def test_it_leaves_out_what_is_older_than_seven_days() -> None:
    turns(30, ms=100, days_ago=8)
    turns(19, ms=100)
    assert usual() == {"llm_thinking": {}, "tool_call": {}}


def test_it_asks_the_database_once() -> None:
    turns(20, ms=100)
    first = usual()
    turns(20, ms=5000)
    with CaptureQueriesContext(connection) as asked:
        assert usual() == first
    assert not asked.captured_queries
