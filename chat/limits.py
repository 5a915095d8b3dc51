"""Which limits there are, and the SQL that finds out what a user may use and has used of each.

A part of the statement that lets a turn in (chat.usage.admit) and of those that only look. What nobody has set is
left out of it: where there are limits of a day alone, the statement knows no minute, no month and no groups.

    a user's own number, else the most generous of his groups' (no limit goes before any number), else the default
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache, lru_cache
from typing import Any, Literal, NamedTuple

from chat.models import BEYOND_THE_DAY
from monitoring.config import UsageLimits

Window = Literal["month", "day", "minute", "now"]


class Kind(NamedTuple):
    """One limit: over which time, and what lifts it."""

    name: str
    window: Window
    unlimited: str
    sql_type: str
    used: str
    """SQL of how much is used"""


# In the order in which they are judged: of several that are reached, the one that holds longest is named.
KINDS = (
    Kind("requests_per_month", "month", "requests_unlimited", "bigint", "COALESCE(month.requests, 0)"),
    Kind("tokens_per_month", "month", "tokens_unlimited", "bigint", "COALESCE(month.tokens, 0)"),
    Kind("cost_usd_per_month", "month", "cost_unlimited", "numeric", "COALESCE(month.cost_usd, 0)"),
    Kind("requests_per_day", "day", "requests_unlimited", "bigint", "COALESCE(today.requests, 0)"),
    Kind(
        "tokens_per_day", "day", "tokens_unlimited", "bigint", "COALESCE(today.input_tokens + today.output_tokens, 0)"
    ),
    Kind("cost_usd_per_day", "day", "cost_unlimited", "numeric", "COALESCE(today.cost_usd, 0)"),
    Kind("requests_per_minute", "minute", "requests_unlimited", "bigint", "asked.requests"),
    Kind("tokens_per_minute", "minute", "tokens_unlimited", "bigint", "spent.tokens"),
    Kind(
        "turns_at_once",
        "now",
        "turns_unlimited",
        "bigint",
        """(SELECT count(*) FROM turn_usage
         WHERE user_id = person.id AND ended_at IS NULL
           AND started_at > now() - make_interval(secs => %(slot_lifetime_s)s))""",
    ),
)
LIMITS = {kind.name: kind for kind in KINDS}
ALWAYS = frozenset(LIMITS) - frozenset(BEYOND_THE_DAY)
"""These cost nothing: their numbers lie in rows that are read in any case."""


class Limit(NamedTuple):
    """How much of one limit is used; no limit is None."""

    used: float
    limit: float | None
    resets_at: datetime | None = None
    """when something of it is free again; None: as soon as a turn ends"""
    seconds_to_reset: int = 0

    @property
    def remaining(self) -> float | None:
        return None if self.limit is None else max(0, self.limit - self.used)


class Asked(NamedTuple):
    """Which parts a statement has."""

    groups: bool
    names: frozenset[str]
    """of the limits"""


EVERYTHING = Asked(True, frozenset(LIMITS))


class InUse:
    """What users and groups have limits of, besides those that are always looked at; a second old at most.

    Until the watch list has said it, everything counts as used: that is slower, and never wrong."""

    def __init__(self) -> None:
        self.asked = EVERYTHING

    def hear(self, value: object) -> None:
        """What the watch list read (FOLLOWED): whether any group has limits, and the names somebody has a number of."""
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], list):
            self.asked = Asked(bool(value[0]), frozenset(name for name in value[1] if name in LIMITS))


in_use = InUse()

_SET = " UNION ".join(
    f"SELECT '{name}' AS name WHERE EXISTS (SELECT FROM user_limits WHERE {name} IS NOT NULL)"  # noqa: S608 - constants
    f" OR EXISTS (SELECT FROM group_limits WHERE {name} IS NOT NULL)"
    for name in BEYOND_THE_DAY
)
FOLLOWED = f"""
SELECT jsonb_build_array(EXISTS (SELECT FROM group_limits),
                         (SELECT coalesce(jsonb_agg(name ORDER BY name), '[]') FROM ({_SET}) AS set))"""  # noqa: S608 - constants


@lru_cache(maxsize=64)
def asked(defaults: UsageLimits, used: Asked) -> Asked:
    """Which parts the admitting statement needs, with these defaults and what users and groups have set."""
    by_default = {name for name in BEYOND_THE_DAY if getattr(defaults, name) is not None}
    return Asked(used.groups, ALWAYS | used.names | by_default)


@cache
def kinds(wanted: Asked) -> tuple[Kind, ...]:
    """The limits of a statement, in the order of its columns."""
    return tuple(kind for kind in KINDS if kind.name in wanted.names)


# --- the statement -------------------------------------------------------------------------------------

_CLOCK = """
clock AS (
    SELECT today.day, (today.day + 1)::timestamp AT TIME ZONE %(zone)s AS resets_at{month}
    FROM (SELECT (now() AT TIME ZONE %(zone)s)::date AS day) AS today
)"""
_CLOCK_MONTH = """,
        date_trunc('month', today.day::timestamp)::date AS month,
        (date_trunc('month', today.day::timestamp) + interval '1 month') AT TIME ZONE %(zone)s AS month_resets_at"""

_GRANTED = """
    CROSS JOIN LATERAL (
        SELECT {columns}
        FROM group_limits AS theirs JOIN users_groups AS his ON his.group_id = theirs.group_id
        WHERE his.user_id = person.id
    ) AS granted"""

# A month's rows of a user are thirty-one at most, and found by their key.
_MONTH = """
    CROSS JOIN LATERAL (
        SELECT sum(requests)::bigint AS requests, sum(input_tokens + output_tokens)::bigint AS tokens,
               sum(cost_usd) AS cost_usd
        FROM daily_usage WHERE user_id = person.id AND day BETWEEN clock.month AND clock.day
    ) AS month"""

# A request belongs to the minute in which it came. It is free again when so many have left that there is room,
# or else when the oldest leaves.
_ASKED = """
    CROSS JOIN LATERAL (
        SELECT count(*) AS requests FROM turn_usage
        WHERE user_id = person.id AND started_at > now() - interval '60 s'
    ) AS asked
    CROSS JOIN LATERAL (
        SELECT COALESCE((
            SELECT started_at FROM turn_usage WHERE user_id = person.id AND started_at > now() - interval '60 s'
            ORDER BY started_at LIMIT 1
            OFFSET GREATEST(asked.requests - COALESCE(allowed.requests_per_minute, asked.requests), 0)
        ), now()) + interval '60 s' AS resets_at
    ) AS asked_until"""

# Tokens belong to the minute in which their turn ended, and to this one while it runs: a turn of two minutes that is
# charged at its end would else never count. What runs leaves a minute from now at the earliest.
_SPENT = """
    CROSS JOIN LATERAL (
        SELECT COALESCE(sum(tokens), 0)::bigint AS tokens,
               COALESCE(min(ended_at) FILTER (WHERE tokens > 0 AND (
                   allowed.tokens_per_minute IS NULL OR newer < allowed.tokens_per_minute
               )), now()) + interval '60 s' AS resets_at
        FROM (
            SELECT tokens, ended_at, sum(tokens) OVER (ORDER BY ended_at DESC NULLS FIRST) - tokens AS newer FROM (
                SELECT input_tokens + output_tokens AS tokens, ended_at FROM turn_usage
                WHERE user_id = person.id AND ended_at > now() - interval '60 s'
                UNION ALL
                SELECT input_tokens + output_tokens, NULL FROM turn_usage
                WHERE user_id = person.id AND ended_at IS NULL
                  AND started_at > now() - make_interval(secs => %(slot_lifetime_s)s)
            ) AS turn
        ) AS turn
    ) AS spent"""


@cache
def facts(wanted: Asked) -> str:
    """The CTEs `clock`, `allowed` and `used` of a `person`: the day by PostgreSQL's clock in the configured zone, the
    user's limits (NULL is none), and what he used of them."""
    return f"{_clock(wanted)},{_allowed(wanted)},{_used(wanted)}"


def _clock(wanted: Asked) -> str:
    return _CLOCK.format(month=_CLOCK_MONTH if "month" in _windows(wanted) else "")


def _allowed(wanted: Asked) -> str:
    numbers = ",\n        ".join(_number_of(kind, groups=wanted.groups) for kind in kinds(wanted))
    groups = _GRANTED.format(columns=", ".join(map(_granted, kinds(wanted)))) if wanted.groups else ""
    own = "LEFT JOIN user_limits AS own ON own.user_id = person.id"
    return f"\nallowed AS (\n    SELECT\n        {numbers}\n    FROM person {own}{groups}\n)"


def _granted(kind: Kind) -> str:
    """SQL of the most generous of his groups' numbers, and whether one of them lifts the limit."""
    lifted = f"bool_or(theirs.{kind.unlimited} AND theirs.{kind.name} IS NULL)"
    return f"{lifted} AS {kind.name}_lifted, max(theirs.{kind.name}) AS {kind.name}"


def _number_of(kind: Kind, *, groups: bool) -> str:
    """SQL of what he may use of one limit."""
    name, lifted, number = kind.name, f"own.{kind.unlimited}", f"%({kind.name})s"
    if groups:
        lifted, number = f"{lifted} OR granted.{name}_lifted", f"COALESCE(granted.{name}, {number})"
    value = f"CASE WHEN own.{name} IS NOT NULL THEN own.{name} WHEN {lifted} THEN NULL ELSE {number} END"
    return f"{value}::{kind.sql_type} AS {name}"


def _used(wanted: Asked) -> str:
    sources = ""
    if "minute" in _windows(wanted):
        sources += " CROSS JOIN allowed"
    sources += "\n    LEFT JOIN daily_usage AS today ON today.user_id = person.id AND today.day = clock.day"
    if "month" in _windows(wanted):
        sources += _MONTH
    if "requests_per_minute" in wanted.names:
        sources += _ASKED
    if "tokens_per_minute" in wanted.names:
        sources += _SPENT
    amounts = ",\n        ".join(f"{kind.used} AS {kind.name}" for kind in kinds(wanted))
    resets = "".join(f",\n        {value} AS {window}_resets_at" for window, value in _resets(wanted).items())
    return f"\nused AS (\n    SELECT\n        {amounts}{resets}\n    FROM person CROSS JOIN clock{sources}\n)"


def _windows(wanted: Asked) -> set[Window]:
    return {kind.window for kind in kinds(wanted)}


def _resets(wanted: Asked) -> dict[str, str]:
    """SQL of when something is free again, by what it is about: a window, or one of the two limits of a minute."""
    known = {
        "day": "clock.resets_at",
        "month": "clock.month_resets_at",
        "requests_per_minute": "asked_until.resets_at",
        "tokens_per_minute": "spent.resets_at",
    }
    needed = {_resets_with(kind) for kind in kinds(wanted)}
    return {what: value for what, value in known.items() if what in needed}


def _resets_with(kind: Kind) -> str:
    return kind.name if kind.window == "minute" else kind.window


@cache
def judged(wanted: Asked) -> str:
    """The WHENs of a CASE that names the limit that is reached."""
    return "\n        ".join(
        f"WHEN used.{kind.name} >= allowed.{kind.name} THEN '{kind.name}'" for kind in kinds(wanted)
    )


@cache
def numbers(wanted: Asked) -> str:
    """The columns that `read` understands."""
    pairs = [f"used.{kind.name}, allowed.{kind.name}" for kind in kinds(wanted)]
    return ", ".join(["now()", *pairs, *(f"used.{what}_resets_at" for what in _resets(wanted))])


def read(wanted: Asked, row: Sequence[Any]) -> dict[str, Limit]:
    """The limits, by name, of those columns."""
    now, chosen = row[0], kinds(wanted)
    amounts = row[1 : 1 + 2 * len(chosen)]
    resets = dict(zip(_resets(wanted), row[1 + 2 * len(chosen) :], strict=True))
    found = {}
    for kind, used, limit in zip(chosen, amounts[::2], amounts[1::2], strict=True):
        at = resets.get(_resets_with(kind))
        number = None if limit is None else _number(limit)
        if at is None:
            found[kind.name] = Limit(_number(used), number)
        else:
            seconds = max(1, math.ceil((at - now).total_seconds()))
            found[kind.name] = Limit(_number(used), number, at.astimezone(UTC), seconds)
    return found


def _number(value: Any) -> float:
    return float(value) if isinstance(value, Decimal) else int(value)
