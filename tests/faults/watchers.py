"""Real watchers that come back with their cursor, and what they must show in the end: exactly what is stored."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from websockets.exceptions import WebSocketException

from monitoring.tests.watching import Closed, Page, WireSocket

COME_BACK_S = 0.3
AWAY_FROM_HOME_S = 4.0
"""How long a watcher stays with another server than its own, which may be there again."""


@dataclass(slots=True)
class Visit:
    """One connection of a watcher."""

    url: str
    began_s: float
    ended_s: float | None = None
    code: int | None = None
    left: bool = False
    """whether the watcher went by itself"""


@dataclass
class Watcher:
    """One page on one user that is connected again whenever it is cut, to its own server or the next one."""

    token: str
    user_id: str
    urls: list[str]
    home: int
    visits: list[Visit] = field(default_factory=list)
    failed: str = ""
    """what the page could not take: a checkpoint shown twice, a frame inside a snapshot"""

    def __post_init__(self) -> None:
        self.page = Page(self.token, user_id=self.user_id)
        self._task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return f"watcher {self.home} of {self.user_id}"

    @property
    def is_there(self) -> bool:
        """Whether its first snapshot is whole, and its user known to be monitored."""
        return self.page.cursor is not None and not self.page._in_snapshot

    @property
    def is_connected(self) -> bool:
        return self.page.reader is not None and not self.page.reader.done()

    def start(self) -> None:
        self._task = asyncio.create_task(self._stay())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(Exception):
            await self.page.leave()

    async def _stay(self) -> None:
        further = 0
        while not self.failed:
            place = (self.home + further) % len(self.urls)
            let_in = await self._visit(self.urls[place], for_s=AWAY_FROM_HOME_S if further else None)
            further = 0 if let_in else further + 1
            await asyncio.sleep(COME_BACK_S)

    async def _visit(self, url: str, *, for_s: float | None) -> bool:
        """Watch at this server until it cuts us, or so long; whether it let us in at all."""
        page = self.page
        page.connect = partial(WireSocket, url)
        if page.cursor is None:
            # without a cursor it is a page that has just been opened
            page.shown.clear()
        try:
            async with asyncio.timeout(20):
                await page.open()
        except (Closed, OSError, EOFError, WebSocketException):
            return False
        visit = Visit(url, time.monotonic())
        self.visits.append(visit)
        assert page.reader is not None
        try:
            done, _ = await asyncio.wait({page.reader}, timeout=for_s)
            visit.left = not done
            page._check_reader()
        except AssertionError as problem:
            self.failed = f"{self.name}: {problem}"
        visit.ended_s, visit.code = time.monotonic(), page.closed
        with contextlib.suppress(Exception):
            async with asyncio.timeout(5):
                await page.leave()
        return True

    # --- the end ----------------------------------------------------------------------------------

    def problems(self, stored: Sequence[dict[str, Any]]) -> list[str]:
        """What it shows otherwise than it should. `stored`: the user's rows in order of (created_at, flow_id)."""
        if self.failed:
            return [self.failed]
        rows = {row["flow_id"]: row for row in stored}
        shown = self.page.shown
        if self.page._in_snapshot:
            return [f"{self.name}: in the middle of a snapshot"]
        found = [f"{self.name}: shows {id_}, which is not stored" for id_ in shown if id_ not in rows]
        missing = [row for id_, row in rows.items() if id_ not in shown]
        found += [f"{self.name}: misses {row['checkpoint']} of {row['turn_id']}" for row in self._wanted(missing, rows)]
        ends = Counter(row["turn_id"] for row in shown.values() if row["checkpoint"] == "flow_end")
        found += [f"{self.name}: turn {turn} has {count} ends" for turn, count in ends.items() if count > 1]
        last: dict[str, tuple[str, str]] = {}
        for row in shown.values():
            order = (row["created_at"], row["flow_id"])
            if last.get(row["turn_id"], ("", "")) > order:
                found.append(f"{self.name}: {row['checkpoint']} of {row['turn_id']} out of order")
            last[row["turn_id"]] = order
        return found

    def _wanted(self, missing: list[dict[str, Any]], rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of the missing that it must show. A fresh pre-roll has the newest turns up to 1,000 checkpoints, so
        whole turns that are older than all it shows may be absent, and only when it shows that many."""
        shown_turns = {rows[id_]["turn_id"] for id_ in self.page.shown if id_ in rows}
        begun = {row["turn_id"]: row["created_at"] for row in rows.values() if row["flow_id"] == row["turn_id"]}
        if len(self.page.snapshots) < 2 or len(self.page.shown) < 800:
            return missing
        oldest = min((begun[turn] for turn in shown_turns if turn in begun), default="")
        return [
            row
            for row in missing
            if row["turn_id"] in shown_turns or begun.get(row["turn_id"], row["created_at"]) >= oldest
        ]


def spread(token: str, user_ids: Sequence[str], urls: list[str], count: int) -> list[Watcher]:
    """So many watchers, all users and all servers in turn."""
    return [
        Watcher(token, user_ids[number % len(user_ids)], urls, number // len(user_ids) + number)
        for number in range(count)
    ]
