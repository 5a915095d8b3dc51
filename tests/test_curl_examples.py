"""The commands in docs/api.md work as they stand there, and so do the three of the original description."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from omni2.env import BASE_DIR
from omni2.supervisor import commands
from tests.llm_server import LlmServer
from tests.openapi import OPENAI_PATHS, operations
from tests.people import PASSWORD
from tests.running import Process, Running, eventually, free_port, running

pytestmark = pytest.mark.slow
DOC = (Path(__file__).parent.parent / "docs" / "api.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(kind, text) for kind, text in BLOCK.findall(DOC)]
PORT = 8090
# An example must succeed. What only reads may have to wait until the persister has stored the turn.
CURL = """
set -eu -o pipefail
curl() {
  for _ in $(seq 80); do
    if answer=$(command curl --fail-with-body -sS "$@"); then printf '%s\\n' "$answer"; return; fi
    case " $* " in *" -X "*) break;; esac
    sleep 0.25
  done
  printf 'refused: %s\\n%s\\n' "$*" "$answer" >&2
  return 1
}
"""
# The original description's three commands, byte for byte.
ENABLE = """\
   curl -X POST http://localhost:8090/api/v1/monitoring/enable \\
     -H "Content-Type: application/json" \\
     -d '{"user_id": "test@example.com", "ttl_hours": 1}'"""
ASK = """\
   curl -X POST http://localhost:8090/api/v1/ask/stream \\
     -H "Authorization: Bearer <token>" \\
     -d '{"message": "Hello"}'"""
CHECK = "   curl http://localhost:8090/api/v1/monitoring/flows/user/test@example.com"


@pytest.fixture(scope="module")
def omni2() -> Iterator[Running]:
    """Omni2 on port 8090, if that is free, with nobody in it but Ada."""
    with LlmServer() as llm, running(web=0, **llm.environment) as started:
        port = free_port(PORT)
        words = commands.with_python(commands.web("127.0.0.1", port))
        started.web.append(Process("web", words, started.environment, started.folder / "web.log"))
        started.urls.append(f"http://localhost:{port}")
        started.wait_until_ready()
        started.create_user("ada@example.com", "Ada Lovelace", is_superuser=True, is_staff=True)
        yield started


@pytest.fixture(scope="module")
def tokens(omni2: Running) -> dict[str, str]:
    """TOKEN and ADMIN_TOKEN, made by the commands that the documents name."""
    omni2.manage("create_user", "test@example.com")
    return {
        "TOKEN": omni2.manage("create_token", "test@example.com").splitlines()[-1],
        "ADMIN_TOKEN": omni2.manage("create_token", "ada@example.com").splitlines()[-1],
    }


def bash(script: str, **variables: str) -> str:
    done = subprocess.run(
        ["bash", "-c", script], env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stderr}\n{done.stdout}"
    return done.stdout


def same_shape(shown: Any, got: Any, where: str = "") -> None:
    """What the document shows is there: the same keys, at every level (of a list, in its first item)."""
    if isinstance(shown, dict) and shown:
        assert isinstance(got, dict), where
        # the examples of long rows show only some of their keys
        assert set(shown) <= set(got), where
        for key, value in shown.items():
            same_shape(value, got[key], f"{where}.{key}")
    elif isinstance(shown, list) and shown:
        assert got, where
        same_shape(shown[0], got[0], f"{where}[0]")
    elif isinstance(shown, int | float) and not isinstance(shown, bool):
        assert isinstance(got, int | float), where
    elif shown is not None:
        assert type(got) is type(shown), where


def test_every_documented_command_works_and_answers_as_shown(omni2: Running, tokens: dict[str, str]) -> None:
    script, shown = CURL, {}
    for number, (kind, text) in enumerate(BLOCKS):
        if kind == "bash":
            script += f"echo '@@{number}'\n{text}"
            following = BLOCKS[number + 1] if number + 1 < len(BLOCKS) else ("", "")
            if following[0] == "json":
                shown[number] = json.loads(following[1])
    printed = bash(script, BASE=omni2.url, **tokens)
    answers = {int(part.split("\n", 1)[0]): part.split("\n", 1)[1] for part in printed.split("@@")[1:]}
    assert len(shown) >= 8
    for number, example in shown.items():
        same_shape(example, json.loads(answers[number]), f"block {number}")
    assert PASSWORD == "correct horse battery staple"


PAGES = ("models", "tools", "conversations", "limits", "stopping")
"""They have commands of their own, run by tests/test_<name>_doc.py and its like."""


def test_every_address_has_a_command() -> None:
    said = "".join(text for kind, text in BLOCKS if kind == "bash")
    said += "".join((BASE_DIR / "docs" / f"{name}.md").read_text() for name in PAGES)
    for operation in operations():
        if operation.path in OPENAI_PATHS:
            continue  # docs/openai.md: tests/test_openai_doc.py
        address = re.escape(operation.path)
        address = re.sub(r"\\{\w+\\}", r"[^/\\s\"]+", address)
        assert re.search(address + r"[\"?`]", said), operation


def test_the_program_for_the_live_socket_works(omni2: Running, tokens: dict[str, str]) -> None:
    (program,) = [text for kind, text in BLOCKS if kind == "python"]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "BASE": omni2.url, **tokens},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.split() == ["hello", "snapshot"], done.stderr


def test_the_commands_of_the_original_description_work_byte_for_byte(omni2: Running, tokens: dict[str, str]) -> None:
    port = omni2.url.rpartition(":")[2]

    def run(command: str, *more: str) -> str:
        """The command as it is, a header after it where a right is needed, and the port if 8090 is taken."""
        command = command.replace("<token>", tokens["TOKEN"]).replace(f":{PORT}/", f":{port}/")
        return bash(" ".join([command, *more]))

    right = f"""-H "Authorization: Bearer {tokens["ADMIN_TOKEN"]}" """
    enabled = json.loads(run(ENABLE, right))
    assert (enabled["user_id"], enabled["ttl_hours"]) == ("test@example.com", 1)
    streamed = run(ASK)
    assert streamed.startswith("event: session\n")
    turn_id = json.loads(streamed.split("data: ", 1)[1].split("\n", 1)[0])["turn_id"]
    assert "\nevent: done\n" in streamed

    def stored() -> list[str]:
        flows = json.loads(run(CHECK, right))["flows"]
        return [flow["checkpoint"] for flow in flows if flow["turn_id"] == turn_id]

    eventually(lambda: "flow_end" in stored(), "the turn is in the history")
    expected = ["auth_check", "block_check", "usage_check", "llm_thinking", "llm_complete", "flow_end"]
    assert stored() == expected[::-1]
    own = f"""-H "Authorization: Bearer {tokens["TOKEN"]}" """
    assert len(json.loads(run(CHECK, own))["flows"]) == len(json.loads(run(CHECK, right))["flows"])
