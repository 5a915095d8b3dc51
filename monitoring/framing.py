"""WebSocket frames made once for all watchers, written straight into Daphne's connections.

ASGI's `send` takes a text, so a server encodes and frames the same text anew for each socket; under Daphne
that, and the task to send from, are two thirds of what a frame costs (500 watchers). Here is the one place
that knows how Daphne holds its connections. Elsewhere (uvicorn, a test's socket, a Daphne that has
changed) `send` is the way, and nothing else differs.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

Write = Callable[[bytes], None]


def framed(text: bytes) -> bytes:
    """A whole text message as a server sends it: one frame, no mask (RFC 6455, section 5.2)."""
    size = len(text)
    if size < 126:
        return b"\x81%c%b" % (size, text)
    if size < 1 << 16:
        return b"\x81\x7e%b%b" % (size.to_bytes(2), text)
    return b"\x81\x7f%b%b" % (size.to_bytes(8), text)


def straight_to(send: Any) -> Write | None:
    """What writes whole frames to the client behind this `send` of an accepted socket, in order with what
    is sent otherwise, at once and without waiting; None where the server is another one. To a socket that
    is being closed nothing is written."""
    # not imported: that would make Twisted's reactor in a process of another server
    daphne = sys.modules.get("daphne.ws_protocol")
    if daphne is None or not isinstance(send, partial) or not send.args:
        return None
    protocol = send.args[0]
    if not isinstance(protocol, daphne.WebSocketProtocol) or protocol._perMessageCompress is not None:
        return None
    return partial(_write, protocol, protocol.transport, protocol.STATE_OPEN)


def _write(protocol: Any, transport: Any, is_open: int, frames: bytes) -> None:
    if protocol.state != is_open:
        return
    # Into the socket itself, unless something before it still waits: Twisted would ask epoll first whether
    # it may, and write in the loop's next round, for twice the CPU (500 watchers).
    if not (transport.TLS or transport.dataBuffer or transport._tempDataBuffer):
        written = transport.writeSomeData(frames)
        if written == len(frames):
            return
        if isinstance(written, int):
            frames = frames[written:]
    # the rest waits there; a connection that is lost is noticed there
    transport.write(frames)
