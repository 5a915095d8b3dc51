"""What Django is given of a request, at the level of ASGI, where a test client does not come by."""

import asyncio
import json
from typing import Any

import pytest

from omni2.intake import MAX_BODY_BYTES, intake


class Call:
    """One request to an application that writes down what it got."""

    def __init__(self, *messages: dict[str, Any], path: str = "/api/x", query: bytes = b"", **headers: bytes) -> None:
        self.messages = list(messages)
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": query,
            "headers": [(name.replace("_", "-").encode(), value) for name, value in headers.items()],
        }
        self.got: dict[str, Any] | None = None
        self.sent: list[Any] = []

    async def receive(self) -> dict[str, Any]:
        return self.messages.pop(0) if self.messages else {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def application(self, scope: Any, receive: Any, send: Any) -> None:
        first = await receive()
        self.got = {"headers": dict(scope["headers"]), **first, "then": await receive()}

    async def run(self) -> "Call":
        await asyncio.wait_for(intake(self.application)(self.scope, self.receive, self.send), 5)
        return self

    @property
    def refusal(self) -> tuple[int, str]:
        return self.sent[0]["status"], json.loads(self.sent[1]["body"])["code"]


def part(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_it_hands_a_chunked_body_on_whole_and_with_its_length() -> None:
    call = await Call(part(b'{"a"', more=True), part(b": 1}"), transfer_encoding=b"chunked").run()
    assert call.got is not None
    assert call.got["body"] == b'{"a": 1}'
    assert call.got["more_body"] is False
    assert call.got["headers"][b"content-length"] == b"8"
    assert call.got["then"] == {"type": "http.disconnect"}


@pytest.mark.parametrize("announced", [str(MAX_BODY_BYTES + 1).encode(), b"9" * 5000])
async def test_it_refuses_at_once_what_announces_itself_too_large(announced: bytes) -> None:
    call = await Call(part(b"x" * 100, more=True), part(b"y"), content_length=announced).run()
    assert call.refusal == (413, "body_too_large")
    assert call.got is None


async def test_it_reads_to_the_end_what_grows_too_large_so_that_the_answer_is_read() -> None:
    call = await Call(*[part(b"x" * 100_000, more=True) for _ in range(30)], part(b"")).run()
    assert call.refusal == (413, "body_too_large")
    assert call.messages == []
    assert call.got is None


async def test_it_does_not_read_what_never_ends() -> None:
    call = await Call(*[part(b"x" * MAX_BODY_BYTES, more=True) for _ in range(40)]).run()
    assert call.refusal == (413, "body_too_large")
    assert len(call.messages) > 20


async def test_it_takes_exactly_a_mebibyte() -> None:
    call = await Call(part(b"x" * MAX_BODY_BYTES)).run()
    assert call.got is not None
    assert len(call.got["body"]) == MAX_BODY_BYTES


async def test_it_does_not_serve_half_a_body_of_a_client_that_left() -> None:
    call = await Call(part(b'{"a": 1}', more=True), {"type": "http.disconnect"}).run()
    assert call.got is None
    assert call.sent == []


@pytest.mark.parametrize("wrong", [{"query": b"a=\xff"}, {"path": "/api/\ud800"}])
async def test_it_refuses_what_cannot_be_decoded(wrong: dict[str, Any]) -> None:
    assert (await Call(part(b""), **wrong).run()).refusal == (400, "bad_request")


@pytest.mark.parametrize(
    ("sent", "given"),
    [
        (b"application/json", b"application/json"),
        (b"application/json; charset=UTF-8", b"application/json; charset=UTF-8"),
        (b"application/json; charset=zlib", b"application/json"),
        (b"text/plain; charset=\x00; a=b", b"text/plain; a=b"),
        (b"multipart/form-data; charset=nonsense; boundary=x", b"multipart/form-data; boundary=x"),
        (b"text/plain; charset=\xff", b"text/plain"),
        (b"", b""),
    ],
)
async def test_it_drops_a_charset_that_is_no_text(sent: bytes, given: bytes) -> None:
    call = await Call(part(b""), content_type=sent).run()
    assert call.got is not None
    assert call.got["headers"][b"content-type"] == given


async def test_it_does_not_wait_for_a_body_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omni2.intake.READ_TIMEOUT_S", 0.05)
    call = Call(part(b"{", more=True))
    came = call.receive

    async def receive() -> dict[str, Any]:
        if not call.messages:
            await asyncio.sleep(60)
        return await came()

    call.receive = receive
    assert (await call.run()).refusal == (408, "request_timeout")
    assert call.got is None
