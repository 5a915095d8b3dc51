"""Stopping turns that run, over two web processes: whoever asks, through whichever process, with Redis and without."""

import json
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.llm_server import LlmServer
from tests.running import Running, eventually, running

WAIT_S = 30


@pytest.fixture(scope="module")
def model() -> Iterator[LlmServer]:
    with LlmServer() as server:
        yield server


@pytest.fixture(scope="module", params=["with Redis", "without Redis"])
def omni2(request: Any, model: LlmServer) -> Iterator[Running]:
    redis = {} if request.param == "with Redis" else {"REDIS_ENABLED": "false"}
    with running(llm_base_url=model.url, web=2, LLM_API_KEY="scripted", **redis) as omni2:
        omni2.create_user("olga@example.com", "Olga Ladyzhenskaya", "operators")
        omni2.create_user("ada@example.com", "Ada Lovelace", is_superuser=True, is_staff=True)
        yield omni2


class Asking:
    """A question that is being asked through the first process, as a stream of events or whole."""

    def __init__(self, omni2: Running, token: str, message: str, *, stream: bool = True) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.status = 0
        self.answer: dict[str, Any] = {}
        self._omni2, self._token, self._message, self._stream = omni2, token, message, stream
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        headers = {"Authorization": f"Bearer {self._token}"}
        address = self._omni2.urls[0] + "/api/v1/ask" + ("/stream" if self._stream else "")
        try:
            self._listen(address, headers)
        except httpx2.TransportError:
            self.events.append(("broken", {}))

    def _listen(self, address: str, headers: dict[str, str]) -> None:
        with httpx2.stream("POST", address, json={"message": self._message}, headers=headers, timeout=90) as answer:
            self.status = answer.status_code
            if not self._stream or self.status != 200:
                self.answer = json.loads(answer.read())
                return
            name = ""
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    self.events.append((name, json.loads(line.removeprefix("data: "))))

    @property
    def text(self) -> str:
        return "".join(data["text"] for name, data in self.events if name == "token")

    @property
    def turn_id(self) -> str:
        return str(eventually(lambda: self.events, "the turn began")[0][1]["turn_id"])

    def over(self) -> "Asking":
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), "the answer did not end"
        return self


def new_user(omni2: Running) -> tuple[str, str]:
    """(user_id, token)"""
    user_id = f"{uuid.uuid4().hex[:8]}@example.com"
    return user_id, omni2.create_token(user_id)


def post(omni2: Running, path: str, token: str, body: Any = None, *, process: int = 1, method: str = "POST") -> Any:
    headers = {"Authorization": f"Bearer {token}"}
    return httpx2.request(method, omni2.urls[process] + path, json=body, headers=headers, timeout=30)


def rows_of(omni2: Running, turn_id: str) -> list[tuple[str, str, str, dict[str, Any]]]:
    """(checkpoint, flow_id, parent_id, metadata) of a turn that has ended and is stored."""
    eventually(lambda: omni2.sql("SELECT 1 FROM turns WHERE turn_id = %s AND outcome IS NOT NULL", turn_id), "its end")
    return [
        (name, str(flow_id), str(parent), metadata)
        for name, flow_id, parent, metadata in omni2.sql(
            "SELECT checkpoint, flow_id, parent_id, metadata FROM interaction_flows WHERE turn_id = %s"
            " ORDER BY created_at, flow_id",
            turn_id,
        )
    ]


def assert_stopped(omni2: Running, asking: Asking, *, message: str, by: str = "", reason: str = "") -> None:
    """Its client heard it, the tree says it, the slot is free and its usage is charged once."""
    asking.over()
    turn_id = asking.turn_id
    assert asking.events[-1] == ("error", {"code": "stopped", "message": message, "turn_id": turn_id})
    rows = rows_of(omni2, turn_id)
    names = [name for name, *_ in rows]
    assert names[-2:] == ["error", "flow_end"]
    assert names.count("flow_end") == 1
    error, end = rows[-2][3], rows[-1][3]
    assert (error["code"], error["message"]) == ("stopped", message)
    assert end["outcome"] == "stopped"
    assert (error.get("stopped_by", ""), error.get("reason", "")) == (by, reason)
    assert end.get("stopped_by", "") == by
    for start, closing in (("llm_thinking", "llm_complete"), ("tool_call", "tool_result")):
        opened = {flow_id for name, flow_id, *_ in rows if name == start}
        assert opened == {parent for name, _, parent, _ in rows if name == closing}
    assert rows[-2][2] in {flow_id for name, flow_id, *_ in rows if name in ("llm_thinking", "usage_check")}
    ((ended,),) = omni2.sql("SELECT ended_at IS NOT NULL FROM turn_usage WHERE turn_id = %s", turn_id)
    assert ended
    ((requests, tokens, counted),) = omni2.sql(
        "SELECT d.requests, u.input_tokens + u.output_tokens, d.input_tokens + d.output_tokens"
        " FROM turn_usage u JOIN daily_usage d USING (user_id, day) WHERE turn_id = %s",
        turn_id,
    )
    assert (requests, tokens) == (1, counted)


def let_go(model: LlmServer, question: str) -> None:
    """The model server saw its client close the connection."""
    model.wait_until(lambda: [seen for seen in model.aborted if seen.question == question], seconds=WAIT_S)


@pytest.mark.parametrize("script", ["hang", "hang_in_middle", "slow"])
def test_a_user_stops_his_own_turn_through_another_process(omni2: Running, model: LlmServer, script: str) -> None:
    user_id, token = new_user(omni2)
    question = f"script:{script} {uuid.uuid4()}"
    asking = Asking(omni2, token, question)
    eventually(lambda: any(seen.question == question for seen in model.requests), "the model was asked")
    if script != "hang":
        eventually(lambda: asking.text, "it began to speak")
    answer = post(omni2, f"/api/v1/turns/{asking.turn_id}/stop", token)
    assert (answer.status_code, answer.json()) == (202, {"turn_id": asking.turn_id, "status": "stopping"})
    let_go(model, question)
    assert_stopped(omni2, asking, message="You stopped this answer.", by=user_id)
    kept = omni2.sql("SELECT content FROM messages WHERE role = 'assistant' AND turn_id = %s", asking.turn_id)
    assert kept == ([(asking.text,)] if asking.text else [])
    assert not omni2.sql("SELECT 1 FROM access_log WHERE subject_user_id = %s AND action = 'turn_stopped'", user_id)
    ((complete,),) = omni2.sql(
        "SELECT metadata FROM interaction_flows WHERE turn_id = %s AND checkpoint = 'llm_complete'", asking.turn_id
    )
    assert complete["status"] == "cancelled"


def test_an_operator_stops_it_and_that_is_written_down(omni2: Running, model: LlmServer) -> None:
    user_id, token = new_user(omni2)
    olga = omni2.create_token("olga@example.com")
    question = f"script:hang_in_middle {uuid.uuid4()}"
    asking = Asking(omni2, token, question)
    eventually(lambda: asking.text, "it began to speak")
    path = f"/api/v1/turns/{asking.turn_id}/stop"
    told = {"reason": "asks for a customer's secrets", "message": "Please ask your team lead first."}
    assert post(omni2, path, olga, told).status_code == 202
    # asking again, while it ends or when it has ended
    assert post(omni2, path, olga, {"reason": "another"}).status_code in (202, 409)
    let_go(model, question)
    assert_stopped(omni2, asking, message=told["message"], by="olga@example.com", reason=told["reason"])
    again = post(omni2, path, olga)
    assert (again.status_code, again.json()["code"]) == (409, "turn_ended")
    logged = omni2.sql(
        "SELECT actor, detail FROM access_log WHERE action = 'turn_stopped' AND subject_user_id = %s", user_id
    )
    assert logged == [("olga@example.com", {"turn_id": asking.turn_id, **told})]
    # who and why is for those who may read everybody's flows
    ((session_id,),) = omni2.sql("SELECT session_id FROM turn_usage WHERE turn_id = %s", asking.turn_id)
    for reader, sees in ((olga, True), (token, False)):
        flows = post(omni2, f"/api/v1/flows/session/{session_id}", reader, method="GET").json()["flows"]
        error, end = (each["metadata"] for each in flows[-2:])
        assert error["message"] == told["message"]
        assert ({"stopped_by", "stopped_by_name", "reason"} <= set(error)) is sees
        assert ({"stopped_by", "stopped_by_name"} <= set(end)) is sees
        assert not sees or end["stopped_by_name"] == "Olga Ladyzhenskaya"
        assert sees or "olga" not in json.dumps(flows).lower()


def test_a_whole_answer_is_a_conflict_when_it_is_stopped(omni2: Running) -> None:
    user_id, token = new_user(omni2)
    asking = Asking(omni2, token, "script:hang", stream=False)
    running_turn = "SELECT turn_id FROM turn_usage u JOIN users p ON p.id = u.user_id WHERE p.email = %s"
    turn_id = str(eventually(lambda: omni2.sql(running_turn, user_id), "it runs")[0][0])
    assert post(omni2, f"/api/v1/turns/{turn_id}/stop", token).status_code == 202
    asking.over()
    assert asking.status == 409
    assert (asking.answer["code"], asking.answer["turn_id"]) == ("stopped", turn_id)


def test_a_tool_that_runs_is_stopped_with_its_turn(omni2: Running) -> None:
    user_id, token = new_user(omni2)
    # the second round hangs, the first has used its tools and is charged
    asking = Asking(omni2, token, "script:parallel+hang")
    eventually(lambda: [name for name, _ in asking.events if name == "tool_result"], "its tools ran")
    assert post(omni2, f"/api/v1/turns/{asking.turn_id}/stop", token).status_code == 202
    assert_stopped(omni2, asking, message="You stopped this answer.", by=user_id)
    ((tokens,),) = omni2.sql("SELECT input_tokens + output_tokens FROM turn_usage WHERE turn_id = %s", asking.turn_id)
    assert tokens > 0


@pytest.mark.parametrize("door", ["api", "admin", "sql"])
def test_a_block_stops_what_runs_by_whatever_door_it_comes(omni2: Running, model: LlmServer, door: str) -> None:
    user_id, token = new_user(omni2)
    ada = omni2.create_token("ada@example.com")
    questions = [f"script:hang_in_middle {uuid.uuid4()}" for _ in range(3)]
    all_asking = [Asking(omni2, token, question) for question in questions]
    for asking in all_asking:
        eventually(lambda asking=asking: asking.text, "it began to speak")
    told = {"message": "Your access ends today.", "reason": "left the company"}
    if door == "api":
        blocked = post(omni2, f"/api/v1/users/{user_id}/block", ada, told)
        assert blocked.status_code == 201
        assert blocked.json().items() >= {"user_id": user_id, "blocked_by": "ada@example.com", **told}.items()
    elif door == "admin":
        block_in_the_admin(omni2, user_id, told)
    else:
        omni2.sql(
            "INSERT INTO user_blocks (user_id, message, reason, blocked_by_id) SELECT p.id, %s, %s, a.id"
            " FROM users p, users a WHERE p.email = %s AND a.email = 'ada@example.com'",
            told["message"],
            told["reason"],
            user_id,
        )
    for question in questions:
        let_go(model, question)
    for asking in all_asking:
        asking.over()
        assert asking.events[-1][1] == {"code": "stopped", "message": told["message"], "turn_id": asking.turn_id}
        error, end = (metadata for *_, metadata in rows_of(omni2, asking.turn_id)[-2:])
        assert (error["reason"], error["stopped_by"]) == (told["reason"], "ada@example.com")
        assert end["outcome"] == "stopped"
    refused = Asking(omni2, token, "Hello?").over()
    assert (refused.status, refused.answer["code"]) == (403, "user_blocked")
    if door == "api":
        assert post(omni2, f"/api/v1/users/{user_id}/block", ada, told).status_code == 409
        facts = {**blocked.json(), "blocked": True, "blocked_by_name": "Ada Lovelace"}
        assert post(omni2, f"/api/v1/users/{user_id}/block", ada, method="GET").json() == facts
        for was_blocked in (True, False):
            lifted = post(omni2, f"/api/v1/users/{user_id}/block", ada, method="DELETE")
            assert lifted.json() == {"user_id": user_id, "was_blocked": was_blocked}
        nothing = dict.fromkeys(facts) | {"user_id": user_id, "blocked": False}
        assert post(omni2, f"/api/v1/users/{user_id}/block", ada, method="GET").json() == nothing
        assert Asking(omni2, token, "Hello again?").over().events[-1][0] == "done"


def block_in_the_admin(omni2: Running, user_id: str, told: dict[str, str]) -> None:
    cookies = {**omni2.sign_in("ada@example.com"), "csrftoken": "a" * 32}
    ((pk,),) = omni2.sql("SELECT id FROM users WHERE email = %s", user_id)
    answer = httpx2.post(
        omni2.urls[1] + "/admin/chat/userblock/add/",
        data={"user": str(pk), **told, "csrfmiddlewaretoken": "a" * 32},
        cookies=cookies,
        headers={"Referer": omni2.urls[1]},
        timeout=30,
    )
    assert answer.status_code == 302, answer.text[:500]


def test_an_account_that_is_deactivated_stops_what_runs(omni2: Running, model: LlmServer) -> None:
    user_id, token = new_user(omni2)
    question = f"script:hang {uuid.uuid4()}"
    asking = Asking(omni2, token, question)
    eventually(lambda: any(seen.question == question for seen in model.requests), "the model was asked")
    omni2.sql("UPDATE users SET is_active = false WHERE email = %s", user_id)
    let_go(model, question)
    assert_stopped(omni2, asking, message="This account is not active.", reason="the account was deactivated")


def test_no_turn_slips_past_a_block(omni2: Running) -> None:
    """Turns that are let in at the moment of the block are refused or stopped: none goes on."""
    user_id, token = new_user(omni2)
    ada = omni2.create_token("ada@example.com")
    all_asking: list[Asking] = []
    for number in range(6):
        all_asking.append(Asking(omni2, token, "script:hang"))
        if number == 3:
            blocking = threading.Thread(target=post, args=(omni2, f"/api/v1/users/{user_id}/block", ada, {}))
            blocking.start()
    blocking.join()
    for asking in all_asking:
        asking.over()
        code = asking.answer["code"] if asking.answer else asking.events[-1][1]["code"]
        assert code in ("user_blocked", "stopped")
    assert {asking.answer["code"] for asking in all_asking if asking.answer} <= {"user_blocked"}
    running_turns = (
        "SELECT 1 FROM turn_usage u JOIN users p ON p.id = u.user_id WHERE p.email = %s AND ended_at IS NULL"
    )
    assert not omni2.sql(running_turns, user_id)


def test_whoever_has_no_right_stops_nothing(omni2: Running) -> None:
    _, token = new_user(omni2)
    charlie_id, charlie = new_user(omni2)
    asking = Asking(omni2, token, "script:hang_in_middle")
    eventually(lambda: asking.text, "it began to speak")
    path = f"/api/v1/turns/{asking.turn_id}/stop"
    unknown = f"/api/v1/turns/{uuid.uuid4()}/stop"
    his, nobodys = post(omni2, path, charlie), post(omni2, unknown, charlie)
    assert his.status_code == nobodys.status_code == 404
    assert his.json() == nobodys.json(), "it says whether there is such a turn"
    with_message = post(omni2, path, token, {"message": "Mine."})
    assert (with_message.status_code, list(with_message.json())) == (400, ["message"])
    assert post(omni2, path, "nobody").status_code == 401
    for method in ("POST", "DELETE"):
        for user_id in (charlie_id, "nobody@example.com"):
            assert post(omni2, f"/api/v1/users/{user_id}/block", charlie, {}, method=method).status_code == 403
    assert omni2.sql("SELECT ended_at FROM turn_usage WHERE turn_id = %s", asking.turn_id) == [(None,)]
    assert not omni2.sql("SELECT 1 FROM turn_stops WHERE turn_id = %s", asking.turn_id)
    assert post(omni2, path, token).status_code == 202
    asking.over()


def test_a_turn_that_is_over_or_was_refused_cannot_be_stopped(omni2: Running) -> None:
    user_id, token = new_user(omni2)
    asking = Asking(omni2, token, "Hello").over()
    assert post(omni2, f"/api/v1/turns/{asking.turn_id}/stop", token).status_code == 409
    malformed = post(omni2, "/api/v1/turns/1/stop", token)
    assert (malformed.status_code, list(malformed.json())) == (400, ["turn_id"])
    ada = omni2.create_token("ada@example.com")
    post(omni2, f"/api/v1/users/{user_id}/block", ada, {})
    refused = Asking(omni2, token, "Hello").over().answer["turn_id"]
    eventually(lambda: omni2.sql("SELECT 1 FROM turns WHERE turn_id = %s", refused), "it is stored")
    assert post(omni2, f"/api/v1/turns/{refused}/stop", token).status_code == 409


def test_a_turn_of_a_process_that_is_about_to_end_can_be_stopped(model: LlmServer, start_omni2: Any) -> None:
    omni2 = start_omni2(llm_base_url=model.url, web=2, LLM_API_KEY="scripted", OMNI2_DRAIN_S="300")
    user_id, token = new_user(omni2)
    asking = Asking(omni2, token, "script:hang_in_middle")
    eventually(lambda: asking.text, "it began to speak")
    omni2.web[0].ask_to_end()
    eventually(lambda: not_listening(omni2), "it takes no more requests")
    assert omni2.web[0].alive
    assert post(omni2, f"/api/v1/turns/{asking.turn_id}/stop", token).status_code == 202
    assert_stopped(omni2, asking, message="You stopped this answer.", by=user_id)
    eventually(lambda: not omni2.web[0].alive, "it ends, since nothing runs any more")


def not_listening(omni2: Running) -> bool:
    try:
        httpx2.get(omni2.urls[0] + "/healthz", timeout=5)
    except httpx2.TransportError:
        return True
    return False


def test_a_turn_whose_process_has_died_is_abandoned_although_somebody_stopped_it(
    model: LlmServer, start_omni2: Any
) -> None:
    omni2 = start_omni2(llm_base_url=model.url, web=2, LLM_API_KEY="scripted")
    _, token = new_user(omni2)
    asking = Asking(omni2, token, "script:hang_in_middle")
    eventually(lambda: asking.text, "it began to speak")
    turn_id = asking.turn_id
    omni2.web[0].kill()
    assert post(omni2, f"/api/v1/turns/{turn_id}/stop", token).status_code == 202
    ended = (
        "SELECT outcome FROM turns JOIN turn_usage u USING (turn_id)"
        " WHERE turn_id = %s AND u.ended_at IS NOT NULL AND outcome IS NOT NULL"
    )
    assert eventually(lambda: omni2.sql(ended, turn_id), "the sweep ends it", limit_s=120) == [("abandoned",)]
    assert post(omni2, f"/api/v1/turns/{turn_id}/stop", token).status_code == 409
