"""`manage.py demo` against a really started Omni2: every kind of turn, scripted wherever it shows."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from chat.demonstration import DOMAIN
from chat.traffic import CAST
from tests.running import Running, eventually, running


@pytest.fixture(scope="module")
def omni2() -> Iterator[Running]:
    # a server whose own model cannot be reached: nothing of the demonstration may ask it
    with running(llm_base_url="http://127.0.0.1:9/v1", LLM_MODEL="not-for-demonstrations") as started:
        yield started


@pytest.mark.slow
def test_it_sends_every_kind_of_turn_and_ends_by_itself(omni2: Running) -> None:
    said = omni2.manage("demo", "--minutes", "0.12", "--rate", "10", "--url", omni2.url)
    for outcome in (
        "completed",
        "left in the middle",
        "refused: user_blocked",
        "refused: inactive",
        "refused: usage_limit",
        "failed: llm_failed",
        "failed: llm_rate_limited",
        "failed: too_many_rounds",
    ):
        assert outcome in said, said
    assert not (Path(omni2.environment["OMNI2_DATA_DIR"]) / "demo.json").exists()

    outcomes = "SELECT DISTINCT user_id, outcome FROM turns WHERE outcome IS NOT NULL"
    wanted = {("dora", "completed"), ("theo", "completed"), ("bella", "refused"), ("ian", "refused")}
    wanted |= {("lou", "completed"), ("lou", "refused"), ("fay", "failed"), ("fay", "disconnected")}
    eventually(
        lambda: {(user.partition("@")[0], outcome) for user, outcome in omni2.sql(outcomes)} >= wanted,
        "all of it is in history",
    )
    together = "SELECT parent_id FROM interaction_flows WHERE checkpoint = 'tool_call' GROUP BY 1 HAVING count(*) = 3"
    eventually(lambda: omni2.sql(together), "three tools of one round")

    people = omni2.sql("SELECT email, name, is_active FROM users WHERE email LIKE %s", f"%@{DOMAIN}")
    assert {email for email, _, _ in people} == {person.email for person in CAST}
    assert all(name.endswith("(demonstration)") for _, name, _ in people)
    assert [email for email, _, active in people if not active] == [f"ian@{DOMAIN}"]
    models = omni2.sql("SELECT DISTINCT metadata FROM interaction_flows WHERE checkpoint = 'llm_thinking'")
    assert {(each["model"], each["provider"]) for (each,) in models} == {("scripted-demo", "scripted")}
    answers = omni2.sql("SELECT content FROM messages WHERE role = 'assistant' AND content LIKE '%%(scripted)'")
    assert answers
    usable = "SELECT 1 FROM api_tokens WHERE revoked_at IS NULL AND expires_at > now()"
    assert omni2.sql(usable) == [], "its tokens are revoked"
    assert omni2.sql("SELECT 1 FROM turn_usage WHERE ended_at IS NULL") == []


@pytest.mark.slow
def test_without_a_demonstration_its_users_get_no_model_at_all(omni2: Running) -> None:
    import httpx2

    token = omni2.create_token(f"dora@{DOMAIN}")
    answer = httpx2.post(
        f"{omni2.url}/api/v1/ask",
        content=json.dumps({"message": "Hello"}),
        headers={"Authorization": f"Bearer {token}"},
        timeout=20,
    )
    assert (answer.status_code, answer.json()["code"]) == (503, "llm_unavailable")


def test_it_says_when_no_server_runs() -> None:
    from django.core.management import CommandError, call_command

    with pytest.raises(CommandError, match="make run"):
        call_command("demo", "--url", "http://127.0.0.1:9")


@pytest.mark.parametrize("words", [["--minutes", "0"], ["--minutes", "nan"], ["--rate", "1e9"], ["--rate", "x"]])
def test_it_is_bounded(words: list[str]) -> None:
    from django.core.management import CommandError, call_command

    with pytest.raises(CommandError, match="must be a number"):
        call_command("demo", *words)
