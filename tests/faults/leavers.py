"""Clients that leave in the middle: in every way a connection can end, at every moment of a turn."""

import asyncio
import contextlib
import itertools
import json
import re
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from urllib.parse import urlsplit

from tests.faults.load import Person, Told

STREAM, WHOLE = "/api/v1/ask/stream", "/api/v1/ask"
LEAVES_WITHIN_S = 60.0

HOW = ("close", "reset", "half_close")
"""FIN; RST; FIN of one direction, while the client still reads."""


@dataclass(frozen=True, slots=True)
class Moment:
    """When somebody leaves: what he asked, and what he has read by then."""

    name: str
    message: str
    sees: bytes = b""
    waits_s: float = 0.0
    paths: tuple[str, ...] = (STREAM,)
    outcomes: tuple[str, ...] = ("disconnected",)


MOMENTS = (
    # he is gone before anybody has looked at his question: that there is no turn is right as well
    Moment("at once", "script:hang", paths=(STREAM, WHOLE)),
    Moment("while the model is silent", "script:hang", waits_s=1.0, paths=(STREAM, WHOLE)),
    Moment("before the first token", "script:hang", sees=b"event: session"),
    Moment("in the middle", "script:hang_in_middle", sees=b"event: token"),
    Moment("between two tokens", "script:slow", sees=b"time"),
    # what he does not read may all have been taken by a server without back-pressure
    Moment(
        "while more comes than he reads", "script:long", sees=b"event: token", outcomes=("completed", "disconnected")
    ),
    # the round after the tool would go on for an hour
    Moment("during a tool", "script:clock+hang", sees=b"event: tool_call"),
    # the model has finished: whether he is thought to have had all of it depends on a millisecond
    Moment(
        "during the last acknowledgement", "script:plain", sees=b"(scripted)", outcomes=("completed", "disconnected")
    ),
)

CASES = [(how, moment, path) for moment in MOMENTS for how in HOW for path in moment.paths]


@dataclass(slots=True)
class Leaver:
    """One who left."""

    told: Told
    moment: Moment
    how: str
    left_at: float = 0.0
    """by the wall clock, as checkpoints are"""
    was_let_go: bool = True
    """whether the server closed its side as well, of a connection that was closed half"""

    @property
    def name(self) -> str:
        return f"{self.how} {self.moment.name}"


async def ask_and_leave(leaver: Leaver, token: str, path: str, waits_s: float) -> Leaver:
    """Ask, wait for the moment, and go."""
    told, moment = leaver.told, leaver.moment
    told.began_s = time.monotonic()
    address = urlsplit(told.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        body = json.dumps({"message": told.message}).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        told.sent = True
        writer.write(head.encode() + body)
        await writer.drain()
        await asyncio.sleep(waits_s)
        if moment.sees:
            async with asyncio.timeout(LEAVES_WITHIN_S):
                _note(told, await _read_until(reader, moment.sees))
    finally:
        leaver.left_at = time.time()
        leaver.was_let_go = await _go(leaver.how, reader, writer)
        told.over_s = time.monotonic()
    return leaver


async def _read_until(reader: asyncio.StreamReader, wanted: bytes) -> bytes:
    read = b""
    while wanted not in read:
        more = await reader.read(4096)
        assert more, f"the answer ended before {wanted!r}: {read[-300:]!r}"
        read += more
    return read


def _note(told: Told, read: bytes) -> None:
    found = re.match(rb"HTTP/1.1 (\d+) .*?x-omni2-turn-id: (\S+)", read, re.DOTALL | re.IGNORECASE)
    assert found, read[:300]
    told.status, told.turn_id = int(found[1]), found[2].decode()
    for _ in range(read.count(b"event: token")):
        told.hear_token()


async def _go(how: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    let_go = True
    if how == "half_close":
        with contextlib.suppress(OSError):
            writer.write_eof()
        let_go = await _ends(reader)
    elif how == "reset":
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return let_go


async def _ends(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(LEAVES_WITHIN_S):
            while await reader.read(65536):
                pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


async def wave(
    people: Sequence[Person], urls: Sequence[str], random: Random, *, count: int, tag: str, numbers: Callable[[], int]
) -> list[Leaver]:
    """So many at once, every way at every moment in turn, to all servers."""

    async def one(number: int) -> Leaver:
        how, moment, path = CASES[number % len(CASES)]
        person = people[number % len(people)]
        # other servers for the same cases in the next round of them
        url = urls[(number + number // len(CASES)) % len(urls)]
        told = Told(f"{moment.message} #{tag}{number}", person.email, url)
        waits_s = random.uniform(0, moment.waits_s)
        return await ask_and_leave(Leaver(told, moment, how), person.token, path, waits_s)

    return list(await asyncio.gather(*(one(numbers()) for _ in range(count))))


def counter() -> Callable[[], int]:
    return itertools.count().__next__


def problems(leavers: Sequence[Leaver], outcomes: dict[str, str | None]) -> list[str]:
    """What is wrong with the turns of those who left. `outcomes`: by turn_id."""
    found = [f"{each.name}: the server kept its side open" for each in leavers if not each.was_let_go]
    told = [(each, outcomes.get(each.told.turn_id)) for each in leavers if each.told.turn_id]
    found += [f"{each.name}: {what} ({each.told.turn_id})" for each, what in told if what not in each.moment.outcomes]
    return found
