"""What the tests of the ledger share: a process that serves turns on the real road, and what reconcile says of it."""

import io
import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from django.core.management import call_command
from django.db import connection
from django.db.models.functions import Now

from flows import heartbeat
from flows.checkpoints import next_moment_us, uuid7
from flows.judging import Account, judge
from flows.ledger import read
from flows.models import ServingProcess
from flows.persister import Persister
from flows.tracker import FlowTracker, TurnTrack
from omni2.accounts.models import User
from omni2.database import in_database

BOB = "bob@example.com"


class Served:
    """One web process: its turns, its heartbeat, and a persister behind it."""

    def __init__(self, tracker: FlowTracker) -> None:
        self.tracker = tracker
        self.pulse = heartbeat.Heartbeat(tracker)

    async def begin(self, *, admitted: bool = True) -> TurnTrack:
        turn_id = uuid7(next_moment_us())
        if admitted:
            await in_database(admit, turn_id, self.tracker.process_id)
        turn = self.tracker.begin(user_id=BOB, session_id=str(uuid.uuid4()), turn_id=turn_id)
        turn.record("auth_check", None, status="passed", question="hi", process=self.tracker.process_id)
        return turn

    async def chat(self, outcome: str = "completed") -> TurnTrack:
        """A whole turn of four checkpoints; acknowledged."""
        turn = await self.begin()
        thinking = turn.record("llm_thinking", turn.checkpoints[0], status="started", model="m")
        turn.record("llm_complete", thinking, status="ok", input_tokens=3, output_tokens=4)
        turn.end(outcome)
        await turn.acknowledged(5)
        await in_database(settle, turn.turn_id)
        return turn

    async def refuse(self) -> TurnTrack:
        turn = await self.begin(admitted=False)
        turn.record("block_check", turn.checkpoints[0], status="failed")
        turn.end("refused", code="user_blocked")
        await turn.acknowledged(5)
        return turn

    async def tell(self) -> None:
        await self.pulse.once()

    async def die(self, *, seconds_ago: int = 300) -> None:
        """As after kill -9, when the sweep has noticed: no word since the last one."""
        ended = Now() - timedelta(seconds=seconds_ago)
        await in_database(
            lambda: ServingProcess.objects.filter(process_id=self.tracker.process_id).update(
                ended_at=ended, seen_at=ended
            )
        )


def admit(turn_id: str, process_id: str) -> None:
    """As the usage lets a turn in, before it begins. (Of an app above this one: so in SQL.)"""
    user, _ = User.objects.get_or_create(email=BOB)
    sql(
        "INSERT INTO turn_usage (turn_id, user_id, session_id, day, process_id)"
        " VALUES (%s, %s, gen_random_uuid(), current_date, %s)",
        turn_id,
        user.pk,
        process_id,
    )


def settle(turn_id: str) -> None:
    """As the usage charges a turn that ended."""
    sql("UPDATE turn_usage SET ended_at = now(), output_tokens = 4 WHERE turn_id = %s", turn_id)


def persist(rounds: int = 3) -> None:
    worker = Persister()
    for _ in range(rounds):
        worker.step()
    worker.stop()
    worker.run()


def account() -> Account:
    """Of the last hour, and the one before it in case a test runs at its end."""
    now = datetime.now(UTC)
    return judge(read(now - timedelta(hours=1), now))


def reconcile(*words: str) -> tuple[int, str]:
    """What `manage.py reconcile` prints, and how it exits."""
    out = io.StringIO()
    try:
        call_command("reconcile", "--since", "1h", "--wait", "0", *words, stdout=out)
    except SystemExit as end:
        return int(end.code or 0), out.getvalue()
    return 0, out.getvalue()


def found(account: Account) -> list[tuple[str, int]]:
    return [(problem.kind, problem.count) for problem in account.problems]


def sql(statement: str, *values: Any) -> int:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return int(cursor.rowcount)


def as_json() -> dict[str, Any]:
    _, printed = reconcile("--json")
    answer: dict[str, Any] = json.loads(printed)
    return answer
