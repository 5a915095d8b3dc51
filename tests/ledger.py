"""A load client that writes down what the product told it, and compares that with PostgreSQL, exactly."""

import asyncio
import itertools
import json
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.running import Running


@dataclass
class Told:
    """What the product said about one turn."""

    message: str = ""
    turn_id: str = ""
    status: int = 0
    tokens: int = 0
    end: str = ""
    durable: int = 0
    checkpoints: int = 0
    cut: bool = False


@dataclass
class Ledger:
    """Chats of some users against one or more web processes, and the arithmetic afterwards."""

    omni2: Running
    tokens: list[str]
    told: list[Told] = field(default_factory=list)

    async def chat(self, message: str, *, url: str = "", token: str = "") -> Told:
        """One streamed turn; a connection that breaks is written down, not raised."""
        told = Told(message)
        self.told.append(told)
        headers = {"Authorization": f"Bearer {token or self.tokens[len(self.told) % len(self.tokens)]}"}
        client = httpx2.AsyncClient(base_url=url or self.omni2.url, headers=headers, timeout=60)
        question = {"message": message}
        try:
            async with client, client.stream("POST", "/api/v1/ask/stream", json=question) as answer:
                told.status = answer.status_code
                await self._listen(told, answer)
        except httpx2.HTTPError:
            told.cut = True
        return told

    @staticmethod
    async def _listen(told: Told, answer: httpx2.Response) -> None:
        name = ""
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                data = json.loads(line.removeprefix("data: "))
                told.turn_id = data.get("turn_id", told.turn_id)
                told.tokens += name == "token"
                if name in ("done", "error"):
                    told.end = name
                if name == "done":
                    told.durable = data["tracked"]["durable"]
                    told.checkpoints = data["tracked"]["checkpoints"]

    async def load(self, stop: asyncio.Event, *, at_once: int, messages: tuple[str, ...], url: str = "") -> None:
        """Keep `at_once` chats in flight until `stop`."""
        words = itertools.cycle(messages)

        async def one() -> None:
            while not stop.is_set():
                await self.chat(next(words), url=url)

        await asyncio.gather(*(one() for _ in range(at_once)))

    @property
    def finished(self) -> list[Told]:
        """The turns whose `done` was heard."""
        return [told for told in self.told if told.end == "done"]

    def rows(self) -> dict[str, int]:
        """How many rows each turn has. The primary key says that none is there twice."""
        found = self.omni2.sql("SELECT turn_id::text, count(*) FROM interaction_flows GROUP BY turn_id")
        return dict(found)

    def problems(self) -> list[str]:
        """What does not add up: fewer rows than were said to be durable, summaries unlike their rows,
        turns that end not at all or twice. Empty when all is well."""
        rows = self.rows()
        short = [
            f"turn {told.turn_id}: {told.durable} said to be durable, {rows.get(told.turn_id, 0)} stored"
            for told in self.finished
            if rows.get(told.turn_id, 0) < told.durable
        ]
        unlike = self.omni2.sql(
            "SELECT t.turn_id::text, t.checkpoints, count(f.flow_id), count(*) FILTER (WHERE f.checkpoint = 'flow_end')"
            " FROM turns t LEFT JOIN interaction_flows f USING (turn_id) GROUP BY t.turn_id, t.checkpoints"
            " HAVING t.checkpoints <> count(f.flow_id) OR count(*) FILTER (WHERE f.checkpoint = 'flow_end') <> 1"
        )
        return [*short, *(f"turn {row[0]}: summary {row[1]}, rows {row[2]}, ends {row[3]}" for row in unlike)]

    def pending(self) -> int:
        """Entries still in the hand-off log."""
        return sum(self.omni2.redis.xlen(f"omni2:log:{number}") for number in range(8))


def summary(ledger: Ledger) -> dict[str, Any]:
    """Figures for a failing test's message."""
    return {
        "chats": len(ledger.told),
        "done": len(ledger.finished),
        "cut": sum(told.cut for told in ledger.told),
        "statuses": sorted({told.status for told in ledger.told}),
    }
