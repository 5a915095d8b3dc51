"""A session to take along: its checkpoints as CSV, one a line. Pure: no database, stdlib only."""

import csv
import io
import json
from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]
ENVELOPE = ("turn_id", "flow_id", "parent_id", "created_at", "checkpoint")
FACTS = (
    "status",
    "outcome",
    "tool",
    "model",
    "round",
    "duration_ms",
    "ttft_ms",
    "input_tokens",
    "output_tokens",
    "cost_usd",
    "code",
)
COLUMNS = (*ENVELOPE, *FACTS, "metadata")
# A spreadsheet takes what begins like this for a formula (OWASP, CSV injection).
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_csv(rows: Iterable[Row]) -> str:
    """The rows (of `flows.history.as_wire()`) with a head line; all metadata as JSON in the last column.

    Text that a spreadsheet would take for a formula begins with an apostrophe.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for row in rows:
        data = row["metadata"]
        facts = [_cell(data.get(name)) for name in FACTS]
        writer.writerow([*(_cell(row[name]) for name in ENVELOPE), *facts, json.dumps(data, ensure_ascii=False)])
    return file.getvalue()


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return defused(text)


def defused(text: str) -> str:
    """Text for a cell, as text: what a spreadsheet would take for a formula begins with an apostrophe."""
    return "'" + text if text.startswith(FORMULA) else text
