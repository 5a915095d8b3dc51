"""The checks before a turn: who are you, is the body good, whose session, blocked, within limits.

`read_question` needs no database. `admit` is all the rest, in one trip to it (chat.usage.admit); a
browser session that this process has not seen before costs two queries more.
"""

import json
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from rest_framework import serializers
from rest_framework.fields import empty

from chat import usage
from chat.brought import Brought
from chat.catalogue import catalogue
from chat.demonstration import DOMAIN, is_demonstration
from chat.history import NOTHING, Earlier, Memory, memory
from chat.limits import Limit
from chat.llm import WORDS, ChatModel, Models, ModelUnavailable
from chat.standing import after
from chat.stops import BLOCKED_WORDS
from chat.wanted import wanted_model
from flows.history import wire_time
from omni2.accounts.authenticate import (
    CSRF_FAILED,
    NOT_AUTHENTICATED,
    REFUSALS,
    Identity,
    authenticate_scope,
    has_authorization,
    passes_csrf,
)
from omni2.accounts.credentials import Credential, browsers, token_of

DEMONSTRATION_USERS = "%@" + DOMAIN
BODY_BYTES = 1024 * 1024
NO_SUCH_MODEL = "There is no such model, or you may not use it."
LIMIT_WORDS = {
    "requests_per_minute": "You have asked as often as you may in one minute.",
    "tokens_per_minute": "You have used all your tokens of this minute.",
    "requests_per_month": "You have used all your requests of this month.",
    "tokens_per_month": "You have used all your tokens of this month.",
    "cost_usd_per_month": "You have used all your money of this month.",
    "requests_per_day": "You have used all your requests of today.",
    "tokens_per_day": "You have used all your tokens of today.",
    "cost_usd_per_day": "You have used all your money of today.",
    "turns_at_once": "Too many of your questions are being answered at the moment.",
}


@dataclass(eq=False)
class Refused(Exception):
    """A request that is answered with a status and a body instead of an answer.

    `body` is what goes out, `retry_after_s` the header of that name.
    """

    status: int
    body: Any
    retry_after_s: int | None = None

    @classmethod
    def because(
        cls, status: int, code: str, detail: str, *, retry_after_s: int | None = None, **more: Any
    ) -> "Refused":
        return cls(status, {"detail": detail, "code": code, **more}, retry_after_s)

    @property
    def code(self) -> str:
        return str(self.body.get("code", "")) if isinstance(self.body, dict) else ""


def not_signed_in() -> Refused:
    """The answer to a request without a credential."""
    return Refused.because(*NOT_AUTHENTICATED)


# --- the body ------------------------------------------------------------------------------------


class TextField(serializers.CharField):
    """A string and nothing that could be turned into one; kept as it was written."""

    def __init__(self, **options: Any) -> None:
        super().__init__(trim_whitespace=False, **options)

    def run_validation(self, data: Any = empty) -> Any:
        if isinstance(data, str) and not data.strip():
            self.fail("blank")
        return super().run_validation(data)

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return str(data)


class SessionField(serializers.UUIDField):
    """A UUID in text form; DRF's own would take numbers as well."""

    def to_internal_value(self, data: Any) -> UUID:
        if not isinstance(data, str):
            self.fail("invalid", value=data)
        return super().to_internal_value(data)


class QuestionSerializer(serializers.Serializer[Any]):
    """`{"message": "...", "session_id"?: uuid, "model"?: name}`"""

    message = TextField()
    session_id = SessionField(required=False, allow_null=True)
    model = TextField(required=False, allow_null=True, max_length=200)


@dataclass(frozen=True, slots=True)
class ClientSide:
    """What a request's headers tell of its client (chat.client_side)."""

    session_id: str | None = None
    traceparent: str = ""
    """empty: none, or one that breaks the standard"""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """for auth_check"""


UNKNOWN_CLIENT = ClientSide()


@dataclass(frozen=True, slots=True)
class Question:
    """What the body of a request asks."""

    message: str
    session_id: str | None
    model: str = ""
    """the name of one of the catalogue; empty: whichever answers him"""
    client: ClientSide = UNKNOWN_CLIENT
    brought: Brought | None = None
    """the dialogue, from a client that keeps it itself"""


def read_question(body: bytes, client: ClientSide) -> Question:
    """The question in a body, whatever its Content-Type was; the body's session goes before the header's. Raises
    Refused (400), field errors as DRF writes them."""
    asked = QuestionSerializer(data=parse(body))
    if not asked.is_valid():
        raise Refused(400, asked.errors)
    session_id = asked.validated_data.get("session_id")
    model = asked.validated_data.get("model") or ""
    named = str(session_id) if session_id else client.session_id
    return Question(asked.validated_data["message"], named, model, client)


def parse(body: bytes) -> Any:
    """The JSON of a body. Raises Refused (400)."""
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as problem:
        # RecursionError: brackets nested deeper than Python goes; its text says nothing to a client
        said = "nested too deeply" if isinstance(problem, RecursionError) else str(problem)
        raise Refused.because(400, "parse_error", f"JSON parse error - {said}") from None


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def too_large() -> Refused:
    """The answer to a body above the limit."""
    return Refused.because(413, "body_too_large", f"The body is larger than {BODY_BYTES} bytes.")


# --- the visit to the database -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Admission:
    """What the checks found. Either `refusal` says why not, or the turn is let in and reserved.

    `took_ms`: how long the database took to say who it is, and to judge. One statement does all of it.
    """

    identity: Identity
    user_id: str
    session_id: str
    verdict: usage.Verdict | None
    refusal: Refused | None
    model: ChatModel | None = None
    memory: Memory = NOTHING
    took_ms: float = 0.0
    choice: usage.Choice | None = None
    """what the catalogue said; None: there is none, and no group counts"""


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the checks need it: who sent it, what it asks or what is wrong with that."""

    scope: Mapping[str, Any]
    question: Question | Refused
    turn_id: str
    new_session_id: str
    process_id: str
    models: Models


def admit(request: Request) -> Admission:
    """Check one request and, when all is well, reserve its turn. One trip to the database for a token, and for a
    browser session that is known here; three for one that is not.

    Raises Refused for what makes no turn: nobody we know (401), no CSRF token (403), a bad body
    (400, 413), somebody else's session (404).
    """
    question, scope = request.question, request.scope
    asked = time.monotonic()
    if isinstance(question, Refused) or not (has_authorization(scope) or passes_csrf(scope)):
        raise _not_even_judged(request)
    return replace(_judge(request, question), took_ms=ms_since(asked))


def _not_even_judged(request: Request) -> Refused:
    """Why a request with a bad body or without its CSRF token is refused: who asks goes first. Two queries at most.

    Whoever holds an expired or revoked token learns nothing about bodies; a user who is inactive is known, and
    goes the usual order."""
    identity = authenticate_scope(request.scope)
    if identity.user is None:
        return Refused.because(*(identity.refusal or NOT_AUTHENTICATED))
    if identity.method == "session" and not passes_csrf(request.scope):
        return Refused.because(*CSRF_FAILED)
    if identity.refusal is not None and identity.problem != "inactive":
        return Refused.because(*identity.refusal)
    assert isinstance(request.question, Refused)
    return request.question


@dataclass(frozen=True, slots=True)
class _Answering:
    """Which model will answer, or the refusal when it is known without asking that none will."""

    model: ChatModel | None
    refusal: Refused | None

    @classmethod
    def of(cls, models: Models, user_id: str) -> "_Answering":
        try:
            return cls(models.answering(user_id), None)
        except ModelUnavailable as away:
            return cls._none(away.retry_after_s)

    @classmethod
    def chosen(cls, models: Models, choice: usage.Choice) -> "_Answering":
        """The chosen model of the catalogue, or its fallback."""
        assert choice.model is not None
        try:
            return cls(models.chosen(choice.model, choice.version), None)
        except ModelUnavailable as away:
            return cls._none(away.retry_after_s)

    @classmethod
    def _none(cls, retry_after_s: int) -> "_Answering":
        return cls(None, Refused.because(503, "llm_unavailable", WORDS["llm_unavailable"], retry_after_s=retry_after_s))


def _judge(request: Request, question: Question) -> Admission:
    session_id = question.session_id or request.new_session_id
    answering = _Answering.of(request.models, "")
    said = _ask(request, question, reserve=answering.model is not None, but_not=DEMONSTRATION_USERS)
    identity, verdict, user = said.identity, said.verdict, said.identity.user
    assert user is not None
    user_id = user.user_id
    if verdict is None:
        assert identity.refusal is not None
        # who holds an expired or revoked token learns nothing about sessions
        if said.is_foreign and identity.problem == "inactive":
            raise _no_such_session()
        session_id = request.new_session_id if said.is_foreign else session_id
        return Admission(identity, user_id, session_id, None, Refused.because(*identity.refusal))
    if verdict.word == "not_now" and is_demonstration(user_id):
        # another model answers him: only now it is known that it is asked for
        answering = _Answering.of(request.models, user_id)
        said = _ask(request, question, reserve=answering.model is not None)
        verdict = said.verdict or verdict
    if verdict.word == "not_his_session":
        raise _no_such_session()
    if said.choice is not None and said.choice.model is not None:
        answering = _Answering.chosen(request.models, said.choice)
    if verdict.admitted and answering.model is None:
        # a place was reserved for the catalogue's sake, and only now it is known that nobody can answer
        usage.withdraw(request.turn_id)
        verdict = replace(verdict, word="not_now")
    if answering.model is None or not verdict.admitted:
        return Admission(identity, user_id, session_id, verdict, _refusal_of(verdict) or answering.refusal)
    earlier = memory(Earlier() if question.brought else said.earlier, tokens=answering.model.history_tokens)
    return Admission(identity, user_id, session_id, verdict, None, answering.model, earlier, choice=said.choice)


def _ask(request: Request, question: Question, *, reserve: bool, but_not: str = "") -> usage.Admitted:
    """Have PostgreSQL say who it is, judge, and reserve. Raises Refused (401)."""
    # without a catalogue there is nothing to choose, and demonstration users have a model of their own
    chooses = bool(but_not) and bool(question.model or catalogue.is_asked)

    def admitted(credential: Credential | None) -> usage.Admitted | None:
        if credential is None:
            return None
        return usage.admit(
            credential,
            session_id=question.session_id or request.new_session_id,
            continued=question.session_id is not None,
            turn_id=request.turn_id,
            process_id=request.process_id,
            message=question.message,
            reserve=reserve or (chooses and not catalogue.is_empty),
            but_not=but_not,
            model=question.model if chooses else None,
            environment_model=wanted_model("").name,
        )

    if has_authorization(request.scope):
        said = admitted(token_of(request.scope))
        if said is None:
            raise Refused.because(*REFUSALS["unknown"])
        return said
    # twice: what is remembered of a session may have changed since
    for _ in range(2):
        session = browsers.find(request.scope)
        if (said := admitted(session)) is not None:
            return said
        browsers.forget(session)
    raise not_signed_in()


def ms_since(started: float) -> float:
    """Milliseconds since a moment of time.monotonic()."""
    return round((time.monotonic() - started) * 1000, 3)


def _no_such_session() -> Refused:
    return Refused.because(404, "not_found", "There is no such session.")


def _refusal_of(verdict: usage.Verdict) -> Refused | None:
    """How a verdict is told to the user; None: it is not about him."""
    if verdict.word == "blocked":
        words = verdict.block_message or BLOCKED_WORDS
        return Refused.because(403, "user_blocked", words, message=words)
    if verdict.word == "no_such_model":
        return Refused.because(404, "model_not_found", NO_SUCH_MODEL)
    if verdict.word not in LIMIT_WORDS:
        return None
    reached = verdict.limits[verdict.word]
    numbers = {"limit_name": verdict.word, "used": reached.used, "limit": reached.limit}
    if reached.resets_at is None:
        return Refused.because(429, "too_many_turns", LIMIT_WORDS[verdict.word], retry_after_s=1, **numbers)
    return Refused.because(
        429,
        "usage_limit",
        LIMIT_WORDS[verdict.word],
        retry_after_s=reached.seconds_to_reset,
        resets_at=wire_time(reached.resets_at),
        **numbers,
    )


# --- what the checks write down ------------------------------------------------------------------


def block_facts(verdict: usage.Verdict) -> dict[str, Any]:
    """The metadata of block_check. `reason` is the admin's own and not for the user."""
    if verdict.word != "blocked":
        return {"status": "passed"}
    facts = {"status": "failed", "code": "user_blocked", "message": verdict.block_message or BLOCKED_WORDS}
    return {**facts, "reason": verdict.block_reason} if verdict.block_reason else facts


def usage_facts(verdict: usage.Verdict) -> dict[str, Any]:
    """The metadata of usage_check: `used`, `limit` and `resets_at` of the limit that was reached,
    else of the requests (this one included); `limits` holds every limit that applies."""
    if verdict.word == "no_such_model":
        return {"status": "failed", "code": "model_not_found", "reason": NO_SUCH_MODEL}
    failed = verdict.word in LIMIT_WORDS
    standing = after(verdict)
    name = verdict.word if failed else _said_first(standing)
    facts: dict[str, Any] = {"status": "failed" if failed else "passed"}
    if failed:
        facts |= {"code": "too_many_turns" if name == "turns_at_once" else "usage_limit", "reason": LIMIT_WORDS[name]}
    shown = standing[name]
    limits = {each: _numbers(limit) for each, limit in standing.items() if limit.limit is not None}
    resets = shown.resets_at or standing["requests_per_day"].resets_at
    assert resets is not None
    return {
        **facts,
        "limit_name": name,
        "used": shown.used,
        "limit": shown.limit,
        "resets_at": wire_time(resets),
        "limits": limits,
    }


def _said_first(standing: Mapping[str, Limit]) -> str:
    """Of which limit a check that was passed speaks: the requests of the day, if they have one."""
    names = ("requests_per_day", "requests_per_month", "requests_per_minute")
    return next((name for name in names if name in standing and standing[name].limit is not None), names[0])


def _numbers(limit: Limit) -> dict[str, Any]:
    numbers = {"used": limit.used, "limit": limit.limit}
    return numbers if limit.resets_at is None else {**numbers, "resets_at": wire_time(limit.resets_at)}


class RefusalFlood:
    """Tells when one user's refused turns are too many to be written down: more than 30 a minute.

    A sliding window in this process alone: it keeps a client that repeats itself from filling the
    log, and needs no exact number across processes.
    """

    PER_MINUTE = 30
    WINDOW_S = 60.0
    USERS = 10_000

    def __init__(self) -> None:
        self.refused: dict[str, deque[float]] = {}
        self.not_recorded = 0

    def is_too_much(self, user_id: str) -> bool:
        """Count one more refused turn of this user; True: answer it 429 and do not record it."""
        now = time.monotonic()
        times = self.refused.setdefault(user_id, deque(maxlen=self.PER_MINUTE))
        if len(times) == self.PER_MINUTE and now - times[0] < self.WINDOW_S:
            self.not_recorded += 1
            return True
        times.append(now)
        if len(self.refused) > self.USERS:
            self._forget_the_quiet(now)
        return False

    def _forget_the_quiet(self, now: float) -> None:
        self.refused = {user: times for user, times in self.refused.items() if now - times[-1] < self.WINDOW_S}

    def seconds_left(self, user_id: str) -> int:
        """When this user's next refused turn will be recorded again."""
        times = self.refused.get(user_id)
        return max(1, int(times[0] + self.WINDOW_S - time.monotonic()) + 1) if times else 1
