"""The minute of docs/models.md works as it stands there, and a change of the catalogue counts on every process."""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.llm_server import KEY, LlmServer
from tests.running import Running, eventually, running
from tests.test_curl_examples import BLOCK, CURL, bash, same_shape

pytestmark = pytest.mark.slow
DOC = (Path(__file__).parent.parent / "docs" / "models.md").read_text()


@pytest.fixture(scope="module")
def llm() -> Iterator[LlmServer]:
    with LlmServer() as server:
        yield server


@pytest.fixture(scope="module")
def omni2(llm: LlmServer) -> Iterator[Running]:
    """Two web processes."""
    with running(web=2, **llm.environment) as started:
        yield started


def test_the_minute_works_and_answers_as_shown(omni2: Running, llm: LlmServer) -> None:
    omni2.create_user("test@example.com")
    token = omni2.create_token("test@example.com")
    blocks = [(kind, text) for kind, text in BLOCK.findall(DOC) if kind in ("bash", "json")]
    script = CURL + "".join(f"echo; echo @@\n{text}" for kind, text in blocks if kind == "bash")
    script = script.replace(".venv/bin/python", shlex.quote(sys.executable))
    there = {"MODEL_URL": llm.url, "MODEL": "scripted-plain", "MODEL_KEY": KEY, "BASE": omni2.url, "TOKEN": token}
    printed = bash(script, **omni2.environment, **there)
    added, *answers = printed.split("@@\n")[1:]
    assert re.search(r"^quick is added\.\nIt answered within", added, re.MULTILINE)
    shown = [json.loads(text) for kind, text in blocks if kind == "json"]
    assert len(shown) == len(answers) == 2
    for example, answer in zip(shown, answers, strict=True):
        same_shape(example, json.loads(answer))
    assert json.loads(answers[0])["model"] == "quick"


def test_every_code_of_the_page_has_words_and_a_status() -> None:
    from chat.endpoint import STATUS_OF
    from chat.llm import WORDS

    told = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", DOC, re.MULTILINE))
    assert told == {code: str(STATUS_OF[code]) for code in WORDS}


def test_a_change_counts_for_the_next_turn_on_every_process(omni2: Running, llm: LlmServer) -> None:
    from chat.models import LanguageModel
    from omni2.sealing import seal

    omni2.create_user("bob@example.com", "Bob")
    headers = {"Authorization": f"Bearer {omni2.create_token('bob@example.com')}"}

    def ask(url: str, **named: str) -> tuple[int, Any]:
        answer = httpx2.post(f"{url}/api/v1/ask", json={"message": "Hello", **named}, headers=headers, timeout=60)
        said = answer.json()
        return answer.status_code, said["model"] if answer.status_code == 200 else said["code"]

    def by_all(**named: str) -> set[tuple[int, Any]]:
        return {ask(url, **named) for url in omni2.urls}

    def seal_with_their_key() -> str:
        (sealed,) = omni2.manage(
            "shell", "-v", "0", "-c", f"from omni2.sealing import seal; print(seal({KEY!r}))"
        ).splitlines()[-1:]
        return sealed

    assert len(omni2.urls) == 2
    assert by_all() == {(200, "scripted-model")}
    fields = {"model": "scripted-plain", "base_url": llm.url, "sealed_key": seal_with_their_key()}
    assert seal(KEY) != fields["sealed_key"]
    pk = omni2.orm(lambda: LanguageModel.objects.create(name="grand", is_default=True, **fields).pk)
    # that there is a catalogue at all reaches a process within a second; whatever is in it, with the very next turn
    assert by_all(model="grand") == {(200, "grand")}
    eventually(lambda: by_all() == {(200, "grand")}, "the new default answers")

    def change(**fields: Any) -> None:
        omni2.orm(lambda: LanguageModel.objects.filter(pk=pk).update(**fields))

    change(name="greater")
    assert by_all() == {(200, "greater")}
    change(model="scripted-error_401")
    assert by_all() == {(502, "llm_failed")}
    change(enabled=False)
    assert by_all(model="greater") == {(404, "model_not_found")}
    assert by_all() == {(200, "scripted-model")}
