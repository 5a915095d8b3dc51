"""A scripted model behind an OpenAI-compatible HTTP server, for tests and for `manage.py demo`.

It is no language model and says so: its name begins with `scripted-`, its provider is shown as
`scripted`, and each of its answers ends in "(scripted)". Which script it plays is chosen by the
words `script:NAME` in the user's last message, else by the model's name `scripted-NAME`, else by
what the message asks for; scripts can be joined with "+": one for each round.

Standard library only: HTTP/1.1 over asyncio, one request a connection.
"""

import asyncio
import json
import re
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

SCRIPTED = "scripted"
LABEL = "(scripted)"
HANG_S = 3600.0
SLOW_S = 0.15
DEMO_PAUSE_S = 0.04
DEMO_THINK_S = 0.4

Chunk = dict[str, Any]


class Cut(Exception):
    """The script says: break the connection off here."""


class Rejected(Exception):
    """The script says: answer with this HTTP status and error."""

    def __init__(
        self, status: int, kind: str, message: str, *, code: str | None = None, retry_after: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.error = {"message": message, "type": kind, "code": code, "param": None}


@dataclass(slots=True)
class Seen:
    """One request as the server saw it: what tests ask about."""

    model: str
    messages: list[dict[str, Any]]
    body: dict[str, Any]
    headers: dict[str, str]
    script: str = ""
    again: int = 0
    """how often the very same was asked before"""
    request_id: str = ""
    """what it is called in the header x-request-id of the answer"""
    finished: bool = False
    aborted: bool = False
    """the client went away before the script was over"""
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def question(self) -> str:
        """The user's last words."""
        said = [each for each in self.messages if each.get("role") == "user"]
        return text_of(said[-1]) if said else ""

    @property
    def patience(self) -> str | None:
        """`retry-after:SECONDS` in the question: what the header of that name says."""
        found = re.search(r"retry-after:(\d+)", self.question)
        return found[1] if found else None

    @property
    def results(self) -> list[str]:
        """What the tools answered since the user's last words."""
        found: list[str] = []
        for each in reversed(self.messages):
            if each.get("role") == "user":
                break
            if each.get("role") == "tool":
                found.append(text_of(each))
        return found[::-1]

    @property
    def round(self) -> int:
        """Which round of the turn this is, from 0: how often tools have answered already."""
        rounds = 0
        for each in reversed(self.messages):
            if each.get("role") == "user":
                break
            rounds += each.get("role") == "assistant"
        return rounds


def text_of(message: dict[str, Any]) -> str:
    """The text of one message of a request, whether it is a string or a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")


# --- what a script can say -------------------------------------------------------------------------

Script = Callable[[Seen], AsyncIterator[Chunk | bytes]]
SCRIPTS: dict[str, Script] = {}


def script(name: str) -> Callable[[Script], Script]:
    """Register a script under a name."""

    def add(play: Script) -> Script:
        SCRIPTS[name] = play
        return play

    return add


def says(text: str) -> Chunk:
    """A piece of the answer."""
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


def calls(*tools: tuple[str, dict[str, Any] | str]) -> Chunk:
    """Tool calls, all in one piece: (name, arguments as an object or as raw text)."""
    return {
        "choices": [
            {
                "index": 0,
                "delta": {
                    "tool_calls": [
                        {
                            "index": index,
                            "id": f"call_{secrets.token_hex(8)}",
                            "type": "function",
                            "function": {
                                "name": name,
                                "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments),
                            },
                        }
                        for index, (name, arguments) in enumerate(tools)
                    ]
                },
                "finish_reason": None,
            }
        ]
    }


def ends(reason: str = "stop") -> Chunk:
    """Why the answer ends."""
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


def used(input_tokens: int, output_tokens: int) -> Chunk:
    """How many tokens it took."""
    total = input_tokens + output_tokens
    return {
        "choices": [],
        "usage": {"prompt_tokens": input_tokens, "completion_tokens": output_tokens, "total_tokens": total},
    }


async def speak(seen: Seen, text: str, *, pause_s: float = 0.0, label: bool = True) -> AsyncIterator[Chunk]:
    """The text word by word, the label, the end, the usage (a token is a word here)."""
    pieces = re.findall(r"\S+\s*", f"{text} {LABEL}" if label else text)
    for piece in pieces:
        if pause_s:
            await asyncio.sleep(pause_s)
        yield says(piece)
    yield ends()
    yield used(sum(len(text_of(each).split()) for each in seen.messages), len(pieces))


@script("plain")
async def plain(seen: Seen) -> AsyncIterator[Chunk]:
    async for chunk in speak(seen, f"You said: {seen.question[:200]}"):
        yield chunk


@script("until")
async def until(seen: Seen) -> AsyncIterator[Chunk]:
    """Speaks until somebody asks `script:enough` with the same words, ten minutes at most: whoever watches it may
    be as slow as he is."""
    for _ in range(600):
        yield says("and ")
        if _words(seen) in _enough:
            break
        await asyncio.sleep(1)
    async for chunk in speak(seen, "that is enough."):
        yield chunk


@script("enough")
async def enough(seen: Seen) -> AsyncIterator[Chunk]:
    _enough.add(_words(seen))
    async for chunk in speak(seen, "It ends."):
        yield chunk


_enough: set[str] = set()


def _words(seen: Seen) -> str:
    return seen.question.partition(" ")[2]


@script("slow")
async def slow(seen: Seen) -> AsyncIterator[Chunk]:
    text = "This answer takes its time, word after word, so that one can watch it grow and walk away in the middle."
    async for chunk in speak(seen, text, pause_s=SLOW_S):
        yield chunk


@script("long")
async def long(seen: Seen) -> AsyncIterator[Chunk]:
    """Never stops by itself, in pieces of 8 KiB."""
    while True:
        yield says("word " * 1638 + "\n")
        await asyncio.sleep(0)


@script("silent")
async def silent(seen: Seen) -> AsyncIterator[Chunk]:
    yield ends()
    yield used(5, 0)


@script("memory")
async def memory(seen: Seen) -> AsyncIterator[Chunk]:
    """Says how many messages it was given, and the first of them."""
    first = text_of(next((each for each in seen.messages if each.get("role") == "user"), {}))
    async for chunk in speak(seen, f"{len(seen.messages)} messages, the first: {first[:100]}"):
        yield chunk


async def _tools_then_answer(seen: Seen, *tools: tuple[str, dict[str, Any] | str]) -> AsyncIterator[Chunk]:
    if not seen.results:
        yield calls(*tools)
        yield ends("tool_calls")
        yield used(40, 12 * len(tools))
        return
    async for chunk in speak(seen, "The tools say: " + " and ".join(seen.results)):
        yield chunk


@script("clock")
async def clock(seen: Seen) -> AsyncIterator[Chunk]:
    async for chunk in _tools_then_answer(seen, ("clock", {"time_zone": "Europe/Berlin"})):
        yield chunk


@script("calculator")
async def calculator(seen: Seen) -> AsyncIterator[Chunk]:
    found = re.search(r"[-+(]*\d[\d\s.+\-*/()^%]*", seen.question)
    async for chunk in _tools_then_answer(seen, ("calculator", {"expression": found[0].strip() if found else "6*7"})):
        yield chunk


@script("parallel")
async def parallel(seen: Seen) -> AsyncIterator[Chunk]:
    wanted = (
        ("clock", {"time_zone": "UTC"}),
        ("clock", {"time_zone": "Asia/Tokyo"}),
        ("calculator", {"expression": "19 * 23"}),
    )
    async for chunk in _tools_then_answer(seen, *wanted):
        yield chunk


USED = r"^\s*([\w-]+)\s+(\{.*\})\s*$"


@script("use")
async def use(seen: Seen) -> AsyncIterator[Chunk]:
    """Asks for the tools that the question names, all at once: a line each, `NAME {arguments}`."""
    async for chunk in _tools_then_answer(seen, *re.findall(USED, seen.question, re.M)):
        yield chunk


@script("twice")
async def twice(seen: Seen) -> AsyncIterator[Chunk]:
    """The same as `use`, in two rounds, with a moment before the second."""
    if seen.round == 1:
        await asyncio.sleep(DEMO_THINK_S)
    if seen.round < 2:
        yield calls(*re.findall(USED, seen.question, re.M))
        yield ends("tool_calls")
        yield used(40, 12)
        return
    async for chunk in speak(seen, "The tools say: " + " and ".join(seen.results)):
        yield chunk


@script("elsewhere")
async def elsewhere(seen: Seen) -> AsyncIterator[Chunk]:
    """Tells the time in Tokyo, and adds two numbers of the question, by whichever tools it is offered for that."""
    offered = [str(each.get("function", {}).get("name", "")) for each in seen.body.get("tools") or ()]
    wanted: list[tuple[str, dict[str, Any] | str]] = [
        (name, {"timezone": "Asia/Tokyo"}) for name in offered if name.endswith("__get_current_time")
    ] or [("clock", {"time_zone": "Asia/Tokyo"})]
    if numbers := re.search(r"(\d+) plus (\d+)", seen.question):
        two = {"a": int(numbers[1]), "b": int(numbers[2])}
        wanted += [(name, two) for name in offered if name.endswith("__add")]
    async for chunk in _tools_then_answer(seen, *wanted):
        yield chunk


@script("talk_and_call")
async def talk_and_call(seen: Seen) -> AsyncIterator[Chunk]:
    """Says something, asks for a tool, and goes on in the next round."""
    if not seen.results:
        yield says("Let me look. ")
    async for chunk in _tools_then_answer(seen, ("clock", {})):
        yield chunk


@script("bad_sum")
async def bad_sum(seen: Seen) -> AsyncIterator[Chunk]:
    async for chunk in _tools_then_answer(seen, ("calculator", {"expression": "1/0"})):
        yield chunk


@script("unknown_tool")
async def unknown_tool(seen: Seen) -> AsyncIterator[Chunk]:
    async for chunk in _tools_then_answer(seen, ("teleport", {"to": "Mars"})):
        yield chunk


@script("bad_arguments")
async def bad_arguments(seen: Seen) -> AsyncIterator[Chunk]:
    async for chunk in _tools_then_answer(seen, ("calculator", '{"expression": ')):
        yield chunk


@script("endless")
async def endless(seen: Seen) -> AsyncIterator[Chunk]:
    """Asks for a tool in every round."""
    yield calls(("calculator", {"expression": f"{seen.round} + 1"}))
    yield ends("tool_calls")
    yield used(10, 5)


@script("many_calls")
async def many_calls(seen: Seen) -> AsyncIterator[Chunk]:
    """Asks for far too many tools at once."""
    async for chunk in _tools_then_answer(seen, *(("calculator", {"expression": f"{i}+{i}"}) for i in range(200))):
        yield chunk


@script("error_500")
async def error_500(seen: Seen) -> AsyncIterator[Chunk]:
    raise Rejected(500, "server_error", "The scripted model fails, as it was told, at /srv/secret/path.py")
    yield {}


@script("error_503")
async def error_503(seen: Seen) -> AsyncIterator[Chunk]:
    raise Rejected(503, "service_unavailable", "The scripted model is away, as it was told.")
    yield {}


@script("error_429")
async def error_429(seen: Seen) -> AsyncIterator[Chunk]:
    raise Rejected(429, "rate_limit_error", "The scripted model has had enough.", code="rate_limit_exceeded")
    yield {}


@script("error_401")
async def error_401(seen: Seen) -> AsyncIterator[Chunk]:
    raise Rejected(401, "invalid_request_error", "Wrong key sk-1234567890abcdefghij", code="invalid_api_key")
    yield {}


@script("too_long")
async def too_long(seen: Seen) -> AsyncIterator[Chunk]:
    raise Rejected(
        400,
        "invalid_request_error",
        "This model's maximum context length is 10 tokens.",
        code="context_length_exceeded",
    )
    yield {}


@script("filtered")
async def filtered(seen: Seen) -> AsyncIterator[Chunk]:
    """Says something, and is then cut off by its own filter."""
    yield says("I can tell you that ")
    yield ends("content_filter")
    yield used(12, 5)


@script("filtered_at_once")
async def filtered_at_once(seen: Seen) -> AsyncIterator[Chunk]:
    yield ends("content_filter")
    yield used(12, 0)


@script("policy")
async def policy(seen: Seen) -> AsyncIterator[Chunk]:
    raise Rejected(400, "invalid_request_error", "That may not be asked.", code="content_policy_violation")
    yield {}


@script("error_429_once")
async def error_429_once(seen: Seen) -> AsyncIterator[Chunk | bytes]:
    """Has had enough the first time, and answers the second."""
    if seen.again == 0:
        raise Rejected(429, "rate_limit_error", "Too fast.", code="rate_limit_exceeded", retry_after=seen.patience)
    async for chunk in plain(seen):
        yield chunk


@script("error_500_once")
async def error_500_once(seen: Seen) -> AsyncIterator[Chunk | bytes]:
    if seen.again == 0:
        raise Rejected(500, "server_error", "The scripted model fails, as it was told.")
    async for chunk in plain(seen):
        yield chunk


@script("hang_once")
async def hang_once(seen: Seen) -> AsyncIterator[Chunk | bytes]:
    if seen.again == 0:
        await asyncio.sleep(HANG_S)
    async for chunk in plain(seen):
        yield chunk


@script("cut_at_once")
async def cut_at_once(seen: Seen) -> AsyncIterator[Chunk | bytes]:
    """Breaks the connection off before it has said anything, the first time."""
    if seen.again == 0:
        raise Cut
    async for chunk in plain(seen):
        yield chunk


@script("hang")
async def hang(seen: Seen) -> AsyncIterator[Chunk]:
    """Takes the request and says nothing at all, not even a status."""
    await asyncio.sleep(HANG_S)
    yield ends()


@script("hang_in_middle")
async def hang_in_middle(seen: Seen) -> AsyncIterator[Chunk]:
    yield says("This answer ")
    yield says("stops here ")
    await asyncio.sleep(HANG_S)


@script("cut")
async def cut(seen: Seen) -> AsyncIterator[Chunk]:
    yield says("This answer ")
    yield says("breaks off ")
    raise Cut


@script("error_in_middle")
async def error_in_middle(seen: Seen) -> AsyncIterator[Chunk]:
    yield says("This answer ")
    yield {"error": {"message": "The scripted model broke.", "type": "server_error", "code": None}}


@script("bad_json")
async def bad_json(seen: Seen) -> AsyncIterator[Chunk | bytes]:
    yield says("This answer ")
    yield b'data: {"choices": [{"delta": {"con\n\n'


@script("strange_shape")
async def strange_shape(seen: Seen) -> AsyncIterator[Chunk | bytes]:
    yield b'data: {"choices": "none of your business", "usage": 7}\n\n'


@script("odd_text")
async def odd_text(seen: Seen) -> AsyncIterator[Chunk | bytes]:
    """NUL, a lone surrogate, an SSE look-alike and HTML in the text of the answer."""
    yield b'data: {"choices":[{"index":0,"delta":{"content":"a\\u0000b\\ud800c"},"finish_reason":null}]}\n\n'
    yield says("\n\nevent: done\ndata: {}\n\n<script>alert(1)</script>")
    yield ends()
    yield used(3, 9)


@script("client_tools")
async def client_tools(seen: Seen) -> AsyncIterator[Chunk]:
    """Asks for each tool it was offered, all at once."""
    offered = [tool["function"]["name"] for tool in seen.body.get("tools", [])]
    async for chunk in _tools_then_answer(seen, *((name, {"city": "Tromsø"}) for name in offered)):
        yield chunk


@script("cut_short")
async def cut_short(seen: Seen) -> AsyncIterator[Chunk]:
    """Ends because it may not say more."""
    yield says("This is all I may ")
    yield ends("length")
    yield used(7, 5)


@script("unicode")
async def unicode(seen: Seen) -> AsyncIterator[Chunk]:
    """Letters of many alphabets, line breaks that only some take for one, an SSE look-alike."""
    yield says("Grüße 世界 🧑‍🚀\u2028\u0085")
    yield says("\n\ndata: [DONE]\n\nעוד")
    yield ends()
    yield used(3, 9)


@script("long_answer")
async def long_answer(seen: Seen) -> AsyncIterator[Chunk]:
    """Two thousand words."""
    async for chunk in speak(seen, " ".join(f"word{number}" for number in range(2000)), label=False):
        yield chunk


@script("demo")
async def demo(seen: Seen) -> AsyncIterator[Chunk | bytes]:
    """What the question asks for, else some sentences; so slowly that one can watch it happen."""
    name = _asked_for(seen)
    await asyncio.sleep(DEMO_THINK_S)
    async for chunk in SCRIPTS[name](seen) if name else speak(seen, _sentences(seen.question)):
        await asyncio.sleep(DEMO_PAUSE_S)
        yield chunk


def _sentences(question: str) -> str:
    return (
        f"You asked: “{question[:120]}” This answer comes from a script and not from a language model. "
        "It has a few sentences, so that there is something to read while it grows, "
        "and every step on its way is written down like that of a real one."
    )


QUESTIONS = (
    (re.compile(r"\btime is it in Tokyo\b", re.I), "elsewhere"),
    (re.compile(r"\b(both|and what is|compare)\b", re.I), "parallel"),
    (re.compile(r"\b(what time|date|clock)\b", re.I), "clock"),
    (re.compile(r"\d\s*[-+*/^%]\s*\d"), "calculator"),
)


def choose(seen: Seen) -> str:
    """The name of the script for this request."""
    told = re.search(r"script:([\w+]+)", seen.question)
    named = told[1] if told else seen.model.removeprefix(SCRIPTED + "-")
    rounds = named.split("+")
    name = rounds[min(seen.round, len(rounds) - 1)]
    return name if name in SCRIPTS else _asked_for(seen) or "plain"


def _asked_for(seen: Seen) -> str:
    return next((name for pattern, name in QUESTIONS if pattern.search(seen.question)), "")


# --- the server ----------------------------------------------------------------------------------


class ScriptedModel:
    """The server. `requests` holds what it saw; `url` is the base URL for an OpenAI client."""

    def __init__(self, *, key: str = "", keep_requests: bool = True) -> None:
        self.key = key
        self.keep_requests = keep_requests
        self.requests: list[Seen] = []
        self._asked: Counter[str] = Counter()
        self.url = ""
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen, and return the base URL."""
        self._server = await asyncio.start_server(self._serve, host, port, backlog=1024)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://{host}:{port}/v1"
        return self.url

    async def stop(self) -> None:
        """Break off what is running and stop listening."""
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._converse(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, path, headers = await _read_head(reader)
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if self.key and headers.get("authorization") != f"Bearer {self.key}":
            return await _answer(writer, 401, {"error": {"message": "wrong key", "type": "invalid_request_error"}})
        if method == "GET" and path == "/v1/models":
            return await _answer(writer, 200, {"object": "list", "data": [{"id": "scripted-model", "object": "model"}]})
        if method != "POST" or path != "/v1/chat/completions":
            return await _answer(writer, 404, {"error": {"message": "no such path", "type": "invalid_request_error"}})
        asked = json.loads(body)
        seen = Seen(asked.get("model", ""), asked.get("messages", []), asked, headers)
        seen.script = choose(seen)
        seen.request_id = f"req_{secrets.token_hex(8)}"
        if "_once" in seen.script:
            seen.again = self._asked[said := seen.model + json.dumps(seen.messages)]
            self._asked[said] += 1
        if self.keep_requests:
            self.requests.append(seen)
        await _play(seen, reader, writer)
        return None


async def _play(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Play the script, and stop as soon as the client has gone."""
    playing = asyncio.create_task(_stream(seen, writer))
    # one request a connection: whatever comes now, usually the end, means the client is through
    leaving = asyncio.create_task(reader.read(1))
    try:
        await asyncio.wait({playing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not playing.done():
            seen.aborted = True
    finally:
        for task in (playing, leaving):
            task.cancel()
        await asyncio.gather(playing, leaving, return_exceptions=True)
        seen.aborted = seen.aborted or (playing.done() and not seen.finished)
        seen.over.set()


async def _stream(seen: Seen, writer: asyncio.StreamWriter) -> None:
    chunks = SCRIPTS[seen.script](seen)
    started = False
    try:
        async for chunk in chunks:
            if not started:
                await _begin(writer, seen.request_id)
                started = True
            await _send(writer, chunk if isinstance(chunk, bytes) else b"data: %b\n\n" % _json(_whole(seen, chunk)))
        await _send(writer, b"data: [DONE]\n\n")
        await _send(writer, b"")
        seen.finished = True
    except Rejected as rejected:
        seen.finished = True
        headers = {"X-Request-Id": seen.request_id}
        if rejected.retry_after:
            headers["Retry-After"] = rejected.retry_after
        await _answer(writer, rejected.status, {"error": rejected.error}, headers)
    except Cut:
        seen.finished = True
        writer.transport.abort()


def _whole(seen: Seen, chunk: Chunk) -> Chunk:
    if "error" in chunk:
        return chunk
    return {"id": "chatcmpl-scripted", "object": "chat.completion.chunk", "created": 1, "model": seen.model, **chunk}


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


async def _read_head(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ", 2)
    pairs = (line.split(":", 1) for line in head[1:] if ":" in line)
    return method, path, {name.strip().lower(): value.strip() for name, value in pairs}


async def _begin(writer: asyncio.StreamWriter, request_id: str) -> None:
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nX-Request-Id: %b\r\n"
        b"Connection: close\r\n\r\n" % request_id.encode()
    )
    await writer.drain()


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    """One chunk of chunked transfer encoding; an empty one is the last."""
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))
    await writer.drain()


async def _answer(writer: asyncio.StreamWriter, status: int, data: Any, headers: dict[str, str] | None = None) -> None:
    body = _json(data)
    more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items()).encode()
    writer.write(
        b"HTTP/1.1 %d Scripted\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%bConnection: close\r\n\r\n%b"
        % (status, len(body), more, body)
    )
    with suppress(ConnectionError):
        await writer.drain()
