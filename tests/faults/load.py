"""A load client that writes down what the product told it.

Raw asyncio streams: an HTTP client of comfort costs ten milliseconds a chat, and there are hundreds at once.
"""

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any
from urllib.parse import urlsplit

CHAT_LIMIT_S = 150.0
"""A chat that takes longer hangs; the longest freeze of a fault run is about 40 s."""

ANOTHER_SERVER_S = (0.05, 0.3)
RETRY_AFTER_AT_MOST_S = 2.0

# as chat.turn.ACKNOWLEDGE_S, which cannot be read before Django is set up
TOKEN_WAITS_S = 0.25


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who asks."""

    email: str
    token: str


@dataclass(slots=True)
class Told:
    """One request, and all that the product said about its turn."""

    message: str
    user_id: str = ""
    url: str = ""
    sent: bool = False
    """whether the request went out: if not, no turn can have come of it"""
    status: int = 0
    turn_id: str = ""
    tokens: int = 0
    calls: int = 0
    results: int = 0
    sure: int = 0
    """checkpoints that were acknowledged when the first token came: it waits for them, so long, and one that came
    sooner cannot have come without"""
    end: str = ""
    """`done` or `error`"""
    durable: int = 0
    checkpoints: int = 0
    code: str = ""
    retry_after_s: int | None = None
    hung: bool = False
    began_s: float = 0.0
    first_token_s: float | None = None
    """seconds from the request to the first token"""
    over_s: float = 0.0

    @property
    def admitted(self) -> bool:
        return self.status == 200 and bool(self.turn_id)

    @property
    def refused(self) -> bool:
        return self.status not in (0, 200)

    @property
    def cut(self) -> bool:
        """The connection broke before the product had said how the turn ended."""
        return self.sent and self.over_s > 0 and not self.end and not self.refused

    @property
    def accepted(self) -> int:
        """At least so many checkpoints had been recorded by what the client heard: three checks before `session`."""
        if not self.admitted:
            return 0
        return 3 + bool(self.tokens or self.calls) + self.calls + self.results

    def hear(self, name: str, data: dict[str, Any]) -> None:
        """One event of the stream."""
        self.turn_id = data.get("turn_id", self.turn_id)
        match name:
            case "tool_call":
                self.calls += 1
            case "tool_result":
                self.results += 1
            case "done":
                self.end = name
                self.checkpoints, self.durable = data["tracked"]["checkpoints"], data["tracked"]["durable"]
            case "error":
                self.end, self.code = name, data["code"]

    def hear_token(self) -> None:
        if not self.tokens:
            self.first_token_s = time.monotonic() - self.began_s
            # with tools before it, the round that called them is over and the next one has begun
            if self.first_token_s < TOKEN_WAITS_S:
                self.sure = 4 + self.calls + self.results + (2 if self.results else 0)
        self.tokens += 1


async def ask(told: Told, token: str, *, limit_s: float = CHAT_LIMIT_S) -> Told:
    """One streamed turn. A connection that breaks, or never comes about, is written down and not raised."""
    told.began_s = time.monotonic()
    try:
        async with asyncio.timeout(limit_s):
            await _converse(told, token)
    except TimeoutError:
        told.hung = True
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass
    finally:
        told.over_s = time.monotonic()
    return told


async def _converse(told: Told, token: str) -> None:
    address = urlsplit(told.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        body = json.dumps({"message": told.message}).encode()
        head = (
            f"POST /api/v1/ask/stream HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        told.sent = True
        writer.write(head.encode() + body)
        await writer.drain()
        status, headers = await _head(reader)
        told.turn_id = headers.get("x-omni2-turn-id", "")
        if "retry-after" in headers:
            told.retry_after_s = int(headers["retry-after"])
        if status == 200:
            told.status = status
            return await _listen(told, reader, chunked=headers.get("transfer-encoding") == "chunked")
        refusal = json.loads(await _whole(reader, headers))
        told.status, told.code = status, refusal.get("code", "")
        told.turn_id = refusal.get("turn_id", told.turn_id)
    finally:
        writer.close()


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return int(first.split(" ", 2)[1]), {name.strip().lower(): value.strip() for name, value in pairs}


async def _whole(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding") == "chunked":
        return b"".join([chunk async for chunk in _chunks(reader)])
    return await reader.readexactly(int(headers["content-length"]))


async def _chunks(reader: asyncio.StreamReader) -> Any:
    """The pieces of a chunked body; a connection that ends before the last one raises IncompleteReadError."""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        yield (await reader.readexactly(size + 2))[:-2]


async def _until_closed(reader: asyncio.StreamReader) -> Any:
    while chunk := await reader.read(65536):
        yield chunk


async def _listen(told: Told, reader: asyncio.StreamReader, *, chunked: bool) -> None:
    rest = b""
    async for chunk in _chunks(reader) if chunked else _until_closed(reader):
        *events, rest = (rest + chunk).split(b"\n\n")
        for event in events:
            name, data = b"", b""
            for line in event.split(b"\n"):
                field_, _, value = line.partition(b": ")
                if field_ == b"event":
                    name = value
                elif field_ == b"data":
                    data = value
            if name == b"token":
                told.hear_token()
            elif name:
                told.hear(name.decode(), json.loads(data))
        if told.end:
            # the turn is over; whether the connection is closed in order is not the ledger's matter
            return


@dataclass
class Load:
    """Chats of some people against the web processes, and what came of each."""

    people: Sequence[Person]
    urls: list[str]
    """may be changed while it runs"""
    messages: Callable[[Random], str]
    """what the next one asks"""
    random: Random
    tag: str = ""
    told: list[Told] = field(default_factory=list)
    in_flight: set[int] = field(default_factory=set)
    _numbers: Any = field(default_factory=itertools.count)

    async def ask(self, message: str, *, person: Person | None = None, url: str = "") -> Told:
        """One turn, written down. Each message has a number, so that it is known again wherever it appears."""
        number = next(self._numbers)
        person = person or self.people[number % len(self.people)]
        told = Told(f"{message} #{self.tag}{number}", person.email, url or self.urls[number % len(self.urls)])
        self.told.append(told)
        self.in_flight.add(number)
        try:
            return await ask(told, person.token)
        finally:
            self.in_flight.discard(number)

    async def run(
        self, stop: asyncio.Event, *, at_once: int, spread_s: float = 0.0, pause_s: float = 0.0, url: str = ""
    ) -> None:
        """Keep `at_once` chats in flight until `stop`, then let those that run finish. The first ones begin over
        `spread_s`; each client rests `pause_s` between two."""
        await asyncio.gather(
            *(self._client(stop, place, spread_s * place / at_once, pause_s, url) for place in range(at_once))
        )

    async def _client(self, stop: asyncio.Event, place: int, after_s: float, pause_s: float, url: str) -> None:
        """One client, always at its own server, and at the next one while that is gone."""
        person = self.people[place % len(self.people)]
        further = 0
        await _rest(stop, after_s)
        while not stop.is_set():
            at = url or self.urls[(place + further) % len(self.urls)]
            told = await self.ask(self.messages(self.random), person=person, url=at)
            if told.end or told.refused:
                further = 0
            else:
                further += 1
                await _rest(stop, self.random.uniform(*ANOTHER_SERVER_S))
            if told.refused:
                await _rest(stop, min(told.retry_after_s or 0.2, RETRY_AFTER_AT_MOST_S))
            if pause_s:
                await _rest(stop, self.random.uniform(0.5, 1.5) * pause_s)


async def _rest(stop: asyncio.Event, seconds: float) -> None:
    """So long, or until it is over."""
    if seconds > 0:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), seconds)


def mixed(words: int, pace_s: float) -> Callable[[Random], str]:
    """Mostly paced answers, some after a tool, some short, a few that the model breaks off."""

    def message(random: Random) -> str:
        paced = f"words={words} pace={pace_s * random.uniform(0.6, 1.4):.3f}"
        return random.choices(
            (f"script:paced {paced}", f"script:clock+paced {paced}", "script:plain", "script:error_in_middle"),
            (70, 20, 6, 4),
        )[0]

    return message
