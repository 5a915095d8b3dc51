"""The figures of the last fault runs, from bench/results/faults.json into docs/reliability.md.

`python -m tests.faults.report` writes them; a fault run does it at its end.
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "faults.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- faults -->", "<!-- end of faults -->"

HIDDEN = {"load_s", "settled_s", "charged_unheard", "unreached", "refused", "given_up", "problems", "moments"}
"""What says something about the load and not about the product."""


def write() -> None:
    """Put the table in place of the one before."""
    known = json.loads(RESULTS.read_text())
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(known)}\n{END}{rest.partition(END)[2]}")


def table(known: dict[str, Any]) -> str:
    rows = sorted(known["rows"], key=lambda row: row["name"])
    lines = [
        f"{known['machine']}. Each row says when it was measured.",
        "",
        "| scenario | on | injections | turns | durable | persisted | lost | doubled | measured besides | held |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        counts = [row.get(name, "") for name in ("injections", "turns", "durable", "persisted", "lost", "doubled")]
        cells = [f"`{row['name']}`", row.get("on", ""), *map(_number, counts), _figures(row["figures"])]
        lines.append(f"| {' | '.join(cells)} | {'yes' if row['passed'] else '**no**'} |")
    return "\n".join(lines)


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _figures(figures: dict[str, Any], prefix: str = "") -> str:
    said = []
    for name, value in figures.items():
        if name in HIDDEN or value in (0, None, "", [], {}):
            continue
        words = f"{prefix}{name.replace('_', ' ')}"
        said.append(_figures(value, f"{words}: ") if isinstance(value, dict) else f"{words} {_number(value)}")
    return ", ".join(said).replace("|", "/")


if __name__ == "__main__":
    write()
