"""Where a user's limits come from, and everybody's usage a page at a time: for the admin, the API and the page.

What is in force is said by the same SQL that lets turns in (chat.limits); here it is only looked at.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from django.db import connection

from chat import limits
from chat.limits import EVERYTHING, LIMITS, Limit
from chat.models import GroupLimits, UserLimits
from chat.standing import NEAR
from chat.usage import about_everybody, usage_of
from flows.history import wire_time
from omni2.accounts.access import record_access
from omni2.accounts.models import User

VIEW = "chat.view_dailyusage"
"""The right to see what others use."""

LOOKED = "usage_opened"
OWN, DEFAULT = "own", "default"
State = Literal["ok", "near", "over"]


@dataclass(frozen=True, slots=True)
class Allowance:
    """One limit of one user, how much of it is used, and who has set it."""

    name: str
    limit: Limit
    source: str = ""
    """`own`, `default`, or `group` and the group's name"""

    @property
    def state(self) -> State:
        """`over` when nothing is left of it, `near` from four fifths on."""
        used, most = self.limit.used, self.limit.limit
        if most is None or used < NEAR * most:
            return "ok"
        return "over" if used >= most else "near"

    def as_wire(self) -> dict[str, Any]:
        """As the API has it."""
        limit = self.limit
        return {
            "limit_name": self.name,
            "window": LIMITS[self.name].window,
            "used": limit.used,
            "limit": limit.limit,
            "remaining": limit.remaining,
            "resets_at": None if limit.resets_at is None else wire_time(limit.resets_at),
        }


def note_look(reader: User, subject: User | None = None, **filters: Any) -> None:
    """One line of the access log for a look at another's usage, or, without a subject, at everybody's; nothing for
    one's own."""
    if subject is None or subject.pk != reader.pk:
        detail = {"opened": "usage" if subject else "everybody's usage", **{k: v for k, v in filters.items() if v}}
        record_access(actor=reader, action=LOOKED, subject_user_id=subject.user_id if subject else None, detail=detail)


def allowances_of(user: User) -> list[Allowance]:
    """All limits of a user. Three queries."""
    numbers, own = usage_of(user.pk), UserLimits.objects.filter(user=user).first()
    groups = list(GroupLimits.objects.filter(group__in=user.groups.all()).select_related("group"))
    return [Allowance(name, numbers[name], _source(name, own, groups)) for name in IN_ORDER]


IN_ORDER = tuple(
    name for window in ("minute", "day", "month", "now") for name, kind in LIMITS.items() if kind.window == window
)
"""As people read them: the shortest time first."""


def _source(name: str, own: UserLimits | None, groups: Iterable[GroupLimits]) -> str:
    unlimited = LIMITS[name].unlimited
    if own is not None and (getattr(own, name) is not None or getattr(own, unlimited)):
        return OWN
    lifting = [each for each in groups if getattr(each, name) is None and getattr(each, unlimited)]
    saying = lifting or [each for each in groups if getattr(each, name) is not None]
    if not saying:
        return DEFAULT
    return f"group {max(saying, key=lambda each: getattr(each, name) or 0).group.name}"


# --- everybody -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Person:
    """One user of the list of all."""

    user_id: str
    name: str
    allowances: list[Allowance]
    """those of the window that was asked for"""

    @property
    def state(self) -> State:
        """The worst of his limits."""
        states = {each.state for each in self.allowances}
        return "over" if "over" in states else "near" if "near" in states else "ok"


_EVERYBODY = """
SELECT listed.email, listed.name, numbers.*
FROM (
    SELECT id, email, name FROM users
    WHERE email > %(after)s AND (%(words)s = '' OR email ILIKE %(like)s OR name ILIKE %(like)s)
      AND (NOT %(only_near)s OR EXISTS (SELECT FROM daily_usage WHERE user_id = users.id
                                        AND day >= (now() AT TIME ZONE %(zone)s)::date - 31))
    ORDER BY email {first}
) AS listed
CROSS JOIN LATERAL (
    WITH person AS (SELECT listed.id AS id), {facts}
    SELECT {numbers} FROM used CROSS JOIN allowed CROSS JOIN clock
    WHERE NOT %(only_near)s OR {near}
) AS numbers
ORDER BY listed.email LIMIT %(most)s
"""


def everybody(
    window: Literal["day", "month"], *, after: str = "", words: str = "", only_near: bool = False, most: int = 50
) -> tuple[list[Person], bool]:
    """What users have used of the window's limits, by user_id from `after` on, and whether there are more. One query.

    `words`: a part of the name or the e-mail address. `only_near`: those who have used four fifths of one of them."""
    chosen = [name for name in IN_ORDER if LIMITS[name].window == window]
    near = " OR ".join(f"used.{name} >= {NEAR} * allowed.{name}" for name in chosen)
    query = _EVERYBODY.format(
        facts=limits.facts(EVERYTHING),
        numbers=_named(limits.numbers(EVERYTHING)),
        near=f"({near})",
        # without a condition on the numbers they are reckoned for one page alone
        first="" if only_near else "LIMIT %(most)s",
    )
    escaped = words.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
    asked: dict[str, Any] = {
        "after": after,
        "words": words,
        "like": f"%{escaped}%",
        "only_near": only_near,
        "most": most + 1,
    }
    with connection.cursor() as cursor:
        cursor.execute(query, {**about_everybody(), **asked, "most": most + 1})
        rows = cursor.fetchall()
    found = []
    for email, name, *numbers in rows[:most]:
        standing = limits.read(EVERYTHING, numbers)
        found.append(Person(email, name, [Allowance(each, standing[each]) for each in chosen]))
    return found, len(rows) > most


def _named(columns: str) -> str:
    """A subquery's columns need names of their own."""
    return ", ".join(f"{column} AS c{number}" for number, column in enumerate(columns.split(", ")))
