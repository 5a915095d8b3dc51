"""The table of all rows: on the terminal, in results/latest.json and in docs/performance.md."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.section import as_json, from_json
from bench.sides import Row

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
MARKS = {
    "short": ("<!-- figures -->", "<!-- end of figures -->"),
    "full": ("<!-- full figures -->", "<!-- end of full figures -->"),
}


def results(kind: str) -> Path:
    """Where the rows of a "short" or "full" run are kept."""
    return HERE / "results" / ("latest.json" if kind == "short" else "full.json")


def commit() -> str:
    """The commit that is measured, short; "unknown" outside a repository."""
    words = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def machine() -> str:
    system = f"{platform.machine()} {platform.system()} Python {sys.version.split()[0]}"
    return f"{system}, {os.cpu_count()} cores"


def keep(rows: Sequence[Row], *, kind: str) -> None:
    """Put the rows into the results and the page. Rows with a number none of these has stay as they were."""
    if not rows:
        return
    path = results(kind)
    path.parent.mkdir(exist_ok=True)
    numbers = {row.number for row in rows}
    kept = [row for row in rows_of(path) if row.number not in numbers] if path.exists() else []
    whole = {
        "machine": machine(),
        "commit": commit(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "rows": [as_json(row) for row in sorted([*kept, *rows], key=lambda row: row.number)],
    }
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    before, _, rest = PAGE.read_text().partition(MARKS[kind][0])
    _, _, after = rest.partition(MARKS[kind][1])
    PAGE.write_text(before + on_page(kind) + after)


def rows_of(path: Path) -> list[Row]:
    """The rows of a file of results."""
    return [from_json(found) for found in json.loads(path.read_text())["rows"]]


def on_page(kind: str) -> str:
    """What docs/performance.md says of the results, its marks included."""
    whole = json.loads(results(kind).read_text())
    begin, end = MARKS[kind]
    lines = [
        begin,
        f"Last run: {whole['machine']}, {whole['measured_at'][:10]}.",
        "",
        "| # | what | ours | the other | against | ratio | rounds from…to | goal | met |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_line(from_json(row)) for row in whole["rows"]),
        end,
    ]
    return "\n".join(lines)


def as_text(rows: Sequence[Row]) -> str:
    """For a terminal."""
    lines = [f"\n{'':3} {'what':74} {'ours':>12} {'other':>12} {'ratio':>8} {'spread':>15} {'goal':>7} met"]
    for row in rows:
        other = "" if row.other is None else _number(row.other)
        ratio = "" if row.ratio is None else _number(row.ratio)
        lines.append(
            f"{row.number:3} {row.name:74} {_number(row.ours):>12} {other:>12} {ratio:>8} {row.spread:>15} "
            f"{_goal(row):>7} {'yes' if row.met else 'NO':3} {row.unit}{'; ' + row.note if row.note else ''}"
        )
    return "\n".join(lines)


def _line(row: Row) -> str:
    other = "" if row.other is None else f"{_number(row.other)} {row.unit}"
    ratio = "" if row.ratio is None else _number(row.ratio)
    met = "" if row.goal is None else "yes" if row.met else "**no**"
    name = f"{row.name}; {row.note}" if row.note else row.name
    return (
        f"| {row.number} | {name} | {_number(row.ours)} {row.unit} | {other} | {row.against} | {ratio} | {row.spread} "
        f"| {_goal(row)} | {met} |"
    )


def _goal(row: Row) -> str:
    if row.goal is None:
        return ""
    sign = "≥" if row.sense == "at least" else "≤"
    stretch = f" ({sign} {_number(row.stretch)})" if row.stretch is not None else ""
    return f"{sign} {_number(row.goal)}{stretch}"


def _number(value: float) -> str:
    """Three significant digits, thousands with a comma."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
