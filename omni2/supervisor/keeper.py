"""Ends what a killed supervisor leaves: a small process that waits for its death.

The supervisor holds the writing end of the keeper's standard input and tells it, a JSON line each,
what has been started. However the supervisor dies, that pipe closes; the keeper then stops the
parts, the highest rank first, and removes the socket folder. It works for any user and
any system, where a parent-death signal is lost as soon as a part changes its user.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omni2.supervisor.processes import Known

ROOT = Path(__file__).resolve().parent.parent.parent


class Keeper:
    """The supervisor's side. `start()` costs one small Python process (about 10 MB)."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def start(self) -> int:
        """Start the keeper's process and return its number."""
        self._process = subprocess.Popen(
            # -S: nothing of site-packages is needed, and the start is three times as quick
            [sys.executable, "-S", "-c", "from omni2.supervisor.keeper import main; main()"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self._process.pid

    def add(self, process: Known) -> None:
        """From now on this process does not outlive us."""
        self._tell({"add": asdict(process)})

    def drop(self, pid: int) -> None:
        """This process has ended."""
        self._tell({"drop": pid})

    def remove(self, folder: Path) -> None:
        """Remove this folder, with all in it, when everything has ended."""
        self._tell({"remove": str(folder)})

    def end(self) -> None:
        """Close the pipe and wait: what is still there is ended now."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()

    def _tell(self, what: dict[str, Any]) -> None:
        if self._process is None or self._process.stdin is None:
            return
        line = json.dumps(what).encode() + b"\n"
        with self._lock:
            try:
                self._process.stdin.write(line)
                self._process.stdin.flush()
            except (BrokenPipeError, ValueError):
                # a killed keeper is a lost belt, not a reason to stop; the next start's clean-up still looks
                self._process = None


def main() -> None:
    """The keeper's process: read until the pipe closes, then end what is left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    processes: dict[int, Known] = {}
    folders: list[str] = []
    for line in sys.stdin:
        what = json.loads(line)
        if "add" in what:
            processes[what["add"]["pid"]] = Known(**what["add"])
        elif "drop" in what:
            processes.pop(what["drop"], None)
        elif "remove" in what:
            folders.append(what["remove"])
    for process in sorted(processes.values(), key=lambda process: -process.rank):
        process.end()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
