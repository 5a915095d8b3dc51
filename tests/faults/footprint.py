"""What a started product holds on to: counted before and after, so that whoever left has left nothing behind."""

import json
import os
import time
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

from flows.redis import POOLED
from tests.running import Process, Running, eventually, get


@dataclass(slots=True)
class Footprint:
    """All processes of the product together."""

    tasks: int = 0
    running_turns: int = 0
    queue: int = 0
    watchers: int = 0
    slots: int = 0
    """turns that count as running at once"""
    waiting: int = 0
    """entries of the hand-off log"""
    descriptors: int = 0
    """open files of web processes and persisters, without the connections that are counted for themselves"""
    redis_clients: int = 0
    """connections to Redis that are no pool's"""
    redis_pooled: int = 0
    """as many as were once in use at the same time: a pool keeps those, here and with PostgreSQL"""
    postgres_connections: int = 0
    redis_keys: int = 0
    redis_kib: int = 0
    web_kib: int = 0
    persister_kib: int = 0

    def more_than(self, before: "Footprint", *names: str) -> list[str]:
        """Which of these has grown."""
        pairs = [(name, getattr(before, name), getattr(self, name)) for name in names]
        return [f"{name}: {was} before, {now} after" for name, was, now in pairs if now > was]

    def row(self) -> dict[str, int]:
        return {each.name: getattr(self, each.name) for each in fields(self)}


LEFT_BY_CLIENTS = ("tasks", "running_turns", "queue", "watchers", "slots", "waiting", "descriptors", "redis_clients")
"""What must be exactly as before when everybody has gone. Memory is another matter: an allocator keeps some."""


def resident_kib(process: Process) -> int:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0)


def descriptors(process: Process) -> int:
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def footprint(omni2: Running) -> Footprint:
    """Now. Blocks for some ten milliseconds: from a test's event loop in a thread."""
    found = Footprint()
    for url in omni2.urls:
        checks = json.loads(get(url + "/readyz", timeout_s=20)[1] or b"{}").get("checks", {})
        for name in ("tasks", "running_turns", "queue"):
            setattr(found, name, getattr(found, name) + checks["tracking"][name])
        found.watchers += checks["relay"].get("watchers", 0)
        found.waiting = checks["persister"].get("waiting", 0)
    others = "datname = current_database() AND pid <> pg_backend_pid()"
    found.postgres_connections = omni2.sql(f"SELECT count(*) FROM pg_stat_activity WHERE {others}")[0][0]
    found.slots = omni2.sql("SELECT count(*) FROM turn_usage WHERE ended_at IS NULL")[0][0]
    open_files = sum(descriptors(process) for process in (*omni2.web, *omni2.persisters))
    names = Counter(each["name"] for each in omni2.redis.client_list())
    found.redis_pooled = names.pop(POOLED, 0)
    found.redis_clients = names.total()
    found.descriptors = open_files - found.postgres_connections - found.redis_pooled
    found.redis_keys = omni2.redis.dbsize()
    found.redis_kib = omni2.redis.info("memory")["used_memory"] // 1024
    found.web_kib = sum(resident_kib(process) for process in omni2.web)
    found.persister_kib = sum(resident_kib(process) for process in omni2.persisters)
    return found


LOOKS = 8


def at_rest(omni2: Running, *, limit_s: float = 60) -> Footprint:
    """As soon as no turn runs and nothing waits: the most that is held then. To look costs something too:
    a task or a connection more or less, by the moment."""

    def quiet() -> Footprint | None:
        now = footprint(omni2)
        return None if now.running_turns or now.queue or now.slots or now.waiting else now

    found: Footprint = eventually(quiet, "all is quiet", limit_s=limit_s)
    for _ in range(LOOKS):
        now = footprint(omni2)
        for name in LEFT_BY_CLIENTS:
            setattr(found, name, max(getattr(found, name), getattr(now, name)))
    return found


def grown(omni2: Running, before: Footprint, *, limit_s: float = 60) -> list[str]:
    """What is still held after the limit that was not before; empty as soon as there is nothing."""
    deadline = time.monotonic() + limit_s
    while found := footprint(omni2).more_than(before, *LEFT_BY_CLIENTS):
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return found
