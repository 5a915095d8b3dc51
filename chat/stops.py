"""Stopping a running turn, whichever process serves it.

Which turns must end is a question to PostgreSQL: those somebody asked to stop, and those of users who are blocked or
no longer active. Every process asks it with each question of its watch list, twice a second and at once after an
announcement, and ends what it serves itself. So nothing depends on Redis, on which door a block came through, or on
the order in which a block and an admission were committed: a turn that slipped in is seen with the next question.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db import connection, transaction

from chat.running import Stop, running
from monitoring.control import announce
from monitoring.watchlist import watchlist
from omni2.accounts.access import record_access
from omni2.accounts.authenticate import REFUSALS
from omni2.accounts.models import User

STOP = "chat.stop"
BLOCKED_WORDS = "You have been blocked from this chat."
STOPPED_WORDS = "This answer was stopped."
OWN_WORDS = "You stopped this answer."
KEPT_DAYS = 1

# {turn_id: [why, who, his name, message, reason]}, nearly always empty. All of it is looked up from the few turns that
# run, so that neither many users nor many blocks make it dear: LIMIT keeps PostgreSQL from reading all of them instead.
# Of several reasons the one somebody gave counts first.
FOLLOWED = """
SELECT coalesce(jsonb_object_agg(turn.turn_id, found.facts), '{}') FROM turn_usage AS turn CROSS JOIN LATERAL (
    SELECT jsonb_build_array(CASE WHEN stop.stopped_by = owner.email THEN 'own' ELSE 'stop' END,
        stop.stopped_by, (SELECT name FROM users WHERE email = stop.stopped_by), stop.message, stop.reason) AS facts
    FROM turn_stops AS stop, users AS owner WHERE stop.turn_id = turn.turn_id AND owner.id = turn.user_id
    UNION ALL
    SELECT jsonb_build_array('block', actor.email, actor.name, block.message, block.reason)
    FROM user_blocks AS block LEFT JOIN users AS actor ON actor.id = block.blocked_by_id
    WHERE block.user_id = turn.user_id
    UNION ALL
    SELECT jsonb_build_array('inactive', NULL, NULL, '', '') FROM users WHERE id = turn.user_id AND NOT is_active
    LIMIT 1
) AS found WHERE turn.ended_at IS NULL"""

_WORDS = {"own": OWN_WORDS, "stop": STOPPED_WORDS, "block": BLOCKED_WORDS, "inactive": REFUSALS["inactive"].detail}
_REASONS = {"inactive": "the account was deactivated"}


def hear(value: Any) -> None:
    """What the watch list read: end what is served here. On the loop."""
    running.hear({turn_id: _stop(*facts) for turn_id, facts in value.items()})


def _stop(why: str, stopped_by: str | None, name: str | None, message: str, reason: str) -> Stop:
    return Stop(message.strip() or _WORDS[why], stopped_by or "", name or "", reason or _REASONS.get(why, ""))


def call_out() -> None:
    """Something may have to end: let every process ask now. To be called after the commit; returns at once."""
    watchlist.wake()
    announce("stops")


# Whose turn it is, if the asker may know; a turn that makes no usage any more, or never did, is over.
_ASK = """
WITH turn AS (
    SELECT owner.email AS user_id, usage.ended_at IS NULL AS runs
    FROM turn_usage AS usage JOIN users AS owner ON owner.id = usage.user_id
    WHERE usage.turn_id = %(turn)s::uuid AND (%(may_stop)s OR owner.id = %(asker)s)
    UNION ALL
    SELECT user_id, false FROM turns
    WHERE turn_id = %(turn)s::uuid AND (%(may_stop)s OR user_id = %(stopped_by)s)
        AND NOT EXISTS (SELECT FROM turn_usage WHERE turn_id = %(turn)s::uuid)
), asked AS (
    INSERT INTO turn_stops (turn_id, stopped_by, reason, message)
    SELECT %(turn)s::uuid, %(stopped_by)s, %(reason)s, %(message)s FROM turn WHERE runs
    ON CONFLICT (turn_id) DO NOTHING RETURNING turn_id
)
SELECT user_id, runs, EXISTS (SELECT FROM asked) FROM turn
"""


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of asking a turn to stop: whose it is, and whether it runs (else there was nothing to stop)."""

    user_id: str
    runs: bool


def ask_to_stop(turn_id: str, *, by: User, reason: str = "", message: str = "") -> Asked | None:
    """Ask that a turn ends now, and tell all processes. None: there is no such turn, or it is none of his: not his
    own, and he has no right to stop others'. One statement, and a line in the access log when it is another's.

    Asking again changes nothing. A turn whose process has died is ended by the sweep instead, as abandoned."""
    asked: dict[str, Any] = {
        "turn": turn_id,
        "asker": by.pk,
        "may_stop": by.has_perm(STOP),
        "stopped_by": by.user_id,
        "reason": reason,
        "message": message,
    }
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_ASK, asked)
        found = cursor.fetchone()
        if found is None:
            return None
        user_id, runs, is_new = found
        if is_new and user_id != by.user_id:
            detail = {"turn_id": turn_id, "reason": reason, "message": message}
            record_access(actor=by, action="turn_stopped", subject_user_id=user_id, detail=detail)
        if is_new:
            transaction.on_commit(call_out, robust=True)
    return Asked(user_id, runs)


def facts_of(why: Stop) -> Mapping[str, str]:
    """Who and why, as checkpoints carry it: for admins (flows.history hides it from others)."""
    facts = {"stopped_by": why.stopped_by, "stopped_by_name": why.stopped_by_name, "reason": why.reason}
    return {name: value for name, value in facts.items() if value}


def forget_old() -> None:
    """Delete the stops of days that are over: the trees have them. One statement."""
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM turn_stops WHERE stopped_at < now() - make_interval(days => %s)", [KEPT_DAYS])
