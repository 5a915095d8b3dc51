"""What was stored, read back: the queries behind the history API and the history pages.

Lists run newest first and go on after the last row given out (its time and id), so rows that
arrive meanwhile move nothing: what was stored when page 1 was read is neither skipped nor
repeated. Who may read what is decided one door further out, in `flows.reader`.
"""

import json
import math
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

from django.db.models import Exists, Model, OuterRef, Q, QuerySet, TextField
from django.db.models.functions import Cast

from flows import cursor as cursors
from flows.cursor import Place, Question
from flows.models import InteractionFlow, Turn

MAX_LIMIT = 500
DEFAULT_LIMIT = 50
# Only for those who may read everybody's flows; a user does not get these of his own. The reason of
# a block is what one admin wrote for the others: the user's text is `message`.
INTERNAL_METADATA = {"block_check": frozenset({"reason", "internal_reason"})}
NOTHING_INTERNAL: frozenset[str] = frozenset()
RUNNING = "running"
EARLIEST, LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

R = TypeVar("R", bound=Model)
# of a session's turns, oldest first, those whose checkpoints are wanted
Shown = Callable[[list[Turn]], Collection[UUID]]


@dataclass(frozen=True, slots=True)
class FlowFilters:
    """Which of a user's checkpoints. Times are aware; `since` is included, `until` is not."""

    since: datetime | None = None
    until: datetime | None = None
    checkpoint: str | None = None
    outcome: str | None = None  # of the turn the checkpoint belongs to


@dataclass(frozen=True, slots=True)
class TurnFilters:
    """Which turns. `outcome` may be RUNNING; `tool` means a tool_call of it; `q` is sought in the question."""

    user_id: str | None = None
    session_id: str | None = None
    outcome: str | None = None
    model: str | None = None
    tool: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    q: str | None = None


@dataclass(frozen=True, slots=True)
class Page(Generic[R]):
    """Some rows, and the cursor of the page after them (None: that was the last)."""

    rows: list[R]
    next: str | None


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation as it is stored: its turns and checkpoints, oldest first."""

    session_id: str
    user_id: str
    turns: list[Turn]
    rows: list[InteractionFlow]


def flows_of(
    user_id: str, filters: FlowFilters, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None
) -> Page[InteractionFlow]:
    """A user's checkpoints, newest first. One query along idx_flows_user; raises BadCursor."""
    rows = _stored().filter(user_id=user_id)
    if filters.checkpoint is not None:
        rows = rows.filter(checkpoint=filters.checkpoint)
    if filters.outcome is not None:
        rows = rows.filter(Exists(Turn.objects.filter(turn_id=OuterRef("turn_id"), outcome=filters.outcome)))
    rows = _between(rows, "created_at", filters.since, filters.until)
    question = _question("flows", filters, user_id=user_id)
    page = _page(rows, ("created_at", "flow_id"), question, limit=limit, cursor=cursor)
    return Page(_readable(page.rows), page.next)


def session(
    session_id: str, user_id: str | None = None, *, since: datetime | None = None, shown: Shown | None = None
) -> Session | None:
    """A session, whole; None when nothing is stored of it. Two queries.

    With `since` its checkpoints from then on; with `shown` those of the turns it chooses, and of no turn.

    A session has one user. Only refused turns, which make no conversation, can bring another's
    rows under the same id: then it is the session of `user_id`, or of whoever came first.
    """
    owner = user_id or (
        InteractionFlow.objects.filter(session_id=session_id)
        .order_by("created_at", "flow_id")
        .values_list("user_id", flat=True)
        .first()
    )
    if owner is None:
        return None
    turns = list(Turn.objects.filter(session_id=session_id, user_id=owner).order_by("started_at", "turn_id"))
    stored = _between(_stored().filter(session_id=session_id, user_id=owner), "created_at", since, None)
    if shown is not None:
        stored = stored.filter(Q(turn_id__in=shown(turns)) | Q(turn_id=None))
    rows = _readable(stored.order_by("created_at", "flow_id"))
    return Session(session_id, owner, turns, rows) if rows else None


def turn(turn_id: UUID) -> Session | None:
    """One turn with its checkpoints, as a session of this turn alone; None when there is none. Two queries."""
    found = Turn.objects.filter(turn_id=turn_id).first()
    if found is None:
        return None
    rows = _stored().filter(turn_id=turn_id, user_id=found.user_id).order_by("created_at", "flow_id")
    return Session(found.session_id, found.user_id, [found], _readable(rows))


def turns(filters: TurnFilters, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None) -> Page[Turn]:
    """Turn summaries, the last begun first. One query; raises BadCursor.

    Costs an index walk from the newest turn on until the page is full: cheap, unless a rare
    `model`, `tool` or `q` is sought among everybody's turns without a user or a time.
    """
    found = _between(Turn.objects.all(), "started_at", filters.since, filters.until)
    for column in ("user_id", "session_id", "model"):
        if (wanted := getattr(filters, column)) is not None:
            found = found.filter(**{column: wanted})
    if filters.outcome is not None:
        found = found.filter(outcome=None if filters.outcome == RUNNING else filters.outcome)
    if filters.q is not None:
        found = found.filter(question__icontains=filters.q)
    if filters.tool is not None:
        calls = InteractionFlow.objects.filter(
            turn_id=OuterRef("turn_id"), checkpoint="tool_call", metadata__tool=filters.tool
        )
        found = found.filter(Exists(calls), tool_calls__gt=0)
    return _page(found, ("started_at", "turn_id"), _question("turns", filters), limit=limit, cursor=cursor)


def is_known(user_id: str) -> bool:
    """Whether anything is stored of this user (an INSERT from outside asks for no account). One query."""
    return InteractionFlow.objects.filter(user_id=user_id).exists()


def as_wire(row: InteractionFlow, *, internal: bool = True) -> dict[str, Any]:
    """The checkpoint in its one shape (SPEC, section 3); without internal metadata if not `internal`."""
    metadata = row.metadata
    if metadata is None:
        metadata = {}
    elif not isinstance(metadata, dict):
        # only an INSERT from outside can store a bare list or word; readers may rely on an object
        metadata = {"value": metadata}
    hidden = NOTHING_INTERNAL if internal else INTERNAL_METADATA.get(row.checkpoint, NOTHING_INTERNAL)
    if not hidden.isdisjoint(metadata):
        metadata = {key: value for key, value in metadata.items() if key not in hidden}
    return {
        "flow_id": str(row.flow_id),
        "user_id": row.user_id,
        "session_id": row.session_id,
        "turn_id": row.turn_id and str(row.turn_id),
        "checkpoint": row.checkpoint,
        "parent_id": row.parent_id and str(row.parent_id),
        "metadata": metadata,
        "created_at": wire_time(row.created_at),
    }


def summary(turn: Turn) -> dict[str, Any]:
    """A turn in the shape of `GET /api/v1/turns`."""
    return {
        "turn_id": str(turn.turn_id),
        "session_id": turn.session_id,
        "user_id": turn.user_id,
        "started_at": wire_time(turn.started_at),
        "ended_at": turn.ended_at and wire_time(turn.ended_at),
        "duration_ms": turn.duration_ms,
        "outcome": turn.outcome,
        "model": turn.model,
        "checkpoints": turn.checkpoints,
        "tool_calls": turn.tool_calls,
        "input_tokens": turn.input_tokens,
        "output_tokens": turn.output_tokens,
        "cost_usd": None if turn.cost_usd is None else float(turn.cost_usd),
        "ttft_ms": turn.ttft_ms,
        "error": turn.error,
    }


def wire_time(at: datetime) -> str:
    """`2026-11-22T06:00:00.123456Z`."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def as_session_id(text: str) -> str | None:
    """The session id in its stored spelling, or None when it is not one."""
    return text.lower() if _UUID.fullmatch(text) else None


def _question(kind: str, filters: FlowFilters | TurnFilters, **more: str) -> Question:
    """What a cursor is bound to: the list and its filters, equal times spelled equally."""
    words = {key: wire_time(value) if isinstance(value, datetime) else value for key, value in asdict(filters).items()}
    return {"list": kind, **words, **more}


def _between(rows: QuerySet[R], column: str, since: datetime | None, until: datetime | None) -> QuerySet[R]:
    if since is not None:
        rows = rows.filter(**{f"{column}__gte": since})
    if until is not None:
        rows = rows.filter(**{f"{column}__lt": until})
    return rows


def _page(rows: QuerySet[R], order: tuple[str, str], question: Question, *, limit: int, cursor: str | None) -> Page[R]:
    """The next `limit` rows after the cursor, newest first by (time, id)."""
    time_column, id_column = order
    if cursor is not None:
        place = cursors.decode(cursor, question)
        # the first condition is the one the index can start from
        rows = rows.filter(**{f"{time_column}__lte": place.at})
        rows = rows.exclude(**{time_column: place.at, f"{id_column}__gte": place.id})
    found = list(rows.order_by(f"-{time_column}", f"-{id_column}")[: limit + 1])
    if len(found) <= limit:
        return Page(found, None)
    last = found[limit - 1]
    place = Place(getattr(last, time_column), getattr(last, id_column))
    return Page(found[:limit], cursors.encode(place, question))


def _stored() -> QuerySet[InteractionFlow]:
    """Checkpoints with their metadata as text (see _decoded()), of the years that Python knows.

    A row from outside can be of the year 12000 or of 'infinity'; reading it would fail, and hide the others.
    """
    rows = InteractionFlow.objects.filter(created_at__range=(EARLIEST, LATEST))
    return rows.defer("metadata").annotate(metadata_text=Cast("metadata", TextField()))


def _readable(rows: Iterable[InteractionFlow]) -> list[InteractionFlow]:
    found = list(rows)
    for row in found:
        row.metadata = _decoded(row.metadata_text)  # type: ignore[attr-defined]
    return found


def _decoded(text: str | None) -> Any:
    """jsonb as text → JSON types.

    What an INSERT from outside can store and Python cannot hold (a number of 5,000 digits, a
    thousand levels) is left out, marked as cut; a number beyond a double is null.
    """
    try:
        return None if text is None else json.loads(text, parse_float=_finite)
    except (ValueError, RecursionError):
        return {"_cut": True}


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None
