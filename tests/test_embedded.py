"""The embedded servers: private, and able to start after any crash."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from omni2 import embedded
from omni2.supervisor.folder import DataFolder, FolderProblem, make_sockets, remove_sockets
from omni2.supervisor.keeper import Keeper
from omni2.supervisor.processes import Known, known, started
from tests import servers

QUICK = {"fsync": "off"}


@pytest.fixture
def sockets():
    folder = make_sockets()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def sleeper() -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    servers.keep(process, "sleeper")
    return process


def start(data: Path, sockets: Path) -> subprocess.Popen:
    process = embedded.start_postgres(data, sockets, settings=QUICK)
    servers.keep(process, "PostgreSQL", signal.SIGQUIT)
    return process


# --- PostgreSQL -----------------------------------------------------------------------------------


def test_it_starts_in_a_path_with_a_space_and_after_a_crash(tmp_path: Path, sockets: Path) -> None:
    data = tmp_path / "a b" / "postgres"
    data.parent.mkdir()
    process = start(data, sockets)
    with psycopg.connect(embedded.postgres_url(sockets), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept (n int)")
        assert connection.execute("SELECT lower('É'), 'straße' ILIKE 'STRASSE'").fetchone() == ("é", False)
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
    process.kill()
    process.wait()

    # in a container the number in the lock file of the dead server may be anybody's by now: ours, here
    lines = (data / "postmaster.pid").read_text().split("\n", 1)
    (data / "postmaster.pid").write_text(f"{os.getpid()}\n{lines[1]}")
    process = start(data, sockets)
    with psycopg.connect(embedded.postgres_url(sockets)) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)
    embedded.stop(process, number=signal.SIGINT)
    assert process.returncode == 0


def test_it_ends_a_server_of_its_own_that_was_left_behind(tmp_path: Path, sockets: Path) -> None:
    first = start(tmp_path / "pg", sockets)
    embedded.end_stale_postgres(tmp_path / "pg")
    assert first.wait(10) is not None


def test_other_servers_variables_lead_nowhere(tmp_path: Path, sockets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGPORT": "1", "PGHOST": "/nowhere", "PGDATABASE": "x", "PGUSER": "y"}.items():
        monkeypatch.setenv(name, value)
    process = start(tmp_path / "pg", sockets)
    assert embedded.postgres_answers(sockets)
    embedded.stop(process, number=signal.SIGQUIT)


def test_it_stops_at_a_folder_of_another_major_version(tmp_path: Path, sockets: Path) -> None:
    data = tmp_path / "pg"
    data.mkdir()
    (data / "PG_VERSION").write_text("12\n")
    with pytest.raises(embedded.EmbeddedProblem, match=r"PostgreSQL 12.*docs/operations.md"):
        embedded.start_postgres(data, sockets)
    assert [file.name for file in data.iterdir()] == ["PG_VERSION"]


def test_a_folder_half_made_is_made_anew(tmp_path: Path) -> None:
    data = tmp_path / "pg"
    unfinished = tmp_path / "pg.unfinished"
    unfinished.mkdir()
    (unfinished / "PG_VERSION").write_text("18\n")
    embedded.make_cluster(data, sync=False)
    assert (data / "global" / "pg_control").exists()
    assert not unfinished.exists()


def test_it_leaves_a_folder_alone_that_is_not_its_own(tmp_path: Path) -> None:
    data = tmp_path / "pg"
    data.mkdir()
    (data / "letter.txt").write_text("to my aunt")
    with pytest.raises(embedded.EmbeddedProblem, match="neither empty nor"):
        embedded.make_cluster(data, sync=False)
    assert (data / "letter.txt").read_text() == "to my aunt"


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(embedded.EmbeddedProblem, match="longer than"):
        embedded.postgres_words(tmp_path, tmp_path / ("x" * 100))


def test_valkey_keeps_what_it_acknowledged(tmp_path: Path, sockets: Path) -> None:
    import redis

    socket = sockets / "v"
    for expected in (1, 2):
        process = embedded.start_valkey(tmp_path / "valkey", socket)
        servers.keep(process, "Valkey", signal.SIGKILL)
        with redis.Redis(unix_socket_path=str(socket)) as client:
            assert client.incr("n") == expected
            assert client.config_get("port") == {"port": "0"}
        process.kill()
        process.wait()


# --- processes and their end ------------------------------------------------------------------------


def test_a_process_of_the_same_number_is_not_taken_for_the_one_that_was() -> None:
    process = sleeper()
    earlier = Known("earlier", process.pid, "boot 1")
    assert not earlier.alive
    earlier.end()
    assert process.poll() is None
    now = known("now", process.pid)
    assert now is not None
    now.end()
    assert process.wait(5) == -signal.SIGTERM
    assert started(process.pid) is None


def test_the_keeper_ends_what_a_killed_starter_leaves(tmp_path: Path) -> None:
    folder = tmp_path / "sockets"
    folder.mkdir()
    script = f"""
import os, signal, subprocess, sys
from pathlib import Path
from omni2.supervisor.keeper import Keeper
from omni2.supervisor.processes import known
keeper = Keeper(); keeper.start(); keeper.remove(Path({str(folder)!r}))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
keeper.add(known("child", child.pid))
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid = int(done.stdout)
    deadline = time.monotonic() + 20
    while (started(pid) or folder.exists()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert started(pid) is None
    assert not folder.exists()


def test_the_keeper_leaves_alone_what_ended_by_itself() -> None:
    process = sleeper()
    keeper = Keeper()
    keeper.start()
    found = known("sleeper", process.pid)
    assert found is not None
    keeper.add(found)
    keeper.drop(process.pid)
    keeper.end()
    assert process.poll() is None
    process.kill()
    process.wait()


# --- the data folder ----------------------------------------------------------------------------------


def test_the_data_folder_is_for_one_run_and_one_person(tmp_path: Path) -> None:
    first, second = DataFolder(tmp_path / "data"), DataFolder(tmp_path / "data")
    first.take()
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o700
    with pytest.raises(FolderProblem, match=rf"already runs.*process {os.getpid()}"):
        second.take()
    first.give_back()
    second.take()
    second.give_back()


def test_kept_secrets_are_made_once_and_readable_by_their_owner_alone(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.take()
    password, new = folder.admin_password()
    assert new
    assert folder.admin_password() == (password, False)
    assert folder.secret_key() == folder.secret_key() != password
    for name in ("admin-password", "secret-key"):
        assert stat.S_IMODE((folder.path / name).stat().st_mode) == 0o600
    folder.give_back()


def test_only_a_socket_folder_of_its_own_is_removed(tmp_path: Path) -> None:
    stranger = tmp_path / "photos"
    stranger.mkdir(mode=0o700)
    remove_sockets(stranger)
    assert stranger.exists()
    own = make_sockets()
    remove_sockets(own)
    assert not own.exists()
