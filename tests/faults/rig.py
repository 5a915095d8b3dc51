"""A started product under load, with watchers, and the account at the end of each round.

    with started(Plan(chats=200, watchers=20), web=3) as rig:
        async with rig.round() as round:
            await round.kill(rig.omni2.persisters[0])
        outcome = await round.reckon()          # outcome.problems is empty when everything adds up

A round has users of its own, so each account is complete by itself.
"""

import asyncio
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

from omni2.env import BASE_DIR
from tests import servers
from tests.faults import arithmetic
from tests.faults.arithmetic import Sum
from tests.faults.load import Load, Person, Told, mixed
from tests.faults.watchers import Watcher, spread
from tests.running import Process, Running, eventually, free_port, get, running

ADA = "ada@example.com"
CROWD = 16
WATCHED = 4
SETTLE_LIMIT_S = 150.0
"""How long all may take to come to rest: a dead process' turns take a minute."""


@dataclass(slots=True)
class Plan:
    """How much load, how often the fault, and the dice."""

    chats: int = 10
    watchers: int = 3
    times: int = 2
    rate: float = 10.0
    """turns a second to aim at"""
    words: int = 6
    seed: int = 1
    long: bool = False
    """whether there is time for what takes a minute"""
    minutes: float = 1.0
    """how long a soak takes"""

    @property
    def pace_s(self) -> float:
        """Between two words, so that the chats in flight make about `rate` turns a second."""
        return self.chats / self.rate / self.words


@dataclass(slots=True)
class Outcome:
    """What came of a scenario: the account, and what was measured besides."""

    injections: int
    sum: Sum
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def problems(self) -> list[str]:
        return self.sum.problems


class Rig:
    """A started product and all that is known about it."""

    def __init__(self, omni2: Running, plan: Plan, notes: Path) -> None:
        self.omni2 = omni2
        self.plan = plan
        self.notes = notes
        self.random = Random(plan.seed)
        self.latest: Round | None = None
        self._rounds = 0
        self._ada = ""

    @asynccontextmanager
    async def round(self, **more: Any) -> AsyncIterator["Round"]:
        """Load and watchers inside; it begins when they are in full flow, and ends when the last chat has ended."""
        self._rounds += 1
        round_ = self.latest = Round(self, self._rounds, **more)
        await asyncio.to_thread(round_.prepare)
        await round_.begin()
        try:
            yield round_
        finally:
            await round_.end()

    def people(self, prefix: str, names: Sequence[str]) -> list[Person]:
        """Users with limits that no load reaches, and their tokens."""

        def make() -> list[Person]:
            from chat.models import UserLimits
            from omni2.accounts.models import ApiToken, User

            made = []
            for name in names:
                user = User.objects.create(email=f"{prefix}-{name}@example.com", name=name)
                UserLimits.objects.create(
                    user=user, requests_per_day=10**6, tokens_per_day=10**9, cost_unlimited=True, turns_at_once=10**4
                )
                made.append(Person(user.email, ApiToken.objects.issue(user)[1]))
            return made

        return list(self.omni2.orm(make))

    def ada(self) -> str:
        """The token of an admin who may watch everybody."""
        if not self._ada:
            self.omni2.create_user(ADA, "Ada Lovelace", is_superuser=True, is_staff=True)
            self._ada = self.omni2.create_token(ADA)
        return self._ada

    def monitor(self, people: Sequence[Person]) -> None:
        def enable() -> None:
            from monitoring.models import MonitoredUser
            from omni2.accounts.models import User

            ada = User.objects.get(email=ADA)
            for person in people:
                MonitoredUser.enable(person.email, by=ada, ttl=timedelta(hours=5))

        self.omni2.orm(enable)

    def block(self, person: Person) -> None:
        def block() -> None:
            from chat.models import UserBlock
            from omni2.accounts.models import User

            UserBlock.objects.create(user=User.objects.get(email=person.email), message="Not now.")

        self.omni2.orm(block)


class Round:
    """One load, from its first chat to its account."""

    def __init__(
        self,
        rig: Rig,
        number: int,
        *,
        chats: int | None = None,
        watchers: int | None = None,
        urls: list[str] | None = None,
        messages: Callable[[Random], str] | None = None,
    ) -> None:
        self.rig, self.omni2, self.random = rig, rig.omni2, rig.random
        self.number = number
        self.chats = rig.plan.chats if chats is None else chats
        self.watcher_count = rig.plan.watchers if watchers is None else watchers
        self.urls = urls or rig.omni2.urls
        self.messages = messages or mixed(rig.plan.words, rig.plan.pace_s)
        self.injections = 0
        self.moments: list[str] = []
        """what was done when, to repeat it"""
        self.began_s = 0.0
        self.watchers: list[Watcher] = []
        self.figures: dict[str, Any] = {}
        self._stop = asyncio.Event()
        self._running: list[asyncio.Task[None]] = []
        self._given_up_before = 0

    def prepare(self) -> None:
        """Users of this round; no event loop needed."""
        rig, prefix = self.rig, f"round{self.number}"
        ada = rig.ada()
        self.crowd = rig.people(prefix, [f"user{n}" for n in range(min(CROWD, max(2, self.chats // 2)))])
        self.watched = rig.people(prefix, [f"watched{n}" for n in range(min(WATCHED, max(1, self.watcher_count)))])
        self.blocked = rig.people(prefix, ["blocked"])
        rig.block(self.blocked[0])
        rig.monitor(self.watched)
        self._given_up_before = arithmetic.given_up(self.omni2)

        def load(people: list[Person], tag: str) -> Load:
            return Load(people, self.urls, self.messages, self.random, tag=f"{prefix}{tag}-")

        self.load, self.slow, self.refused = load(self.crowd, "c"), load(self.watched, "w"), load(self.blocked, "b")
        self.watchers = spread(ada, [person.email for person in self.watched], self.urls, self.watcher_count)

    @property
    def told(self) -> list[Told]:
        return [*self.load.told, *self.slow.told, *self.refused.told]

    @property
    def users(self) -> list[str]:
        return [person.email for person in (*self.crowd, *self.watched, *self.blocked)]

    # --- its life -------------------------------------------------------------------------------------

    async def begin(self) -> None:
        self.began_s = time.monotonic()
        for watcher in self.watchers:
            watcher.start()
        await self.until(lambda: all(watcher.is_there for watcher in self.watchers), "the watchers are there")
        spread_s = self.chats / self.rig.plan.rate
        for work in (
            self.load.run(self._stop, at_once=self.chats, spread_s=spread_s),
            # about one turn a second and user, so that what a watcher must show stays below a pre-roll's size
            self.slow.run(self._stop, at_once=len(self.watched), pause_s=0.5),
            # fewer than 30 a minute, which are all written down
            self.refused.run(self._stop, at_once=1, pause_s=4),
        ):
            self._running.append(asyncio.create_task(work))
        await self.until(self.in_flow, "the load is in flow")

    def in_flow(self) -> bool:
        """Whether chats end as well as begin."""
        return len(self.load.in_flight) >= self.chats * 0.9 and sum(bool(told.end) for told in self.load.told) > 1

    async def end(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._running)
        self.figures["load_s"] = round(time.monotonic() - self.began_s, 1)

    async def until(self, check: Callable[[], object], what: str, *, limit_s: float = 60) -> None:
        """Wait on the event loop until it holds; AssertionError after the limit."""
        deadline = time.monotonic() + limit_s
        while not check():
            assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}"
            for task in self._running:
                if task.done():
                    task.result()
            await asyncio.sleep(0.02)

    async def until_sure(self, check: Callable[[], object], what: str, *, limit_s: float = 60) -> Any:
        """The same for a check that asks servers: in a thread."""
        return await asyncio.to_thread(eventually, check, what, limit_s=limit_s)

    # --- faults ---------------------------------------------------------------------------------------

    async def pause(self, low_s: float, high_s: float | None = None) -> None:
        """A moment at random."""
        await asyncio.sleep(low_s if high_s is None else self.random.uniform(low_s, high_s))

    def note(self, what: str, *, injection: bool = True) -> None:
        """Write down what is done now."""
        self.injections += injection
        self.moments.append(f"{time.monotonic() - self.began_s:.3f} {what}")

    async def kill(self, process: Process) -> float:
        """kill -9; the moment, by time.monotonic()."""
        self.note(f"kill {process.name}")
        moment = time.monotonic()
        await asyncio.to_thread(process.kill)
        return moment

    async def answers(self, url: str, *, limit_s: float = 60) -> None:
        """Returns when this web process answers."""
        await self.until_sure(lambda: get(url + "/healthz")[0] == 200, f"{url} answers", limit_s=limit_s)

    async def ready(self, url: str) -> dict[str, Any]:
        """What /readyz says."""
        return json.loads((await asyncio.to_thread(get, url + "/readyz", timeout_s=20))[1] or b"{}")

    # --- the account ----------------------------------------------------------------------------------

    async def reckon(self, **allowed: Any) -> Outcome:
        """Wait until all has come to rest, and compare (`allowed`: see `arithmetic.compare`). The watchers stay until
        then."""
        began = time.monotonic()
        found = await asyncio.to_thread(self._settled, allowed)
        self.figures["settled_s"] = round(time.monotonic() - began, 1)
        await self._compare_watchers(found)
        for watcher in self.watchers:
            await watcher.stop()
        if not allowed.get("may_give_up"):
            found.problems += await asyncio.to_thread(self._not_well)
        if self.rig.plan.long:
            found.problems += await asyncio.to_thread(self._not_reconciled)
        self.figures |= found.figures | self.first_tokens()
        self.figures["cut"] = sum(told.cut for told in self.told)
        self.figures["unreached"] = sum(not told.sent for told in self.told)
        self.figures["refused"] = sum(told.refused for told in self.load.told)
        self.figures["watcher_visits"] = sum(len(watcher.visits) for watcher in self.watchers)
        self.figures["fresh_prerolls"] = sum(watcher.page.snapshots.count(False) for watcher in self.watchers)
        if found.problems:
            self.figures["moments"] = self.moments
        return Outcome(self.injections, found, self.figures)

    def _settled(self, allowed: dict[str, Any]) -> Sum:
        """The account as soon as it has nothing to object to, or as it is after the limit."""
        deadline = time.monotonic() + SETTLE_LIMIT_S
        while True:
            found = self._account(allowed)
            if not found.problems or time.monotonic() > deadline:
                return found
            time.sleep(0.5)

    def _account(self, allowed: dict[str, Any]) -> Sum:
        if count := arithmetic.waiting(self.omni2):
            return Sum(problems=[f"{count} entries wait in the log"])
        return arithmetic.compare(self.omni2, self.told, self.users, given_up_before=self._given_up_before, **allowed)

    @property
    def connections(self) -> int:
        """How many connections to PostgreSQL its web processes may have at once."""
        return 10 * len(self.omni2.web)

    async def _compare_watchers(self, found: Sum, *, limit_s: float = 30) -> None:
        rows = {}
        for person in self.watched:
            rows[person.email] = await asyncio.to_thread(arithmetic.rows_of, self.omni2, person.email)
        deadline = time.monotonic() + limit_s
        while True:
            problems = [each for watcher in self.watchers for each in watcher.problems(rows[watcher.user_id])]
            if not problems or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.2)
        found.problems += problems
        found.doubled += sum("twice" in problem for problem in problems)

    def _not_reconciled(self) -> list[str]:
        """What the product's own ledger has to object to: its accounts and ours know nothing of each other."""
        try:
            self.omni2.manage("reconcile", "--since", "3h", "--wait", "60")
        except AssertionError as problem:
            return [str(problem)]
        return []

    def _not_well(self) -> list[str]:
        """What the processes say of themselves."""
        problems = []
        for process, url in zip(self.omni2.web, self.omni2.urls, strict=True):
            if not process.alive:
                continue
            checks = json.loads(get(url + "/readyz", timeout_s=20)[1] or b"{}").get("checks", {})
            if count := checks.get("tracking", {}).get("given_up"):
                problems.append(f"{process.name} gave up {count} checkpoints")
        return problems

    def first_tokens(self, since_s: float = 0.0, until_s: float = math.inf) -> dict[str, float]:
        """How long the first token took, of chats without a tool that began then (by time.monotonic())."""
        times = [
            told.first_token_s
            for told in self.load.told
            if told.first_token_s is not None and not told.results and since_s <= told.began_s < until_s
        ]
        return {f"first_token_p{share}_ms": percentile_ms(times, share) for share in (50, 95)}


def percentile_ms(times_s: Sequence[float], share: int) -> float:
    """Of seconds, in milliseconds."""
    if not times_s:
        return math.nan
    return round(sorted(times_s)[min(len(times_s) - 1, len(times_s) * share // 100)] * 1000, 1)


# --- start ------------------------------------------------------------------------------------------


@contextmanager
def model_process(folder: Path) -> Iterator[tuple[str, Path]]:
    """The scripted model as a process: its URL, and the file in which it writes down what it was asked."""
    port, notes = free_port(), folder / f"asked-{free_port()}"
    notes.touch()
    words = [sys.executable, "-m", "tests.faults.model", str(port), str(notes)]
    process = subprocess.Popen(words, cwd=BASE_DIR, env=os.environ | {"PYTHONPATH": str(BASE_DIR)})
    servers.keep(process, "scripted model", rank=1)
    try:
        eventually(lambda: get(f"http://127.0.0.1:{port}/v1/models")[0] == 401, "the model answers")
        yield f"http://127.0.0.1:{port}/v1", notes
    finally:
        process.kill()
        process.wait()


@contextmanager
def started(plan: Plan, **options: Any) -> Iterator[Rig]:
    """A product of its own, PostgreSQL included, with a model of its own. `options` as for `running`."""
    with model_process(Path(os.environ["OMNI2_TEST_FOLDER"])) as (url, notes):
        options = {"web": 2, "persisters": 1, "own_postgres": True, **options}
        with running(llm_base_url=url, **options) as omni2:
            yield Rig(omni2, plan, notes)
