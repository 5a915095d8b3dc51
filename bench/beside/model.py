"""`python -m bench.beside.model`: the scripted model with the answers of the section `endpoint`, as a process.

Prints its base URL on a line, and answers until it is ended. An answer is 20 pieces of text that name the question:
"script:spoken chat 7" is answered "7.0 7.1 … 7.19", so that a client knows its own tokens from everybody else's.
"""

import asyncio
import resource
from collections.abc import AsyncIterator

from chat.scripted_model import Chunk, ScriptedModel, Seen, ends, says, script, used

KEY = "scripted"
TOKENS = 20
SPOKEN_PAUSE_S = 0.005
"""Two hundred tokens a second: a fast model, whose pieces come one by one."""

SLOW_PAUSE_S = 0.25
"""Twenty of them last five seconds."""


def tokens_of(chat: int) -> list[str]:
    """What the model says to this chat."""
    return [f"{chat}.{number} " for number in range(TOKENS)]


async def _say(seen: Seen, pause_s: float) -> AsyncIterator[Chunk]:
    chat = int(seen.question.rpartition(" ")[2])
    for number, token in enumerate(tokens_of(chat)):
        if number:
            await asyncio.sleep(pause_s)
        yield says(token)
    yield ends()
    yield used(10, TOKENS)


@script("spoken")
async def spoken(seen: Seen) -> AsyncIterator[Chunk]:
    async for chunk in _say(seen, SPOKEN_PAUSE_S):
        yield chunk


@script("slowly")
async def slowly(seen: Seen) -> AsyncIterator[Chunk]:
    async for chunk in _say(seen, SLOW_PAUSE_S):
        yield chunk


async def _serve() -> None:
    model = ScriptedModel(key=KEY, keep_requests=False)
    print(await model.start(), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    asyncio.run(_serve())
