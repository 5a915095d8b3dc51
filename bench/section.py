"""A section of the benchmark: some rows of the table, made by a process of its own.

A section is a module with `run(plan) -> list[Row]`, started as `python -m bench NAME`. It makes the servers it
needs with `bench.servers` or `tests.running`, checks that what it timed is right (WrongResult if not), and leaves
nothing behind.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bench.sides import Row


class WrongResult(Exception):
    """What was timed did not do what it should: the times mean nothing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run was asked for."""

    full: bool = False
    """`make bench-full`: 10 million checkpoints, 5,000 watchers."""

    folder: Path | None = None
    """Where a full run keeps what it would not like to make twice (a filled database)."""


def as_json(row: Row) -> dict[str, Any]:
    """The row as it stands in bench/results/latest.json: numbers with four significant digits."""
    found = {name: _short(value) for name, value in asdict(row).items()}
    return {**found, "met": row.met}


def from_json(found: dict[str, Any]) -> Row:
    return Row(**{each.name: found[each.name] for each in fields(Row)})


def write(rows: Sequence[Row], path: Path) -> None:
    path.write_text(json.dumps([as_json(row) for row in rows], indent=1) + "\n")


def read(path: Path) -> list[Row]:
    return [from_json(found) for found in json.loads(path.read_text())]


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
