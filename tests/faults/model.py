"""The scripted model of the fault runs: paced answers, and as a process of its own that a busy test cannot slow down.

    python -m tests.faults.model PORT [FILE]

FILE gets a line for each request as it comes: the moment (time.monotonic(), the same clock for all processes of a
machine) and the question. The model is asked right after `llm_thinking` was recorded, so the lines say which
checkpoints a web process had accepted, whatever became of it. FILE.left gets the same for each request whose client
went away before the answer was over.
"""

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

from chat.scripted_model import Chunk, ScriptedModel, Seen, ends, says, script, used

KEY = "scripted"


def _number(name: str, text: str, default: float) -> float:
    found = re.search(rf"\b{name}=([\d.]+)", text)
    return float(found[1]) if found else default


@script("paced")
async def paced(seen: Seen) -> AsyncIterator[Chunk]:
    """`words=20 pace=0.3`: so many words, the first at once, with so many seconds between."""
    words, pace_s = int(_number("words", seen.question, 20)), _number("pace", seen.question, 0.1)
    for number in range(words):
        if number:
            await asyncio.sleep(pace_s)
        yield says(f"word{number} ")
    yield ends()
    yield used(10, words)


class Notes(list[Seen]):
    """Where the server puts what it was asked: written down and forgotten, since a long run asks a hundred thousand
    times."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file.open("a", buffering=1)
        self._left = left(file).open("a", buffering=1)
        self._following: set[asyncio.Task[None]] = set()

    def append(self, seen: Seen) -> None:
        self._file.write(f"{time.monotonic():.6f} {seen.question}\n")
        task = asyncio.create_task(self._follow(seen))
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def _follow(self, seen: Seen) -> None:
        await seen.over.wait()
        if seen.aborted:
            self._left.write(f"{time.monotonic():.6f} {seen.question}\n")


def left(notes: Path) -> Path:
    """The file of those that nobody waited for any more."""
    return notes.with_name(notes.name + ".left")


async def main(port: int, notes: Path) -> None:
    model = ScriptedModel(key=KEY)
    model.requests = Notes(notes)
    await model.start(port=port)
    await asyncio.Event().wait()


def asked(notes: Path) -> dict[str, list[float]]:
    """When each question was asked, once for each round of the model."""
    times: dict[str, list[float]] = {}
    for line in notes.read_text().splitlines():
        moment, _, question = line.partition(" ")
        times.setdefault(question, []).append(float(moment))
    return times


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2])))
