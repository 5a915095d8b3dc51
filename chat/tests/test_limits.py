"""Limits of a minute, a day and a month; of users, groups and everybody; and what is told of them."""

import json
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission
from django.db import connection
from django.test import Client as Browser
from django.utils import timezone

from chat import limits as limits_module
from chat.limits import ALWAYS, EVERYTHING, LIMITS, Asked, InUse, asked
from chat.models import DailyUsage, GroupLimits, TurnUsage, UserLimits
from chat.standing import nearly_used, rate_limit_headers
from chat.tests.test_usage import in_threads, let_in
from chat.usage import Totals, charge, settle_abandoned, usage_of, withdraw
from monitoring.config import UsageLimits
from omni2.accounts.models import AccessLog
from tests.people import PASSWORD, issue_token, make_person

pytestmark = pytest.mark.django_db(transaction=True)


def in_group(user: Any, name: str, **numbers: Any) -> GroupLimits:
    group, _ = Group.objects.get_or_create(name=name)
    user.groups.add(group)
    return GroupLimits.objects.create(group=group, **numbers)


def of(user: Any, name: str) -> float | None:
    return usage_of(user.pk)[name].limit


# --- whose number counts --------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIMITS)
def test_ones_own_number_goes_before_the_groups_and_theirs_before_the_default(
    name: str, bob: Any, charlie: Any, limits: Any
) -> None:
    limits(**{name: 100})
    assert of(bob, name) == 100
    in_group(bob, "small", **{name: 20})
    assert of(bob, name) == 20, "also when it is less than the default"
    in_group(bob, "large", **{name: 300})
    assert of(bob, name) == 300, "the most generous"
    lifting = in_group(bob, "free", **{LIMITS[name].unlimited: True})
    assert of(bob, name) is None, "no limit goes before any number"
    own = UserLimits.objects.create(user=bob, **{name: 7})
    assert of(bob, name) == 7
    setattr(own, LIMITS[name].unlimited, True)
    own.save()
    assert of(bob, name) == 7, "a number beside “unlimited” still counts"
    setattr(own, name, None)
    own.save()
    lifting.delete()
    assert of(bob, name) is None
    own.delete()
    assert of(bob, name) == 300
    assert of(charlie, name) == 100, "who is in none of the groups"


def test_unlimited_of_a_group_leaves_its_own_numbers(bob: Any, limits: Any) -> None:
    limits(requests_per_day=100, requests_per_month=1000)
    in_group(bob, "patient", requests_unlimited=True, requests_per_minute=3)
    assert [of(bob, f"requests_per_{each}") for each in ("minute", "day", "month")] == [3, None, None]


def test_a_group_that_says_nothing_changes_nothing(bob: Any, limits: Any) -> None:
    limits(requests_per_day=100)
    in_group(bob, "silent", tokens_per_day=5)
    assert (of(bob, "requests_per_day"), of(bob, "tokens_per_day"), of(bob, "turns_at_once")) == (100, 5, 8)


# --- what is not used costs nothing ---------------------------------------------------------------


def test_the_statement_knows_only_what_somebody_has_set() -> None:
    nothing = Asked(False, frozenset())
    assert asked(UsageLimits(), nothing) == Asked(False, ALWAYS)
    assert asked(UsageLimits(tokens_per_month=5), nothing).names == ALWAYS | {"tokens_per_month"}
    plain = limits_module.facts(Asked(False, ALWAYS))
    assert not any(word in plain for word in ("group_limits", "interval '", "month", "ended_at >"))
    assert "group_limits" in limits_module.facts(Asked(True, ALWAYS))


def test_what_is_in_use_is_read_with_the_watch_list(bob: Any) -> None:
    def hear() -> Asked:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT ({limits_module.FOLLOWED})::text")
            known.hear(json.loads(cursor.fetchone()[0]))
        return known.asked

    known = InUse()
    assert known.asked == EVERYTHING, "until it is known"
    assert hear() == Asked(False, frozenset())
    UserLimits.objects.create(user=bob, requests_per_day=5)
    assert hear() == Asked(False, frozenset()), "a limit of the day is looked at in any case"
    UserLimits.objects.update(tokens_per_minute=5)
    assert hear() == Asked(False, frozenset({"tokens_per_minute"}))
    in_group(bob, "some", cost_usd_per_month=1)
    assert hear() == Asked(True, frozenset({"tokens_per_minute", "cost_usd_per_month"}))
    known.hear("nonsense")
    assert known.asked == Asked(True, frozenset({"tokens_per_minute", "cost_usd_per_month"}))


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize(
    "name", ["requests_per_day", "requests_per_minute", "tokens_per_minute", "requests_per_month", "cost_usd_per_month"]
)
def test_every_statement_judges_alike(name: str, groups: bool, bob: Any, limits: Any) -> None:
    """With the least of parts that hold the limit, and with all of them."""
    amount = {"requests": 1, "tokens": 15, "cost": 0.25}[name.partition("_")[0]]
    limits(**{name: amount})
    limits_module.in_use.asked = Asked(groups, frozenset())
    turn, verdict = let_in(bob)
    assert verdict.admitted
    charge(turn, Totals(10, 5, Decimal("0.25")), ended=True)
    narrow = let_in(bob)[1]
    limits_module.in_use.asked = EVERYTHING
    wide = let_in(bob)[1]
    assert narrow.word == wide.word == name
    assert narrow.limits[name][:3] == wide.limits[name][:3]
    assert set(narrow.limits) == ALWAYS | {name}
    assert set(wide.limits) == set(LIMITS)


# --- the minute -----------------------------------------------------------------------------------


def pass_by(seconds: float) -> None:
    """What happened, happened so much earlier."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE turn_usage SET started_at = started_at - make_interval(secs => %(s)s),"
            " ended_at = ended_at - make_interval(secs => %(s)s)",
            {"s": seconds},
        )


def test_the_minute_slides(bob: Any, limits: Any) -> None:
    limits(requests_per_minute=2)
    assert let_in(bob)[1].admitted
    pass_by(30)
    assert let_in(bob)[1].admitted
    refused = let_in(bob)[1]
    assert refused.word == "requests_per_minute"
    reached = refused.limits["requests_per_minute"]
    oldest = TurnUsage.objects.order_by("started_at").first()
    assert oldest is not None
    assert reached.resets_at == oldest.started_at + timedelta(seconds=60), "when the oldest of it leaves"
    assert 0 < reached.seconds_to_reset <= 30
    pass_by(30)
    assert let_in(bob)[1].admitted, "the first has left"
    assert not let_in(bob)[1].admitted, "the second has not"


def test_a_minute_is_free_again_when_enough_have_left(bob: Any, limits: Any) -> None:
    limits(requests_per_minute=5)
    for _ in range(4):
        let_in(bob)
        pass_by(10)
    limits(requests_per_minute=2)
    starts = list(TurnUsage.objects.order_by("started_at").values_list("started_at", flat=True))
    refused = let_in(bob)[1].limits["requests_per_minute"]
    assert (refused.used, refused.resets_at) == (4, starts[2] + timedelta(seconds=60))
    limits(requests_per_minute=0)
    never = let_in(bob)[1]
    assert never.word == "requests_per_minute"
    assert never.limits["requests_per_minute"].seconds_to_reset == 60


def test_tokens_belong_to_the_minute_in_which_their_turn_ended(bob: Any, limits: Any) -> None:
    limits(tokens_per_minute=100, turns_at_once=None)
    long, _ = let_in(bob)
    pass_by(120)
    charge(long, Totals(50, 30))
    second, verdict = let_in(bob)
    assert (verdict.admitted, verdict.limits["tokens_per_minute"].used) == (True, 80), "a running turn counts"
    charge(long, Totals(80, 40), ended=True)
    refused = let_in(bob)[1]
    assert (refused.word, refused.limits["tokens_per_minute"].used) == ("tokens_per_minute", 120)
    ended = TurnUsage.objects.get(turn_id=long).ended_at
    assert ended is not None
    assert refused.limits["tokens_per_minute"].resets_at == ended + timedelta(seconds=60)
    pass_by(59)
    assert not let_in(bob)[1].admitted
    pass_by(2)
    assert let_in(bob)[1].admitted
    charge(second, Totals(500, 0))
    running = let_in(bob)[1].limits["tokens_per_minute"]
    assert running.seconds_to_reset == 60, "what runs leaves a minute from now at the earliest"


def test_an_undone_or_abandoned_turn_is_right_in_every_window(bob: Any, limits: Any) -> None:
    limits(requests_per_minute=1, requests_per_day=1, requests_per_month=1, tokens_per_minute=20)
    turn, _ = let_in(bob)
    assert let_in(bob)[1].word == "requests_per_month"
    assert withdraw(turn)
    again, verdict = let_in(bob)
    assert verdict.admitted
    settle_abandoned(again, [{"input_tokens": 15, "output_tokens": 10}])
    standing = usage_of(bob.pk)
    assert [standing[f"tokens_per_{each}"].used for each in ("minute", "day", "month")] == [25, 25, 25]
    assert standing["turns_at_once"].used == 0


# --- the month ------------------------------------------------------------------------------------


def today_in(zone: str) -> date:
    from zoneinfo import ZoneInfo

    return datetime.now(ZoneInfo(zone)).date()


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "America/New_York"])
def test_a_month_begins_on_its_first_in_the_configured_zone(zone: str, bob: Any, limits: Any, settings: Any) -> None:
    settings.USAGE_TZ = zone
    limits(requests_per_day=None, requests_per_month=10, tokens_per_month=1000, cost_usd_per_month=5)
    first = today_in(zone).replace(day=1)
    amounts = {"requests": 4, "input_tokens": 70, "output_tokens": 30, "cost_usd": "1.5"}
    DailyUsage.objects.create(user=bob, day=first - timedelta(days=1), **amounts)
    DailyUsage.objects.create(user=bob, day=first + timedelta(days=40), **amounts)
    assert usage_of(bob.pk)["requests_per_month"].used == 0
    DailyUsage.objects.create(user=bob, day=first, **amounts)
    standing = usage_of(bob.pk)
    assert [standing[f"{each}_per_month"].used for each in ("requests", "tokens", "cost_usd")] == [4, 100, 1.5]
    from zoneinfo import ZoneInfo

    assert standing["requests_per_month"].resets_at is not None
    resets = standing["requests_per_month"].resets_at.astimezone(ZoneInfo(zone))
    following = (first + timedelta(days=32)).replace(day=1)
    assert (resets.date(), resets.hour, resets.minute) == (following, 0, 0)


def test_of_several_limits_the_one_that_holds_longest_is_named(bob: Any, limits: Any) -> None:
    for name in ("requests_per_minute", "requests_per_day", "requests_per_month"):
        limits(**{"requests_per_minute": 0, "requests_per_day": None, name: 0})
        if name == "requests_per_month":
            limits(requests_per_minute=0, requests_per_day=0, requests_per_month=0)
        assert let_in(bob)[1].word == name


# --- many at once ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["requests_per_minute", "requests_per_month"])
def test_requests_never_pass_a_limit(name: str, bob: Any, limits: Any) -> None:
    limits(**{name: 3, "turns_at_once": None})
    words = [verdict.word for _, verdict in in_threads(8, lambda: let_in(bob))]
    assert sorted(words) == ["admitted"] * 3 + [name] * 5


@pytest.mark.parametrize("name", ["tokens_per_minute", "tokens_per_day", "tokens_per_month", "cost_usd_per_month"])
def test_tokens_and_cost_pass_a_limit_by_no_more_than_what_runs(name: str, bob: Any, limits: Any) -> None:
    limits(**{name: 100, "turns_at_once": 4})
    running = [turn for turn, verdict in in_threads(8, lambda: let_in(bob)) if verdict.admitted]
    assert len(running) == 4
    for turn in running:
        charge(turn, Totals(60, 0, Decimal(60)), ended=True)
    assert let_in(bob)[1].word == name
    assert usage_of(bob.pk)[name].used == 4 * 60, "the four that ran, and nothing after them"


# --- what is told ---------------------------------------------------------------------------------


async def test_a_refusal_of_the_minute_names_its_numbers_and_when(
    chatting: None, bob: Any, client_of: Any, tree_of: Any, limits: Any, llm: Any
) -> None:
    limits(requests_per_minute=1)
    client = client_of(bob)
    assert (await client.stream("Hello")).status == 200
    for call in (await client.stream("Hello"), await client.whole("Hello")):
        assert (call.status, call.json["code"], call.json["limit_name"]) == (429, "usage_limit", "requests_per_minute")
        assert (call.json["used"], call.json["limit"]) == (1, 1)
        assert "minute" in call.json["detail"]
        assert 0 < int(call.answer_headers["retry-after"]) <= 60
        assert '"requests_per_minute";r=0;t=' in call.answer_headers["ratelimit"]
        tree = await tree_of(bob, call.json["turn_id"])
        tree.assert_complete("refused")
        failed = tree.facts("usage_check")
        assert (failed["limit_name"], failed["resets_at"]) == ("requests_per_minute", call.json["resets_at"])
        assert failed["limits"]["requests_per_minute"] == {"used": 1, "limit": 1, "resets_at": failed["resets_at"]}
    assert len(llm.requests) == 1


async def test_the_check_shows_every_limit_that_applies(
    chatting: None, bob: Any, client_of: Any, tree_of: Any, limits: Any
) -> None:
    limits(**dict.fromkeys(LIMITS, 1000))
    call = await client_of(bob).stream("Hello")
    facts = (await tree_of(bob, call.turn_id)).facts("usage_check")
    assert set(facts["limits"]) == set(LIMITS)
    assert (facts["limit_name"], facts["used"], facts["limit"]) == ("requests_per_day", 1, 1000)
    assert {name for name, each in facts["limits"].items() if "resets_at" not in each} == {"turns_at_once"}
    assert "_cut" not in facts


async def test_near_a_limit_the_answer_says_so(chatting: None, bob: Any, client_of: Any, limits: Any) -> None:
    limits(requests_per_day=5, requests_per_month=100, turns_at_once=1)
    client = client_of(bob)
    said = []
    for number in range(5):
        call = await (client.stream if number % 2 else client.whole)("Hello")
        said.append((call.last.data if number % 2 else call.json).get("limits"))
    assert said[:3] == [None, None, None]
    for number, limits_said in ((4, said[3]), (5, said[4])):
        (near,) = limits_said
        assert near.keys() == {"limit_name", "used", "limit", "resets_at"}
        assert (near["limit_name"], near["used"], near["limit"]) == ("requests_per_day", number, 5)


async def test_its_own_tokens_are_counted_before_it_says_so(
    chatting: None, bob: Any, client_of: Any, limits: Any
) -> None:
    limits(tokens_per_day=1)
    call = await client_of(bob).stream("Hello")
    (near,) = call.last.data["limits"]
    spent = call.last.data["usage"]
    assert (near["limit_name"], near["used"]) == ("tokens_per_day", spent["input_tokens"] + spent["output_tokens"])


async def test_headers_say_what_is_left(chatting: None, bob: Any, client_of: Any, limits: Any) -> None:
    limits(requests_per_minute=4, tokens_per_day=None, requests_per_month=90, requests_per_day=5, cost_usd_per_day=1)
    client = client_of(bob)
    for call in (await client.stream("Hello"), await client.whole("Hello")):
        headers = call.answer_headers
    assert headers["ratelimit-policy"] == (
        '"requests_per_month";q=90, "requests_per_day";q=5;w=86400, "requests_per_minute";q=4;w=60, '
        '"turns_at_once";q=8;qu="concurrent-requests"'
    )
    left = dict(each.split(";", 1) for each in headers["ratelimit"].split(", "))
    assert left['"requests_per_minute"'].startswith("r=2;t=")
    assert left['"requests_per_day"'].startswith("r=3;t=")
    assert left['"turns_at_once"'] == "r=7"
    assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("4", "2")
    assert headers["x-ratelimit-reset-requests"].endswith("s")
    assert "x-ratelimit-limit-tokens" not in headers


def test_without_limits_nothing_is_said(bob: Any, limits: Any) -> None:
    limits(requests_per_day=None, tokens_per_day=None, turns_at_once=None)
    verdict = let_in(bob)[1]
    assert rate_limit_headers(verdict) == []
    assert nearly_used(verdict, Totals(10**6, 10**6)) == []
    assert rate_limit_headers(None) == []


# --- looking --------------------------------------------------------------------------------------


def got(user: Any, path: str = "/api/v1/usage") -> Any:
    return Browser(headers={"Authorization": f"Bearer {issue_token(user)}"}).get(path)


def test_everybody_sees_his_own(bob: Any, limits: Any) -> None:
    limits(requests_per_day=10, tokens_per_month=100)
    turn, _ = let_in(bob)
    charge(turn, Totals(10, 5))
    answer = got(bob).json()
    assert (answer["user_id"], answer["timezone"]) == ("bob@example.com", "UTC")
    by_name = {each["limit_name"]: each for each in answer["limits"]}
    assert set(by_name) == set(LIMITS)
    day = by_name["requests_per_day"]
    assert (day["window"], day["used"], day["limit"], day["remaining"], day["set_by"]) == ("day", 1, 10, 9, "default")
    assert by_name["tokens_per_month"]["remaining"] == 85
    assert (by_name["tokens_per_minute"]["used"], by_name["tokens_per_minute"]["limit"]) == (15, None)
    assert (by_name["turns_at_once"]["used"], by_name["turns_at_once"]["resets_at"]) == (1, None)


def test_anothers_is_for_who_may_see_it_and_says_nothing_else(bob: Any, charlie: Any, ada: Any) -> None:
    refusals = [got(charlie, f"/api/v1/usage?user_id={each}") for each in (bob.user_id, "nobody@example.com")]
    assert [each.status_code for each in refusals] == [403, 403]
    assert refusals[0].json() == refusals[1].json()
    assert got(charlie, f"/api/v1/usage?user_id={charlie.user_id}").status_code == 200
    assert got(charlie, "/api/v1/usage/users").status_code == 403
    assert got(ada, f"/api/v1/usage?user_id={bob.user_id.upper()}").json()["user_id"] == bob.user_id
    assert got(ada, "/api/v1/usage?user_id=nobody@example.com").status_code == 404
    charlie.user_permissions.add(Permission.objects.get(codename="view_dailyusage"))
    assert got(charlie, f"/api/v1/usage?user_id={bob.user_id}").status_code == 200
    assert got(charlie, "/api/v1/usage/users").status_code == 200
    assert Browser().get("/api/v1/usage").status_code == 401


def test_who_looks_at_others_is_in_the_access_log(bob: Any, ada: Any) -> None:
    """Once a look; neither one's own nor what is refused."""
    got(bob)
    got(bob, f"/api/v1/usage?user_id={bob.user_id}")
    got(bob, f"/api/v1/usage?user_id={ada.user_id}")
    signed_in(bob).get("/usage/")
    assert not AccessLog.objects.filter(action="usage_opened").exists()
    got(ada, f"/api/v1/usage?user_id={bob.user_id}")
    got(ada, "/api/v1/usage/users?window=month&near=true")
    signed_in(ada).get("/usage/?q=b%00")
    lines = AccessLog.objects.filter(action="usage_opened").order_by("id")
    assert [(line.actor, line.subject_user_id, line.detail) for line in lines] == [
        (ada.user_id, bob.user_id, {"opened": "usage"}),
        (ada.user_id, None, {"opened": "everybody's usage", "window": "month", "near": True}),
        (ada.user_id, None, {"opened": "everybody's usage", "window": "day", "q": "b"}),
    ]


def test_everybodys_usage_comes_a_page_at_a_time(
    ada: Any, bob: Any, limits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat.api_usage.PAGE", 3)
    limits(requests_per_day=10, requests_per_month=12)
    for number in range(5):
        make_person(f"p{number}@example.com", f"Person {number}")
    DailyUsage.objects.create(user=bob, day=timezone.now().date(), requests=9, input_tokens=70, cost_usd="0.5")
    seen: list[dict[str, Any]] = []
    cursor = ""
    while cursor is not None:
        page = got(ada, f"/api/v1/usage/users?cursor={cursor}").json()
        assert len(page["users"]) <= 3
        seen += page["users"]
        cursor = page["next"]
    assert [each["user_id"] for each in seen] == sorted(
        ["ada@example.com", "bob@example.com", *(f"p{number}@example.com" for number in range(5))]
    )
    bobs = seen[1]
    assert (bobs["name"], bobs["state"]) == ("Bob Kahn", "near")
    assert [(each["limit_name"], each["used"], each["limit"]) for each in bobs["limits"]] == [
        ("requests_per_day", 9, 10),
        ("tokens_per_day", 70, 500_000),
        ("cost_usd_per_day", 0.5, None),
    ]
    month = got(ada, "/api/v1/usage/users?window=month&near=true").json()
    assert [(each["user_id"], each["state"]) for each in month["users"]] == [], "nine of twelve are not near"
    limits(requests_per_month=9)
    month = got(ada, "/api/v1/usage/users?window=month&near=true").json()
    assert [(each["user_id"], each["state"]) for each in month["users"]] == [("bob@example.com", "over")]
    found = got(ada, "/api/v1/usage/users?q=person%203").json()["users"]
    assert [each["user_id"] for each in found] == ["p3@example.com"]
    assert got(ada, "/api/v1/usage/users?q=%25").json()["users"] == [], "what is searched is text"
    for wrong, field in (("window=year", "window"), ("cursor=x", "cursor"), ("near=perhaps", "near")):
        answer = got(ada, f"/api/v1/usage/users?{wrong}")
        assert (answer.status_code, list(answer.json())) == (400, [field])


def signed_in(user: Any) -> Browser:
    browser = Browser()
    assert browser.login(email=user.email, password=PASSWORD)
    return browser


def test_the_page_shows_ones_own_and_to_who_may_see_it_everybodys(ada: Any, bob: Any, limits: Any) -> None:
    limits(requests_per_day=2, cost_usd_per_month=4)
    bob.name = "<b>Bob</b>"
    bob.save()
    for _ in range(2):
        charge(let_in(bob)[0], Totals(10, 5, Decimal("0.5")), ended=True)
    his = signed_in(bob).get("/usage/").content.decode()
    assert "2 of 2 requests" in his
    assert "used up" in his
    assert "$1.00 of $4.00 spent" in his
    assert 'id="everybody"' not in his
    assert "My usage" in his
    all_of_them = signed_in(ada).get("/usage/").content.decode()
    assert "<b>Bob" not in all_of_them
    assert "&lt;b&gt;Bob&lt;/b&gt;" in all_of_them
    assert 'data-user="bob@example.com" data-state="over"' in all_of_them
    near = signed_in(ada).get("/usage/?near=1&window=month&q=b").content.decode()
    assert 'data-user="' not in near, "of the month nothing is nearly used"
    assert signed_in(ada).get("/usage/?window=x&after=%00&q=%00").status_code == 200
    assert Browser().get("/usage/").status_code == 302


def test_looking_costs_few_queries(bob: Any, limits: Any, django_assert_num_queries: Any) -> None:
    from chat.allowances import allowances_of, everybody

    with django_assert_num_queries(3):
        allowances_of(bob)
    with django_assert_num_queries(1):
        everybody("month", only_near=True)
