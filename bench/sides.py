"""Two sides of one comparison, in interleaved rounds: the only figures that mean something on a
shared machine are ratios from one run."""

import asyncio
import json
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")
RESULTS = Path(__file__).parent / "results" / "latest.json"


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


class Metered(Generic[T]):
    """Runs a coroutine and adds up the CPU of its own steps, leaving out what the loop does between."""

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
                self.cpu_ns += time.thread_time_ns() - began
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
    """Print the table and keep it in results/latest.json."""
    print(f"\n{'what':58} {'ours':>10} {'other':>10} {'ratio':>8} {'spread':>15} {'goal':>7}  met")
    for row in rows:
        print(
            f"{row.name:58} {row.ours:>10} {row.other:>10} {row.ratio:>8} {row.spread:>15} {row.goal:>7}  "
            f"{'yes' if row.met else 'NO'}  {row.unit}"
        )
    machine = f"{platform.machine()} {platform.system()} Python {sys.version.split()[0]}"
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
