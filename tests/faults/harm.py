"""The ways in which parts are hurt: always by pid, and only those that this run started."""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg

from omni2 import embedded
from tests.running import Process, Running, eventually

GATE = 4711
"""Number of the advisory lock at which commits wait, see `gate_before_commit`."""


def family(pid: int) -> list[int]:
    """A process and all that came of it, parents first. PostgreSQL's servers are sessions of their own, so their
    group says nothing."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def freeze(process: Process) -> None:
    """SIGSTOP to it and all its children, the parent first: it could start more."""
    for _ in range(2):
        for pid in family(process.pid):
            _send(pid, signal.SIGSTOP)


def thaw(process: Process) -> None:
    """SIGCONT to it and all its children."""
    for pid in reversed(family(process.pid)):
        _send(pid, signal.SIGCONT)


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


# --- PostgreSQL -------------------------------------------------------------------------------------


def kill_postgres(omni2: Running) -> None:
    """kill -9 of the postmaster and of all its servers; returns when they are gone."""
    assert omni2.postgres is not None
    pids = family(omni2.postgres.pid)
    for pid in pids:
        _send(pid, signal.SIGKILL)
    omni2.postgres.kill()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "PostgreSQL is gone")


def start_postgres(omni2: Running) -> None:
    """Start it again; returns when it answers."""
    assert omni2.postgres is not None
    embedded.end_stale_postgres(omni2.folder / "pg")
    omni2.postgres.start()
    wait_for_postgres(omni2)


def wait_for_postgres(omni2: Running) -> None:
    eventually(lambda: embedded.postgres_answers(omni2.folder / "s"), "PostgreSQL answers")


def break_connections(omni2: Running) -> int:
    """pg_terminate_backend of every client but ourselves; how many there were."""
    return len(
        omni2.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
    )


@contextmanager
def locked_table(omni2: Running) -> Iterator[None]:
    """Inside, nobody can insert a checkpoint; reading works."""
    with psycopg.connect(omni2.database_url) as lock:
        lock.execute("LOCK TABLE omni2.interaction_flows IN EXCLUSIVE MODE")
        yield


def wait_for_insert(omni2: Running) -> None:
    """Returns when somebody waits for `locked_table`. His statement begins with the data, so he is known by what he
    waits for."""
    waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'interaction_flows'::regclass"
    eventually(lambda: omni2.sql(waits), "the persister waits to insert")


@contextmanager
def gate_before_commit(omni2: Running) -> Iterator[psycopg.Connection]:
    """Inside, whoever inserted checkpoints waits before his commit: at a deferred trigger that asks for an advisory
    lock we hold. Give it back with `open_gate`."""
    omni2.sql(
        "CREATE OR REPLACE FUNCTION omni2.wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" PERFORM pg_advisory_xact_lock_shared({GATE}); RETURN NULL; END $$"
    )
    omni2.sql(
        "CREATE CONSTRAINT TRIGGER gate AFTER INSERT ON omni2.interaction_flows DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION omni2.wait_at_gate()"
    )
    keeper = psycopg.connect(omni2.database_url, autocommit=True)
    try:
        keeper.execute(f"SELECT pg_advisory_lock({GATE})")
        yield keeper
    finally:
        keeper.close()
        omni2.sql("DROP TRIGGER gate ON omni2.interaction_flows")
        omni2.sql("DROP FUNCTION omni2.wait_at_gate()")


def open_gate(keeper: psycopg.Connection) -> None:
    keeper.execute(f"SELECT pg_advisory_unlock({GATE})")


def wait_for_gate(omni2: Running) -> int:
    """Returns when somebody stands at the gate: the pid of his server."""
    waits = "SELECT pid FROM pg_locks WHERE NOT granted AND locktype = 'advisory' AND objid = %s"
    return int(eventually(lambda: omni2.sql(waits, GATE), "the persister waits to commit")[0][0])


# --- disks ------------------------------------------------------------------------------------------


def limit_files(process: Process, size: int) -> None:
    """From now on none of its files may grow beyond `size` bytes, as if the disk was full there. SIGXFSZ must be
    ignored by it, or it dies of it: then writes fail with EFBIG."""
    for pid in family(process.pid):
        with suppress(ProcessLookupError):
            try:
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            except PermissionError:
                _limit_as_its_owner(pid, size)


def _limit_as_its_owner(pid: int, size: int) -> None:
    """Root in a container (without CAP_SYS_RESOURCE) may not limit the PostgreSQL that runs as nobody; nobody may."""
    words = ["prlimit", "--pid", str(pid), f"--fsize={'unlimited' if size == resource.RLIM_INFINITY else size}:"]
    subprocess.run([*embedded.as_unprivileged(), *words], check=Path(f"/proc/{pid}").exists())


def unlimit_files(process: Process) -> None:
    limit_files(process, resource.RLIM_INFINITY)


def largest_file(folder: Path) -> int:
    """The size of the largest file below, write-ahead log apart: its segments are made whole."""
    sizes = [0]
    for path in folder.rglob("*"):
        if "pg_wal" not in path.parts:
            try:
                sizes.append(path.stat().st_size if path.is_file() else 0)
            except OSError:
                continue
    return max(sizes)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def s(self) -> float:
        return round(time.monotonic() - self._began, 2)
