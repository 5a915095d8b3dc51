"""The commands of docs/conversations.md work as they stand there and answer as shown."""

import json
from pathlib import Path

import pytest

from tests.running import Running, eventually
from tests.test_curl_examples import BLOCK, CURL, bash, omni2, same_shape, tokens

__all__ = ["omni2", "tokens"]  # fixtures

pytestmark = pytest.mark.slow
DOC = (Path(__file__).parent.parent / "docs" / "conversations.md").read_text()
BLOCKS = BLOCK.findall(DOC)
SESSION_ID = "6f1c2f7e-0a51-4a43-9a39-5b1f3a3f0c11"


def test_the_minute_works_and_answers_as_shown(omni2: Running, tokens: dict[str, str]) -> None:
    commands = [(number, text) for number, (kind, text) in enumerate(BLOCKS) if kind == "bash"]
    script = CURL + "".join(f"echo '@@{number}'\n{text}" for number, text in commands)
    printed = bash(script, BASE=omni2.url, **tokens)
    answers = {int(part.split("\n", 1)[0]): part.split("\n", 1)[1] for part in printed.split("@@")[1:]}
    shown = {at - 1: json.loads(text) for at, (kind, text) in enumerate(BLOCKS) if kind == "json"}
    assert len(shown) == 3
    for number, example in shown.items():
        same_shape(example, json.loads(answers[number]), f"block {number}")
    assert "437" in json.loads(answers[commands[0][0]])["answer"]
    assert "> And twice that?" in answers[commands[-1][0]]
    assert omni2.sql("SELECT 1 FROM conversations WHERE session_id = %s", SESSION_ID) == []
    eventually(lambda: omni2.sql("SELECT 1 FROM turns WHERE session_id = %s", SESSION_ID), "the record stays")
