"""What Django gets of a request: a whole body of at most 1 MiB, and nothing it cannot decode.

An ASGI wrapper around Django alone; the ask routes and the sockets read for themselves. Without
it Django would spool a body of any size to disk, take a chunked one for empty, and answer some
malformed requests with an empty page where a program expects JSON.
"""

import asyncio
import codecs
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from omni2.errors import BodyTooLarge

MAX_BODY_BYTES = 1024 * 1024
DRAINED_BYTES = 16 * MAX_BODY_BYTES
DRAIN_S = 5.0
READ_TIMEOUT_S = 30.0
"""How long a body may take to arrive."""

Scope = dict[str, Any]
Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


def intake(application: Application) -> Application:
    """`application`, with every request read and checked first: 413 and 400 are answered here."""

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        if not _is_decodable(scope):
            return await _refuse(send, 400, "bad_request", "This request cannot be understood.")
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                body = await _read(scope, receive)
        except TimeoutError:
            return await _refuse(send, 408, "request_timeout", "The request took too long to arrive.")
        except _TooLarge:
            return await _refuse(send, 413, BodyTooLarge.default_code, str(BodyTooLarge.default_detail))
        except _Gone:
            return None
        return await application(_with_length(scope, len(body)), _replay(body, receive), send)

    return checked


def _is_decodable(scope: Scope) -> bool:
    try:
        scope.get("query_string", b"").decode()
        scope["path"].encode()
    except UnicodeError:
        return False
    return True


class _TooLarge(Exception):
    pass


class _Gone(Exception):
    """The client left before its body was whole."""


async def _read(scope: Scope, receive: Receive) -> bytes:
    if _announced(scope) > MAX_BODY_BYTES:
        await drain(receive)
        raise _TooLarge
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            await drain(receive, last=message)
            raise _TooLarge
        if not message.get("more_body"):
            return bytes(body)


async def drain(receive: Receive, *, last: Message | None = None) -> None:
    """Read what is left of a body after its message `last` and throw it away, so that its sender reads the answer.

    A server that closes while a client still sends resets the connection, and the client never
    learns why. Nothing is waited for beyond DRAINED_BYTES or DRAIN_S.
    """
    left, more = DRAINED_BYTES, last is None or last.get("more_body", False)
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            while more and left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                more = message.get("more_body", False)


def _announced(scope: Scope) -> int:
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    return max((int(value[:18]) for value in lengths if value.isdigit()), default=0)


def _with_length(scope: Scope, length: int) -> Scope:
    """The scope with the true length (a chunked body announces none) and only charsets Python has."""
    headers = [
        (name, _known_charset(value) if name == b"content-type" else value)
        for name, value in scope["headers"]
        if name != b"content-length"
    ]
    if length:
        headers.append((b"content-length", str(length).encode()))
    return {**scope, "headers": headers}


def _known_charset(content_type: bytes) -> bytes:
    """The Content-Type without a charset that is no text encoding (Django takes any codec's name)."""
    kind, *parameters = content_type.split(b";")
    kept = [parameter for parameter in parameters if not _is_strange_charset(parameter)]
    return b";".join([kind, *kept])


def _is_strange_charset(parameter: bytes) -> bool:
    name, _, value = parameter.strip().partition(b"=")
    if name.strip().lower() != b"charset":
        return False
    try:
        return codecs.lookup(value.strip(b"\"' ").decode("ascii")).name not in {"utf-8", "ascii", "iso8859-1"}
    except (LookupError, ValueError):
        return True


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body in one message, and then whatever comes (the disconnect)."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _refuse(send: Send, status: int, code: str, detail: str) -> None:
    body = json.dumps({"detail": detail, "code": code}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
