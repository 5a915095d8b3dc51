"""A small ASGI client for the routes below Django: it speaks to them as a server would, and can leave at any moment."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.test import Client as Browser

from chat import doors, endpoint, openai_routes
from chat import limits as limits_module
from chat.catalogue import catalogue
from chat.checks import RefusalFlood
from chat.tool_rows import server_rows
from flows import flusher, log
from flows.redis import get_redis, sync_client
from flows.tracker import tracker
from monitoring import config
from tests.people import PASSWORD


@dataclass
class Event:
    name: str
    data: dict[str, Any]


@dataclass
class Call:
    """One request to one of the routes, and what came back so far."""

    path: str
    body: bytes
    headers: list[tuple[bytes, bytes]]
    method: str = "POST"
    status: int | None = None
    answer_headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""
    ended: bool = False
    sends: int = 0
    """how many messages the application sent"""
    broken_after: int | None = None
    """after so many messages `send` raises, as a server may do when nobody is there any more"""
    breaks_with: type[Exception] = ConnectionResetError
    task: "asyncio.Task[None] | None" = None
    on_send: Callable[["Call", dict[str, Any]], None] | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    _asked: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def scope(self) -> dict[str, Any]:
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"testserver"), *self.headers],
            "client": ("127.0.0.1", 50000),
            "server": ("testserver", 80),
        }

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if self.broken_after is not None and self.sends >= self.broken_after:
            raise self.breaks_with
        self.sends += 1
        if message["type"] == "http.response.start":
            assert self.status is None, "the answer was begun twice"
            self.status = message["status"]
            self.answer_headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
        else:
            assert self.status is not None, "a body before the start"
            assert not self.ended, "something was sent after the end"
            self.content += message.get("body", b"")
            self.ended = not message.get("more_body", False)
        self._changed.set()
        if self.on_send is not None:
            self.on_send(self, message)

    def start(self) -> "Call":
        of_openai = openai_routes.is_openai_path(self.path)
        application = openai_routes.openai_application if of_openai else endpoint.ask_application
        self.task = asyncio.create_task(application(self.scope, self._receive, self._send))
        return self

    def leave(self) -> None:
        """The client goes away."""
        self.gone.set()

    async def over(self) -> "Call":
        """Wait until the application has returned."""
        assert self.task is not None
        await asyncio.wait_for(self.task, 20)
        return self

    async def until(self, holds: Callable[["Call"], object]) -> "Call":
        """Wait until something was sent."""
        async with asyncio.timeout(20):
            while not holds(self):
                self._changed.clear()
                await self._changed.wait()
        return self

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def events(self) -> list[Event]:
        found = []
        for block in self.content.decode().split("\n\n"):
            if block.startswith("event: "):
                name, data = block.split("\n", 1)
                found.append(Event(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
        return found

    @property
    def names(self) -> list[str]:
        """The names of the events, tokens only once."""
        return [name for i, name in enumerate(e.name for e in self.events) if name != "token" or self._first_token == i]

    @property
    def _first_token(self) -> int:
        return next((i for i, each in enumerate(self.events) if each.name == "token"), -1)

    @property
    def text(self) -> str:
        return "".join(each.data["text"] for each in self.events if each.name == "token")

    @property
    def last(self) -> Event:
        return self.events[-1]

    @property
    def turn_id(self) -> str:
        return self.answer_headers["x-omni2-turn-id"]


class Client:
    """Asks as one user."""

    def __init__(self, token: str | None = None) -> None:
        self.token = token

    def call(
        self, message: Any = None, *, path: str = "/api/v1/ask/stream", body: bytes | None = None, **more: Any
    ) -> Call:
        headers = more.pop("headers", [])
        named = {name: more.pop(name) for name in ("session_id", "model") if name in more}
        if body is None:
            body = json.dumps({"message": message, **{name: value for name, value in named.items() if value}}).encode()
        if self.token is not None:
            headers = [(b"authorization", b"Bearer " + self.token.encode()), *headers]
        return Call(path, body, headers, **more)

    async def stream(self, message: Any = None, **more: Any) -> Call:
        return await self.call(message, **more).start().over()

    async def whole(self, message: Any = None, **more: Any) -> Call:
        return await self.call(message, path="/api/v1/ask", **more).start().over()


@pytest.fixture
async def chatting(db: None, llm: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """An empty log, a scripted model, and order afterwards."""
    # on a busy machine Redis may well be silent for a second, and a provider's module takes long to load:
    # these tests ask for neither
    monkeypatch.setattr(flusher, "APPEND_TIMEOUT_S", 20.0)
    monkeypatch.setattr(endpoint, "ADMIT_TIMEOUT_S", 90.0)
    monkeypatch.setattr(endpoint, "SILENT_S", 90.0)
    client = sync_client()
    client.flushall()
    client.close()
    yield
    pending = [task for task in asyncio.all_tasks() if task.get_coro().__qualname__ == "Story.tell"]
    if pending:
        await asyncio.wait(pending, timeout=10)
    if tracker.flusher is not None:
        await tracker.flusher.drain(5)
        await tracker.flusher.stop()
    await get_redis().aclose()


@pytest.fixture(autouse=True)
def _fresh_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "refusals", RefusalFlood())
    monkeypatch.setattr(doors, "database", doors.DatabaseDoor())
    monkeypatch.setattr(limits_module, "in_use", limits_module.InUse())
    endpoint.counted.clear()
    # what the test before left behind is no longer in the database
    catalogue.__init__()  # type: ignore[misc]
    server_rows.__init__()  # type: ignore[misc]


@pytest.fixture
def client_of(token_of: Any) -> Callable[[Any], Client]:
    return lambda user: Client(token_of(user))


@pytest.fixture
def browser_of() -> Any:
    """A signed-in browser's cookies, and its CSRF token."""

    def sign_in(user: Any) -> tuple[list[tuple[bytes, bytes]], bytes]:
        browser = Browser()
        assert browser.login(email=user.email, password=PASSWORD)
        token = "a" * 32
        browser.cookies["csrftoken"] = token
        cookies = "; ".join(f"{name}={each.value}" for name, each in browser.cookies.items())
        return [(b"cookie", cookies.encode())], token.encode()

    return sign_in


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """limits(requests_per_day=5): the defaults in force for all users."""

    def put(**values: Any) -> None:
        monkeypatch.setattr(config.current, "usage_limits", config.UsageLimits(**values))

    put()
    return put


class Tree:
    """The checkpoints of one turn as the log has them."""

    def __init__(self, checkpoints: list[dict[str, Any]]) -> None:
        self.all = checkpoints
        self.by_id = {each["flow_id"]: each for each in checkpoints}

    @property
    def names(self) -> list[str]:
        return [each["checkpoint"] for each in self.all]

    def one(self, name: str) -> dict[str, Any]:
        (found,) = self.every(name)
        return found

    def every(self, name: str) -> list[dict[str, Any]]:
        return [each for each in self.all if each["checkpoint"] == name]

    def facts(self, name: str) -> dict[str, Any]:
        return self.one(name)["metadata"]

    def parent_of(self, checkpoint: dict[str, Any]) -> str | None:
        return self.by_id[checkpoint["parent_id"]]["checkpoint"] if checkpoint["parent_id"] else None

    def assert_complete(self, outcome: str) -> None:
        """One root, parents before children, every step closed, one flow_end at the end."""
        seen: set[str] = set()
        for each in self.all:
            assert each["parent_id"] is None or each["parent_id"] in seen
            seen.add(each["flow_id"])
        assert [each["checkpoint"] for each in self.all if each["parent_id"] is None] == ["auth_check"]
        assert self.all[0]["flow_id"] == self.all[0]["turn_id"]
        for start, end in (("llm_thinking", "llm_complete"), ("tool_call", "tool_result")):
            starts = {each["flow_id"] for each in self.every(start)}
            assert starts == {each["parent_id"] for each in self.every(end)}
            assert len(starts) == len(self.every(end))
        assert self.names[-1] == "flow_end"
        assert self.facts("flow_end")["outcome"] == outcome


@pytest.fixture
def tree_of() -> Callable[..., Any]:
    """await tree_of(user, turn_id) → what the log has of that turn."""

    async def read(user: Any, turn_id: str) -> Tree:
        if tracker.flusher is not None:
            await tracker.flusher.drain(5)
        entries = await log.read_recent(user.user_id, count=1000)
        found = [json.loads(entry.document) for entry in entries]
        return Tree([each for each in found if each["turn_id"] == turn_id])

    return read
