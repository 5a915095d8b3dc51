"""`make screenshots`: the pictures of the documentation, taken from a really running Omni2.

It starts `manage.py up` on a folder of its own, lets the people of docs/stage.py ask their questions
(scripted model, labelled as such) and photographs the pages with Chromium, light and dark. Each page
is tried before it is taken: nothing is scrolled sideways, axe finds nothing serious. Some minutes;
nothing is left behind but the pictures in docs/pictures/.

    .venv/bin/python -m docs.take_pictures live chat      # only these
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import django
from playwright.sync_api import Browser, Page, expect, sync_playwright

from docs.stage import (
    AIKO,
    BEFORE,
    CAST,
    JONAS,
    LATE_ORDERS,
    MEETING,
    MIRA,
    ONE_MORE,
    OVERDUE,
    SHARE,
    SHARE_AGAIN,
    SPRING,
    TIDES,
    TOMAS,
    Person,
    Stage,
)
from tests.chromium import chromium

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
QUIET = ("--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync")
WIDE, WALL, TALL, SMALL = (1400, 860), (1400, 740), (1400, 1180), (390, 844)
START_LIMIT_S = 120.0
LONG_MS = 60_000
MOST_BYTES = 250_000
SAMPLE_CHECKPOINTS = 60_000
ZONE = "Europe/Berlin"
ADMIN = "admin@example.com"
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text()
SERIOUS = """async () => (await axe.run({ resultTypes: ["violations"] })).violations
    .filter((one) => ["serious", "critical"].includes(one.impact))
    .map((one) => `${one.id}: ${one.nodes.map((node) => node.target.join(" ")).slice(0, 3).join(", ")}`)"""


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
    # Playwright keeps a loop running in this thread, on which nothing of ours is awaited
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
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


def make_sample() -> None:
    """Two months of made-up turns; their people without the word in brackets that says so, which is long."""
    from django.db.models import Value
    from django.db.models.functions import Replace

    from flows.sample_turns import DOMAIN
    from omni2.accounts.models import User

    words = ("sample_flows", "--checkpoints", str(SAMPLE_CHECKPOINTS), "--days", "60", "--users", "24")
    subprocess.run([sys.executable, "manage.py", *words], cwd=ROOT, check=True, capture_output=True)
    people = User.objects.filter(email__endswith=f"@{DOMAIN}")
    people.update(name=Replace("name", Value(" (sample)"), Value("")))


def make_admin() -> str:
    """Give the admin a name; the text of a token of his."""
    from omni2.accounts.models import ApiToken, User

    User.objects.filter(email=ADMIN).update(name="Ada Lovelace")
    return ApiToken.objects.issue(User.objects.get(email=ADMIN), name="pictures", days=1)[1]


def watch(url: str, token: str, person: Person, hours: float) -> None:
    """Enable monitoring, as a click on "Watch someone" does."""
    body = {"user_id": person.email, "ttl_hours": hours, "reason": "Ticket 4711"}
    request = urllib.request.Request(
        f"{url}/api/v1/monitoring/enable",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30):
        pass


def until_stored() -> None:
    """Returns when every turn has its outcome in PostgreSQL."""
    from flows.models import Turn

    deadline = time.monotonic() + 60
    asked = Turn.objects.filter(user_id__in=[person.email for person in CAST])
    while asked.filter(outcome=None).exists() or asked.count() < len(BEFORE):
        if time.monotonic() > deadline:
            sys.exit("The turns were not stored within a minute.")
        time.sleep(0.2)


def turn_of(question: str) -> Any:
    """The first turn that was asked so."""
    from flows.models import Turn

    return Turn.objects.filter(question=question).earliest("started_at")


# --- the photographer -----------------------------------------------------------------------------


@dataclass(slots=True)
class Photographer:
    """Opens pages as the admin or as Jonas, in both themes, and takes them."""

    browser: Browser
    url: str
    stage: Stage
    problems: list[str]
    states: dict[str, Any]

    def open(self, path: str, *, theme: Any = "light", size: tuple[int, int] = WIDE, who: str = ADMIN) -> Page:
        context = self.browser.new_context(
            base_url=self.url,
            color_scheme=theme,
            viewport={"width": size[0], "height": size[1]},
            storage_state=self.states[who],
            locale="en-GB",
            timezone_id=ZONE,
            reduced_motion="reduce",
        )
        context.set_default_timeout(LONG_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: self.problems.append(f"{path}: {error}"))
        page.goto(path)
        return page

    def take(self, page: Page, name: str) -> None:
        self.shoot(page, name)
        self.look(page, name)

    def shoot(self, page: Page, name: str) -> None:
        """The picture."""
        page.mouse.move(0, 0)
        page.evaluate("document.fonts.ready")
        file = PICTURES / f"{name}.png"
        page.screenshot(path=file, animations="disabled")
        size = file.stat().st_size
        if size > MOST_BYTES:
            self.problems.append(f"{name}: {size / 1000:.0f} kB is too much")
        print(f"{size / 1000:>6.0f} kB  {file.relative_to(ROOT)}", flush=True)

    def look(self, page: Page, name: str) -> None:
        """What is wrong with the page on it."""
        wider = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        if wider > 0:
            self.problems.append(f"{name}: can be scrolled {wider} px sideways")
        page.evaluate(AXE)
        self.problems += [f"{name}: {found}" for found in page.evaluate(SERIOUS)]


def session_of(email: str) -> dict[str, Any]:
    """A browser session of this person, as signing in makes one."""
    from django.conf import settings
    from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
    from django.contrib.sessions.backends.db import SessionStore

    from omni2.accounts.models import User

    user = User.objects.get(email=email)
    session = SessionStore()
    session[SESSION_KEY] = str(user.pk)
    session[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]
    session[HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.create()
    cookie = {"name": settings.SESSION_COOKIE_NAME, "value": session.session_key, "path": "/", "expires": -1}
    more = {"domain": "127.0.0.1", "httpOnly": True, "secure": False, "sameSite": "Lax"}
    return {"cookies": [cookie | more], "origins": []}


# --- the pictures ---------------------------------------------------------------------------------


def live(to: Photographer) -> None:
    """Mira's answer is being made: one of its tools failed, and its model is slower than usual. Tomás was refused."""
    address = "/live/?" + urlencode([("user", person.email) for person in (MIRA, TOMAS)])
    pages = {
        "live-light": to.open(address, size=WALL),
        "live-dark": to.open(address, theme="dark", size=WALL),
        "live-small": to.open(address, size=SMALL),
    }
    for page in pages.values():
        expect(page.locator(".panel .turn").nth(8)).to_be_attached(timeout=LONG_MS)
    to.stage.ask(TOMAS, ONE_MORE)()
    for page in pages.values():
        # the delay is told by the server's clock, which its first ping tells
        page.wait_for_function("!document.getElementById('delay').hidden", timeout=LONG_MS)
    over = to.stage.ask(MIRA, LATE_ORDERS)
    for page in pages.values():
        mira = page.locator(f'.panel[data-user="{MIRA.email}"]')
        mira.locator('[data-checkpoint="tool_call"]').nth(2).wait_for(timeout=LONG_MS)
        mira.locator('[data-checkpoint="llm_thinking"][data-state="running"] .is-slow').wait_for(timeout=LONG_MS)
    for name, page in pages.items():
        to.shoot(page, name)
    for name, page in pages.items():
        to.look(page, name)
        page.context.close()
    over()


def history(to: Photographer) -> None:
    """The last day with one turn that runs; and what searched in the last week and took long."""
    over = to.stage.ask(MIRA, LATE_ORDERS)
    for theme, filters in (("light", "range=24h"), ("dark", "range=7d&tool=search&slower_ms=2000")):
        page = to.open(f"/flows/?{filters}", theme=theme)
        page.locator("#turns").wait_for()
        to.take(page, f"history-{theme}")
        page.context.close()
    over()


def session(to: Photographer) -> None:
    """A turn with several tools at once, what was said beside it, one step opened."""
    turn = turn_of(OVERDUE)
    for theme in ("light", "dark"):
        page = to.open(f"/flows/{turn.session_id}/", theme=theme)
        page.locator('[data-checkpoint="tool_call"][data-state="failed"]').first.click()
        page.locator(".details").wait_for()
        to.take(page, f"session-{theme}")
        page.context.close()


def play(to: Photographer) -> None:
    """The same turn, played again and held in the middle."""
    turn = turn_of(OVERDUE)
    for theme in ("light", "dark"):
        page = to.open(f"/flows/{turn.session_id}/?play={turn.turn_id}&speed=4", theme=theme)
        page.locator('.player [data-checkpoint="auth_check"]').wait_for()
        # nobody else moves it: the browser says that little motion is wanted
        page.locator(".player-range").evaluate(
            "one => { one.value = 0.6 * one.max; one.dispatchEvent(new Event('input', { bubbles: true })); }"
        )
        page.locator('.player [data-checkpoint="tool_call"]').nth(2).wait_for()
        page.evaluate("scrollTo(0, 0)")
        to.take(page, f"play-{theme}")
        page.context.close()


def compare(to: Photographer) -> None:
    """Mira asked the same twice."""
    first, again = turn_of(SHARE.question), turn_of(SHARE_AGAIN.question)
    for theme in ("light", "dark"):
        page = to.open(f"/flows/compare/?a={first.turn_id}&b={again.turn_id}", theme=theme)
        page.locator(".pairs").wait_for()
        to.take(page, f"compare-{theme}")
        page.context.close()


def analytics(to: Photographer) -> None:
    """The last month of the sample."""
    for theme in ("light", "dark"):
        page = to.open("/analytics/?range=30d", theme=theme, size=TALL)
        page.get_by_role("link", name=f"show in {ZONE}").click()
        page.get_by_text(f"hours and days of {ZONE}").wait_for()
        page.wait_for_load_state("networkidle")
        to.take(page, f"analytics-{theme}")
        page.context.close()


def chat(to: Photographer) -> None:
    """Jonas, while his next answer comes."""
    for name, theme, size in (("light", "light", WIDE), ("dark", "dark", WIDE), ("small", "dark", SMALL)):
        page = to.open("/chat/", theme=theme, size=size, who=JONAS.email)
        box = page.get_by_label("Message")
        for number, scene in enumerate((TIDES, MEETING), start=1):
            box.fill(scene.question)
            page.keyboard.press("Enter")
            page.get_by_text("How it was answered").nth(number - 1).wait_for()
        box.fill(SPRING.question)
        page.keyboard.press("Enter")
        page.get_by_text("sun pulls").wait_for()
        page.wait_for_timeout(1500)
        to.take(page, f"chat-{name}")
        page.context.close()


PICTURE: dict[str, Callable[[Photographer], None]] = {
    each.__name__: each for each in (live, history, session, play, compare, analytics, chat)
}


def main(wanted: list[str]) -> None:
    path = chromium()
    if path is None:
        sys.exit("No Chromium is installed.")
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="omni2-pictures-") as folder, started(Path(folder)) as url:
        make_sample()
        stage = Stage(url)
        stage.open()
        token = make_admin()
        for person, hours in ((MIRA, 0.4), (TOMAS, 3.2), (AIKO, 1.0)):
            watch(url, token, person, hours)
        stage.play_before()
        until_stored()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=path, args=list(QUIET))
            states = {email: session_of(email) for email in (ADMIN, JONAS.email)}
            photographer = Photographer(browser, url, stage, [], states)
            for name in wanted or PICTURE:
                PICTURE[name](photographer)
            browser.close()
    if photographer.problems:
        sys.exit("\n".join(photographer.problems))


if __name__ == "__main__":
    main(sys.argv[1:])
