"""Limits on a really started Omni2 with two web processes: exact however many ask, in force at once; and the example of
docs/limits.md."""

import asyncio
import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from omni2.env import BASE_DIR
from tests.llm_server import LlmServer
from tests.running import Running, eventually, running
from tests.test_curl_examples import BLOCK, same_shape

pytestmark = pytest.mark.slow
DOC = (Path(__file__).parent.parent / "docs" / "limits.md").read_text()


@pytest.fixture(scope="module")
def omni2() -> Iterator[Running]:
    with LlmServer() as llm, running(web=2, **llm.environment) as started:
        started.create_user("ada@example.com", "Ada Lovelace", is_superuser=True, is_staff=True)
        yield started


def ask_at_once(omni2: Running, token: str, count: int, message: str = "Hello") -> list[httpx2.Response]:
    """So many questions of one user at the same moment, every other one to the other process."""

    async def every() -> list[httpx2.Response]:
        limits = httpx2.Limits(max_connections=count)
        async with httpx2.AsyncClient(timeout=60, limits=limits) as client:
            return await asyncio.gather(*(ask(client, omni2.urls[number % 2]) for number in range(count)))

    async def ask(client: httpx2.AsyncClient, url: str) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return await client.post(f"{url}/api/v1/ask", json={"message": message}, headers=headers)

    return asyncio.run(every())


def set_limits(omni2: Running, email: str, **numbers: Any) -> None:
    def save() -> None:
        from chat.models import UserLimits
        from omni2.accounts.models import User

        row = UserLimits.objects.filter(user__email=email).first() or UserLimits(user=User.objects.get(email=email))
        for name, value in numbers.items():
            setattr(row, name, value)
        row.save()

    omni2.orm(save)


@pytest.mark.parametrize("name", ["requests_per_day", "requests_per_minute", "requests_per_month"])
def test_fifty_at_once_against_a_limit_of_ten(omni2: Running, name: str) -> None:
    email = f"{name.replace('_', '.')}@example.com"
    token = omni2.create_token(email)
    set_limits(omni2, email, **{name: 10, "turns_unlimited": True})
    # the two processes hear of a first limit of its kind with their next look
    eventually(lambda: _knows(omni2, token, name), f"both processes know {name}")
    _forget(omni2, email)
    answers = ask_at_once(omni2, token, 50)
    assert Counter(each.status_code for each in answers) == {200: 10, 429: 40}
    refused = [each.json() for each in answers if each.status_code == 429]
    # more than thirty refusals of one user in a minute are counted by each process, and not written down
    assert {each["code"] for each in refused} <= {"usage_limit", "too_many_refusals"}
    recorded = [each["turn_id"] for each in refused if each["code"] == "usage_limit"]
    assert len(recorded) == 40, "twenty for each process"
    assert {(each["limit_name"], each["used"], each["limit"]) for each in refused} == {(name, 10, 10)}

    def trees() -> bool:
        rows = omni2.sql(
            "SELECT turn_id::text, array_agg(checkpoint || ' ' || coalesce(metadata->>'status', metadata->>'outcome')"
            " ORDER BY created_at, flow_id) FROM interaction_flows WHERE turn_id::text = ANY (%s) GROUP BY turn_id",
            recorded,
        )
        expected = ["auth_check passed", "block_check passed", "usage_check failed", "flow_end refused"]
        return len(rows) == 40 and all(checkpoints == expected for _, checkpoints in rows)

    eventually(trees, "forty refused trees are stored")
    of_day = "SELECT sum(requests)::int FROM daily_usage d JOIN users u ON u.id = d.user_id WHERE u.email = %s"
    assert omni2.sql(of_day, email) == [(10,)]


def _knows(omni2: Running, token: str, name: str) -> bool:
    """Whether an answer of each process speaks of that limit."""
    asked = [
        httpx2.post(f"{url}/api/v1/ask", json={"message": "Hello"}, headers={"Authorization": f"Bearer {token}"})
        for url in omni2.urls
    ]
    return all(f'"{name}"' in each.headers.get("ratelimit", "") for each in asked)


def _forget(omni2: Running, email: str) -> None:
    whose = "user_id = (SELECT id FROM users WHERE email = %s)"
    omni2.sql(f"DELETE FROM daily_usage WHERE {whose}", email)
    omni2.sql(f"DELETE FROM turn_usage WHERE {whose}", email)


def test_tokens_overshoot_by_no_more_than_what_runs(omni2: Running) -> None:
    email = "tokens@example.com"
    token = omni2.create_token(email)
    set_limits(omni2, email, tokens_per_day=1, turns_at_once=3)
    answers = ask_at_once(omni2, token, 20)
    counts = Counter(each.status_code for each in answers)
    assert 1 <= counts[200] <= 3
    assert counts[200] + counts[429] == 20
    assert {each.json()["limit_name"] for each in answers if each.status_code == 429} <= {
        "tokens_per_day",
        "turns_at_once",
    }
    assert ask_at_once(omni2, token, 1)[0].json()["limit_name"] == "tokens_per_day"


def test_a_limit_counts_at_once_in_both_processes_while_chats_run(omni2: Running) -> None:
    """Set for the user, then for his group: the next question of a chat that goes on is judged by it."""
    email = "running@example.com"
    token = omni2.create_token(email)
    headers = {"Authorization": f"Bearer {token}"}
    with httpx2.stream(
        "POST", f"{omni2.url}/api/v1/ask/stream", json={"message": "script:slow"}, headers=headers, timeout=60
    ) as chat:
        lines = chat.iter_lines()
        next(lines)
        assert [each.status_code for each in ask_at_once(omni2, token, 2)] == [200, 200]
        # of the day: judged by the statement itself, from this moment on
        set_limits(omni2, email, requests_per_day=1)
        assert [each.status_code for each in ask_at_once(omni2, token, 2)] == [429, 429]
        set_limits(omni2, email, requests_per_day=None)
        assert [each.status_code for each in ask_at_once(omni2, token, 2)] == [200, 200]
        # of a month, by a group: the first of its kind, which each process has to hear of
        omni2.orm(_limit_a_group, email, requests_per_month=1)
        eventually(
            lambda: [each.status_code for each in ask_at_once(omni2, token, 2)] == [429, 429],
            "both know the group's limit",
        )
        said = "".join(line for line in lines if line.startswith("data:"))
    assert '"duration_ms"' in said, "the chat that ran was not disturbed"


def _limit_a_group(email: str, **numbers: Any) -> None:
    from django.contrib.auth.models import Group

    from chat.models import GroupLimits
    from omni2.accounts.models import User

    group = Group.objects.create(name="Limited")
    User.objects.get(email=email).groups.add(group)
    GroupLimits(group=group, **numbers).save()


def test_the_example_of_the_document_works(omni2: Running) -> None:
    omni2.manage("create_user", "test@example.com")
    blocks = BLOCK.findall(DOC)
    script, shown = "set -u\n", {}
    for number, (kind, text) in enumerate(blocks):
        if kind != "bash":
            continue
        script += f"echo '@@{number}'\n{text}\n"
        if "shell -c" in text:
            script += "sleep 1\n"
        if number + 1 < len(blocks) and blocks[number + 1][0] == "json":
            shown[number] = json.loads(blocks[number + 1][1])
    people = {"TOKEN": "test@example.com", "ADMIN_TOKEN": "ada@example.com"}
    tokens = {name: omni2.create_token(email) for name, email in people.items()}
    environment = {**os.environ, **omni2.environment, "BASE": omni2.url, **tokens}
    environment["PATH"] = f"{BASE_DIR / '.venv' / 'bin'}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], env=environment, cwd=BASE_DIR, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answers = {int(part.split("\n", 1)[0]): part.split("\n", 1)[1] for part in done.stdout.split("@@")[1:]}
    assert len(shown) == 4
    for number, example in shown.items():
        got = json.loads(answers[number])
        same_shape(example, got, f"block {number}: {got}")
        for said in ("code", "limit_name", "used", "limit"):
            if said in example:
                assert got[said] == example[said]
    assert any(re.search(r'"requests_per_minute";r=2;t=\d+', each) for each in answers.values())
