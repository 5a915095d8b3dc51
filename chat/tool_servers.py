"""The tool servers of a process: open connections to MCP servers, and what each of them lists.

One `Connection` a server and event loop, made anew when what it depends on changes in its row. It is opened when a
turn is first offered the server, and then kept: a task of its own owns it (a connection of the MCP client must be
left by the task that entered it), asks for the list of tools every minute and when the server says that it changed,
and connects again, ever more patiently, when it is lost. So nobody waits for a list, and a server that is down costs
a turn nothing.

Programs (stdio) run behind chat/stdio_guard.py: ended with this process, however that ends.
"""

import asyncio
import json
import logging
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast
from weakref import WeakKeyDictionary

import httpx2
import mcp_types
from django.conf import settings
from fastmcp.client import Client
from fastmcp.client.messages import MessageHandler
from fastmcp.client.transports import StreamableHttpTransport
from fastmcp.client.transports.base import ClientTransport, TransportOptions
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.shared.exceptions import MCPError

from chat.stdio_guard import LINE_BYTES
from chat.tool_rows import ServerRow, server_rows
from chat.tools import RESULT_CHARACTERS, ToolProblem
from omni2.sealing import CannotOpen

logger = logging.getLogger(__name__)

CONNECT_S = 10.0
LIST_S = 10.0
FIRST_LIST_S = 1.0
"""How long a turn waits, once in a server's life here, for one that was never checked and never asked before."""
REFRESH_S = 60.0
BACK_OFF_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
STEADY_S = 30.0
"""A connection that is lost sooner counts as one more failure: what crashes at once is not started in a circle."""
GOODBYE_S = 5.0

TOOLS_AT_MOST = 200
PAGES_AT_MOST = 20
DESCRIPTION_CHARACTERS = 4000
PARAMETERS_CHARACTERS = 32_000
PROBLEM_CHARACTERS = 300

GUARD = Path(__file__).with_name("stdio_guard.py")


@dataclass(frozen=True, slots=True)
class Listed:
    """A tool as its server lists it."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Listed":
        """From what the table kept of the last check."""
        parameters = row.get("parameters")
        return cls(
            str(row.get("name", "")),
            str(row.get("description", "")),
            parameters if isinstance(parameters, dict) else {},
        )

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "description": self.description, "parameters": self.parameters}


class Lost(Exception):
    """The connection is no more; the text says why."""


# --- one connection ------------------------------------------------------------------------------


class Connection:
    """A tool server as this event loop reaches it."""

    def __init__(self, row: ServerRow) -> None:
        self.row = row
        self.tools: tuple[Listed, ...] | None = None
        """None: it has not been asked yet, or is out of reach"""
        self.problem = ""
        """why it is out of reach; empty: it is not, as far as is known"""
        self._client: Client[Any] | None = None
        self._calls = 0
        self._retired = False
        self._anew = False
        """the connection is of no use any more although its server may be: try at once"""
        self._woken = asyncio.Event()
        self._tried = asyncio.Event()
        """set while it is known whether the server can be reached"""
        self.task = asyncio.get_running_loop().create_task(self._keep(), name=f"tool server {row.name}")

    def known_tools(self) -> tuple[Listed, ...] | None:
        """What may be offered now; None: nothing is known, or it cannot be reached. No I/O."""
        if self.problem:
            return None
        if self.tools is not None:
            return self.tools
        # not connected yet: what it listed when it was checked
        return tuple(map(Listed.of, self.row.tools)) if self.row.tools and not self.row.problem else None

    async def first_list(self) -> None:
        """Wait until the server was reached or could not be."""
        await self._tried.wait()

    async def call(self, tool: str, arguments: dict[str, Any]) -> str:
        """What one of its tools answers, as text. Raises ToolProblem, whatever goes wrong."""
        self._calls += 1
        try:
            async with asyncio.timeout(self.row.timeout_s):
                result = await self._asked(tool, arguments)
        except TimeoutError:
            raise ToolProblem(f"The tool did not answer within {self.row.timeout_s:g} seconds.") from None
        except (ToolProblem, asyncio.CancelledError):
            raise
        except Exception as problem:  # noqa: BLE001 - another program's doing, through two libraries: the model is told
            self._wake()
            raise ToolProblem(f"The tool server failed: {words_of(problem)}") from None
        finally:
            self._calls -= 1
            if self._retired:
                self._wake()
        text = text_of(result)
        if result.is_error:
            raise ToolProblem(text or "The tool answered with an error and did not say which.")
        return text

    async def _asked(self, tool: str, arguments: dict[str, Any]) -> mcp_types.CallToolResult:
        client = await self._connected()
        try:
            return await client.call_tool_mcp(tool, arguments)
        except MCPError as problem:
            if problem.error.message != "Session terminated":
                raise
        # the server was started anew and knows nothing of us: it has not run the call
        self._begin_anew()
        return await (await self._connected()).call_tool_mcp(tool, arguments)

    async def _connected(self) -> Client[Any]:
        while self._client is None or not self._client.is_connected():
            if self._client is not None:
                self._begin_anew()
            if self.problem:
                raise ToolProblem(f"The tool server cannot be reached: {self.problem}")
            if self.task.done():
                raise ToolProblem("The tool server was changed or removed.")
            await self._tried.wait()
        return self._client

    def _begin_anew(self) -> None:
        self._client, self._anew = None, True
        self._tried.clear()
        self._wake()

    def retire(self) -> None:
        """End it when its last call is through."""
        self._retired = True
        self._wake()

    def _wake(self) -> None:
        self._woken.set()

    # --- its task --------------------------------------------------------------------------------

    async def _keep(self) -> None:
        failures = 0
        try:
            while not self._is_over():
                began = time.monotonic()
                try:
                    await self._live()
                    failures, self._anew = 0, False
                except Exception as problem:  # noqa: BLE001 - the door of this task: whatever it is, the next try begins afresh
                    if self._anew:
                        self._anew = False
                        continue
                    failures = failures + 1 if time.monotonic() - began < STEADY_S else 1
                    self._lose(words_of(problem))
                    await self._rest(BACK_OFF_S[min(failures, len(BACK_OFF_S)) - 1])
        finally:
            self._lose("The tool server was changed or removed.")

    def _is_over(self) -> bool:
        return self._retired and not self._calls

    async def _rest(self, seconds: float) -> None:
        """Until the next try; woken only by the end."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not self._is_over():
            self._woken.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._woken.wait()
            except TimeoutError:
                return

    def _lose(self, why: str) -> None:
        if not self.problem and not self._retired:
            logger.warning("tool server %s: %s", self.row.name, why)
        self._client, self.tools, self.problem = None, None, why
        self._tried.set()

    async def _live(self) -> None:
        """Connect, and stay connected until there is no use for it. Raises when the connection is lost."""
        ended = asyncio.Event()

        def over() -> None:
            ended.set()
            self._wake()

        async with connect(self.row, changed=self._wake, ended=over) as client:
            self.tools = await list_tools(client)
            if self.problem:
                logger.info("tool server %s can be reached again", self.row.name)
            self._client, self.problem = client, ""
            self._tried.set()
            try:
                while not self._is_over() and self._client is not None:
                    await self._something()
                    if ended.is_set():
                        raise Lost("The program has ended.")
                    if not self._retired and self._client is not None:
                        self.tools = await list_tools(client)
            finally:
                self._client = None

    async def _something(self) -> None:
        """Until the list is to be asked for: a minute has passed, the server or a call has said so."""
        with suppress(TimeoutError):
            async with asyncio.timeout(REFRESH_S):
                await self._woken.wait()
        self._woken.clear()


# --- the MCP client ------------------------------------------------------------------------------


@asynccontextmanager
async def connect(row: ServerRow, *, changed: Any = None, ended: Any = None) -> AsyncIterator[Client[Any]]:
    """A connected client. `changed` is called when the server says that its tools changed, `ended` when its program
    has ended. To be left by the task that entered it."""
    # closed and gone with the client: a program's last words, two kilobytes at most (chat.stdio_guard)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as last_words:
        client: Client[Any] = Client(
            _transport(row, cast(TextIO, last_words), ended),
            init_timeout=CONNECT_S,
            message_handler=_News(changed),
            log_handler=_ignore,
            progress_handler=_ignore_progress,
            client_info=mcp_types.Implementation(name="omni2", version="1"),
        )
        try:
            async with client:
                yield client
        except Exception as problem:
            if said := _read(last_words):
                raise Lost(said) from problem
            raise


def _read(last_words: TextIO) -> str:
    last_words.seek(0)
    lines = [line.strip() for line in last_words.read(20_000).splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _transport(row: ServerRow, last_words: TextIO, ended: Any) -> ClientTransport:
    if row.transport == "stdio":
        if not settings.STDIO_TOOLS:
            raise Lost("Tool servers that are programs are switched off here (OMNI2_STDIO_TOOLS).")
        return _Program(row, last_words, ended or (lambda: None))
    return StreamableHttpTransport(
        row.url, headers=row.headers(), httpx_client_factory=_http_client, max_sse_event_size=LINE_BYTES
    )


class _Program(ClientTransport):
    """A server that is a program of this machine, behind the guard."""

    def __init__(self, row: ServerRow, last_words: TextIO, ended: Any) -> None:
        self._row = row
        self._last_words = last_words
        self._ended = ended

    @asynccontextmanager
    async def connect_session(
        self, *, transport_options: TransportOptions | None = None, **session: Any
    ) -> AsyncGenerator[Any, None]:
        row = self._row
        # of this process' environment it gets no more than the MCP client's own short list (PATH, HOME, …)
        program = StdioServerParameters(
            command=sys.executable,
            args=["-I", "-S", str(GUARD), row.command, *row.arguments],
            env=row.environment(),
        )
        kind = (transport_options or TransportOptions()).session_class
        async with (
            stdio_client(program, errlog=self._last_words) as (reading, writing),
            kind(_Watched(reading, self._ended), writing, **session) as opened,
        ):
            yield opened


class _Watched:
    """A stream of messages whose end is told."""

    def __init__(self, stream: Any, ended: Any) -> None:
        self._stream = stream
        self._ended = ended

    async def __aenter__(self) -> "_Watched":
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *problem: Any) -> Any:
        return await self._stream.__aexit__(*problem)

    def __aiter__(self) -> "_Watched":
        return self

    async def __anext__(self) -> Any:
        try:
            return await anext(self._stream)
        except StopAsyncIteration:
            self._ended()
            raise

    async def receive(self) -> Any:
        return await self._stream.receive()

    async def aclose(self) -> None:
        await self._stream.aclose()


def _http_client(
    headers: dict[str, str] | None = None,
    timeout: httpx2.Timeout | None = None,
    auth: httpx2.Auth | None = None,
    **_: Any,
) -> httpx2.AsyncClient:
    # redirects within the server's origin are followed by the MCP client itself, others by nobody: they would take
    # the headers to a stranger
    client = httpx2.AsyncClient(
        headers={**(headers or {}), "accept-encoding": "identity"},
        auth=auth,
        timeout=timeout or httpx2.Timeout(CONNECT_S, read=None),
        follow_redirects=False,
    )
    client.event_hooks = {"request": [], "response": [_bound]}
    return client


class _TooLarge(httpx2.StreamError):
    pass


async def _bound(response: httpx2.Response) -> None:
    """No body is read that is larger than a message may be; a stream of events is bounded event by event."""
    if response.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
        raise httpx2.DecodingError("The tool server compresses its answers although it was asked not to.")
    if not response.headers.get("content-type", "").lower().startswith("text/event-stream"):
        response.stream = _Bounded(response.stream)


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            if size > LINE_BYTES:
                raise _TooLarge(f"more than {LINE_BYTES // 1024} KiB at once")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


class _News(MessageHandler):
    def __init__(self, changed: Any) -> None:
        self._changed = changed

    async def on_tool_list_changed(self, message: Any) -> None:
        if self._changed is not None:
            self._changed()


async def _ignore(message: Any) -> None:
    """What a server logs is its own business, and might fill ours."""


async def _ignore_progress(progress: float, total: float | None, message: str | None) -> None:
    """A tool's progress is not shown."""


async def list_tools(client: Client[Any]) -> tuple[Listed, ...]:
    """What the server lists now. Raises Lost when it does not answer in time, and whatever the client raises."""
    try:
        async with asyncio.timeout(LIST_S):
            found = await client.list_tools(max_pages=PAGES_AT_MOST)
    except TimeoutError:
        raise Lost(f"It did not list its tools within {LIST_S:g} seconds.") from None
    listed = (
        Listed(tool.name, (tool.description or "")[:DESCRIPTION_CHARACTERS], tool.input_schema)
        for tool in found[:TOOLS_AT_MOST]
    )
    return tuple(each for each in listed if len(json.dumps(each.parameters)) <= PARAMETERS_CHARACTERS)


# --- in words ------------------------------------------------------------------------------------


def text_of(result: mcp_types.CallToolResult) -> str:
    """What a tool answered, as text; what is no text is described in words."""
    parts = [_part(each) for each in result.content]
    if not parts and result.structured_content is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False)]
    text = "\n".join(parts)
    if len(text) <= RESULT_CHARACTERS:
        return text
    return text[:RESULT_CHARACTERS] + f"\n[cut: {len(text) - RESULT_CHARACTERS} characters more]"


def _part(content: Any) -> str:
    match content:
        case mcp_types.TextContent(text=text):
            said = text
        case mcp_types.ImageContent(data=data, mime_type=kind):
            said = f"[an image, {kind}, {_size(data)}: not shown to the model]"
        case mcp_types.AudioContent(data=data, mime_type=kind):
            said = f"[a sound, {kind}, {_size(data)}: not played to the model]"
        case mcp_types.ResourceLink(uri=uri, name=name):
            said = f"[a link to {name}: {uri}]"
        case mcp_types.EmbeddedResource(resource=mcp_types.TextResourceContents(uri=uri, text=text)):
            said = f"[{uri}]\n{text}"
        case mcp_types.EmbeddedResource(resource=file):
            said = f"[a file, {file.mime_type or 'of unknown kind'}, {_size(getattr(file, 'blob', ''))}: left out]"
        case _:
            said = "[something that is no text]"
    return said


def _size(base64: str) -> str:
    return f"about {max(1, len(base64) * 3 // 4 // 1024)} KiB"


def words_of(problem: BaseException) -> str:
    """Why a server could not be reached, or failed, in one line for people. Names no secret: neither headers nor
    environment are in any of these."""
    while isinstance(problem, BaseExceptionGroup) and problem.exceptions:
        problem = problem.exceptions[0]
    cause = problem.__cause__ if isinstance(problem, RuntimeError) and problem.__cause__ else problem
    match cause:
        case Lost():
            said = str(cause)
        case CannotOpen():
            said = "Its headers or environment were sealed with another SECRET_KEY: enter them again."
        case MCPError() if cause.error.code == mcp_types.CONNECTION_CLOSED:
            said = "The connection ended in the middle."
        case MCPError():
            said = cause.error.message
        case httpx2.ConnectError():
            said = "Nobody answers at its address."
        case httpx2.HTTPStatusError():
            said = f"It answered with HTTP {cause.response.status_code}."
        case httpx2.TimeoutException() | TimeoutError():
            said = "It did not answer in time."
        case _:
            said = str(cause) or type(cause).__name__
    line = " ".join(said.split())
    return line if len(line) <= PROBLEM_CHARACTERS else line[: PROBLEM_CHARACTERS - 1] + "…"


# --- all of them ---------------------------------------------------------------------------------


class ToolServers:
    """The connections of one event loop."""

    def __init__(self) -> None:
        self._connections: dict[int, Connection] = {}
        self._retired: set[Connection] = set()

    def reach(self, row: ServerRow) -> Connection:
        """The connection to a server as this row has it; opened, not waited for."""
        known = self._connections.get(row.pk)
        if known is not None and known.row.address == row.address and not known.task.done():
            known.row = row
            return known
        if known is not None:
            self._retire(known)
        connection = self._connections[row.pk] = Connection(row)
        return connection

    def keep(self, rows: Mapping[int, ServerRow]) -> None:
        """Let go of what was removed or switched off; what is reached otherwise now is connected anew, since
        whoever needed it before will again."""
        for pk in list(self._connections):
            row = rows.get(pk)
            if row is None or not row.enabled:
                self._retire(self._connections.pop(pk))
            else:
                self.reach(row)

    def _retire(self, connection: Connection) -> None:
        connection.retire()
        self._retired.add(connection)
        connection.task.add_done_callback(lambda _: self._retired.discard(connection))

    async def first_lists(self, connections: Sequence[Connection]) -> None:
        """Wait, a second at most, for those of which nothing is known at all."""
        waiting = [asyncio.ensure_future(each.first_list()) for each in connections]
        if waiting:
            await asyncio.wait(waiting, timeout=FIRST_LIST_S)
            for each in waiting:
                each.cancel()

    async def close(self) -> None:
        """Leave all servers; programs are ended. A few seconds at most."""
        for connection in self._connections.values():
            self._retire(connection)
        self._connections.clear()
        tasks = [each.task for each in self._retired]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=GOODBYE_S)


_servers: WeakKeyDictionary[asyncio.AbstractEventLoop, ToolServers] = WeakKeyDictionary()


def tool_servers() -> ToolServers:
    """The tool servers of the running event loop."""
    return _servers.setdefault(asyncio.get_running_loop(), ToolServers())


def rows_changed() -> None:
    """The rows were read anew: let go of what is not wanted any more. On the loop."""
    tool_servers().keep(server_rows.known())


# --- the check of an admin -----------------------------------------------------------------------

CHECK_S = 12.0


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found: tools, or why there are none."""

    tools: tuple[Listed, ...]
    problem: str


async def check(row: ServerRow) -> Checked:
    """Connect to a server for this once, and ask for its tools. Never raises; a quarter of a minute at most."""
    try:
        async with asyncio.timeout(CHECK_S):
            async with connect(row) as client:
                return Checked(await list_tools(client), "")
    except TimeoutError:
        return Checked((), f"It did not answer within {CHECK_S:g} seconds.")
    except Exception as problem:  # noqa: BLE001 - whatever it is, the admin is told in words
        return Checked((), words_of(problem))
