"""What the facts of the ledger say: the sums of each hour, what is wrong, and what cannot be judged yet.

    turns        started = stored + running + given up                     + missing
    checkpoints  made    = stored + on the way + set aside + given up      + missing

`missing` must be nothing. Each side comes from elsewhere: the left from the processes, the right from PostgreSQL
and Redis. Pure: no I/O.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any
from uuid import UUID

from flows.counts import HOUR_MS, Figures
from flows.ledger import MOST_NAMED, Admitted, Facts, Process, hour_start
from flows.waiting import Road

DIED_WITH_IT = "its process died before they were acknowledged"
SWEEP_WAS_FIRST = "the sweep had ended the turn already"


@dataclass(slots=True)
class Sums:
    """Both equations of some turns."""

    started: int = 0
    stored: int = 0
    running: int = 0
    turns_given_up: int = 0
    turns_missing: int = 0
    turns_too_many: int = 0
    """stored, though no process says that it began them"""
    made: int = 0
    rows: int = 0
    on_the_way: int = 0
    set_aside: int = 0
    given_up: int = 0
    missing: int = 0
    too_many: int = 0
    turns_unsaid: int = 0
    """of those started: known from what is stored alone, as their process has not spoken since"""
    unsaid: int = 0
    """of the checkpoints made: the same"""
    admitted: int = 0
    abandoned: int = 0
    late: int = 0

    def add(self, other: "Sums") -> None:
        for one in fields(Sums):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    @property
    def adds_up(self) -> bool:
        return not (self.turns_missing or self.turns_too_many or self.missing or self.too_many)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that does not add up. `kind` is for programs; flows.ledger_words has the sentence."""

    kind: str
    hour: datetime
    process: Process | None
    count: int
    turn_ids: list[str] = field(default_factory=list)
    """at most MOST_NAMED of them"""
    numbers: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Part:
    """One process in one hour."""

    process_id: UUID | None
    process: Process | None
    sums: Sums
    reasons: dict[str, int]

    @property
    def has_spoken(self) -> bool:
        return self.process is not None and self.process.as_of is not None


@dataclass(slots=True)
class Hour:
    """One hour in which turns began: its sums, and those of each process."""

    start: datetime
    sums: Sums = field(default_factory=Sums)
    reasons: dict[str, int] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@dataclass(slots=True)
class Account:
    """The whole account of a time."""

    since: datetime
    until: datetime
    hours: list[Hour]
    """the newest first; only those in which something began"""
    total: Sums
    reasons: dict[str, int]
    problems: list[Problem]
    processes: list[Process]
    road: Road
    kept_from: datetime | None = None
    """turns of earlier hours are no longer kept and not in it; None: all of the time is"""

    @property
    def adds_up(self) -> bool:
        return not self.problems

    @property
    def is_certain(self) -> bool:
        """Whether the whole way was seen: with Redis away, or a log too long to read, nothing is called missing."""
        return self.road.complete


def judge(facts: Facts) -> Account:
    """The account of these facts."""
    hours: dict[int, Hour] = {}
    keys = {*facts.said, *facts.stored, *facts.way, *facts.admitted}
    excuses: dict[tuple[UUID | None, int], int] = {}
    for key in sorted(keys, key=lambda one: (-one[1], str(one[0]))):
        process_id, number = key
        hour = hours.setdefault(number, Hour(hour_start(number)))
        process = facts.processes.get(process_id) if process_id else None
        case = _Case(process, facts, key)
        part = Part(process_id, process, case.sums(), case.reasons)
        excuses[key] = case.excuse
        hour.parts.append(part)
        hour.sums.add(part.sums)
        for reason, count in part.reasons.items():
            hour.reasons[reason] = hour.reasons.get(reason, 0) + count
        hour.problems += case.problems()
    for process_id, number, found in facts.problems:
        # given up after the turn's end had been written, so the end could not say it: the process did
        if found["kind"] == "end_differs" and 0 < found["missing"] <= excuses.get((process_id, number), 0):
            continue
        process = facts.processes.get(process_id) if process_id else None
        hour = hours.setdefault(number, Hour(hour_start(number)))
        hour.problems.append(_of_turns(found, hour.start, process))
    newest_first = sorted(hours.values(), key=lambda one: one.start, reverse=True)
    total, reasons = Sums(), dict[str, int]()
    for hour in newest_first:
        total.add(hour.sums)
        for reason, count in hour.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
    problems = [problem for hour in newest_first for problem in hour.problems]
    processes = list(facts.processes.values())
    return Account(
        facts.since, facts.until, newest_first, total, reasons, problems, processes, facts.road, facts.kept_from
    )


def _of_turns(found: dict[str, Any], hour: datetime, process: Process | None) -> Problem:
    turns = found["turns"]
    numbers = {}
    if len(turns) == 1:
        numbers = {name: turns[0][name] for name in ("rows", "summary", "said") if turns[0][name] is not None}
    ids = [str(turn["turn_id"]) for turn in turns]
    return Problem(found["kind"], hour, process, found["count"], ids, numbers)


class _Case:
    """One process in one hour: what it said, what is stored, and what explains the difference."""

    def __init__(self, process: Process | None, facts: Facts, key: tuple[UUID | None, int]) -> None:
        self.process = process
        self.hour = key[1]
        self.said = facts.said.get(key, Figures())
        self.stored = facts.stored.get(key, {})
        self.way = facts.way.get(key, {})
        self.admitted: Admitted | None = facts.admitted.get(key)
        self.busy = set(facts.road.turn_ids)
        self.is_certain = facts.road.complete
        self.reasons = dict(self.said.given_up)
        self._weigh_checkpoints()
        self._weigh_turns()

    @property
    def is_dead(self) -> bool:
        """Whether what it held in memory is gone. A process that is silent may come back."""
        return self.process is None or self.process.ended_at is not None

    def _of(self, table: dict[str, Any], name: str) -> int:
        return int(table.get(name) or 0)

    def _weigh_checkpoints(self) -> None:
        stored, way = self.stored, self.way
        given_up = sum(self.reasons.values())
        waiting, aside, after = (self._of(way, name) for name in ("waiting", "aside", "after"))
        before = self._of(stored, "rows") - self._of(stored, "rows_after") + waiting + aside - after
        gap = self.said.made - given_up - before
        held = min(max(0, gap), self.said.held)
        gap -= held
        # a process that stood still may end a turn in the moment before it reads that the sweep has done so
        twice = self.said.ended - self.said.turns_given_up - self._of(stored, "ended_before")
        forestalled = max(0, min(gap, self._of(stored, "abandoned"), twice))
        gap -= forestalled
        # what nobody could look for is not missing
        unseen = 0 if self.is_certain else max(0, gap)
        gap -= unseen
        self.held, self.died = (unseen, held) if self.is_dead else (held + unseen, 0)
        for reason, count in ((DIED_WITH_IT, self.died), (SWEEP_WAS_FIRST, forestalled)):
            if count:
                self.reasons[reason] = count
        self.missing, self.too_many = max(0, gap), max(0, -gap)
        said_by_ends = self.missing == 0 and self.too_many == 0
        self.excuse = sum(self.reasons.values()) if said_by_ends else 0

    def _weigh_turns(self) -> None:
        stored, way, said = self.stored, self.way, self.said
        before = self._of(stored, "turns") - self._of(stored, "turns_after")
        before += self._of(way, "turns") - self._of(way, "turns_after")
        gap = said.turns - said.turns_given_up - before
        # each turn has a checkpoint at least: when no checkpoint is missing, no turn is
        explained = 0 if self.missing else min(max(0, gap), self.held + self.died)
        gap -= explained
        self.turns_held, self.turns_died = (0, explained) if self.is_dead else (explained, 0)
        if self.is_dead and not self.is_certain:
            self.turns_held, self.turns_died = explained, 0
        self.turns_missing, self.turns_too_many = max(0, gap), max(0, -gap)
        self.never_heard_of = len(self._after_the_last_word()) if self.is_dead else 0

    def _after_the_last_word(self) -> list[UUID]:
        """Turns that were let in after the process last spoke, and of which nothing is anywhere: they died with it."""
        if self.admitted is None:
            return []
        as_of = self.process.as_of if self.process else None
        since = UUID(int=int(as_of.timestamp() * 1000) << 80) if as_of else UUID(int=0)
        return [one for one in self.admitted.missing_open if one >= since and one not in self.busy]

    def sums(self) -> Sums:
        stored, way, said = self.stored, self.way, self.said
        turns, ended = self._of(stored, "turns"), self._of(stored, "ended")
        turns_unsaid = self._of(stored, "turns_after") + self._of(way, "turns_after") + self.never_heard_of
        unsaid = self._of(stored, "rows_after") + self._of(way, "after")
        return Sums(
            started=said.turns + turns_unsaid,
            stored=ended,
            running=turns - ended + self._of(way, "turns") + self.turns_held,
            turns_given_up=said.turns_given_up + self.turns_died + self.never_heard_of,
            turns_missing=self.turns_missing,
            turns_too_many=self.turns_too_many,
            made=said.made + unsaid,
            rows=self._of(stored, "rows"),
            on_the_way=self._of(way, "waiting") + self.held,
            set_aside=self._of(way, "aside"),
            given_up=sum(self.reasons.values()),
            missing=self.missing,
            too_many=self.too_many,
            turns_unsaid=turns_unsaid,
            unsaid=unsaid,
            admitted=self.admitted.count if self.admitted else 0,
            abandoned=self._of(stored, "abandoned"),
            late=said.late,
        )

    def problems(self) -> Iterable[Problem]:
        hour, process = hour_start(self.hour), self.process
        sums = self.sums()
        if self.turns_missing:
            yield Problem(
                "turns_missing",
                hour,
                process,
                self.turns_missing,
                self._named_by_admission(),
                {"started": sums.started, "stored": sums.stored, "running": sums.running},
            )
        if self.missing:
            numbers = {"made": sums.made, "rows": sums.rows, "given_up": sums.given_up}
            yield Problem("checkpoints_missing", hour, process, self.missing, [], numbers)
        if self.turns_too_many:
            yield Problem("turns_too_many", hour, process, self.turns_too_many)
        if self.too_many:
            numbers = {"made": sums.made, "rows": sums.rows}
            yield Problem("checkpoints_too_many", hour, process, self.too_many, [], numbers)
        if left_open := [str(one) for one in self._left_open()]:
            yield Problem("slot_open", hour, process, len(left_open), left_open[:MOST_NAMED])
        uncounted = self._charged_and_uncounted()
        if uncounted:
            yield Problem("uncounted", hour, process, uncounted, self._named_by_admission())

    def _left_open(self) -> list[UUID]:
        return [one for one in self.admitted.left_open if one not in self.busy] if self.admitted else []

    def _named_by_admission(self) -> list[str]:
        """Turns that were let in and of which nothing is anywhere."""
        if self.admitted is None:
            return []
        ids = {*self.admitted.missing_charged, *self.admitted.missing_open} - self.busy
        return [str(one) for one in sorted(ids)[:MOST_NAMED]]

    def _charged_and_uncounted(self) -> int:
        """Turns whose answer was paid for, of which nothing is stored, and which no process misses: one that
        counts too little would hide its losses. Only of a process that has spoken since."""
        if self.admitted is None or self.process is None or self.process.as_of is None or not self.is_certain:
            return 0
        last_word = UUID(int=int(self.process.as_of.timestamp() * 1000 - HOUR_MS // 6) << 80)
        charged = sum(one < last_word and one not in self.busy for one in self.admitted.missing_charged)
        known = self.said.turns_given_up + self.turns_missing + self.turns_held + self.turns_died
        return max(0, charged - known)
