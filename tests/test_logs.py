"""Log lines, for people and for machines: the turn's id in each that is about a turn."""

import json
import logging
import sys
from typing import Any

from omni2.logs import JsonFormatter, TextFormatter

TURN = "0199aaaa-0000-7000-8000-000000000001"


def record(**more: Any) -> logging.LogRecord:
    made = logging.LogRecord(
        "chat.turn", logging.WARNING, __file__, 1, "a turn\nfailed: %s", ("ä",), more.pop("exc", None)
    )
    made.__dict__.update(more)
    return made


def failure() -> Any:
    try:
        raise RuntimeError("why")
    except RuntimeError:
        return sys.exc_info()


def test_a_machine_gets_one_object_a_line() -> None:
    line = JsonFormatter().format(record(turn_id=TURN, exc=failure()))
    assert "\n" not in line
    said = json.loads(line)
    assert said.pop("time").endswith("Z")
    assert "RuntimeError: why" in said.pop("exception")
    assert said == {"level": "warning", "logger": "chat.turn", "message": "a turn\nfailed: ä", "turn_id": TURN}
    assert "turn_id" not in json.loads(JsonFormatter().format(record()))


def test_a_person_gets_a_line_with_the_turn_at_its_end() -> None:
    line = TextFormatter().format(record(turn_id=TURN))
    assert line.endswith(f" WARNING chat.turn a turn\nfailed: ä turn_id={TURN}")
    assert "turn_id" not in TextFormatter().format(record())
