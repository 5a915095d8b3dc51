"""The history API: shapes, rights, paging, and the note that somebody looked."""

import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from django.test import Client

from flows.tests.rows import StoredTurn, bare_row
from omni2.accounts.models import AccessLog, User

pytestmark = pytest.mark.django_db

BOBS = "/api/v1/flows/user/bob@example.com"
ONE = uuid.UUID("7d444840-9dc0-4c24-9f2e-9d3b2a0c1e55")
NO_UUID = ["x", "0", "not-a-uuid", "%00", "{0b9a}", "a" * 300, ONE.hex, f"{ONE}/"]


class As:
    """Somebody who asks with his token."""

    def __init__(self, token: str | None) -> None:
        self.client = Client(headers={"Authorization": f"Bearer {token}"} if token else {})

    def get(self, url: str, **query: Any) -> Any:
        return self.client.get(url, query)


@pytest.fixture
def as_bob(bob: User, token_of: Callable[[User], str]) -> As:
    return As(token_of(bob))


@pytest.fixture
def as_charlie(charlie: User, token_of: Callable[[User], str]) -> As:
    return As(token_of(charlie))


@pytest.fixture
def as_august(august: User, token_of: Callable[[User], str]) -> As:
    return As(token_of(august))


def blocked_turn(user_id: str = "bob@example.com") -> StoredTurn:
    turn = StoredTurn(user_id)
    turn.add("block_check", turn.root, status="failed", message="Ask the help desk.", reason="case 4711")
    return turn.end("refused")


# --- shapes -------------------------------------------------------------------------------------


def test_it_gives_a_users_flows_newest_first_page_by_page(as_bob: As) -> None:
    turn = StoredTurn("bob@example.com").with_tool("clock").end()
    first = as_bob.get(BOBS, limit=4).json()
    assert set(first) == {"user_id", "flows", "next"}
    assert first["user_id"] == "bob@example.com"
    second = as_bob.get(BOBS, limit=4, cursor=first["next"]).json()
    assert second["next"] is None
    names = [flow["checkpoint"] for flow in first["flows"] + second["flows"]]
    assert names == ["flow_end", "llm_complete", "tool_result", "tool_call", "llm_thinking", "auth_check"]
    assert {flow["turn_id"] for flow in first["flows"]} == {turn.turn_id}


def test_it_gives_a_session_as_rows_and_as_a_tree(as_bob: As) -> None:
    turn = StoredTurn("bob@example.com").with_tool("clock").end()
    answer = as_bob.get(f"/api/v1/flows/session/{turn.session_id.upper()}").json()
    assert set(answer) == {"session_id", "user_id", "turns", "flows", "tree"}
    assert answer["session_id"] == turn.session_id
    assert [each["turn_id"] for each in answer["turns"]] == [turn.turn_id]
    (root,) = answer["tree"]
    assert {key: value for key, value in root.items() if key != "children"} == answer["flows"][0]
    thinking, end = root["children"]
    assert end["checkpoint"] == "flow_end"
    assert [child["checkpoint"] for child in thinking["children"]] == ["tool_call", "llm_complete"]
    assert [child["checkpoint"] for child in thinking["children"][0]["children"]] == ["tool_result"]


def test_it_writes_a_tree_deeper_than_the_recursion_limit(as_bob: As) -> None:
    session_id, parent = str(uuid.uuid4()), None
    for _ in range(1500):
        parent = bare_row("bob@example.com", session_id=session_id, parent=parent)
    body = as_bob.get(f"/api/v1/flows/session/{session_id}").content.decode()
    assert body.count('"children":[{') == 1499
    assert body.endswith("]}" * 1500 + "]}")


def test_it_gives_turns_with_their_cursor(as_bob: As) -> None:
    made = [StoredTurn("bob@example.com").end().turn_id for _ in range(3)]
    first = as_bob.get("/api/v1/turns", limit=2).json()
    assert set(first) == {"turns", "next"}
    second = as_bob.get("/api/v1/turns", limit=2, cursor=first["next"]).json()
    assert [turn["turn_id"] for turn in first["turns"] + second["turns"]] == made[::-1]
    assert second["next"] is None


def test_it_takes_the_address_in_any_case_and_with_a_slash(
    as_august: As, bob: User, django_user_model: type[User]
) -> None:
    django_user_model.objects.create_user("a/b+c@example.com")
    assert as_august.get("/api/v1/flows/user/BOB@Example.COM").json()["user_id"] == "bob@example.com"
    assert as_august.get(f"/api/v1/flows/user/{quote('a/b+c@example.com', safe='')}").status_code == 200
    assert as_august.get("/api/v1/turns", user_id="BOB@example.com").status_code == 200


def test_it_takes_empty_filters_for_none(as_bob: As) -> None:
    StoredTurn("bob@example.com").end()
    answer = as_bob.get(BOBS + "?cursor=&since=&until=&checkpoint=&outcome=")
    assert len(answer.json()["flows"]) == 2


# --- rights -------------------------------------------------------------------------------------


def test_it_tells_nobody_anything_without_signing_in() -> None:
    for url in (BOBS, f"/api/v1/flows/session/{uuid.uuid4()}", "/api/v1/turns"):
        answer = As(None).get(url)
        assert answer.status_code == 401
        assert answer.json()["code"] == "not_authenticated"


@pytest.mark.parametrize("user_id", ["bob@example.com", "nobody@example.com"])
def test_it_refuses_charlie_the_flows_of_another_whether_or_not_he_exists(
    as_charlie: As, bob: User, user_id: str
) -> None:
    blocked_turn()
    answers = [as_charlie.get(f"/api/v1/flows/user/{user_id}"), as_charlie.get("/api/v1/turns", user_id=user_id)]
    assert [answer.status_code for answer in answers] == [403, 403]
    assert {answer.json()["code"] for answer in answers} == {"permission_denied"}


def test_it_hides_another_users_session_from_charlie(as_charlie: As, bob: User) -> None:
    turn = blocked_turn()
    foreign = as_charlie.get(f"/api/v1/flows/session/{turn.session_id}", user_id="bob@example.com")
    unknown = as_charlie.get(f"/api/v1/flows/session/{uuid.uuid4()}")
    assert foreign.status_code == unknown.status_code == 404
    assert foreign.json() == unknown.json() == {"detail": "There is no such session.", "code": "not_found"}


def test_it_shows_charlie_only_his_own_turns(as_charlie: As, bob: User) -> None:
    blocked_turn()
    own = StoredTurn("charlie@example.com").end()
    for query in ({}, {"user_id": "charlie@example.com"}, {"q": ""}):
        turns = as_charlie.get("/api/v1/turns", **query).json()["turns"]
        assert [turn["turn_id"] for turn in turns] == [own.turn_id]


def test_it_keeps_the_internal_reason_from_the_user_it_is_about(as_bob: As, as_august: As) -> None:
    turn = blocked_turn()
    for url in (BOBS, f"/api/v1/flows/session/{turn.session_id}"):
        assert "case 4711" not in as_bob.get(url).content.decode()
        assert "Ask the help desk." in as_bob.get(url).content.decode()
        assert "case 4711" in as_august.get(url).content.decode()


def test_it_finds_no_user_for_those_who_may_see_all(as_august: As) -> None:
    answer = as_august.get("/api/v1/flows/user/nobody@example.com")
    assert answer.status_code == 404
    assert answer.json() == {"detail": "There is no such user.", "code": "not_found"}


def test_it_shows_a_user_without_an_account_whose_rows_came_from_outside(as_august: As) -> None:
    bare_row("legacy@example.com")
    assert len(as_august.get("/api/v1/flows/user/legacy@example.com").json()["flows"]) == 1
    assert as_august.get("/api/v1/flows/user/legacy@example.com", checkpoint="other").json()["flows"] == []


def test_it_takes_the_browser_session_as_well(client: Client, bob: User) -> None:
    client.force_login(bob)
    assert client.get(BOBS).status_code == 200


# --- the watchers are watched -------------------------------------------------------------------


def test_it_notes_whose_history_was_opened_by_whom_and_how(as_august: As, bob: User) -> None:
    turn = blocked_turn()
    as_august.get(BOBS, checkpoint="block_check", since="2026-11-22", limit=1)
    as_august.get(f"/api/v1/flows/session/{turn.session_id}")
    as_august.get("/api/v1/turns", user_id="bob@example.com", q="why")
    as_august.get("/api/v1/turns")
    lines = list(AccessLog.objects.order_by("id").values_list("actor", "action", "subject_user_id", "detail"))
    assert lines == [
        ("august@example.com", "history_opened", subject, detail)
        for subject, detail in [
            (
                "bob@example.com",
                {"opened": "user", "checkpoint": "block_check", "since": "2026-11-22T00:00:00.000000Z"},
            ),
            ("bob@example.com", {"opened": "session", "session_id": turn.session_id}),
            ("bob@example.com", {"opened": "turns", "user_id": "bob@example.com", "q": "why"}),
            (None, {"opened": "turns"}),
        ]
    ]


def test_it_notes_nothing_when_one_reads_his_own_or_nothing_was_shown(as_august: As, as_charlie: As) -> None:
    StoredTurn("august@example.com").end()
    as_august.get("/api/v1/flows/user/august@example.com")
    as_august.get("/api/v1/turns", user_id="august@example.com")
    as_august.get("/api/v1/flows/user/nobody@example.com")
    as_august.get(f"/api/v1/flows/session/{uuid.uuid4()}")
    as_charlie.get(BOBS)
    as_august.get(BOBS, limit="x")
    assert not AccessLog.objects.exists()


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("url", [BOBS, "/api/v1/turns"])
@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("limit", ["0", "501", "-1", "1.0", "1e2", "x", "", " 5", "٥", "1_0", "9" * 5000, "NaN", "true", "\x00"]),
        ("cursor", ["x", "\x00", "é", "A" * 56, "A" * 5000, "null", "../..", "\ufffd"]),
        ("since", ["yesterday", "\x00", "2026-13-01", "2026-11-22T25:00", "0001-01-01T00:00+14:00", "0", "9" * 99]),
        ("until", ["now", "9999-12-31T23:59:59-10:00", "2026-11-22T06:00:00 00:00", "NaN"]),
        ("outcome", ["done", "COMPLETED", "\x00", "x" * 5000]),
    ],
)
def test_it_names_the_field_that_is_wrong(as_bob: As, url: str, field: str, values: list[str]) -> None:
    for value in values:
        answer = as_bob.get(url, **{field: value})
        assert answer.status_code == 400, (field, value)
        assert list(answer.json()) == [field]


@pytest.mark.parametrize(
    ("url", "field", "value"),
    [
        (BOBS, "checkpoint", "x" * 51),
        (BOBS, "checkpoint", "a\x00"),
        (BOBS, "outcome", "running"),
        ("/api/v1/turns", "session_id", "x"),
        ("/api/v1/turns", "user_id", "a\x00"),
        ("/api/v1/turns", "user_id", "a" * 256),
        ("/api/v1/turns", "tool", "a\x00"),
        ("/api/v1/turns", "model", "x" * 201),
        ("/api/v1/turns", "q", "\x00"),
        ("/api/v1/turns", "q", "x" * 201),
    ],
)
def test_it_names_the_filter_that_is_wrong(as_bob: As, url: str, field: str, value: str) -> None:
    answer = as_bob.get(url, **{field: value})
    assert answer.status_code == 400
    assert list(answer.json()) == [field]


def test_it_refuses_a_cursor_of_other_filters_or_of_another_list(as_august: As, bob: User) -> None:
    for _ in range(3):
        StoredTurn("bob@example.com").end()
    flows = as_august.get(BOBS, limit=1).json()["next"]
    turns = as_august.get("/api/v1/turns", limit=1).json()["next"]
    for url, query in [
        (BOBS, {"cursor": flows, "checkpoint": "auth_check"}),
        (BOBS, {"cursor": turns}),
        ("/api/v1/flows/user/august@example.com", {"cursor": flows}),
        ("/api/v1/turns", {"cursor": turns, "user_id": "bob@example.com"}),
    ]:
        answer = as_august.get(url, **query)
        assert answer.status_code == 400
        assert list(answer.json()) == ["cursor"]
    assert as_august.get(BOBS, cursor=flows, limit=500).status_code == 200


@pytest.mark.parametrize("session_id", NO_UUID)
def test_it_says_that_a_session_id_is_malformed(as_bob: As, session_id: str) -> None:
    answer = as_bob.get(f"/api/v1/flows/session/{session_id}")
    assert answer.status_code == 400
    assert list(answer.json()) == ["session_id"]


@pytest.mark.parametrize("user_id", ["%00", "a%00@example.com", "x" * 300, "%20"])
def test_it_says_that_a_user_id_is_malformed(as_bob: As, as_august: As, user_id: str) -> None:
    for who in (as_bob, as_august):
        answer = who.get(f"/api/v1/flows/user/{user_id}")
        assert answer.status_code == 400
        assert list(answer.json()) == ["user_id"]


@pytest.mark.parametrize("user_id", ["%ED%A0%80@example.com", "not-an-address", "..", "%0A", "'; DROP TABLE users; --"])
def test_it_knows_no_user_of_a_strange_name(as_august: As, user_id: str) -> None:
    answer = as_august.get(f"/api/v1/flows/user/{user_id}")
    assert answer.status_code in {400, 404}
    assert set(answer.json()) <= {"detail", "code", "user_id"}


@pytest.mark.parametrize("method", ["post", "put", "patch", "delete"])
def test_it_only_reads(as_bob: As, method: str) -> None:
    for url in (BOBS, f"/api/v1/flows/session/{uuid.uuid4()}", "/api/v1/turns"):
        answer = getattr(as_bob.client, method)(url)
        assert answer.status_code == 405
        assert answer.json()["code"] == "method_not_allowed"
