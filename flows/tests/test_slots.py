"""Turns over time, by a viewer's hours and days: of kept figures and of turns alike."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from flows import analytics
from flows.analytics import Question
from flows.keeping import keep
from flows.models import KeptSpan, Turn
from flows.store import store
from flows.tests.samples import MODELS, TOOLS, USERS
from flows.tests.test_tallies import sampled, three_days_ago

pytestmark = pytest.mark.django_db(transaction=True)


def counted(question: Question, borders: list[datetime]) -> list[dict[str, int]]:
    """From the turns, one by one."""
    found: list[dict[str, int]] = [{} for _ in borders[1:]]
    for turn in Turn.objects.filter(started_at__gte=borders[0], started_at__lt=borders[-1]):
        chosen = (
            question.user_id in {None, turn.user_id}
            and question.model in {None, turn.model}
            and (question.tool is None or f"t{question.tool}" in turn.tags)
        )
        if chosen:
            slot = found[sum(border <= turn.started_at for border in borders) - 1]
            name = turn.outcome or "running"
            slot[name] = slot.get(name, 0) + 1
    return found


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=some.integers(0, 3),
    offset=some.sampled_from([0, 60, -300, 330, 345, 17]),
    slot=some.sampled_from([60, 1440, 90]),
    whose=some.sampled_from([{}, {"user_id": USERS[0]}, {"model": MODELS[0]}, {"tool": TOOLS[1]}]),
    until=some.integers(20, 80),
)
def test_it_counts_what_the_turns_say(seed: int, offset: int, slot: int, whose: dict[str, Any], until: int) -> None:
    if not KeptSpan.objects.exists():
        for each in range(2):
            store(sampled(each, 60).documents())
        while keep(most=500):
            pass
    since = three_days_ago() - timedelta(hours=seed, minutes=offset)
    end = since + timedelta(hours=until, minutes=7)
    borders = [
        since + timedelta(minutes=slot) * number for number in range(int((end - since) / timedelta(minutes=slot)) + 1)
    ]
    question = Question(since, end, **whose)
    found = [each.outcomes for each in analytics._slots(question, [*borders, end])]
    assert found == counted(question, [*borders, end])


def test_what_changed_since_it_was_kept_is_counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    store(sampled(1, 40).documents())
    while keep(most=500):
        pass
    since = three_days_ago()
    question = Question(since, since + timedelta(days=2))
    borders = [since, since + timedelta(days=1), since + timedelta(days=2)]
    asked = analytics.tallies.kept_in_slots

    def changed_meanwhile(*words: Any) -> Any:
        found = asked(*words)
        assert found
        store(sampled(7, 30).documents())
        return found

    monkeypatch.setattr(analytics.tallies, "kept_in_slots", changed_meanwhile)
    assert [each.outcomes for each in analytics._slots(question, borders)] == counted(question, borders)
