"""What users may use and have used: the statement that lets a turn in, and those that charge it.

`admit` is the check itself: it finds out who asks, judges and reserves in one trip to PostgreSQL, so
that any number of requests at once, on any number of processes, cannot pass a limit. Everything here
is synchronous and short; async code comes through `omni2.database.in_database`.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any

from django.conf import settings
from django.db import connection
from django.db.backends.utils import CursorWrapper

from chat import limits
from chat.history import EARLIER, Earlier
from chat.limits import EVERYTHING, LIMITS, Asked, Limit
from chat.models import TITLE_CHARACTERS, LanguageModel, ToolServer
from chat.offered import offered_to
from monitoring.config import usage_limits
from omni2.accounts.authenticate import Identity
from omni2.accounts.credentials import IDENTITY, NOTED, Credential

# A turn ends by itself long before this (chat.turn bounds it). A slot that is older was left by a
# process that died or lost PostgreSQL at the end, and does not count as running any more.
SLOT_LIFETIME_S = 1800

Word = str
"""admitted, not_his_session, blocked, no_such_model, not_now, or the name of the limit that is reached"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the admitting statement said, and the numbers it said it by: those before this request."""

    word: Word
    limits: Mapping[str, Limit]
    """by name; of those that nobody has set, only what costs nothing to know"""
    block_message: str = ""
    block_reason: str = ""

    @property
    def admitted(self) -> bool:
        return self.word == "admitted"


@dataclass(frozen=True, slots=True)
class Admitted:
    """What the admitting statement found: who asks, and how he was judged (None: he may not even ask)."""

    identity: Identity
    verdict: Verdict | None
    is_foreign: bool
    """the session he named is another user's"""
    earlier: Earlier = field(default_factory=Earlier)
    """of a session that goes on: what was said in it"""
    choice: "Choice | None" = None
    """which model of the catalogue answers; None: that of the environment"""


@dataclass(frozen=True, slots=True)
class Choice:
    """What the catalogue and the user's groups say about a turn."""

    model: int | None
    """the chosen row of language_models; None: the model of the environment"""
    version: str
    groups: tuple[int, ...]
    prompts: tuple[str, ...]
    """of his groups, by the groups' names"""
    servers: tuple[tuple[int, str, bool], ...] = ()
    """every tool server by name: its row, the row's version, and whether it is for him"""


# Which model answers: the one that is named, else the default, else the first of those that are offered to him.
# Without any default the model of the environment answers who names none, and may be named too.
_CHOICE = """,
belongs AS (
    SELECT COALESCE(array_agg(group_id), '{{}}') AS groups FROM users_groups JOIN person ON person.id = user_id
),
offered AS (
    SELECT m.id, m.name, m.is_default, m.xmin::text AS version FROM language_models AS m, person
    WHERE m.enabled AND {may_use}
),
has_default AS (SELECT EXISTS (SELECT FROM language_models WHERE enabled AND is_default) AS yes),
chosen AS (
    SELECT offered.id, offered.version FROM offered, has_default
    WHERE offered.name = %(model)s OR (%(model)s = '' AND has_default.yes)
    ORDER BY offered.is_default DESC, offered.name LIMIT 1
),
model AS (
    SELECT (SELECT id FROM chosen) AS id, (SELECT version FROM chosen) AS version,
           NOT EXISTS (SELECT FROM chosen)
               AND (has_default.yes OR %(model)s NOT IN ('', %(environment_model)s)) AS is_missing
    FROM has_default
)"""
_CHOSEN = """jsonb_build_array(model.id, model.version, (SELECT to_jsonb(groups) FROM belongs),
        (SELECT jsonb_agg(p.prompt ORDER BY g.name) FROM group_prompts AS p JOIN auth_group AS g ON g.id = p.group_id,
                belongs WHERE p.group_id = ANY (belongs.groups)),
        (SELECT jsonb_agg(jsonb_build_array(s.id, s.xmin::text, {may_use}) ORDER BY s.name) FROM tool_servers AS s))"""


@dataclass(frozen=True, slots=True)
class Totals:
    """What a turn has used so far."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: Decimal = Decimal(0)
    read_characters: int = 0
    """of the conversation, question included, in the first round; with `read_tokens` it says how the model counts"""
    read_tokens: int | None = None
    """the input tokens of the first round; None: there was none yet"""


# Two statements in one trip, and so in one transaction. The locks come first and by themselves: the
# second statement then sees what the user's other requests have committed while it waited. Always
# the user's before the session's, so that two requests cannot wait for each other.
_ADMIT = """
SELECT pg_advisory_xact_lock(hashtextextended('omni2 usage of ' || person.id::text, 0)),
       pg_advisory_xact_lock(hashtextextended('omni2 session ' || %(session)s, 0))
FROM ({person}) AS person WHERE person.problem IS NULL;
WITH person AS ({person}), {noted}, {facts},
session AS (
    SELECT %(continued)s AND (
        EXISTS (SELECT FROM conversations WHERE session_id = %(session)s::uuid AND user_id <> person.id)
        -- a refused turn makes no conversation, but its session is its user's all the same
        OR EXISTS (SELECT FROM turns WHERE session_id = %(session)s AND user_id <> person.email)
    ) AS is_foreign FROM person
),
block AS (SELECT message, reason FROM user_blocks JOIN person ON person.id = user_blocks.user_id){choice},
verdict AS (
    SELECT CASE
        WHEN person.problem IS NOT NULL THEN 'nobody'
        WHEN session.is_foreign THEN 'not_his_session'
        WHEN EXISTS (SELECT FROM block) THEN 'blocked'
        {no_such_model}
        {judged}
        WHEN NOT %(reserve)s OR person.email LIKE %(but_not)s THEN 'not_now'
        ELSE 'admitted'
    END AS word
    FROM person, session, used, allowed{model}
),
counted AS (
    INSERT INTO daily_usage (user_id, day, requests, input_tokens, output_tokens, cost_usd)
    SELECT person.id, clock.day, 1, 0, 0, 0 FROM person, clock, verdict WHERE word = 'admitted'
    ON CONFLICT (user_id, day) DO UPDATE SET requests = daily_usage.requests + 1
),
slot AS (
    INSERT INTO turn_usage (turn_id, user_id, session_id, day, process_id)
    SELECT %(turn)s::uuid, person.id, %(session)s::uuid, clock.day, %(process)s::uuid
    FROM person, clock, verdict WHERE word = 'admitted'
),
conversation AS (
    INSERT INTO conversations (session_id, user_id, title)
    SELECT %(session)s::uuid, person.id, %(title)s FROM person, verdict WHERE word = 'admitted'
    ON CONFLICT (session_id) DO UPDATE SET updated_at = now()
),
question AS (
    INSERT INTO messages (conversation_id, role, content, turn_id)
    SELECT %(session)s::uuid, 'user', %(message)s, %(turn)s::uuid FROM verdict WHERE word = 'admitted'
)
SELECT {identity}, session.is_foreign,
    -- the statement does not see its own question
    CASE WHEN verdict.word = 'admitted' AND %(continued)s THEN ({earlier}) END,
    verdict.word, block.message, block.reason, {chosen}, {numbers}
FROM person CROSS JOIN session CROSS JOIN verdict CROSS JOIN used CROSS JOIN allowed CROSS JOIN clock{cross_model}
LEFT JOIN block ON true
"""

# Totals, not differences: charging twice what was charged before adds nothing. A turn that was
# closed (by its end or by the sweep) is not charged any more.
_CHARGE = """
WITH before AS (
    SELECT turn_id, user_id, session_id, day, input_tokens, output_tokens, cost_usd,
           GREATEST(input_tokens, %(input_tokens)s) AS input_now,
           GREATEST(output_tokens, %(output_tokens)s) AS output_now,
           GREATEST(cost_usd, %(cost_usd)s) AS cost_now
    FROM turn_usage WHERE turn_id = %(turn)s::uuid AND ended_at IS NULL FOR UPDATE
),
turn AS (
    UPDATE turn_usage SET input_tokens = input_now, output_tokens = output_now, cost_usd = cost_now,
           read_characters = GREATEST(read_characters, %(read_characters)s),
           read_tokens = GREATEST(read_tokens, %(read_tokens)s),
           ended_at = CASE WHEN %(ended)s THEN clock_timestamp() END
    FROM before WHERE turn_usage.turn_id = before.turn_id
),
answer AS (
    INSERT INTO messages (conversation_id, role, content, turn_id)
    SELECT session_id, 'assistant', %(answer)s, turn_id FROM before WHERE %(answer)s <> ''
        -- not into a conversation that was deleted meanwhile, nor into one that began anew since
        AND (SELECT true FROM messages AS asked
             WHERE asked.conversation_id = before.session_id AND asked.turn_id = before.turn_id
             ORDER BY asked.id DESC LIMIT 1)
)
UPDATE daily_usage SET
    input_tokens = daily_usage.input_tokens + input_now - before.input_tokens,
    output_tokens = daily_usage.output_tokens + output_now - before.output_tokens,
    cost_usd = daily_usage.cost_usd + cost_now - before.cost_usd
FROM before WHERE daily_usage.user_id = before.user_id AND daily_usage.day = before.day
"""


# What `admit` wrote for a turn that never began. The conversation goes too if it began with this question.
_WITHDRAW = """
WITH gone AS (
    DELETE FROM turn_usage WHERE turn_id = %(turn)s::uuid AND ended_at IS NULL RETURNING user_id, session_id, day
),
question AS (
    DELETE FROM messages USING gone WHERE messages.turn_id = %(turn)s::uuid
),
conversation AS (
    DELETE FROM conversations USING gone
    WHERE conversations.session_id = gone.session_id AND NOT EXISTS (
        SELECT FROM messages AS other
        WHERE other.conversation_id = gone.session_id AND other.turn_id IS DISTINCT FROM %(turn)s::uuid)
)
UPDATE daily_usage SET requests = daily_usage.requests - 1
FROM gone WHERE daily_usage.user_id = gone.user_id AND daily_usage.day = gone.day
"""


def admit(
    credential: Credential,
    *,
    session_id: str,
    continued: bool,
    turn_id: str,
    process_id: str,
    message: str,
    reserve: bool,
    but_not: str = "",
    model: str | None = None,
    environment_model: str = "",
) -> Admitted | None:
    """Find out who asks, judge his request and, when it is let in, reserve it and read what was said before: all in
    one trip to PostgreSQL. None: nobody has that credential.

    Let in means: the request is counted, the turn holds one of the user's slots until it is
    charged as ended, and conversation and question are kept. Otherwise nothing is written, but that a token was used.
    `continued`: the client named the session itself, so it has to be his. `reserve` false, or a user_id
    like `but_not`: judge only, and answer `not_now` where it would have been let in.
    `model`: the name of one of the catalogue, "" for whichever answers him; None leaves the catalogue out.
    """
    wanted = limits.asked(usage_limits(), limits.in_use.asked)
    with connection.cursor() as cursor:
        # Works because Django binds parameters on the client, so several statements make one query.
        cursor.execute(
            _admitting(credential.person, model is not None, wanted),
            {
                **about_everybody(),
                **credential.parameters,
                "session": session_id,
                "continued": continued,
                "turn": turn_id,
                "process": process_id,
                "message": message,
                "title": " ".join(message[: TITLE_CHARACTERS * 2].split())[:TITLE_CHARACTERS],
                "reserve": reserve,
                "but_not": but_not,
                "model": model,
                "environment_model": environment_model,
            },
        )
        cursor.nextset()
        row = cursor.fetchone()
    if row is None:
        return None
    who, (is_foreign, earlier, word, block_message, block_reason, chosen, *numbers) = row[:6], row[6:]
    identity = credential.identity(who)
    if identity.problem is not None:
        return Admitted(identity, None, is_foreign)
    verdict = Verdict(word, limits.read(wanted, numbers), block_message or "", block_reason or "")
    return Admitted(identity, verdict, is_foreign, Earlier.of(earlier), _choice(chosen))


def _choice(chosen: Any) -> Choice | None:
    if chosen is None:
        return None
    model, version, groups, prompts, servers = json.loads(chosen) if isinstance(chosen, str) else chosen
    offered = tuple((pk, row, allowed) for pk, row, allowed in servers or ())
    return Choice(model, version or "", tuple(groups or ()), tuple(prompts or ()), offered)


@cache
def _admitting(person: str, chooses: bool, wanted: Asked) -> str:
    # where there is nothing to choose from, the choice costs nothing either
    choosing = {
        "choice": _CHOICE.format(may_use=offered_to(LanguageModel, "m", "person.id")) if chooses else "",
        "no_such_model": "WHEN model.is_missing THEN 'no_such_model'" if chooses else "",
        "model": ", model" if chooses else "",
        "cross_model": " CROSS JOIN model" if chooses else "",
        "chosen": _CHOSEN.format(may_use=offered_to(ToolServer, "s", "person.id")) if chooses else "NULL",
    }
    return _ADMIT.format(
        person=person,
        noted=NOTED,
        facts=limits.facts(wanted),
        judged=limits.judged(wanted),
        identity=IDENTITY,
        earlier=EARLIER,
        numbers=limits.numbers(wanted),
        **choosing,
    )


def about_everybody() -> dict[str, Any]:
    """The parameters of chat.limits: what is in force for all."""
    defaults = usage_limits()
    return {
        "zone": settings.USAGE_TZ,
        "slot_lifetime_s": SLOT_LIFETIME_S,
        **{name: getattr(defaults, name) for name in LIMITS},
    }


def charge(turn_id: str, totals: Totals, *, ended: bool = False, answer: str = "") -> None:
    """Bring the turn's usage, and its user's of that day, up to these totals. One statement.

    `ended` closes the turn and frees its slot; the answer is kept with it. Doing it again, or
    with smaller totals, changes nothing.
    """
    with connection.cursor() as cursor:
        _charge(cursor, turn_id, totals, ended=ended, answer=answer)


def _charge(cursor: CursorWrapper, turn_id: str, totals: Totals, *, ended: bool, answer: str) -> None:
    cursor.execute(
        _CHARGE,
        {
            "turn": turn_id,
            "input_tokens": totals.input_tokens,
            "output_tokens": totals.output_tokens,
            "cost_usd": totals.cost_usd,
            "read_characters": totals.read_characters,
            "read_tokens": totals.read_tokens or 0,
            "ended": ended,
            "answer": answer,
        },
    )


def withdraw(turn_id: str) -> bool:
    """Undo `admit` for a turn that never began, as if it had not been asked; False when there is nothing to
    undo. One statement."""
    with connection.cursor() as cursor:
        cursor.execute(_WITHDRAW, {"turn": turn_id})
        return bool(cursor.rowcount)


def settle_abandoned(turn_id: str, rounds: Iterable[Mapping[str, Any]]) -> None:
    """Charge a turn whose process died, and free its slot. Idempotent, one statement.

    `rounds` is the metadata of the turn's `llm_complete` checkpoints, as far as they were kept:
    what the process had charged before it died is not charged again.
    """
    known = list(rounds)
    charge(
        turn_id,
        Totals(
            input_tokens=sum(_count(each.get("input_tokens")) for each in known),
            output_tokens=sum(_count(each.get("output_tokens")) for each in known),
            cost_usd=sum((_money(each.get("cost_usd")) for each in known), Decimal(0)),
        ),
        ended=True,
    )


def left_unsettled(before: datetime, later_s: float) -> list[tuple[Any, ...]]:
    """(turn_id, process_id) of turns that hold a slot though their process ended more than `later_s` before,
    and though history has their end, or nothing of them at all. One query over the open slots.

    Such a process died between a turn's end and its charge, or before anything of the turn was acknowledged."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT u.turn_id, u.process_id FROM turn_usage u JOIN serving_processes p USING (process_id)"
            " LEFT JOIN turns t USING (turn_id)"
            " WHERE u.ended_at IS NULL AND p.ended_at < %s - make_interval(secs => %s)"
            " AND (t.turn_id IS NULL OR t.outcome IS NOT NULL) LIMIT 500",
            [before, later_s],
        )
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows


def _count(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else 0


def _money(value: Any) -> Decimal:
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        return Decimal(0)
    return amount if amount.is_finite() and amount > 0 else Decimal(0)


def usage_of(user_pk: int) -> dict[str, Limit]:
    """What a user may use, and has used of it, by the limits' names: all of them. One query, nothing is written."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"WITH person AS (SELECT %(user)s::bigint AS id), {limits.facts(EVERYTHING)}"  # noqa: S608 - constants
            f" SELECT {limits.numbers(EVERYTHING)} FROM used CROSS JOIN allowed CROSS JOIN clock",
            {**about_everybody(), "user": user_pk},
        )
        return limits.read(EVERYTHING, cursor.fetchone())
