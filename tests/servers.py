"""Real PostgreSQL and Valkey for every test run, on private sockets in a folder of their own.

A pytest plugin (`-p tests.servers`) and not a conftest.py: pytest-django reads the settings before those.
They end with the run, also when it is killed: a keeper sees to that.
"""

import atexit
import os
import signal
import tempfile
from pathlib import Path

if "OMNI2_TEST_FOLDER" not in os.environ:
    from omni2 import embedded
    from omni2.supervisor.keeper import Keeper

    folder = Path(tempfile.mkdtemp(prefix="o2t-"))
    os.environ["OMNI2_TEST_FOLDER"] = str(folder)
    os.environ["OMNI2_DATA_DIR"] = str(folder / "data")
    os.environ.setdefault("SECRET_KEY", "only-for-tests-" + os.urandom(16).hex())
    os.environ.setdefault("ALLOWED_HOSTS", "localhost,127.0.0.1,testserver")
    for _name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[_name]

    _keeper = Keeper()
    _keeper.start()
    _keeper.remove(folder)

    def _keep(process, name: str, number: int) -> None:
        known = embedded.as_known(process, name, number=number)
        if known:
            _keeper.add(known)

    if not os.environ.get("DATABASE_URL"):
        # fsync off: what is tested is our logic and PostgreSQL's, not this machine's disk
        _postgres = embedded.start_postgres(
            folder / "pg", folder / "s", settings={"fsync": "off", "full_page_writes": "off"}
        )
        _keep(_postgres, "PostgreSQL", signal.SIGQUIT)
        os.environ["DATABASE_URL"] = embedded.postgres_url(folder / "s")
    if not os.environ.get("REDIS_URL"):
        _valkey = embedded.start_valkey(folder / "vk", folder / "s" / "v.sock")
        _keep(_valkey, "Valkey", signal.SIGKILL)
        os.environ["REDIS_URL"] = embedded.valkey_url(folder / "s" / "v.sock")
    _owner = os.getpid()

    @atexit.register
    def _stop() -> None:
        if os.getpid() == _owner:
            _keeper.end()
