"""Frames are made once and written straight into Daphne's connections; every other server is sent to as ASGI says."""

import asyncio
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from monitoring.framing import framed, straight_to
from monitoring.tests.straight_application import MANY, SIZES
from monitoring.tests.watching import unframed
from omni2.supervisor import commands
from tests.running import Process, eventually, free_port, get


@pytest.mark.parametrize("size", [0, *SIZES])
def test_it_frames_a_text_of_any_size(size: int) -> None:
    text = b"x" * size
    assert list(unframed(framed(text) + framed(b"end"))) == [text, b"end"]


def test_it_knows_no_straight_way_to_anything_but_daphne() -> None:
    async def send(message: Any) -> None:
        raise AssertionError

    for other in (send, partial(send), partial(send, "protocol")):
        assert straight_to(other) is None


@pytest.fixture(params=["daphne", "uvicorn"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Its name and address."""
    port = free_port()
    words = {"daphne": commands.web, "uvicorn": commands.web_on_uvicorn}[request.param]("127.0.0.1", port)
    application = "monitoring.tests.straight_application:application"
    process = Process("web", [*commands.with_python(words)[:-1], application], os.environ, tmp_path / "web.log")
    try:
        eventually(lambda: get(f"http://127.0.0.1:{port}/")[0], "it answers")
        yield request.param, f"ws://127.0.0.1:{port}/"
    finally:
        process.kill()


async def test_it_writes_all_in_order_also_to_a_client_that_does_not_read(server: tuple[str, str]) -> None:
    name, address = server
    async with connect(address, compression=None, max_size=None, max_queue=2, proxy=None) as client:
        assert await client.recv() == ("straight" if name == "daphne" else "by send alone")
        await asyncio.sleep(0.5)  # what is not read by now fills the connection
        texts = []
        while (text := await client.recv()) != "end":
            texts.append(text)
        if name == "daphne":
            assert [len(text) for text in texts] == [*SIZES, *[SIZES[-1]] * MANY]
            assert {text[0] for text in texts[-MANY:]} == {"y"}
        else:
            assert texts == []
