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

from django.db import connection
from django.db.models import Q

from chat.demonstration import is_demonstration
from chat.models import LanguageModel
from chat.scripted_model import SCRIPTED
from chat.wanted import wanted_model

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

    @property
    def enabled(self) -> bool:
        return bool(self.row["enabled"])


def entry_of(model: LanguageModel) -> Entry:
    """A row as an entry, also one that is not stored as it is."""
    return Entry(MappingProxyType({name: getattr(model, name) for name in _COLUMNS}), version="")


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

    @property
    def entries(self) -> Mapping[int, Entry]:
        """All rows by their key, as last read: another object after each reading."""
        return self._entries

    def known(self, pk: int | None) -> Entry | None:
        """The entry as it was last read; no query."""
        return self._entries.get(pk) if pk is not None else None

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


def models_for(user: Any) -> list[dict[str, Any]]:
    """What this user may name as `model`, by name: `{"name", "description", "is_default", "takes_tools", "is_local",
    "is_scripted"}`. One of them is the one that answers when he names none, unless nothing is offered to him.

    Three queries at most. The rule is that of the statement that lets a turn in (chat.usage)."""
    ours = wanted_model(user.user_id)
    if is_demonstration(user.user_id):
        return [_environments(ours.name, ours.provider, is_default=True)]
    groups = list(user.groups.values_list("pk", flat=True))
    to_all = Q(groups__isnull=True, users__isnull=True)
    rows = LanguageModel.objects.filter(to_all | Q(groups__in=groups) | Q(users=user.pk), enabled=True)
    offered = list(rows.distinct().order_by("-is_default", "name"))
    has_default = LanguageModel.objects.filter(enabled=True, is_default=True).exists()
    found = [
        {
            "name": row.name,
            "description": row.description,
            "is_default": has_default and row is offered[0],
            "takes_tools": row.takes_tools,
            "is_local": False,
            "is_scripted": bool(row.base_url) and row.model.startswith(SCRIPTED),
        }
        for row in offered
    ]
    # without a default that of the environment answers; one of the catalogue that has its name hides it
    if not has_default and all(each["name"] != ours.name for each in found):
        found.append(_environments(ours.name, ours.provider, is_default=True))
    return sorted(found, key=lambda each: str(each["name"]))


def _environments(name: str, provider: str, *, is_default: bool) -> dict[str, Any]:
    """The model that LLM_MODEL names, or that of a demonstration."""
    return {
        "name": name,
        "description": "",
        "is_default": is_default,
        "takes_tools": provider != "local",
        "is_local": provider == "local",
        "is_scripted": provider == SCRIPTED,
    }
