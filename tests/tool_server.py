"""A tool server for tests, made with the official `mcp` package: `python -m tests.tool_server stdio` or a port.

Its tools do what tool servers may do to whoever asks them. `run_http()` starts one and waits until it listens.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
from mcp.server.mcpserver import Context, Image, MCPServer

from tests.running import free_port

server = MCPServer("things")


@server.tool()
def add(a: int, b: int) -> str:
    """Adds two whole numbers."""
    return str(a + b)


@server.tool()
async def wait(seconds: float) -> str:
    """Waits, and says when it began and ended."""
    began = time.time()
    await asyncio.sleep(seconds)
    return f"{began} {time.time()}"


@server.tool()
def fail() -> str:
    """Fails."""
    raise ValueError("there is no such thing")


@server.tool()
def flood(characters: int) -> str:
    """Says too much."""
    return "x" * characters


@server.tool()
def die() -> str:
    """Ends its own process in the middle of the call."""
    os.kill(os.getpid(), signal.SIGKILL)
    return "never said"


@server.tool()
def picture() -> Image:
    """A picture."""
    return Image(data=b"\x89PNG" + b"0" * 3000, format="png")


@server.tool()
def environment(name: str) -> str:
    """What it was given under that name."""
    return os.environ.get(name, "nothing")


@server.tool()
def pid() -> str:
    """The process it is."""
    return str(os.getpid())


@server.tool()
def header(name: str, context: Context[Any, Any]) -> str:
    """A header of the request that asks."""
    request = context.request_context.request
    return str(request.headers.get(name, "nothing"))


@contextmanager
def run_http(port: int | None = None) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """(url, process) of a server over streamable HTTP."""
    chosen = port or free_port()
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.tool_server", str(chosen)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx2.get(f"http://127.0.0.1:{chosen}/")
                break
            except httpx2.TransportError:
                assert program.poll() is None, "the tool server ended"
                assert time.monotonic() < deadline, "the tool server does not listen"
                time.sleep(0.05)
        yield f"http://127.0.0.1:{chosen}/mcp", program
    finally:
        program.kill()
        program.wait()


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        server.run("stdio")
    else:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
