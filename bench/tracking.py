"""What tracking a turn of 8 checkpoints costs, beside the plain way to do it and beside OpenTelemetry's SDK.
What each side does stands in bench/turns.py."""

import asyncio
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg_pool
from django.conf import settings

from bench.section import Plan
from bench.servers import conninfo, own_servers
from bench.sides import Metered, Row, less, percentile, rounds, times
from bench.turns import Nothing, Ours, Plain, PlainDjango, Side, Spans, check_plain, spans, tables
from flows.redis import get_redis
from omni2.database import in_database

ROUNDS = 7
TURNS_ALONE = 50
TURNS_AT_ONCE = 250
IN_FLIGHT = 50
TURNS_WITH_MODEL = 20

MODEL_MS = 3.0
"""How long the pretended model and tool think. All that tracking does meanwhile costs the turn no time."""

LEAST_MS = 0.01
"""Less added wall time than this is not told apart from none, and counts as this much."""

PLAIN, DJANGO, SDK = "the plain way", "the plain way with Django's ORM", "OpenTelemetry SDK, batches over OTLP/HTTP"
WATCHED = {"not monitored": False, "monitored": True}


def run(plan: Plan) -> list[Row]:
    """Rows 1 and 2; afterwards it is checked that what was timed is really in the log, the table and the sink."""
    with own_servers(), spans() as sdk:
        return asyncio.run(_run(sdk))


async def _run(sdk: Spans) -> list[Row]:
    await in_database(tables)
    redis = get_redis()
    async with psycopg_pool.AsyncConnectionPool(
        conninfo(), min_size=2, max_size=settings.DATABASE_POOL_SIZE, open=False
    ) as pool:
        ours = {word: Ours(monitored=flag) for word, flag in WATCHED.items()}
        plain = {word: Plain(redis, pool, monitored=flag) for word, flag in WATCHED.items()}
        django = PlainDjango(redis)
        found = await _own_cpu(ours, plain, django)
        found += await _added_wall(ours, plain)
        found += await _all_cpu(ours, plain, sdk)
        made = sum(side.made for side in ours.values())
        one, other = ours.values()
        # they share the log
        one.made, other.made = made, 0
        await one.check()
        await in_database(check_plain, sum(side.made for side in [*plain.values(), django]))
        sdk.check()
        for side in ours.values():
            await side.stop()
    return found


# --- row 1: CPU on the turn's own task ----------------------------------------------------------------


async def _own_cpu(ours: dict[str, Ours], plain: dict[str, Plain], django: PlainDjango) -> list[Row]:
    thread_ns = await django.thread_ns()
    sides: dict[str, Callable[[], Any]] = {}
    for word in WATCHED:
        sides[f"ours, {word}"] = lambda side=ours[word]: own_cpu_us(side)
        sides[f"plain, {word}"] = lambda side=plain[word]: own_cpu_us(side)
    sides["django"] = lambda: own_cpu_us(django, thread_ns)
    figures = await rounds(sides, count=ROUNDS)
    name, more = "CPU on the turn's own task", {"unit": "µs a turn", "goal": 500.0, "stretch": 1000.0}
    return [
        *(
            less(1, f"{name}, {word}", figures[f"ours, {word}"], figures[f"plain, {word}"], against=PLAIN, **more)
            for word in WATCHED
        ),
        less(
            1, f"{name}, the ORM's thread included, monitored", figures["ours, monitored"], figures["django"],
            against=DJANGO, **more,
        ),
    ]  # fmt: skip


async def own_cpu_us(side: Side, thread_ns: Callable[[], int] = lambda: 0) -> float:
    """CPU of the turn's own task and of the thread that works for it, one turn after the other: microseconds a turn."""
    spent = -thread_ns()
    for number in range(TURNS_ALONE):
        metered = Metered(side.turn(number))  # type: ignore[arg-type]
        await metered
        spent += metered.cpu_ns
    return (spent + thread_ns()) / TURNS_ALONE / 1000


# --- row 1: wall time added ---------------------------------------------------------------------------


async def _added_wall(ours: dict[str, Ours], plain: dict[str, Plain]) -> list[Row]:
    """At the first token and at `done`: against the same turn with nobody writing it down, turn by turn."""
    found = []
    with model() as think:
        for word in WATCHED:
            sides: dict[str, Side] = {"nothing": Nothing(), "ours": ours[word], "plain": plain[word]}
            added: dict[tuple[str, str], list[float]] = {}
            for number in range(ROUNDS + 1):
                for key, value in (await added_ms(sides, think)).items():
                    if number:
                        added.setdefault(key, []).append(value)
            for at in ("the first token", "done"):
                mine, theirs = added["ours", at], added["plain", at]
                name = f"wall time added at {at}, {word}"
                found += [
                    less(1, name, mine, theirs, unit="ms, p50", against=PLAIN, goal=10.0),
                    Row(1, f"{name}, by itself", statistics.median(mine), "ms, p50", 2.0, "at most"),
                ]
    return found


async def added_ms(sides: dict[str, Side], think: Callable[[], Any]) -> dict[tuple[str, str], float]:
    """One round: by side and moment, how many milliseconds later than with nobody writing it down (p50 of each)."""
    reached: dict[tuple[str, str], list[float]] = {
        (side, at): [] for side in sides for at in ("the first token", "done")
    }
    for number in range(TURNS_WITH_MODEL):
        for name, side in sides.items():
            began = time.perf_counter()

            async def first_token(name: str = name, began: float = began) -> None:
                reached[name, "the first token"].append(time.perf_counter() - began)

            await side.turn(number, think, first_token)
            reached[name, "done"].append(time.perf_counter() - began)
    p50 = {key: percentile(values, 0.5) * 1000 for key, values in reached.items()}
    return {(side, at): max(LEAST_MS, p50[side, at] - p50["nothing", at]) for side, at in p50 if side != "nothing"}


THINKS = """
import socket, sys, time
with socket.socket(fileno=int(sys.argv[1])) as asked:
    while asked.recv(1):
        time.sleep(float(sys.argv[2]) / 1000)
        asked.sendall(b".")
"""


@contextmanager
def model() -> Iterator[Callable[[], Any]]:
    """A pretended model: another process, as a real one, that answers after MODEL_MS. (A timer of asyncio would be
    rounded up to whole milliseconds, anew whenever the loop did something meanwhile.)"""
    here, there = socket.socketpair()
    here.setblocking(False)
    words = [sys.executable, "-c", THINKS, str(there.fileno()), str(MODEL_MS)]
    process = subprocess.Popen(words, pass_fds=[there.fileno()])
    there.close()

    async def think() -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(here, b"?")
        await loop.sock_recv(here, 1)

    try:
        yield think
    finally:
        here.close()
        process.wait()


# --- row 2: all CPU, and what monitoring adds -----------------------------------------------------------


async def _all_cpu(ours: dict[str, Ours], plain: dict[str, Plain], sdk: Spans) -> list[Row]:
    sides: dict[str, Callable[[], Any]] = {}
    for word in WATCHED:
        sides[f"ours, {word}"] = lambda side=ours[word]: all_cpu_us(side)
        sides[f"plain, {word}"] = lambda side=plain[word]: all_cpu_us(side)
    sides["spans"] = lambda: all_cpu_us(sdk, sdk.flush)
    figures = await rounds(sides, count=ROUNDS)
    name, unit = f"all CPU, flusher included, {IN_FLIGHT} in flight", "µs a turn"
    watched, unwatched = figures["ours, monitored"], figures["ours, not monitored"]
    return [
        times(1, "all CPU, monitored", watched, unwatched, unit=unit, against="not monitored", goal=1.3),
        *(
            less(
                2, f"{name}, {word}", figures[f"ours, {word}"], figures[f"plain, {word}"],
                unit=unit, against=PLAIN, goal=40.0, stretch=75.0,
            )
            for word in WATCHED
        ),
        less(2, f"{name}, monitored", watched, figures["spans"], unit=unit, against=SDK, goal=1.0),
    ]  # fmt: skip


async def all_cpu_us(side: Side, flush: Callable[[], None] = lambda: None) -> float:
    """CPU of the whole client process, all its threads, with 50 turns in flight: microseconds a turn, without what
    the same tasks cost when nobody writes anything down."""
    return await _cpu_us(side, flush) - await _cpu_us(Nothing(), lambda: None)


async def _cpu_us(side: Side, flush: Callable[[], None]) -> float:
    began = time.process_time()
    for start in range(0, TURNS_AT_ONCE, IN_FLIGHT):
        await asyncio.gather(*(side.turn(number) for number in range(start, start + IN_FLIGHT)))
    flush()
    return (time.process_time() - began) / TURNS_AT_ONCE * 1e6
