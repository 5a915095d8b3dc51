"""Tools of MCP servers in a turn: offered, withheld, called, refused, failing. The servers are real ones: a package
from PyPI as a program, and the official server package over HTTP (tests/tool_server.py)."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group

from chat import tool_servers
from chat.catalogue import catalogue
from chat.models import LanguageModel, ToolServer
from chat.tests.conftest import Call, Tree
from chat.tool_offer import model_name
from chat.tool_rows import seal_pairs, server_rows
from chat.tools import ToolProblem
from omni2.database import in_database
from tests.llm_server import LlmServer
from tests.running import free_port
from tests.tool_server import run_http

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("chatting", "_tidy")]

TIME_SERVER = str(Path(sys.executable).with_name("mcp-server-time"))
HERE = ["-m", "tests.tool_server", "stdio"]


@pytest.fixture(scope="module")
def things() -> Iterator[str]:
    """The address of a tool server over HTTP."""
    with run_http() as (url, _):
        yield url


@pytest.fixture
async def _tidy(settings: Any) -> AsyncIterator[None]:
    settings.STDIO_TOOLS = True
    yield
    await tool_servers.tool_servers().close()


@pytest.fixture
def serve() -> Callable[..., Any]:
    """Configure a tool server, and let this process know."""

    def made(name: str, *, to: tuple[Any, ...] = (), **fields: Any) -> ToolServer:
        if "url" not in fields:
            fields = {"transport": "stdio", "command": sys.executable, "arguments": HERE, **fields}
            # the test's own server is a module of this project
            fields.setdefault("sealed_environment", seal_pairs({"PYTHONPATH": str(Path.cwd())}))
        row = ToolServer.objects.create(name=name, **fields)
        row.groups.set(each for each in to if isinstance(each, Group))
        row.users.set(each for each in to if not isinstance(each, Group))
        catalogue.read()
        return row

    async def serve(name: str, **fields: Any) -> ToolServer:
        row: ToolServer = await in_database(made, name, **fields)
        return row

    return serve


async def until_known(row: ToolServer) -> tool_servers.Connection:
    """Wait until this process knows what a server lists, or why not."""
    rows = await in_database(server_rows.read)
    connection = tool_servers.tool_servers().reach(rows[row.pk])
    await asyncio.wait_for(connection.first_list(), 30)
    return connection


async def adds(connection: tool_servers.Connection) -> bool:
    """Whether it can add."""
    try:
        return await connection.call("add", {"a": 3, "b": 1}) == "4"
    except ToolProblem:
        return False


def using(*calls: tuple[str, dict[str, Any]]) -> str:
    return "script:use\n" + "\n".join(f"{name} {json.dumps(arguments)}" for name, arguments in calls)


def offered_to(llm: LlmServer) -> list[str]:
    return [tool["function"]["name"] for tool in llm.requests[0].body.get("tools", [])]


def results(tree: Tree) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["tool"]: each["metadata"] for each in tree.every("tool_result")}


# --- both kinds of server ------------------------------------------------------------------------


async def test_it_uses_a_program_from_pypi_and_a_server_over_http_in_one_turn(
    bob: Any, client_of: Any, serve: Any, tree_of: Any, llm: LlmServer, things: str
) -> None:
    clock = await serve("time", command=TIME_SERVER, arguments=["--local-timezone", "UTC"], sealed_environment="")
    await until_known(clock)
    await until_known(await serve("things", url=things))
    call = await client_of(bob).stream(
        using(("time__get_current_time", {"timezone": "Asia/Tokyo"}), ("things__add", {"a": 2, "b": 40}))
    )
    assert call.last.name == "done"
    assert "+09:00" in call.text
    assert "42" in call.text
    tree = await tree_of(bob, call.turn_id)
    tree.assert_complete("completed")
    assert tree.names[:5] == ["auth_check", "block_check", "usage_check", "mcp_permission_check", "tool_filter"]
    for name in ("mcp_permission_check", "tool_filter"):
        assert tree.parent_of(tree.one(name)) == "usage_check"
        assert tree.facts(name)["duration_ms"] >= 0
    assert tree.facts("mcp_permission_check")["servers"] == ["things", "time"]
    assert "time/get_current_time" in tree.facts("tool_filter")["tools"]
    calls = {each["metadata"]["server"]: each["metadata"]["tool"] for each in tree.every("tool_call")}
    assert calls == {"time": "get_current_time", "things": "add"}
    assert all(each["status"] == "ok" and each["duration_ms"] > 0 for each in results(tree).values())
    assert {"clock", "calculator", "time__convert_time", "things__add"} <= set(offered_to(llm))


async def test_without_tool_servers_a_turn_has_its_old_checkpoints(bob: Any, client_of: Any, tree_of: Any) -> None:
    call = await client_of(bob).stream("script:plain")
    tree = await tree_of(bob, call.turn_id)
    assert tree.names == ["auth_check", "block_check", "usage_check", "llm_thinking", "llm_complete", "flow_end"]


async def test_several_calls_run_at_once(bob: Any, client_of: Any, serve: Any, tree_of: Any, things: str) -> None:
    await until_known(await serve("things", url=things))
    call = await client_of(bob).stream(using(("things__wait", {"seconds": 0.5}), ("things__wait", {"seconds": 0.51})))
    tree = await tree_of(bob, call.turn_id)
    (one, two) = [each["metadata"]["result"].split() for each in tree.every("tool_result")]
    assert float(one[0]) < float(two[1])
    assert float(two[0]) < float(one[1]), "each began before the other had ended"


async def test_headers_and_environment_reach_the_server_and_no_page(
    bob: Any, client_of: Any, serve: Any, things: str
) -> None:
    await until_known(await serve("http", url=things, sealed_headers=seal_pairs({"x-key": "open sesame"})))
    secrets = {"PYTHONPATH": str(Path.cwd()), "KEY": "swordfish"}
    await until_known(await serve("program", sealed_environment=seal_pairs(secrets)))
    call = await client_of(bob).stream(
        using(
            ("http__header", {"name": "x-key"}),
            ("program__environment", {"name": "KEY"}),
            ("program__environment", {"name": "DATABASE_URL"}),
        )
    )
    assert "open sesame" in call.text
    assert "swordfish" in call.text
    assert "nothing" in call.text, "of this process' own environment it gets nothing"
    rows = await in_database(lambda: list(ToolServer.objects.values()))
    assert "open sesame" not in str(rows)
    assert "swordfish" not in str(rows)


# --- rights --------------------------------------------------------------------------------------


async def test_it_withholds_what_is_not_for_him_and_says_why(
    bob: Any, ada: Any, client_of: Any, serve: Any, tree_of: Any, llm: LlmServer, things: str
) -> None:
    staff = await in_database(Group.objects.create, name="Staff")
    await serve("adas", url=things, to=(ada,))
    await serve("off", url=things, enabled=False)
    await until_known(await serve("staffs", url=things, to=(staff,), allowed_tools=["add"]))
    call = await client_of(bob).stream("script:plain")
    facts = (await tree_of(bob, call.turn_id)).facts("mcp_permission_check")
    assert {each["server"]: each["reason"] for each in facts["withheld"]} == {
        "adas": "not for this user or his groups",
        "off": "switched off",
        "staffs": "not for this user or his groups",
    }
    assert (facts["offered"], facts["total"]) == (0, 3)
    assert offered_to(llm) == ["clock", "calculator"]
    await in_database(bob.groups.add, staff)
    llm.requests.clear()
    call = await client_of(bob).stream("script:plain")
    tree = await tree_of(bob, call.turn_id)
    assert tree.facts("mcp_permission_check")["servers"] == ["staffs"]
    assert offered_to(llm) == ["clock", "calculator", "staffs__add"]
    withheld = {each["tool"]: each["reason"] for each in tree.facts("tool_filter")["withheld"]}
    assert withheld["fail"] == "not among its allowed tools"


@pytest.mark.parametrize("asked", ["things__add", "adas__add", "things__fail"])
async def test_a_tool_that_was_not_offered_is_refused_when_it_is_asked_for_all_the_same(
    asked: str, bob: Any, ada: Any, client_of: Any, serve: Any, tree_of: Any, llm: LlmServer, things: str
) -> None:
    await until_known(await serve("things", url=things, allowed_tools=["picture"]))
    await serve("adas", url=things, to=(ada,))
    call = await client_of(bob).stream(using((asked, {"a": 1, "b": 2})))
    assert call.last.name == "done", "the turn goes on"
    tree = await tree_of(bob, call.turn_id)
    result = tree.facts("tool_result")
    assert (result["status"], result["code"]) == ("error", "refused")
    assert "not offered" in result["error"]
    assert tree.facts("tool_call")["server"] == asked.split("__")[0]
    assert "not offered" in llm.requests[1].results[0], "and the model is told"


async def test_a_right_that_was_taken_away_meanwhile_refuses_the_call(
    bob: Any, ada: Any, client_of: Any, serve: Any, tree_of: Any, things: str
) -> None:
    row = await serve("things", url=things, to=(bob,))
    await until_known(row)
    taken = asyncio.Event()

    def take_away(call: Call, message: dict[str, Any]) -> None:
        # after the offer, before the second call: the first one has just been answered
        if "tool_result" in call.names and not taken.is_set():
            taken.set()

    call = client_of(bob).call("script:twice\n" + "things__add " + json.dumps({"a": 1, "b": 2}), on_send=take_away)
    call.start()
    await asyncio.wait_for(taken.wait(), 20)
    await in_database(row.users.set, [ada])
    await call.over()
    tree = await tree_of(bob, call.turn_id)
    first, second = (each["metadata"] for each in tree.every("tool_result"))
    assert first["status"] == "ok"
    assert (second["status"], second["code"]) == ("error", "refused")
    assert "may not use" in second["error"]


async def test_a_model_without_tools_is_offered_none(
    bob: Any, client_of: Any, serve: Any, tree_of: Any, llm: LlmServer, things: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await serve("things", url=things)
    monkeypatch.setenv("OF_THE_TESTS_KEY", llm.model.key)
    model = {"model": "scripted-plain", "base_url": llm.url, "sealed_key": "", "key_variable": "OF_THE_TESTS_KEY"}
    await in_database(LanguageModel.objects.create, name="plain", takes_tools=False, is_default=True, **model)
    await in_database(catalogue.read)
    call = await client_of(bob).stream("Hello")
    assert call.last.name == "done"
    facts = (await tree_of(bob, call.turn_id)).facts("tool_filter")
    assert facts["offered"] == 0
    assert offered_to(llm) == []
    assert {each["reason"] for each in facts["withheld"]} == {"the model takes no tools"}


# --- when it goes wrong --------------------------------------------------------------------------


async def test_a_server_that_is_down_is_withheld_and_nobody_waits_for_it(
    bob: Any, client_of: Any, serve: Any, tree_of: Any, things: str
) -> None:
    await until_known(await serve("things", url=things))
    down = await until_known(await serve("down", url=f"http://127.0.0.1:{free_port()}/mcp"))
    assert down.problem
    gone = await until_known(await serve("gone", command="/no/such/program", arguments=[]))
    assert "cannot be started" in gone.problem
    call = await client_of(bob).stream(using(("things__add", {"a": 1, "b": 1}), ("down__add", {"a": 1, "b": 1})))
    tree = await tree_of(bob, call.turn_id)
    facts = tree.facts("mcp_permission_check")
    assert facts["servers"] == ["things"]
    assert {each["server"] for each in facts["withheld"]} == {"down", "gone"}
    assert all(each["reason"].startswith("out of reach: ") for each in facts["withheld"])
    assert sorted(each["metadata"]["status"] for each in tree.every("tool_result")) == ["error", "ok"]
    assert call.last.name == "done"


async def test_one_that_hangs_from_the_beginning_is_not_waited_for_twice(
    bob: Any, client_of: Any, serve: Any, tree_of: Any
) -> None:
    hanging = await asyncio.start_server(lambda reader, writer: asyncio.sleep(60), "127.0.0.1", 0)
    try:
        await serve("mute", url=f"http://127.0.0.1:{hanging.sockets[0].getsockname()[1]}/mcp")
        call = await client_of(bob).stream("script:plain")
        tree = await tree_of(bob, call.turn_id)
        assert tree.facts("mcp_permission_check")["withheld"] == [{"server": "mute", "reason": "has not answered yet"}]
        assert call.last.name == "done"
    finally:
        hanging.close()


@pytest.mark.parametrize("kind", ["http", "program"])
@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("fail", {}, "Error executing tool fail"),
        ("add", {"a": "no number", "b": 1}, "add"),
        ("wait", {"seconds": 60}, "did not answer within 1 seconds"),
        ("flood", {"characters": 3_000_000}, "failed"),
    ],
)
async def test_a_tool_that_fails_hangs_or_floods_is_a_red_result_and_the_turn_goes_on(
    kind: str, tool: str, arguments: Any, said: str, bob: Any, client_of: Any, serve: Any, tree_of: Any,
    llm: LlmServer, things: str,
) -> None:  # fmt: skip
    where = {"url": things} if kind == "http" else {}
    await until_known(await serve("things", timeout_s=1 if tool == "wait" else 20, **where))
    call = await client_of(bob).stream(using((f"things__{tool}", arguments)))
    assert call.last.name == "done"
    tree = await tree_of(bob, call.turn_id)
    tree.assert_complete("completed")
    result = tree.facts("tool_result")
    assert result["status"] == "error"
    assert said in result["error"]
    assert said in llm.requests[1].results[0], "the model is told"


async def test_a_long_result_is_cut_and_a_picture_is_described(
    bob: Any, client_of: Any, serve: Any, llm: LlmServer, things: str
) -> None:
    await until_known(await serve("things", url=things))
    await client_of(bob).stream(using(("things__flood", {"characters": 50_000}), ("things__picture", {})))
    long, picture = llm.requests[1].results
    assert len(long) < 17_000
    assert "[cut: " in long
    assert picture == "[an image, image/png, about 2 KiB: not shown to the model]"


async def test_a_program_that_dies_in_the_middle_is_started_again(
    bob: Any, client_of: Any, serve: Any, tree_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool_servers, "BACK_OFF_S", (0.05,))
    row = await serve("things")
    connection = await until_known(row)
    call = await client_of(bob).stream(using(("things__die", {})))
    assert call.last.name == "done"
    result = (await tree_of(bob, call.turn_id)).facts("tool_result")
    assert result["status"] == "error"
    async with asyncio.timeout(20):
        while not await adds(connection):
            await asyncio.sleep(0.02)
    call = await client_of(bob).stream(using(("things__add", {"a": 20, "b": 3})))
    assert "23" in call.text


async def test_a_program_that_dies_while_nobody_asks_is_noticed(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool_servers, "BACK_OFF_S", (60.0,))
    connection = await until_known(await serve("things"))
    pid = int(await connection.call("pid", {}))
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        while connection.known_tools() is not None:
            await asyncio.sleep(0.02)
    assert connection.problem


async def test_a_server_over_http_that_was_restarted_is_used_again(
    bob: Any, client_of: Any, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool_servers, "BACK_OFF_S", (0.05,))
    port = free_port()
    with run_http(port) as (url, _):
        connection = await until_known(await serve("things", url=url))
        assert await connection.call("add", {"a": 1, "b": 1}) == "2"
    with pytest.raises(Exception, match="tool server"):
        await connection.call("add", {"a": 1, "b": 1})
    with run_http(port):
        async with asyncio.timeout(20):
            while not await adds(connection):
                await asyncio.sleep(0.02)


async def test_leaving_cancels_the_call(bob: Any, client_of: Any, serve: Any, tree_of: Any, things: str) -> None:
    connection = await until_known(await serve("things", url=things))
    call = client_of(bob).call(using(("things__wait", {"seconds": 50}))).start()
    await call.until(lambda call: "tool_call" in call.names)
    call.leave()
    await call.over()
    tree = await tree_of(bob, call.turn_id)
    tree.assert_complete("disconnected")
    assert tree.facts("tool_result")["status"] == "cancelled"
    assert await connection.call("add", {"a": 1, "b": 4}) == "5", "the connection is none the worse"


async def test_a_changed_row_is_a_new_connection_and_a_running_call_ends_on_the_old_one(
    serve: Any, things: str
) -> None:
    row = await serve("things", url=things)
    old = await until_known(row)
    running = asyncio.create_task(old.call("wait", {"seconds": 0.5}))
    await asyncio.sleep(0.1)
    await in_database(ToolServer.objects.filter(pk=row.pk).update, sealed_headers=seal_pairs({"x-key": "new"}))
    await in_database(server_rows.read)
    tool_servers.rows_changed()
    new = await until_known(row)
    assert new is not old
    assert await running
    await asyncio.wait_for(old.task, 20)
    await in_database(ToolServer.objects.filter(pk=row.pk).update, enabled=False)
    await in_database(server_rows.read)
    tool_servers.rows_changed()
    await asyncio.wait_for(new.task, 20)


def test_names_for_the_model_are_what_providers_take() -> None:
    assert model_name("time", "now") == "time__now"
    assert model_name("time", "what.is/the time") == "time__what_is_the_time"
    long = model_name("s", "x" * 100)
    assert len(long) == 64
    assert long != model_name("s", "x" * 99 + "y")


# --- no orphan -----------------------------------------------------------------------------------


def test_a_program_ends_with_the_process_that_started_it_also_when_that_is_killed() -> None:
    """The process is one of its own here, that says what the program is and is then killed."""
    told = """
import asyncio, sys
from chat.stdio_guard import LINE_BYTES
from fastmcp.client import Client
from fastmcp.client.transports import StdioTransport
async def main():
    guard = ["-I", "-S", "chat/stdio_guard.py", sys.executable, "-m", "tests.tool_server", "stdio"]
    async with Client(StdioTransport(sys.executable, guard, env={"PYTHONPATH": "."})) as client:
        print((await client.call_tool_mcp("pid", {})).content[0].text, flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""
    process = subprocess.Popen([sys.executable, "-c", told], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    program = int(process.stdout.readline())
    os.kill(program, 0)
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 20
    while is_alive(program):
        assert time.monotonic() < deadline, "the program was left behind"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return " Z " not in Path(f"/proc/{pid}/stat").read_text() if Path(f"/proc/{pid}/stat").exists() else True
