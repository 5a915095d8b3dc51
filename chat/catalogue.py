"""The models of the catalogue, in memory: what each is, as the table had it a moment ago.

Who may use which is not kept here: the statement that lets a turn in asks the table itself (chat.usage.admit) and
says which row it chose and in which version. So a change counts at once, and what is remembered is only ever a
row's content. The watch list says when any row has changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from types import MappingProxyType
from typing import Any

from django.conf import settings
from django.db import connection

from chat import demonstration

# Changes whenever any row of these tables does, by whatever hand: xmin is the transaction that wrote a row.
FOLLOWED = """
SELECT md5(coalesce(string_agg(each, ',' ORDER BY each), '')) FROM (
    SELECT 'm' || id || ' ' || xmin::text AS each FROM language_models
    UNION ALL SELECT 's' || id || ' ' || xmin::text FROM tool_servers
    UNION ALL SELECT 'p' || id || ' ' || xmin::text FROM group_prompts
) AS rows"""

_COLUMNS = (
    "id",
    "name",
    "description",
    "model",
    "base_url",
    "key_variable",
    "sealed_key",
    "settings",
    "system_prompt",
    "history_tokens",
    "takes_tools",
    "input_usd_per_million",
    "output_usd_per_million",
    "first_token_timeout_s",
    "next_token_timeout_s",
    "attempts",
    "fallback_id",
    "enabled",
    "is_default",
)


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A row of `language_models`, and the version it was read in. Compared by identity: a changed row is another."""

    row: Mapping[str, Any]
    version: str

    @property
    def pk(self) -> int:
        return int(self.row["id"])

    @property
    def name(self) -> str:
        return str(self.row["name"])


class Catalogue:
    """The entries as they were last read. Used by any number of threads."""

    def __init__(self) -> None:
        self._entries: Mapping[int, Entry] = MappingProxyType({})
        self._groups_count = False
        self._lock = Lock()

    @property
    def is_empty(self) -> bool:
        """Whether there is no model to choose from but the one of the environment; a second old at most."""
        return not self._entries

    @property
    def is_asked(self) -> bool:
        """Whether a turn depends on it, or on its user's groups: there are models, tool servers or prompts."""
        return bool(self._entries) or self._groups_count

    def find(self, pk: int, version: str = "") -> Entry | None:
        """The entry in this version (any, if none is named). Two queries when it is not the one that is known."""
        known = self._entries.get(pk)
        if known is None or (version and known.version != version):
            self.read()
            known = self._entries.get(pk)
        return known

    def read(self) -> None:
        """Read all rows. Two queries; rows that did not change stay the same objects."""
        with self._lock, connection.cursor() as cursor:
            cursor.execute(f"SELECT xmin::text, {', '.join(_COLUMNS)} FROM language_models")  # noqa: S608 - constants
            found = {}
            for version, *values in cursor.fetchall():
                row = dict(zip(_COLUMNS, values, strict=True))
                known = self._entries.get(row["id"])
                same = known is not None and known.version == version
                found[row["id"]] = known if known is not None and same else Entry(MappingProxyType(row), version)
            cursor.execute("SELECT EXISTS (SELECT FROM tool_servers) OR EXISTS (SELECT FROM group_prompts)")
            (self._groups_count,) = cursor.fetchone()
            self._entries = MappingProxyType(found)


catalogue = Catalogue()


_OFFERED_TO = """
SELECT m.name, m.description, m.is_default, m.takes_tools FROM language_models AS m
WHERE m.enabled AND (
    NOT EXISTS (SELECT FROM language_models_groups WHERE languagemodel_id = m.id)
        AND NOT EXISTS (SELECT FROM language_models_users WHERE languagemodel_id = m.id)
    OR EXISTS (SELECT FROM language_models_users WHERE languagemodel_id = m.id AND user_id = %(user)s)
    OR EXISTS (SELECT FROM language_models_groups AS given JOIN users_groups AS his ON his.group_id = given.group_id
               WHERE given.languagemodel_id = m.id AND his.user_id = %(user)s))
ORDER BY m.is_default DESC, m.name"""


def models_for(user: Any) -> list[dict[str, Any]]:
    """What this user may ask for, the default first: `name`, `description`, `is_default`, `takes_tools`. Two queries.

    The model of the environment is among them where the catalogue has no default (as in chat.usage.admit)."""
    if demonstration.is_demonstration(user.user_id):
        return [_environment(demonstration.MODEL)]
    with connection.cursor() as cursor:
        cursor.execute(_OFFERED_TO, {"user": user.pk})
        names = ("name", "description", "is_default", "takes_tools")
        offered = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        cursor.execute("SELECT EXISTS (SELECT FROM language_models WHERE enabled AND is_default)")
        (has_default,) = cursor.fetchone()
    if has_default or any(each["name"] == settings.LLM_MODEL for each in offered):
        return offered
    return [_environment(settings.LLM_MODEL), *offered]


def _environment(name: str) -> dict[str, Any]:
    return {"name": name, "description": "", "is_default": True, "takes_tools": name != "local"}
