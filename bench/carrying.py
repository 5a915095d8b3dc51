"""What one machine carries: `python -m bench.carrying` measures it and writes the figures into docs/scaling.md.

Not a section of the benchmark, since there is no other side: these are sizes to plan with. The load and the scripted
model run on the same machine as the product, so turns a second are less than they would be without them; what a turn
costs each part, by the kernel's account, is not. One and two web processes take turns.
"""

import asyncio
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.section import WrongResult
from bench.table import commit, machine
from tests import servers

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
MARKS = ("<!-- carrying -->", "<!-- end of carrying -->")

ROUNDS = 3
WARM_UP_S, ROUND_S = 1.0, 4.0
AT_ONCE = 32
USERS = 64
DISK_CHECKPOINTS = 60_000
OPEN_CHATS, OPEN_WATCHERS = 200, 200
OPEN_LIMIT_S = 150
TICKS_A_S = os.sysconf("SC_CLK_TCK")
# a turn with a tool makes 10 checkpoints, one without 6: 8 on average, and 20 tokens
MESSAGES = ("script:paced words=20 pace=0", "script:clock+paced words=20 pace=0")


@dataclass(frozen=True, slots=True)
class Round:
    """What was done in some seconds, and what it cost each part."""

    turns_a_s: float
    checkpoints_a_turn: float
    cpu_ms: dict[str, float]
    """of a turn, by part"""
    first_token_ms: float
    machine_busy: float
    """share of all cores that anybody used"""

    @property
    def whole_ms(self) -> float:
        """CPU milliseconds of a turn, all parts together."""
        return sum(self.cpu_ms.values())


def main() -> int:
    servers.start(servers.prepare())
    os.environ["DJANGO_SETTINGS_MODULE"] = "omni2.settings"
    import django

    django.setup()
    logging.getLogger("monitoring.control").setLevel(logging.ERROR)
    from tests.faults.rig import Plan, started

    with started(Plan(), web=2, persisters=1) as rig:
        lines = asyncio.run(_measure(rig))
    print("\n".join(lines))
    _write(lines)
    return 0


async def _measure(rig: Any) -> list[str]:
    people = await asyncio.to_thread(rig.people, "carrying", [f"user{number}" for number in range(USERS)])
    by_count: dict[int, list[Round]] = {1: [], 2: []}
    for number in range(ROUNDS + 1):
        for count in by_count:
            found = await _round(rig, people, rig.omni2.urls[:count])
            if number:
                by_count[count].append(found)
    disk = await asyncio.to_thread(_disk, rig)
    await asyncio.to_thread(_start_afresh, rig)
    chat_kib = await _open_chats(rig, people)
    watcher_kib, watcher_cpu = await _open_watchers(rig, people)
    return _lines(by_count, disk, chat_kib, watcher_kib, watcher_cpu)


# --- turns ------------------------------------------------------------------------------------------


async def _round(rig: Any, people: Sequence[Any], urls: list[str]) -> Round:
    """A closed loop of clients: so many always wait for an answer."""
    from tests.faults.load import Load

    load = Load(people, urls, lambda random: random.choice(MESSAGES), rig.random)
    stop = asyncio.Event()
    running = asyncio.create_task(load.run(stop, at_once=AT_ONCE * len(urls)))
    await asyncio.sleep(WARM_UP_S)
    began, before, busy = time.monotonic(), _cpu_s(rig), _busy_s()
    await asyncio.sleep(ROUND_S)
    took, after, busy = time.monotonic() - began, _cpu_s(rig), _busy_s() - busy
    stop.set()
    await running
    told = [each for each in load.told if began <= each.over_s < began + took]
    if any(each.end != "done" for each in load.told):
        raise WrongResult("not every turn was done")
    await asyncio.to_thread(_until_stored, rig, load.told)
    first = sorted(each.first_token_s for each in told)
    return Round(
        turns_a_s=len(told) / took,
        checkpoints_a_turn=statistics.mean(each.checkpoints for each in told),
        cpu_ms={part: (after[part] - before[part]) / len(told) * 1000 for part in before},
        first_token_ms=first[len(first) // 2] * 1000,
        machine_busy=busy / took / (os.cpu_count() or 1),
    )


def _until_stored(rig: Any, told: Sequence[Any]) -> None:
    """Returns when nothing waits; raises WrongResult when a checkpoint is missing then, or there is one too many."""
    from tests.faults import arithmetic
    from tests.running import eventually

    eventually(lambda: not arithmetic.waiting(rig.omni2), "all is stored", limit_s=120)
    ids = [each.turn_id for each in told]
    stored = rig.omni2.sql("SELECT count(*) FROM interaction_flows WHERE turn_id = ANY(%s::uuid[])", ids)[0][0]
    if stored != (made := sum(each.checkpoints for each in told)):
        raise WrongResult(f"{made} checkpoints were made, {stored} are stored")


def _cpu_s(rig: Any) -> dict[str, float]:
    """Seconds of CPU of each part so far."""
    omni2 = rig.omni2
    return {
        "web": sum(map(_of_family, omni2.web)),
        "persister": sum(map(_of_family, omni2.persisters)),
        "PostgreSQL": _of_family(omni2.postgres),
        "Valkey": _of_family(omni2.valkey),
    }


def _of_family(process: Any) -> float:
    from tests.faults.harm import family

    total = 0
    for pid in family(process.pid):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        # utime, stime; of the first also those of children that have ended
        total += sum(map(int, fields[11:15] if pid == process.pid else fields[11:13]))
    return total / TICKS_A_S


def _busy_s() -> float:
    """Seconds of all cores that were not idle."""
    fields = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS_A_S


# --- what stays -------------------------------------------------------------------------------------


def _disk(rig: Any) -> dict[str, float]:
    """Bytes a checkpoint takes in PostgreSQL, its indexes and its share of the turn's summary included, and in the
    users' streams in Redis."""
    omni2 = rig.omni2
    # what a short load stores is too little to tell the size of an index by
    omni2.manage("sample_flows", "--yes", "--checkpoints", str(DISK_CHECKPOINTS))
    omni2.sql("VACUUM ANALYZE omni2.interaction_flows, omni2.turns")
    ((rows, table, whole, turns),) = omni2.sql(
        "SELECT (SELECT count(*) FROM interaction_flows), pg_table_size('interaction_flows'),"
        " pg_total_relation_size('interaction_flows'), pg_total_relation_size('turns')"
    )
    names = list(omni2.redis.scan_iter("interaction_flows:*"))
    entries = sum(omni2.redis.xlen(name) for name in names)
    memory = sum(omni2.redis.memory_usage(name, samples=0) for name in names)
    return {
        "rows": rows,
        "table": table / rows,
        "indexes": (whole - table) / rows,
        "turns": turns / rows,
        "redis": memory / entries,
    }


def _start_afresh(rig: Any) -> None:
    """New web processes, warm: what the load left free in the old ones would hide what an open connection takes."""
    for web in rig.omni2.web:
        web.end()
        web.start()
    rig.omni2.wait_until_ready()


async def _open_chats(rig: Any, people: Sequence[Any]) -> float:
    """KiB that an open chat adds to its web process: a model that has begun to speak and hangs."""
    from tests.faults.footprint import resident_kib
    from tests.faults.load import Told, ask

    web, url = rig.omni2.web[0], rig.omni2.urls[0]
    # the first ones import and fill what all others share
    for each in people[:8]:
        await ask(Told(MESSAGES[1], url=url), each.token)
    before = resident_kib(web)
    told = [Told("script:paced words=2 pace=300", url=url) for _ in range(OPEN_CHATS)]
    chats = [asyncio.create_task(ask(each, people[place % USERS].token)) for place, each in enumerate(told)]
    try:
        await _until(lambda: all(each.tokens for each in told), "every chat is open")
        await asyncio.sleep(1)
        kib = (resident_kib(web) - before) / OPEN_CHATS
        if any(each.over_s for each in told):
            raise WrongResult("a chat ended that should stay open")
        return kib
    finally:
        for chat in chats:
            chat.cancel()
        await asyncio.gather(*chats, return_exceptions=True)


async def _open_watchers(rig: Any, people: Sequence[Any]) -> tuple[float, float]:
    """KiB that an idle watcher adds to its web process, and CPU milliseconds a second of a thousand of them."""
    from monitoring.tests.watching import WireSocket
    from tests.faults.footprint import resident_kib

    web, url = rig.omni2.web[1], rig.omni2.urls[1]
    token = await asyncio.to_thread(rig.ada)
    # somebody of whom there is nothing to show
    (watched,) = await asyncio.to_thread(rig.people, "watched", ["quiet"])
    await asyncio.to_thread(rig.monitor, [watched])
    for _ in range(8):
        async with WireSocket(url, user_id=watched.email, token=token) as first:
            await first.receive()
    before = resident_kib(web)
    async with AsyncExitStack() as sockets:
        for _ in range(OPEN_WATCHERS):
            socket = await sockets.enter_async_context(WireSocket(url, user_id=watched.email, token=token))
            await socket.receive()
        await asyncio.sleep(2)
        kib, cpu, began = (resident_kib(web) - before) / OPEN_WATCHERS, _of_family(web), time.monotonic()
        await asyncio.sleep(6)
        return kib, (_of_family(web) - cpu) / (time.monotonic() - began) / OPEN_WATCHERS * 1000 * 1000


async def _until(check: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + OPEN_LIMIT_S
    while not check():
        if time.monotonic() > deadline:
            raise WrongResult(f"not within {OPEN_LIMIT_S} s: {what}")
        await asyncio.sleep(0.05)


# --- the page ---------------------------------------------------------------------------------------


def _lines(
    by_count: dict[int, list[Round]], disk: dict[str, float], chat_kib: float, watcher_kib: float, watcher_cpu: float
) -> list[str]:
    def middle(count: int, value: Callable[[Round], float]) -> float:
        return statistics.median(map(value, by_count[count]))

    one, two = by_count[1], by_count[2]
    gain = sorted(each.turns_a_s / alone.turns_a_s for alone, each in zip(one, two, strict=True))
    checkpoints = middle(1, lambda each: each.checkpoints_a_turn)
    others = middle(1, lambda each: each.machine_busy * (os.cpu_count() or 1) - each.turns_a_s * each.whole_ms / 1000)
    cost = middle(1, lambda each: each.whole_ms)
    stored = sum(disk[name] for name in ("table", "indexes", "turns"))
    lines = [
        f"{machine()}, {time.strftime('%Y-%m-%d')}, commit {commit()}. {ROUNDS} rounds of {ROUND_S:g} s after one that",
        "was dropped;",
        f"{AT_ONCE} clients a web process; {checkpoints:.1f} checkpoints and 20 tokens a turn. The load, the model and",
        f"other programs of this machine used {others:.1f} of the {os.cpu_count()} cores.",
        "",
        "| | 1 web process | 2 web processes |",
        "|---|---|---|",
    ]

    def line(name: str, value: Callable[[Round], float], form: str) -> None:
        lines.append(f"| {name} | {middle(1, value):{form}} | {middle(2, value):{form}} |")

    line("turns a second, beside all that", lambda each: each.turns_a_s, ".0f")
    line("first token, p50 ms, with all of them waiting", lambda each: each.first_token_ms, ".0f")
    line("all cores busy, %", lambda each: each.machine_busy * 100, ".0f")
    for part in one[0].cpu_ms:
        line(f"CPU of a turn: {part}, ms", lambda each, part=part: each.cpu_ms[part], ".2f")
    million = 1e6 / 2**30
    line("CPU of a turn: all of Omni2, ms", lambda each: each.whole_ms, ".2f")
    web = middle(1, lambda each: each.cpu_ms["web"])
    lines += [
        "",
        f"Two web processes made {statistics.median(gain):.2f} times the turns of one"
        f" ({gain[0]:.2f} to {gain[-1]:.2f}). By what a turn costs, a core of its own lets a web process end"
        f" {1000 / web:.0f} turns a second, and needs {(cost - web) / web:.2f} of another core for the rest"
        " (an estimate).",
        "",
        "| what stays | |",
        "|---|---|",
        f"| an open chat, in its web process | {chat_kib:.0f} KiB (of {OPEN_CHATS}) |",
        f"| an idle watcher, in its web process | {watcher_kib:.0f} KiB (of {OPEN_WATCHERS}) |",
        f"| CPU of 1,000 idle watchers | {watcher_cpu:.0f} ms a second |",
        f"| a checkpoint in a user's stream in Redis | {disk['redis']:.0f} bytes |",
        f"| a checkpoint in PostgreSQL: row {disk['table']:.0f}, its indexes {disk['indexes']:.0f}, its share of the"
        f" turn's summary {disk['turns']:.0f} bytes | {stored:.0f} bytes (of {disk['rows']:,.0f}) |",
        f"| a million checkpoints on disk | {stored * million:.2f} GiB |",
    ]
    return lines


def _write(lines: Sequence[str]) -> None:
    before, mark, rest = PAGE.read_text().partition(MARKS[0])
    if not mark:
        raise WrongResult(f"{PAGE} has no {MARKS[0]}")
    _, mark, after = rest.partition(MARKS[1])
    PAGE.write_text("\n".join([before + MARKS[0], *lines, MARKS[1]]) + after)


if __name__ == "__main__":
    sys.exit(main())
