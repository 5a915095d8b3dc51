"""One turn of eight checkpoints, written down in four ways: ours, the plain way, the plain way with Django's ORM,
and OpenTelemetry's spans. Each step says the same facts in all of them.

The plain way ("reference sequence"): for each checkpoint ask PostgreSQL whether the user is monitored, XADD,
EXPIRE, PUBLISH if he is, each awaited; at the end read the stream, INSERT one JSON blob, delete the stream.
"""

import json
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

import psycopg_pool
from asgiref.sync import sync_to_async
from django.db import connection
from redis.asyncio import Redis

from bench.section import WrongResult
from flows import keys
from flows.redis import get_redis
from flows.tracker import FlowTracker

FACTS: dict[str, dict[str, Any]] = {
    "auth_check": {"status": "passed", "method": "token", "duration_ms": 1.25, "question": "Will it rain in Oslo?"},
    "block_check": {"status": "passed", "duration_ms": 0.9},
    "usage_check": {"status": "passed", "duration_ms": 0.9, "used": 3, "limit": 500},
    "llm_thinking": {"status": "started", "model": "gpt-5.2", "round": 1},
    "tool_call": {"status": "started", "tool": "search", "arguments": '{"query":"Oslo"}'},
    "tool_result": {"status": "ok", "tool": "search", "duration_ms": 31.4, "result": "Rain from noon on"},
    "llm_complete": {"status": "ok", "finish_reason": "stop", "duration_ms": 640.2, "output_tokens": 24},
    "flow_end": {"outcome": "completed", "duration_ms": 642.5},
}
"""What the product's own turn writes down, shortened."""

LED_TO_FIRST_TOKEN = tuple(FACTS)[:4]
AFTERWARDS = tuple(FACTS)[4:]
USER = "bench@example.com"
SESSION_ID = "8a2a6d3e-0000-4000-8000-000000000001"

Moment = Callable[[], Awaitable[None]]


async def at_once() -> None:
    """A model, or a client, that nobody waits for."""


class Side(Protocol):
    """A way to write a turn down."""

    async def turn(self, number: int, model: Moment = at_once, first_token: Moment = at_once) -> None:
        """One turn. `model` is awaited where the turn waits for the model and for the tool, `first_token` where
        the first token goes out."""


class Nothing:
    """The same turn with nobody writing it down."""

    async def turn(self, number: int, model: Moment = at_once, first_token: Moment = at_once) -> None:
        await model()
        await first_token()
        await model()


class Ours:
    """The product's own tracker and flusher, with both waits of a real turn: before the first token,
    and before `done`."""

    def __init__(self, *, monitored: bool) -> None:
        self.tracker = FlowTracker()
        self.tracker.is_monitored = lambda user_id: monitored
        self.made = 0

    async def turn(self, number: int, model: Moment = at_once, first_token: Moment = at_once) -> None:
        turn = self.tracker.begin(user_id=f"{number}.{USER}", session_id=SESSION_ID)
        auth = turn.record("auth_check", None, **FACTS["auth_check"])
        block = turn.record("block_check", auth, **FACTS["block_check"])
        usage = turn.record("usage_check", block, **FACTS["usage_check"])
        thinking = turn.record("llm_thinking", usage, **FACTS["llm_thinking"])
        await model()
        await turn.acknowledged()
        await first_token()
        call = turn.record("tool_call", thinking, **FACTS["tool_call"])
        await model()
        turn.record("tool_result", call, **FACTS["tool_result"])
        turn.record("llm_complete", thinking, **FACTS["llm_complete"])
        turn.end(FACTS["flow_end"]["outcome"], duration_ms=FACTS["flow_end"]["duration_ms"])
        await turn.acknowledged()
        self.made += turn.recorded

    async def check(self) -> None:
        """Every checkpoint that was recorded is in the hand-off log, once. Empties the log."""
        redis = get_redis()
        ids: list[bytes] = []
        for shard in keys.LOG_SHARDS:
            ids += [fields[b"d"][12:48] for _, fields in await redis.xrange(shard)]
            await redis.delete(shard)
        if not len(ids) == len(set(ids)) == self.made or self.tracker.given_up:
            raise WrongResult(
                f"{self.made} checkpoints recorded, {len(ids)} in the log, {len(set(ids))} different ones, "
                f"{self.tracker.given_up} given up"
            )
        self.made = 0

    async def stop(self) -> None:
        if self.tracker.flusher is not None:
            await self.tracker.flusher.stop()


class Plain:
    """The plain way, with the cheapest clients there are: psycopg's own async pool, no ORM."""

    def __init__(self, redis: Redis, pool: psycopg_pool.AsyncConnectionPool, *, monitored: bool) -> None:
        self.redis = redis
        self.pool = pool
        self.monitored = monitored
        self.made = 0

    async def turn(self, number: int, model: Moment = at_once, first_token: Moment = at_once) -> None:
        user_id = f"{number}.{USER}"
        parent: str | None = None
        for step in LED_TO_FIRST_TOKEN:
            parent = await self._checkpoint(user_id, step, parent)
        await model()
        await first_token()
        for step in AFTERWARDS:
            parent = await self._checkpoint(user_id, step, parent)
            if step == "tool_call":
                await model()
        await self._save(user_id)
        self.made += 1

    async def _checkpoint(self, user_id: str, step: str, parent: str | None) -> str:
        flow_id = str(uuid.uuid4())
        watched = await self._is_monitored()
        fields: dict[Any, Any] = {
            "flow_id": flow_id,
            "user_id": user_id,
            "session_id": SESSION_ID,
            "checkpoint": step,
            "parent_id": parent or "",
            "metadata": json.dumps(FACTS[step]),
            "created_at": datetime.now(UTC).isoformat(),
        }
        await self.redis.xadd(f"bench:{user_id}", fields)
        await self.redis.expire(f"bench:{user_id}", 3600)
        if self.monitored and watched:
            await self.redis.publish(f"bench_events:{user_id}", json.dumps(fields))
        return flow_id

    async def _is_monitored(self) -> bool:
        async with self.pool.connection() as connected:
            cursor = await connected.execute("SELECT monitored FROM bench_users WHERE user_id = %s", [USER])
            row = await cursor.fetchone()
        return row is not None and row[0]

    async def _save(self, user_id: str) -> None:
        entries = await self.redis.xrange(f"bench:{user_id}")
        await self._insert([{k.decode(): v.decode() for k, v in fields.items()} for _, fields in entries])
        await self.redis.delete(f"bench:{user_id}")

    async def _insert(self, flow: list[dict[str, str]]) -> None:
        async with self.pool.connection() as connected:
            await connected.execute(
                "INSERT INTO bench_flows (session_id, flow) VALUES (%s, %s)", [SESSION_ID, json.dumps(flow)]
            )


class PlainDjango(Plain):
    """The plain way as it is written in a Django project: the ORM's own asynchronous calls, each of which Django
    runs in its one thread for such work."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.monitored = True
        self.made = 0
        self.User, self.Flow = _models()

    async def _is_monitored(self) -> bool:
        user = await self.User.objects.aget(user_id=USER)
        return bool(user.monitored)

    async def _insert(self, flow: list[dict[str, str]]) -> None:
        await self.Flow.objects.acreate(session_id=SESSION_ID, flow=flow)

    async def thread_ns(self) -> Callable[[], int]:
        """A clock of the CPU of Django's thread."""
        clock = time.pthread_getcpuclockid(await sync_to_async(threading.get_ident)())
        return lambda: time.clock_gettime_ns(clock)


def _models() -> tuple[Any, Any]:
    from django.db import models

    class BenchUser(models.Model):  # noqa: DJ008
        user_id = models.TextField(primary_key=True)
        monitored = models.BooleanField()

        class Meta:
            app_label, db_table, managed = "flows", "bench_users", False

    class BenchFlow(models.Model):  # noqa: DJ008
        session_id = models.TextField()
        flow = models.JSONField()

        class Meta:
            app_label, db_table, managed = "flows", "bench_flows", False

    return BenchUser, BenchFlow


def tables() -> None:
    """What the plain way needs in PostgreSQL."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE bench_users (user_id text PRIMARY KEY, monitored boolean)")
        cursor.execute("INSERT INTO bench_users VALUES (%s, true)", [USER])
        cursor.execute("CREATE TABLE bench_flows (id bigserial PRIMARY KEY, session_id text, flow jsonb)")


def check_plain(made: int) -> None:
    """Each turn of the plain way was saved, with its eight steps."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*), min(jsonb_array_length(flow)), max(jsonb_array_length(flow)) FROM bench_flows")
        found = cursor.fetchone()
    if found != (made, len(FACTS), len(FACTS)):
        raise WrongResult(f"{made} turns went the plain way; saved turns, fewest and most steps: {found}")


class Spans:
    """OpenTelemetry's SDK with its batch exporter, as its documentation shows it. What begins and ends is one
    span, so eight steps are six; nothing of a turn leaves the process before its spans have ended, and nobody waits
    until it did."""

    def __init__(self, port: int) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self.url = f"http://127.0.0.1:{port}/v1/traces"
        self.provider = TracerProvider()
        self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=self.url)))
        self.tracer = self.provider.get_tracer("bench")
        self.made = 0

    async def turn(self, number: int, model: Moment = at_once, first_token: Moment = at_once) -> None:
        span = self.tracer.start_as_current_span
        who = {"user_id": f"{number}.{USER}", "session_id": SESSION_ID}
        with span("turn", attributes=who) as turn:
            for check in ("auth_check", "block_check", "usage_check"):
                with span(check, attributes=FACTS[check]):
                    pass
            with span("llm_thinking", attributes=FACTS["llm_thinking"]) as thinking:
                await model()
                await first_token()
                with span("tool_call", attributes=FACTS["tool_call"]) as call:
                    await model()
                    call.set_attributes(FACTS["tool_result"])
                thinking.set_attributes(FACTS["llm_complete"])
            turn.set_attributes(FACTS["flow_end"])
        self.made += 6

    def flush(self) -> None:
        """Let the exporter's thread send what waits; returns when the sink has it."""
        if not self.provider.force_flush():
            raise WrongResult("the spans were not sent in time")

    def check(self) -> None:
        """The sink has every span."""
        with urllib.request.urlopen(self.url, timeout=10) as answer:
            came = int(answer.read())
        if came != self.made:
            raise WrongResult(f"{self.made} spans made, {came} came to the sink")


@contextmanager
def spans() -> Iterator[Spans]:
    """The side of OpenTelemetry, with a sink of its own in another process."""
    sink = subprocess.Popen([sys.executable, "-m", "bench.sink"], stdout=subprocess.PIPE, text=True)
    try:
        assert sink.stdout is not None
        side = Spans(int(sink.stdout.readline()))
        yield side
        side.provider.shutdown()
    finally:
        sink.terminate()
        sink.wait()
