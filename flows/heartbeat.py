"""The heartbeat of a web process: a row in PostgreSQL, renewed every few seconds by PostgreSQL's clock.

With it goes what the process counted of its own turns, which the ledger compares with what is stored.
The sweep judges by it whether a turn's process is alive. A process that finds its row taken by the
sweep (it was stopped for longer than the sweep's patience) ends its own turns and begins again under
a new id.
"""

import asyncio
import json
import logging
import os
import socket
from datetime import timedelta
from typing import Any

from django.db import Error, connection

from flows.counts import Report
from flows.tracker import FlowTracker
from omni2.database import Lane

logger = logging.getLogger(__name__)

BEAT_EVERY_S = 5.0

_BEAT = """
WITH beat AS (
    INSERT INTO serving_processes (process_id, name, started_at, seen_at, given_up, reported_at)
    VALUES (%(process)s, %(name)s, clock_timestamp(), clock_timestamp(), %(given_up)s, %(at)s)
    ON CONFLICT (process_id) DO UPDATE SET
        seen_at = clock_timestamp(), given_up = EXCLUDED.given_up, reported_at = EXCLUDED.reported_at
    WHERE serving_processes.ended_at IS NULL
    RETURNING 1
)"""

# In the same statement: a moment that is later than its figures would make losses of what is only younger.
_TELL = """, told AS (
    INSERT INTO ledger_entries (process_id, hour, turns, turns_ended, turns_given_up, checkpoints, durable, given_up,
        late, reported_at)
    SELECT process_id, hour, turns, turns_ended, turns_given_up, checkpoints, durable, given_up, late, %(at)s
    FROM jsonb_to_recordset(%(entries)s::jsonb) AS said(process_id uuid, hour timestamptz, turns int, turns_ended int,
        turns_given_up int, checkpoints bigint, durable bigint, given_up jsonb, late int)
    ON CONFLICT (process_id, hour) DO UPDATE SET
        turns = EXCLUDED.turns, turns_ended = EXCLUDED.turns_ended, turns_given_up = EXCLUDED.turns_given_up,
        checkpoints = EXCLUDED.checkpoints, durable = EXCLUDED.durable, given_up = EXCLUDED.given_up,
        late = EXCLUDED.late, reported_at = EXCLUDED.reported_at
)"""

_END = """
WITH beat AS (
    UPDATE serving_processes SET ended_at = clock_timestamp(), reported_at = coalesce(%(at)s, reported_at)
    WHERE process_id = %(process)s AND ended_at IS NULL RETURNING 1
)"""

ENTRIES_KEPT = timedelta(days=90)


def beat(process_id: str, given_up: int, report: Report | None = None) -> bool:
    """Renew the row, and say what the process counted since it last did; False when the sweep has declared
    this process dead. One statement."""
    return _said(_BEAT, process_id, report, name=f"{socket.gethostname()}:{os.getpid()}", given_up=given_up)


def end(process_id: str, report: Report | None = None) -> None:
    """This process ended in order: its last figures are exact, and what it still left open may be swept at once."""
    _said(_END, process_id, report)


def _said(statement: str, process_id: str, report: Report | None, **more: Any) -> bool:
    known = {"process": process_id, "at": report and report.at, **more}
    entries = report.rows() if report else []
    with connection.cursor() as cursor:
        words = (statement, _TELL if entries else "", " SELECT count(*) FROM beat")
        cursor.execute("".join(words), {**known, "entries": json.dumps(entries)})
        alive = bool(cursor.fetchone()[0])
    if report:
        report.heard()
    return alive


def forget_ended() -> int:
    """Delete what processes counted 90 days ago, and the rows of processes that ended a week ago, of which
    nothing that was counted is kept and no turn is open; returns how many processes."""
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM ledger_entries WHERE hour < clock_timestamp() - make_interval(days => %s)", [ENTRIES_KEPT.days]
        )
        cursor.execute(
            "DELETE FROM serving_processes p WHERE ended_at < clock_timestamp() - interval '7 days'"
            " AND NOT EXISTS (SELECT FROM turns t WHERE t.process_id = p.process_id AND t.outcome IS NULL)"
            " AND NOT EXISTS (SELECT FROM ledger_entries e WHERE e.process_id = p.process_id)"
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
            alive = await self.lane.run(beat, self.tracker.process_id, self.tracker.given_up, self.tracker.report())
        except (Error, OSError) as problem:
            logger.warning("the heartbeat could not be written: %s", type(problem).__name__)
            return
        if not alive:
            self.tracker.begin_again()
            await self.once()
