"""An event is one event, whatever is in its data."""

import json

from chat.sse import HEARTBEAT, event


def test_it_is_a_name_and_one_line_of_json() -> None:
    assert event("token", {"text": "Grüße"}) == 'event: token\ndata: {"text":"Grüße"}\n\n'.encode()


def test_no_text_can_end_the_event_early() -> None:
    text = "a\n\nevent: done\r\ndata: {}\r\r\u2028\u0085\x00b"
    raw = event("token", {"text": text}).decode()
    assert raw.endswith("\n\n")
    name, data = raw.removesuffix("\n\n").split("\n")
    assert name == "event: token"
    assert "\r" not in data
    assert json.loads(data.removeprefix("data: ")) == {"text": text}


def test_a_heartbeat_is_a_comment() -> None:
    assert HEARTBEAT.startswith(b":")
    assert HEARTBEAT.endswith(b"\n\n")
