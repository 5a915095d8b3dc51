"""`make screenshots`: the pictures of the documentation, taken from a really running Omni2.

It starts `manage.py up` on a folder of its own, sends the traffic of the demonstration (scripted
model, labelled as such) and photographs the pages with Chromium. About a minute; nothing is left
behind but the pictures in docs/pictures/.
"""

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import django
import httpx2
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.chromium import chromium

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
QUIET = ("--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync")
WIDE, SMALL = (1400, 760), (390, 800)
START_LIMIT_S = 120.0
LONG_MS = 20_000

ADMIN = "admin@example.com"
THEO, LOU, DORA, BELLA = (f"{name}@demonstration.example" for name in ("theo", "lou", "dora", "bella"))
TOOLS = "Compare the time here and in Tokyo, and what is 19 times 23?"


# --- a running Omni2 ------------------------------------------------------------------------------


@contextmanager
def started(folder: Path) -> Iterator[str]:
    """`manage.py up` on a data folder of its own; its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    # what is set outside leads elsewhere: this one has servers, settings and people of its own
    ours = ("OMNI2_", "LLM_", "REDIS_", "DATABASE_URL", "SECRET_KEY")
    for name in [name for name in os.environ if name.startswith(ours)]:
        del os.environ[name]
    os.environ |= {"OMNI2_DATA_DIR": str(folder / "data"), "OMNI2_PORT": str(port)}
    os.environ["DJANGO_SETTINGS_MODULE"] = "omni2.settings"
    url = f"http://127.0.0.1:{port}"
    with (folder / "up.log").open("wb") as log:
        running = subprocess.Popen([sys.executable, "manage.py", "up"], cwd=ROOT, stdout=log, stderr=log)
    try:
        _until_ready(url, running, folder / "up.log")
        # only now: the settings ask where its servers are
        django.setup()
        yield url
    finally:
        running.send_signal(signal.SIGINT)
        running.wait(60)


def _until_ready(url: str, running: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while True:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except OSError:
            if running.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"Omni2 did not start:\n{log.read_text(errors='replace')}")
            time.sleep(0.2)


# --- what happens in it ---------------------------------------------------------------------------


class Stage:
    """The six demonstration users and their scripted model, on a thread of their own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def open(self) -> None:
        from chat import demonstration
        from chat.scripted_model import ScriptedModel
        from chat.traffic import Traffic, make_cast

        self.tokens = make_cast()
        model = ScriptedModel(key=secrets.token_urlsafe(24), keep_requests=False)
        address = asyncio.run_coroutine_threadsafe(model.start(), self._loop).result()
        demonstration.announce(demonstration.ModelServer(address, model.key, os.getpid()))
        self.traffic = Traffic(self.url, self.tokens, timedelta(seconds=12), 2.0, lambda _: None)

    def play(self) -> Counter[str]:
        """The traffic of `manage.py demo` for a while, until its last turn is over."""
        return asyncio.run_coroutine_threadsafe(self.traffic.send(), self._loop).result()

    def ask(self, email: str, question: str) -> Callable[[], object]:
        """One question more, without waiting; call what is returned to wait for its end."""
        from chat.traffic import CAST, Act

        person = next(each for each in CAST if each.email == email)

        async def turn() -> None:
            async with httpx2.AsyncClient(base_url=self.url, timeout=120) as client:
                await self.traffic._turn(client, person, Act(question))

        return asyncio.run_coroutine_threadsafe(turn(), self._loop).result


def prepare(url: str) -> dict[str, Any]:
    """Give the admin a name, and Dora, who has no password, a browser session; its state."""
    from django.conf import settings
    from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
    from django.contrib.sessions.backends.db import SessionStore

    from omni2.accounts.models import User

    User.objects.filter(email=ADMIN).update(name="Ada Lovelace")
    dora = User.objects.get(email=DORA)
    session = SessionStore()
    session[SESSION_KEY] = str(dora.pk)
    session[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]
    session[HASH_SESSION_KEY] = dora.get_session_auth_hash()
    session.create()
    cookie = {"name": settings.SESSION_COOKIE_NAME, "value": session.session_key, "path": "/", "expires": -1}
    more = {"domain": "127.0.0.1", "httpOnly": True, "secure": False, "sameSite": "Lax"}
    return {"cookies": [cookie | more], "origins": []}


# --- the photographer -----------------------------------------------------------------------------


def signed_in(browser: Browser, url: str, password: str) -> dict[str, Any]:
    """The admin signs in as people do; the state of his browser."""
    page = browser.new_page(base_url=url)
    page.goto("/login/")
    page.get_by_label("E-mail").fill(ADMIN)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="Live").wait_for()
    state: Any = page.context.storage_state()
    page.context.close()
    return dict(state)


def visit(browser: Browser, url: str, theme: Any, size: tuple[int, int], state: Any) -> BrowserContext:
    return browser.new_context(
        base_url=url,
        color_scheme=theme,
        viewport={"width": size[0], "height": size[1]},
        storage_state=state,
        locale="en-GB",
        reduced_motion="reduce",
    )


def take(page: Page, name: str) -> None:
    page.mouse.move(0, 0)
    page.screenshot(path=PICTURES / f"{name}.png", animations="disabled")


def watch(page: Page, *emails: str) -> None:
    """Enable monitoring, as a click on "Watch someone" does."""
    for email in emails:
        page.get_by_role("button", name="Watch someone").first.click()
        page.get_by_label("Who").fill(email)
        page.get_by_role("option").first.click()
        page.get_by_label("Reason").fill("Ticket 4711")
        page.get_by_role("button", name="Watch", exact=True).click()
        page.locator(f'#people [data-user="{email}"]').wait_for()


def take_live(page: Page, stage: Stage, name: str) -> None:
    """Theo's answer is being made, with tools; Lou has just been refused."""
    page.goto(f"/live/?user={THEO}&user={LOU}")
    page.locator(".panel .turn").nth(3).wait_for()
    stage.ask(LOU, "One more question, please?")()
    page.wait_for_function("!document.getElementById('delay').hidden", timeout=LONG_MS)
    over = stage.ask(THEO, TOOLS)
    theo = page.locator(f'.panel[data-user="{THEO}"]')
    theo.locator('[data-state="running"] [data-checkpoint="tool_call"]').nth(2).wait_for(timeout=LONG_MS)
    theo.locator('[data-checkpoint="llm_thinking"][data-state="running"]').wait_for(timeout=LONG_MS)
    page.wait_for_timeout(500)
    take(page, name)
    over()


def take_session(page: Page, name: str) -> None:
    """Theo's turn with three tools, one step opened."""
    page.goto(f"/flows/?user_id={THEO}")
    page.get_by_role("link", name=TOOLS).first.click()
    page.locator('[data-checkpoint="tool_call"]').first.click()
    page.locator(".details").wait_for()
    take(page, name)


def take_all(browser: Browser, url: str, password: str, stage: Stage, dora: Any) -> None:
    admin = signed_in(browser, url, password)
    page = visit(browser, url, "light", WIDE, admin).new_page()
    page.goto("/live/")
    watch(page, THEO, LOU, BELLA)
    page.context.close()
    stage.play()
    for theme in ("light", "dark"):
        page = visit(browser, url, theme, WIDE, admin).new_page()
        take_live(page, stage, f"live-{theme}")
        page.goto("/flows/")
        take(page, f"history-{theme}")
        take_session(page, f"session-{theme}")
        page.context.close()
        take_chat(visit(browser, url, theme, WIDE, dora), f"chat-{theme}")
    take_live(visit(browser, url, "light", SMALL, admin).new_page(), stage, "live-small")
    take_chat(visit(browser, url, "dark", SMALL, dora), "chat-small")


def take_chat(context: BrowserContext, name: str) -> None:
    """Dora, in one of her conversations, while the next answer comes."""
    page = context.new_page()
    page.goto("/chat/")
    page.get_by_label("Message").fill("What time is it in Berlin?")
    page.keyboard.press("Enter")
    page.get_by_text("How it was answered").wait_for(timeout=LONG_MS)
    page.get_by_label("Message").fill("And why does the water come back twice a day?")
    page.keyboard.press("Enter")
    page.locator(".answer").nth(1).wait_for(timeout=LONG_MS)
    page.wait_for_timeout(1500)
    take(page, name)
    context.close()


def main() -> None:
    path = chromium()
    if path is None:
        sys.exit("No Chromium is installed.")
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="omni2-pictures-") as folder, started(Path(folder)) as url:
        stage = Stage(url)
        stage.open()
        dora = prepare(url)
        password = (Path(folder) / "data" / "admin-password").read_text().strip()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=path, args=list(QUIET))
            take_all(browser, url, password, stage, dora)
            browser.close()
    for picture in sorted(PICTURES.glob("*.png")):
        print(f"{picture.stat().st_size / 1000:>6.0f} kB  {picture.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
