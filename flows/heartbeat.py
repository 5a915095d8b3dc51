"""The heartbeat of a web process: a row in PostgreSQL, renewed every few seconds by PostgreSQL's clock.

The sweep judges by it whether a turn's process is alive. A process that finds its row taken by the
sweep (it was stopped for longer than the sweep's patience) ends its own turns and begins again under
a new id.
"""

import asyncio
import logging
import os
import socket

from django.db import Error, connection

from flows.tracker import FlowTracker
from omni2.database import Lane

logger = logging.getLogger(__name__)

BEAT_EVERY_S = 5.0

_BEAT = """
INSERT INTO serving_processes (process_id, name, started_at, seen_at, given_up)
VALUES (%s, %s, clock_timestamp(), clock_timestamp(), %s)
ON CONFLICT (process_id) DO UPDATE SET seen_at = clock_timestamp(), given_up = EXCLUDED.given_up
WHERE serving_processes.ended_at IS NULL
RETURNING 1
"""


def beat(process_id: str, given_up: int) -> bool:
    """Renew the row; False when the sweep has declared this process dead. One statement."""
    with connection.cursor() as cursor:
        cursor.execute(_BEAT, [process_id, f"{socket.gethostname()}:{os.getpid()}", given_up])
        return cursor.fetchone() is not None


def end(process_id: str) -> None:
    """This process ended in order: what it still left open may be swept at once."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE serving_processes SET ended_at = clock_timestamp() WHERE process_id = %s AND ended_at IS NULL",
            [process_id],
        )


def forget_ended() -> int:
    """Delete the rows of processes that ended a week ago and left no turn open; returns how many."""
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM serving_processes p WHERE ended_at < clock_timestamp() - interval '7 days'"
            " AND NOT EXISTS (SELECT FROM turns t WHERE t.process_id = p.process_id AND t.outcome IS NULL)"
        )
        return int(cursor.rowcount)


class Heartbeat:
    """Beats for one tracker until cancelled."""

    def __init__(self, tracker: FlowTracker) -> None:
        self.tracker = tracker
        # never behind the queries of a busy process: a late beat is taken for a death
        self.lane = Lane("heartbeat")

    async def run(self) -> None:
        """Beat for ever; PostgreSQL being away is waited for."""
        while True:
            await self.once()
            await asyncio.sleep(BEAT_EVERY_S)

    async def once(self) -> None:
        """One beat, and what follows when the process was declared dead."""
        try:
            alive = await self.lane.run(beat, self.tracker.process_id, self.tracker.given_up)
        except (Error, OSError) as problem:
            logger.warning("the heartbeat could not be written: %s", type(problem).__name__)
            return
        if not alive:
            self.tracker.begin_again()
            await self.once()
