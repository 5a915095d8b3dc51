"""What a request tells of its client beside the question: which conversation, which trace, which program.

Read once from the headers, before anything is asked of PostgreSQL. Kept in the metadata of auth_check.
"""

import re
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from chat.checks import ClientSide, Refused

SESSION_HEADER = "X-Session-Id"
USER_AGENT_CHARACTERS = 120
# W3C Trace Context, level 1: version 00 has exactly these four fields, in lower case.
TRACEPARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
_WANTED = frozenset({b"x-session-id", b"x-openwebui-chat-id", b"traceparent", b"user-agent"})


def client_side(scope: Mapping[str, Any], *, client: str = "") -> ClientSide:
    """What the headers of a request say. Raises Refused (400) for an X-Session-Id that is no UUID."""
    told: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        key = name.lower()
        if key in _WANTED:
            # two of a kind say nothing for certain
            told[key] = b"" if key in told else value.strip()
    facts = {"client": client} if client else {}
    traceparent = told.get(b"traceparent", b"")
    if traceparent and TRACEPARENT.fullmatch(traceparent):
        facts["traceparent"] = traceparent.decode("ascii")
    if agent := told.get(b"user-agent"):
        facts["user_agent"] = agent.decode("latin-1")[:USER_AGENT_CHARACTERS]
    return ClientSide(_session(told), facts.get("traceparent", ""), facts)


def _session(told: Mapping[bytes, bytes]) -> str | None:
    if given := told.get(b"x-session-id"):
        try:
            return str(UUID(given.decode("latin-1")))
        except ValueError:
            raise Refused(400, {SESSION_HEADER: ["Must be a valid UUID."]}) from None
    try:
        # Open WebUI's name for it; its temporary chats have ids that are no UUIDs, and make no conversation
        return str(UUID(told.get(b"x-openwebui-chat-id", b"").decode("latin-1")))
    except ValueError:
        return None
