"""Who a process is beyond its number, and how it is ended.

The system gives a number again when its process is gone, so a number alone must never be killed:
here a process is its number together with the moment it was started.
"""

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LOOK_AGAIN_S = 0.02


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def started(pid: int) -> str | None:
    """A text that no other process of this number ever has; None when there is none (or only its remains)."""
    if Path("/proc/self/stat").exists():
        try:
            # the name in parentheses may hold anything, so count from behind it: 0 is the state, 19 the start
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in {"Z", "X"} else f"{_boot()} {fields[19]}"
    answer = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()
    state, _, moment = answer.partition(" ")
    return None if not answer or state.startswith("Z") else moment.strip()


def command_line(pid: int) -> str:
    """The words a process was started with, separated by spaces; "" when it is gone."""
    if Path("/proc/self/cmdline").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            return ""
    return subprocess.run(
        ["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()


@dataclass(frozen=True, slots=True)
class Known:
    """A process we may end: which one it is, how it is asked to stop, and how long it may take."""

    name: str
    pid: int
    started: str
    signal: int = signal.SIGTERM
    patience_s: float = 2.0
    rank: int = 0
    """of several, the highest is ended first"""

    @property
    def alive(self) -> bool:
        return started(self.pid) == self.started

    def send(self, number: int) -> None:
        """Signal it; nothing happens when it is gone."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)

    def end(self) -> None:
        """Ask it to stop; returns when it is gone, after `patience_s` and a kill at the latest."""
        self.send(self.signal)
        if not self.wait(self.patience_s):
            self.send(signal.SIGKILL)
            self.wait(self.patience_s)

    def wait(self, limit_s: float) -> bool:
        """True as soon as it is gone, False after the limit."""
        deadline = time.monotonic() + limit_s
        while self.alive:
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK_AGAIN_S)
        return True


def known(name: str, pid: int, *, signal: int = signal.SIGTERM, patience_s: float = 2.0, rank: int = 0) -> Known | None:
    """The process that has this number now; None when it is already gone."""
    moment = started(pid)
    return None if moment is None else Known(name, pid, moment, signal, patience_s, rank)
