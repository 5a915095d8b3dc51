"""The commands and the program in docs/openai.md work as they stand there."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from omni2.env import BASE_DIR
from tests.llm_server import LlmServer
from tests.openapi import OPENAI_PATHS
from tests.running import Running, running
from tests.test_curl_examples import BLOCK, CURL, bash, same_shape

pytestmark = pytest.mark.slow
DOC = (BASE_DIR / "docs" / "openai.md").read_text()
BLOCKS = BLOCK.findall(DOC)


@pytest.fixture(scope="module")
def omni2() -> Iterator[Running]:
    with LlmServer() as llm, running(**llm.environment) as started:
        yield started


@pytest.fixture(scope="module")
def variables(omni2: Running) -> dict[str, str]:
    return {"BASE": omni2.url, "TOKEN": omni2.create_token("bob@example.com")}


def test_each_command_answers_as_shown(variables: dict[str, str]) -> None:
    commands = [text for kind, text in BLOCKS if kind == "bash"]
    shown = [json.loads(text) for kind, text in BLOCKS if kind == "json"]
    printed = bash(CURL + "echo @@\n".join(commands), **variables).split("@@\n")
    assert len(commands) == len(shown) == len(printed) == 2
    for example, answers in zip(shown, printed, strict=True):
        same_shape(example, json.loads(answers.splitlines()[-1]))


def test_each_address_has_a_command() -> None:
    said = "".join(text for kind, text in BLOCKS if kind == "bash")
    for path in OPENAI_PATHS:
        assert re.search(re.escape(path).replace(r"\{model\}", r"\$MODEL") + r"[\s\"]", said), path


def test_the_program_streams_and_makes_a_round_with_a_tool(variables: dict[str, str]) -> None:
    (program,) = [text for kind, text in BLOCKS if kind == "python"]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **variables, "QUESTION": "script:client_tools"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.splitlines() == [
        "You said: Hello (scripted)",
        "the model asks for weather {'city': 'Tromsø'}",
        "The tools say: 4 degrees, rain (scripted)",
    ], done.stderr
