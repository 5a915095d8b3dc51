"""Made-up turns: true to the rules of real ones, the same again for the same seed, gone when asked to."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from flows.models import InteractionFlow, Turn
from flows.sample_turns import DOMAIN, SampleTurns, people
from flows.tests.rows import StoredTurn
from omni2.accounts.models import User

SINCE = datetime(2026, 11, 1, tzinfo=UTC)


def turns(seed: int = 1, **more: Any) -> SampleTurns:
    return SampleTurns(**{"seed": seed, "since": SINCE, "days": 7, "users": 20, "checkpoints": 20_000, **more})


def rows(number: int, seed: int = 1) -> list[dict[str, Any]]:
    return [json.loads(document) for document in turns(seed).documents(number)]


def test_it_makes_the_same_turn_again_and_another_for_another_seed() -> None:
    assert rows(7) == rows(7)
    assert rows(7)[0]["turn_id"] == turns(checkpoints=99).turn_id(7) == turns(users=3).turn_id(7)
    assert rows(7) != rows(8)
    assert rows(7) != rows(7, seed=2)


def test_each_turn_keeps_the_rules_of_a_turn() -> None:
    for number in range(600):
        made = rows(number)
        assert made[0]["flow_id"] == made[0]["turn_id"]
        assert made[0]["parent_id"] is None
        seen = set[str]()
        for row in made:
            assert row["parent_id"] is None or row["parent_id"] in seen
            seen.add(row["flow_id"])
            assert len(json.dumps(row["metadata"])) < 8192
        assert [row["checkpoint"] for row in made].count("flow_end") == 1
        assert made[-1]["checkpoint"] == "flow_end"
        moments = [datetime.fromisoformat(row["created_at"]) for row in made]
        assert moments == sorted(set(moments))
        assert SINCE <= moments[0] < SINCE + timedelta(days=7)
        calls = {row["flow_id"] for row in made if row["checkpoint"] == "tool_call"}
        results = [row["parent_id"] for row in made if row["checkpoint"] == "tool_result"]
        assert Counter(results) == Counter(calls)
        assert all(row["user_id"].endswith(f"@{DOMAIN}") for row in made)


def test_its_turns_end_in_every_way_and_some_people_ask_much_more_than_others() -> None:
    made = [rows(number) for number in range(2000)]
    outcomes = Counter(turn[-1]["metadata"]["outcome"] for turn in made)
    assert set(outcomes) == {"completed", "refused", "failed", "disconnected", "abandoned"}
    refusals = {turn[-1]["metadata"].get("code") for turn in made}
    assert {"inactive", "token_expired", "user_blocked", "usage_limit", "too_many_turns", "llm_unavailable"} <= refusals
    errors = {row["metadata"]["code"] for turn in made for row in turn if row["checkpoint"] == "error"}
    assert {"llm_failed", "llm_timeout", "tool_failed", "server_stopping"} <= errors
    askers = Counter(turn[0]["user_id"] for turn in made).most_common()
    assert len(askers) == 20
    assert askers[0][1] > 5 * askers[-1][1]
    sessions = Counter(turn[0]["session_id"] for turn in made)
    assert max(sessions.values()) > 3


def test_no_two_people_have_the_same_address() -> None:
    made = people(5000)
    assert len({each.user_id for each in made}) == 5000
    assert all(each.user_id == each.user_id.lower() for each in made)


def make(**options: Any) -> str:
    out = StringIO()
    call_command("sample_flows", stdout=out, **{"checkpoints": 2500, "days": 3, "users": 10, **options})
    return out.getvalue()


@pytest.mark.django_db
def test_it_stores_about_so_many_and_makes_accounts_nobody_can_use(capsys: pytest.CaptureFixture[str]) -> None:
    said = make()
    stored = InteractionFlow.objects.count()
    assert 2500 <= stored < 2600
    assert str(stored) in said
    assert sum(Turn.objects.values_list("checkpoints", flat=True)) == stored
    assert "of 2,500 checkpoints" in capsys.readouterr().err
    made = User.objects.filter(email__endswith=f"@{DOMAIN}")
    assert made.count() == 10
    assert not made.filter(is_active=True).exists()
    assert not any(user.has_usable_password() for user in made)
    assert set(Turn.objects.values_list("user_id", flat=True)) <= set(made.values_list("email", flat=True))


@pytest.mark.django_db
def test_it_goes_on_where_an_earlier_run_was_broken_off() -> None:
    make(checkpoints=2500)
    whole = set(InteractionFlow.objects.values_list("flow_id", "created_at"))
    make()
    assert set(InteractionFlow.objects.values_list("flow_id", "created_at")) == whole
    began = Turn.objects.get(turn_id=turns().turn_id(0)).started_at
    last = turns(since=began, days=3, users=10, checkpoints=2500)
    for number in range(100, Turn.objects.count()):
        InteractionFlow.objects.filter(turn_id=last.turn_id(number)).delete()
        Turn.objects.filter(turn_id=last.turn_id(number)).delete()
    make()
    assert set(InteractionFlow.objects.values_list("flow_id", "created_at")) == whole


@pytest.mark.django_db
def test_it_asks_before_it_mixes_with_the_turns_of_real_people() -> None:
    StoredTurn("bob@example.com").end()
    with pytest.raises(CommandError, match="--yes"):
        make()
    assert Turn.objects.count() == 1
    assert not User.objects.exists()
    make(yes=True)
    assert Turn.objects.count() > 100


@pytest.mark.django_db
def test_it_takes_away_what_it_made_and_nothing_else() -> None:
    bobs = StoredTurn("bob@example.com").end()
    User.objects.create_user("bob@example.com")
    make(yes=True)
    make(remove=True)
    assert [str(turn.turn_id) for turn in Turn.objects.all()] == [bobs.turn_id]
    assert InteractionFlow.objects.count() == 2
    assert [user.email for user in User.objects.all()] == ["bob@example.com"]
