"""docs/tools.md works as it stands there: a program from PyPI and a server over HTTP in one turn, watched live from
another process; and an approval that is given through another process than the one that waits for it."""

import asyncio
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import websockets

from tests.llm_server import LlmServer
from tests.running import Running, eventually, free_port, running

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
DOC = (ROOT / "docs" / "tools.md").read_text()
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)
TIME, SERVER, ADDER, ASK, APPROVE = (text for _, text in BLOCKS)
BOB = "bob@example.com"


@pytest.fixture(scope="module")
def model(_llm_server: LlmServer) -> LlmServer:
    return _llm_server


@contextmanager
def started(llm: LlmServer, **environment: str) -> Iterator[tuple[Running, dict[str, str]]]:
    """Two web processes, and what the commands of the document need."""
    with running(llm_base_url=llm.url, web=2, OMNI2_STDIO_TOOLS="true", **environment) as omni2:
        omni2.create_user("ada@example.com", "Ada Lovelace", is_superuser=True, is_staff=True)
        yield omni2, {"BASE": omni2.url, "TOKEN": omni2.create_token(BOB), "ADA": omni2.create_token("ada@example.com")}


@contextmanager
def adder(folder: Path) -> Iterator[int]:
    """The document's own server, on another port if 8765 is taken."""
    port = free_port(8765)
    script = folder / "adder.py"
    script.write_text(SERVER.replace("8765", str(port)))
    program = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    try:

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        eventually(listens, "the server of the document listens")
        yield port
    finally:
        program.kill()
        program.wait()


def run(omni2: Running, command: str, port: int, **variables: str) -> str:
    """A command of the document."""
    command = command.replace(".venv/bin/", f"{shlex.quote(str(Path(sys.executable).parent))}/").replace(
        "8765", str(port)
    )
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env={**os.environ, **omni2.environment, **variables}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stderr}\n{done.stdout}"
    return done.stdout


def knows(omni2: Running, variables: dict[str, str], *servers: str) -> None:
    """Wait until each process offers these servers."""

    def offered(url: str) -> bool:
        headers = {"Authorization": f"Bearer {variables['TOKEN']}"}
        answer = httpx2.post(url + "/api/v1/ask", json={"message": "script:plain"}, headers=headers, timeout=30).json()
        rows = omni2.sql(
            "SELECT metadata FROM interaction_flows WHERE turn_id = %s AND checkpoint = 'mcp_permission_check'",
            answer["turn_id"],
        )
        return bool(rows) and sorted(rows[0][0]["servers"]) == sorted(servers)

    for url in omni2.urls:
        eventually(lambda url=url: offered(url), f"{url} offers {servers}")


async def test_both_kinds_of_server_in_one_turn_seen_live(model: LlmServer, tmp_path: Path) -> None:
    with started(model) as (omni2, variables), adder(tmp_path) as port:
        assert "time/get_current_time: " in await asyncio.to_thread(run, omni2, TIME, port)
        assert "adder/add: Adds two whole numbers." in await asyncio.to_thread(run, omni2, ADDER, port)
        await asyncio.to_thread(knows, omni2, variables, "time", "adder")
        headers = {"Authorization": f"Bearer {variables['ADA']}"}
        async with httpx2.AsyncClient(base_url=omni2.url, headers=headers, timeout=30) as client:
            await client.post("/api/v1/monitoring/enable", json={"user_id": BOB, "ttl_hours": 1})
        address = omni2.urls[1].replace("http", "ws") + f"/ws/flows/{BOB}"
        async with websockets.connect(address, additional_headers=headers) as watching:
            await asyncio.wait_for(until_it_watches(watching), 30)
            asking = asyncio.create_task(asyncio.to_thread(run, omni2, ASK, port, **variables))
            seen = await asyncio.wait_for(until_ended(watching), 30)
            told = await asking
    assert "42" in told
    assert "+09:00" in told
    names = [each["checkpoint"] for each in seen]
    assert names[:5] == ["auth_check", "block_check", "usage_check", "mcp_permission_check", "tool_filter"]
    by_id = {each["flow_id"]: each for each in seen}
    assert [by_id[each["parent_id"]]["checkpoint"] for each in seen[3:5]] == ["usage_check", "usage_check"]
    calls = {each["flow_id"]: each["metadata"] for each in seen if each["checkpoint"] == "tool_call"}
    assert {(each["server"], each["tool"]) for each in calls.values()} == {
        ("time", "get_current_time"),
        ("adder", "add"),
    }
    results = [each for each in seen if each["checkpoint"] == "tool_result"]
    assert {each["parent_id"] for each in results} == set(calls)
    assert all(each["metadata"]["status"] == "ok" and each["metadata"]["duration_ms"] > 0 for each in results)


async def until_it_watches(watching: Any) -> None:
    """Until the socket's process knows that he is monitored, and has shown what there was before."""
    active = False
    async for text in watching:
        message = json.loads(text)
        active = active or message.get("active") or message.get("monitoring", {}).get("active", False)
        if active and message["type"] == "snapshot" and not message["more"]:
            return
    raise AssertionError("the socket was closed")


async def until_ended(watching: Any) -> list[dict[str, Any]]:
    """The checkpoints of the turn that begins now, as a watcher gets them one by one."""
    seen: list[dict[str, Any]] = []
    async for text in watching:
        message = json.loads(text)
        if message["type"] == "checkpoint":
            seen.append(message["checkpoint"])
            if seen[-1]["checkpoint"] == "flow_end":
                return seen
    raise AssertionError("the socket was closed")


@pytest.mark.parametrize("redis", ["true", "false"])
def test_a_yes_through_another_process_reaches_the_turn(redis: str, model: LlmServer, tmp_path: Path) -> None:
    with started(model, REDIS_ENABLED=redis) as (omni2, variables), adder(tmp_path) as port:
        run(omni2, APPROVE, port)
        knows(omni2, variables, "adder")
        headers = {"Authorization": f"Bearer {variables['TOKEN']}"}
        body = {"message": "What time is it in Tokyo, and what is 40 plus 2?"}
        answers: list[Any] = []
        asking = threading.Thread(
            target=lambda: answers.append(
                httpx2.post(omni2.urls[0] + "/api/v1/ask", json=body, headers=headers, timeout=60).json()
            )
        )
        asking.start()
        with httpx2.Client(base_url=omni2.urls[1], headers=headers, timeout=30) as other:
            waiting = eventually(lambda: other.get("/api/v1/approvals").json()["approvals"], "the call waits")
            path = f"/api/v1/turns/{waiting[0]['turn_id']}/approvals/{waiting[0]['call_id']}"
            assert other.post(path, json={"approve": True}).json()["approved"] is True
        asking.join(30)
        assert "42" in answers[0]["answer"]


def test_a_program_does_not_outlive_its_web_process(model: LlmServer, tmp_path: Path) -> None:
    with started(model) as (omni2, variables), adder(tmp_path) as port:
        run(omni2, TIME, port)
        knows(omni2, variables, "time")
        eventually(lambda: len(programs_of(omni2)) == 2, "each web process runs it once")
        for web in omni2.web:
            web.kill()
        deadline = time.monotonic() + 30
        while programs_of(omni2):
            assert time.monotonic() < deadline, "a program was left behind"
            time.sleep(0.05)


STARTED: set[int] = set()


def programs_of(omni2: Running) -> set[int]:
    """Process ids of the guards and programs that descend from its web processes, or did."""
    found: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_text().replace("\0", " ")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            found[int(entry.name)] = (parent, words)
    webs = {web.pid for web in omni2.web if web.alive}
    guards = {pid for pid, (parent, words) in found.items() if parent in webs and "stdio_guard" in words}
    programs = {pid for pid, (parent, words) in found.items() if parent in guards and "mcp-server-time" in words}
    STARTED.update(programs)
    return {pid for pid in STARTED if pid in found and "mcp-server-time" in found[pid][1]}
