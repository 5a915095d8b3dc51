"""The figures of docs/performance.md are those of the last `make bench`, and nobody's else."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench import table
from bench.section import from_json
from bench.sides import AT_LEAST, AT_MOST, Row, less, times

ROWS = range(1, 11)


def results(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(table.results(kind).read_text())
    return found


def test_it_has_every_row_with_both_sides_its_goal_and_whether_it_is_met() -> None:
    whole = results("short")
    assert {row["number"] for row in whole["rows"]} == set(ROWS)
    for found in whole["rows"]:
        assert {"name", "ours", "other", "ratio", "goal", "met"} <= set(found)
        assert found["met"] == from_json(found).met, found["name"]
        # the other side may be a floor: the goal is then held against ours
        assert found["ratio"] is None or found["other"] is not None, found["name"]
    assert whole["machine"]


@pytest.mark.parametrize("kind", ["short", "full"])
def test_the_page_says_what_was_measured(kind: str) -> None:
    if table.results(kind).exists():
        assert table.on_page(kind) in table.PAGE.read_text()
    else:
        assert table.MARKS[kind][0] not in table.PAGE.read_text()


def test_a_goal_that_is_not_met_says_so() -> None:
    row = less(1, "x", [2.0, 2.0], [10.0, 12.0], unit="s", against="y", goal=6)
    assert (row.ratio, row.met) == (5.5, False)
    row = times(1, "x", [2.0, 4.0], [1.0, 1.0], unit="s", against="y", goal=3)
    assert (row.ratio, row.met, row.spread) == (3.0, True, "2…4")
    alone = Row(10, "x", 5.1, "s", 5.0, AT_MOST)
    assert not alone.met
    assert Row(10, "x", 5.1, "s", 5.0, AT_LEAST).met


def test_rows_of_other_sections_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "performance.md"
    begin, end = table.MARKS["short"]
    page.write_text(f"before\n{begin}\n{end}\nafter\n")
    monkeypatch.setattr(table, "PAGE", page)
    monkeypatch.setattr(table, "results", lambda kind: tmp_path / kind)
    table.keep([Row(1, "one", 1.0, "s", 2.0, AT_MOST), Row(10, "ten", 1.0, "s", 2.0, AT_MOST)], kind="short")
    table.keep([Row(1, "new", 3.0, "s", 2.0, AT_MOST)], kind="short")
    assert [row.name for row in table.rows_of(tmp_path / "short")] == ["new", "ten"]
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| 1 | new |" in text
    assert "**no**" in text
    assert "one" not in text
