"""Rows of a session → its tree, and which row ends which step. Pure: no database, stdlib only.

What history shows after a turn, in the shape the live page draws while it runs. Rows are the
dicts of `flows.history.as_wire()`, in order; nothing here changes them.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

Row = dict[str, Any]

# what begins a step → what ends it, as its child
ENDED_BY = {"llm_thinking": "llm_complete", "tool_call": "tool_result"}


def nest(rows: Sequence[Row]) -> list[Row]:
    """The roots, each row with its `children`, all in the order of `rows`.

    A row whose parent is not among `rows` is a root. Rows that are each other's ancestors (only
    an INSERT from outside can make them) hang below the first of them, so none is lost and
    nothing runs in a circle. Linear in the number of rows; the depth does not matter.
    """
    nodes = {row["flow_id"]: {**row, "children": []} for row in rows}
    cut = set(_circles(nodes))
    roots = []
    for flow_id, node in nodes.items():
        parent = nodes.get(node["parent_id"])
        if parent is None or flow_id in cut:
            roots.append(node)
        else:
            parent["children"].append(node)
    return roots


def _circles(nodes: dict[str, Row]) -> Iterator[str]:
    """The first row of each circle of parents."""
    place = {flow_id: number for number, flow_id in enumerate(nodes)}
    walked: dict[str, str] = {}  # row → the start of the walk that came by
    for start in nodes:
        path = []
        here: str | None = start
        while here in nodes and here not in walked:
            walked[here] = start
            path.append(here)
            here = nodes[here]["parent_id"]
        if here is not None and walked.get(here) == start:
            yield min(path[path.index(here) :], key=place.__getitem__)


def ends(rows: Iterable[Row]) -> dict[str, Row]:
    """`flow_id` of each llm_thinking and tool_call that has ended → the row that ended it.

    A step without an entry is still open (or was left open by an abandoned turn).
    """
    rows = list(rows)
    awaited = {row["flow_id"]: ENDED_BY[row["checkpoint"]] for row in rows if row["checkpoint"] in ENDED_BY}
    ended: dict[str, Row] = {}
    for row in rows:
        if awaited.get(row["parent_id"]) == row["checkpoint"]:
            ended.setdefault(row["parent_id"], row)
    return ended


def walk(roots: Iterable[Row]) -> Iterator[tuple[int, Row]]:
    """Each node with its depth (a root has 0), parents before children, in the order they are drawn."""
    stack = [(0, node) for node in reversed(list(roots))]
    while stack:
        depth, node = stack.pop()
        yield depth, node
        stack.extend((depth + 1, child) for child in reversed(node["children"]))
