"""What a web process counts of its own turns, by the hour in which they began: its word in the ledger.

Nothing is counted while a checkpoint is recorded. What a running turn made, the turn itself knows; it is
added up when the heartbeat asks, every few seconds. All of it happens on the event loop, so no figure is
half of one moment and half of another.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from flows.checkpoints import iso_time, next_moment_us

if TYPE_CHECKING:
    from flows.tracker import TurnTrack

HOUR_MS = 3_600_000
KEPT_HOURS = 48
"""So long an hour stays in memory at least; longer while something of it is still to come."""


def hour_of(turn_id: str) -> int:
    """The hour since 1970 in which a turn began: the time in its UUIDv7, as PostgreSQL reads it as well.
    An id of another kind has no time: then it is the hour that is now."""
    if turn_id[14:15] == "7":
        try:
            return int(turn_id[:8] + turn_id[9:13], 16) // HOUR_MS
        except ValueError:
            pass
    return next_moment_us() // 1000 // HOUR_MS


@dataclass(frozen=True, slots=True)
class Figures:
    """The turns of one hour as their process sees them.

    `made` = `durable` (acknowledged by Redis, or by PostgreSQL while Redis is away) + what was given up
    + what is still held in memory.
    """

    turns: int = 0
    ended: int = 0
    turns_given_up: int = 0
    """turns of which every single checkpoint had to be given up"""
    made: int = 0
    durable: int = 0
    given_up: tuple[tuple[str, int], ...] = ()
    """how many for which reason"""
    late: int = 0
    """recorded after the turn's end, so not made at all"""

    @property
    def held(self) -> int:
        """Checkpoints that were made and are neither acknowledged nor given up."""
        return max(0, self.made - self.durable - sum(count for _, count in self.given_up))


class HourCount:
    """The turns of one process and hour: what is over is added up here, what runs is asked for it."""

    __slots__ = ("durable", "ended", "given_up", "hour", "late", "made", "process_id", "told", "turns_given_up")

    def __init__(self, process_id: str, hour: int) -> None:
        self.process_id = process_id
        self.hour = hour
        self.ended = 0
        self.turns_given_up = 0
        self.made = 0
        """by turns that have ended"""
        self.durable = 0
        self.given_up: dict[str, int] = {}
        self.late = 0
        self.told = Figures()
        """what PostgreSQL knows"""

    def give_up(self, count: int, reason: str) -> None:
        self.given_up[reason] = self.given_up.get(reason, 0) + count

    def figures(self, running: "Iterable[TurnTrack]") -> Figures:
        """Now, with these turns of this hour that still run."""
        made = [turn.recorded for turn in running]
        begun = sum(1 for count in made if count)
        return Figures(
            turns=self.ended + begun,
            ended=self.ended,
            turns_given_up=self.turns_given_up,
            made=self.made + sum(made),
            durable=self.durable,
            given_up=tuple(sorted(self.given_up.items())),
            late=self.late,
        )


@dataclass(frozen=True, slots=True)
class Report:
    """What a process says at one moment. `entries` holds only the hours that changed since it was last heard:
    all the others are as they were, also at this moment."""

    moment_us: int
    entries: list[tuple[HourCount, Figures]] = field(default_factory=list)

    @property
    def at(self) -> datetime:
        """By the process's own clock, later than every checkpoint that is counted: exactly those are."""
        return datetime.fromtimestamp(self.moment_us // 1_000_000, UTC).replace(microsecond=self.moment_us % 1_000_000)

    def rows(self) -> list[dict[str, Any]]:
        """As the table `ledger_entries` has them."""
        return [
            {
                "process_id": count.process_id,
                "hour": iso_time(count.hour * HOUR_MS * 1000),
                "turns": said.turns,
                "turns_ended": said.ended,
                "turns_given_up": said.turns_given_up,
                "checkpoints": said.made,
                "durable": said.durable,
                "given_up": dict(said.given_up),
                "late": said.late,
            }
            for count, said in self.entries
        ]

    def heard(self) -> None:
        """PostgreSQL has it: what does not change from now on need not be said again."""
        for count, said in self.entries:
            count.told = said


class HourCounts:
    """All hours of one process. A process that was declared dead goes on under a new id: its turns from
    before stay under the old one."""

    def __init__(self) -> None:
        self._hours: dict[tuple[str, int], HourCount] = {}
        self._last = ("", "", HourCount("", 0))

    def of(self, process_id: str, turn_id: str) -> HourCount:
        """Where this turn is counted: a tenth of a microsecond, since nearly all turns are of the same minute as
        the one before."""
        minute, process, found = self._last
        # the first eight digits of an id count 65.5 seconds
        if turn_id[:8] == minute and process_id == process:
            return found
        key = (process_id, hour_of(turn_id))
        known = self._hours.get(key)
        if known is None:
            known = self._hours[key] = HourCount(*key)
        if hour_of(turn_id[:8] + "-0000-7") == key[1] == hour_of(turn_id[:8] + "-ffff-7"):
            self._last = (turn_id[:8], process_id, known)
        return known

    def report(self, running: "Iterable[TurnTrack]") -> Report:
        """What changed since the last report that was heard. Some microseconds a running turn."""
        report = Report(next_moment_us())
        by_hour: dict[HourCount, list[TurnTrack]] = {}
        for turn in running:
            by_hour.setdefault(turn.count, []).append(turn)
        oldest = report.moment_us // 1000 // HOUR_MS - KEPT_HOURS
        for key, count in list(self._hours.items()):
            now = count.figures(by_hour.get(count, ()))
            if now != count.told:
                report.entries.append((count, now))
            elif count.hour < oldest and not now.held and count not in by_hour:
                del self._hours[key]
                self._last = ("", "", count)
        return report
