"""The checks before a turn: who are you, is the body good, whose session, blocked, within limits.

`read_question` needs no database. `admit` is all the rest in one visit to it, on one connection:
one query for a token (two for a browser session), one statement that judges and reserves, and one
for the memory of a session that goes on.
"""

import json
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from rest_framework import serializers
from rest_framework.fields import empty

from chat import usage
from chat.history import Exchange, memory
from chat.llm import WORDS, ChatModel, Models, ModelUnavailable
from chat.models import Conversation
from flows.models import Turn
from omni2.accounts.authenticate import CSRF_FAILED, NOT_AUTHENTICATED, Identity, authenticate_scope, passes_csrf

BODY_BYTES = 1024 * 1024
BLOCKED_WORDS = "You have been blocked from this chat."
LIMIT_WORDS = {
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
    """`{"message": "...", "session_id"?: uuid}`"""

    message = TextField()
    session_id = SessionField(required=False, allow_null=True)


@dataclass(frozen=True, slots=True)
class Question:
    """What the body of a request asks."""

    message: str
    session_id: str | None


def read_question(body: bytes) -> Question:
    """The question in a body, whatever its Content-Type was. Raises Refused (400), field errors as
    DRF writes them."""
    asked = QuestionSerializer(data=_parse(body))
    if not asked.is_valid():
        raise Refused(400, asked.errors)
    session_id = asked.validated_data.get("session_id")
    return Question(asked.validated_data["message"], str(session_id) if session_id else None)


def _parse(body: bytes) -> Any:
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

    `authenticated_ms` and `judged_ms`: how long the database took to say who it is, and to judge (one
    statement for block and usage; None: it was not asked).
    """

    identity: Identity
    user_id: str
    session_id: str
    verdict: usage.Verdict | None
    refusal: Refused | None
    model: ChatModel | None = None
    memory: list[Exchange] = field(default_factory=list)
    authenticated_ms: float = 0.0
    judged_ms: float | None = None


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
    """Check one request and, when all is well, reserve its turn. Two to four queries.

    Raises Refused for what makes no turn: nobody we know (401), no CSRF token (403), a bad body
    (400, 413), somebody else's session (404).
    """
    asked = time.monotonic()
    identity = authenticate_scope(request.scope)
    took_ms = ms_since(asked)
    user, refusal = identity.user, identity.refusal
    if user is None:
        raise Refused.because(*(refusal or NOT_AUTHENTICATED))
    if identity.method == "session" and not passes_csrf(request.scope):
        raise Refused.because(*CSRF_FAILED)
    if refusal is not None:
        return replace(_not_let_in(request, identity, Refused.because(*refusal)), authenticated_ms=took_ms)
    if isinstance(request.question, Refused):
        raise request.question
    return replace(_judge(request, request.question, identity), authenticated_ms=took_ms)


def ms_since(started: float) -> float:
    """Milliseconds since a moment of time.monotonic()."""
    return round((time.monotonic() - started) * 1000, 3)


def _not_let_in(request: Request, identity: Identity, refusal: Refused) -> Admission:
    """A credential that names somebody and is no good any more: a turn that says so.

    Whoever holds an expired or revoked token learns nothing about bodies and sessions; a user who
    is inactive is known, and goes the usual order.
    """
    assert identity.user is not None
    question, user_id = request.question, identity.user.user_id
    if isinstance(question, Refused):
        raise question if identity.problem == "inactive" else refusal
    session_id = question.session_id or request.new_session_id
    if question.session_id and not _may_use(user_id, question.session_id):
        if identity.problem == "inactive":
            raise _no_such_session()
        session_id = request.new_session_id
    return Admission(identity, user_id, session_id, None, refusal)


def _may_use(user_id: str, session_id: str) -> bool:
    """Is this session not another user's? Two queries at most."""
    return not (
        Conversation.objects.filter(session_id=session_id).exclude(user__email=user_id).exists()
        or Turn.objects.filter(session_id=session_id).exclude(user_id=user_id).exists()
    )


def _no_such_session() -> Refused:
    return Refused.because(404, "not_found", "There is no such session.")


def _judge(request: Request, question: Question, identity: Identity) -> Admission:
    user = identity.user
    assert user is not None
    session_id = question.session_id or request.new_session_id
    model, no_model = _model_for(request.models, user.user_id)
    asked = time.monotonic()
    verdict = usage.admit(
        user_pk=user.pk,
        user_id=user.user_id,
        session_id=session_id,
        continued=question.session_id is not None,
        turn_id=request.turn_id,
        process_id=request.process_id,
        message=question.message,
        reserve=model is not None,
    )
    judged_ms = ms_since(asked)
    if verdict.word == "not_his_session":
        raise _no_such_session()
    if model is None or not verdict.admitted:
        refusal = _refusal_of(verdict) or no_model
        return Admission(identity, user.user_id, session_id, verdict, refusal, judged_ms=judged_ms)
    earlier = (
        memory(session_id, before_turn=request.turn_id, characters=model.memory_characters)
        if question.session_id
        else []
    )
    return Admission(identity, user.user_id, session_id, verdict, None, model, earlier, judged_ms=judged_ms)


def _model_for(models: Models, user_id: str) -> tuple[ChatModel | None, Refused | None]:
    """The model that will answer, or the refusal when it is known without asking that none will."""
    try:
        return models.answering(user_id), None
    except ModelUnavailable as away:
        words = WORDS["llm_unavailable"]
        return None, Refused.because(503, "llm_unavailable", words, retry_after_s=away.retry_after_s)


def _refusal_of(verdict: usage.Verdict) -> Refused | None:
    """How a verdict is told to the user; None: it is not about him."""
    if verdict.word == "blocked":
        words = verdict.block_message or BLOCKED_WORDS
        return Refused.because(403, "user_blocked", words, message=words)
    if verdict.word not in LIMIT_WORDS:
        return None
    reached = verdict.limits[verdict.word]
    numbers = {"limit_name": verdict.word, "used": reached.used, "limit": reached.limit}
    if verdict.word == "turns_at_once":
        return Refused.because(429, "too_many_turns", LIMIT_WORDS[verdict.word], retry_after_s=1, **numbers)
    return Refused.because(
        429,
        "usage_limit",
        LIMIT_WORDS[verdict.word],
        retry_after_s=verdict.seconds_to_reset,
        resets_at=iso(verdict.resets_at),
        **numbers,
    )


def iso(moment: datetime) -> str:
    """ISO 8601 in UTC with microseconds and Z."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


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
    failed = verdict.word in LIMIT_WORDS
    # the numbers were read before this request was added to them
    own = int(verdict.admitted)
    limits = {
        name: {"used": used + own if name in ("requests_per_day", "turns_at_once") else used, "limit": limit}
        for name, (used, limit) in verdict.limits.items()
        if limit is not None
    }
    name = verdict.word if failed else "requests_per_day"
    shown = limits.get(name, {"used": verdict.limits[name].used + own, "limit": None})
    facts: dict[str, Any] = {"status": "failed" if failed else "passed"}
    if failed:
        facts |= {"code": "too_many_turns" if name == "turns_at_once" else "usage_limit", "reason": LIMIT_WORDS[name]}
    return {**facts, "limit_name": name, **shown, "resets_at": iso(verdict.resets_at), "limits": limits}


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
