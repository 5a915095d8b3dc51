"""A Redis as operators run it: a primary, replicas, and three sentinels that choose another primary when it is gone.

All are Valkey processes on loopback ports, with passwords, each with a configuration file of its own, which the
sentinels rewrite as they do in earnest.
"""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis
from redis.sentinel import Sentinel

from omni2 import embedded
from tests.running import Process, eventually, free_port

MASTER = "omni2-test"
SENTINELS = 3
DOWN_AFTER_MS = 1000
FAILOVER_TIMEOUT_MS = 3000


class Guarded:
    """The started processes. `servers[0]` is the first primary."""

    def __init__(self, folder: Path, *, replicas: int = 2, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.password, self.sentinel_password = secrets.token_hex(12), secrets.token_hex(12)
        self.servers: list[Process] = []
        self.sentinels: list[Process] = []
        self._ports: dict[str, int] = {}
        self._passwords: dict[str, str] = {}
        for number in range(1 + replicas):
            self.servers.append(self._start_server(f"valkey-{number + 1}", settings or {}))
        self._connect_replicas()
        for number in range(SENTINELS):
            self.sentinels.append(self._start_sentinel(f"sentinel-{number + 1}"))
        eventually(self._all_know_each_other, "the sentinels know each other and all replicas")

    # --- what the product is told -------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        return {
            "REDIS_SENTINELS": ",".join(f"127.0.0.1:{self.port_of(each)}" for each in self.sentinels),
            "REDIS_SENTINEL_MASTER": MASTER,
            "REDIS_SENTINEL_PASSWORD": self.sentinel_password,
            "REDIS_PASSWORD": self.password,
        }

    @property
    def first_url(self) -> str:
        """Of the server that is the primary at the beginning."""
        return f"redis://:{self.password}@127.0.0.1:{self.port_of(self.servers[0])}/0"

    def client(self) -> redis.Redis:
        """Of whoever is the primary."""
        addresses = [("127.0.0.1", self.port_of(each)) for each in self.sentinels]
        return Sentinel(addresses, sentinel_kwargs={"password": self.sentinel_password}).master_for(
            MASTER, password=self.password
        )

    # --- who is what --------------------------------------------------------------------------------

    @property
    def processes(self) -> list[Process]:
        return [*self.sentinels, *self.servers]

    def port_of(self, process: Process) -> int:
        return self._ports[process.name]

    def ask(self, process: Process, *words: str) -> Any:
        """The answer of one server or sentinel; None when it gives none."""
        return self._ask(process.name, *words)

    def _ask(self, name: str, *words: str) -> Any:
        login = {"port": self._ports[name], "password": self._passwords[name]}
        with redis.Redis(**login, socket_timeout=2, retry=None) as client:
            try:
                return client.execute_command(*words)
            except redis.RedisError:
                return None

    def primary(self) -> Process:
        """By what most sentinels say."""
        said = [self.ask(each, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER) for each in self.sentinels]
        ports = [int(each[1]) for each in said if each]
        port = max(set(ports), key=ports.count)
        return next(each for each in self.servers if self.port_of(each) == port)

    def replicas(self) -> list[Process]:
        primary = self.primary()
        return [each for each in self.servers if each is not primary]

    def is_replica(self, process: Process) -> bool:
        """Whether it follows a primary and is connected to it."""
        role = self.ask(process, "ROLE")
        return bool(role) and role[0] == b"slave" and role[3] == b"connected"

    def all_in_sync(self) -> bool:
        """Whether every server but the primary follows it, and every sentinel says so."""
        return all(self.is_replica(each) for each in self.replicas()) and self._all_know_each_other()

    def _all_know_each_other(self) -> bool:
        for sentinel in self.sentinels:
            known = self.ask(sentinel, "SENTINEL", "MASTER", MASTER)
            if not known:
                return False
            facts = known if isinstance(known, dict) else dict(zip(known[::2], known[1::2], strict=True))
            facts = {_text(name): _text(value) for name, value in facts.items()}
            others, replicas = int(facts["num-other-sentinels"]), int(facts["num-slaves"])
            if others < SENTINELS - 1 or replicas < len(self.servers) - 1 or facts["flags"] != "master":
                return False
        return True

    # --- start --------------------------------------------------------------------------------------

    def _start_server(self, name: str, settings: Mapping[str, str]) -> Process:
        options = {
            **self._listening(name, self.password),
            "masterauth": self.password,
            **{option: value or '""' for option, value in embedded.VALKEY_KEEPS.items()},
            **settings,
        }
        process = self._start(name, options)
        eventually(lambda: self._ask(name, "PING"), f"{name} answers")
        return process

    def _connect_replicas(self) -> None:
        first, *others = self.servers
        for each in others:
            self.ask(each, "REPLICAOF", "127.0.0.1", str(self.port_of(first)))
            self.ask(each, "CONFIG", "REWRITE")
        eventually(lambda: all(self.is_replica(each) for each in others), "the replicas follow")

    def _start_sentinel(self, name: str) -> Process:
        options = {
            **self._listening(name, self.sentinel_password),
            "sentinel sentinel-pass": self.sentinel_password,
            f"sentinel monitor {MASTER} 127.0.0.1 {self.port_of(self.servers[0])}": str(SENTINELS // 2 + 1),
            f"sentinel auth-pass {MASTER}": self.password,
            f"sentinel down-after-milliseconds {MASTER}": str(DOWN_AFTER_MS),
            f"sentinel failover-timeout {MASTER}": str(FAILOVER_TIMEOUT_MS),
        }
        return self._start(name, options, "--sentinel")

    def _listening(self, name: str, password: str) -> dict[str, str]:
        self._ports[name], self._passwords[name] = free_port(), password
        folder = self.folder / name
        folder.mkdir(mode=0o700)
        return {"port": str(self._ports[name]), "bind": "127.0.0.1", "dir": str(folder), "requirepass": password}

    def _start(self, name: str, options: Mapping[str, str], *words: str) -> Process:
        file = self.folder / f"{name}.conf"
        file.write_text("".join(f"{option} {value}\n" for option, value in options.items()))
        words_ = [str(embedded.valkey_binary()), str(file), *words]
        return Process(name, words_, os.environ, self.folder / f"{name}.log")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
