"""The model of the tests: the scripted model behind real HTTP, in a thread with a loop of its own.

A pytest plugin (`-p tests.llm_server`) with the fixture `llm`; `LlmServer` serves tests that start
Omni2 as a process as well. Which script is played is said in the message ("script:hang") or in the
model's name: see chat/scripted_model.py.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

KEY = "scripted"
MODEL = "scripted-model"


class LlmServer:
    """A scripted model one can ask from any loop, thread or process. Use it as a context manager."""

    def __init__(self) -> None:
        # imported late: the plugin is loaded before Django is set up
        from chat.scripted_model import ScriptedModel

        self.model = ScriptedModel(key=KEY)
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="scripted-model", daemon=True)

    def __enter__(self) -> "LlmServer":
        self._thread.start()
        self.url = self._run(self.model.start())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self.model.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    @property
    def requests(self) -> list[Any]:
        """What it was asked, in order (chat.scripted_model.Seen)."""
        return self.model.requests

    @property
    def aborted(self) -> list[Any]:
        """The requests whose client went away before the answer was over."""
        return [seen for seen in self.requests if seen.aborted]

    @property
    def environment(self) -> dict[str, str]:
        """What a started Omni2 needs to use it as its model."""
        return {"LLM_MODEL": MODEL, "LLM_BASE_URL": self.url, "LLM_API_KEY": KEY, "LLM_ATTEMPTS": "1"}

    def wait_until(self, holds: Callable[[], object], *, seconds: float = 30) -> None:
        """Wait until something holds that another thread brings about."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, "it never happened"
            time.sleep(0.01)


@pytest.fixture(scope="session")
def _llm_server() -> Iterator[LlmServer]:
    with LlmServer() as server:
        yield server


@pytest.fixture
def llm(_llm_server: LlmServer, settings: Any) -> LlmServer:
    """The scripted model, configured as Omni2's model; nothing was asked of it yet."""
    settings.LLM_MODEL = MODEL
    settings.LLM_BASE_URL = _llm_server.url
    settings.LLM_API_KEY = KEY
    # a failure is shown once; those who test retries say so
    settings.LLM_ATTEMPTS = 1
    _llm_server.requests.clear()
    return _llm_server
