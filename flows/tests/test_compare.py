"""Two turns aligned: nothing lost, nothing doubled, the same from both sides."""

import copy
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.test import Client
from hypothesis import given, settings
from hypothesis import strategies as st

from flows import compare, history
from flows.compare import Pair, Step, align
from flows.models import InteractionFlow, Turn
from flows.tests.rows import StoredTurn
from omni2.accounts.models import AccessLog

Row = dict[str, Any]
BEGIN = datetime(2026, 11, 22, 6, 0, tzinfo=UTC)
NAMES = ("auth_check", "llm_thinking", "llm_complete", "tool_call", "tool_result", "error", "flow_end", "cache_lookup")


def row(number: int, checkpoint: str, parent: Row | None, **metadata: Any) -> Row:
    at = BEGIN + timedelta(milliseconds=number * 10)
    return {
        "flow_id": f"00000000-0000-7000-8000-{number:012x}",
        "user_id": "bob@example.com",
        "session_id": "s",
        "turn_id": "t",
        "checkpoint": checkpoint,
        "parent_id": parent and parent["flow_id"],
        "metadata": metadata,
        "created_at": history.wire_time(at),
    }


@st.composite
def turns(draw: st.DrawFn) -> list[Row]:
    """Rows of any checkpoints below any earlier rows, as only an INSERT from outside makes them."""
    rows: list[Row] = []
    for number in range(draw(st.integers(1, 24))):
        parent = draw(st.sampled_from([None, *rows])) if rows else None
        name = draw(st.sampled_from(NAMES))
        tool, number_of_round = draw(st.sampled_from(["search", "convert", None])), draw(st.sampled_from([1, 2, None]))
        rows.append(row(number, name, parent, tool=tool, round=number_of_round))
    return rows


def ids_of(pairs: list[Pair], side: str) -> list[str]:
    steps: list[Step] = [step for pair in pairs if (step := getattr(pair, side))]
    return [one["flow_id"] for step in steps for one in (step.start, step.end) if one]


def couples(pairs: list[Pair]) -> set[tuple[str | None, str | None]]:
    return {(pair.a and pair.a.start["flow_id"], pair.b and pair.b.start["flow_id"]) for pair in pairs}


@given(turns(), turns())
@settings(max_examples=150, deadline=None)
def test_each_row_of_both_stands_in_it_exactly_once(a: list[Row], b: list[Row]) -> None:
    pairs = align(a, b)
    assert sorted(ids_of(pairs, "a")) == sorted(one["flow_id"] for one in a)
    assert sorted(ids_of(pairs, "b")) == sorted(one["flow_id"] for one in b)
    assert all(pair.a or pair.b for pair in pairs)


@given(turns())
@settings(max_examples=150, deadline=None)
def test_a_turn_has_no_difference_from_itself(a: list[Row]) -> None:
    for pair in align(a, copy.deepcopy(a)):
        assert pair.a is not None
        assert pair.b is not None
        assert (pair.a.start, pair.a.end, pair.a.took_ms) == (pair.b.start, pair.b.end, pair.b.took_ms)


@given(turns(), turns())
@settings(max_examples=150, deadline=None)
def test_it_is_the_same_from_both_sides(a: list[Row], b: list[Row]) -> None:
    assert couples(align(a, b)) == {(left, right) for right, left in couples(align(b, a))}


@given(turns(), turns())
@settings(max_examples=150, deadline=None)
def test_partners_have_one_name_one_depth_and_partners_above_them(a: list[Row], b: list[Row]) -> None:
    above: dict[int, Pair] = {}
    for pair in align(a, b):
        above[pair.depth] = pair
        if pair.a and pair.b:
            assert pair.a.key == pair.b.key
            if pair.depth:
                parent = above[pair.depth - 1]
                assert pair.a in (parent.a.children if parent.a else [])
                assert pair.b in (parent.b.children if parent.b else [])


def answered(*tools: str, model: str = "m-1", rounds: int = 1) -> list[Row]:
    auth = row(0, "auth_check", None, status="passed")
    rows, number = [auth], 0
    for again in range(1, rounds + 1):
        number += 1
        thinking = row(number, "llm_thinking", auth, model=model, round=again)
        rows.append(thinking)
        for tool in tools if again == 1 else ():
            number += 2
            call = row(number - 1, "tool_call", thinking, tool=tool)
            rows += [call, row(number, "tool_result", call, tool=tool, status="ok")]
        number += 1
        rows.append(row(number, "llm_complete", thinking, status="ok"))
    return [*rows, row(number + 1, "flow_end", auth, outcome="completed")]


def told(pairs: list[Pair]) -> list[tuple[int, str, str]]:
    return [
        (pair.depth, "=" if pair.a and pair.b else "a" if pair.a else "b", (pair.a or pair.b or fail()).key[1])
        for pair in pairs
        if (pair.a or pair.b or fail()).start["checkpoint"] in {"llm_thinking", "tool_call"}
    ]


def fail() -> Any:
    raise AssertionError("a pair of nothing")


def test_tools_of_one_round_are_matched_by_name_in_whatever_order_they_began() -> None:
    pairs = align(answered("search", "convert", "search"), answered("convert", "search", "clock"))
    assert told(pairs) == [
        (1, "=", "1"),
        (2, "=", "search"),
        (2, "=", "convert"),
        (2, "a", "search"),
        (2, "b", "clock"),
    ]


def test_a_round_more_is_the_others_only_and_another_model_is_no_other_step() -> None:
    pairs = align(answered(model="m-1"), answered(model="m-2", rounds=2))
    assert told(pairs) == [(1, "=", "1"), (1, "b", "2")]


def test_thousands_of_steps_are_aligned_in_a_moment() -> None:
    shuffled = [f"t{number}" for number in range(3000)]
    random.Random(7).shuffle(shuffled)
    pairs = align(answered(*(f"t{number}" for number in range(3000))), answered(*shuffled))
    assert len(pairs) == 3003
    assert all(pair.a and pair.b for pair in pairs)
    auth = row(0, "auth_check", None)
    others = [row(number, f"odd_{number % 50}", auth) for number in range(1, 1500)]
    pairs = align([auth, *others], [auth, *others[::-1]])
    assert all(pair.a and pair.b for pair in pairs)


def test_a_very_deep_turn_is_no_recursion() -> None:
    rows = [row(0, "auth_check", None)]
    for number in range(1, 3000):
        rows.append(row(number, "cache_lookup", rows[-1]))
    assert align(rows, rows)[-1].depth == 2999


# --- the page -----------------------------------------------------------------------------------------


def signed_in(user: Any) -> Client:
    client = Client()
    client.force_login(user)
    return client


def address(a: StoredTurn, b: StoredTurn) -> str:
    return f"/flows/compare/?a={a.turn_id}&b={b.turn_id}"


@pytest.mark.django_db
def test_both_looks_are_noted_and_both_turns_must_be_the_readers(
    august: Any, bob: Any, charlie: Any, olga: Any
) -> None:
    his, other = StoredTurn(bob.user_id).end(), StoredTurn(charlie.user_id).end()
    assert signed_in(august).get(address(his, other)).status_code == 200
    noted = AccessLog.objects.values_list("actor", "action", "subject_user_id", "detail__turn_id")
    assert set(noted) == {
        (august.user_id, "history_opened", bob.user_id, his.turn_id),
        (august.user_id, "history_opened", charlie.user_id, other.turn_id),
    }
    for a, b in ((his, other), (other, his), (his, his)):
        assert signed_in(charlie).get(address(a, b)).status_code == 404
    own = StoredTurn(charlie.user_id).end()
    assert signed_in(charlie).get(address(own, other)).status_code == 200
    assert not AccessLog.objects.filter(actor=charlie.user_id).exists()
    assert signed_in(olga).get("/flows/compare/?a=00000000-0000-4000-8000-000000000000").status_code == 404
    assert Client().get(address(his, other)).headers["Location"].startswith("/login/")


@pytest.mark.django_db
def test_it_says_in_words_what_only_one_of_them_has(olga: Any, bob: Any) -> None:
    a = StoredTurn(bob.user_id).with_tool("search").end()
    b = StoredTurn(bob.user_id).with_tool("convert").end("failed")
    html = signed_in(olga).get(address(a, b)).content.decode()
    assert "1 only in A" in html
    assert "1 only in B" in html
    assert 'data-only="a" data-kind="tool"' in html
    assert 'data-only="b" data-kind="tool"' in html
    shown = {part.split('"')[0] for part in html.split('data-flow-id="')[1:]}
    stored = {str(one) for one in InteractionFlow.objects.values_list("flow_id", flat=True)}
    assert shown == stored
    totals = signed_in(olga).get(address(a, b)).context["totals"]
    assert {one["name"]: one["difference"]["text"] for one in totals}["Outcome"] == "differs"
    assert "Both turns have the same steps" in signed_in(olga).get(address(a, a)).content.decode()


@pytest.mark.django_db
def test_it_offers_what_is_like_the_chosen_turn(olga: Any, bob: Any, charlie: Any) -> None:
    chosen = StoredTurn(bob.user_id, question="how much?").end()
    same = StoredTurn(bob.user_id, question="how much?").end()
    StoredTurn(bob.user_id, question="how much? and why?").end()
    StoredTurn(charlie.user_id, question="how much?").end()
    (alike, recent) = signed_in(olga).get(f"/flows/compare/?a={chosen.turn_id}").context["candidates"]
    assert [str(each["turn"].turn_id) for each in alike[1]] == [same.turn_id]
    assert {each["turn"].question for each in recent[1]} == {"how much?", "how much? and why?"}
    assert chosen.turn_id not in {str(each["turn"].turn_id) for each in recent[1]}


@pytest.mark.django_db
def test_a_link_to_any_checkpoint_means_its_turn(olga: Any, bob: Any) -> None:
    a, b = StoredTurn(bob.user_id).with_tool("search").end(), StoredTurn(bob.user_id).end()
    call = InteractionFlow.objects.get(checkpoint="tool_call")
    link = f"http://127.0.0.1:8090/flows/{a.session_id}/%23{call.flow_id}"
    cards = signed_in(olga).get(f"/flows/compare/?a={link}&b={b.turn_id}").context["cards"]
    assert [str(each["turn"].turn_id) for _, each in cards] == [a.turn_id, b.turn_id]
    errors = signed_in(olga).get("/flows/compare/?a=nonsense").context["errors"]
    assert errors == {"a": "There is no turn's id in this."}


@pytest.mark.django_db
def test_hostile_text_is_drawn_as_text(olga: Any, bob: Any) -> None:
    turn = StoredTurn(bob.user_id, question="<script>alert(1)</script>")
    turn.with_tool("<img src=x>").end()
    html = signed_in(olga).get(address(turn, turn)).content.decode()
    assert "<script>alert" not in html
    assert "<img src=x>" not in html
    assert Turn.objects.get().question == "<script>alert(1)</script>"


@pytest.mark.django_db
@pytest.mark.parametrize("query", ["", "a=", "a=%00", "b=x&a=y", "a=%ff", "a=" + "1" * 5000])
def test_what_is_no_turn_is_said_and_breaks_nothing(olga: Any, query: str) -> None:
    assert signed_in(olga).get(f"/flows/compare/?{query}").status_code == 200


def test_the_end_of_a_step_is_never_a_step_of_its_own() -> None:
    thinking = row(0, "llm_thinking", None, round=1)
    end = row(1, "llm_complete", thinking)
    below = row(2, "cache_lookup", end)
    (step,) = compare.steps_of([thinking, end, below])
    assert step.end == end
    assert [child.start["flow_id"] for child in step.children] == [below["flow_id"]]
