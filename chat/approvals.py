"""Tool calls that wait for their user's yes, and how it reaches the turn, whichever process serves it.

A question is a row of `tool_approvals`, and so is the answer: the process that takes it writes it down and wakes the
others (monitoring.control); each sees new answers with the question it asks PostgreSQL twice a second anyway
(monitoring.watchlist). So an answer arrives within a second, also while Redis is away.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from django.db import Error as DatabaseProblem
from django.db import connection, transaction

from chat.tools import ToolProblem
from flows.checkpoints import clean_text
from monitoring import control
from omni2.database import in_database

logger = logging.getLogger(__name__)

WAIT_S = 300.0
KEEP_DAYS = 1

# What was answered in the last minute, by the flow_id of its tool_call. Costs a look into an index.
FOLLOWED = """
SELECT coalesce(jsonb_object_agg(call::text, approved), '{}') FROM tool_approvals
WHERE decided_at > now() - interval '60 seconds' AND approved IS NOT NULL"""

Decision = Literal["approved", "declined", "expired"]


@dataclass(frozen=True, slots=True)
class Question:
    """May this tool be called? `call` is the flow_id of the tool_call, `call_id` what the model calls it."""

    call: str
    turn_id: str
    session_id: str
    user_id: str
    server: str
    tool: str
    call_id: str
    arguments: str


class Approvals:
    """The questions that this process' turns wait for an answer to."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Future[bool]] = {}
        self._closing: set[asyncio.Task[Any]] = set()

    async def ask(self, question: Question, *, within_s: float) -> None:
        """Write the question down. Raises ToolProblem when it cannot be asked."""
        self._waiting[question.call] = asyncio.get_running_loop().create_future()
        try:
            asked = await in_database(_write, question, within_s)
        except DatabaseProblem as problem:
            logger.warning("a tool call could not be put to its user: %s", problem, extra={"turn_id": question.turn_id})
            asked = False
        except BaseException:
            # the turn was left meanwhile, and whether the row was written nobody knows
            self._give_up(question.call)
            raise
        if not asked:
            del self._waiting[question.call]
            raise ToolProblem("The user could not be asked for his permission.")

    async def answer(self, question: Question, *, within_s: float) -> Decision:
        """What the user says, or that he said nothing in time. Cancelling it closes the question."""
        waiting = self._waiting[question.call]
        try:
            async with asyncio.timeout(within_s):
                return "approved" if await waiting else "declined"
        except TimeoutError:
            # PostgreSQL decides between the last moment and too late
            decided = await self._close(question.call)
            return "expired" if decided is None else "approved" if decided else "declined"
        finally:
            if question.call in self._waiting:
                self._give_up(question.call)

    def hear(self, answers: object) -> None:
        """The answers of the last minute, as the watch list read them."""
        if not isinstance(answers, Mapping):
            return
        for call, waiting in self._waiting.items():
            if call in answers and not waiting.done():
                waiting.set_result(bool(answers[call]))

    async def _close(self, call: str) -> bool | None:
        self._waiting.pop(call, None)
        try:
            return await in_database(_close, call)
        except DatabaseProblem as problem:
            logger.warning("a question to a user could not be closed: %s", problem)
            return None

    def _give_up(self, call: str) -> None:
        task = asyncio.get_running_loop().create_task(self._close(call))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


approvals = Approvals()

_WRITE = """
INSERT INTO tool_approvals (call, turn_id, session_id, user_id, server, tool, call_id, arguments, expires_at)
SELECT %(call)s, %(turn_id)s, %(session_id)s, id, %(server)s, %(tool)s, %(call_id)s, %(arguments)s,
       now() + make_interval(secs => %(within_s)s)
FROM users WHERE email = %(user_id)s
ON CONFLICT (turn_id, call_id) DO NOTHING
"""


def _write(question: Question, within_s: float) -> bool:
    """One statement. False: the model used the same call_id before in this turn, so no answer would be to this
    question alone."""
    values = {name: clean_text(getattr(question, name)) for name in Question.__slots__}
    with connection.cursor() as cursor:
        cursor.execute(_WRITE, {**values, "within_s": within_s})
        return bool(cursor.rowcount)


def _close(call: str) -> bool | None:
    """Close a question; what was said before, or None. Its arguments go: the tree has what may be kept of them."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE tool_approvals SET decided_at = coalesce(decided_at, now()), arguments = '' WHERE call = %s"
            " RETURNING approved",
            [call],
        )
        row = cursor.fetchone()
    return None if row is None else row[0]


Answered = Literal["taken", "already_decided", "unknown"]


def decide(user_pk: int, turn_id: str, call_id: str, *, approve: bool) -> Answered:
    """Take the user's answer to a question of his own turn. Who comes second is told `already_decided`, also when
    the time was up. Two statements at most."""
    with transaction.atomic(), connection.cursor() as cursor:
        of_his = "WHERE turn_id = %s AND call_id = %s AND user_id = %s"
        cursor.execute(
            f"UPDATE tool_approvals SET approved = %s, decided_at = now() {of_his}"  # noqa: S608
            " AND decided_at IS NULL AND expires_at > now()",
            [approve, turn_id, call_id, user_pk],
        )
        if cursor.rowcount:
            transaction.on_commit(lambda: control.announce("a tool call was decided"))
            return "taken"
        cursor.execute(f"SELECT 1 FROM tool_approvals {of_his}", [turn_id, call_id, user_pk])  # noqa: S608
        return "already_decided" if cursor.fetchone() else "unknown"


def open_questions(user_pk: int) -> list[dict[str, Any]]:
    """The user's calls that wait for his yes now, the oldest first. One query."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT turn_id, session_id, call_id, server, tool, arguments,"
            " ceil(extract(epoch FROM expires_at - now()))::int FROM tool_approvals"
            " WHERE user_id = %s AND decided_at IS NULL AND expires_at > now() ORDER BY asked_at LIMIT 100",
            [user_pk],
        )
        names = ("turn_id", "session_id", "call_id", "server", "tool", "arguments", "expires_in_s")
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def forget_old() -> None:
    """Delete what was asked more than a day ago: the checkpoints are the record."""
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM tool_approvals WHERE asked_at < now() - make_interval(days => %s)", [KEEP_DAYS])
