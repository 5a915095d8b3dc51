"""What tracking a turn of 8 checkpoints costs, beside the plain way to do it.

The plain way ("reference sequence"): for each checkpoint ask PostgreSQL whether the user is
monitored, XADD, EXPIRE, PUBLISH if he is, each awaited; at the end read the stream, INSERT one JSON
blob, delete the stream.
"""

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import psycopg_pool
from django.conf import settings
from django.db import connection
from redis.asyncio import Redis

from bench.section import Plan, WrongResult
from bench.servers import conninfo, own_servers
from bench.sides import Metered, Row, less, rounds
from flows import keys
from flows.redis import get_redis
from flows.tracker import FlowTracker
from omni2.database import in_database

TURNS_A_ROUND = 60
IN_FLIGHT = 50
ROUNDS = 11
STEPS = (
    "auth_check",
    "block_check",
    "usage_check",
    "llm_thinking",
    "tool_call",
    "tool_result",
    "llm_complete",
    "flow_end",
)
USER = "bench@example.com"
SESSION_ID = "8a2a6d3e-0000-4000-8000-000000000001"


class Reference:
    """The plain way, with the cheapest clients there are: psycopg's own async pool, no ORM."""

    def __init__(self, redis: Redis, pool: psycopg_pool.AsyncConnectionPool, *, monitored: bool) -> None:
        self.redis = redis
        self.pool = pool
        self.monitored = monitored

    async def turn(self, number: int) -> None:
        user_id = f"{number}.{USER}"
        session_id = SESSION_ID
        parent: str | None = None
        for step in STEPS:
            parent = await self._checkpoint(user_id, session_id, step, parent)
        await self._save(user_id, session_id)

    async def _checkpoint(self, user_id: str, session_id: str, step: str, parent: str | None) -> str:
        flow_id = str(uuid.uuid4())
        async with self.pool.connection() as connected:
            cursor = await connected.execute("SELECT monitored FROM bench_users WHERE user_id = %s", [USER])
            row = await cursor.fetchone()
        fields = {
            "flow_id": flow_id, "user_id": user_id, "session_id": session_id, "checkpoint": step,
            "parent_id": parent or "", "metadata": json.dumps({"status": "passed", "question": "hello"}),
            "created_at": datetime.now(UTC).isoformat(),
        }  # fmt: skip
        await self.redis.xadd(f"bench:{user_id}", fields)
        await self.redis.expire(f"bench:{user_id}", 3600)
        if self.monitored and row is not None:
            await self.redis.publish(f"bench_events:{user_id}", json.dumps(fields))
        return flow_id

    async def _save(self, user_id: str, session_id: str) -> None:
        entries = await self.redis.xrange(f"bench:{user_id}")
        blob = json.dumps([{k.decode(): v.decode() for k, v in fields.items()} for _, fields in entries])
        async with self.pool.connection() as connected:
            await connected.execute("INSERT INTO bench_flows (session_id, flow) VALUES (%s, %s)", [session_id, blob])
        await self.redis.delete(f"bench:{user_id}")


class Ours:
    """The product's own tracker and flusher, with both waits of a real turn: before the first token,
    and before `done`."""

    def __init__(self, *, monitored: bool) -> None:
        self.tracker = FlowTracker()
        self.tracker.is_monitored = lambda user_id: monitored
        self.made = 0

    async def turn(self, number: int) -> None:
        turn = self.tracker.begin(user_id=f"{number}.{USER}", session_id=SESSION_ID)
        auth = turn.record("auth_check", None, status="passed", question="hello")
        block = turn.record("block_check", auth, status="passed")
        usage = turn.record("usage_check", block, status="passed")
        thinking = turn.record("llm_thinking", usage, status="started")
        await turn.acknowledged()
        call = turn.record("tool_call", thinking, status="started")
        turn.record("tool_result", call, status="ok")
        turn.record("llm_complete", thinking, status="ok")
        turn.end("completed")
        await turn.acknowledged()
        self.made += turn.recorded


Turn = Callable[[int], Awaitable[None]]


async def own_cpu_us(turn: Turn) -> float:
    """CPU of the turn's own task, one turn after the other: microseconds a turn."""
    spent = 0
    for number in range(TURNS_A_ROUND):
        metered = Metered(turn(number))  # type: ignore[arg-type]
        await metered
        spent += metered.cpu_ns
    return spent / TURNS_A_ROUND / 1000


async def all_cpu_us(turn: Turn) -> float:
    """CPU of the whole client process with 50 turns in flight: microseconds a turn."""
    began = time.process_time()
    for start in range(0, TURNS_A_ROUND * 5, IN_FLIGHT):
        await asyncio.gather(*(turn(number) for number in range(start, start + IN_FLIGHT)))
    return (time.process_time() - began) / (TURNS_A_ROUND * 5) * 1e6


async def wall_ms(turn: Turn) -> float:
    """Wall time of all tracking in a turn, one turn after the other: milliseconds a turn."""
    began = time.perf_counter()
    for number in range(TURNS_A_ROUND):
        await turn(number)
    return (time.perf_counter() - began) / TURNS_A_ROUND * 1000


def _tables() -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE bench_users (user_id text PRIMARY KEY, monitored boolean)")
        cursor.execute("INSERT INTO bench_users VALUES (%s, true)", [USER])
        cursor.execute("CREATE TABLE bench_flows (id bigserial PRIMARY KEY, session_id text, flow jsonb)")


def run(plan: Plan) -> list[Row]:
    """Rows 1 and 2; checks afterwards that what was timed is really in the log."""
    with own_servers():
        return asyncio.run(_run())


async def _run() -> list[Row]:
    await in_database(_tables)
    found: list[Row] = []
    redis = get_redis()
    async with psycopg_pool.AsyncConnectionPool(
        conninfo(), min_size=2, max_size=settings.DATABASE_POOL_SIZE, open=False
    ) as pool:
        for monitored in (False, True):
            word = "monitored" if monitored else "not monitored"
            reference, ours = Reference(redis, pool, monitored=monitored), Ours(monitored=monitored)
            for number, name, measure, goal, unit in (
                (1, "CPU on the turn's own task", own_cpu_us, 500, "µs a turn"),
                (2, "all CPU, flusher included, 50 in flight", all_cpu_us, 40, "µs a turn"),
                (1, "wall time of all tracking", wall_ms, 10, "ms a turn"),
            ):
                sides = {
                    "ours": lambda m=measure, o=ours: m(o.turn),
                    "other": lambda m=measure, r=reference: m(r.turn),
                }
                figures = await rounds(sides, count=ROUNDS)
                found.append(
                    less(
                        number, f"{name}, {word}", figures["ours"], figures["other"],
                        unit=unit, against="the plain way", goal=goal,
                    )
                )  # fmt: skip
            await check(ours)
    return found


async def check(ours: Ours) -> None:
    """Every checkpoint that was recorded is in the hand-off log, once."""
    redis = get_redis()
    in_log = sum([await redis.xlen(name) for name in keys.LOG_SHARDS])
    if in_log != ours.made or ours.tracker.given_up:
        raise WrongResult(f"wrong result: {ours.made} checkpoints recorded, {in_log} in the log")
    for name in keys.LOG_SHARDS:
        await redis.delete(name)
    if ours.tracker.flusher is not None:
        await ours.tracker.flusher.stop()
