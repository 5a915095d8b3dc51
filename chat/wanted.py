"""Which model answers whom: what the settings say, without loading what asks it."""

from typing import NamedTuple

from django.conf import settings

from chat import demonstration
from chat.scripted_model import SCRIPTED


class Wanted(NamedTuple):
    """Which model is asked for: what the settings say, or a demonstration."""

    name: str
    base_url: str
    api_key: str
    provider: str


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
