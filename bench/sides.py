"""Two sides of one comparison, in interleaved rounds: the only figures that mean something on a
shared machine are ratios from one run."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, Literal, TypeVar

T = TypeVar("T")
AT_LEAST: Literal["at least"] = "at least"
AT_MOST: Literal["at most"] = "at most"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    With a ratio: it is what `ratio_of` says and is held against the goal. Without: `ours` itself is, and `other`, if
    there is one, is only the floor to look at. A goal of None: the line says what is, nothing was promised.
    """

    number: int
    """The row of docs/performance.md's list of what is compared, 1 to 10."""
    name: str
    ours: float
    unit: str
    goal: float | None
    sense: Literal["at least", "at most"]
    other: float | None = None
    against: str = ""
    """What the other side is."""
    ratio: float | None = None
    ratio_of: str = ""
    """"theirs / ours" or "ours / theirs"."""
    spread: str = ""
    """The least and the greatest ratio of the rounds."""
    stretch: float | None = None
    """A further goal, that nobody promised."""
    note: str = ""

    @property
    def measured(self) -> float:
        """What is held against the goal."""
        return self.ours if self.ratio is None else self.ratio

    @property
    def met(self) -> bool:
        if self.goal is None:
            return True
        return self.measured >= self.goal if self.sense == AT_LEAST else self.measured <= self.goal


def less(
    number: int,
    name: str,
    ours: Sequence[float],
    other: Sequence[float],
    *,
    unit: str,
    against: str,
    goal: float | None,
    **more: Any,
) -> Row:
    """How many times less ours is than theirs, by the median of the rounds' ratios; the goal is the least."""
    return _compared(number, name, ours, other, unit, against, goal, AT_LEAST, "theirs / ours", more)


def times(
    number: int,
    name: str,
    ours: Sequence[float],
    other: Sequence[float],
    *,
    unit: str,
    against: str,
    goal: float | None,
    sense: Literal["at least", "at most"] = AT_MOST,
    **more: Any,
) -> Row:
    """Ours as a multiple of theirs, by the median of the rounds' ratios; the goal is the most, or as `sense` says."""
    return _compared(number, name, ours, other, unit, against, goal, sense, "ours / theirs", more)


def _compared(
    number: int,
    name: str,
    ours: Sequence[float],
    other: Sequence[float],
    unit: str,
    against: str,
    goal: float | None,
    sense: Literal["at least", "at most"],
    ratio_of: str,
    more: dict[str, Any],
) -> Row:
    pairs = zip(ours, other, strict=True)
    ratios = sorted(theirs / mine if ratio_of == "theirs / ours" else mine / theirs for mine, theirs in pairs)
    return Row(
        number=number,
        name=name,
        ours=statistics.median(ours),
        other=statistics.median(other),
        unit=unit,
        goal=goal,
        sense=sense,
        against=against,
        ratio=statistics.median(ratios),
        ratio_of=ratio_of,
        spread=f"{ratios[0]:.3g}…{ratios[-1]:.3g}",
        **more,
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share (0 to 1) of them lies, the nearest rank."""
    return sorted(values)[max(0, min(len(values), round(share * len(values))) - 1)]


def _price_of_the_clock_ns() -> int:
    """What one look at the thread's clock costs, by that clock: the least that two in a row differ."""
    looks = [time.thread_time_ns() for _ in range(2000)]
    return min(later - earlier for earlier, later in pairwise(looks) if later > earlier)


CLOCK_NS = _price_of_the_clock_ns()


class Metered(Generic[T]):
    """Runs a coroutine and adds up the CPU of its own steps, leaving out what the loop does between
    and what the measuring itself costs."""

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self.work = work
        self.cpu_ns = 0

    def __await__(self) -> Generator[Any, Any, T]:
        value: Any = None
        while True:
            began = time.thread_time_ns()
            try:
                waits_for = self.work.send(value)
            except StopIteration as done:
                return done.value
            finally:
                self.cpu_ns += time.thread_time_ns() - began - CLOCK_NS
            value = yield waits_for


async def rounds(sides: dict[str, Callable[[], Awaitable[T]]], *, count: int) -> dict[str, list[T]]:
    """Run the sides in turn `count` + 1 times and return their figures without the first round. Every other
    round goes backwards, so that no side always comes after the same one."""
    figures: dict[str, list[T]] = {name: [] for name in sides}
    for number in range(count + 1):
        order = list(sides.items())
        for name, side in order if number % 2 else reversed(order):
            figure = await side()
            if number:
                figures[name].append(figure)
        await asyncio.sleep(0)
    return figures
