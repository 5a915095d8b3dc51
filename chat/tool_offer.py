"""What a turn offers its model: the built-in tools, and those of the tool servers its user may use.

Two checkpoints say it, children of usage_check: `mcp_permission_check` (which servers, and why not the others) and
`tool_filter` (which of their tools). They are written only where there is a tool server at all. Whether the user
may is what the statement that let him in said (chat.usage); PostgreSQL is asked again when the model calls.
"""

import hashlib
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.db import Error as DatabaseProblem

from chat import tools
from chat.checks import Admission, ms_since
from chat.tool_rows import ServerRow, server_rows
from chat.tool_servers import Connection, Listed, tool_servers
from chat.tools import Tool, ToolProblem
from chat.usage import Choice
from flows.checkpoints import Checkpoint
from flows.tracker import TurnTrack
from omni2.database import in_database

NAME_CHARACTERS = 64
"""of a tool, as providers take it: letters, digits, _ and -"""
SHOWN_AT_MOST = 60
"""names in a checkpoint; the numbers count all"""

OFF = "switched off"
NOT_HIS = "not for this user or his groups"
NO_TOOLS = "the model takes no tools"
NOT_YET = "has not answered yet"
NOT_ALLOWED = "not among its allowed tools"
TWICE = "listed twice"


@dataclass(frozen=True, slots=True)
class Withheld:
    """A server (tool empty) or a tool that is not offered, and why."""

    server: str
    tool: str
    reason: str

    def as_fact(self) -> dict[str, str]:
        return {"server": self.server, **({"tool": self.tool} if self.tool else {}), "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools of a turn by the names the model knows them by, and what it was not offered."""

    tools: Mapping[str, Tool]
    withheld: Mapping[str, Withheld] = field(default_factory=dict)
    """by the name the model would know a tool by, or the beginning of it (`server__`)"""

    def why_not(self, name: str) -> Withheld | None:
        """Why a tool is not offered that was asked for all the same; None: there is none of that name."""
        known = self.withheld.get(name)
        return known or self.withheld.get(name.partition("__")[0] + "__")


def builtin() -> dict[str, Tool]:
    """The built-in tools, unless OMNI2_BUILTIN_TOOLS says that there are none."""
    return dict(tools.TOOLS) if settings.BUILTIN_TOOLS else {}


async def make_offer(turn: TurnTrack, usage_check: Checkpoint, admission: Admission) -> Offer:
    """What this turn may use, written down. No I/O unless a tool server changed this moment (one query), and no
    waiting but for one nothing is known of (chat.tool_servers.FIRST_LIST_S, once)."""
    choice = admission.choice
    if choice is None or not choice.servers:
        return Offer(builtin())
    assert admission.model is not None
    started = time.monotonic()
    rows = await _rows(choice)
    permitted, withheld = _permitted(rows, choice)
    takes_tools = admission.model.takes_tools
    reached = {row.name: tool_servers().reach(row) for row in permitted} if takes_tools else {}
    await tool_servers().first_lists([each for each in reached.values() if _is_new(each)])
    for name, connection in list(reached.items()):
        if connection.known_tools() is None:
            why = f"out of reach: {connection.problem.rstrip('.')}" if connection.problem else NOT_YET
            withheld.append(Withheld(name, "", why))
            del reached[name]
    offered = list(reached) if takes_tools else [row.name for row in permitted]
    turn.record(
        "mcp_permission_check",
        usage_check,
        status="passed",
        offered=len(offered),
        total=len(choice.servers),
        servers=offered[:SHOWN_AT_MOST],
        withheld=_facts(withheld),
        duration_ms=ms_since(started),
    )
    started = time.monotonic()
    found, refused = _filter(reached.values())
    if takes_tools:
        found = builtin() | found
    else:
        refused = {name: Withheld(tool.server, name, NO_TOOLS) for name, tool in builtin().items()}
    _write_filter(turn, usage_check, found, refused, started)
    return Offer(found, {_prefix(each.server): each for each in withheld} | refused)


def _is_new(connection: Connection) -> bool:
    return connection.known_tools() is None and not connection.problem


async def _rows(choice: Choice) -> Mapping[int, ServerRow]:
    """The rows the admission saw, or fresher ones."""
    versions = [(pk, version) for pk, version, _ in choice.servers]
    if not server_rows.has(versions):
        try:
            return await in_database(server_rows.read)
        except DatabaseProblem:
            # what cannot be read is not offered
            known = server_rows.known()
            return {pk: known[pk] for pk, version in versions if pk in known and known[pk].version == version}
    return server_rows.known()


def _permitted(rows: Mapping[int, ServerRow], choice: Choice) -> tuple[list[ServerRow], list[Withheld]]:
    permitted, withheld = [], []
    for pk, _, allowed in choice.servers:
        row = rows.get(pk)
        if row is None:
            continue
        if not row.enabled:
            withheld.append(Withheld(row.name, "", OFF))
        elif not allowed:
            withheld.append(Withheld(row.name, "", NOT_HIS))
        elif row.transport == "stdio" and not settings.STDIO_TOOLS:
            withheld.append(Withheld(row.name, "", "programs are switched off here"))
        else:
            permitted.append(row)
    return permitted, withheld


def _filter(reached: Iterable[Connection]) -> tuple[dict[str, Tool], dict[str, Withheld]]:
    """What the servers list, by the names the model will know them by; and what of it is withheld."""
    found: dict[str, Tool] = {}
    refused: dict[str, Withheld] = {}
    for connection in reached:
        row, seen = connection.row, set()
        for listed in connection.known_tools() or ():
            name = model_name(row.name, listed.name)
            if name in found and listed.name not in seen:
                name = _shortened(name, f"{row.name} {listed.name}")
            if listed.name in seen or name in found:
                refused.setdefault(name + "#2", Withheld(row.name, listed.name, TWICE))
            elif row.allowed_tools and listed.name not in row.allowed_tools:
                refused[name] = Withheld(row.name, listed.name, NOT_ALLOWED)
            else:
                found[name] = _tool(name, row, listed)
            seen.add(listed.name)
    return found, refused


def model_name(server: str, tool: str) -> str:
    """How a tool of a server is called towards the model: `server__tool`, of what providers allow in a name."""
    whole = f"{server}__{tool}"
    name = re.sub(r"[^a-zA-Z0-9_-]", "_", whole)
    return name if len(name) <= NAME_CHARACTERS else _shortened(name, whole)


def _shortened(name: str, whole: str) -> str:
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return f"{name[: NAME_CHARACTERS - 9]}_{digest}"


def _prefix(server: str) -> str:
    return model_name(server, "")


def _tool(name: str, row: ServerRow, listed: Listed) -> Tool:
    async def call(arguments: dict[str, Any]) -> str:
        # the row as it is now: it may have been changed since it was offered
        now = server_rows.known().get(row.pk)
        if now is None:
            raise ToolProblem("The tool server was removed.")
        return await tool_servers().reach(now).call(listed.name, arguments)

    parameters = dict(listed.parameters)
    if parameters.get("type") != "object":
        parameters = {"type": "object", "properties": {}}
    return Tool(
        name,
        listed.description or listed.name,
        parameters,
        call,
        server=row.name,
        own_name=listed.name,
        server_pk=row.pk,
        # the connection has its own time-out: this one is for what it may wait for besides
        timeout_s=row.timeout_s + 5,
    )


def _write_filter(
    turn: TurnTrack, usage_check: Checkpoint, found: Mapping[str, Tool], refused: Mapping[str, Withheld], started: float
) -> None:
    turn.record(
        "tool_filter",
        usage_check,
        status="passed",
        offered=len(found),
        total=len(found) + len(refused),
        tools=[_shown(tool) for tool in list(found.values())[:SHOWN_AT_MOST]],
        withheld=_facts(refused.values()),
        duration_ms=ms_since(started),
    )


def _shown(tool: Tool) -> str:
    return tool.shown if tool.server_pk is None else f"{tool.server}/{tool.shown}"


def _facts(withheld: Iterable[Withheld]) -> list[dict[str, str]]:
    return [each.as_fact() for each in withheld][:SHOWN_AT_MOST]
