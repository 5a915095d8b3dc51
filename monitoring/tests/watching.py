"""What the tests of live delivery share: a socket without a server, and a page that checks what it is told.

The socket is the real ASGI application; Redis, PostgreSQL, the tracker and the watch list are real too.
"""

import asyncio
import contextlib
import json
import socket
import struct
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from flows import keys
from flows.redis import get_redis
from flows.tracker import FlowTracker, TurnTrack
from monitoring.models import MonitoredUser
from monitoring.routing import websocket_application
from monitoring.watchlist import watchlist
from omni2.database import in_database

BOB = "bob@example.com"
WAIT_S = 20.0


class Closed(Exception):
    """The server closed the socket, or refused the handshake (code 403)."""

    def __init__(self, code: int) -> None:
        super().__init__(str(code))
        self.code = code


class Socket:
    """One socket on the ASGI application itself: what goes in and what comes out are queues."""

    def __init__(
        self,
        *,
        user_id: str = BOB,
        token: str | None = None,
        after: str | None = None,
        headers: dict[str, str] | None = None,
        subprotocols: list[str] | None = None,
        query: str | None = None,
    ) -> None:
        lines = dict(headers or {})
        if token is not None:
            lines["authorization"] = f"Bearer {token}"
        path = f"/ws/flows/{user_id}"
        text = query if query is not None else (f"after={quote(after)}" if after is not None else "")
        self.scope = {
            "type": "websocket",
            "path": path,
            "raw_path": quote(path).encode(),
            "query_string": text.encode(),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in lines.items()],
            "subprotocols": subprotocols or [],
        }
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.subprotocol: str | None = None
        self.stuck: asyncio.Event | None = None
        self.is_reset = False
        self.task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Socket":
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        self.outbox.put_nowait({"type": "websocket.connect"})
        self.task = asyncio.create_task(websocket_application(self.scope, self.outbox.get, self._send))
        # a server drops the connection of an application that has ended
        self.task.add_done_callback(lambda _: self.inbox.put_nowait({"type": "websocket.close", "code": 1006}))
        first = await self._next()
        if first["type"] == "websocket.close":
            await self.task
            raise Closed(403)
        assert first["type"] == "websocket.accept"
        self.subprotocol = first.get("subprotocol")

    async def _send(self, message: dict[str, Any]) -> None:
        if self.stuck is not None:
            await self.stuck.wait()
        if self.is_reset:
            raise OSError("the connection was reset")
        self.inbox.put_nowait(message)

    def write(self, frames: bytes) -> None:
        """As under Daphne (monitoring.framing): takes whole frames, and never waits."""
        if self.stuck is None and not self.is_reset:
            for text in unframed(frames):
                self.inbox.put_nowait({"type": "websocket.send", "text": text.decode()})

    async def _next(self) -> dict[str, Any]:
        async with asyncio.timeout(WAIT_S):
            return await self.inbox.get()

    async def receive(self) -> dict[str, Any]:
        """The next message; raises Closed."""
        message = await self._next()
        if message["type"] == "websocket.close":
            self.outbox.put_nowait({"type": "websocket.disconnect", "code": message["code"]})
            raise Closed(message["code"])
        return json.loads(message["text"])

    async def receive_some(self, kind: str) -> dict[str, Any]:
        """The next message of this kind; pings in between are passed over, nothing else."""
        while (message := await self.receive())["type"] != kind:
            assert message["type"] == "ping", f"wanted {kind}, got {message}"
        return message

    def say(self, message: object) -> None:
        text = message if isinstance(message, str) else json.dumps(message)
        self.outbox.put_nowait({"type": "websocket.receive", "text": text})

    def acknowledge(self, cursor: str | None) -> None:
        if cursor is not None:
            self.say({"type": "ack", "cursor": cursor})

    async def close(self) -> None:
        """The client goes away."""
        if self.task is not None:
            self.outbox.put_nowait({"type": "websocket.disconnect", "code": 1000})
            await asyncio.wait_for(self.task, WAIT_S)

    async def reset(self) -> None:
        """The connection is torn off: `send` fails from now on, as under uvicorn, and nobody says goodbye."""
        self.is_reset = True
        if self.task is not None:
            self.outbox.put_nowait({"type": "websocket.disconnect", "code": 1006})
            await asyncio.wait_for(self.task, WAIT_S)

    async def until_closed(self) -> int:
        """Pass over everything until the server closes; its code."""
        try:
            while True:
                await self.receive()
        except Closed as closed:
            return closed.code


def unframed(frames: bytes) -> Iterator[bytes]:
    """The texts of a server's WebSocket frames."""
    while frames:
        assert frames[0] == 0x81, "not a whole text message"
        size, head = {126: (int.from_bytes(frames[2:4]), 4), 127: (int.from_bytes(frames[2:10]), 10)}.get(
            frames[1], (frames[1], 2)
        )
        assert len(frames) >= head + size, "half a frame"
        yield frames[head : head + size]
        frames = frames[head + size :]


class WireSocket:
    """The same over the network, to a server that was really started."""

    def __init__(
        self,
        url: str,
        *,
        user_id: str = BOB,
        token: str | None = None,
        after: str | None = None,
        headers: dict[str, str] | None = None,
        subprotocols: list[str] | None = None,
    ) -> None:
        self.address = f"{url.replace('http', 'ws', 1)}/ws/flows/{quote(user_id)}"
        if after is not None:
            self.address += f"?after={quote(after)}"
        self.headers = dict(headers or {})
        if token is not None:
            self.headers["Authorization"] = f"Bearer {token}"
        self.subprotocols: Any = subprotocols
        self.subprotocol: str | None = None
        self.connection: Any = None

    async def __aenter__(self) -> "WireSocket":
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        try:
            self.connection = await connect(
                self.address,
                additional_headers=self.headers,
                subprotocols=self.subprotocols,
                open_timeout=WAIT_S,
                compression=None,
                max_size=None,
                proxy=None,
            )
        except InvalidStatus as refused:
            raise Closed(refused.response.status_code) from None
        self.subprotocol = self.connection.subprotocol

    async def receive(self) -> dict[str, Any]:
        try:
            async with asyncio.timeout(WAIT_S):
                return json.loads(await self.connection.recv())
        except ConnectionClosed as closed:
            raise Closed(closed.rcvd.code if closed.rcvd else 1006) from None

    async def until_closed(self) -> int:
        try:
            while True:
                await self.receive()
        except Closed as closed:
            return closed.code

    def acknowledge(self, cursor: str) -> None:
        asyncio.get_running_loop().create_task(self._say({"type": "ack", "cursor": cursor}))

    async def _say(self, message: object) -> None:
        with contextlib.suppress(ConnectionClosed):
            await self.connection.send(json.dumps(message))

    async def close(self) -> None:
        await self.connection.close()

    async def reset(self) -> None:
        """Tear the connection off: an RST instead of a goodbye, and what was not read yet is lost."""
        transport = self.connection.transport
        linger = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()
        with contextlib.suppress(ConnectionClosed):
            await self.connection.wait_closed()


class Page:
    """A live page: shows each checkpoint once, in the order it came, and comes back with its cursor.

    It fails at once at a checkpoint it already shows, unless a fresh pre-roll (complete: false)
    replaced what it showed.
    """

    def __init__(
        self,
        token: str,
        *,
        user_id: str = BOB,
        acknowledges: bool = True,
        connect: Callable[..., "Socket | WireSocket"] = Socket,
    ) -> None:
        self.token, self.user_id, self.acknowledges, self.connect = token, user_id, acknowledges, connect
        self.shown: dict[str, dict[str, Any]] = {}
        self.cursor: str | None = None
        self.snapshots: list[bool] = []
        self.hello: dict[str, Any] = {}
        self.monitoring: list[dict[str, Any]] = []
        self.socket: Any = None
        self.reader: asyncio.Task[None] | None = None
        self.closed: int | None = None
        self.since = ""
        """only what was made since then is looked at: a page may still show what its watcher was sent before"""
        self.is_placed = False
        """whether the last snapshot led to a place in the log; while Redis is away it does not"""
        self._in_snapshot = False
        self._active = True
        self._anew = True
        self._changed = asyncio.Event()

    async def __aenter__(self) -> "Page":
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    async def open(self) -> None:
        """Connect, coming back with the cursor if there is one."""
        self.closed = None
        if self.cursor is None:
            # it was shown nothing that it could go on from (Redis was away): it begins anew
            self._anew = True
        self.socket = self.connect(user_id=self.user_id, token=self.token, after=self.cursor)
        await self.socket.open()
        self._in_snapshot = False
        self.reader = asyncio.create_task(self._read(self.socket))

    async def leave(self, *, reset: bool = False) -> None:
        """The connection breaks; whatever was not read yet is lost."""
        socket, reader, self.socket, self.reader = self.socket, self.reader, None, None
        if reader is not None:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader
        if socket is not None:
            await (socket.reset() if reset else socket.close())

    async def _read(self, socket: Any) -> None:
        try:
            while True:
                self._take(socket, await self._next(socket))
                self._changed.set()
        except Closed as closed:
            self.closed = closed.code
            self._changed.set()

    @staticmethod
    async def _next(socket: Any) -> dict[str, Any]:
        while True:
            with contextlib.suppress(TimeoutError):
                return await socket.receive()

    def _take(self, socket: Any, message: dict[str, Any]) -> None:
        match message["type"]:
            case "hello":
                self.hello = message
                self._active = message["monitoring"]["active"]
            case "monitoring":
                self._hear_of_monitoring(message)
            case "snapshot":
                self._take_snapshot(message)
            case "checkpoint":
                assert not self._in_snapshot, "a live frame inside a snapshot"
                self._show(message["checkpoint"])
            case "ping":
                return
            case _:
                raise AssertionError(message)
        if message.get("cursor") is not None:
            self.cursor = message["cursor"]
            if self.acknowledges:
                socket.acknowledge(self.cursor)

    def _hear_of_monitoring(self, message: dict[str, Any]) -> None:
        """A new period begins with a new picture; the rest of a snapshot that is half sent never comes."""
        self.monitoring.append(message)
        if not message["active"]:
            self._in_snapshot = False
        if message["active"] and not self._active:
            self._anew = True
        self._active = message["active"]

    def _take_snapshot(self, message: dict[str, Any]) -> None:
        assert len(message["checkpoints"]) <= 200
        if not self._in_snapshot or message["complete"] != self.snapshots[-1]:
            self.snapshots.append(message["complete"])
            if self._anew or not message["complete"]:
                self.shown.clear()
        self._in_snapshot = message["more"]
        self._anew = not self._active
        self.is_placed = message["cursor"] is not None
        for checkpoint in message["checkpoints"]:
            self._show(checkpoint)

    @property
    def visible(self) -> list[str]:
        """The flow_ids it shows, in order."""
        return [flow_id for flow_id, checkpoint in self.shown.items() if checkpoint["created_at"] >= self.since]

    def _show(self, checkpoint: dict[str, Any]) -> None:
        assert checkpoint["flow_id"] not in self.shown, f"shown twice: {checkpoint}"
        assert checkpoint["user_id"] == self.user_id
        self.shown[checkpoint["flow_id"]] = checkpoint

    async def until(self, condition: Callable[["Page"], bool]) -> None:
        """Wait until the page shows what it should; say what it shows when it does not."""
        try:
            async with asyncio.timeout(WAIT_S):
                while not condition(self):
                    self._check_reader()
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            names = [each["checkpoint"] for each in self.shown.values()]
            raise AssertionError(f"shows {len(names)}: {names[-12:]}, snapshots {self.snapshots}") from None
        self._check_reader()

    def _check_reader(self) -> None:
        if self.reader is not None and self.reader.done():
            self.reader.result()

    async def until_shown(self, flow_ids: list[str]) -> None:
        """Wait for the last of these, then compare: exactly these, in this order."""
        await self.until(lambda page: page._in_snapshot is False and set(flow_ids) <= set(page.shown))
        assert self.visible == flow_ids

    async def until_snapshots(self, count: int) -> None:
        await self.until(lambda page: len(page.snapshots) >= count and not page._in_snapshot)


class Script:
    """A turn with a tool, one checkpoint at a time."""

    NAMES = (
        "auth_check", "block_check", "usage_check", "llm_thinking", "tool_call", "tool_result", "llm_complete",
        "llm_thinking", "llm_complete", "flow_end",
    )  # fmt: skip

    def __init__(self, tracker: FlowTracker, user_id: str = BOB) -> None:
        self.turn: TurnTrack = tracker.begin(user_id=user_id, session_id=str(uuid.uuid4()))
        self.made: list[Any] = []

    @property
    def flow_ids(self) -> list[str]:
        return [checkpoint.flow_id for checkpoint in self.made]

    async def step(self) -> None:
        """The next checkpoint, acknowledged by the log."""
        name = self.NAMES[len(self.made)]
        if name == "flow_end":
            made = self.turn.end("completed")
        else:
            parent = {"tool_call": 3, "tool_result": 4, "llm_complete": 7 if len(self.made) == 8 else 3}.get(
                name, 2 if name == "llm_thinking" else len(self.made) - 1
            )
            made = self.turn.record(name, self.made[parent] if self.made else None, status="started", n=1.5)
        self.made.append(made)
        await self.turn.acknowledged(WAIT_S)
        assert self.turn.durable == len(self.made)

    async def run(self, steps: int | None = None) -> list[str]:
        for _ in range(len(self.NAMES) - len(self.made) if steps is None else steps):
            await self.step()
        return self.flow_ids


async def enable(by: Any, user_id: str = BOB, *, hours: float = 1) -> MonitoredUser:
    """Monitor him, and let this process know it."""
    period = await in_database(MonitoredUser.enable, user_id, by=by, ttl=timedelta(hours=hours))
    await watchlist.refresh()
    return period


async def disable(by: Any, user_id: str = BOB) -> None:
    await in_database(MonitoredUser.stop, user_id, by=by)
    await watchlist.refresh()


async def in_stream(user_id: str = BOB) -> list[str]:
    """The flow_ids in the user's stream, each once, in its order."""
    entries = await get_redis().xrange(keys.user_stream(user_id))
    return list(dict.fromkeys(json.loads(fields[b"d"])["flow_id"] for _, fields in entries))


async def break_subscriptions() -> None:
    """What Redis does to a slow subscriber."""
    await get_redis().execute_command("CLIENT", "KILL", "TYPE", "pubsub")


async def settle(condition: Callable[[], bool]) -> None:
    """Wait for something that nobody tells."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)
