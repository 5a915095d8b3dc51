"""Which model answers whom: what the settings say, without loading what asks it."""

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from django.conf import settings

from chat import demonstration
from chat.scripted_model import SCRIPTED
from omni2.sealing import CannotOpen, unseal

if TYPE_CHECKING:
    from chat.catalogue import Entry


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which model is asked for: what the settings say, a row of the catalogue, or a demonstration."""

    name: str
    base_url: str
    api_key: str = field(repr=False)
    provider: str
    entry: "Entry | None" = None
    """the row of the catalogue, if it is one"""

    @property
    def server(self) -> tuple[str, str, str]:
        """What makes it another model to ask than the one that just failed: server, its name there, account."""
        return self.base_url, self.name, self.api_key


class NoKey(ValueError):
    """The API key of an entry is not there, or cannot be opened; the text says why, in words for an operator."""


def wanted_entry(entry: "Entry") -> Wanted:
    """What a row of the catalogue asks for. No I/O. Raises NoKey."""
    row = entry.row
    return wanted_of(row["model"], row["base_url"], key_of(row["sealed_key"], row["key_variable"]), entry)


def wanted_of(model: str, base_url: str, key: str, entry: "Entry | None" = None) -> Wanted:
    """A model by its name, or by its name on an OpenAI-compatible server."""
    provider = (SCRIPTED if model.startswith(SCRIPTED) else "openai-compatible") if base_url else ""
    return Wanted(model, base_url, key, provider, entry)


def key_of(sealed_key: str, key_variable: str) -> str:
    """The API key: sealed, or in an environment variable of this process; empty: none is set. Raises NoKey."""
    try:
        key = unseal(sealed_key)
    except CannotOpen:
        raise NoKey("its API key cannot be opened: it was stored with another SECRET_KEY; enter it again") from None
    if key or not key_variable:
        return key
    key = os.environ.get(key_variable, "").strip()
    if not key:
        raise NoKey(f"the environment variable {key_variable} with its API key is not set")
    if not fits_a_header(key):
        raise NoKey(f"the environment variable {key_variable} holds no API key: only printable ASCII can be sent")
    return key


def fits_a_header(key: str) -> bool:
    """Whether it can be sent at all; what cannot would be repeated in an error."""
    return key.isascii() and key.isprintable() and " " not in key


def wanted_model(user_id: str) -> Wanted:
    """Which model answers this user. No I/O but for demonstration users (one small file)."""
    if demonstration.is_demonstration(user_id):
        server = demonstration.running_server()
        return Wanted(demonstration.MODEL, server.url if server else "", server.key if server else "", SCRIPTED)
    name = settings.LLM_MODEL
    if settings.LLM_BASE_URL:
        provider = SCRIPTED if name.startswith(SCRIPTED) else "openai-compatible"
        return Wanted(name, settings.LLM_BASE_URL, settings.LLM_API_KEY, provider)
    if name == "local":
        return Wanted(name, settings.LOCAL_MODEL_URL, settings.LOCAL_MODEL_KEY, "local")
    return Wanted(name, "", settings.LLM_API_KEY, "")
