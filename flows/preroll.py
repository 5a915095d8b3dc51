"""What a watcher is shown on arrival: the union of the user's stream and PostgreSQL, by flow_id.

The stream alone is not enough (it is bounded, and may have been flushed), PostgreSQL alone neither
(the persister is always a little behind). Read are, in this order: where the persister stands, the
stream from there on, PostgreSQL, and the stream once more. So whatever PostgreSQL had is covered by
the position the pre-roll ends at, and live goes on strictly after that: nothing twice, nothing missed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import orjson
from django.db import Error as DatabaseProblem
from django.db.models import TextField
from django.db.models.functions import Cast

from flows import log
from flows.history import wire_time
from flows.log import Entry, Position
from flows.models import InteractionFlow, Turn
from omni2.database import in_database

PREROLL_CHECKPOINTS = 1000
"""How many checkpoints a pre-roll has, unless running turns alone have more."""

TURNS_LOOKED_AT = 500
"""Turn summaries read to choose from: a turn has at least two checkpoints."""

LONGEST_TURN = timedelta(hours=24)
"""An ended turn that began longer than this before `since` is not looked for."""

PAGE_ENTRIES = 1000
TRIES = 5
HIGHEST_SEQUENCE = (1 << 64) - 1

_FLOW_ID = slice(len(b'{"flow_id":"'), len(b'{"flow_id":"') + 36)
_CREATED_AT = slice(-len('2026-11-22T06:00:00.123456Z"}'), -len('"}'))
_BEFORE_CREATED_AT = slice(-len('"created_at":"2026-11-22T06:00:00.123456Z"}'), -len('2026-11-22T06:00:00.123456Z"}'))


@dataclass(frozen=True, slots=True)
class Preroll:
    """Checkpoints in order of (created_at, flow_id), and where the log stood.

    `position` is None without Redis; then live has no place to go on from. `whole` says that
    PostgreSQL and the log were both read.
    """

    documents: list[bytes]
    position: tuple[str, str] | None
    whole: bool


@dataclass(frozen=True, slots=True)
class Fact:
    """What choosing and sorting need to know of a document."""

    flow_id: str
    turn_id: str
    checkpoint: str
    created_at: str
    document: bytes


@dataclass(slots=True)
class Found:
    """One turn, as far as it was found."""

    turn_id: str
    started_at: str
    ended: bool = False
    stored: int = 0
    """how many rows PostgreSQL has of it, as far as that is known"""
    left_out: bool = False
    facts: dict[str, Fact] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return max(self.stored, len(self.facts))

    @property
    def is_whole(self) -> bool:
        """A turn's id is its first checkpoint's; the stream has no gaps, so what has the root has the rest."""
        return self.turn_id in self.facts and len(self.facts) >= self.stored


def flow_id_of(document: bytes) -> bytes:
    """The flow_id of a document, without parsing it."""
    return document[_FLOW_ID]


def created_at_of(document: bytes) -> str:
    """When the checkpoint was made, mostly without parsing it; texts of this form compare like times."""
    if document[_BEFORE_CREATED_AT] == b'"created_at":"':
        return document[_CREATED_AT].decode()
    return str(orjson.loads(document)["created_at"])


async def preroll(user_id: str, *, since: datetime | None = None) -> Preroll:
    """Running turns whole, and the newest turns up to 1,000 checkpoints; none made before `since`.

    About five round trips to Redis and three queries. With PostgreSQL away: what the stream has, not
    `whole`. Raises RedisError, OSError or TimeoutError when Redis is away: see stored_preroll().
    """
    for _ in range(TRIES):
        waiting_ms = await log.oldest_waiting_ms()
        before = await log.position(user_id)
        entries = await _recent(user_id, waiting_ms)
        turns = _turns_of(entries, _wire(since))
        whole = await _add_stored(user_id, turns, since)
        later = await _rest(user_id, entries[-1].stream_id if entries else before.tail)
        if _held_still(before, await log.position(user_id), entries):
            _add(turns, later, _wire(since))
            last_id = (later or entries)[-1].stream_id if later or entries else before.tail
            return Preroll(_documents(turns.values()), (before.epoch, last_id), whole)
    raise TimeoutError("the log did not hold still")


async def stored_preroll(user_id: str, *, since: datetime | None = None) -> Preroll:
    """The same from PostgreSQL alone, for the time without Redis. Three queries; never raises for a
    PostgreSQL that is away: then it is empty."""
    turns: dict[str, Found] = {}
    await _add_stored(user_id, turns, since)
    return Preroll(_documents(turns.values()), None, whole=False)


def _wire(since: datetime | None) -> str:
    return "" if since is None else wire_time(since)


# --- the stream ----------------------------------------------------------------------------------


async def _recent(user_id: str, waiting_ms: int | None) -> list[Entry]:
    """The newest entries, and all that may not be in PostgreSQL yet; without a gap, oldest first."""
    newest = await log.read_recent(user_id, count=PREROLL_CHECKPOINTS)
    if waiting_ms is None or len(newest) < PREROLL_CHECKPOINTS or log.id_order(newest[0].stream_id)[0] < waiting_ms:
        return newest
    behind: list[Entry] = []
    place = f"{waiting_ms - 1}-{HIGHEST_SEQUENCE}"
    while page := await log.read_after(user_id, place, count=PAGE_ENTRIES, until=f"({newest[0].stream_id}"):
        behind += page
        place = page[-1].stream_id
    return behind + newest


async def _rest(user_id: str, stream_id: str) -> list[Entry]:
    entries: list[Entry] = []
    while page := await log.read_after(user_id, stream_id, count=PAGE_ENTRIES):
        entries += page
        stream_id = page[-1].stream_id
        if len(page) < PAGE_ENTRIES:
            break
    return entries


def _held_still(before: Position, after: Position, entries: Sequence[Entry]) -> bool:
    """Whether both reads of the stream belong together: no flush or restart, and nothing trimmed between them."""
    place = entries[-1].stream_id if entries else before.tail
    return before.epoch == after.epoch and log.reaches_back(after, place)


def _fact(document: bytes) -> Fact:
    parsed = orjson.loads(document)
    return Fact(parsed["flow_id"], parsed["turn_id"], parsed["checkpoint"], parsed["created_at"], document)


def _turns_of(entries: Iterable[Entry], since: str) -> dict[str, Found]:
    turns: dict[str, Found] = {}
    _add(turns, entries, since)
    return turns


def _add(turns: dict[str, Found], entries: Iterable[Entry], since: str) -> None:
    for entry in entries:
        fact = _fact(entry.document)
        if fact.created_at >= since:
            _add_fact(turns, fact)


def _add_fact(turns: dict[str, Found], fact: Fact) -> None:
    turn = turns.get(fact.turn_id)
    if turn is None:
        turn = turns[fact.turn_id] = Found(fact.turn_id, fact.created_at)
    turn.facts[fact.flow_id] = fact
    turn.started_at = min(turn.started_at, fact.created_at)
    turn.ended = turn.ended or fact.checkpoint == "flow_end"


# --- PostgreSQL ----------------------------------------------------------------------------------


async def _add_stored(user_id: str, turns: dict[str, Found], since: datetime | None) -> bool:
    """Choose the turns and add what PostgreSQL has of them; False when it is away."""
    try:
        await in_database(_add_rows, user_id, turns, since)
    except (DatabaseProblem, OSError):
        for turn in turns.values():
            turn.stored = 0
        return False
    return True


def _add_rows(user_id: str, turns: dict[str, Found], since: datetime | None) -> None:
    """Three queries: the summaries to choose from, then the rows that are needed and not there yet."""
    for turn_id, started_at, outcome, stored in _summaries(user_id, since):
        turn = turns.setdefault(str(turn_id), Found(str(turn_id), wire_time(started_at)))
        turn.started_at = min(turn.started_at, wire_time(started_at))
        turn.ended = turn.ended or outcome is not None
        # of a turn that began before `since`, who knows how many came after it
        turn.stored = stored if since is None or started_at >= since else 0
    chosen = _chosen(turns.values())
    for fact in _rows(user_id, [turn.turn_id for turn in chosen if not turn.is_whole], since):
        _add_fact(turns, fact)
    # what was not read whole must not come in by the back door when the stream is read again
    for turn in turns.values():
        turn.left_out = True
    for turn in chosen:
        turn.left_out = False


def _summaries(user_id: str, since: datetime | None) -> list[tuple[object, datetime, str | None, int]]:
    """Running turns, and the newest ended ones (with `since`: those that ended after it)."""
    own = Turn.objects.filter(user_id=user_id)
    newest = own.exclude(outcome=None)
    if since is not None:
        newest = newest.filter(started_at__gte=since - LONGEST_TURN, ended_at__gte=since)
    columns = ("turn_id", "started_at", "outcome", "checkpoints")
    running = own.filter(outcome=None).order_by().values_list(*columns)
    recent = newest.order_by("-started_at", "-turn_id").values_list(*columns)[:TURNS_LOOKED_AT]
    return [*running, *recent]


def _rows(user_id: str, turn_ids: Sequence[str], since: datetime | None) -> Iterable[Fact]:
    """The turns' rows as documents; jsonb goes through as text, never parsed."""
    if not turn_ids:
        return
    rows = InteractionFlow.objects.filter(turn_id__in=turn_ids, user_id=user_id)
    if since is not None:
        rows = rows.filter(created_at__gte=since)
    columns = ("flow_id", "session_id", "turn_id", "checkpoint", "parent_id", "created_at", "metadata_text")
    texts = rows.annotate(metadata_text=Cast("metadata", TextField())).order_by().values_list(*columns)
    for flow_id, session_id, turn_id, checkpoint, parent_id, created_at, metadata in texts.iterator():
        at = wire_time(created_at)
        envelope = {
            "flow_id": str(flow_id),
            "user_id": user_id,
            "session_id": session_id,
            "turn_id": str(turn_id),
            "checkpoint": checkpoint,
            "parent_id": parent_id and str(parent_id),
        }
        document = b'%b,"metadata":%b,"created_at":"%b"}' % (
            orjson.dumps(envelope)[:-1],
            _as_object(metadata).encode(),
            at.encode(),
        )
        yield Fact(envelope["flow_id"], envelope["turn_id"], checkpoint, at, document)


def _as_object(metadata: str | None) -> str:
    """Only an INSERT from outside can store anything but an object; readers may rely on one."""
    if metadata is None or metadata == "null":
        return "{}"
    return metadata if metadata.startswith("{") else f'{{"value":{metadata}}}'


# --- choosing -------------------------------------------------------------------------------------


def _chosen(turns: Iterable[Found]) -> list[Found]:
    """Running turns, then the newest ended ones while all together stay within the limit."""
    turns = [turn for turn in turns if not turn.left_out]
    chosen = [turn for turn in turns if not turn.ended]
    room = PREROLL_CHECKPOINTS - sum(turn.size for turn in chosen)
    ended = sorted(
        (turn for turn in turns if turn.ended), key=lambda turn: (turn.started_at, turn.turn_id), reverse=True
    )
    for turn in ended:
        room -= turn.size
        if room < 0:
            break
        chosen.append(turn)
    return chosen


def _documents(turns: Iterable[Found]) -> list[bytes]:
    facts = [fact for turn in _chosen(turns) for fact in turn.facts.values()]
    facts.sort(key=lambda fact: (fact.created_at, fact.flow_id))
    return [fact.document for fact in facts]
