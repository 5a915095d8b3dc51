"""Rows 4 and 5: how soon a watcher sees a checkpoint, and what watchers cost the web process.

Everything is really started: a recorder (the product's tracker and flusher in a process of its own), Valkey, the
product on Daphne, a process of readers. Beside it the usual way: a listener hands each message to a channel layer,
Channels consumers on another Daphne hand it to their sockets; it is fed by the same recorder. And bare: PUBLISH
to raw subscribers.
"""

import asyncio
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

from bench.section import Plan, WrongResult
from bench.servers import own_servers
from bench.sides import AT_MOST, Row, less, percentile, rounds, times
from omni2.env import BASE_DIR
from omni2.supervisor import commands
from tests.running import free_port, get

RATE = 1000.0
LOW_RATE = 50.0
SAMPLED = 5
"""Readers whose frames are timed, spread over the crowd."""
ROUNDS = 3
SECONDS = 0.7
USUAL_S, USUAL_WAIT_S = 0.3, 2.0
"""At 1,000 checkpoints a second the usual way falls behind, further the longer it lasts: so it is given less, and
what it has not delivered soon after is left out. Both are to its advantage."""

COST_ROUNDS = 2
COST_FRAMES = 15_000
COST_FRAMES_A_SECOND = 5_000.0
SETTLE_S = 0.5
FRAME_TAKES_S = 0.001
"""More than a frame costs in any way of this section."""

WARM = 20
PEOPLE = 40


class Helper:
    """A process that takes orders and answers them."""

    def __init__(self, name: str) -> None:
        words = [sys.executable, "-m", name]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=BASE_DIR)

    def tell(self, **order: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise WrongResult(f"{self.process.args} ended")
        return json.loads(line)

    def ask(self, **order: Any) -> Any:
        self.tell(**order)
        return self.answer()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass(slots=True)
class Web:
    """A started Daphne."""

    process: "subprocess.Popen[bytes]"
    port: int

    @property
    def kib(self) -> int:
        """Resident memory."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    @property
    def cpu_s(self) -> float:
        """CPU it has used, all threads, by the scheduler's own account."""
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


@contextmanager
def web(application: str, folder: Path) -> Iterator[Web]:
    """This application on Daphne, as `make run` starts it; what it says is in the folder."""
    port = free_port()
    words = list(commands.with_python(commands.web("127.0.0.1", port)))
    words[-1] = application
    with (folder / "web.log").open("ab") as output:
        process = subprocess.Popen(words, cwd=BASE_DIR, stdout=output, stderr=output, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while get(f"http://127.0.0.1:{port}/healthz")[0] == 0:
            if process.poll() is not None or time.monotonic() > deadline:
                raise WrongResult(f"{application} does not answer")
            time.sleep(0.05)
        yield Web(process, port)
    finally:
        process.kill()
        process.wait()


OURS = "omni2.asgi:application"
USUAL = "bench.usual_watching:application"


@contextmanager
def listener() -> Iterator[None]:
    """The usual way's listener; inside, it listens."""
    words = [sys.executable, "-m", "bench.usual_watching"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, cwd=BASE_DIR)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield
    finally:
        process.kill()
        process.wait()


class Stage:
    """The helpers of a measurement, and people to watch: a new one each time, whose stream is empty."""

    def __init__(self, folder: Path, *, people: int) -> None:
        self.folder = folder
        self.token = _token_and(people)
        self.recorder, self.readers = Helper("bench.recorder"), Helper("bench.readers")
        self._numbers = iter(range(people))

    def end(self) -> None:
        self.recorder.end()
        self.readers.end()

    def person(self, kind: str) -> str:
        """The next name, without the rest of its address: "ours" are monitored, the listener hands on "usual"."""
        return f"{kind}-{next(self._numbers)}"

    def ages_ms(self, user_id: str, *, way: str, rate: float, count: int, whole: bool, frames: int = 0) -> list[float]:
        """How old each checkpoint was when it came to a sampled reader. `whole`: everybody must have all, however
        long so many `frames` take."""
        timeout_s = count / rate + (20 + frames * FRAME_TAKES_S if whole else USUAL_WAIT_S)
        self.readers.tell(do="read", expected=count, sampled=SAMPLED, timeout_s=timeout_s, all_of_them=whole)
        recorded = self.recorder.ask(way=way, user_id=user_id, rate=rate, count=count)
        found = self.readers.answer()
        if found["problems"] or recorded["given_up"] or not found["ages_ns"]:
            raise WrongResult(f"{way} to {user_id}: {found['problems'] or recorded}")
        return [age / 1e6 for age in found["ages_ns"]]


@dataclass(frozen=True, slots=True)
class Load:
    """One load of row 4."""

    watchers: int
    rate: float
    seconds: float


@dataclass(slots=True)
class Delays:
    """The four ways of a checkpoint to its readers, each measured anew by a call."""

    stage: Stage
    ours: Web
    usual: Web
    load: Load

    def sides(self) -> dict[str, Callable[[], Awaitable[list[float]]]]:
        sides = {"ours": self._ours, "bare": self._bare, "usual": self._usual}
        return sides | ({"published": self._published} if self.load.watchers == 1 else {})

    async def _ours(self) -> list[float]:
        name = self.stage.person("ours")
        path = f"/ws/flows/{name}@example.com"
        return self._measure(f"{name}@example.com", "watch", port=self.ours.port, path=path, token=self.stage.token)

    async def _usual(self) -> list[float]:
        name = self.stage.person("usual")
        is_low = self.load.rate == LOW_RATE
        return self._measure(
            f"{name}@example.com", "watch", seconds=None if is_low else USUAL_S, whole=is_low,
            port=self.usual.port, path=f"/group/{name}",
        )  # fmt: skip

    async def _bare(self) -> list[float]:
        return self._measure("bare@example.com", "subscribe", by="publish", **self._redis("bare@example.com"))

    async def _published(self) -> list[float]:
        """Ours as far as Redis: a raw subscriber of what the flusher publishes."""
        return self._measure("raw@example.com", "subscribe", **self._redis("raw@example.com"))

    @staticmethod
    def _redis(user_id: str) -> dict[str, Any]:
        from flows import keys

        return {"path": os.environ["REDIS_URL"].removeprefix("unix://"), "channel": keys.user_channel(user_id)}

    def _measure(
        self,
        user_id: str,
        way: str,
        *,
        by: str = "record",
        seconds: float | None = None,
        whole: bool = True,
        **where: Any,
    ) -> list[float]:
        load = self.load
        count = round(load.rate * (seconds or load.seconds))
        self.stage.readers.ask(do="open", way=way, count=load.watchers, **where)
        time.sleep(0.1)
        try:
            return self.stage.ages_ms(user_id, way=by, rate=load.rate, count=count, whole=whole)
        finally:
            self.stage.readers.ask(do="close")


def delays(stage: Stage, ours: Web, usual: Web) -> list[Row]:
    """Row 4."""
    found = []
    for load in (Load(1, RATE, SECONDS), Load(50, RATE, SECONDS), Load(1, LOW_RATE, 2 * SECONDS)):
        figures = asyncio.run(rounds(Delays(stage, ours, usual, load).sides(), count=ROUNDS))
        found += _delay_rows(load, figures)
    return found


def _delay_rows(load: Load, figures: dict[str, list[list[float]]]) -> Iterator[Row]:
    half = {side: [percentile(ages, 0.5) for ages in each] for side, each in figures.items()}
    late = [percentile(ages, 0.99) for ages in figures["ours"]]
    watchers = "1 watcher" if load.watchers == 1 else f"{load.watchers} watchers"
    name = f"{watchers}, {load.rate:,.0f} checkpoints a second"
    low = load.rate < RATE
    published = f"until Redis has published it: {median(half['published']):.2f} ms" if "published" in half else ""
    yield times(
        4, f"recorded to frame, p50, {name}", half["ours"], half["bare"], unit="ms",
        against="bare PUBLISH to as many raw subscribers", goal=None if low else 2.5, note=published,
    )  # fmt: skip
    yield times(
        4, f"recorded to frame, p50, {name}", half["ours"], half["usual"], unit="ms",
        against="listener, group_send, consumer", goal=None if low else 0.2,
    )  # fmt: skip
    if not low:
        yield Row(
            4, f"recorded to frame, p99, {name}", median(late), "ms", 50.0, AT_MOST,
            note=f"rounds {min(late):.3g}…{max(late):.3g}",
        )  # fmt: skip


# --- row 5 ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cost:
    """What so many watchers cost a web process that was just started, beside Channels' consumers on another."""

    kib: float
    bare_kib: float
    frame_us: float
    usual_frame_us: float


def _rest(server: Web) -> None:
    """Wait until it has dealt with all that happened: who comes while it lets thousands go is turned away."""
    while True:
        before_s = server.cpu_s
        time.sleep(SETTLE_S)
        if server.cpu_s - before_s < SETTLE_S / 10:
            return


@dataclass(slots=True)
class Costs:
    """Makes rounds of row 5."""

    stage: Stage
    watchers: int

    def once(self) -> Cost:
        """One round. Its processes are fresh, so that memory which is used again is not taken for none."""
        ours, usual = self.stage.person("ours"), self.stage.person("usual")
        with web(OURS, self.stage.folder) as server, web(USUAL, self.stage.folder) as other:
            watch = {"port": server.port, "path": f"/ws/flows/{ours}@example.com", "token": self.stage.token}
            with self._crowd(server, watch) as kib:
                frame_us = self._frame_us(server, ours)
            with self._crowd(other, {"port": other.port, "path": "/bare"}) as bare_kib:
                pass
            with self._crowd(other, {"port": other.port, "path": f"/group/{usual}"}):
                usual_frame_us = self._frame_us(other, usual)
        return Cost(kib, bare_kib, frame_us, usual_frame_us)

    @contextmanager
    def _crowd(self, server: Web, where: dict[str, Any]) -> Iterator[float]:
        """All of them connected; KiB of memory for each."""
        readers = self.stage.readers
        # what the first sockets need once: threads, connections to the servers, buffers
        readers.ask(do="open", way="watch", count=WARM, **where)
        time.sleep(SETTLE_S)
        before_kib = server.kib
        readers.ask(do="open", way="watch", count=self.watchers, **where)
        time.sleep(SETTLE_S)
        yield (server.kib - before_kib) / self.watchers
        readers.ask(do="close")
        _rest(server)

    def _frame_us(self, server: Web, name: str) -> float:
        """Microseconds of the web process' CPU for each frame that came to a watcher."""
        before_s = server.cpu_s
        user_id = f"{name}@example.com"
        # as many frames, and as many a second, whatever the crowd: the usual way can do no more, and its server
        # closes sockets that it has left alone for half a minute
        count, rate = COST_FRAMES // self.watchers, COST_FRAMES_A_SECOND / self.watchers
        frames = count * (self.watchers + WARM)
        self.stage.ages_ms(user_id, way="record", rate=rate, count=count, whole=True, frames=frames)
        return (server.cpu_s - before_s) / frames * 1e6


def costs(stage: Stage, watchers: int) -> list[Row]:
    """Row 5. The first round is dropped."""
    every = [Costs(stage, watchers).once() for _ in range(COST_ROUNDS + 1)][1:]
    return [
        times(
            5, f"memory a watcher, {watchers:,} watchers", [cost.kib for cost in every],
            [cost.bare_kib for cost in every], unit="KiB", against="a bare Channels consumer", goal=1.25,
        ),
        less(
            5, f"CPU a frame, {watchers:,} watchers", [cost.frame_us for cost in every],
            [cost.usual_frame_us for cost in every], unit="µs", goal=8,
            against="group_send, its listener not counted",
        ),
    ]  # fmt: skip


def run(plan: Plan) -> list[Row]:
    """Rows 4 and 5; each watcher of ours must have had every checkpoint once and in order."""
    crowds = (500, 5000) if plan.full else (500,)
    _allow_files(2 * max(crowds) + 500)
    os.environ.update(LLM_MODEL="scripted", OMNI2_MAX_WATCHERS=str(max(crowds) + 500))
    with own_servers() as folder, ExitStack() as stack:
        stage = Stage(folder, people=PEOPLE)
        stack.callback(stage.end)
        stack.enter_context(listener())
        with web(OURS, folder) as ours, web(USUAL, folder) as usual:
            found = delays(stage, ours, usual)
        for watchers in crowds:
            found += costs(stage, watchers)
        return found


def _token_and(people: int) -> str:
    """An admin's token; so many people are monitored."""
    from monitoring.models import MonitoredUser
    from omni2.accounts.models import ApiToken, User

    ada = User.objects.create(email="ada@example.com", name="Ada Lovelace", is_superuser=True)
    for number in range(people):
        user = User.objects.create(email=f"ours-{number}@example.com", name=f"ours-{number}")
        MonitoredUser.enable(user.email, by=ada, ttl=timedelta(hours=5))
    return str(ApiToken.objects.issue(ada)[1])


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))
