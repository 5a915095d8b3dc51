"""Real PostgreSQL and Valkey for every test run, on private sockets in a folder of their own.

A pytest plugin (`-p tests.servers`) and not a conftest.py: pytest-django reads the settings before those.
"""

import atexit
import os
import shutil
import signal
import tempfile
from pathlib import Path

if "OMNI2_TEST_FOLDER" not in os.environ:
    folder = Path(tempfile.mkdtemp(prefix="o2t-"))
    folder.chmod(0o755)
    os.environ["OMNI2_TEST_FOLDER"] = str(folder)
    os.environ.setdefault("SECRET_KEY", "only-for-tests-" + os.urandom(16).hex())
    os.environ["OMNI2_DATA_DIR"] = str(folder / "data")
    os.environ.setdefault("ALLOWED_HOSTS", "localhost,127.0.0.1,testserver")

    from omni2 import embedded

    _processes = []
    if not os.environ.get("DATABASE_URL"):
        # fsync off: what is tested is our logic and PostgreSQL's, not this machine's disk
        _processes.append(
            embedded.start_postgres(folder / "pg", folder / "s", settings={"fsync": "off", "full_page_writes": "off"})
        )
        os.environ["DATABASE_URL"] = f"postgresql://omni2@/omni2?host={folder / 's'}"
    if not os.environ.get("REDIS_URL"):
        _processes.append(embedded.start_valkey(folder / "vk", folder / "s" / "v.sock"))
        os.environ["REDIS_URL"] = f"unix://{folder / 's' / 'v.sock'}"
    _owner = os.getpid()

    @atexit.register
    def _stop() -> None:
        if os.getpid() != _owner:
            return
        for process in _processes:
            process.send_signal(signal.SIGINT if process is _processes[0] else signal.SIGTERM)
        for process in _processes:
            try:
                process.wait(10)
            except Exception:
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)
