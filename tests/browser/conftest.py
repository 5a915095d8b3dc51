"""A real Chromium against a really started Omni2: two web processes, a persister, the scripted model.

    page = visit("olga@example.com", "/live/")        # a browser of her own, signed in
    with asking(user, "script:slow …"):               # a question from a program, meanwhile

At the end of each test no browser may have seen a console error, or asked anything of another machine.
"""

import json
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from tests.chromium import chromium, required
from tests.llm_server import LlmServer
from tests.running import Running, running

HERE = Path(__file__).parent
QUIET = ("--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync")
WIDE, NARROW, HEIGHT = 1400, 390, 860
# how long something may take until it shows; a passing test never waits so long, a busy machine may
PATIENCE_MS = 30_000
expect.set_options(timeout=PATIENCE_MS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.slow)


# Package scope: while Playwright runs, this thread has a running loop, which other tests cannot use.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    path = chromium()
    if path is None:
        if required():
            pytest.fail("No Chromium is installed, and REQUIRE_BROWSER=1.")
        pytest.skip("No Chromium is installed.")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        yield started
        started.close()


@pytest.fixture(scope="package")
def omni2(browser: Browser) -> Iterator[Running]:
    with LlmServer() as llm, running(llm_base_url=llm.url, web=2) as started:
        started.create_user("ada@example.com", "Ada Lovelace", is_staff=True, is_superuser=True)
        started.create_user("olga@example.com", "Olga Ladyzhenskaya", "operators")
        started.create_user("august@example.com", "August Möbius", "auditors")
        started.create_user("charlie@example.com", "Charlie Roe")
        yield started


@pytest.fixture
def someone(omni2: Running) -> Callable[[str], str]:
    """`someone("Bob Kahn")`: a new user without rights; returns his user_id."""

    def make(name: str) -> str:
        address = f"{name.split()[0].lower()}.{uuid.uuid4().hex[:8]}@example.com"
        return str(omni2.create_user(address, name).user_id)

    return make


class Contexts:
    """Browser contexts that are lent to tests and used again, emptied of all but the cache of static files.

    A new one costs a second and a half of CPU time for its first page, one used again half a second.
    """

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self._idle: dict[tuple[str, str, int], list[BrowserContext]] = {}

    def new(self, url: str, theme: str, width: int, **more: Any) -> BrowserContext:
        size = {"width": width, "height": HEIGHT}
        return self.browser.new_context(viewport=size, color_scheme=theme, base_url=url, **more)

    @contextmanager
    def lent(self, url: str, theme: str, width: int) -> Iterator[BrowserContext]:
        idle = self._idle.setdefault((url, theme, width), [])
        context = idle.pop() if idle else self.new(url, theme, width)
        with _watched(context) as spoiled:
            yield context
        if spoiled:
            context.close()
            return
        for page in context.pages:
            page.close()
        context.clear_cookies()
        context.clear_permissions()
        context.unroute_all()
        context.set_offline(False)
        idle.append(context)

    def close(self) -> None:
        for contexts in self._idle.values():
            for context in contexts:
                context.close()


# what cannot be taken back
LASTING = ("add_init_script", "expose_binding", "expose_function", "set_extra_http_headers", "set_geolocation", "close")


@contextmanager
def _watched(context: BrowserContext) -> Iterator[list[str]]:
    """The list fills with what was done to the context that would last."""
    done: list[str] = []
    for name in LASTING:
        original = getattr(context, name)

        def call(*args: Any, _name: str = name, _original: Callable[..., Any] = original, **more: Any) -> Any:
            done.append(_name)
            return _original(*args, **more)

        setattr(context, name, call)
    try:
        yield done
    finally:
        for name in LASTING:
            delattr(context, name)


class Visits:
    """Browsers of several people, and what went wrong in them."""

    def __init__(self, contexts: Contexts, omni2: Running) -> None:
        self.contexts, self.omni2 = contexts, omni2
        self.problems: list[str] = []
        self.forgiven: list[str] = []
        self._open = ExitStack()

    def __call__(
        self,
        user_id: str | None,
        path: str = "/",
        *,
        theme: str = "light",
        width: int = WIDE,
        web: int = 0,
        fresh: bool = False,
        **more: Any,
    ) -> Page:
        """A page of a browser of one's own. `fresh`, or anything more for Playwright's new_context: one
        that was never anywhere."""
        url = self.omni2.urls[web]
        if fresh or more:
            context = self._open.enter_context(closing(self.contexts.new(url, theme, width, **more)))
        else:
            context = self._open.enter_context(self.contexts.lent(url, theme, width))
        if user_id is not None:
            cookies = self.omni2.sign_in(user_id)
            context.add_cookies([{"name": name, "value": value, "url": url} for name, value in cookies.items()])
        context.on("page", self._listen)
        self._open.callback(context.remove_listener, "page", self._listen)
        page = context.new_page()
        self._forget(page)
        page.goto(path)
        return page

    def _forget(self, page: Page) -> None:
        """Empty what an earlier visitor left beside the cookies."""
        session = page.context.new_cdp_session(page)
        for url in self.omni2.urls:
            session.send(
                "Storage.clearDataForOrigin",
                {"origin": url, "storageTypes": "local_storage,indexeddb,cache_storage,service_workers"},
            )
        session.detach()

    def _listen(self, page: Page) -> None:
        page.on("console", lambda said: said.type == "error" and self._said(said))
        page.on("pageerror", lambda error: self.problems.append(f"script: {error}"))
        page.on("request", lambda request: self._asked(request.url))

    def _said(self, message: ConsoleMessage) -> None:
        self.problems.append(f"console: {message.text} ({message.location['url']})")

    def _asked(self, url: str) -> None:
        if not url.startswith((*self.omni2.urls, "data:", "blob:")):
            self.problems.append(f"asked elsewhere: {url}")

    def forgive(self, text: str) -> None:
        """What a test brings about itself, such as a server that is away."""
        self.forgiven.append(text)

    def close(self) -> None:
        self._open.close()
        assert [one for one in self.problems if not any(text in one for text in self.forgiven)] == []


@pytest.fixture(scope="package")
def contexts(browser: Browser) -> Iterator[Contexts]:
    made = Contexts(browser)
    yield made
    made.close()


@pytest.fixture
def visit(contexts: Contexts, omni2: Running) -> Iterator[Visits]:
    visits = Visits(contexts, omni2)
    yield visits
    visits.close()


class Api:
    """The public API as programs use it, with a token for each user."""

    def __init__(self, omni2: Running) -> None:
        self.omni2 = omni2
        self.tokens: dict[str, str] = {}

    def __call__(self, user_id: str, path: str, body: Any = None, *, web: int = 0) -> tuple[int, Any]:
        if user_id not in self.tokens:
            self.tokens[user_id] = self.omni2.create_token(user_id)
        request = urllib.request.Request(
            self.omni2.urls[web] + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.tokens[user_id]}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as answer:
            return answer.code, json.load(answer)

    def watch(self, user_id: str, hours: float = 1, **more: Any) -> None:
        """Olga enables the monitoring of this user."""
        body = {"user_id": user_id, "ttl_hours": hours, **more}
        status, answer = self("olga@example.com", "/api/v1/monitoring/enable", body)
        assert status == 200, answer

    def ask(self, user_id: str, message: str, *, session_id: str | None = None, web: int = 0) -> Any:
        """The whole answer of one question."""
        body = {"message": message, **({"session_id": session_id} if session_id else {})}
        return self(user_id, "/api/v1/ask", body, web=web)[1]

    @contextmanager
    def asking(self, user_id: str, message: str, *, session_id: str | None = None, web: int = 0) -> Iterator[list[Any]]:
        """A question that is being answered meanwhile; the answer is in the list at the end."""
        answers: list[Any] = []
        thread = threading.Thread(
            target=lambda: answers.append(self.ask(user_id, message, session_id=session_id, web=web)), daemon=True
        )
        self(user_id, "/api/v1/turns")  # makes the token here: the database is this thread's
        thread.start()
        yield answers
        thread.join(60)


@pytest.fixture
def api(omni2: Running) -> Api:
    return Api(omni2)
