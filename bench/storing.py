"""How fast the persister is over a backlog, and how soon what is recorded is committed.

The backlog is made by the product's own tracker and flusher, and eaten by `manage.py persister`, a process of its
own, with all that runs beside it. The other side is one COPY of the same rows into a table with the same key, self
foreign key and indexes; and the plain way, one INSERT and one commit a row.
"""

import asyncio
import io
import json
import math
import random
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import psutil  # type: ignore[import-untyped]
import psycopg
import redis
from django.core.management import call_command

from bench.section import Plan, WrongResult
from bench.servers import conninfo, own_servers
from bench.sides import AT_LEAST, AT_MOST, Row, percentile, times
from flows import heartbeat, keys
from flows.checkpoints import Checkpoint
from flows.flusher import BATCH_CHECKPOINTS
from flows.redis import get_redis, sync_client
from flows.store import store
from flows.tracker import FlowTracker, TurnTrack
from omni2.env import BASE_DIR
from omni2.supervisor import commands

CHECKPOINTS_A_TURN = 8
IN_FLIGHT = 50
"""Turns that go on at the same time: their checkpoints lie mixed in the log."""

BACKLOG, FULL_BACKLOG = 64_000, 1_000_000
ROUNDS = 2
ROW_BY_ROW = 600
"""Rows a round: a sample, since nobody would wait for all of them."""

DIRECT = 8_000
CHECKED_TURNS = 10_000
A_SECOND = 1_000
LATENCY_S, FULL_LATENCY_S = 10, 60
LOOK_S = 0.01
LIMIT_S = 600.0

COLUMNS = ("flow_id", "user_id", "session_id", "turn_id", "checkpoint", "parent_id", "metadata", "created_at")
RAW_TABLE = """
CREATE TABLE raw_flows (LIKE interaction_flows INCLUDING ALL);
ALTER TABLE raw_flows ADD FOREIGN KEY (parent_id) REFERENCES raw_flows (flow_id) NOT DEFERRABLE;
"""


def run(plan: Plan) -> list[Row]:
    """Rows 6 and 7."""
    with own_servers(), sync_client() as log, database() as connected:
        connected.execute(RAW_TABLE)
        backlog = Backlog(log, FULL_BACKLOG if plan.full else BACKLOG)
        asyncio.run(backlog.make())
        found = Rounds(backlog, connected)
        with persister() as first:
            wait_for_leases(log, 1)
            for number in range(ROUNDS + 1):
                found.round(first, counts=number > 0)
            return [*found.rows(), latency(log, connected, FULL_LATENCY_S if plan.full else LATENCY_S)]


@contextmanager
def database() -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(conninfo(), autocommit=True) as connected:
        yield connected


# --- the load ------------------------------------------------------------------------------------------


# fmt: off
def steps_of(turn: TurnTrack, chance: random.Random) -> Iterator[Checkpoint]:
    """A turn of 8 checkpoints, with a tool, as the endpoint records it."""
    asked = f"How late is invoice {chance.randrange(10**6)} of the Oslo office, and who approves it?"
    whole_ms = chance.uniform(400, 4000)
    yield (root := turn.record(
        "auth_check", status="passed", method="token", process=turn.process_id, question=asked,
        duration_ms=round(chance.uniform(0.5, 3), 3),
    ))
    yield (check := turn.record("block_check", root, status="passed", duration_ms=round(chance.uniform(0.5, 3), 3)))
    yield (check := turn.record(
        "usage_check", check, status="passed", limit_name="requests_per_day", used=chance.randrange(400), limit=500,
        resets_at="2026-11-23T00:00:00Z", duration_ms=round(chance.uniform(0.5, 3), 3),
    ))
    model = chance.choice(("gpt-5.2", "claude-sonnet-4.6", "local-mistral"))
    yield (thinking := turn.record(
        "llm_thinking", check, status="started", model=model, provider="openai", round=1, input=asked
    ))
    tool = chance.choice(("search", "database_query", "calculator"))
    yield (call := turn.record(
        "tool_call", thinking, status="started", tool=tool, server="builtin",
        call_id=f"call_{chance.getrandbits(40):x}", arguments=json.dumps({"q": asked[:60]}),
    ))
    result = {"status": "ok", "result": '{"rows": 12}'} if chance.random() > 0.03 else {"status": "error", "error": "?"}
    yield turn.record("tool_result", call, tool=tool, duration_ms=round(chance.uniform(1, 900), 3), **result)
    yield turn.record(
        "llm_complete", thinking, status="ok", duration_ms=round(whole_ms, 3), ttft_ms=round(whole_ms / 4, 3),
        input_tokens=chance.randrange(200, 4000), output_tokens=chance.randrange(8, 700),
        cost_usd=round(chance.random() / 50, 8), finish_reason="stop", tool_calls=1,
        answer="It is twelve days late; the head of the office approves it. " * chance.randrange(1, 4),
    )
    if end := turn.end("completed", ttft_ms=round(whole_ms / 4 + 12, 3)):
        yield end
# fmt: on


def record_turns(tracker: FlowTracker, count: int, chance: random.Random) -> Iterator[Checkpoint]:
    """So many turns, IN_FLIGHT at a time, a checkpoint of each after the other."""
    running: list[Iterator[Checkpoint]] = []
    begun = 0
    while begun < count or running:
        # one more in each round, so that not all of them are at the same step
        if begun < count and len(running) < IN_FLIGHT:
            user_id = f"user{chance.randrange(200)}@bench.example.com"
            session_id = str(uuid.UUID(int=chance.getrandbits(128), version=4))
            running.append(steps_of(tracker.begin(user_id=user_id, session_id=session_id), chance))
            begun += 1
        for steps in list(running):
            made = next(steps, None)
            if made is None:
                running.remove(steps)
            else:
                yield made


class Backlog:
    """What waits in the log, made once by the tracker and the flusher, and put back for every round."""

    def __init__(self, log: redis.Redis, checkpoints: int) -> None:
        self.log = log
        self.size = checkpoints // CHECKPOINTS_A_TURN * CHECKPOINTS_A_TURN
        self.tracker = FlowTracker()

    async def make(self) -> None:
        tracker = self.tracker
        for number, _ in enumerate(record_turns(tracker, self.size // CHECKPOINTS_A_TURN, random.Random(1))):
            while number % 1_000 == 0 and len(tracker.queue) > 5_000:  # noqa: ASYNC110 - nobody says when
                await asyncio.sleep(0.001)  # the flusher's turn
        if tracker.flusher is None or not await tracker.flusher.drain(LIMIT_S):
            raise WrongResult("the flusher did not write the backlog")
        await tracker.flusher.stop()
        await get_redis().aclose()
        for name in keys.LOG_SHARDS:
            self.log.xgroup_create(name, keys.GROUP, "0", mkstream=True)
            self.log.rename(name, f"bench:{name}")

    def say(self) -> None:
        """The process that made it lives, and says what it made: for the sweep and for the ledger."""
        heartbeat.beat(self.tracker.process_id, self.tracker.given_up, self.tracker.report())

    def put(self) -> None:
        """All of it at once."""
        pipeline = self.log.pipeline(transaction=True)
        for name in keys.LOG_SHARDS:
            pipeline.copy(f"bench:{name}", name, replace=True)
        pipeline.execute()

    def waiting(self) -> int:
        pipeline = self.log.pipeline(transaction=False)
        for name in keys.LOG_SHARDS:
            pipeline.xlen(name)
        return sum(pipeline.execute())

    def documents(self) -> list[bytes]:
        """In the order in which they were recorded."""
        entries: Any = [entry for name in keys.LOG_SHARDS for entry in self.log.xrange(f"bench:{name}") or ()]
        found: list[bytes] = [fields[b"d"] for _, fields in entries]
        # the id begins each document, and sorts like the moment
        return sorted(found)


# --- the persister -----------------------------------------------------------------------------------


@contextmanager
def persister() -> Iterator[psutil.Process]:
    """`manage.py persister`, started; ended in order."""
    words = commands.with_python(commands.PERSISTER)
    process = subprocess.Popen(words, cwd=BASE_DIR, env=commands.part_environment({}), stdin=subprocess.DEVNULL)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def holders(log: redis.Redis) -> Counter[Any]:
    """How many shards each worker holds."""
    found: Any = log.mget([keys.shard_lease(number) for number in range(keys.SHARDS)])
    return Counter(holder for holder in found if holder)


def wait_for_leases(log: redis.Redis, count: int) -> None:
    """Until so many processes share the shards evenly: each has two workers."""
    deadline = time.monotonic() + 60
    while sorted(holders(log).values()) != [keys.SHARDS // count // 2] * count * 2:
        if time.monotonic() > deadline:
            raise WrongResult(f"the shards are not shared by {count} persisters: {holders(log)}")
        time.sleep(LOOK_S)


@dataclass(slots=True)
class Eaten:
    """How a backlog was eaten."""

    seconds: float
    rate: float
    first_mb: float
    """the persister's memory after the first tenth, and at the end"""
    last_mb: float
    cpu: dict[str, float]
    """CPU seconds of each part"""


def eat(backlog: Backlog, *persisters: psutil.Process) -> Eaten:
    """Put the backlog into the log and wait until all of it is stored. The time is that from the first look that
    finds some of it stored, and the rate that of the rest: when a persister wakes up is not what is asked here."""
    backlog.put()
    while (rest := backlog.waiting()) == backlog.size:
        time.sleep(LOOK_S / 5)
    parts, began = cpu_of_parts(persisters), time.perf_counter()
    first_mb, said = 0.0, began
    while waiting := backlog.waiting():
        now = time.perf_counter()
        if not first_mb and waiting < backlog.size * 0.9:
            first_mb = persisters[0].memory_info().rss / 1e6
        if now - said > heartbeat.BEAT_EVERY_S:
            said = now
            backlog.say()
        if now - began > LIMIT_S:
            raise WrongResult(f"{waiting} entries are still in the log")
        time.sleep(LOOK_S)
    took = time.perf_counter() - began
    cpu = {name: seconds - parts[name] for name, seconds in cpu_of_parts(persisters).items()}
    return Eaten(took, rest / took, first_mb, persisters[0].memory_info().rss / 1e6, cpu)


def cpu_of_parts(persisters: Sequence[psutil.Process]) -> dict[str, float]:
    """CPU seconds so far of the persisters, of PostgreSQL's processes and of Valkey."""
    found = {"persister": 0.0, "PostgreSQL": 0.0, "Valkey": 0.0}
    servers = psutil.Process().children(recursive=True)
    for process in servers:
        try:
            used = process.cpu_times()
            name = process.name()
        except psutil.NoSuchProcess:
            continue
        part = "Valkey" if "valkey" in name else "PostgreSQL" if "postgres" in name else ""
        part = "persister" if process in persisters else part
        if part:
            found[part] += used.user + used.system
    return found


# --- row 6 -------------------------------------------------------------------------------------------


class Rounds:
    """The sides of row 6, one after the other in each round."""

    def __init__(self, backlog: Backlog, connected: psycopg.Connection[Any]) -> None:
        self.backlog, self.connected = backlog, connected
        self.documents = backlog.documents()
        self.copied = copy_lines(self.documents)
        self.eaten: list[Eaten] = []
        self.by_two: list[Eaten] = []
        self.copy: list[float] = []
        self.row_by_row: list[float] = []
        self.direct: list[float] = []

    def round(self, first: psutil.Process, *, counts: bool) -> None:
        self._empty()
        with persister() as second:
            wait_for_leases(self.backlog.log, 2)
            by_two = eat(self.backlog, first, second)
            self._check(thoroughly=not counts)
        wait_for_leases(self.backlog.log, 1)
        self._empty()
        eaten = eat(self.backlog, first)
        self._check(thoroughly=not counts)
        copy = self._copy()
        if not counts:
            self._compare()
        row_by_row, direct = self._row_by_row(), self._direct()
        if counts:
            self.by_two.append(by_two)
            self.eaten.append(eaten)
            self.copy.append(copy)
            self.row_by_row.append(row_by_row)
            self.direct.append(direct)

    def _empty(self) -> None:
        """The same state for each side: empty tables, nothing to be written to the disk."""
        self.connected.execute("TRUNCATE interaction_flows, turns, raw_flows")
        self.connected.execute("CHECKPOINT")
        self.backlog.say()

    def _copy(self) -> float:
        """Rows a second."""
        self.connected.execute("CHECKPOINT")
        began = time.perf_counter()
        with (
            self.connected.cursor() as cursor,
            cursor.copy(f"COPY raw_flows ({', '.join(COLUMNS)}) FROM STDIN") as copy,
        ):
            for lines in self.copied:
                copy.write(lines)
        return len(self.documents) / (time.perf_counter() - began)

    def _row_by_row(self) -> float:
        """Rows a second."""
        self.connected.execute("TRUNCATE raw_flows")
        values = [row_of(document) for document in self.documents[:ROW_BY_ROW]]
        insert = f"INSERT INTO raw_flows ({', '.join(COLUMNS)}) VALUES ({', '.join(['%s'] * len(COLUMNS))})"
        began = time.perf_counter()
        for row in values:
            self.connected.execute(insert, row, prepare=True)
        return len(values) / (time.perf_counter() - began)

    def _direct(self) -> float:
        """Rows a second of `store()`, in the batches of the flusher."""
        self._empty()
        documents = self.documents[:DIRECT]
        began = time.perf_counter()
        for start in range(0, len(documents), BATCH_CHECKPOINTS):
            store(documents[start : start + BATCH_CHECKPOINTS])
        return len(documents) / (time.perf_counter() - began)

    # --- what was timed is right ---------------------------------------------------------------

    def _check(self, *, thoroughly: bool) -> None:
        """Every row is there; thoroughly: turns' summaries are what their rows say, and the ledger adds up."""
        rows = self._one("SELECT count(*) FROM interaction_flows")
        summed = self._one("SELECT sum(checkpoints) FROM turns WHERE outcome = 'completed'")
        if {rows, summed} != {self.backlog.size} or self.backlog.log.xlen(keys.DEAD_LETTERS):
            raise WrongResult(f"{self.backlog.size} checkpoints were in the log, {rows} are stored, {summed} summed up")
        if not thoroughly:
            return
        # models: they can be had only after the servers are there
        from flows.tests.summary import stored_summaries, summary_of

        by_turn = self._checked_turns()
        stored = stored_summaries(list(by_turn))
        for turn_id, documents in by_turn.items():
            if stored.get(turn_id) != summary_of(documents):
                raise WrongResult(f"the summary of turn {turn_id} is not what its rows say")
        call_command("reconcile", "--wait", "0", stdout=io.StringIO())

    def _checked_turns(self) -> dict[str, list[dict[str, Any]]]:
        """All turns, or of many as many as fit into memory: turn_id → its checkpoints."""
        every = math.ceil(len(self.documents) / CHECKPOINTS_A_TURN / CHECKED_TURNS)
        by_turn: dict[str, list[dict[str, Any]]] = {}
        begun = 0
        for document in map(json.loads, self.documents):
            if document["parent_id"] is None:
                begun += 1
                if begun % every == 0:
                    by_turn[document["turn_id"]] = []
            if document["turn_id"] in by_turn:
                by_turn[document["turn_id"]].append(document)
        return by_turn

    def _compare(self) -> None:
        """Both tables have the same rows: those of COPY were made without any SQL of ours."""
        differing = self._one(
            "SELECT count(*) FROM ((TABLE interaction_flows EXCEPT TABLE raw_flows)"
            " UNION ALL (TABLE raw_flows EXCEPT TABLE interaction_flows)) AS differing"
        )
        if differing:
            raise WrongResult(f"{differing} rows differ from what was copied")

    def _one(self, query: str) -> int:
        row = self.connected.execute(query).fetchone()
        return int(row[0]) if row else 0

    def rows(self) -> list[Row]:
        """The lines of row 6."""
        rates = [each.rate for each in self.eaten]
        share = share_of_parts(self.eaten)
        together = share_of_parts(self.by_two)
        grown = [each.last_mb / self.eaten[0].first_mb for each in self.eaten]
        size = f"{self.backlog.size:,} checkpoints"
        return [
            times(
                6, "persister with turn summaries, over a backlog", rates, self.copy, unit="rows/s",
                against="one COPY of the same rows", goal=0.4, sense=AT_LEAST, stretch=0.6, note=f"{size}; {share}",
            ),
            times(
                6, "persister, beside one INSERT a row", rates, self.row_by_row, unit="rows/s",
                against="INSERT and commit, row by row", goal=10, sense=AT_LEAST,
            ),
            Row(
                6, "memory of the persister after all of it, by that after the first tenth", grown[-1], "times",
                goal=1.1, sense=AT_MOST, note=f"{self.eaten[0].first_mb:.0f} MB to {self.eaten[-1].last_mb:.0f} MB",
            ),
            times(
                6, "two persisters on the same backlog", [each.rate for each in self.by_two], rates, unit="rows/s",
                against="one persister", goal=None, sense=AT_LEAST, note=together,
            ),
            times(
                6, "store() from a web process, while Redis is away", self.direct, self.row_by_row, unit="rows/s",
                against="INSERT and commit, row by row", goal=None, sense=AT_LEAST,
            ),
        ]  # fmt: skip


def share_of_parts(eaten: Sequence[Eaten]) -> str:
    """How busy each part was, in cores."""
    shares = {name: median(each.cpu[name] / each.seconds for each in eaten) for name in eaten[0].cpu}
    return "cores busy: " + ", ".join(f"{name} {share:.2f}" for name, share in shares.items())


def row_of(document: bytes) -> list[Any]:
    """The values of COLUMNS."""
    found = json.loads(document)
    return [*(found[name] for name in COLUMNS[:6]), json.dumps(found["metadata"]), found["created_at"]]


def copy_lines(documents: Sequence[bytes]) -> list[bytes]:
    """What COPY reads, in pieces of some megabytes: made before its time is taken."""
    escaped = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
    lines = [
        "\t".join("\\N" if value is None else value.translate(escaped) for value in row_of(document)) + "\n"
        for document in documents
    ]
    return ["".join(lines[start : start + 5_000]).encode() for start in range(0, len(lines), 5_000)]


# --- row 7 -------------------------------------------------------------------------------------------


class Lookout(threading.Thread):
    """A second connection that looks all the time which rows it can see, until it has seen all."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.expected: list[str] = []
        """flow_ids in the order in which they were recorded; grows while the load runs"""
        self.seen: dict[str, float] = {}
        """when a row was seen first, by the monotonic clock"""
        self.load_is_over = threading.Event()

    def run(self) -> None:
        oldest = 0
        deadline = time.monotonic() + LIMIT_S
        with database() as connected:
            while time.monotonic() < deadline:
                is_over = self.load_is_over.is_set()
                while oldest < len(self.expected) and self.expected[oldest] in self.seen:
                    oldest += 1
                if oldest == len(self.expected):
                    if is_over:
                        return
                    time.sleep(LOOK_S)
                    continue
                # from the millisecond of the oldest that is not seen: the id begins with it
                since = f"{self.expected[oldest][:14]}7000-8000-000000000000"
                rows = connected.execute("SELECT flow_id::text FROM interaction_flows WHERE flow_id >= %s", [since])
                visible, now = rows.fetchall(), time.monotonic()
                for (flow_id,) in visible:
                    self.seen.setdefault(flow_id, now)
                time.sleep(LOOK_S)


def latency(log: redis.Redis, connected: psycopg.Connection[Any], seconds: float) -> Row:
    """From the call that records a checkpoint to its row being visible to others: taken at the next look, so up to
    10 ms too late and never too early."""
    connected.execute("TRUNCATE interaction_flows, turns")
    lookout = Lookout()
    lookout.start()
    made = asyncio.run(at_a_steady_pace(lookout, seconds))
    lookout.load_is_over.set()
    lookout.join()
    if len(lookout.seen) != len(made) or log.xlen(keys.DEAD_LETTERS):
        raise WrongResult(f"{len(made)} checkpoints were recorded, {len(lookout.seen)} stored")
    took_ms = [(lookout.seen[flow_id] - made_at_s) * 1000 for flow_id, made_at_s in made.items()]
    return Row(
        7, f"recorded → committed, {A_SECOND:,} checkpoints a second, p99", percentile(took_ms, 0.99), "ms",
        goal=1000, sense=AT_MOST,
        note=f"p50 {percentile(took_ms, 0.5):.0f} ms, the longest {max(took_ms):.0f} ms, of {len(took_ms):,}",
    )  # fmt: skip


async def at_a_steady_pace(lookout: Lookout, seconds: float) -> dict[str, float]:
    """Record A_SECOND checkpoints a second; flow_id → when it was recorded, by the monotonic clock."""
    tracker, made = FlowTracker(), dict[str, float]()
    began = time.monotonic()
    for checkpoint in record_turns(tracker, round(seconds * A_SECOND / CHECKPOINTS_A_TURN), random.Random(2)):
        made[checkpoint.flow_id] = checkpoint.made_at_s
        lookout.expected.append(checkpoint.flow_id)
        while len(made) > (time.monotonic() - began) * A_SECOND:  # noqa: ASYNC110 - a pace
            await asyncio.sleep(0.001)
    if tracker.flusher is None or not await tracker.flusher.drain(LIMIT_S):
        raise WrongResult("the flusher did not write what was recorded")
    await tracker.flusher.stop()
    await get_redis().aclose()
    return made
