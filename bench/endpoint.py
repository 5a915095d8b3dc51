"""What the whole endpoint costs: beside itself without tracking, beside a bare Django view, and with a thousand chats.

A really started Omni2 (PostgreSQL, Valkey, persister), and three web processes on Daphne beside each other: the
product, the product without tracking (bench.beside.untracked, on the same database) and a bare asynchronous view
(bench.beside.bare). All of them ask the same scripted model, which is a process of its own. The clients are in this
process; each chat has a connection of its own and checks its own tokens.
"""

import asyncio
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench.section import Plan, WrongResult
from bench.sides import AT_LEAST, AT_MOST, Row, rounds, times

if TYPE_CHECKING:
    from bench.chats import Chat, Clients
    from tests.running import Running

USERS = 200
"""None of them comes near his limits of a day, 500 requests, or of 8 turns at once."""

PAIRS, PAIRS_FULL = 22, 60
TURNS_A_ROUND = 24
ALONE_A_ROUND = 6
IN_FLIGHT = 6
T_95 = 2.093
"""Student's t for 20 pairs; for more of them it is a little too much, not too little."""

AT_ONCE = 1000
WAVES, WAVES_FULL = 1, 10
POOL = 10
WARM_TURNS = 150
RESTS_S = 1.0
OPEN_FILES = 8192

APPLICATIONS = {
    "ours": "omni2.asgi:application",
    "untracked": "bench.beside.untracked:application",
    "bare": "bench.beside.bare:application",
}


@dataclass
class Side:
    """One web process, and who asks it."""

    pid: int
    clients: "Clients"
    resident_mb: list[float] = field(default_factory=list)
    """after each wave"""
    streaming: list[int] = field(default_factory=list)
    """how many chats got tokens at the same time, in each wave"""

    def cpu_s(self) -> float:
        """What all threads of the process used so far, those that ended included."""
        # the clock of another process: clock_getcpuclockid(3), which Python does not offer
        return time.clock_gettime_ns(~self.pid << 3 | 2) / 1e9

    def memory_mb(self) -> float:
        with open(f"/proc/{self.pid}/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@dataclass(frozen=True, slots=True)
class Figure:
    """One round of one side."""

    cpu_ms: float
    """of the web process, a turn"""
    first_token_ms: float
    """the median of the round"""
    alone_ms: float = 0.0
    """the same with one chat at a time"""


def run(plan: Plan) -> list[Row]:
    """Rows 3 and 8."""
    _raise_open_files()
    _start_servers()
    from tests.running import running

    with (
        _model() as url,
        running(llm_base_url=url, web=0, OMNI2_MAX_TURNS=str(2 * AT_ONCE), DATABASE_POOL_SIZE=str(POOL)) as omni2,
    ):
        tokens = omni2.orm(_people)
        sides = {name: _side(omni2, application, tokens) for name, application in APPLICATIONS.items()}
        omni2.wait_until_ready()
        found = asyncio.run(_run(sides, plan))
        _check(omni2, sides)
    return found


async def _run(sides: dict[str, Side], plan: Plan) -> list[Row]:
    for side in sides.values():
        await side.clients.some(WARM_TURNS, "spoken", in_flight=IN_FLIGHT)
    pairs, waves = (PAIRS_FULL, WAVES_FULL) if plan.full else (PAIRS, WAVES)
    return [*await _turns(sides, pairs), *await _waves(sides, waves)]


# --- row 3 ---------------------------------------------------------------------------------------


async def _turns(sides: dict[str, Side], pairs: int) -> list[Row]:
    figures = [await _round(sides) for _ in range(pairs + 1)][1:]
    ours, untracked, bare = ([each[name] for each in figures] for name in ("ours", "untracked", "bare"))
    found = []
    for name, attribute, unit in (
        ("CPU of the web process, whole turn of 20 tokens", "cpu_ms", "ms a turn"),
        ("time to first token, one chat at a time", "alone_ms", "ms"),
        (f"time to first token, {IN_FLIGHT} chats of each side at once, all cores busy", "first_token_ms", "ms"),
    ):
        mine = [getattr(each, attribute) for each in ours]
        without = [getattr(each, attribute) for each in untracked]
        found.append(_upper_end(3, name, mine, without, unit=unit, against="tracking off", goal=1.10))
        others = [getattr(each, attribute) for each in bare]
        found.append(times(3, name, mine, others, unit=unit, against="a bare Django SSE view", goal=1.5))
    return found


async def _round(sides: dict[str, Side]) -> dict[str, Figure]:
    """So many turns of each side, taken in turn one by one: whatever else the machine does, it does to all of them.
    Each side is a process of its own, so what it used is told apart all the same."""
    alone: dict[str, list[Chat]] = {name: [] for name in sides}
    for number in range(ALONE_A_ROUND):
        for name in _in_turn(list(sides), number):
            alone[name].append(await sides[name].clients.ask("spoken"))
    began = {name: side.cpu_s() for name, side in sides.items()}
    chats: dict[str, list[Chat]] = {name: [] for name in sides}
    left = iter(range(TURNS_A_ROUND))

    async def one_after_the_other() -> None:
        for number in left:
            for name in _in_turn(list(sides), number):
                chats[name].append(await sides[name].clients.ask("spoken"))

    await asyncio.gather(*(one_after_the_other() for _ in range(IN_FLIGHT)))
    return {name: _figure(chats[name], side.cpu_s() - began[name], alone[name]) for name, side in sides.items()}


def _in_turn(names: list[str], number: int) -> list[str]:
    """Another one first each time, and every other time backwards: what one leaves behind to be done meets each of
    the others as often."""
    first = number // 2 % len(names)
    turned = names[first:] + names[:first]
    return turned if number % 2 == 0 else turned[::-1]


def _figure(chats: "Sequence[Chat]", cpu_s: float, alone: "Sequence[Chat]" = ()) -> Figure:
    return Figure(cpu_s / len(chats) * 1000, _first_token_ms(chats), _first_token_ms(alone) if alone else 0.0)


def _first_token_ms(chats: "Sequence[Chat]") -> float:
    return statistics.median(chat.first_token_s for chat in chats) * 1000


def _upper_end(
    number: int, name: str, ours: Sequence[float], other: Sequence[float], *, unit: str, against: str, goal: float
) -> Row:
    """The ratio is the upper end of the 95 % interval of the mean of the pairs' ratios."""
    ratios = [mine / theirs for mine, theirs in zip(ours, other, strict=True)]
    mean, half = statistics.mean(ratios), T_95 * statistics.stdev(ratios) / len(ratios) ** 0.5
    return Row(
        number=number,
        name=f"{name}, upper end of 95 %",
        ours=statistics.median(ours),
        other=statistics.median(other),
        unit=unit,
        goal=goal,
        sense=AT_MOST,
        against=against,
        ratio=mean + half,
        ratio_of="ours / theirs",
        spread=f"{min(ratios):.3g}…{max(ratios):.3g}",
        note=f"{len(ratios)} pairs, mean {mean:.3f}, interval {mean - half:.3f} to {mean + half:.3f}",
    )


# --- row 8 ---------------------------------------------------------------------------------------


async def _waves(sides: dict[str, Side], waves: int) -> list[Row]:
    ours, bare = sides["ours"], sides["bare"]
    started_mb = ours.memory_mb()
    figures = await rounds({"ours": lambda: _wave(ours), "bare": lambda: _wave(bare)}, count=waves)
    mine, theirs = figures["ours"], figures["bare"]
    return [
        Row(
            8, "chats that got tokens at once, one process, all complete and in order", min(ours.streaming), "chats",
            AT_ONCE, AT_LEAST, note=f"database pool of {POOL}",
        ),
        times(
            8, f"CPU of the web process, {AT_ONCE:,} chats of 20 tokens in 5 s", [each.cpu_ms for each in mine],
            [each.cpu_ms for each in theirs], unit="ms a chat", against="a bare Django SSE view", goal=1.5,
        ),
        _memory(f"memory after {waves + 1} waves, beside before them", ours.resident_mb[-1], started_mb),
        _memory(f"memory after {waves + 1} waves, beside after the first", ours.resident_mb[-1], ours.resident_mb[0]),
    ]  # fmt: skip


def _memory(name: str, ours: float, before: float) -> Row:
    return Row(
        8, name, ours, "MB", 1.1, AT_MOST, other=before, against="itself", ratio=ours / before, ratio_of="ours / theirs"
    )


async def _wave(side: Side) -> Figure:
    began = side.cpu_s()
    chats = await side.clients.some(AT_ONCE, "slowly", in_flight=AT_ONCE)
    figure = _figure(chats, side.cpu_s() - began)
    side.streaming.append(_most_at_once(chats))
    await asyncio.sleep(RESTS_S)
    side.resident_mb.append(side.memory_mb())
    return figure


def _most_at_once(chats: "Sequence[Chat]") -> int:
    """How many were between their first token and their end at the same time."""
    steps = sorted([(chat.first_token_at_s, 1) for chat in chats] + [(chat.ended_at_s, -1) for chat in chats])
    most = now = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


# --- what is measured, and what is around it -------------------------------------------------------


def _raise_open_files() -> None:
    """For this process and those it starts: each chat takes one here and two in the web process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if wanted < 3 * AT_ONCE:
        raise SystemExit(
            f"bench: {AT_ONCE} chats at once need {3 * AT_ONCE} open files; the limit is {hard} (ulimit -n)"
        )
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _start_servers() -> None:
    """PostgreSQL as `make run` starts it: the tests' own forgets what the disk costs. Redis is `running`'s."""
    from omni2 import embedded
    from tests import servers

    folder = servers.prepare()
    postgres = embedded.start_postgres(folder / "pg", folder / "s")
    servers.keep(postgres, "PostgreSQL", signal.SIGQUIT)
    os.environ.update(DATABASE_URL=embedded.postgres_url(folder / "s"), DJANGO_SETTINGS_MODULE="omni2.settings")
    import django

    django.setup()


@contextmanager
def _model() -> Iterator[str]:
    """The scripted model in a process of its own; its base URL."""
    from tests import servers

    process = subprocess.Popen([sys.executable, "-m", "bench.beside.model"], stdout=subprocess.PIPE, text=True)
    servers.keep(process, "model")
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def _people() -> list[str]:
    """The users, and a token of each."""
    from omni2.accounts.models import ApiToken, User

    users = User.objects.bulk_create([User(email=f"user{number}@example.com") for number in range(USERS)])
    return [ApiToken.objects.issue(user)[1] for user in users]


def _side(omni2: "Running", application: str, tokens: list[str]) -> Side:
    from bench.chats import Clients

    process = omni2.start_web(application=application)
    return Side(process.pid, Clients(omni2.urls[-1], tokens))


def _check(omni2: "Running", sides: dict[str, Side]) -> None:
    """Every turn of the tracked side is stored whole, none of the untracked one; all are charged."""
    from tests.running import eventually

    tracked, let_in = sides["ours"].clients.asked, sides["ours"].clients.asked + sides["untracked"].clients.asked
    whole = "SELECT count(*) FROM turns WHERE outcome = 'completed' AND checkpoints = 6"
    try:
        eventually(lambda: omni2.sql(whole)[0][0] >= tracked, "all turns are stored", limit_s=60)
    except AssertionError as problem:
        raise WrongResult(f"{problem}: {omni2.sql(whole)[0][0]} of {tracked}") from None
    stored: Any = omni2.sql("SELECT count(*) FROM turns")[0][0]
    charged: Any = omni2.sql("SELECT count(*) FROM turn_usage WHERE ended_at IS NOT NULL AND output_tokens = 20")[0][0]
    if stored != tracked or charged != let_in:
        raise WrongResult(f"{tracked} turns tracked and {stored} stored; {let_in} let in and {charged} charged")
