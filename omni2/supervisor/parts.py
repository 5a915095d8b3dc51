"""One part of the run: start it, wait until it answers, start it again when it dies, stop it."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omni2.embedded import last_lines
from omni2.supervisor.commands import part_environment
from omni2.supervisor.console import say
from omni2.supervisor.processes import Known, known

LOOK_AGAIN_S = 0.03
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0
# a part that lived this long was well: its next death starts the waiting anew
STEADY_S = 60.0


class PartFailed(RuntimeError):
    """A part did not come up; the message says what it left."""


async def at_once() -> bool:
    """For a part that is ready when it runs."""
    return True


@dataclass(slots=True)
class Part:
    """A child process with a name. `rank` orders the stops: the highest goes first."""

    name: str
    rank: int
    words: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    ready: Callable[[], Awaitable[bool]] = at_once
    start_limit_s: float = 60.0
    before: Callable[[], None] = lambda: None
    """made straight before each start, in a thread"""
    log: Path | None = None
    """where its output goes; None: to our own"""
    stop_signal: int = signal.SIGTERM
    patience_s: float = 2.0
    inherits: Sequence[int] = ()
    """numbers of our open files that it is given"""
    changed: Callable[[], None] = lambda: None
    """called after each start and end"""
    known: Known | None = None
    restarts: int = 0
    _process: asyncio.subprocess.Process | None = None
    _stopping: bool = False
    _launched: float = 0.0

    async def start(self) -> None:
        """Returns when it answers; raises PartFailed when it ends before, or after `start_limit_s`."""
        await self.launch()
        await self.until_ready()

    async def launch(self) -> None:
        """Start it and return at once."""
        await asyncio.to_thread(self.before)
        await self._spawn()

    async def until_ready(self) -> None:
        """The second half of `start`, with the same promise."""
        began = self._launched
        while not await self.ready():
            if self._process is None or self._process.returncode is not None:
                raise PartFailed(f"{self.name} ended while it started{self._ending()}{self._tail()}")
            if time.monotonic() - began > self.start_limit_s:
                raise PartFailed(f"{self.name} does not answer after {self.start_limit_s:.0f} s{self._tail()}")
            await asyncio.sleep(LOOK_AGAIN_S)
        say(f"{self.name} is ready ({time.monotonic() - began:.1f} s)")

    async def _spawn(self) -> None:
        output = self.log.open("ab") if self.log else None
        try:
            # a session of its own: Ctrl-C reaches the supervisor alone, which then keeps the order
            self._process = await asyncio.create_subprocess_exec(
                *self.words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                env=part_environment(self.environment),
                start_new_session=True,
                pass_fds=self.inherits,
            )
        finally:
            if output:
                output.close()
        self._launched = time.monotonic()
        self.known = known(
            self.name, self._process.pid, signal=self.stop_signal, patience_s=self.patience_s, rank=self.rank
        )
        self.changed()

    async def start_and_keep_running(self) -> None:
        """For a part the others do not wait for: a failed start is said and tried again."""
        try:
            await self.start()
        except (PartFailed, OSError) as problem:
            say(str(problem))
            await self._kill()
        await self.keep_running()

    async def keep_running(self) -> None:
        """Watch it for ever: say when it ended, wait a little longer each time, start it again."""
        wait_s = FIRST_WAIT_S
        while True:
            began = time.monotonic()
            if self._process is not None:
                await self._process.wait()
            if self._stopping:
                return
            self._gone()
            wait_s = FIRST_WAIT_S if time.monotonic() - began > STEADY_S else min(wait_s * 2, LONGEST_WAIT_S)
            say(f"{self.name} ended{self._ending()}; starting it again in {wait_s:.0f} s{self._tail()}")
            await asyncio.sleep(wait_s)
            self.restarts += 1
            try:
                await self.start()
            except (PartFailed, OSError) as problem:
                say(str(problem))
                await self._kill()

    async def stop(self) -> None:
        """Ask it to end and wait; it is killed after `patience_s`. Returns when it is gone."""
        self._stopping = True
        if self._process is None or self._process.returncode is not None:
            return
        began = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(self.stop_signal)
        try:
            await asyncio.wait_for(self._process.wait(), self.patience_s)
        except TimeoutError:
            say(f"{self.name} takes longer than {self.patience_s:g} s to stop: killing it")
            await self._kill()
        self._gone()
        say(f"{self.name} has stopped ({time.monotonic() - began:.1f} s)")

    async def _kill(self) -> None:
        if self._process is None or self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            # its whole session: what it may have started goes with it
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()

    def _gone(self) -> None:
        self.known = None
        self.changed()

    def _ending(self) -> str:
        code = self._process.returncode if self._process else None
        if code is None:
            return ""
        return f" (signal {-code})" if code < 0 else f" (exit code {code})"

    def _tail(self) -> str:
        return f"; the end of {self.log}:\n{last_lines(self.log)}" if self.log else ""
