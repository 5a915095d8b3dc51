"""The data folder: one run at a time, the kept keys, and what runs now.

    lock            held while a supervisor runs
    run.json        the addresses of the embedded servers and the processes of this run
    secret-key      SECRET_KEY, made once            admin-password   the first password of the admin
    postgres/ valkey/ logs/

Everything is for its owner alone (0700 and 0600).
"""

import fcntl
import json
import os
import secrets
import shutil
import stat
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from omni2.embedded import LONGEST_SOCKET_PATH
from omni2.supervisor.processes import Known

RUN_FILE = "run.json"
SECRET_KEY_FILE = "secret-key"  # noqa: S105 (a file name)
PASSWORD_FILE = "admin-password"  # noqa: S105
LARGEST_LOG_BYTES = 5_000_000
SOCKET_NAME = ".s.PGSQL.5432"


class FolderProblem(RuntimeError):
    """The data folder cannot be used; the message is for the person at the terminal."""


class DataFolder:
    """The folder of OMNI2_DATA_DIR, held by this process from `take()` on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    def take(self) -> None:
        """Make the folder and hold it; raises FolderProblem when another run holds it."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.path.stat().st_uid != os.geteuid():
            raise FolderProblem(f"{self.path} belongs to another user: start Omni2 as that user, or set OMNI2_DATA_DIR")
        self.path.chmod(0o700)
        for name in ("logs", "static"):
            (self.path / name).mkdir(exist_ok=True, mode=0o700)
        # kept open, and not passed on to the parts: it is free again however this process ends
        lock = (self.path / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise FolderProblem(
                f"Omni2 already runs on {self.path} (process {holder}). "
                "Stop it first, or set OMNI2_DATA_DIR and OMNI2_PORT for a second one."
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock

    def give_back(self) -> None:
        """Let the next run have it."""
        if self._lock is not None:
            self._lock.truncate(0)
            self._lock.close()
            self._lock = None

    # --- kept values --------------------------------------------------------------------------

    def kept(self, name: str, make: Any) -> tuple[str, bool]:
        """The text in this file, made by `make()` the first time: (text, whether it is new)."""
        file = self.path / name
        try:
            text = file.read_text().strip()
        except FileNotFoundError:
            text = ""
        if text:
            return text, False
        text = make()
        self._write(file, text + "\n")
        return text, True

    def secret_key(self) -> str:
        return self.kept(SECRET_KEY_FILE, lambda: secrets.token_urlsafe(50))[0]

    def admin_password(self) -> tuple[str, bool]:
        return self.kept(PASSWORD_FILE, lambda: secrets.token_urlsafe(12))

    @property
    def password_file(self) -> Path:
        return self.path / PASSWORD_FILE

    def log(self, name: str) -> Path:
        """The log file of a part; a grown one is moved to `….old` first."""
        file = self.path / "logs" / f"{name}.log"
        if file.exists() and file.stat().st_size > LARGEST_LOG_BYTES:
            file.replace(file.with_suffix(".log.old"))
        return file

    # --- what runs ----------------------------------------------------------------------------

    def write_run(self, *, sockets: Path | None, addresses: dict[str, str], processes: list[Known]) -> None:
        """Note what runs, for the next start and for `manage.py` in another terminal."""
        run = {
            "sockets": str(sockets) if sockets else "",
            **addresses,
            "processes": [asdict(process) for process in processes],
        }
        self._write(self.path / RUN_FILE, json.dumps(run, indent=1) + "\n")

    def forget_run(self) -> None:
        (self.path / RUN_FILE).unlink(missing_ok=True)

    def end_last_run(self) -> list[str]:
        """End what a killed run left: its processes, then its socket folder. Returns their names."""
        try:
            run = json.loads((self.path / RUN_FILE).read_text())
            left = [Known(**process) for process in run["processes"]]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError):
            self.forget_run()
            return []
        alive = sorted((process for process in left if process.alive), key=lambda process: -process.rank)
        for process in alive:
            process.end()
        if run.get("sockets"):
            remove_sockets(Path(run["sockets"]))
        self.forget_run()
        return [process.name for process in alive]

    def _write(self, file: Path, text: str) -> None:
        # to a new file and into place: a reader sees the old or the new, and never with wider rights
        descriptor, name = tempfile.mkstemp(dir=self.path, prefix=".new-")
        with os.fdopen(descriptor, "w") as output:
            output.write(text)
        Path(name).replace(file)


# --- the socket folder ------------------------------------------------------------------------

SOCKETS_PREFIX = "omni2-"


def make_sockets() -> Path:
    """A new private folder with a short path: the path of a socket may hold about a hundred bytes."""
    for base in (tempfile.gettempdir(), "/tmp", os.environ.get("XDG_RUNTIME_DIR", "")):  # noqa: S108 (mkdtemp)
        longest = os.fsencode(Path(base) / f"{SOCKETS_PREFIX}xxxxxxxx" / SOCKET_NAME)
        if base and len(longest) <= LONGEST_SOCKET_PATH and os.access(base, os.W_OK):
            return Path(tempfile.mkdtemp(prefix=SOCKETS_PREFIX, dir=base))
    raise FolderProblem("No temporary folder with a short path can be written to (tried TMPDIR, /tmp, XDG_RUNTIME_DIR)")


def remove_sockets(folder: Path) -> None:
    """Remove a socket folder of an earlier run, if it is what it should be: ours, private, and so named."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return
    private = stat.S_ISDIR(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o700
    if private and status.st_uid == os.geteuid() and folder.name.startswith(SOCKETS_PREFIX):
        shutil.rmtree(folder, ignore_errors=True)
