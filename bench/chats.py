"""Clients of the ask route, cheap enough to hold a thousand chats open from one process: the section `endpoint`."""

import asyncio
import json
import re
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from bench.beside.model import TOKENS, tokens_of
from bench.section import WrongResult

LIMIT_S = 120.0
_FIRST_TOKEN = b"event: token"
_END = b"\r\n0\r\n\r\n"
_CHUNK = re.compile(rb"([0-9a-f]+)\r\n", re.IGNORECASE)


@dataclass
class Chat(asyncio.Protocol):
    """One question on a connection of its own, and all that came back. Times by time.perf_counter()."""

    number: int
    script: str
    token: str
    ended: "asyncio.Future[None]"
    asked_at_s: float = 0.0
    first_token_at_s: float = 0.0
    ended_at_s: float = 0.0
    received: bytearray = field(default_factory=bytearray)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        body = json.dumps({"message": f"script:{self.script} chat {self.number}"}).encode()
        head = (
            "POST /api/v1/ask/stream HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {self.token}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.asked_at_s = time.perf_counter()
        transport.write(head.encode() + body)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if not self.first_token_at_s and _FIRST_TOKEN in self.received:
            self.first_token_at_s = time.perf_counter()
        if self.received.endswith(_END):
            self.ended_at_s = time.perf_counter()
            self._transport.close()

    def connection_lost(self, problem: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    @property
    def first_token_s(self) -> float:
        return self.first_token_at_s - self.asked_at_s

    def check(self) -> None:
        """Its own tokens, all of them, in order, and an end that says so. Raises WrongResult."""
        head, _, body = bytes(self.received).partition(b"\r\n\r\n")
        status = head.split(b"\r\n")[0]
        if b" 200 " not in status or not self.ended_at_s:
            raise WrongResult(f"chat {self.number}: {status!r}, {bytes(self.received[-300:])!r}")
        said = _events(_whole(body))
        tokens = [data["text"] for name, data in said if name == "token"]
        name, last = said[-1]
        if tokens != tokens_of(self.number) or name != "done" or last["usage"]["output_tokens"] != TOKENS:
            raise WrongResult(f"chat {self.number} got {tokens}, {name} {last}")


def _whole(body: bytes) -> bytes:
    """A body without the marks of chunked transfer encoding."""
    parts, at = [], 0
    while found := _CHUNK.match(body, at):
        size = int(found[1], 16)
        parts.append(body[found.end() : found.end() + size])
        at = found.end() + size + 2
    return b"".join(parts)


def _events(body: bytes) -> list[tuple[str, dict]]:
    found = []
    for block in body.decode().split("\n\n"):
        name, _, data = block.partition("\n")
        if data:
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


class Clients:
    """Ask one web process, and number the chats. `tokens`: a Bearer token of each user, taken in turn."""

    def __init__(self, url: str, tokens: list[str]) -> None:
        address = urlsplit(url)
        self.host, self.port = address.hostname, address.port
        self.tokens = tokens
        self.asked = 0

    async def ask(self, script: str) -> Chat:
        """One chat to its end. Raises WrongResult when it is not what the model said."""
        loop = asyncio.get_running_loop()
        number, self.asked = self.asked, self.asked + 1
        chat = Chat(number, script, self.tokens[number % len(self.tokens)], loop.create_future())
        await loop.create_connection(lambda: chat, self.host, self.port)
        try:
            async with asyncio.timeout(LIMIT_S):
                await chat.ended
        except TimeoutError:
            raise WrongResult(f"chat {number} was not over after {LIMIT_S:g} s: {bytes(chat.received)!r}") from None
        chat.check()
        return chat

    async def some(self, count: int, script: str, *, in_flight: int) -> list[Chat]:
        """`count` chats, so many at a time."""
        left = iter(range(count))

        async def one_after_the_other() -> list[Chat]:
            return [await self.ask(script) for _ in left]

        lanes = await asyncio.gather(*(one_after_the_other() for _ in range(in_flight)))
        return [chat for lane in lanes for chat in lane]
