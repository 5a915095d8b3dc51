"""The machine of Redis loses its power, as far as that can be played: the process is killed, and its file is cut
back to what had been written a while ago. With `appendfsync everysec` that is what a loss of power may leave."""

import asyncio
import os
import time
from collections import deque
from pathlib import Path

from tests.faults.rig import Outcome, Rig
from tests.faults.scenario import scenario, strange
from tests.faults.scenarios_redis import back_to_redis, start_valkey, valkey

BEHIND_S = 1.5
"""`everysec` may be two seconds behind, when the disk is slow; what a process appends again reaches back
five at least."""


class Disk:
    """How large Redis' file was when."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes: deque[tuple[float, Path, int]] = deque(maxlen=400)

    async def watch(self) -> None:
        while True:
            for file in (self._folder / "appendonlydir").glob("*.incr.aof"):
                self._sizes.append((time.monotonic(), file, file.stat().st_size))
            await asyncio.sleep(0.05)

    def cut_back(self, seconds: float) -> int:
        """Cut the file to what it was so long ago; how many bytes that were."""
        now = time.monotonic()
        _, file, size = next(
            (each for each in reversed(self._sizes) if now - each[0] >= seconds and each[1].exists()), self._sizes[0]
        )
        lost = file.stat().st_size - size
        os.truncate(file, size)
        return max(0, lost)


@scenario(
    "redis-power",
    f"Redis loses the last {BEHIND_S:g} s of what it acknowledged, with appendfsync everysec: the web processes append"
    " it again, nothing acknowledged is lost",
    times=25,
    limit_s=900,
)
async def redis_power(rig: Rig) -> Outcome:
    """A loss of power on the machine of Redis alone; the web processes live."""
    disk = Disk(rig.omni2.folder / "vk")
    watching = asyncio.create_task(disk.watch())
    lost_bytes = 0
    async with rig.round() as round_:
        for _ in range(rig.plan.times):
            await round_.pause(BEHIND_S + 0.5, BEHIND_S + 3)
            await round_.kill(valkey(rig.omni2))
            lost_bytes += await asyncio.to_thread(disk.cut_back, BEHIND_S)
            await asyncio.to_thread(start_valkey, rig.omni2)
            await back_to_redis(round_)
    watching.cancel()
    outcome = await round_.reckon()
    outcome.sum.problems += strange(round_.told)
    if not lost_bytes:
        outcome.sum.problems.append("nothing was lost, so nothing is shown")
    outcome.figures["kilobytes_cut_off"] = lost_bytes // 1024
    return outcome
