"""Pruning: what is older than a border is deleted, whole turns, in batches that nobody has to wait for.

Each batch is a short transaction of its own: it looks for old turns without a lock, takes those that nobody else
holds, deletes their checkpoints and then their summaries. Broken off anywhere, it leaves whole turns. The border is
written down no later than the first deletion, so that the ledger and a late checkpoint know what is gone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import IntegrityError, OperationalError, connection, transaction
from django.db.models import Max
from django.db.models.functions import Now

from flows.models import Pruning

BATCH_CHECKPOINTS = 1_000
LEAST_AGE = timedelta(hours=1)
"""Nobody prunes what is younger: of a turn that has just ended, something may still be on its way."""

SPANS_AT_ONCE = 100

# Whoever holds a row of ours for longer than the first is left alone: his turn is pruned another day.
# What a crash takes back is deleted again, so nobody waits for the disk.
_LIMITS = """
SET LOCAL lock_timeout = '200ms'; SET LOCAL statement_timeout = '30s'; SET LOCAL synchronous_commit = off;
SELECT pg_try_advisory_xact_lock(hashtextextended('omni2 pruning', 0))
"""
# lock_not_available, deadlock_detected, query_canceled, serialization_failure
_IN_USE = ("55P03", "40P01", "57014", "40001")

# Which turns are old: begun and ended before the border. Without an end only what can never get one: no root, so the
# sweep does not end it, and nothing newer. That is what a late checkpoint of a pruned turn may leave.
_IS_OLD = """
started_at >= '0001-01-02' AND started_at < %(border)s AND (ended_at < %(border)s OR (ended_at IS NULL
    AND NOT EXISTS (SELECT FROM interaction_flows f WHERE f.flow_id = turns.turn_id)
    AND NOT EXISTS (SELECT FROM interaction_flows f WHERE f.turn_id = turns.turn_id AND f.created_at >= %(border)s)))
"""
_OLD_TURNS = f"""
SELECT turn_id, started_at, checkpoints FROM turns
WHERE (started_at, turn_id) > (%(after)s, %(after_id)s) AND {_IS_OLD} ORDER BY started_at, turn_id LIMIT %(most)s
"""  # noqa: S608 - made of the constant above
# In the order in which flows.store takes them.
_TAKE_TURNS = f"""
SELECT turn_id FROM turns WHERE turn_id = ANY(%(ids)s) AND {_IS_OLD} ORDER BY turn_id FOR UPDATE SKIP LOCKED
"""  # noqa: S608 - made of the constant above
# All of them in one statement: they point at one another, and the foreign key is checked at its end.
_DELETE_ROWS = "DELETE FROM interaction_flows WHERE turn_id = ANY(%(ids)s)"
_DELETE_TURNS = "DELETE FROM turns WHERE turn_id = ANY(%(ids)s)"

# Turns at whose rows those of other turns, or of none, point: nothing of Omni2's own, but an INSERT from outside may.
_POINTED_AT = """
SELECT DISTINCT p.turn_id FROM interaction_flows p JOIN interaction_flows c ON c.parent_id = p.flow_id
WHERE p.turn_id = ANY(%(ids)s) AND (c.turn_id IS NULL OR c.turn_id <> ALL(%(ids)s))
"""

# Rows of no turn, from outside, the newest first: children before their parents.
_OLD_ROWS = """
SELECT flow_id, created_at FROM interaction_flows
WHERE turn_id IS NULL AND created_at >= '0001-01-02' AND created_at < %(border)s
  AND (created_at, flow_id) < (%(after)s, %(after_id)s)
ORDER BY created_at DESC, flow_id DESC LIMIT %(most)s
"""
_TAKE_ROWS = "SELECT flow_id FROM interaction_flows WHERE flow_id = ANY(%(ids)s) FOR UPDATE SKIP LOCKED"
# A row stays while one that stays points at it.
_DELETE_OLD_ROWS = """
WITH RECURSIVE stays AS (
    SELECT f.flow_id, f.parent_id FROM interaction_flows f WHERE f.flow_id = ANY(%(ids)s)
        AND EXISTS (SELECT FROM interaction_flows c WHERE c.parent_id = f.flow_id AND c.flow_id <> ALL(%(ids)s))
    UNION
    SELECT f.flow_id, f.parent_id FROM stays JOIN interaction_flows f ON f.flow_id = stays.parent_id
    WHERE f.flow_id = ANY(%(ids)s)
)
DELETE FROM interaction_flows WHERE flow_id = ANY(%(ids)s) AND flow_id NOT IN (SELECT flow_id FROM stays)
"""

# Figures of days before the first turn there is. Those of later days are made anew by flows.keeping, which never
# looks further back; the trigger on `turns` has made them stale.
_OLD_SPANS = """
SELECT id FROM kept_spans
WHERE start + make_interval(hours => hours) <= (
    SELECT least(%(border)s, coalesce(date_bin('1 day', min(started_at), '2000-01-01Z'), %(border)s)) FROM turns)
ORDER BY id LIMIT %(most)s FOR UPDATE SKIP LOCKED
"""

_NOTE = """
INSERT INTO prunings AS p (border, by, turns, checkpoints) VALUES (%(border)s, %(by)s, %(turns)s, %(checkpoints)s)
ON CONFLICT (border) DO UPDATE SET last_at = clock_timestamp(), turns = p.turns + EXCLUDED.turns,
    checkpoints = p.checkpoints + EXCLUDED.checkpoints
"""

# Nothing of its turn is stored, and it was made before what was pruned last.
_IS_GONE = """
SELECT r.created_at < (SELECT max(border) FROM prunings)
    AND NOT EXISTS (SELECT FROM turns t WHERE t.turn_id = r.turn_id)
FROM jsonb_to_record(%s::jsonb) AS r(turn_id uuid, created_at timestamptz)
"""


@dataclass(slots=True)
class Batch:
    """What one step did."""

    turns: int = 0
    checkpoints: int = 0
    """rows of these turns, and of no turn"""
    more: int = 0
    """what others keep beside the turns, see Pruner"""
    in_use: int = 0
    """turns that somebody held, or at which what stays points: left for another day"""
    busy: bool = False
    """another process prunes at the moment: nothing was done, and the same is tried again"""


@dataclass(slots=True)
class Old:
    """How much is older than a border."""

    turns: int
    checkpoints: int
    """of these turns, and of no turn"""


Forget = Callable[[datetime, int], int]
"""(border, most): deletes at most so many of what is kept beside old turns that are gone; returns how many."""


@dataclass
class Pruner:
    """One run up to a border. `batches()` does the work, one committed batch each time it is asked for the next;
    who stops asking leaves whole turns behind, and the next run goes on there.

    Any number of runs may go on at once: they take turns, by an advisory lock that lasts as long as a batch.
    """

    border: datetime
    by: str
    batch: int = BATCH_CHECKPOINTS
    also: Sequence[Forget] = ()
    total: Batch = field(default_factory=Batch)

    def batches(self) -> Iterator[Batch]:
        """Raises django.db.Error when PostgreSQL is away; a batch is either done or not at all."""
        for work in (self._turns, self._rows_of_no_turn, self._figures, self._beside):
            for done in work():
                self.total.turns += done.turns
                self.total.checkpoints += done.checkpoints
                self.total.more += done.more
                self.total.in_use += done.in_use
                yield done
        with connection.cursor() as cursor:
            self._note(cursor, Batch())
        Pruning.objects.filter(border=self.border).update(ended_at=Now())

    # --- the turns --------------------------------------------------------------------------------

    def _turns(self) -> Iterator[Batch]:
        after, after_id = datetime(1, 1, 2, tzinfo=UTC), UUID(int=0)
        while found := self._old_turns(after, after_id):
            after_id, after, _ = found[-1]
            yield from self._in_turn([turn_id for turn_id, _, _ in found], self._delete_turns)

    def _old_turns(self, after: datetime, after_id: UUID) -> list[tuple[UUID, datetime, int]]:
        """The next turns, together about a batch of checkpoints; at least one. One query, along idx_turns_started."""
        asked: dict[str, Any] = {
            "border": self.border,
            "after": after,
            "after_id": after_id,
            "most": max(1, self.batch // 2),
        }
        with connection.cursor() as cursor:
            cursor.execute(_OLD_TURNS, asked)
            found: list[tuple[UUID, datetime, int]] = cursor.fetchall()
        checkpoints = 0
        for number, (_, _, count) in enumerate(found):
            checkpoints += count
            if checkpoints > self.batch:
                return found[: max(1, number)]
        return found

    def _delete_turns(self, cursor: Any, ids: list[UUID]) -> Batch:
        taken = self._taken(cursor, _TAKE_TURNS, ids)
        try:
            with transaction.atomic():
                return self._delete(cursor, taken, len(ids))
        except IntegrityError:
            # something outside the batch points into it
            return self._delete(cursor, _not_pointed_at(cursor, taken), len(ids))

    def _delete(self, cursor: Any, ids: list[UUID], asked: int) -> Batch:
        cursor.execute(_DELETE_ROWS, {"ids": ids})
        checkpoints = cursor.rowcount
        # last, since the trigger takes a lock that lets nobody begin to keep figures
        cursor.execute(_DELETE_TURNS, {"ids": ids})
        return Batch(turns=cursor.rowcount, checkpoints=checkpoints, in_use=asked - len(ids))

    def _taken(self, cursor: Any, sql: str, ids: list[UUID]) -> list[UUID]:
        """Those of them that are still old and that nobody else holds; ours until the end of the batch."""
        cursor.execute(sql, {"ids": ids, "border": self.border})
        return [row[0] for row in cursor.fetchall()]

    # --- rows of no turn --------------------------------------------------------------------------

    def _rows_of_no_turn(self) -> Iterator[Batch]:
        """Pass by pass, until one of them finds nothing to delete: what stays lets its parents stay."""
        deleted = True
        while deleted:
            deleted = False
            after, after_id = self.border, UUID(int=0)
            while found := self._old_rows(after, after_id):
                after_id, after = found[-1]
                for done in self._in_turn([flow_id for flow_id, _ in found], self._delete_rows):
                    deleted = deleted or done.checkpoints > 0
                    yield done

    def _old_rows(self, after: datetime, after_id: UUID) -> list[tuple[UUID, datetime]]:
        asked: dict[str, Any] = {"border": self.border, "after": after, "after_id": after_id, "most": self.batch}
        with connection.cursor() as cursor:
            cursor.execute(_OLD_ROWS, asked)
            found: list[tuple[UUID, datetime]] = cursor.fetchall()
        return found

    def _delete_rows(self, cursor: Any, ids: list[UUID]) -> Batch:
        cursor.execute(_DELETE_OLD_ROWS, {"ids": self._taken(cursor, _TAKE_ROWS, ids)})
        return Batch(checkpoints=cursor.rowcount)

    # --- what is kept beside ----------------------------------------------------------------------

    def _figures(self) -> Iterator[Batch]:
        """The kept figures of days of which no turn is left."""
        while True:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(_OLD_SPANS, {"border": self.border, "most": SPANS_AT_ONCE})
                ids = [row[0] for row in cursor.fetchall()]
                cursor.execute("DELETE FROM kept_tallies WHERE span_id = ANY(%s)", [ids])
                cursor.execute("DELETE FROM kept_spans WHERE id = ANY(%s)", [ids])
            if not ids:
                return
            yield Batch()

    def _beside(self) -> Iterator[Batch]:
        for forget in self.also:
            while count := forget(self.border, self.batch):
                yield Batch(more=count)

    # --- one batch --------------------------------------------------------------------------------

    def _in_turn(self, ids: list[UUID], work: Callable[[Any, list[UUID]], Batch]) -> Iterator[Batch]:
        """The work as one transaction, again and again while another process has its turn."""
        while True:
            done = self._once(ids, work)
            yield done
            if not done.busy:
                return

    def _once(self, ids: list[UUID], work: Callable[[Any, list[UUID]], Batch]) -> Batch:
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(_LIMITS)
                while cursor.nextset():
                    pass
                if not cursor.fetchone()[0]:
                    return Batch(busy=True)
                done = work(cursor, ids)
                self._note(cursor, done)
        except (OperationalError, IntegrityError) as problem:
            # a child came in this very moment, or somebody holds what we want
            if isinstance(problem, OperationalError) and getattr(problem.__cause__, "sqlstate", "") not in _IN_USE:
                raise
            return Batch(in_use=len(ids))
        return done

    def _note(self, cursor: Any, done: Batch) -> None:
        values = {"border": self.border, "by": self.by, "turns": done.turns, "checkpoints": done.checkpoints}
        cursor.execute(_NOTE, values)


def _not_pointed_at(cursor: Any, ids: list[UUID]) -> list[UUID]:
    """Without the turns at which something outside points; nor those at which these point, and so on."""
    left = ids
    while left:
        cursor.execute(_POINTED_AT, {"ids": left})
        held = {row[0] for row in cursor.fetchall()}
        if not held:
            break
        left = [one for one in left if one not in held]
    return left


def count_old(border: datetime) -> Old:
    """How much a run up to this border would delete, leaving what points into it aside. Reads all old turns."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT count(*), coalesce(sum(checkpoints), 0)::bigint FROM turns WHERE {_IS_OLD}",  # noqa: S608
            {"border": border},
        )
        turns, checkpoints = cursor.fetchone()
        cursor.execute("SELECT count(*) FROM interaction_flows WHERE turn_id IS NULL AND created_at < %s", [border])
        (rows,) = cursor.fetchone()
    return Old(turns, checkpoints + rows)


def border_before(age: timedelta) -> datetime:
    """The moment so long ago, by PostgreSQL's clock. One query."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp() - make_interval(secs => %s)", [age.total_seconds()])
        found: datetime = cursor.fetchone()[0]
    return found


def border_of_days(days: int) -> datetime:
    """The beginning (UTC) of the day that was so many days ago: a day goes as a whole, when all of it is older."""
    return border_before(timedelta(days=days)).replace(hour=0, minute=0, second=0, microsecond=0)


def last_border() -> datetime | None:
    """Nothing before it can be relied on to be stored; None: nothing was ever pruned. One query."""
    found: datetime | None = Pruning.objects.aggregate(last=Max("border"))["last"]
    return found


def is_gone(document: bytes) -> bool:
    """Whether a checkpoint that misses its parent belongs to a turn that was pruned. One query."""
    with connection.cursor() as cursor:
        cursor.execute(_IS_GONE, [document.decode()])
        row = cursor.fetchone()
    return bool(row and row[0])
