"""Real PostgreSQL and Valkey for every test run, on private sockets in a folder of their own.

A pytest plugin (`-p tests.servers`) and not a conftest.py: pytest-django reads the settings before those.
Each process that runs tests has its own. They end with the run, also when it is killed: a keeper sees to
that, and to all that `keep` is given.
"""

import atexit
import os
import signal
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from omni2 import embedded
from omni2.supervisor.keeper import Keeper
from omni2.supervisor.processes import known
from tests import parallel

_owner = os.getpid()
_keeper = Keeper()
_keeper.start()


def keep(process: subprocess.Popen, name: str, number: int = signal.SIGTERM, *, rank: int = 0) -> None:
    """This process ends with the test run, however that ends."""
    found = known(name, process.pid, signal=number, patience_s=5, rank=rank)
    if found:
        _keeper.add(found)


@atexit.register
def _stop() -> None:
    if os.getpid() == _owner:
        _keeper.end()


def prepare() -> Path:
    """A folder for this process's servers and data, and the environment of everything it starts."""
    folder = Path(tempfile.mkdtemp(prefix="o2t-"))
    _keeper.remove(folder)
    os.environ["OMNI2_TEST_FOLDER"] = str(folder)
    os.environ["OMNI2_DATA_DIR"] = str(folder / "data")
    # as the supervisor makes it; without it WhiteNoise warns in every process
    (folder / "data" / "static").mkdir(parents=True)
    os.environ.setdefault("SECRET_KEY", "only-for-tests-" + os.urandom(16).hex())
    os.environ.setdefault("ALLOWED_HOSTS", "localhost,127.0.0.1,testserver")
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]
    return folder


def start(folder: Path) -> None:
    """Start what is not given by DATABASE_URL and REDIS_URL; a second and 50 MB."""
    if not os.environ.get("DATABASE_URL"):
        # fsync off: what is tested is our logic and PostgreSQL's, not this machine's disk
        keep(
            embedded.start_postgres(folder / "pg", folder / "s", settings={"fsync": "off", "full_page_writes": "off"}),
            "PostgreSQL",
            signal.SIGQUIT,
        )
        os.environ["DATABASE_URL"] = embedded.postgres_url(folder / "s")
    if not os.environ.get("REDIS_URL"):
        keep(embedded.start_valkey(folder / "vk", folder / "s" / "v.sock"), "Valkey", signal.SIGKILL)
        os.environ["REDIS_URL"] = embedded.valkey_url(folder / "s" / "v.sock")


# a wrapper runs before everybody else's hook: pytest-django reads the settings in its own
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None]:
    folder = prepare()
    # whoever gives the tests to workers runs none himself; each of them starts its own
    if parallel.is_worker() or parallel.workers(early_config.known_args_namespace) == 0:
        start(folder)
    return (yield)
