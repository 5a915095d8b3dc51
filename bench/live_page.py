"""`python -m bench.live_page`: what the live wall and the session page cost a browser.

A really started Omni2 (PostgreSQL, Valkey, web process, persister), its own pages in Chromium, and
checkpoints that go the whole way: Redis, relay, socket, page. Prints a table and writes it into
docs/performance.md. About two minutes; nothing is left behind but those lines.
"""

import json
import os
import re
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- live page figures -->", "<!-- end of live page figures -->"
HEADING = "## The live wall and the session page in a browser"
SAID = """\
`python -m bench.live_page` starts Omni2, opens its pages in Chromium and measures there. Scrolling goes
through all rows in 200 frames, several times as fast as anybody can read. Processor time is that of the
page's process with all its threads, drawing without a graphics card included; unlike time by the clock
it does not hold what else runs on the machine.

Of a big turn only the rows near the view are drawn (`static/js/flow_rows.js`). Drawn whole, as before,
the same turn took 0.9 s of script and layout at once, and 34 to 60 ms a frame of scrolling. What is left
out between two rows is a margin of its own and not a custom property: those are inherited, and changing
one on each frame styled every row anew, three times the work."""
QUIET = ("--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync")

ROUNDS = 625
"""Rounds of the big turn: eight checkpoints each, 5,003 with its three checks."""

APPENDED = 300
FRAMES = 200
TURNS = int(os.environ.get("BENCH_TURNS", "6000"))
"""Turns of an hour's traffic, fed as fast as the page draws them."""

WARM_TURNS = 600
"""Turns after which memory is first looked at: by then old ones have begun to leave."""

BATCH_TURNS = 20
WATCHER = "olga@example.com"
LIMIT_MS = 60_000

# Notes, in the page: when the first snapshot came, and when rows were painted.
NOTES = """
window.notes = {};
const Plain = WebSocket;
window.WebSocket = class extends Plain {
  constructor(...words) {
    super(...words);
    notes.socket ??= performance.now();
    this.addEventListener("message", ({ data }) => {
      if (data.includes('"type":"snapshot"')) notes.snapshot ??= performance.now();
      notes.frames = (notes.frames ?? 0) + 1;
    });
  }
};
const look = () => {
  if (notes.painted) return;
  if (document.querySelectorAll(".row").length < 10) return requestAnimationFrame(look);
  requestAnimationFrame(() => setTimeout(() => { notes.painted = performance.now(); }));
};
requestAnimationFrame(look);
"""

SCROLL = """async ([selector, frames]) => {
  const place = selector ? document.querySelector(selector) : document.scrollingElement;
  const long = [];
  const observer = new PerformanceObserver((list) => long.push(...list.getEntries().map((one) => one.duration)));
  observer.observe({ entryTypes: ["longtask"] });
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  place.scrollTop = 0;
  await frame();
  const deltas = [], step = (place.scrollHeight - place.clientHeight) / frames;
  let before = await frame(), holes = 0;
  for (let at = 1; at <= frames; at += 1) {
    place.scrollTop = step * at;
    const now = await frame();
    deltas.push(now - before);
    before = now;
    const middle = document.elementFromPoint(innerWidth / 2, innerHeight / 2);
    holes += middle?.closest(".row, .turn-head, .axis") ? 0 : 1;
  }
  observer.disconnect();
  return { deltas, long, holes };
}"""


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table."""

    what: str
    value: str


def main() -> int:
    from tests import servers

    servers.start(servers.prepare())
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "omni2.settings")
    import django

    django.setup()
    from tests.running import running

    with running(web=1) as omni2, chromium_browser() as browser:
        figures = Bench(omni2, browser).run()
    show(figures)
    return 0


@contextmanager
def chromium_browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    from tests.chromium import chromium

    path = chromium()
    if path is None:
        sys.exit("No Chromium is installed.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        yield browser
        browser.close()


# --- what happens ---------------------------------------------------------------------------------


class Turns:
    """Turns as the chat records them, appended to the product's log at once."""

    def __init__(self, omni2: Any, user_id: str) -> None:
        from flows import log

        self.omni2, self.user_id = omni2, user_id
        self.session_id = str(uuid.uuid4())
        self.lines: list[log.Line] = []
        omni2.redis.script_load(log.APPEND.source)
        # a turn of a process that is not known is ended by the sweep, as abandoned
        self.process = str(omni2.sql("SELECT process_id FROM serving_processes WHERE ended_at IS NULL")[0][0])

    def make(self, turn_id: str, name: str, parent: str | None, moment_us: int, **metadata: Any) -> str:
        """One checkpoint; its id. It is sent by `send`."""
        from flows.checkpoints import iso_time, uuid7
        from flows.log import Line

        flow_id = uuid7(moment_us)
        document = {
            "flow_id": flow_id,
            "user_id": self.user_id,
            "session_id": self.session_id,
            "turn_id": turn_id or flow_id,
            "checkpoint": name,
            "parent_id": parent,
            "metadata": metadata,
            "created_at": iso_time(moment_us),
        }
        text = json.dumps(document, separators=(",", ":")).encode()
        self.lines.append(Line(self.user_id, turn_id or flow_id, text))
        return flow_id

    def begin(self, question: str, at_us: int) -> tuple[str, str]:
        """The checks of a turn: its id, and the parent of its first round."""
        told = {"status": "passed", "method": "token", "process": self.process, "question": question}
        turn_id = self.make("", "auth_check", None, at_us, **told)
        block = self.make(turn_id, "block_check", turn_id, at_us + 900, status="passed")
        return turn_id, self.make(turn_id, "usage_check", block, at_us + 1900, status="passed", used=3, limit=500)

    def round(self, turn_id: str, usage: str, number: int, at_us: int, tools: int = 3) -> None:
        """The model chooses tools, they answer: 2 + 2 × tools checkpoints in a fifth of a second."""
        said = "An answer of about two hundred characters, as it is kept in a preview. " * 3
        thinking = self.make(
            turn_id, "llm_thinking", usage, at_us, status="started", model="scripted", round=number, input=said[:200]
        )
        self.make(
            turn_id, "llm_complete", thinking, at_us + 90_000, status="ok", finish_reason="tool_call",
            duration_ms=90, ttft_ms=30, input_tokens=120, output_tokens=24, cost_usd=0.0001, output=said[:200],
        )  # fmt: skip
        for tool in range(tools):
            called = at_us + 91_000 + tool * 300
            given = json.dumps({"office": "Oslo", "query": said[:80]})
            call = self.make(
                turn_id, "tool_call", thinking, called, status="started", tool=f"tool_{tool}", arguments=given
            )
            failed = {"status": "error", "error": "timed out"} if number % 40 == tool else {"status": "ok"}
            self.make(
                turn_id,
                "tool_result",
                call,
                called + 30_000 + tool * 20_000,
                duration_ms=30,
                result=said[:200],
                **failed,
            )

    def end(self, turn_id: str, at_us: int, duration_ms: float) -> None:
        self.make(turn_id, "flow_end", turn_id, at_us, outcome="completed", duration_ms=duration_ms, ttft_ms=33)

    def send(self, at_once: int = 400) -> None:
        """Append and publish all that was made, in order."""
        from flows.log import pack_append

        while self.lines:
            self.omni2.redis.execute_command(*pack_append(self.lines[:at_once], lambda _: True))
            del self.lines[:at_once]


def now_us() -> int:
    return time.time_ns() // 1000


class Bench:
    """The product, a browser, and what was measured."""

    def __init__(self, omni2: Any, browser: Any) -> None:
        self.omni2, self.browser = omni2, browser
        self.figures: list[Figure] = []
        omni2.create_user(WATCHER, "Olga Ladyzhenskaya", "operators")

    def run(self) -> list[Figure]:
        self._big_turn()
        self._traffic()
        return self.figures

    def _watched(self, name: str) -> str:
        user_id = str(self.omni2.create_user(f"{name.lower()}@example.com", name).user_id)
        request = urllib.request.Request(
            f"{self.omni2.url}/api/v1/monitoring/enable",
            data=json.dumps({"user_id": user_id, "ttl_hours": 1}).encode(),
            headers={"Authorization": f"Bearer {self.omni2.create_token(WATCHER)}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=20):
            return user_id

    def _page(self, path: str) -> Any:
        context = self.browser.new_context(viewport={"width": 1400, "height": 860}, base_url=self.omni2.url)
        cookies = self.omni2.sign_in(WATCHER)
        context.add_cookies([{"name": name, "value": value, "url": self.omni2.url} for name, value in cookies.items()])
        page = context.new_page()
        page.add_init_script(NOTES)
        page.goto(path)
        return page

    def _note(self, what: str, value: str) -> None:
        self.figures.append(Figure(what, value))
        print(f"{what}: {value}", flush=True)

    # --- one big turn -----------------------------------------------------------------------------

    def _big_turn(self) -> None:
        user_id = self._watched("Bob")
        turns = Turns(self.omni2, user_id)
        begun = now_us() - (ROUNDS + 20) * 200_000
        turn_id, usage = turns.begin("How is every invoice of the last ten years to be read?", begun)
        for number in range(ROUNDS):
            turns.round(turn_id, usage, number + 1, begun + 3000 + number * 200_000)
        checkpoints = len(turns.lines)
        turns.send()
        self._live_wall(user_id, turns, turn_id, usage, checkpoints)
        self._until(lambda: self._stored(turn_id) >= checkpoints, "the turn is stored")
        self._session_page(turns, checkpoints)

    def _live_wall(self, user_id: str, turns: Turns, turn_id: str, usage: str, checkpoints: int) -> None:
        path = f"/live/?user={user_id}"
        page = self._page(path)
        page.wait_for_function("notes.painted", timeout=LIMIT_MS)
        self._note("the very first visit, with nothing in the browser's cache", ms(page.evaluate("notes.painted")))
        before = self._cpu_s()
        page.goto(path)
        page.wait_for_function("notes.painted", timeout=LIMIT_MS)
        notes, cpu = page.evaluate("notes"), self._cpu_s() - before
        answered = page.evaluate("performance.getEntriesByType('navigation')[0].responseEnd")
        each = f"a running turn of {checkpoints:,} checkpoints on the live wall"
        self._note(f"{each}: navigation to painted rows", ms(notes["painted"]))
        steps = [answered, notes["socket"], notes["snapshot"], notes["painted"]]
        parts = " / ".join(ms(after - start) for start, after in zip([0, *steps], steps, strict=False))
        self._note(
            "of it until the document is there / its scripts ask / the snapshot begins / rows are painted", parts
        )
        self._note("processor time of the browser's page for it", ms(cpu * 1000))
        self._note("rows in the page, of 2,503", str(page.locator(".row").count()))
        self._scroll("live wall", page, ".panel-body")
        self._append(page, turns, turn_id, usage)
        page.context.close()

    def _scroll(self, where: str, page: Any, selector: str) -> None:
        before = self._cpu_s()
        measured = page.evaluate(SCROLL, [selector, FRAMES])
        cpu = (self._cpu_s() - before) / FRAMES * 1000
        deltas = sorted(measured["deltas"])
        longest = max(measured["long"], default=0)
        self._note(
            f"{where}: a frame while scrolling through it, half / 95 of 100",
            f"{ms(share(deltas, 0.5))} / {ms(share(deltas, 0.95))}",
        )
        self._note(f"{where}: processor time a frame of it", ms(cpu))
        self._note(
            f"{where}: tasks over 50 ms in {FRAMES} frames, the longest", f"{len(measured['long'])}, {ms(longest)}"
        )
        self._note(f"{where}: frames with a hole where rows should be", str(measured["holes"]))

    def _append(self, page: Any, turns: Turns, turn_id: str, usage: str) -> None:
        page.evaluate("document.querySelector('.panel-body').scrollTop = 1e9")
        page.wait_for_timeout(1000)
        idle = self._cpu_s()
        page.wait_for_timeout(4000)
        idle = (self._cpu_s() - idle) / 4
        frames, before, begun = page.evaluate("notes.frames"), self._cpu_s(), time.monotonic()
        for number in range(APPENDED // 8):
            turns.round(turn_id, usage, ROUNDS + number + 1, now_us())
            turns.send()
            page.wait_for_timeout(30)
        sent = APPENDED // 8 * 8
        page.wait_for_function("most => notes.frames >= most", arg=frames + sent, timeout=LIMIT_MS)
        page.wait_for_timeout(200)
        busy = self._cpu_s() - before - idle * (time.monotonic() - begun)
        self._note("processor time for one more checkpoint, drawing and painting included", ms(busy / sent * 1000))
        self._note("processor time a second while that turn only ticks", ms(idle * 1000))

    def _cpu_s(self) -> float:
        """Processor time of the browser's page processes: others' load is not in it, as it is in the clock's."""
        found = self.browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
        return sum(float(one["cpuTime"]) for one in found if one["type"] == "renderer")

    def _session_page(self, turns: Turns, checkpoints: int) -> None:
        path = f"/flows/{turns.session_id}/"
        page = self._page(path)
        page.wait_for_function("notes.painted", timeout=LIMIT_MS)
        page.goto(path)
        page.wait_for_function("notes.painted", timeout=LIMIT_MS)
        each = f"the same turn on the session page ({checkpoints:,} checkpoints and more)"
        self._note(f"{each}: navigation to painted rows", ms(page.evaluate("notes.painted")))
        self._scroll("session page", page, "")
        page.context.close()

    def _stored(self, turn_id: str) -> int:
        return int(self.omni2.sql("SELECT count(*) FROM interaction_flows WHERE turn_id = %s", turn_id)[0][0])

    # --- an hour of traffic -----------------------------------------------------------------------

    def _traffic(self) -> None:
        user_id = self._watched("Mira")
        page = self._page(f"/live/?user={user_id}")
        page.wait_for_function("notes.snapshot", timeout=LIMIT_MS)
        meter = page.context.new_cdp_session(page)
        meter.send("Performance.enable")
        turns, begun = Turns(self.omni2, user_id), time.monotonic()
        self._feed(page, turns, WARM_TURNS)
        warm = self._memory(page, meter)
        self._feed(page, turns, TURNS - WARM_TURNS)
        took, after = time.monotonic() - begun, self._memory(page, meter)
        drawn = page.evaluate("notes.frames")
        self._note(
            f"{TURNS:,} turns ({drawn:,} checkpoints) one after the other",
            f"{took:.0f} s, {drawn / took:,.0f} checkpoints a second",
        )
        self._note(
            f"memory of the page's scripts after {WARM_TURNS:,} turns, after {TURNS:,}",
            f"{warm[0]:.1f} MB, {after[0]:.1f} MB",
        )
        self._note("elements of the page then", f"{warm[1]:,}, {after[1]:,}")
        self._note("what the panel says of the rest", page.locator(".panel-counts").inner_text().strip())
        page.context.close()

    def _feed(self, page: Any, turns: Turns, count: int) -> None:
        for first in range(0, count, BATCH_TURNS):
            last = ""
            for number in range(first, min(count, first + BATCH_TURNS)):
                at = now_us()
                turn_id, usage = turns.begin(f"Question {number} of the hour: what has changed since?", at)
                turns.round(turn_id, usage, 1, at + 3000, tools=1)
                turns.end(turn_id, at + 200_000, 200)
                last = turn_id
            turns.send()
            page.wait_for_function(
                "id => document.querySelector(`[data-turn-id='${id}'][data-outcome]`)", arg=last, timeout=LIMIT_MS
            )

    @staticmethod
    def _memory(page: Any, meter: Any) -> tuple[float, int]:
        meter.send("HeapProfiler.collectGarbage")
        page.wait_for_timeout(500)
        meter.send("HeapProfiler.collectGarbage")
        found = {one["name"]: one["value"] for one in meter.send("Performance.getMetrics")["metrics"]}
        return found["JSHeapUsedSize"] / 1e6, int(page.evaluate("document.querySelectorAll('*').length"))

    @staticmethod
    def _until(check: Any, what: str) -> None:
        from tests.running import eventually

        eventually(check, what, limit_s=60)


# --- what is said ---------------------------------------------------------------------------------


def ms(value: float) -> str:
    return f"{value:.0f} ms" if value >= 10 else f"{value:.2f} ms"


def share(ordered: Sequence[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def show(figures: Sequence[Figure]) -> None:
    """Write the table into docs/performance.md, between its own marks."""
    lines = ["| what | measured |", "|---|---|", *(f"| {one.what} | {one.value} |" for one in figures)]
    day, load = time.strftime("%Y-%m-%d", time.gmtime()), os.getloadavg()[0]
    head = f"Last run: {day}, {os.cpu_count()} cores with a load of {load:.1f}, Chromium without a window."
    table = "\n".join([BEGIN, head, "", *lines, END])
    text = PAGE.read_text()
    if BEGIN in text:
        text = re.sub(f"{BEGIN}.*?{END}", lambda _: table, text, flags=re.DOTALL)
    else:
        text = f"{text.rstrip()}\n\n{HEADING}\n\n{SAID}\n\n{table}\n"
    PAGE.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
