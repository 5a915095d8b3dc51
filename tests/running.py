"""A really started Omni2 for end-to-end tests: web processes, persisters, a database and a Redis of its own.

    with running(llm_base_url=llm.url, web=2) as omni2:
        token = omni2.create_token("bob@example.com")
        httpx.post(omni2.url + "/api/v1/ask", ...)          # omni2.urls[1] is the second web process
        omni2.web[0].kill()                                  # kill -9; stop()/cont() freeze and thaw
        eventually(lambda: omni2.sql("SELECT …"), "the turn is stored")

    with omni2.database():                                   # the ORM of this test process, in that database
        InteractionFlow.objects.count()

Daphne serves, or uvicorn with OMNI2_TEST_SERVER=uvicorn. A start takes about four seconds, so let a
module share one where it can. All ends with the `with`, and also when pytest is killed.
"""

import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psycopg
import pytest
import redis
from psycopg import sql as psycopg_sql

from omni2 import embedded
from omni2.env import BASE_DIR
from omni2.supervisor import commands
from tests import servers
from tests.people import make_person

if TYPE_CHECKING:
    from tests.sentinels import Guarded

START_LIMIT_S = 120.0
EVENTUALLY_S = 60.0
# of each worker its own, in case they were given one PostgreSQL
TEMPLATE = "omni2_migrated_" + os.environ.get("PYTEST_XDIST_WORKER", "alone")

_template_made = False


def eventually(check: Callable[[], Any], what: str = "", *, limit_s: float = EVENTUALLY_S) -> Any:
    """Wait until `check()` is true and return what it returned; fails, naming `what`, after the limit."""
    deadline = time.monotonic() + limit_s
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit_s:g} s: {what or check}")
        time.sleep(0.05)


PORTS = range(20_000, 32_000)
"""Below those that Linux gives to whoever asks for any, so none is taken between its choice and its use."""

_ports_held: list[IO[str]] = []


def free_port(*wanted: int) -> int:
    """A port that nobody has now, `wanted` if it is free; no other run of tests on this machine gets it while this
    process lives."""
    locks = Path(tempfile.gettempdir(), f"omni2-test-ports-{os.getuid()}")
    locks.mkdir(exist_ok=True)
    for port in (*wanted, *random.sample(PORTS, len(PORTS))):
        lock = (locks / str(port)).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            lock.close()
            continue
        _ports_held.append(lock)
        return port
    raise AssertionError(f"none of the ports {PORTS.start} to {PORTS.stop} is free")


def get(url: str, *, timeout_s: float = 5) -> tuple[int, bytes]:
    """Status and body of a GET; (0, b"") when nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as answer:
        return answer.code, answer.read()
    except OSError:
        return 0, b""


class Process:
    """One started process, its output in a file."""

    def __init__(
        self,
        name: str,
        words: list[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        number: int = signal.SIGTERM,
        restore_signals: bool = True,
    ) -> None:
        """`restore_signals=False`: what Python ignores (SIGXFSZ, SIGPIPE), it ignores too."""
        self.name, self.words, self.environment, self.log, self.number = name, words, environment, log, number
        self.restore_signals = restore_signals
        self.start()

    def start(self) -> None:
        """Start it, or start it again after its end."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=BASE_DIR,
                env=dict(self.environment),
                start_new_session=True,
                restore_signals=self.restore_signals,
            )
        self._asked = False
        servers.keep(self._process, self.name, self.number, rank=1)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """kill -9; returns when it is gone."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Freeze it (SIGSTOP)."""
        self.send(signal.SIGSTOP)

    def cont(self) -> None:
        """Let a frozen one go on."""
        self.send(signal.SIGCONT)

    def ask_to_end(self) -> None:
        self._asked = True
        if self.alive:
            self.cont()
            self.send(self.number)

    def end(self, *, limit_s: float = 20) -> None:
        """Ask it to stop in order, if nobody has, and wait; it is killed after the limit."""
        if not self._asked:
            self.ask_to_end()
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()


class Running:
    """The started product. `url` and `urls` have no slash at their end."""

    def __init__(self, folder: Path, environment: dict[str, str], *, database_url: str, redis_url: str) -> None:
        self.folder = folder
        self.environment = environment
        self.database_url = database_url
        self.redis_url = redis_url
        self.web: list[Process] = []
        self.urls: list[str] = []
        self.persisters: list[Process] = []
        self.valkey: Process | None = None
        self.postgres: Process | None = None
        self.guarded: Guarded | None = None
        """its Redis, when that is a primary with replicas and sentinels; `redis_url` is then only where the first
        primary was"""
        self._redis: redis.Redis | None = None

    @property
    def url(self) -> str:
        return self.urls[0]

    @property
    def processes(self) -> list[Process]:
        """In the order in which they are ended."""
        servers_ = [process for process in (self.valkey, self.postgres) if process]
        guarded = self.guarded.processes if self.guarded else []
        return [*self.web, *self.persisters, *guarded, *servers_]

    # --- parts ----------------------------------------------------------------------------------

    def start_web(self, *, application: str = "", **more: str) -> Process:
        """One more web process; its address is the last of `urls`. Not waited for: see `wait_until_ready`.

        `application`: another ASGI application than the product's, as `module:name`."""
        port = free_port()
        make = commands.web_on_uvicorn if os.environ.get("OMNI2_TEST_SERVER") == "uvicorn" else commands.web
        words = commands.with_python(make("127.0.0.1", port))
        if application:
            words[-1] = application
        process = self._start(f"web-{len(self.web) + 1}", words, more)
        self.web.append(process)
        self.urls.append(f"http://127.0.0.1:{port}")
        return process

    def start_persister(self, **more: str) -> Process:
        name = f"persister-{len(self.persisters) + 1}"
        process = self._start(name, commands.with_python(commands.PERSISTER), more)
        self.persisters.append(process)
        return process

    def _start(self, name: str, words: list[str], more: Mapping[str, str]) -> Process:
        return Process(name, words, {**self.environment, **more}, self.folder / f"{name}.log")

    def wait_until_ready(self, *, limit_s: float = START_LIMIT_S) -> None:
        """Returns when every web process that lives answers; fails with their output."""
        for process, url in zip(self.web, self.urls, strict=True):
            deadline = time.monotonic() + limit_s
            while get(url + "/healthz")[0] != 200:
                assert process.alive, f"{process.name} ended:\n{process.output}"
                assert time.monotonic() < deadline, f"{process.name} does not answer:\n{process.output}"
                time.sleep(0.05)
        for process in self.persisters:
            assert process.alive, f"{process.name} ended:\n{process.output}"

    # --- its data -------------------------------------------------------------------------------

    def manage(self, *words: str) -> str:
        """What `manage.py …` prints, run as a process of its own (about two seconds)."""
        done = subprocess.run(
            [sys.executable, "manage.py", *words],
            cwd=BASE_DIR,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"manage.py {' '.join(words)}: {done.stderr or done.stdout}"
        return done.stdout

    @contextmanager
    def database(self) -> Iterator[None]:
        """Inside, this thread's ORM works in the product's database. Not on an event loop: see `orm`."""
        from django.db import DEFAULT_DB_ALIAS, connections

        before = connections[DEFAULT_DB_ALIAS]
        own = _connection(self.database_url)
        connections[DEFAULT_DB_ALIAS] = own
        try:
            yield
        finally:
            own.close()
            connections[DEFAULT_DB_ALIAS] = before

    def orm(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`work(…)` with the ORM in the product's database, in a thread of its own: from async tests too."""

        def inside() -> Any:
            with self.database():
                return work(*args, **kwargs)

        with ThreadPoolExecutor(1) as executor:
            return executor.submit(inside).result()

    def create_user(self, email: str, name: str = "", *groups: str, **fields: Any) -> Any:
        """A user who signs in with tests.people.PASSWORD; `is_superuser=True, is_staff=True` for an Ada."""
        return self.orm(make_person, email, name or email.partition("@")[0].title(), *groups, **fields)

    def create_token(self, email: str, **more: Any) -> str:
        """The text of a new token; the user is made when there is none."""

        def issue() -> str:
            from omni2.accounts.models import ApiToken, User

            user = User.objects.filter(email=email).first() or make_person(email, email.partition("@")[0].title())
            return ApiToken.objects.issue(user, **more)[1]

        return self.orm(issue)

    def sign_in(self, email: str) -> dict[str, str]:
        """The cookie of a browser session of this user."""

        def session() -> dict[str, str]:
            from django.conf import settings
            from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
            from django.contrib.sessions.backends.db import SessionStore

            from omni2.accounts.models import User

            user = User.objects.get(email=email)
            store = SessionStore()
            store[SESSION_KEY] = str(user.pk)
            store[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]
            store[HASH_SESSION_KEY] = user.get_session_auth_hash()
            store.create()
            return {settings.SESSION_COOKIE_NAME: store.session_key}

        return self.orm(session)

    def sql(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """The rows of a query in the product's database."""
        with psycopg.connect(self.database_url, autocommit=True, options="-c search_path=omni2") as connection:
            cursor = connection.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []

    @property
    def redis(self) -> redis.Redis:
        """A synchronous client of the product's Redis."""
        if self._redis is None:
            self._redis = self.guarded.client() if self.guarded else redis.Redis.from_url(self.redis_url)
        return self._redis


# --- start and end --------------------------------------------------------------------------------


@contextmanager
def running(
    *,
    llm_base_url: str = "",
    web: int = 1,
    persisters: int = 1,
    own_postgres: bool = False,
    valkey: Mapping[str, str] | None = None,
    sentinels: bool = False,
    **environment: str,
) -> Iterator[Running]:
    """A started product. `environment` adds to its variables (`OMNI2_CAPTURE="full"`).

    `llm_base_url` is that of a scripted model server; without one, chats answer llm_unavailable.
    `own_postgres=True` gives it a PostgreSQL of its own, which a test may kill (two seconds more).
    Redis is always its own: Pub/Sub knows no databases. `REDIS_ENABLED="false"` starts none, `valkey` adds to
    its settings (`{"appendfsync": "always"}`). `sentinels=True` makes it a primary with two replicas and three
    sentinels (eight seconds more).
    """
    folder = Path(tempfile.mkdtemp(prefix="e2e-", dir=os.environ["OMNI2_TEST_FOLDER"]))
    (folder / "data" / "static").mkdir(parents=True)
    omni2 = _prepare(
        folder, own_postgres=own_postgres, valkey=valkey or {}, sentinels=sentinels, environment=environment
    )
    if llm_base_url:
        omni2.environment |= {"LLM_BASE_URL": llm_base_url, "LLM_API_KEY": "scripted"}
        omni2.environment.setdefault("LLM_MODEL", "scripted")
        # a failure is shown once; those who test retries say so
        omni2.environment.setdefault("LLM_ATTEMPTS", "1")
    try:
        for _ in range(web):
            omni2.start_web()
        for _ in range(persisters):
            omni2.start_persister()
        omni2.wait_until_ready()
        yield omni2
    finally:
        for process in [*omni2.web, *omni2.persisters]:
            process.ask_to_end()
        for process in omni2.processes:
            process.end()
        if omni2._redis is not None:
            omni2._redis.close()
        if not own_postgres:
            _drop_database(omni2.database_url)
        shutil.rmtree(folder, ignore_errors=True)


def _prepare(
    folder: Path,
    *,
    own_postgres: bool,
    valkey: Mapping[str, str],
    sentinels: bool,
    environment: Mapping[str, str],
) -> Running:
    values = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "OMNI2_LOCAL_"))},
        "OMNI2_DATA_DIR": str(folder / "data"),
        "ALLOWED_HOSTS": "localhost,127.0.0.1",
        "PYTHONUNBUFFERED": "1",
        # unless a test says otherwise there is no model at all, least of all a real one
        "LLM_MODEL": "scripted",
        **environment,
    }
    omni2 = Running(folder, values, database_url="", redis_url="")
    if own_postgres:
        omni2.postgres = _postgres(folder)
        omni2.database_url = embedded.postgres_url(folder / "s")
        _migrate(omni2.database_url, values)
    else:
        omni2.database_url = _new_database(values)
    values["DATABASE_URL"] = omni2.database_url
    if sentinels:
        from tests.sentinels import Guarded

        omni2.guarded = Guarded(folder, settings=valkey)
        omni2.redis_url = omni2.guarded.first_url
        del values["REDIS_URL"]
        values |= omni2.guarded.environment
    elif values.get("REDIS_ENABLED", "true") == "true":
        omni2.valkey = _valkey(folder, valkey)
        values["REDIS_URL"] = omni2.redis_url = embedded.valkey_url(folder / "s" / "v")
    return omni2


@contextmanager
def own_valkey() -> Iterator[tuple[Process, Path]]:
    """A Valkey that a test may kill and start again, and the folder of its files; its address is
    `embedded.valkey_url(folder / "s" / "v")`."""
    folder = Path(tempfile.mkdtemp(prefix="vk-", dir=os.environ["OMNI2_TEST_FOLDER"]))
    process = _valkey(folder, {})
    try:
        yield process, folder
    finally:
        if process.alive:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _valkey(folder: Path, settings: Mapping[str, str]) -> Process:
    socket_, data = folder / "s" / "v", folder / "vk"
    for each in (socket_.parent, data):
        each.mkdir(exist_ok=True, mode=0o700)
    words = embedded.valkey_words(data, socket_, settings=settings)
    # a test may limit the size of its files, and a write beyond it shall fail, not kill it
    process = Process("valkey", words, os.environ, folder / "valkey.log", restore_signals=False)
    eventually(lambda: embedded.valkey_answers(socket_), "Valkey answers")
    return process


def _postgres(folder: Path) -> Process:
    sockets, data = folder / "s", folder / "pg"
    sockets.mkdir(exist_ok=True, mode=0o700)
    embedded.make_cluster(data, sync=False)
    _small_segments(data)
    words = embedded.postgres_words(data, sockets, settings={"fsync": "off"})
    process = Process("postgres", words, os.environ, folder / "postgres.log", number=signal.SIGINT)
    eventually(lambda: embedded.postgres_answers(sockets), "PostgreSQL answers")
    return process


def _small_segments(data: Path) -> None:
    """Write-ahead log in files of 1 MB: so a test may limit the size of files, and only tables meet the limit."""
    words = [str(embedded.postgres_bin() / "pg_resetwal"), "--wal-segsize=1", "-D", str(data)]
    subprocess.run([*embedded.as_unprivileged(), *words], stdout=subprocess.DEVNULL, check=True)


def _with_name(url: str, name: str) -> str:
    return psycopg.conninfo.make_conninfo(url, dbname=name)


def _in_server(statement: str, *names: str) -> None:
    identifiers = [psycopg_sql.Identifier(name) for name in names]
    with psycopg.connect(_with_name(os.environ["DATABASE_URL"], "postgres"), autocommit=True) as connection:
        connection.execute(psycopg_sql.SQL(statement).format(*identifiers))


def _migrate(url: str, environment: Mapping[str, str]) -> None:
    subprocess.run(
        commands.with_python(commands.MIGRATE),
        cwd=BASE_DIR,
        env={**environment, "DATABASE_URL": url},
        stdout=subprocess.DEVNULL,
        check=True,
    )


def _new_database(environment: Mapping[str, str]) -> str:
    """A migrated database: the first time in a test run by migrating, then as a copy of that."""
    global _template_made
    base = os.environ["DATABASE_URL"]
    if not _template_made:
        _in_server("DROP DATABASE IF EXISTS {} WITH (FORCE)", TEMPLATE)
        _in_server("CREATE DATABASE {}", TEMPLATE)
        _migrate(_with_name(base, TEMPLATE), environment)
        _template_made = True
    name = f"e2e_{uuid.uuid4().hex[:12]}"
    _in_server("CREATE DATABASE {} TEMPLATE {}", name, TEMPLATE)
    return _with_name(base, name)


def _drop_database(url: str) -> None:
    _in_server("DROP DATABASE IF EXISTS {} WITH (FORCE)", psycopg.conninfo.conninfo_to_dict(url)["dbname"])


def _connection(url: str) -> Any:
    """A Django connection of its own, without a pool, that pytest-django's guard does not block."""
    from django.db import DEFAULT_DB_ALIAS, connections
    from django.db.backends.postgresql.base import DatabaseWrapper

    from omni2.settings import database_from_url

    class Own(DatabaseWrapper):
        def ensure_connection(self) -> None:
            if self.connection is None:
                with self.wrap_database_errors:
                    self.connect()

    values = {**connections[DEFAULT_DB_ALIAS].settings_dict, **database_from_url(url)}
    values["OPTIONS"] = {name: value for name, value in values["OPTIONS"].items() if name != "pool"}
    return Own(values, DEFAULT_DB_ALIAS)


@pytest.fixture
def start_omni2() -> Iterator[Callable[..., Running]]:
    """`start_omni2(web=2, llm_base_url=…)`: as `running`, ended with the test."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(running(**options))
