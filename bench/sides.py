"""Two sides of one comparison, in interleaved rounds: the only figures that mean something on a
shared machine are ratios from one run."""

import asyncio
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")
RESULTS = Path(__file__).parent / "results" / "latest.json"
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
MARKS = ("<!-- figures -->", "<!-- end of figures -->")


@dataclass
class Row:
    """One line of the table. `ratio` = other / ours (how many times less), or as `unit` says."""

    name: str
    ours: float
    other: float
    ratio: float
    goal: float
    met: bool
    unit: str
    spread: str = ""


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


async def rounds(sides: dict[str, Callable[[], Awaitable[float]]], *, count: int) -> dict[str, list[float]]:
    """Run the sides in turn `count` + 1 times and return their figures without the first round."""
    figures: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(count + 1):
        for name, side in sides.items():
            figure = await side()
            if number:
                figures[name].append(figure)
        await asyncio.sleep(0)
    return figures


def less(name: str, ours: list[float], other: list[float], *, goal: float, unit: str) -> Row:
    """How many times less ours is, by the median of each round's ratio."""
    ratios = sorted(theirs / mine for mine, theirs in zip(ours, other, strict=True))
    ratio = statistics.median(ratios)
    return Row(
        name=name,
        ours=round(statistics.median(ours), 3),
        other=round(statistics.median(other), 3),
        ratio=round(ratio, 1),
        goal=goal,
        met=ratio >= goal,
        unit=unit,
        spread=f"{ratios[0]:.1f}…{ratios[-1]:.1f}",
    )


def show(rows: list[Row]) -> None:
    """Print the table, keep it in results/latest.json and write it into docs/performance.md."""
    print(f"\n{'what':58} {'ours':>10} {'other':>10} {'ratio':>8} {'spread':>15} {'goal':>7}  met")
    for row in rows:
        print(
            f"{row.name:58} {row.ours:>10} {row.other:>10} {row.ratio:>8} {row.spread:>15} {row.goal:>7}  "
            f"{'yes' if row.met else 'NO'}  {row.unit}"
        )
    machine = f"{platform.machine()} {platform.system()} Python {sys.version.split()[0]}"
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    write_page(rows, machine)


def write_page(rows: list[Row], machine: str) -> None:
    """Put the figures between the marks of docs/performance.md."""
    lines = [
        f"Last run: {machine}, {os.cpu_count()} cores, {datetime.now(UTC):%Y-%m-%d}.",
        "",
        "| what | ours | the plain way | times less | rounds from…to | goal | met |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row.name} | {row.ours} {row.unit} | {row.other} {row.unit} | {row.ratio} | {row.spread} | {row.goal} |"
            f" {'yes' if row.met else 'no'} |"
            for row in rows
        ),
    ]
    text = PAGE.read_text()
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    PAGE.write_text("\n".join([before + MARKS[0], *lines, MARKS[1]]) + after)
