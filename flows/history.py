"""What was stored, read back: the queries behind the history API and the history pages.

Lists go on after the last row given out (what they are ordered by, and its id), so rows that
arrive meanwhile move nothing: what was stored when page 1 was read is neither skipped nor
repeated. Who may read what is decided one door further out, in `flows.reader`.
"""

import json
import math
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar, cast
from uuid import UUID

from django.db import connection
from django.db.models import DateTimeField, Exists, F, Func, Model, OuterRef, Q, QuerySet, TextField, Value
from django.db.models.expressions import Combinable
from django.db.models.fields.tuple_lookups import (
    TupleGreaterThan,
    TupleGreaterThanOrEqual,
    TupleLessThan,
    TupleLessThanOrEqual,
)
from django.db.models.functions import Cast

from flows import cursor as cursors
from flows.cursor import Place, Question
from flows.models import STAGES, InteractionFlow, Outcome, Turn, tag, tool_tag

MAX_LIMIT = 500
DEFAULT_LIMIT = 50
# Only for those who may read everybody's flows; a user does not get these of his own. The reason of
# a block is what one admin wrote for the others, as is who stopped a turn and why: the user's text is
# `message`.
_STOPPED = frozenset({"stopped_by", "stopped_by_name"})
INTERNAL_METADATA = {
    "block_check": frozenset({"reason", "internal_reason"}),
    "error": _STOPPED | {"reason"},
    "flow_end": _STOPPED,
}
NOTHING_INTERNAL: frozenset[str] = frozenset()
RUNNING = "running"
EARLIEST, LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_STAGE_NUMBERS = {name: number for number, name in STAGES.items()}
# how the three kinds of marks begin
_TOOL, _NAME, _STATUS = tool_tag(""), tag(""), tag(None, "")
_WORD = re.compile(r"[^\W_]+")
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
    """Which turns. Times are aware and about started_at; `since` is included, `until` is not."""

    user_id: str | None = None
    session_id: str | None = None
    outcome: str | None = None  # or RUNNING
    model: str | None = None
    tool: str | None = None  # with a tool_call of it
    checkpoint: str | None = None  # with a checkpoint of this name,
    status: str | None = None  # and with this status; without a name: any checkpoint with it
    error: str | None = None  # the code that says why it was refused or failed
    stage: str | None = None  # a name of STAGES: it ended there, or stands there
    reached: str | None = None  # a name of STAGES: it came at least so far
    since: datetime | None = None
    until: datetime | None = None
    slower_ms: float | None = None  # ended, and took longer than so many milliseconds
    q: str | None = None  # text in the question, upper and lower case alike


@dataclass(frozen=True, slots=True)
class Page(Generic[R]):
    """Some rows, and the cursors of the pages after and before them (None: there is none).

    `looked_until`: the page is not full, but so far only was it looked for a short word (see LOOKED_AT);
    the value of the order there. `backwards`: it was asked for as the page before another, and looked that way.
    """

    rows: list[R]
    next: str | None
    previous: str | None = None
    looked_until: cursors.Value | None = None
    backwards: bool = False


class Order(NamedTuple):
    """How a list runs: by a value and then by id, both one way."""

    by: Combinable
    id: str
    descending: bool = True


# What turns can be sorted by; a minus before the name begins with the largest.
SORTS: Mapping[str, Combinable] = MappingProxyType(
    {
        "started": F("started_at"),
        "duration": F("duration_ms"),
        "first_token": F("ttft_ms"),
        "tokens": F("input_tokens") + F("output_tokens"),
        "cost": F("cost_usd"),
        "tools": F("tool_calls"),
    }
)
DEFAULT_SORT = "-started"
SORT_NAMES = tuple(sign + name for name in SORTS for sign in ("-", ""))
COUNTED_AT_MOST = 10_000
# For words of which no index knows, a page looks at so many turns, some 10 ms of them by time and 80 in
# another order, however many there are; the page after it looks on.
LOOKED_AT = 20_000
LETTERS_INDEXED = 3
# One pass over so many times COUNTED_AT_MOST turns that hold a word is as quick as asking for each outcome.
WORDS_COUNTED = 5
# What occurs is read from this many of the newest turns: enough to find it, and always as cheap.
OCCURRING_IN = 2_000


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
    page = _page(rows, Order(F("created_at"), "flow_id"), question, limit=limit, cursor=cursor)
    return replace(page, rows=_readable(page.rows))


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


def turns(
    filters: TurnFilters, *, sort: str = DEFAULT_SORT, limit: int = DEFAULT_LIMIT, cursor: str | None = None
) -> Page[Turn]:
    """Turn summaries in the order `sort` (of SORT_NAMES). One query; raises BadCursor.

    Sorted by anything but their start, only turns that have ended and have the value are listed:
    the figures of a running turn still move, and its place with them.

    Each order and most filters have an index, so a page costs what it shows. What is rare in
    several filters at once is sought in as many turns as fit the rarest of them. A word that is too
    short for its index is sought in LOOKED_AT turns of the other filters; this takes a query more.
    """
    name = sort.removeprefix("-")
    short = filters.q if _is_short(filters.q) else None
    found = matching(replace(filters, q=None) if short else filters).defer("tags", "steps", "step_ms")
    if name != "started":
        found = found.filter(outcome__isnull=False)
    if name in {"duration", "first_token", "cost"}:
        column = {"duration": "duration_ms", "first_token": "ttft_ms", "cost": "cost_usd"}[name]
        found = found.filter(**{f"{column}__isnull": False})
    question = _question("turns", filters, sort=sort)
    by = SORTS[name]
    if name != "started" and _is_uneven(filters):
        # These often stand together at one end of an order, and PostgreSQL, which does not know that, would
        # walk the order's index from the other end. Now it sorts what the filter's own index finds.
        by = Func(by, template="(%(expressions)s + 0)")
    elif name == "started" and (tags := _tags(filters)) and _is_rare(tags):
        # the same: of a tag it has no figure of, PostgreSQL believes that every 200th turn has it
        by = Func(by, template="(%(expressions)s + interval '0')", output_field=DateTimeField())
    order = Order(by, "turn_id", descending=sort.startswith("-"))
    return _page(found, order, question, limit=limit, cursor=cursor, short=short)


def _is_short(q: str | None) -> bool:
    """Whether no word in it has three letters or digits, as the index of the questions needs."""
    return bool(q) and max(map(len, _WORD.findall(q or "")), default=0) < LETTERS_INDEXED


def counted_since(filters: TurnFilters) -> datetime | None:
    """From when on the turns of these filters can be counted, because a word is too short for its index or in very many
    of them: among the LOOKED_AT newest of the other filters. None: all of them. Two queries if there is a word."""
    if filters.q is None:
        return None
    others = replace(filters, outcome=None)
    if not _is_short(filters.q):
        most = WORDS_COUNTED * COUNTED_AT_MOST
        if matching(others).order_by().values("pk")[: most + 1].count() <= most:
            return None
    newest = matching(replace(others, q=None)).order_by("-started_at")
    return newest.values_list("started_at", flat=True)[LOOKED_AT - 1 : LOOKED_AT].first()


COMMON_S = 60.0
_common: tuple[float, frozenset[str]] = (-math.inf, frozenset())


def _common_tags() -> frozenset[str]:
    """The tags of which PostgreSQL has figures: all others are rare. None before the table was analysed. One query a
    minute."""
    global _common
    if _common[0] < time.monotonic() - COMMON_S:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT most_common_elems::text::text[] FROM pg_stats"
                " WHERE schemaname = current_schema() AND tablename = 'turns' AND attname = 'tags'"
            )
            row = cursor.fetchone()
        _common = time.monotonic(), frozenset(row[0] if row and row[0] else ())
    return _common[1]


def _is_rare(tags: list[str]) -> bool:
    common = _common_tags()
    return bool(common) and not common.issuperset(tags)


def _is_uneven(filters: TurnFilters) -> bool:
    """Whether the turns meant may have quite other figures than most: refused, broken off, with certain steps."""
    unusual = {filters.outcome, filters.stage} - {None, "completed"}
    return bool(unusual or _tags(filters)) or filters.error is not None


def matching(filters: TurnFilters) -> QuerySet[Turn]:
    """The turns these filters mean, in no order."""
    found = _between(Turn.objects.all(), "started_at", filters.since, filters.until)
    for column in ("user_id", "session_id", "model", "error"):
        if (wanted := getattr(filters, column)) is not None:
            found = found.filter(**{column: wanted})
    if filters.outcome is not None:
        found = found.filter(outcome=None if filters.outcome == RUNNING else filters.outcome)
    if filters.stage is not None:
        found = found.filter(stage=_STAGE_NUMBERS[filters.stage])
    if filters.reached is not None:
        found = found.filter(stage__gte=_STAGE_NUMBERS[filters.reached])
    if filters.slower_ms is not None:
        found = found.filter(outcome__isnull=False, duration_ms__gt=filters.slower_ms)
    if filters.q is not None:
        found = _holding(found, filters.q) if _is_short(filters.q) else found.filter(question__icontains=filters.q)
    if tags := _tags(filters):
        found = found.filter(tags__contains=tags)
    return found


def _holding(rows: QuerySet[R], q: str) -> QuerySet[R]:
    """Those with this in the question, without the index: PostgreSQL does not see that for a short word it would
    have to read all of it."""
    words = Func(F("question"), Value(""), template="(%(expressions)s)", arg_joiner=" || ", output_field=TextField())
    return cast("QuerySet[R]", rows.alias(words=words).filter(words__icontains=q))


def _tags(filters: TurnFilters) -> list[str]:
    tags = [] if filters.tool is None else [tool_tag(filters.tool)]
    if filters.checkpoint is not None or filters.status is not None:
        tags.append(tag(filters.checkpoint, filters.status))
    return tags


def count(filters: TurnFilters) -> int:
    """How many turns these filters mean, exactly. One query, which reads them all."""
    return matching(filters).count()


def outcomes(filters: TurnFilters) -> dict[str, int]:
    """How many turns of each outcome, and RUNNING, fit the other filters; the filter `outcome` is left aside.

    One query, or two. Nothing is counted beyond COUNTED_AT_MOST of an outcome, so that it costs no
    more in a large table: there that number plus one stands for "more".
    """
    others = replace(filters, outcome=None)
    counts = None if others == TurnFilters() else _counted_at_once(others)
    if counts is None:
        counts = _counted_one_by_one(others)
    return {name: min(counts.get(name, 0), COUNTED_AT_MOST + 1) for name in (RUNNING, *Outcome.values)}


def _counted_at_once(filters: TurnFilters) -> dict[str, int] | None:
    """One pass over the turns of these filters; None when they are too many for that."""
    most = (2 if filters.q is None else WORDS_COUNTED) * COUNTED_AT_MOST
    sql, values = matching(filters).order_by().values("outcome")[: most + 1].query.sql_with_params()
    with connection.cursor() as cursor:
        # the only SQL in it is Django's own; the values go as parameters
        cursor.execute(f"SELECT outcome, count(*) FROM ({sql}) AS these GROUP BY outcome", values)  # noqa: S608
        counts = {outcome or RUNNING: count for outcome, count in cursor.fetchall()}
    return counts if sum(counts.values()) <= most else None


def _counted_one_by_one(filters: TurnFilters) -> dict[str, int]:
    """Each outcome along its own index, up to the limit: cheap where many turns fit."""
    names = [RUNNING, *Outcome.values]
    each = [matching(replace(filters, outcome=name)).order_by().values(one=Value(1)) for name in names]
    parts = [rows[: COUNTED_AT_MOST + 1].query.sql_with_params() for rows in each]
    counts = ", ".join(f"(SELECT count(*) FROM ({sql}) AS these)" for sql, _ in parts)  # noqa: S608 (as above)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {counts}", [value for _, values in parts for value in values])
        return dict(zip(names, cursor.fetchone(), strict=True))


def later(filters: TurnFilters, than: datetime) -> int:
    """How many turns of these filters began after `than`; at most 100 are counted. One query."""
    since = max(than, filters.since) if filters.since else than
    newer = matching(replace(filters, since=since)).filter(started_at__gt=than)
    return newer.order_by().values("pk")[:100].count()


@dataclass(frozen=True, slots=True)
class Occurring:
    """What a form can offer: names that occur in the newest turns, each list in order."""

    models: list[str]
    tools: list[str]
    checkpoints: list[str]
    statuses: list[str]
    errors: list[str]


def occurring(user_id: str | None = None) -> Occurring:
    """What occurs in the newest OCCURRING_IN turns, of one user or of all. One query, some milliseconds."""
    newest = Turn.objects.filter(**({"user_id": user_id} if user_id is not None else {})).order_by("-started_at")
    models, errors, tags = set(), set(), set()
    for model, error, marks in newest.values_list("model", "error", "tags")[:OCCURRING_IN]:
        models.add(model)
        errors.add(error)
        tags.update(marks)
    marked = {kind: [mark[len(kind) :] for mark in tags if mark.startswith(kind)] for kind in (_TOOL, _NAME, _STATUS)}
    lists = (models, marked[_TOOL], marked[_NAME], marked[_STATUS], errors)
    return Occurring(*(sorted(each for each in one if each) for one in lists))


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
    """What a cursor is bound to: the list, its filters and order; equal times spelled equally."""
    words = {key: wire_time(value) if isinstance(value, datetime) else value for key, value in asdict(filters).items()}
    return {"list": kind, **words, **more}


def _between(rows: QuerySet[R], column: str, since: datetime | None, until: datetime | None) -> QuerySet[R]:
    if since is not None:
        rows = rows.filter(**{f"{column}__gte": since})
    if until is not None:
        rows = rows.filter(**{f"{column}__lt": until})
    return rows


def _page(
    rows: QuerySet[R],
    order: Order,
    question: Question,
    *,
    limit: int,
    cursor: str | None,
    short: str | None = None,
) -> Page[R]:
    """The `limit` rows after the cursor's place, or before it if it says so, in the list's order.

    With a `short` word those that hold it, of the first LOOKED_AT."""
    place = None if cursor is None else cursors.decode(cursor, question)
    backwards = place is not None and place.backwards
    downwards = order.descending != backwards
    everything = rows = cast("QuerySet[R]", rows.annotate(sorted_by=order.by))
    if place is not None:
        # one comparison of rows, so that the index is entered at the very place, however many are equal
        beyond = (TupleLessThan if downwards else TupleGreaterThan)(
            (F("sorted_by"), F(order.id)), (place.value, place.id)
        )
        rows = rows.filter(beyond)
    sign = "-" if downwards else ""
    rows = rows.order_by(f"{sign}sorted_by", f"{sign}{order.id}")
    border = None
    if short is not None:
        border = _border(rows, order)
        if border is not None:
            within = (TupleGreaterThanOrEqual if downwards else TupleLessThanOrEqual)(
                (F("sorted_by"), F(order.id)), (border.value, border.id)
            )
            rows = rows.filter(within)
        rows = _holding(rows, short)
    found = list(rows[: limit + 1])
    more = len(found) > limit
    if backwards and not more and border is None:
        # the beginning of the list: whole, with what has come since
        return _page(everything, order, question, limit=limit, cursor=None, short=short)
    found = found[:limit][:: -1 if backwards else 1]
    first, last = (_place(found[0], order), _place(found[-1], order)) if found else (None, None)
    if place is not None and not found:
        # no row of this page: the other way begins with the one at the place
        first = last = _beside(place, -1 if downwards else 1)
    further = border if not more else None
    if backwards:
        before, after = further or first, last
    else:
        before, after = first if place else None, last if more else further
    return Page(
        found,
        cursors.encode(replace(after, backwards=False), question) if after else None,
        cursors.encode(replace(before, backwards=True), question) if before else None,
        further.value if further else None,
        backwards,
    )


def _border(rows: QuerySet[R], order: Order) -> Place | None:
    """The place of the last of LOOKED_AT of these rows; None when there are no more."""
    ends = list(rows.values_list("sorted_by", order.id)[LOOKED_AT - 1 : LOOKED_AT + 1])
    return Place(*ends[0]) if len(ends) > 1 else None


def _place(row: Any, order: Order) -> Place:
    return Place(row.sorted_by, getattr(row, order.id))


def _beside(place: Place, step: int) -> Place:
    """The place next to it: what goes on from there begins with its row."""
    return replace(place, id=UUID(int=min(max(place.id.int + step, 0), 2**128 - 1)))


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
