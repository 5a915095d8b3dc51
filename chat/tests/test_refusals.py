"""Who gets no answer, what he is told, and what is written down: no refusal asks the model."""

import asyncio
import json
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from chat import checks, endpoint
from chat.models import Conversation, DailyUsage, TurnUsage, UserBlock, UserLimits
from chat.tests.conftest import Call, Client
from omni2.accounts.models import ApiToken
from omni2.database import in_database
from tests.people import issue_token

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("chatting")]

BOTH = pytest.mark.parametrize("path", ["/api/v1/ask", "/api/v1/ask/stream"])


async def ask(client: Client, message: Any = "Hello", **more: Any) -> Call:
    return await client.call(message, **more).start().over()


async def nothing_happened(llm: Any) -> None:
    """No model call, no conversation, no quota used."""
    assert llm.requests == []

    def counts() -> list[int]:
        return [kind.objects.count() for kind in (Conversation, DailyUsage, TurnUsage)]

    assert await in_database(counts) == [0, 0, 0]


# --- who are you ---------------------------------------------------------------------------------


@BOTH
async def test_without_a_credential_it_answers_401_and_makes_no_turn(path: str, llm: Any) -> None:
    call = await ask(Client(), path=path)
    assert call.status == 401
    assert call.json["code"] == "not_authenticated"
    assert "turn_id" not in call.json
    assert call.answer_headers["www-authenticate"].startswith("Bearer")
    assert endpoint.counted["not_authenticated"] == 1
    await nothing_happened(llm)


@pytest.mark.parametrize(
    "header",
    [
        b"Bearer omni2_unknown",
        b"Bearer",
        b"Bearer \xff\xfe",
        "Bearer žluťoučký".encode(),
        b"Basic YTpi",
        b"",
        b"Bearer " + b"x" * 5000,
    ],
)
async def test_a_token_nobody_knows_is_401_and_makes_no_turn(header: bytes, llm: Any) -> None:
    call = await ask(Client(), headers=[(b"authorization", header)])
    assert (call.status, call.json["code"]) == (401, "token_unknown")
    assert "turn_id" not in call.json
    await nothing_happened(llm)


@BOTH
async def test_an_expired_token_leaves_a_tree_that_says_why(path: str, bob: Any, tree_of: Any, llm: Any) -> None:
    call = await ask(Client(issue_token(bob, days=-1)), path=path)
    assert (call.status, call.json["code"]) == (401, "token_expired")
    tree = await tree_of(bob, call.json["turn_id"])
    assert tree.names == ["auth_check", "flow_end"]
    tree.assert_complete("refused")
    assert (tree.facts("auth_check")["status"], tree.facts("auth_check")["reason"]) == ("failed", "expired")
    assert call.turn_id == call.json["turn_id"]
    assert uuid.UUID(call.json["session_id"])
    await nothing_happened(llm)


async def test_a_revoked_token_leaves_a_tree_that_says_why(bob: Any, tree_of: Any, llm: Any) -> None:
    token = issue_token(bob)
    await in_database(ApiToken.objects.all().revoke)
    call = await ask(Client(token))
    assert (call.status, call.json["code"]) == (401, "token_revoked")
    assert (await tree_of(bob, call.json["turn_id"])).facts("auth_check")["reason"] == "revoked"
    await nothing_happened(llm)


async def test_who_holds_a_dead_token_learns_nothing_of_bodies_and_sessions(
    bob: Any, client_of: Any, charlie: Any
) -> None:
    bobs = (await client_of(bob).stream("Hello")).last.data["session_id"]
    dead = Client(issue_token(charlie, days=-1))
    for call in [await ask(dead, body=b"{"), await ask(dead, None), await ask(dead, body=b"x" * 2_000_000)]:
        assert (call.status, call.json["code"]) == (401, "token_expired")
        assert "turn_id" not in call.json
    call = await ask(dead, session_id=bobs)
    assert call.status == 401
    assert call.json["session_id"] != bobs


@BOTH
async def test_an_inactive_user_is_told_so(path: str, bob: Any, client_of: Any, tree_of: Any, llm: Any) -> None:
    client = client_of(bob)
    bob.is_active = False
    await in_database(bob.save)
    call = await ask(client, path=path, session_id="0199aaaa-0000-7000-8000-000000000001")
    assert (call.status, call.json["code"]) == (403, "inactive")
    assert call.json["session_id"] == "0199aaaa-0000-7000-8000-000000000001"
    tree = await tree_of(bob, call.json["turn_id"])
    tree.assert_complete("refused")
    assert tree.facts("auth_check")["reason"] == "inactive"
    assert tree.all[0]["session_id"] == call.json["session_id"]
    await nothing_happened(llm)
    assert (await ask(client, body=b"[]")).status == 400


@BOTH
async def test_a_browser_session_serves_with_its_csrf_token(path: str, bob: Any, browser_of: Any, tree_of: Any) -> None:
    cookies, token = await in_database(browser_of, bob)
    call = await ask(Client(), path=path, headers=[*cookies, (b"x-csrftoken", token)])
    assert call.status == 200
    assert (await tree_of(bob, call.turn_id)).facts("auth_check")["method"] == "session"


@BOTH
async def test_a_browser_session_without_it_is_403(path: str, bob: Any, browser_of: Any, llm: Any) -> None:
    cookies, token = await in_database(browser_of, bob)
    wrong = [[], [(b"x-csrftoken", b"b" * 32)], [(b"x-csrftoken", token), (b"origin", b"https://evil.example")]]
    for headers in wrong:
        call = await ask(Client(), path=path, headers=[*cookies, *headers])
        assert (call.status, call.json["code"]) == (403, "csrf_failed")
    await nothing_happened(llm)


async def test_a_bad_authorization_header_wins_over_a_good_session(bob: Any, browser_of: Any, llm: Any) -> None:
    cookies, token = await in_database(browser_of, bob)
    call = await ask(Client("omni2_wrong"), headers=[*cookies, (b"x-csrftoken", token)])
    assert (call.status, call.json["code"]) == (401, "token_unknown")
    await nothing_happened(llm)


# --- method and body -----------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_other_methods_are_405_in_json(path: str, method: str, bob: Any, client_of: Any) -> None:
    call = await ask(client_of(bob), path=path, method=method)
    assert (call.status, call.json["code"]) == (405, "method_not_allowed")
    assert call.answer_headers["allow"] == "POST"


DEEP = b"[" * 100_000
BAD_BODIES = [
    (b"", "detail"),
    (b"{", "detail"),
    (b'{"message": "x"', "detail"),
    (b"\xff\xfe{}", "detail"),
    (DEEP, "detail"),
    (b'{"message": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}", "detail"),
    (b'{"message": NaN}', "detail"),
    (b'{"message": ' + b"9" * 10_000 + b"}", "detail"),
    (b"[]", "non_field_errors"),
    (b'"Hello"', "non_field_errors"),
    (b"null", "non_field_errors"),
    (b"{}", "message"),
    (b'{"message": null}', "message"),
    (b'{"message": ""}', "message"),
    (b'{"message": " \\n\\t "}', "message"),
    (b'{"message": 5}', "message"),
    (b'{"message": true}', "message"),
    (b'{"message": ["x"]}', "message"),
    (b'{"message": {"a": 1}}', "message"),
    (b'{"message": "a\\u0000b"}', "message"),
    (b'{"message": "a\\ud800b"}', "message"),
    (b'{"message": "x", "session_id": "nonsense"}', "session_id"),
    (b'{"message": "x", "session_id": ""}', "session_id"),
    (b'{"message": "x", "session_id": 7}', "session_id"),
    (b'{"message": "x", "session_id": true}', "session_id"),
    (b'{"message": "x", "session_id": ["a"]}', "session_id"),
    (b'{"message": "x", "session_id": "\\u0000"}', "session_id"),
    (b'{"message": "x", "session_id": "0199aaaa-0000-7000-8000-00000000000"}', "session_id"),
]


@BOTH
async def test_a_bad_body_is_400_and_names_the_field(path: str, bob: Any, client_of: Any, llm: Any) -> None:
    client = client_of(bob)
    for body, field in BAD_BODIES:
        call = await ask(client, body=body, path=path)
        assert call.status == 400, body[:80]
        assert field in call.json, (body[:80], call.json)
    await nothing_happened(llm)


async def test_a_body_above_the_limit_is_413(bob: Any, client_of: Any, llm: Any) -> None:
    client = client_of(bob)
    fits = json.dumps({"message": "x" * (checks.BODY_BYTES - 20)}).encode()
    assert len(fits) <= checks.BODY_BYTES
    call = await ask(client, body=fits + b" " * (checks.BODY_BYTES - len(fits) + 1))
    assert (call.status, call.json["code"]) == (413, "body_too_large")
    announced = await ask(client, body=b"", headers=[(b"content-length", b"99999999")])
    assert announced.status == 413
    await nothing_happened(llm)
    assert (await ask(client, body=fits)).status == 200


async def test_a_client_that_leaves_while_its_body_comes_leaves_nothing(bob: Any, client_of: Any, llm: Any) -> None:
    call = client_of(bob).call("Hello")
    call._asked = True  # its body never comes
    call.leave()
    await call.start().over()
    assert call.sends == 0
    await nothing_happened(llm)


# --- whose session -------------------------------------------------------------------------------


@BOTH
async def test_another_users_session_is_404(path: str, bob: Any, charlie: Any, client_of: Any, llm: Any) -> None:
    bobs = (await client_of(bob).stream("Hello")).last.data["session_id"]
    llm.requests.clear()
    call = await ask(client_of(charlie), path=path, session_id=bobs)
    assert (call.status, call.json["code"]) == (404, "not_found")
    assert "turn_id" not in call.json
    assert llm.requests == []


async def test_a_session_of_somebody_who_was_refused_is_his_too(bob: Any, charlie: Any, client_of: Any) -> None:
    from flows.models import Turn

    his = str(uuid.uuid4())
    turn_id = uuid.uuid4()
    await in_database(
        Turn.objects.create, turn_id=turn_id, session_id=his, user_id=bob.user_id, started_at=datetime.now(UTC)
    )
    assert (await ask(client_of(charlie), session_id=his)).status == 404
    assert (await ask(client_of(bob), session_id=his)).status == 200


async def test_two_users_cannot_take_the_same_new_session(bob: Any, charlie: Any, client_of: Any) -> None:
    wanted = [str(uuid.uuid4()) for _ in range(5)]
    clients = client_of(bob), client_of(charlie)
    for session_id in wanted:
        calls = await asyncio.gather(*(ask(client, session_id=session_id) for client in clients))
        assert sorted(call.status for call in calls) == [200, 404]


# --- blocked -------------------------------------------------------------------------------------


@BOTH
async def test_a_blocked_user_reads_the_message_and_not_the_reason(
    path: str, bob: Any, client_of: Any, tree_of: Any, llm: Any
) -> None:
    await in_database(
        UserBlock.objects.create, user=bob, message="Please call the help desk.", reason="sold his password"
    )
    call = await ask(client_of(bob), path=path)
    assert (call.status, call.json["code"]) == (403, "user_blocked")
    assert call.json["detail"] == call.json["message"] == "Please call the help desk."
    assert "password" not in call.content.decode()
    tree = await tree_of(bob, call.json["turn_id"])
    assert tree.names == ["auth_check", "block_check", "flow_end"]
    tree.assert_complete("refused")
    assert tree.facts("auth_check")["status"] == "passed"
    facts = tree.facts("block_check")
    assert facts.pop("duration_ms") > 0
    assert facts == {
        "status": "failed",
        "code": "user_blocked",
        "message": "Please call the help desk.",
        "reason": "sold his password",
    }
    await nothing_happened(llm)
    await in_database(UserBlock.objects.all().delete)
    assert (await ask(client_of(bob), path=path)).status == 200


async def test_a_block_without_a_message_says_something_plain(bob: Any, client_of: Any) -> None:
    await in_database(UserBlock.objects.create, user=bob)
    assert (await ask(client_of(bob))).json["message"] == checks.BLOCKED_WORDS


# --- limits --------------------------------------------------------------------------------------


async def use(user: Any, **numbers: Any) -> None:
    def write() -> None:
        DailyUsage.objects.create(user=user, day=datetime.now(UTC).date(), **numbers)

    await in_database(write)


@BOTH
async def test_over_the_limit_of_requests_is_429_with_its_numbers(
    path: str, bob: Any, client_of: Any, tree_of: Any, llm: Any, limits: Any
) -> None:
    limits(requests_per_day=2)
    client = client_of(bob)
    assert [(await ask(client, path=path)).status for _ in range(2)] == [200, 200]
    llm.requests.clear()
    call = await ask(client, path=path)
    assert (call.status, call.json["code"]) == (429, "usage_limit")
    assert (call.json["used"], call.json["limit"], call.json["limit_name"]) == (2, 2, "requests_per_day")
    resets_at = datetime.fromisoformat(call.json["resets_at"])
    seconds = (resets_at - datetime.now(UTC)).total_seconds()
    assert (resets_at.hour, resets_at.minute) == (0, 0)
    assert abs(int(call.answer_headers["retry-after"]) - seconds) < 5
    assert llm.requests == []
    tree = await tree_of(bob, call.json["turn_id"])
    assert tree.names == ["auth_check", "block_check", "usage_check", "flow_end"]
    tree.assert_complete("refused")
    failed = tree.facts("usage_check")
    assert (failed["status"], failed["used"], failed["limit"]) == ("failed", 2, 2)
    assert failed["resets_at"] == call.json["resets_at"]
    assert await in_database(lambda: DailyUsage.objects.get(user=bob).requests) == 2
    assert await in_database(TurnUsage.objects.count) == 2


@pytest.mark.parametrize(
    ("limit", "used", "name"),
    [
        ({"tokens_per_day": 100}, {"input_tokens": 60, "output_tokens": 40}, "tokens_per_day"),
        ({"cost_usd_per_day": 0.5}, {"cost_usd": "0.50000001"}, "cost_usd_per_day"),
        ({"requests_per_day": 0}, {}, "requests_per_day"),
    ],
)
async def test_every_limit_of_the_day_refuses(
    limit: dict[str, Any], used: dict[str, Any], name: str, bob: Any, client_of: Any, limits: Any, llm: Any
) -> None:
    limits(**limit)
    await use(bob, **used)
    call = await ask(client_of(bob))
    assert (call.status, call.json["code"], call.json["limit_name"]) == (429, "usage_limit", name)
    assert llm.requests == []


async def test_ones_own_limits_go_before_the_default(
    bob: Any, charlie: Any, ada: Any, client_of: Any, limits: Any
) -> None:
    limits(requests_per_day=1)
    await in_database(UserLimits.objects.create, user=bob, requests_per_day=2)
    await in_database(UserLimits.objects.create, user=charlie, requests_unlimited=True)
    await in_database(UserLimits.objects.create, user=ada, tokens_per_day=10**9)
    statuses = {}
    for user in (bob, charlie, ada):
        client = client_of(user)
        statuses[user.name.split()[0]] = [(await ask(client)).status for _ in range(3)]
    assert statuses == {"Bob": [200, 200, 429], "Charlie": [200, 200, 200], "Ada": [200, 429, 429]}


async def test_no_limit_at_all_lets_everybody_in(bob: Any, client_of: Any, limits: Any, tree_of: Any) -> None:
    limits(requests_per_day=None, tokens_per_day=None, turns_at_once=None)
    call = await ask(client_of(bob))
    assert call.status == 200
    facts = (await tree_of(bob, call.turn_id)).facts("usage_check")
    assert (facts["used"], facts["limit"], facts["limits"]) == (1, None, {})


async def test_twenty_requests_at_once_against_a_limit_of_five(bob: Any, client_of: Any, limits: Any, llm: Any) -> None:
    limits(requests_per_day=5, turns_at_once=None)
    client = client_of(bob)
    calls = await asyncio.gather(*(ask(client) for _ in range(20)))
    assert sorted(call.status for call in calls) == [200] * 5 + [429] * 15
    assert len(llm.requests) == 5
    assert await in_database(lambda: DailyUsage.objects.get(user=bob).requests) == 5


async def test_too_many_turns_at_once_are_429_until_one_ends(
    bob: Any, client_of: Any, limits: Any, tree_of: Any, llm: Any
) -> None:
    limits(turns_at_once=3)
    client = client_of(bob)
    calls = [client.call("script:hang").start() for _ in range(12)]
    await asyncio.wait([call.task for call in calls if call.task], return_when=asyncio.FIRST_COMPLETED)
    await asyncio.to_thread(llm.wait_until, lambda: sum(call.status == 429 for call in calls) == 9)
    refused = next(call for call in calls if call.status == 429)
    assert refused.json["code"] == "too_many_turns"
    assert (refused.json["used"], refused.json["limit"]) == (3, 3)
    assert "retry-after" in refused.answer_headers
    assert (await tree_of(bob, refused.json["turn_id"])).facts("usage_check")["limit_name"] == "turns_at_once"
    running = [call for call in calls if call.status != 429]
    assert len(running) == 3
    running[0].leave()
    await running[0].over()
    assert (await ask(client)).status == 200
    for call in running[1:]:
        call.leave()
        await call.over()


async def test_a_slot_nobody_freed_does_not_count_for_ever(bob: Any, client_of: Any, limits: Any) -> None:
    from datetime import timedelta

    from chat.usage import SLOT_LIFETIME_S

    limits(turns_at_once=1)
    client = client_of(bob)
    await ask(client)

    def age(seconds: float) -> None:
        started = datetime.now(UTC) - timedelta(seconds=seconds)
        TurnUsage.objects.update(ended_at=None, started_at=started)

    await in_database(age, SLOT_LIFETIME_S - 60)
    assert (await ask(client)).json["code"] == "too_many_turns"
    await in_database(age, SLOT_LIFETIME_S + 60)
    assert (await ask(client)).status == 200


async def test_a_day_begins_at_midnight_of_the_configured_zone(
    bob: Any, client_of: Any, settings: Any, limits: Any
) -> None:
    limits(requests_per_day=0)
    ends = set()
    for zone in ("Pacific/Kiritimati", "UTC", "America/New_York"):
        settings.USAGE_TZ = zone
        from zoneinfo import ZoneInfo

        resets_at = datetime.fromisoformat((await ask(client_of(bob))).json["resets_at"]).astimezone(ZoneInfo(zone))
        assert (resets_at.hour, resets_at.minute, resets_at.second) == (0, 0, 0)
        ends.add(resets_at)
    assert len(ends) == 3


# --- the model, the database, floods ---------------------------------------------------------------


@BOTH
async def test_without_a_model_it_is_503_and_no_quota_is_used(
    path: str, bob: Any, client_of: Any, settings: Any, tree_of: Any, llm: Any
) -> None:
    settings.LLM_BASE_URL = ""
    settings.LLM_MODEL = "local"
    settings.LOCAL_MODEL_URL = ""
    call = await ask(client_of(bob), path=path)
    assert (call.status, call.json["code"]) == (503, "llm_unavailable")
    assert int(call.answer_headers["retry-after"]) > 0
    tree = await tree_of(bob, call.json["turn_id"])
    assert tree.names == ["auth_check", "block_check", "usage_check", "error", "flow_end"]
    tree.assert_complete("refused")
    assert tree.facts("usage_check")["status"] == "passed"
    assert tree.parent_of(tree.one("error")) == "usage_check"
    await nothing_happened(llm)


@pytest.mark.parametrize(
    "name", ["nonsense", "nonsense:model", "openai:gpt-5.2", "anthropic:claude-sonnet-5", "openai:"]
)
async def test_a_model_that_cannot_be_set_up_is_503(
    name: str, bob: Any, client_of: Any, settings: Any, monkeypatch: Any
) -> None:
    for variable in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    settings.LLM_BASE_URL = settings.LLM_API_KEY = ""
    settings.LLM_MODEL = name
    call = await ask(client_of(bob))
    assert (call.status, call.json["code"]) == (503, "llm_unavailable")
    assert name.partition(":")[0] not in call.json["detail"]


async def test_after_three_failed_connections_it_does_not_even_try(
    bob: Any, client_of: Any, settings: Any, tree_of: Any, monkeypatch: Any
) -> None:
    from chat.llm import Breaker

    settings.LLM_BASE_URL = "http://127.0.0.1:9/v1"  # the discard port: nobody listens there
    client = client_of(bob)
    for _ in range(3):
        call = await ask(client)
        assert call.status == 200
        assert call.last.name == "error"
        assert call.last.data["code"] == "llm_unavailable"
        (await tree_of(bob, call.turn_id)).assert_complete("failed")
    call = await ask(client)
    assert (call.status, call.json["code"]) == (503, "llm_unavailable")
    assert 0 < int(call.answer_headers["retry-after"]) <= Breaker.OPEN_S
    monkeypatch.setattr(Breaker, "seconds_left", lambda self: 0.0)  # the ten seconds are over
    assert (await ask(client)).status == 200


@BOTH
async def test_without_postgres_it_is_503(path: str, bob: Any, client_of: Any, llm: Any, monkeypatch: Any) -> None:
    from django.db import OperationalError
    from django.db.backends.postgresql.base import DatabaseWrapper

    client = client_of(bob)

    def refuse(self: Any) -> None:
        raise OperationalError("connection refused")

    with monkeypatch.context() as patch:
        patch.setattr(DatabaseWrapper, "ensure_connection", refuse)
        call = await ask(client, path=path)
    assert (call.status, call.json["code"]) == (503, "database_unavailable")
    assert int(call.answer_headers["retry-after"]) > 0
    assert "turn_id" not in call.json
    assert llm.requests == []


async def test_a_flood_of_refusals_is_answered_and_not_written_down(
    bob: Any, charlie: Any, client_of: Any, tree_of: Any, limits: Any
) -> None:
    limits(requests_per_day=0)
    client = client_of(bob)
    calls = [await ask(client) for _ in range(33)]
    assert [call.json["code"] for call in calls[:30]] == ["usage_limit"] * 30
    for call in calls[30:]:
        assert (call.status, call.json["code"]) == (429, "too_many_refusals")
        assert "turn_id" not in call.json
        assert 0 < int(call.answer_headers["retry-after"]) <= 61
    assert endpoint.refusals.not_recorded == 3
    assert (await ask(client_of(charlie))).json["code"] == "usage_limit"
    limits()
    assert (await ask(client)).status == 200
