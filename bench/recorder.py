"""Records checkpoints with the product's own tracker and flusher, or publishes as many bytes: the sending side
of row 4 and 5, a process of its own. Reads orders from standard input, a JSON line each, answers each with one.

Each checkpoint carries the moment of `record()` and its number, so that whoever reads it at the other end
knows how old it is: the monotonic clock is the same for all processes of a machine.
"""

import asyncio
import json
import os
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "omni2.settings")

import django

django.setup()

from flows import keys
from flows.redis import new_connection
from flows.tracker import FlowTracker, TurnTrack

CHECKPOINTS_A_TURN = 10
TEXT = "What did the customer say about the delayed order of last week, and who has answered it? " * 2
AS_LARGE_BYTES = 560
"""What a message of such a checkpoint has on Pub/Sub."""


class Recorder:
    """The tracker of a process that serves turns."""

    def __init__(self) -> None:
        self.tracker = FlowTracker()
        self.tracker.is_monitored = lambda user_id: True
        self.turn: TurnTrack | None = None
        self.root: Any = None

    async def record(self, user_id: str, number: int) -> None:
        """One checkpoint of the user, ten of them a turn."""
        place = number % CHECKPOINTS_A_TURN
        if self.turn is None or self.turn.user_id != user_id or not place:
            self.turn = self.tracker.begin(user_id=user_id, session_id=str(uuid.uuid4()))
            self.root = self.turn.record("auth_check", status="passed", question=TEXT, n=number, at_ns=now_ns())
        elif place == CHECKPOINTS_A_TURN - 1:
            self.turn.end("completed", text=TEXT, n=number, at_ns=now_ns())
        else:
            self.turn.record("note", self.root, text=TEXT, n=number, at_ns=now_ns())

    async def all_written(self) -> None:
        if self.turn is not None:
            await self.turn.acknowledged(20)


class Publisher:
    """The bare way: PUBLISH, on a connection of its own, answer awaited."""

    def __init__(self) -> None:
        self.connection: Any = None

    async def publish(self, user_id: str, number: int) -> None:
        if self.connection is None:
            self.connection = new_connection()
            await self.connection.connect()
        text = f'{{"n":{number},"at_ns":{now_ns()},"text":"'
        text += "x" * (AS_LARGE_BYTES - len(text) - 2) + '"}'
        await self.connection.send_command("PUBLISH", keys.user_channel(user_id), text, check_health=False)
        await self.connection.read_response()


def now_ns() -> int:
    return time.monotonic_ns()


async def at_rate(send: Callable[[str, int], Awaitable[None]], user_id: str, *, rate: float, count: int) -> None:
    """`count` checkpoints, evenly spread; what the loop's clock (1 ms) let pass comes at once."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for number in range(count):
        wait_s = began + number / rate - loop.time()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        await send(user_id, number)


async def main() -> None:
    recorder, publisher = Recorder(), Publisher()
    ways = {"record": recorder.record, "publish": publisher.publish}
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        began_s, cpu_s = time.monotonic(), time.process_time()
        await at_rate(ways[order["way"]], order["user_id"], rate=order["rate"], count=order["count"])
        await recorder.all_written()
        answer = {"took_s": time.monotonic() - began_s, "cpu_s": time.process_time() - cpu_s}
        print(json.dumps(answer | {"given_up": recorder.tracker.given_up}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
