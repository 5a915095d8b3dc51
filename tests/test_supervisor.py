"""`manage.py up`, really started: in a folder with a space in its name, below a private one."""

import contextlib
import http.cookiejar
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from omni2 import localmodel
from omni2.env import BASE_DIR
from omni2.supervisor.processes import started
from tests import servers
from tests.running import eventually, free_port, get

pytestmark = pytest.mark.slow

START_LIMIT_S = 120
PARTS = {"PostgreSQL", "Valkey", "persister", "web", "keeper"}
AS_NOBODY = [
    *("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--securebits=+no_setuid_fixup"),
    # this checkout and its Python may lie below root's home: nobody may read there, and write nothing
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
]


class Up:
    """One `manage.py up`, its output in a file: no terminal."""

    def __init__(self, home: Path, *before: str, **environment: str) -> None:
        self.home, self.before = home, before
        self.data = home / "data"
        self.port = free_port()
        self.environment = {
            **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
            "HOME": str(home),
            "OMNI2_DATA_DIR": str(self.data),
            "OMNI2_PORT": str(self.port),
            # what another PostgreSQL on the machine may have left in the environment
            "PGPORT": "1",
            "PGHOST": "/nowhere",
            **environment,
        }
        self.log = home / "up.log"

    def start(self, *, wait: bool = True) -> "Up":
        """Start it; with `wait`, return when it has said that it is ready."""
        self.log.write_text("")
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [*self.before, sys.executable, "manage.py", "up"],
                cwd=BASE_DIR,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        servers.keep(self.process, "up", rank=2)
        if wait:
            eventually(lambda: self.is_ready or self.process.poll() is not None, "it starts", limit_s=START_LIMIT_S)
            assert self.is_ready, self.output
        return self

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def is_ready(self) -> bool:
        return "stop with" in self.output

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def run(self) -> dict[str, Any]:
        return json.loads((self.data / "run.json").read_text())

    def processes(self) -> dict[str, tuple[int, str]]:
        """name → (number, start)"""
        return {each["name"]: (each["pid"], each["started"]) for each in self.run["processes"]}

    def manage(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "manage.py", *words],
            cwd=BASE_DIR,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)


@pytest.fixture
def home() -> Iterator[Path]:
    private = Path(tempfile.mkdtemp(prefix="o2-private-"))
    home = private / "a home"
    home.mkdir()
    yield home
    assert stat.S_IMODE(private.stat().st_mode) == 0o700, "the permissions of a folder above were changed"
    shutil.rmtree(private)


@contextlib.contextmanager
def ended(up: Up) -> Iterator[Up]:
    try:
        yield up
    finally:
        up.end()


def gone(processes: dict[str, tuple[int, str]]) -> bool:
    return not any(started(pid) == moment for pid, moment in processes.values())


def sign_in(up: Up, email: str, password: str) -> str:
    """The address one is on after signing in."""
    jar = http.cookiejar.CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    page = browser.open(up.url + "/login/").read().decode()
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page).group(1)
    form = {"csrfmiddlewaretoken": token, "username": email, "password": password}
    return browser.open(up.url + "/login/", urllib.parse.urlencode(form).encode()).geturl()


def documented(heading: str) -> str:
    """The shell commands below a heading of docs/operations.md."""
    section = (BASE_DIR / "docs" / "operations.md").read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.search(r"```bash\n(.*?)```", section, re.DOTALL).group(1)


def in_shell(script: str, up: Up, folder: Path) -> None:
    """Run documented commands in a folder that has the checkout's `.venv` and modules."""
    python = folder / ".venv" / "bin" / "python"
    if not python.exists():
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o700)
    environment = {**up.environment, "PYTHONPATH": str(BASE_DIR)}
    done = subprocess.run(
        ["bash", "-euc", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_it_runs_the_whole_product_and_stops_it_in_order(home: Path) -> None:
    with ended(Up(home).start()) as up:
        # a page one can sign in to, with the password from the file and from nowhere else
        assert get(up.url + "/login/")[0] == 200
        password = (up.data / "admin-password").read_text().strip()
        assert stat.S_IMODE((up.data / "admin-password").stat().st_mode) == 0o600
        assert stat.S_IMODE(up.data.stat().st_mode) == 0o700
        assert str(up.data / "admin-password") in up.output
        assert password not in up.output, "only a person at a terminal is shown the password"
        assert "/login/" not in sign_in(up, "admin@example.com", password)
        eventually(lambda: get(up.url + "/readyz")[0] == 200, "all parts are ready")

        check_that_a_second_one_is_refused(up)
        check_that_killed_parts_come_back(up)
        check_that_the_local_model_answers(up)
        check_that_a_backup_can_be_restored(up)

        before, sockets = up.processes(), Path(up.run["sockets"])
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(30) == 0
        assert gone(before)
        assert not sockets.exists()
        assert not (up.data / "run.json").exists()
        stopped = re.findall(r"omni2: (.+) has stopped", up.output)
        assert [name for name in stopped if name in PARTS] == ["web", "persister", "Valkey", "PostgreSQL"]


def check_that_a_second_one_is_refused(up: Up) -> None:
    for home, words in ((up.home, "already runs on"), (up.home / "other", "cannot be used")):
        home.mkdir(exist_ok=True)
        second = Up(home)
        second.log = up.home / "second.log"
        second.environment["OMNI2_PORT"] = str(up.port)
        second.start(wait=False)
        assert second.process.wait(60) == 1
        assert words in second.output
        assert "Traceback" not in second.output
    assert get(up.url + "/healthz")[0] == 200, "the first one goes on"


def check_that_killed_parts_come_back(up: Up) -> None:
    before = up.processes()
    assert before.keys() >= PARTS
    for name in ("web", "persister", "Valkey", "PostgreSQL"):
        os.kill(before[name][0], signal.SIGKILL)
    eventually(
        lambda: all(up.processes().get(name, before[name]) != before[name] for name in PARTS - {"keeper"}),
        "each has a new process",
        limit_s=60,
    )
    for name in ("web", "persister", "Valkey", "PostgreSQL"):
        assert f"{name} ended (signal 9); starting it again" in up.output
    eventually(lambda: get(up.url + "/readyz")[0] == 200, "all parts are ready again", limit_s=60)


def check_that_the_local_model_answers(up: Up) -> None:
    if localmodel.missing():
        assert "no local model" in up.output
        return
    up.manage("create_user", "test@example.com")
    token = up.manage("create_token", "test@example.com").splitlines()[-1]
    eventually(lambda: "local model is ready" in up.output, "the local model is loaded", limit_s=60)
    question = urllib.request.Request(
        up.url + "/api/v1/ask/stream",
        data=json.dumps({"message": "Say hello."}).encode(),
        headers={"Authorization": f"Bearer {token}"},
    )
    with urllib.request.urlopen(question, timeout=120) as answer:
        text = answer.read().decode()
    assert text.count("event: token") > 1, text
    done = json.loads(text.rpartition("event: done\ndata: ")[2])
    assert done["model"] == "local"
    assert done["usage"]["output_tokens"] > 0


def check_that_a_backup_can_be_restored(up: Up) -> None:
    folder = up.home / "back up"
    folder.mkdir()
    up.manage("create_user", "kept@example.com")
    in_shell(documented("Back up"), up, folder)
    address = up.run["DATABASE_URL"]
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("UPDATE omni2.users SET name = 'changed since' WHERE email = 'kept@example.com'")
    in_shell(documented("Restore"), up, folder)
    with psycopg.connect(address) as connection:
        names = connection.execute("SELECT name FROM omni2.users WHERE email = 'kept@example.com'").fetchall()
    assert names == [("",)]


def test_nothing_is_left_of_a_killed_run_and_its_data_are_there_the_next_time(home: Path) -> None:
    up = Up(home, LLM_MODEL="scripted").start()
    with ended(up):
        up.manage("create_user", "kept@example.com")

        # the supervisor alone is killed: its keeper ends the rest
        before, sockets = up.processes(), Path(up.run["sockets"])
        up.process.kill()
        up.process.wait()
        eventually(lambda: gone(before), "the keeper ends all parts")
        eventually(lambda: not sockets.exists(), "the keeper removes the sockets")

        # supervisor and keeper are killed: the next start ends the rest
        up.start()
        before, sockets = up.processes(), Path(up.run["sockets"])
        for pid in (before["keeper"][0], up.process.pid):
            os.kill(pid, signal.SIGKILL)
        up.process.wait()
        assert started(before["PostgreSQL"][0]) == before["PostgreSQL"][1], "somebody else ended it"
        up.start()
        assert "ended what an earlier run had left: web, persister, Valkey, PostgreSQL" in up.output
        assert gone(before)
        assert not sockets.exists()
        assert "making the database folder" not in up.output
        with psycopg.connect(up.run["DATABASE_URL"]) as connection:
            assert connection.execute("SELECT count(*) FROM omni2.users").fetchone() == (2,)

        # asked to end while it still starts
        up.end()
        up.start(wait=False)
        eventually(lambda: "is ready" in up.output, "the first part is there")
        before = up.processes()
        up.process.send_signal(signal.SIGTERM)
        up.process.wait(30)
        assert gone(before)


def test_a_normal_user_runs_it_and_it_ends_with_its_parent(home: Path) -> None:
    before: list[str] = []
    if os.geteuid() == 0:
        before = AS_NOBODY
        shutil.chown(home.parent, "nobody")
        shutil.chown(home, "nobody")
    up = Up(home, *before, LLM_MODEL="scripted")
    up.before = (*before, "sh", "-c", '"$@" --stop-with-parent; true', "sh")
    with ended(up.start()):
        processes = up.processes()
        assert {os.stat(f"/proc/{pid}").st_uid for pid, _ in processes.values()} == {home.stat().st_uid}
        assert home.stat().st_uid != 0
        assert get(up.url + "/login/")[0] == 200
        listening = [name for name, (pid, _) in processes.items() if tcp_ports(pid)]
        assert listening == ["web"]
        up.process.kill()
        eventually(lambda: gone(processes), "it notices that its parent is gone")
        eventually(lambda: not (up.data / "run.json").exists(), "it ended in order")


def tcp_ports(pid: int) -> set[int]:
    """The TCP ports a process listens on."""
    inodes = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(file).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(int(fields[1].rpartition(":")[2], 16))
    return found


def test_it_uses_the_servers_it_is_given_and_does_without_redis(home: Path) -> None:
    name = "given_" + os.urandom(4).hex()
    url = psycopg.conninfo.make_conninfo(os.environ["DATABASE_URL"], dbname=name)
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    up = Up(home, DATABASE_URL=url, REDIS_ENABLED="false", LLM_MODEL="scripted", OMNI2_ADMIN_PASSWORD="as you like it")
    with ended(up.start()):
        assert up.processes().keys() <= {"web", "persister", "keeper"}
        assert up.run["sockets"] == ""
        assert not (up.data / "postgres").exists()
        assert not (up.data / "admin-password").exists()
        assert "as you like it" not in up.output
        assert "/login/" not in sign_in(up, "admin@example.com", "as you like it")
        assert get(up.url + "/readyz")[0] == 200
        assert "starting it again" not in up.output


def test_several_web_processes_share_the_port_and_several_persisters_the_log(home: Path) -> None:
    """Each may be ended and started again: nobody who comes meanwhile is turned away."""
    with ended(Up(home, LLM_MODEL="scripted", OMNI2_WEB_PROCESSES="3", OMNI2_PERSISTERS="2").start()) as up:
        before = up.processes()
        webs = ["web 1", "web 2", "web 3"]
        assert before.keys() >= {*webs, "persister 1", "persister 2"}
        for name in webs:
            assert up.port in tcp_ports(before[name][0])

        def served() -> set[str]:
            # each process tells of its heartbeat after its first request
            with psycopg.connect(up.run["DATABASE_URL"], autocommit=True) as connection:
                rows = connection.execute("SELECT process_id FROM omni2.serving_processes WHERE ended_at IS NULL")
                return {str(row[0]) for row in rows}

        def all_serve() -> bool:
            with ThreadPoolExecutor(12) as many:
                assert set(many.map(lambda _: get(up.url + "/login/")[0], range(24))) == {200}
            return len(served()) == 3

        eventually(all_serve, "each process takes connections")
        for name in webs:
            os.kill(before[name][0], signal.SIGTERM)
            while up.processes().get(name, before[name]) == before[name]:
                assert get(up.url + "/login/", timeout_s=30)[0] == 200
        eventually(lambda: get(up.url + "/readyz")[0] == 200, "all parts are ready")
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(30) == 0
        assert gone(before)


def test_it_says_plainly_why_it_cannot_start(home: Path) -> None:
    for environment, words in (
        ({"OMNI2_PORT": "no number"}, "OMNI2_PORT must be a whole number"),
        ({"REDIS_ENABLED": "perhaps"}, "REDIS_ENABLED must be true or false"),
        ({"OMNI2_WEB_PROCESSES": "0"}, "OMNI2_WEB_PROCESSES must be between 1 and 64"),
        ({"REDIS_SENTINELS": "one", "REDIS_HOST": "two"}, "REDIS_SENTINELS and REDIS_HOST name two ways to Redis"),
        ({"DATABASE_URL": "postgresql://somebody:secret-word@127.0.0.1:1/x"}, "PostgreSQL does not answer"),
    ):
        up = Up(home, LLM_MODEL="scripted", **environment)
        up.start(wait=False)
        assert up.process.wait(60) != 0
        assert words in up.output
        assert "Traceback" not in up.output, up.output
        assert "secret-word" not in up.output


def test_a_port_in_use_is_named_before_anything_starts(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        up = Up(home, OMNI2_PORT=str(taken.getsockname()[1]))
        up.start(wait=False)
        assert up.process.wait(60) == 1
    assert "set OMNI2_PORT to another" in up.output
    assert "is ready" not in up.output
