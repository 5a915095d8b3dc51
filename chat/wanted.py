"""Which model answers whom: what the settings say, without loading what asks it."""

import os
from typing import NamedTuple

from django.conf import settings

from chat import demonstration
from chat.catalogue import Entry
from chat.scripted_model import SCRIPTED
from omni2.sealing import unseal


class Wanted(NamedTuple):
    """Which model is asked for: what the settings say, or a demonstration."""

    name: str
    base_url: str
    api_key: str
    provider: str
    entry: Entry | None = None
    """the row of the catalogue, if it is one"""


def wanted_entry(entry: Entry) -> Wanted:
    """What a row of the catalogue asks for. No I/O. Raises omni2.sealing.CannotOpen."""
    row = entry.row
    key = unseal(row["sealed_key"]) or os.environ.get(row["key_variable"], "")
    return Wanted(row["model"], row["base_url"], key, "openai-compatible" if row["base_url"] else "", entry)


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
