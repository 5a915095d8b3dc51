"""The list of turns: each filter against the same filter in plain Python, each order page by page."""

import math
import random
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from flows import history
from flows.cursor import BadCursor
from flows.history import RUNNING, SORT_NAMES, TurnFilters
from flows.models import STAGES, Outcome, Turn, tag, tool_tag
from flows.tests.rows import BEGIN, StoredTurn

pytestmark = pytest.mark.django_db

USERS = ("bob@example.com", "mira@example.com", "eve@example.com")
TOOLS = ("clock", "search", "calculator")
CHECKS = ("auth_check", "block_check", "usage_check")
QUESTIONS = ("", "What time is it?", "WHAT is 100%?", "a_b", "überfällig", "\\ '")


class Made:
    """A random turn as the table has it, and what its marks say of it."""

    def __init__(self, chance: random.Random, number: int) -> None:
        outcome = chance.choice([None, *Outcome.values])
        self.tools = set(chance.sample(TOOLS, chance.randrange(3)))
        self.statuses = {(name, chance.choice(["passed", "failed"])) for name in chance.sample(CHECKS, 2)}
        marks = {tag(name) for name, _ in self.statuses} | {tag(name, status) for name, status in self.statuses}
        marks |= {tag(None, status) for _, status in self.statuses} | {tool_tag(tool) for tool in self.tools}
        self.turn = Turn.objects.create(
            turn_id=uuid.UUID(int=chance.getrandbits(128)),
            session_id=f"session-{chance.randrange(4)}",
            user_id=chance.choice(USERS),
            # few different values, so that there are many equal ones
            started_at=BEGIN + timedelta(seconds=chance.randrange(20)),
            outcome=outcome,
            duration_ms=chance.choice([1.5, 20.25, 300.0, 4000.125]) if outcome else None,
            ttft_ms=chance.choice([None, 1.0, 2.5]),
            question=chance.choice(QUESTIONS) + (f" {number}" if number % 2 else ""),
            model=chance.choice([None, "m-1", "m-2"]),
            tool_calls=chance.randrange(3),
            input_tokens=chance.randrange(4),
            output_tokens=chance.randrange(4),
            cost_usd=chance.choice([None, Decimal("0.00000001"), Decimal("0.25"), Decimal("1")]),
            error=chance.choice([None, "llm_failed", "usage_limit"]),
            stage=chance.choice(list(STAGES)),
            tags=sorted(marks),
        )


def make(seed: int, number: int) -> list[Made]:
    chance = random.Random(seed)
    return [Made(chance, each) for each in range(number)]


def fits(made: Made, filters: TurnFilters) -> bool:
    """What the filters mean, said in Python."""
    turn = made.turn
    statuses = {(name, status) for name, status in made.statuses if filters.checkpoint in {None, name}}
    return all(
        [
            filters.user_id in {None, turn.user_id},
            filters.session_id in {None, turn.session_id},
            filters.outcome in {None, turn.outcome or RUNNING},
            filters.model in {None, turn.model},
            filters.tool is None or filters.tool in made.tools,
            filters.checkpoint is None or filters.checkpoint in {name for name, _ in made.statuses},
            filters.status is None or filters.status in {status for _, status in statuses},
            filters.error in {None, turn.error},
            filters.stage in {None, STAGES[turn.stage]},
            filters.since is None or turn.started_at >= filters.since,
            filters.until is None or turn.started_at < filters.until,
            filters.slower_ms is None or (turn.duration_ms is not None and turn.duration_ms > filters.slower_ms),
            filters.q is None or filters.q.upper() in turn.question.upper(),
        ]
    )


CHOICES: dict[str, list[Any]] = {
    "user_id": [*USERS, "nobody@example.com"],
    "session_id": ["session-1", "nothing"],
    "outcome": [*Outcome.values, RUNNING],
    "model": ["m-1", "none"],
    "tool": [*TOOLS, "cloc", "teleport"],
    "checkpoint": [*CHECKS, "unheard_of"],
    "status": ["passed", "failed", "fail"],
    "error": ["llm_failed", "llm"],
    "stage": list(STAGES.values()),
    "since": [BEGIN + timedelta(seconds=5), BEGIN + timedelta(days=1)],
    "until": [BEGIN + timedelta(seconds=5), BEGIN],
    "slower_ms": [0, 20.25, 20.24, 1e9],
    "q": ["what", "100%", "a_b", "axb", "ÜBER", "\\", "'"],
}


@pytest.mark.parametrize("name", CHOICES)
def test_it_finds_by_one_filter_what_python_finds(name: str) -> None:
    made = make(1, 120)
    found_any = False
    for value in CHOICES[name]:
        filters = TurnFilters(**{name: value})
        expected = {each.turn.pk for each in made if fits(each, filters)}
        found_any |= bool(expected)
        assert {turn.pk for turn in history.turns(filters, limit=500).rows} == expected, value
        assert history.count(filters) == len(expected)
    assert found_any


def test_it_finds_by_several_filters_at_once_what_python_finds() -> None:
    made, chance = make(2, 150), random.Random(3)
    found = 0
    for _ in range(150):
        names = chance.sample(list(CHOICES), chance.choice([2, 3]))
        filters = TurnFilters(**{name: chance.choice(CHOICES[name]) for name in names})
        expected = {each.turn.pk for each in made if fits(each, filters)}
        found += len(expected)
        assert {turn.pk for turn in history.turns(filters, limit=500).rows} == expected, filters
    assert found > 100


def test_a_status_belongs_to_its_checkpoint_and_not_to_another_of_the_turn() -> None:
    turn = StoredTurn(USERS[0])
    turn.add("usage_check", turn.root, status="failed")
    for filters, found in (
        (TurnFilters(checkpoint="usage_check", status="failed"), 1),
        (TurnFilters(checkpoint="auth_check", status="failed"), 0),
        (TurnFilters(checkpoint="auth_check", status="passed"), 1),
        (TurnFilters(status="failed"), 1),
        (TurnFilters(status="refused"), 0),
    ):
        assert len(history.turns(filters).rows) == found, filters


# --- orders -------------------------------------------------------------------------------------------

VALUES: dict[str, Callable[[Turn], Any]] = {
    "started": lambda turn: turn.started_at,
    "duration": lambda turn: turn.duration_ms,
    "first_token": lambda turn: turn.ttft_ms,
    "tokens": lambda turn: turn.input_tokens + turn.output_tokens,
    "cost": lambda turn: turn.cost_usd,
    "tools": lambda turn: turn.tool_calls,
}


def in_order(turns: list[Turn], sort: str) -> list[uuid.UUID]:
    """The ids in this order, by Python; those that are left out are not in it."""
    value = VALUES[sort.removeprefix("-")]
    listed = [each for each in turns if value(each) is not None and (sort.endswith("started") or each.outcome)]
    # PostgreSQL compares the sixteen bytes of an id, and so does Python
    listed.sort(key=lambda turn: (value(turn), turn.turn_id.bytes), reverse=sort.startswith("-"))
    return [turn.turn_id for turn in listed]


@pytest.mark.parametrize("sort", SORT_NAMES)
def test_every_order_is_right_page_by_page_and_back(sort: str) -> None:
    made = [each.turn for each in make(4, 60)]
    expected = in_order(made, sort)
    pages, cursor = [], None
    while True:
        page = history.turns(TurnFilters(), sort=sort, limit=7, cursor=cursor)
        pages.append([turn.turn_id for turn in page.rows])
        if page.next is None:
            break
        cursor = page.next
    assert [pk for each in pages for pk in each] == expected
    back, cursor = [], page.previous
    while cursor:
        page = history.turns(TurnFilters(), sort=sort, limit=7, cursor=cursor)
        back.append([turn.turn_id for turn in page.rows])
        cursor = page.previous
    assert back == pages[-2::-1]
    assert page.next is not None


@pytest.mark.parametrize("sort", SORT_NAMES)
@pytest.mark.parametrize("seed", [5, 6])
def test_nothing_is_skipped_or_repeated_while_turns_arrive_and_end(sort: str, seed: int) -> None:
    chance = random.Random(seed)
    made = [Made(chance, number).turn for number in range(40)]
    at_page_1 = set(in_order(made, sort))
    seen: list[uuid.UUID] = []
    cursor = None
    while True:
        page = history.turns(TurnFilters(), sort=sort, limit=3, cursor=cursor)
        seen += [turn.turn_id for turn in page.rows]
        if page.next is None:
            break
        cursor = page.next
        made += [Made(chance, number).turn for number in range(3)]
        # a running turn goes on: more tokens, another tool, and perhaps its end
        running = [turn for turn in made if turn.outcome is None]
        if running:
            one = chance.choice(running)
            one.input_tokens, one.tool_calls = one.input_tokens + chance.randrange(5), one.tool_calls + 1
            one.outcome, one.duration_ms = chance.choice([(None, None), ("completed", 20.25)])
            one.save()
    assert len(seen) == len(set(seen))
    assert at_page_1 <= set(seen)
    now = {turn.turn_id: turn for turn in Turn.objects.filter(turn_id__in=seen)}
    assert seen == in_order(list(now.values()), sort)


def test_a_page_back_to_the_beginning_is_the_whole_first_page() -> None:
    for _ in range(6):
        Turn.objects.create(turn_id=uuid.uuid4(), session_id="s", user_id=USERS[0], started_at=BEGIN)
    first = history.turns(TurnFilters(), limit=2)
    second = history.turns(TurnFilters(), limit=2, cursor=first.next)
    for _ in range(3):
        Turn.objects.create(turn_id=uuid.uuid4(), session_id="s", user_id=USERS[0], started_at=BEGIN)
    newest = Turn.objects.create(
        turn_id=uuid.uuid4(), session_id="s", user_id=USERS[0], started_at=BEGIN + timedelta(1)
    )
    back = history.turns(TurnFilters(), limit=20, cursor=second.previous)
    assert back.rows[0] == newest
    assert len(back.rows) == 10
    assert back.previous is None


def test_a_cursor_is_good_for_its_order_only() -> None:
    make(7, 30)
    cursor = history.turns(TurnFilters(), sort="-tokens", limit=2).next
    for other in set(SORT_NAMES) - {"-tokens"}:
        with pytest.raises(BadCursor):
            history.turns(TurnFilters(), sort=other, cursor=cursor)
    with pytest.raises(BadCursor):
        history.turns(TurnFilters(tool="clock"), sort="-tokens", cursor=cursor)
    assert history.turns(TurnFilters(), sort="-tokens", cursor=cursor).rows


def test_many_equal_values_are_entered_at_the_very_place() -> None:
    turns = [
        Turn(turn_id=uuid.uuid4(), session_id="s", user_id=USERS[0], started_at=BEGIN, outcome="completed")
        for _ in range(300)
    ]
    Turn.objects.bulk_create(turns)
    seen, cursor = [], None
    for _ in range(30):
        page = history.turns(TurnFilters(), sort="-tools", limit=10, cursor=cursor)
        seen += [turn.turn_id for turn in page.rows]
        cursor = page.next
    assert cursor is None
    assert seen == sorted((turn.turn_id for turn in turns), reverse=True)


# --- words too short for the index ----------------------------------------------------------------------


@pytest.mark.parametrize("sort", SORT_NAMES)
@pytest.mark.parametrize(("word", "share"), [("ü", 0.05), ("是", 0.3), ("a", 1.0), ("?!", 0.0)])
@pytest.mark.parametrize("looked_at", [4, 60])
def test_short_words_are_sought_some_turns_at_a_time_with_none_skipped_or_repeated(
    monkeypatch: pytest.MonkeyPatch, sort: str, word: str, share: float, looked_at: int
) -> None:
    monkeypatch.setattr(history, "LOOKED_AT", looked_at)
    chance = random.Random(9)
    made = [each.turn for each in make(10, 60)]
    for turn in made:
        turn.question = f"... {word.upper()} ..." if chance.random() < share else "other"
        turn.save()
    filters = TurnFilters(q=word)
    expected = in_order([turn for turn in made if turn.question != "other"], sort)
    seen, pages, cursor = [], 0, None
    while True:
        page = history.turns(filters, sort=sort, limit=7, cursor=cursor)
        seen += [turn.turn_id for turn in page.rows]
        pages += 1
        assert (page.looked_until is not None) <= (page.next is not None and len(page.rows) < 8)
        if page.next is None:
            break
        cursor = page.next
    assert seen == expected
    assert pages <= 60 // looked_at + len(expected) // 7 + 2
    # and from the end back to the beginning
    back = [turn.turn_id for turn in page.rows]
    while page.previous:
        page = history.turns(filters, sort=sort, limit=7, cursor=page.previous)
        before = [turn.turn_id for turn in page.rows]
        # the first page is whole again, so it may repeat what stood on the second
        back = before + (back if page.previous else [each for each in back if each not in before])
    assert back == expected


def test_a_chinese_word_of_two_letters_is_found_among_others() -> None:
    for question in ("天气怎么样", "今天天气好吗", "天 气", "How is the weather?"):
        turn = StoredTurn(USERS[0], question=question)
        turn.end()
    found = history.turns(TurnFilters(q="天气"))
    assert {turn.question for turn in found.rows} == {"天气怎么样", "今天天气好吗"}
    assert found.next is found.looked_until is None


@pytest.mark.parametrize("word", ["ab", "a b", "天气", "%_", "a1"])
def test_short_is_what_has_no_word_of_three_letters(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setattr(history, "LOOKED_AT", 2)
    for question in (word, "other", "other", f"{word}cde", "other", "other"):
        StoredTurn(USERS[0], question=question).end()
    # the newest two are looked at and hold nothing; of a longer word the index knows all
    assert (page := history.turns(TurnFilters(q=word))).rows == []
    assert page.next is not None
    assert page.looked_until is not None
    longer = history.turns(TurnFilters(q=f"{word}cde"))
    assert len(longer.rows) == 1
    assert longer.next is None


def test_of_a_short_word_outcomes_are_counted_in_the_newest_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    for outcome in ("failed", "completed", "completed", "failed"):
        StoredTurn(USERS[0], question="ü").end(outcome)
    assert history.counted_since(TurnFilters(q="ü")) is None
    monkeypatch.setattr(history, "LOOKED_AT", 3)
    assert history.counted_since(TurnFilters(q="über")) is None
    since = history.counted_since(TurnFilters(q="ü", outcome="failed"))
    counts = history.outcomes(TurnFilters(q="ü", since=since))
    assert (counts["completed"], counts["failed"]) == (2, 1)


def test_of_a_word_in_very_many_turns_outcomes_are_counted_in_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    for outcome in ("failed", "completed", "completed", "failed"):
        StoredTurn(USERS[0], question="what").end(outcome)
    monkeypatch.setattr(history, "LOOKED_AT", 3)
    monkeypatch.setattr(history, "WORDS_COUNTED", 4)
    monkeypatch.setattr(history, "COUNTED_AT_MOST", 1)
    assert history.counted_since(TurnFilters(q="what")) is None
    StoredTurn(USERS[0], question="What else?").end("failed")
    assert history.counted_since(TurnFilters(q="what", user_id=USERS[1])) is None
    since = history.counted_since(TurnFilters(q="what", outcome="completed"))
    monkeypatch.setattr(history, "COUNTED_AT_MOST", 10)
    counts = history.outcomes(TurnFilters(q="what", since=since))
    assert (counts["completed"], counts["failed"]) == (1, 2)


# --- counts, and what the form offers ------------------------------------------------------------------


def test_outcomes_are_counted_for_the_other_filters() -> None:
    made = make(8, 100)
    for filters in (TurnFilters(), TurnFilters(tool="clock"), TurnFilters(q="what", outcome="failed")):
        others = replace(filters, outcome=None)
        expected = dict.fromkeys((RUNNING, *Outcome.values), 0)
        for each in made:
            if fits(each, others):
                expected[each.turn.outcome or RUNNING] += 1
        assert history.outcomes(filters) == expected


def test_counting_ends_at_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "COUNTED_AT_MOST", 5)
    Turn.objects.bulk_create(
        Turn(turn_id=uuid.uuid4(), session_id="s", user_id=USERS[0], started_at=BEGIN, outcome=outcome)
        for outcome, number in (("completed", 9), ("failed", 5))
        for _ in range(number)
    )
    # without filters, with some that few turns fit, and with some that many do
    for limit, filters in ((5, TurnFilters()), (5, TurnFilters(session_id="s")), (2, TurnFilters(session_id="s"))):
        monkeypatch.setattr(history, "COUNTED_AT_MOST", limit)
        counts = history.outcomes(filters)
        assert counts == {**dict.fromkeys(counts, 0), "completed": limit + 1, "failed": min(5, limit + 1)}, filters


def test_later_turns_are_those_that_began_after_a_moment() -> None:
    StoredTurn(USERS[0]).end()
    then = Turn.objects.get().started_at
    StoredTurn(USERS[0]).end("failed")
    StoredTurn(USERS[1])
    assert history.later(TurnFilters(), then) == 2
    assert history.later(TurnFilters(outcome="failed"), then) == 1
    assert history.later(TurnFilters(user_id=USERS[1]), then) == 1
    assert history.later(TurnFilters(since=datetime(2030, 1, 1, tzinfo=UTC)), then) == 0
    assert history.later(TurnFilters(since=then - timedelta(days=1)), then) == 2


def test_what_occurs_is_named_once_and_in_order() -> None:
    StoredTurn(USERS[0]).with_tool("search").with_tool("clock").end()
    refused = StoredTurn(USERS[1])
    refused.add("usage_check", refused.root, status="failed", code="usage_limit")
    refused.end("refused")
    everybody = history.occurring()
    assert everybody.models == ["m-1"]
    assert everybody.tools == ["clock", "search"]
    assert everybody.errors == ["usage_limit"]
    assert {"auth_check", "usage_check", "tool_call", "flow_end"} <= set(everybody.checkpoints)
    assert {"passed", "failed", "ok", "started"} <= set(everybody.statuses)
    own = history.occurring(USERS[1])
    assert (own.models, own.tools, own.errors) == ([], [], ["usage_limit"])


def test_a_rare_tag_is_sought_by_its_own_index_and_lists_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        StoredTurn("bob@example.com").with_tool("rare" if number % 2 else "usual").end()

    def pages(**filters: Any) -> list[Any]:
        found, cursor = [], None
        while True:
            page = history.turns(TurnFilters(**filters), limit=2, cursor=cursor)
            found += [turn.pk for turn in page.rows]
            if (cursor := page.next) is None:
                return found

    walked = pages(tool="rare")
    monkeypatch.setattr(history, "_common", (math.inf, frozenset({"tusual"})))
    assert pages(tool="rare") == walked
    assert len(walked) == 3
    assert len(pages(tool="usual")) == 3
