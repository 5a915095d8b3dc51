"""What a turn asks of PostgreSQL, counted on the wire: every round trip, whoever causes it."""

import itertools
import json
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.contrib.sessions.models import Session
from django.db.models.functions import Now

from chat.limits import LIMITS
from chat.models import GroupLimits, UserBlock, UserLimits
from chat.tests.conftest import Client
from chat.usage import admit
from omni2.accounts import credentials
from omni2.accounts.authenticate import authenticate_scope
from omni2.accounts.models import ApiToken
from omni2.accounts.sessions import SessionStore
from omni2.database import in_database
from omni2.postgres.base import DatabaseWrapper

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("chatting")]

Counting = Callable[[], AbstractContextManager[list[str]]]


@pytest.fixture
def round_trips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counting:
    """`with round_trips() as asked`: what was sent to PostgreSQL, once it is over; libpq writes down each message."""
    numbers = itertools.count()
    real = DatabaseWrapper.get_new_connection

    @contextmanager
    def counting() -> Iterator[list[str]]:
        asked: list[str] = []
        traces = []

        def traced(self: DatabaseWrapper, conn_params: dict[str, Any]) -> Any:
            connection = real(self, conn_params)
            trace = (tmp_path / f"{next(numbers)}.trace").open("w+b")
            traces.append((trace, connection))
            connection.pgconn.trace(trace.fileno())
            return connection

        with monkeypatch.context() as patch:
            patch.setattr(DatabaseWrapper, "get_new_connection", traced)
            yield asked
        for trace, connection in traces:
            connection.pgconn.untrace()
            trace.seek(0)
            for message in re.split(r"^(?=\d{4}-\d\d-\d\d \d\d:)", trace.read().decode(errors="replace"), flags=re.M):
                # when, F for what we sent, how long, of what kind, and what it says
                _, sent_by, _, kind, text = [*message.split("\t", 4), "", "", "", "", ""][:5]
                if sent_by == "F" and kind in ("Query", "Sync"):
                    asked.append(" ".join(text.split()))
            trace.close()

    return counting


def words(asked: list[str]) -> list[str]:
    """The first words of each, which tell our statements apart."""
    known = {"pg_advisory_xact_lock": "admits", "WITH before": "charges", "api_tokens": "whose token"}
    known |= {"django_session": "session", 'FROM "users"': "user", 'UPDATE "api_tokens"': "notes"}
    return [next((word for text, word in known.items() if text in each), each) for each in asked]


async def test_a_token_costs_one_and_so_does_its_continued_session(
    bob: Any, client_of: Any, round_trips: Counting
) -> None:
    client = client_of(bob)
    with round_trips() as asked:
        first = await client.stream("Hello")
    assert words(asked) == ["admits", "charges"]
    assert (await in_database(bob.tokens.get)).last_used_at is not None
    with round_trips() as asked:
        again = await client.stream("script:memory", session_id=first.last.data["session_id"])
    assert again.text.startswith("4 messages, the first: Hello"), "memory came along"
    assert words(asked) == ["admits", "charges"]


async def test_a_round_with_tools_is_charged_when_it_ends(bob: Any, client_of: Any, round_trips: Counting) -> None:
    client = client_of(bob)
    with round_trips() as asked:
        await client.stream("How much is 3 * 4 ?")
    assert words(asked) == ["admits", "charges", "charges"]


async def test_a_browser_costs_one_once_it_is_known(bob: Any, browser_of: Any, round_trips: Counting) -> None:
    cookies, token = await in_database(browser_of, bob)
    headers = [*cookies, (b"x-csrftoken", token)]
    with round_trips() as asked:
        assert (await Client().stream("Hello", headers=headers)).status == 200
    assert words(asked) == ["session", "user", "admits", "charges"]
    with round_trips() as asked:
        assert (await Client().stream("Hello", headers=headers)).status == 200
    assert words(asked) == ["admits", "charges"]


async def test_who_is_refused_costs_no_more(
    bob: Any, charlie: Any, client_of: Any, limits: Any, round_trips: Counting
) -> None:
    client = client_of(bob)
    expired = Client(await in_database(lambda: ApiToken.objects.issue(bob, days=-1)[1]))
    his = (await client_of(charlie).stream("Hello")).last.data["session_id"]

    async def refused(call: Any) -> tuple[int, list[str]]:
        with round_trips() as asked:
            answer = await call
        return answer.status, words(asked)

    assert await refused(Client("omni2_nobody-knows-this-one").stream("Hello")) == (401, ["admits"])
    assert await refused(Client("never a token").stream("Hello")) == (401, [])
    assert await refused(expired.stream("Hello", session_id=his)) == (401, ["admits"])
    assert await refused(client.stream("Hello", session_id=his)) == (404, ["admits"])
    assert await refused(client.stream(body=b"[]")) == (400, ["whose token"])
    limits(requests_per_day=0)
    assert await refused(client.stream("Hello")) == (429, ["admits"])
    await in_database(UserBlock.objects.create, user=bob)
    assert await refused(client.stream("Hello")) == (403, ["admits"])


async def test_all_limits_together_cost_no_further_trip(
    bob: Any, client_of: Any, limits: Any, round_trips: Counting
) -> None:
    def in_a_group_with_limits() -> None:
        group = Group.objects.create(name="Research")
        bob.groups.add(group)
        GroupLimits.objects.create(group=group, **dict.fromkeys(LIMITS, 100))
        UserLimits.objects.create(user=bob, requests_per_minute=1, tokens_per_month=10**6)

    limits(**dict.fromkeys(LIMITS, 10**6))
    await in_database(in_a_group_with_limits)
    client = client_of(bob)
    with round_trips() as asked:
        assert (await client.stream("Hello")).last.data["limits"][0]["limit_name"] == "requests_per_minute"
        assert (await client.stream("Hello")).status == 429
    assert words(asked) == ["admits", "charges", "admits"]


# --- what a process remembers of browsers is never believed ---------------------------------------


async def signed_out(bob: Any, key: str) -> None:
    await in_database(Session.objects.filter(session_key=key).delete)


async def ran_out(bob: Any, key: str) -> None:
    await in_database(lambda: Session.objects.filter(session_key=key).update(expire_date=Now()))


async def became_anothers(bob: Any, key: str) -> None:
    await in_database(lambda: Session.objects.filter(session_key=key).update(session_data="e30:forged"))


async def changed_his_password(bob: Any, key: str) -> None:
    await in_database(bob.change_password, "another battery staple")


@pytest.mark.parametrize("happens", [signed_out, ran_out, became_anothers, changed_his_password])
async def test_a_session_that_ended_lets_nobody_in(
    bob: Any, browser_of: Any, llm: Any, happens: Callable[[Any, str], Any]
) -> None:
    cookies, token = await in_database(browser_of, bob)
    headers = [*cookies, (b"x-csrftoken", token)]
    assert (await Client().stream("Hello", headers=headers)).status == 200
    session = await in_database(Session.objects.get)
    await happens(bob, session.session_key)
    call = await Client().stream("Hello", headers=headers)
    assert (call.status, call.json["code"]) == (401, "not_authenticated")
    assert len(llm.requests) == 1


async def test_a_session_that_goes_on_with_other_data_is_looked_at_again(bob: Any, browser_of: Any) -> None:
    cookies, token = await in_database(browser_of, bob)
    headers = [*cookies, (b"x-csrftoken", token)]
    assert (await Client().stream("Hello", headers=headers)).status == 200
    session = await in_database(Session.objects.get)

    def write() -> None:
        store = SessionStore(session.session_key)
        store["seen"] = "the news"
        store.save()

    await in_database(write)
    assert (await Client().stream("Hello", headers=headers)).status == 200


async def test_a_deactivated_person_is_named(bob: Any, browser_of: Any, tree_of: Any) -> None:
    cookies, token = await in_database(browser_of, bob)
    headers = [*cookies, (b"x-csrftoken", token)]
    assert (await Client().stream("Hello", headers=headers)).status == 200
    bob.is_active = False
    await in_database(lambda: bob.save(update_fields=["is_active"]))
    call = await Client().stream("Hello", headers=headers)
    assert (call.status, call.json["code"]) == (403, "inactive")
    assert (await tree_of(bob, call.json["turn_id"])).facts("auth_check")["method"] == "session"


def test_it_remembers_the_browsers_that_came_last(bob: Any, browser_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "REMEMBERED", 2)
    fresh = credentials.Browsers()
    for _ in range(4):
        fresh.find({"headers": browser_of(bob)[0]})
    assert len(fresh._known) == 2


@pytest.mark.parametrize("state", ["usable", "expired", "revoked", "inactive", "revoked and inactive"])
def test_both_ways_to_read_a_token_agree(bob: Any, charlie: Any, limits: Any, state: str) -> None:
    """The query of DRF and the sockets, and the admitting statement."""
    text = ApiToken.objects.issue(bob, days=-1 if state == "expired" else 1)[1]
    if "revoked" in state:
        bob.tokens.revoke()
    if "inactive" in state:
        bob.is_active = False
        bob.save()
    scope = {"headers": [(b"authorization", f"Bearer {text}".encode())]}
    said = admit_once(credentials.token_of(scope))
    known = authenticate_scope(scope)
    assert (said.identity, said.verdict is None) == (known, known.problem is not None)


def admit_once(credential: Any) -> Any:
    return admit(
        credential,
        session_id=str(uuid.uuid4()),
        continued=False,
        turn_id=str(uuid.uuid4()),
        process_id=str(uuid.uuid4()),
        message="Hello",
        reserve=True,
    )


async def test_a_client_of_openais_api_costs_the_same(bob: Any, client_of: Any, round_trips: Counting) -> None:
    client, path = client_of(bob), "/v1/chat/completions"
    said = [{"role": "user", "content": "Hello"}]
    body = json.dumps({"model": "scripted-model", "messages": said, "metadata": {"session_id": str(uuid.uuid4())}})
    for _ in range(2):
        with round_trips() as asked:
            call = await client.call(path=path, body=body.encode()).start().over()
        assert call.status == 200
        assert words(asked) == ["admits", "charges"]
