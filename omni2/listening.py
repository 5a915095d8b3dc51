"""A process that is about to end takes no more connections.

So a proxy, or the kernel where several processes share a port, gives the next request to another process, and
nobody is turned away. Neither server has a way to ask for that, so each is told in its own words.
"""

import sys
from collections.abc import Callable
from typing import Any


def stop_listening(ends_server: Callable[..., Any]) -> None:
    """Close the listening sockets of this process; open connections go on. `ends_server` is the handler that the
    server has set for SIGTERM: uvicorn's belongs to what holds its sockets."""
    for server in getattr(getattr(ends_server, "__self__", None), "servers", ()):
        server.close()
    reactor: Any = sys.modules.get("twisted.internet.reactor")
    if reactor is None:
        return
    from twisted.internet.interfaces import IListeningPort  # noqa: PLC0415 - only under Daphne

    for port in filter(IListeningPort.providedBy, reactor.getReaders()):
        # whoever the kernel has let in already would be cut off
        port.doRead()
        port.stopListening()
