"""The commands in docs/stopping.md work as they stand there."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from omni2.env import BASE_DIR
from tests.llm_server import LlmServer
from tests.running import running
from tests.test_curl_examples import BLOCK, same_shape

pytestmark = pytest.mark.slow


def test_the_worked_example_works(tmp_path: Path) -> None:
    blocks = BLOCK.findall((BASE_DIR / "docs" / "stopping.md").read_text())
    shown = {}
    script = "set -eu -o pipefail\n"
    for number, (kind, text) in enumerate(blocks):
        if kind == "bash":
            script += f"echo '@@{number}'\n{text.replace('curl ', 'curl --fail-with-body -sS ')}\necho\n"
            if number + 1 < len(blocks) and blocks[number + 1][0] == "json":
                shown[number] = json.loads(blocks[number + 1][1])
    with LlmServer() as model, running(llm_base_url=model.url, LLM_MODEL="scripted-hang_in_middle") as omni2:
        omni2.create_user("ada@example.com", "Ada Lovelace", is_superuser=True, is_staff=True)
        tokens = {"TOKEN": omni2.create_token("test@example.com"), "ADMIN_TOKEN": omni2.create_token("ada@example.com")}
        done = subprocess.run(
            ["bash", "-c", script],
            env={**os.environ, **tokens, "BASE": omni2.url},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{done.stderr}\n{done.stdout}"
        model.wait_until(lambda: model.aborted)
    answers = {int(part.split("\n", 1)[0]): part.split("\n", 1)[1] for part in done.stdout.split("@@")[1:]}
    assert len(shown) == 4
    for number, example in shown.items():
        same_shape(example, json.loads(answers[number]), f"block {number}")
    assert "event: error\n" in done.stdout
    assert '"code":"stopped","message":"Please ask for something shorter."' in done.stdout.replace('": "', '":"')
