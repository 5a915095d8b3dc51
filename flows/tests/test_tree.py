"""Rows become a tree, whatever the rows are."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from flows import tree


def row(flow_id: str, parent_id: str | None = None, checkpoint: str = "step") -> dict[str, Any]:
    return {"flow_id": flow_id, "parent_id": parent_id, "checkpoint": checkpoint, "metadata": {}}


def drawn(roots: list[dict[str, Any]]) -> list[str]:
    return ["  " * depth + node["flow_id"] for depth, node in tree.walk(roots)]


def test_it_nests_children_in_the_order_of_the_rows() -> None:
    rows = [row("a"), row("b", "a"), row("c", "a"), row("d", "b"), row("e"), row("f", "a")]
    assert drawn(tree.nest(rows)) == ["a", "  b", "    d", "  c", "  f", "e"]


def test_it_takes_a_child_that_stands_before_its_parent() -> None:
    assert drawn(tree.nest([row("child", "parent"), row("parent")])) == ["parent", "  child"]


def test_it_makes_a_root_of_an_orphan() -> None:
    assert drawn(tree.nest([row("a", "elsewhere"), row("b", "a")])) == ["a", "  b"]


def test_it_opens_a_circle_at_its_first_row() -> None:
    rows = [row("tail", "c"), row("b", "a"), row("a", "c"), row("c", "b"), row("self", "self")]
    assert drawn(tree.nest(rows)) == ["b", "  c", "    tail", "    a", "self"]


def test_it_leaves_the_rows_as_they_were() -> None:
    rows = [row("a"), row("b", "a")]
    tree.nest(rows)
    assert rows == [row("a"), row("b", "a")]


def test_it_nests_a_chain_deeper_than_the_recursion_limit() -> None:
    rows = [row("0"), *(row(str(number), str(number - 1)) for number in range(1, 5000))]
    random.Random(1).shuffle(rows)
    depths = {node["flow_id"]: depth for depth, node in tree.walk(tree.nest(rows))}
    assert depths == {str(number): number for number in range(5000)}


@given(some.lists(some.integers(0, 12), min_size=1, max_size=12))
def test_it_loses_no_row_and_doubles_none_whatever_the_parents_are(parents: list[int]) -> None:
    rows = [row(str(number), str(parent)) for number, parent in enumerate(parents)]
    seen = [node["flow_id"] for _, node in tree.walk(tree.nest(rows))]
    assert sorted(seen) == sorted(each["flow_id"] for each in rows)


def test_it_finds_what_ended_each_step() -> None:
    rows = [
        row("think", None, "llm_thinking"),
        row("call", "think", "tool_call"),
        row("other call", "think", "tool_call"),
        row("result", "call", "tool_result"),
        row("wrong kind", "other call", "llm_complete"),
        row("complete", "think", "llm_complete"),
        row("twice", "think", "llm_complete"),
    ]
    ended = tree.ends(rows)
    assert {start: end["flow_id"] for start, end in ended.items()} == {"think": "complete", "call": "result"}


@pytest.mark.parametrize("rows", [[], [row("a", None, "llm_complete")]])
def test_it_finds_no_end_where_none_began(rows: list[dict[str, Any]]) -> None:
    assert tree.ends(rows) == {}
