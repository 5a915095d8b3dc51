"""The two ask routes as an ASGI application below Django: no thread and no database connection for
an open answer, the same on Daphne and uvicorn.

    POST /api/v1/ask/stream   the answer as text/event-stream
    POST /api/v1/ask          the answer whole, as JSON

Who speaks another dialect (chat.openai_dialect) comes the same way, through `serve`: only how a request is read, how
it is refused and how its answer is told are the dialect's own.

The order of checks: who are you (401) → body (400, 413) → whose session (404) → the turn begins →
active, blocked, usage. Body and credential are looked at here, the rest is one visit to PostgreSQL
(chat.checks.admit); then the story is told (chat.turn).
"""

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, Protocol

from django.db import InterfaceError, OperationalError

from chat import checks, doors, sse
from chat.checks import Admission, Question, Refused
from chat.client_side import client_side
from chat.llm import models
from chat.standing import rate_limit_headers
from chat.turn import ACKNOWLEDGE_S, Audience, Story, give_back, keep, open_turn
from flows.checkpoints import next_moment_us, uuid7
from flows.tracker import TurnTrack, tracker
from omni2.accounts.authenticate import WWW_AUTHENTICATE
from omni2.database import in_database
from omni2.intake import drain

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]

WHOLE_PATH = "/api/v1/ask"
STREAM_PATH = "/api/v1/ask/stream"
ALLOW: Header = (b"allow", b"POST")
HEARTBEAT_S = 15.0
ADMIT_TIMEOUT_S = 15.0
SILENT_S = 5.0
"""A database that answers nobody for so long does not answer; one that is merely busy gets the whole time-out."""

STOOD_STILL_S = 1.0
"""A timer that comes so much too late says that this process stood still, and nothing about the database."""

BODY_TIMEOUT_S = 30.0
"""How long a body may take to arrive."""

# How an error that ends a turn is answered to a client that waits for the whole answer.
STATUS_OF = {
    "llm_failed": 502,
    "llm_timeout": 504,
    "llm_rate_limited": 503,
    "llm_unavailable": 503,
    "context_too_long": 400,
    "content_refused": 400,
    "internal_error": 500,
    "server_stopping": 503,
    # 409: to be asked again by nobody but a person
    "stopped": 409,
}

counted: Counter[str] = Counter()
"""What leaves no turn behind: requests by the code they were refused with, in this process."""

refusals = checks.RefusalFlood()


def is_ask_path(path: str) -> bool:
    """Is this one of the two routes?"""
    return path in (WHOLE_PATH, STREAM_PATH)


class Dialect(Protocol):
    """How the clients of a route ask, are refused and are answered."""

    def read(self, scope: Scope, body: bytes) -> Question:
        """What is asked. Raises Refused."""

    def refusal(self, refused: Refused) -> tuple[Any, list[Header]]:
        """The body of a refusal, and headers of its own."""

    def audience(self, send: Send, turn: TurnTrack, question: Question, admission: Admission) -> Audience:
        """Who hears the answer, under the `turn_headers` of the turn."""


async def ask_application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request to one of the two routes."""
    await serve(STREAM if scope["path"] == STREAM_PATH else WHOLE, scope, receive, send)


async def serve(dialect: Dialect, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request in this dialect."""
    try:
        await _serve(dialect, scope, receive, send)
    except _ClientGone:
        # before a turn began: there is nobody to answer and nothing to write down
        counted["client_gone"] += 1


class _ClientGone(Exception):
    """The client went away while its body was still coming."""


async def _serve(dialect: Dialect, scope: Scope, receive: Receive, send: Send) -> None:
    started = time.monotonic()
    try:
        question = await _listen(dialect, scope, receive)
        with doors.turnstile.passed():
            await _answer(dialect, scope, receive, send, question, started=started)
    except Refused as refused:
        await refuse(send, refused, dialect, headers=[ALLOW] if refused.status == 405 else ())


async def _listen(dialect: Dialect, scope: Scope, receive: Receive) -> Question | Refused:
    """What is asked, or what is wrong with that. Raises Refused for what is not even looked at."""
    if scope["method"] != "POST":
        raise not_allowed(scope)
    if not carries_credential(scope):
        raise checks.not_signed_in()
    if doors.turnstile.is_full():
        raise doors.server_busy()
    return await _question(dialect, scope, receive)


def not_allowed(scope: Scope) -> Refused:
    """The answer to another method than the one there is."""
    return Refused.because(405, "method_not_allowed", f"Method {scope['method'][:20]} is not allowed here.")


async def _answer(
    dialect: Dialect, scope: Scope, receive: Receive, send: Send, asked: Question | Refused, *, started: float
) -> None:
    request = _request(scope, asked)
    admission = await _let_in(request)
    question = request.question
    assert isinstance(question, Question)
    if admission.refusal is not None:
        return await _refuse_turn(dialect, send, admission, question, request.turn_id)
    turn, usage_check = open_turn(admission, question, request.turn_id)
    audience = dialect.audience(send, turn, question, admission)
    return await _accompany(Story(turn, usage_check, admission, question, audience, started), receive)


async def _let_in(request: checks.Request) -> Admission:
    """The checks, in their order. Raises Refused for what makes no turn."""
    doors.database.pass_or_refuse()
    try:
        admission = await _admit(request)
    except Refused:
        doors.database.answered()
        raise
    except (OperationalError, InterfaceError, TimeoutError) as problem:
        logger.error("no turn: PostgreSQL cannot be reached: %s", problem)
        doors.database.failed()
        raise doors.database_unavailable() from None
    except Exception:  # the door: nobody sees a stack trace
        logger.exception("a request failed in a way nobody foresaw")
        raise Refused.because(500, "internal_error", "Something went wrong.") from None
    doors.database.answered()
    return admission


# --- what came in --------------------------------------------------------------------------------


def carries_credential(scope: Scope) -> bool:
    """Without one nothing has to be read or asked."""
    return any(name.lower() in (b"authorization", b"cookie") for name, _ in scope["headers"])


async def _question(dialect: Dialect, scope: Scope, receive: Receive) -> Question | Refused:
    """The question, or what is wrong with the body: said only once we know who asks."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            body = await _body(scope, receive)
        return dialect.read(scope, body)
    except TimeoutError:
        raise Refused.because(408, "request_timeout", "The request took too long to arrive.") from None
    except Refused as refused:
        return refused


async def _body(scope: Scope, receive: Receive) -> bytes:
    """The whole body, or Refused (413) as soon as it is known to be too large."""
    announced = next((value for name, value in scope["headers"] if name.lower() == b"content-length"), b"0")
    if announced.isdigit() and (len(announced) > 20 or int(announced) > checks.BODY_BYTES):
        await drain(receive)
        raise checks.too_large()
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > checks.BODY_BYTES:
            if more:
                await drain(receive)
            raise checks.too_large()
    return b"".join(parts)


def _request(scope: Scope, question: Question | Refused) -> checks.Request:
    return checks.Request(
        scope=scope,
        question=question,
        turn_id=uuid7(next_moment_us()),
        new_session_id=str(uuid.uuid4()),
        process_id=tracker.process_id,
        models=models(),
    )


async def _admit(request: checks.Request) -> Admission:
    """The visit to the database. Cancelling it or its time-out cannot stop it, and a broken connection does
    not say whether it was heard: if it lets the turn in after all, that is undone. Raises TimeoutError, and
    what `checks.admit` raises."""
    admitting = asyncio.ensure_future(in_database(checks.admit, request))
    try:
        while await _is_silent(admitting):
            pass
        async with asyncio.timeout(max(0.0, ADMIT_TIMEOUT_S - SILENT_S)):
            return await asyncio.shield(admitting)
    except (OperationalError, InterfaceError, TimeoutError, asyncio.CancelledError):
        keep(give_back(admitting, request.turn_id))
        raise


async def _is_silent(admitting: "asyncio.Future[Admission]") -> bool:
    """Wait for the database as long as it may be silent. False when it answered this request or another; True
    when nobody can tell, since this process stood still itself. Raises TimeoutError when it answered nobody."""
    asked_s, patience_s = time.monotonic(), min(SILENT_S, ADMIT_TIMEOUT_S)
    await asyncio.wait({admitting}, timeout=patience_s)
    if admitting.done() or doors.database.answered_at_s >= asked_s:
        return False
    if time.monotonic() - asked_s > patience_s + STOOD_STILL_S:
        return True
    raise TimeoutError("no answer")


# --- refusals ------------------------------------------------------------------------------------


async def _refuse_turn(dialect: Dialect, send: Send, admission: Admission, question: Question, turn_id: str) -> None:
    """A refusal that is written down as a turn, unless this user had too many of them."""
    refusal = admission.refusal
    assert refusal is not None
    if refusals.is_too_much(admission.user_id):
        too_many = Refused.because(
            429,
            "too_many_refusals",
            "Too many requests that were refused. Please wait.",
            retry_after_s=refusals.seconds_left(admission.user_id),
        )
        return await refuse(send, too_many, dialect)
    turn, _ = open_turn(admission, question, turn_id)
    await turn.acknowledged(ACKNOWLEDGE_S)
    body = {**refusal.body, "turn_id": turn.turn_id, "session_id": turn.session_id}
    await refuse(
        send, Refused(refusal.status, body, refusal.retry_after_s), dialect, headers=turn_headers(turn, admission)
    )
    return None


async def refuse(send: Send, refused: Refused, dialect: Dialect, *, headers: Sequence[Header] = ()) -> None:
    """Answer with a refusal, and count it."""
    counted[refused.code or str(refused.status)] += 1
    body, more = dialect.refusal(refused)
    more += headers
    if refused.retry_after_s is not None:
        more.append((b"retry-after", b"%d" % refused.retry_after_s))
    if refused.status == 401:
        more.append((b"www-authenticate", WWW_AUTHENTICATE.encode()))
    await send_json(send, refused.status, body, more)


async def send_json(send: Send, status: int, body: Any, headers: Iterable[Header]) -> None:
    """A whole answer."""
    content = sse.encode(body).encode()
    length = (b"content-length", b"%d" % len(content))
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [*answer_headers(b"application/json"), length, *headers],
        }
    )
    await send({"type": "http.response.body", "body": content})


def answer_headers(content_type: bytes) -> list[Header]:
    """What every answer has."""
    return [
        (b"content-type", content_type),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"same-origin"),
    ]


def turn_headers(turn: TurnTrack, admission: Admission) -> list[Header]:
    """What every answer of a turn has, a refusal too: by these its client finds it again, and knows what is left of
    its user's limits."""
    ids = [(b"x-omni2-turn-id", turn.turn_id.encode()), (b"x-omni2-session-id", turn.session_id.encode())]
    return [*ids, *rate_limit_headers(admission.verdict)]


# --- answers -------------------------------------------------------------------------------------


class StreamAudience:
    """A client that reads the answer as it is made, as server-sent events."""

    def __init__(self, send: Send, headers: list[Header]) -> None:
        self._send = send
        self._headers = headers
        self._last_sent = time.monotonic()
        self._begun = False
        self._over = False

    async def hear(self, name: str, data: Mapping[str, Any]) -> None:
        if not self._begun:
            self._begun = True
            headers = [*answer_headers(b"text/event-stream; charset=utf-8"), *self._headers]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        self._over = name in ("done", "error")
        await self._put(sse.event(name, data))

    async def _put(self, data: bytes) -> None:
        self._last_sent = time.monotonic()
        await self._send({"type": "http.response.body", "body": data, "more_body": not self._over})

    def quiet_for_s(self) -> float:
        """Seconds until a heartbeat is due."""
        return max(0.0, self._last_sent + HEARTBEAT_S - time.monotonic())

    async def heartbeat(self) -> None:
        """A comment, if nothing was sent for a while: proxies close what is silent."""
        if self.quiet_for_s() or self._over:
            return
        if self._begun:
            await self._put(sse.HEARTBEAT)
        else:
            self._last_sent = time.monotonic()


class WholeAudience:
    """A client that waits for the whole answer."""

    def __init__(self, send: Send, turn: TurnTrack, headers: list[Header]) -> None:
        self._send = send
        self._turn = turn
        self._headers = headers
        self._pieces: list[str] = []

    async def hear(self, name: str, data: Mapping[str, Any]) -> None:
        match name:
            case "token":
                self._pieces.append(data["text"])
            case "done":
                await self._answer(200, {"answer": "".join(self._pieces), **data})
            case "error":
                code = data["code"]
                body = {"detail": data["message"], "code": code, "session_id": self._turn.session_id}
                await self._answer(STATUS_OF.get(code, 502), {**body, "turn_id": self._turn.turn_id})

    async def _answer(self, status: int, body: Mapping[str, Any]) -> None:
        await send_json(self._send, status, body, self._headers)

    def quiet_for_s(self) -> float | None:
        return None

    async def heartbeat(self) -> None:
        """JSON has no comments."""


class _AskDialect:
    """Omni2's own API: errors as DRF writes them."""

    def read(self, scope: Scope, body: bytes) -> Question:
        return checks.read_question(body, client_side(scope))

    def refusal(self, refused: Refused) -> tuple[Any, list[Header]]:
        return refused.body, []


class _Stream(_AskDialect):
    def audience(self, send: Send, turn: TurnTrack, question: Question, admission: Admission) -> Audience:
        return StreamAudience(send, turn_headers(turn, admission))


class _Whole(_AskDialect):
    def audience(self, send: Send, turn: TurnTrack, question: Question, admission: Admission) -> Audience:
        return WholeAudience(send, turn, turn_headers(turn, admission))


STREAM, WHOLE = _Stream(), _Whole()


async def _accompany(story: Story, receive: Receive) -> None:
    """Stay until the story is told; tell it when its client has gone.

    The story runs in a task of its own: when the server cancels this one (Daphne does so ten
    seconds after a disconnect, and when it shuts down), the turn is still closed in order.
    """
    telling = keep(story.tell())
    leaving = asyncio.create_task(_until_gone(receive))
    audience = story.audience
    try:
        while not telling.done():
            await asyncio.wait({telling, leaving}, timeout=audience.quiet_for_s(), return_when=asyncio.FIRST_COMPLETED)
            if leaving.done():
                story.leave()
                await asyncio.wait({telling})
            elif not telling.done():
                await audience.heartbeat()
    finally:
        leaving.cancel()
        story.leave()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
