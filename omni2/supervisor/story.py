"""The run from the first line to the last: take the folder, clean up, start, watch, stop in order.

Start  PostgreSQL and Valkey side by side, the local model meanwhile; database; persister; web.
Stop   web (its open answers end and are written down), persister, model, Valkey, PostgreSQL.
"""

import asyncio
import os
import secrets
import signal
import socket
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omni2 import embedded, env, localmodel
from omni2.supervisor import commands, prepare
from omni2.supervisor.console import on_terminal, say
from omni2.supervisor.folder import DataFolder, make_sockets, remove_sockets
from omni2.supervisor.keeper import Keeper
from omni2.supervisor.parts import Part
from omni2.supervisor.processes import Known, known

POSTGRES, VALKEY, MODEL, PERSISTER, WEB = range(1, 6)
PARENT_LOOK_S = 0.5
# at the end, for running answers, and then for writing down what was recorded
DRAIN_S = 1
FLUSH_S = 5


class StartProblem(RuntimeError):
    """Omni2 cannot start; the message says why and what to do."""


@dataclass
class Supervisor:
    """One run. `run()` returns when everything has ended."""

    folder: DataFolder
    host: str
    port: int
    stop_with_parent: bool = False
    parts: list[Part] = field(default_factory=list)
    keeper: Keeper = field(default_factory=Keeper)
    keeper_pid: int = 0
    sockets: Path | None = None
    listener: socket.socket | None = None
    """what several web processes listen on"""
    environment: dict[str, str] = field(default_factory=dict)
    """what the parts are told besides our own environment"""
    _told: dict[int, Known] = field(default_factory=dict)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _watchers: list[asyncio.Task[None]] = field(default_factory=list)

    async def run(self) -> None:
        """Start, stay until asked to stop, stop. Raises what made the start impossible, after cleaning up."""
        self._listen_for_signals()
        self.folder.take()
        try:
            await asyncio.to_thread(self._clean_up)
            check_port(self.host, self.port)
            self.keeper_pid = self.keeper.start()
            await self._until_stopped(self._start())
            await self._stop.wait()
        finally:
            await self._end()

    # --- start --------------------------------------------------------------------------------

    def _clean_up(self) -> None:
        left = self.folder.end_last_run()
        if left:
            say(f"ended what an earlier run had left: {', '.join(left)}")

    async def _until_stopped(self, start: Coroutine[Any, Any, None]) -> None:
        """Run the start, but give it up as soon as somebody wants to stop."""
        starting = asyncio.create_task(start)
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
        if not starting.cancelled():
            starting.result()

    async def _start(self) -> None:
        began = time.monotonic()
        self.environment = {"SECRET_KEY": env.text("SECRET_KEY") or self.folder.secret_key()}
        self.environment["OMNI2_DATA_DIR"] = str(self.folder.path)
        servers = self._servers()
        self._start_model()
        # the web process spends seconds reading its modules, and asks the database nothing before its
        # first request: it may do that while the others start
        webs = [self._add(part) for part in self._webs()]
        launched = (web.launch() for web in webs)
        await asyncio.gather(*launched, *(self._start_part(server) for server in servers))
        admin_line = await asyncio.to_thread(self._prepare)
        for persister in self._persisters():
            await self._start_part(self._add(persister))
        for web in webs:
            await web.until_ready()
            self._watch(web.keep_running())
        self._greet(admin_line, time.monotonic() - began)

    def _servers(self) -> list[Part]:
        """The embedded servers this run needs; their addresses are in `environment` then."""
        own_postgres = not env.text("DATABASE_URL")
        own_valkey = env.redis_enabled() and not env.redis_is_given()
        if own_postgres or own_valkey:
            self.sockets = make_sockets()
            self.keeper.remove(self.sockets)
        servers = []
        if own_postgres:
            for name in [name for name in os.environ if name.startswith("PG")]:
                del os.environ[name]  # PGPORT and the like would lead to other servers
            servers.append(self._add(self._postgres()))
        if own_valkey:
            servers.append(self._add(self._valkey()))
        return servers

    def _add(self, part: Part) -> Part:
        self.parts.append(part)
        return part

    async def _start_part(self, part: Part) -> None:
        await part.start()
        self._watch(part.keep_running())

    def _watch(self, work: Coroutine[Any, Any, None]) -> None:
        self._watchers.append(asyncio.create_task(work))

    def _start_model(self) -> None:
        """The local model loads while the rest starts: nobody waits for it."""
        if not env.local_model_wanted():
            return
        missing = localmodel.missing()
        if missing:
            say(f"no local model: {missing}. Chats are answered llm_unavailable until LLM_MODEL names another")
            return
        self._watch(self._add(self._model()).start_and_keep_running())

    def _prepare(self) -> str:
        """Migrate and make the admin; returns what to say about the password."""
        if "DATABASE_URL" in self.environment:
            prepare.use_database(self.environment["DATABASE_URL"])
        try:
            prepare.wait_for_database(say)
            prepare.migrate(say)
            return self._admin()
        finally:
            prepare.done()

    def _admin(self) -> str:
        given = env.text("OMNI2_ADMIN_PASSWORD")
        password, new = (given, False) if given else self.folder.admin_password()
        admin = prepare.admin(env.admin_email(), lambda: password)
        if given and not admin.password_fits:
            return (
                f"the one this account has; OMNI2_ADMIN_PASSWORD is only used when the account is made "
                f"(`manage.py changepassword {admin.email}` changes it)"
            )
        if given:
            return "as in OMNI2_ADMIN_PASSWORD"
        shown = f"{password}   (shown this once; " if new and on_terminal() else "("
        return f"{shown}kept in {self.folder.password_file}{'' if admin.password_fits else ', changed since'})"

    def _greet(self, admin_line: str, took_s: float) -> None:
        say(f"ready after {took_s:.1f} s:  {address(self.host, self.port)}")
        say(f"  sign in as  {env.admin_email()}")
        say(f"  password    {admin_line}")
        say("  stop with   Ctrl-C")

    # --- the parts ----------------------------------------------------------------------------

    def _part(self, name: str, rank: int, words: list[str], **more: Any) -> Part:
        return Part(name, rank, words, environment=self.environment, folder=env.BASE_DIR, changed=self._note, **more)

    def _postgres(self) -> Part:
        data, sockets = self.folder.path / "postgres", self._socket_folder()
        self.environment["DATABASE_URL"] = embedded.postgres_url(sockets)
        # whoever runs everything himself may also run tool servers as programs
        self.environment.setdefault("OMNI2_STDIO_TOOLS", "true")

        def before() -> None:
            if not (data / "PG_VERSION").exists():
                say("making the database folder")
            embedded.make_cluster(data)
            embedded.end_stale_postgres(data)

        async def ready() -> bool:
            return await asyncio.to_thread(embedded.postgres_answers, sockets)

        return self._part(
            *("PostgreSQL", POSTGRES, embedded.postgres_words(data, sockets, settings=connections_needed())),
            before=before,
            ready=ready,
            log=self.folder.log("postgres"),
            stop_signal=signal.SIGINT,  # "fast": ends the connections and writes everything down
            patience_s=10.0,
        )

    def _valkey(self) -> Part:
        data, address = self.folder.path / "valkey", self._socket_folder() / "valkey.sock"
        self.environment["REDIS_URL"] = embedded.valkey_url(address)

        async def ready() -> bool:
            return await asyncio.to_thread(embedded.valkey_answers, address)

        return self._part(
            *("Valkey", VALKEY, embedded.valkey_words(data, address)),
            before=lambda: data.mkdir(exist_ok=True, mode=0o700),
            ready=ready,
            log=self.folder.log("valkey"),
        )

    def _model(self) -> Part:
        port = free_port()
        self.environment |= {
            localmodel.URL_VARIABLE: f"http://127.0.0.1:{port}/v1",
            localmodel.KEY_VARIABLE: secrets.token_urlsafe(24),
            localmodel.PORT_VARIABLE: str(port),
        }

        async def ready() -> bool:
            return await answers("127.0.0.1", port, "/health")

        words = commands.with_python(commands.LOCAL_MODEL)
        return self._part("local model", MODEL, words, ready=ready, log=self.folder.log("model"), patience_s=1.0)

    def _persisters(self) -> list[Part]:
        words = commands.with_python(commands.PERSISTER)
        return [self._part(name, PERSISTER, words, patience_s=3.0) for name in numbered("persister", env.persisters())]

    def _webs(self) -> list[Part]:
        async def ready() -> bool:
            return await answers(reachable(self.host), self.port, "/healthz")

        # its running answers may go on for DRAIN_S (a server in production has longer), then it writes down
        self.environment.setdefault("OMNI2_DRAIN_S", env.text("OMNI2_DRAIN_S", str(DRAIN_S)))
        patience_s = int(self.environment["OMNI2_DRAIN_S"]) + FLUSH_S
        names = numbered("web", env.web_processes())
        words, inherits = commands.web(self.host, self.port), list[int]()
        if len(names) > 1:
            self.listener = shared_listener(self.host, self.port)
            inherits = [self.listener.fileno()]
            words = commands.web_on_shared(*inherits)
        return [
            self._part(name, WEB, commands.with_python(words), ready=ready, patience_s=patience_s, inherits=inherits)
            for name in names
        ]

    def _socket_folder(self) -> Path:
        if self.sockets is None:
            raise StartProblem("there is no socket folder")
        return self.sockets

    def _note(self) -> None:
        """Tell the keeper and the folder what runs now."""
        now = {part.known.pid: part.known for part in self.parts if part.known}
        for pid in self._told.keys() - now.keys():
            self.keeper.drop(pid)
        for pid in now.keys() - self._told.keys():
            self.keeper.add(now[pid])
        self._told = now
        # the keeper is noted too, with the highest rank: a next start ends it first and does its work itself
        own = known("keeper", self.keeper_pid, signal=signal.SIGKILL, rank=WEB + 1)
        self.folder.write_run(
            sockets=self.sockets,
            addresses={name: self.environment.get(name, "") for name in ("DATABASE_URL", "REDIS_URL")},
            processes=[*now.values(), *([own] if own else [])],
        )

    # --- stop ---------------------------------------------------------------------------------

    def _listen_for_signals(self) -> None:
        loop = asyncio.get_running_loop()
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
            numbers.append(signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, self._asked_to_stop)
        if self.stop_with_parent:
            self._watch(self._notice_parent(os.getppid()))

    def _asked_to_stop(self) -> None:
        if self._stop.is_set():
            say("asked twice: ending everything at once")
            for part in self.parts:
                if part.known and part.rank > VALKEY:
                    part.known.send(signal.SIGKILL)
        self._stop.set()

    async def _notice_parent(self, parent: int) -> None:
        while os.getppid() == parent:  # noqa: ASYNC110 (the system tells a child nothing about its parent)
            await asyncio.sleep(PARENT_LOOK_S)
        self._stop.set()

    async def _end(self) -> None:
        began = time.monotonic()
        if self.parts:
            say("stopping")
        self._stop.set()
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        if self.listener is not None:
            # else whoever comes now would wait for somebody who has ended
            self.listener.close()
        for rank in sorted({part.rank for part in self.parts}, reverse=True):
            await asyncio.gather(*(part.stop() for part in self.parts if part.rank == rank))
        await asyncio.to_thread(self.keeper.end)
        if self.sockets:
            remove_sockets(self.sockets)
        self.folder.forget_run()
        self.folder.give_back()
        if self.parts:
            say(f"stopped ({time.monotonic() - began:.1f} s)")


# --- addresses ----------------------------------------------------------------------------------


def check_port(host: str, port: int) -> None:
    """Raises StartProblem when the port is taken, before anything is started."""
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            probe.listen()
    except OSError as problem:
        raise StartProblem(
            f"Port {port} on {host} cannot be used ({problem.strerror or problem}): "
            "stop the program that has it, or set OMNI2_PORT to another"
        ) from None


def shared_listener(host: str, port: int) -> socket.socket:
    """A listening socket for several web processes: whichever is free takes the next connection."""
    if ":" in host:
        # Daphne takes an inherited socket for one of IPv4
        raise StartProblem("OMNI2_WEB_PROCESSES needs an IPv4 address in OMNI2_HOST, or a name of one")
    return socket.create_server((host, port), backlog=commands.BACKLOG)


def numbered(name: str, count: int) -> list[str]:
    """The name of one part, or of several."""
    return [name] if count == 1 else [f"{name} {number}" for number in range(1, count + 1)]


def connections_needed() -> dict[str, str]:
    """PostgreSQL's max_connections when more web processes run than its usual number is enough for."""
    web = env.web_processes() * (env.database_pool_size() + 2)
    return {"max_connections": str(max(120, web + 5 * env.persisters() + 15))}


def free_port() -> int:
    """A port on the loopback that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def reachable(host: str) -> str:
    """Where a server that listens on `host` is reached from this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104


def address(host: str, port: int) -> str:
    name = reachable(host)
    return f"http://[{name}]:{port}/" if ":" in name else f"http://{name}:{port}/"


async def answers(host: str, port: int, path: str) -> bool:
    """Whether a GET of this path is answered with 200 within two seconds."""
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
