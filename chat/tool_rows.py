"""The rows of `tool_servers` in memory, as PostgreSQL had them a moment ago, and their secrets on the way in and out.

Who may use which is not decided by what is remembered here: the statement that lets a turn in says it (chat.usage),
and PostgreSQL is asked again before each call (`still_allowed`).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from threading import Lock
from types import MappingProxyType
from typing import Any

from django.db import connection

from chat.models import ToolServer
from chat.offered import offered_to
from omni2.sealing import CannotOpen, seal, unseal

_COLUMNS = (
    "id",
    "name",
    "transport",
    "url",
    "command",
    "arguments",
    "sealed_headers",
    "sealed_environment",
    "timeout_s",
    "enabled",
    "allowed_tools",
    "approved_tools",
    "problem",
    "tools",
)


@dataclass(frozen=True, slots=True)
class ServerRow:
    """One tool server as it was read; `version` is the xmin of its row."""

    pk: int
    version: str
    name: str
    transport: str
    url: str
    command: str
    arguments: tuple[str, ...]
    sealed_headers: str
    sealed_environment: str
    timeout_s: float
    enabled: bool
    allowed_tools: frozenset[str]
    """empty: all"""
    approved_tools: frozenset[str]
    problem: str
    tools: tuple[Mapping[str, Any], ...]
    """what it listed when it was last checked"""

    @classmethod
    def of(cls, version: str, values: Mapping[str, Any]) -> "ServerRow":
        lists = {
            name: _texts(values[name]) for name in ("arguments", "allowed_tools", "approved_tools")
        }  # JSON columns: whatever an ORM script may have put there
        listed = _json(values["tools"])
        return cls(
            pk=values["id"],
            version=version,
            name=values["name"],
            transport=values["transport"],
            url=values["url"],
            command=values["command"],
            arguments=lists["arguments"],
            sealed_headers=values["sealed_headers"],
            sealed_environment=values["sealed_environment"],
            timeout_s=float(values["timeout_s"] or 30),
            enabled=values["enabled"],
            allowed_tools=frozenset(lists["allowed_tools"]),
            approved_tools=frozenset(lists["approved_tools"]),
            problem=values["problem"],
            tools=tuple(each for each in listed if isinstance(each, dict)) if isinstance(listed, list) else (),
        )

    @property
    def address(self) -> tuple[Any, ...]:
        """What a connection depends on: while it stays, a changed row needs no other connection."""
        program = (self.command, self.arguments, self.sealed_environment)
        return (self.name, self.transport, self.url, self.sealed_headers, *program)

    def headers(self) -> dict[str, str]:
        """Raises omni2.sealing.CannotOpen."""
        return open_pairs(self.sealed_headers)

    def environment(self) -> dict[str, str]:
        """Raises omni2.sealing.CannotOpen."""
        return open_pairs(self.sealed_environment)


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _texts(value: Any) -> tuple[str, ...]:
    found = _json(value)
    return tuple(each for each in found if isinstance(each, str)) if isinstance(found, list) else ()


def seal_pairs(pairs: Mapping[str, str]) -> str:
    """Names and secret values, as the table keeps them."""
    return seal(json.dumps(pairs)) if pairs else ""


def open_pairs(sealed: str) -> dict[str, str]:
    """The pairs again. Raises omni2.sealing.CannotOpen."""
    try:
        pairs = json.loads(unseal(sealed) or "{}")
    except ValueError as problem:
        raise CannotOpen(str(problem)) from None
    return {str(name): str(value) for name, value in pairs.items()}


class ServerRows:
    """All rows as they were last read. Used by any number of threads."""

    def __init__(self) -> None:
        self._rows: Mapping[int, ServerRow] = MappingProxyType({})
        self._lock = Lock()

    def known(self) -> Mapping[int, ServerRow]:
        """By primary key."""
        return self._rows

    def has(self, versions: Iterable[tuple[int, str]]) -> bool:
        """Whether exactly these rows are known, in these versions. No I/O."""
        return {(row.pk, row.version) for row in self._rows.values()} == set(versions)

    def read(self) -> Mapping[int, ServerRow]:
        """Read all rows. One query."""
        with self._lock, connection.cursor() as cursor:
            cursor.execute(f"SELECT xmin::text, {', '.join(_COLUMNS)} FROM tool_servers")  # noqa: S608 - constants
            rows = {}
            for version, *values in cursor.fetchall():
                row = ServerRow.of(version, dict(zip(_COLUMNS, values, strict=True)))
                rows[row.pk] = row
            self._rows = MappingProxyType(rows)
        return self._rows


server_rows = ServerRows()

# Whether a user may use a server now; %s: the server, the user.
_STILL = f"""
SELECT s.enabled, u.is_active, s.allowed_tools, s.approved_tools, {offered_to(ToolServer, "s", "u.id")}
FROM tool_servers AS s, users AS u WHERE s.id = %s AND u.email = %s
"""  # noqa: S608 - names of our own


@dataclass(frozen=True, slots=True)
class Right:
    """What a user may do with one tool at this moment. `refusal`: why he may not; empty: he may."""

    refusal: str
    needs_approval: bool


def still_allowed(server: int, tool: str, user_id: str) -> Right:
    """Whether this user may call this tool now, by what PostgreSQL has this moment. One query."""
    with connection.cursor() as cursor:
        cursor.execute(_STILL, [server, user_id])
        found = cursor.fetchone()
    if found is None:
        return Right("The tool server was removed.", needs_approval=False)
    enabled, active, allowed, approved, permitted = found
    only = _texts(allowed)
    if not enabled:
        refusal = "The tool server was switched off."
    elif not (active and permitted):
        refusal = "You may not use this tool server any more."
    elif only and tool not in only:
        refusal = "This tool is not allowed any more."
    else:
        refusal = ""
    return Right(refusal, needs_approval=tool in _texts(approved))
