"""Whether a model of the catalogue can be made, what it costs, and one tiny real request to it.

For the admin pages and `manage.py add_model`: nothing of it is on the way of a turn.
"""

import asyncio
import time
from dataclasses import dataclass, replace
from decimal import Decimal

import httpx2
from pydantic_ai import exceptions
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.usage import RequestUsage

from chat.catalogue import Entry, entry_of
from chat.llm import ChatModel, Dialogue, ModelFailed, Price, Reply, http_client, list_cost, make
from chat.models import LanguageModel
from chat.wanted import NoKey, Wanted, wanted_entry

QUESTION = "Answer with the one word: ok"
CHECK_TOKENS = 200
CHECK_TIMEOUT_S = 30.0
HINTS = {
    "HTTP 401": "The server did not accept the API key.",
    "HTTP 403": "The server does not let this API key use the model.",
    "HTTP 404": "The server knows no such model, or the base URL is wrong.",
}


class CannotBeMade(ValueError):
    """There is no such model; the text says why, in words for an admin."""


@dataclass(frozen=True, slots=True)
class Checked:
    """How a check went, in words for an admin."""

    worked: bool
    said: str


def made(wanted: Wanted, client: httpx2.AsyncClient | None = None) -> ChatModel:
    """The model, without asking anybody. Raises CannotBeMade."""
    if not wanted.base_url:
        provider, _, name = wanted.name.partition(":")
        if not (provider and name):
            raise CannotBeMade("Without a base URL this has to be provider:name, such as openai:gpt-5.2.")
    try:
        return make(wanted, client or http_client())
    except (exceptions.UserError, ImportError, ValueError) as problem:
        raise CannotBeMade(_first_sentence(problem)) from None


def _first_sentence(problem: Exception) -> str:
    first_line, _, _ = str(problem).strip().partition("\n")
    return first_line[:300] or type(problem).__name__


def list_price(model: ChatModel) -> Price | None:
    """What genai-prices says it costs; None for a model it does not know."""
    asked = model.model
    # a thousand tokens, since some models cost more when they are asked more at once
    prices = [
        list_cost(
            ModelResponse(
                parts=[TextPart("")],
                model_name=asked.model_name,
                provider_name=asked.system,
                provider_url=asked.base_url,
                usage=usage,
            )
        )
        for usage in (RequestUsage(input_tokens=1000), RequestUsage(output_tokens=1000))
    ]
    if prices[0] is None or prices[1] is None:
        return None
    return Price(prices[0] * 1000, prices[1] * 1000)


def check(models: list[LanguageModel]) -> list[Checked]:
    """Ask each of them one short question, all at once; how long it took, or what went wrong. Never the key.

    Returns after 30 s at most. For a thread without an event loop."""
    entries = [entry_of(model) for model in models]

    async def all_of_them() -> list[Checked]:
        return await asyncio.gather(*(_check(entry) for entry in entries))

    return asyncio.run(all_of_them())


async def _check(entry: Entry) -> Checked:
    async with http_client() as client:
        try:
            return await _ask(made(wanted_entry(entry), client))
        except (NoKey, CannotBeMade) as problem:
            return Checked(False, f"It cannot be asked: {problem}")


async def _ask(model: ChatModel) -> Checked:
    most = min(CHECK_TOKENS, model.settings.get("max_tokens", CHECK_TOKENS))
    model = replace(model, settings={**model.settings, "max_tokens": most})
    reply, started = Reply(), time.monotonic()
    try:
        async for _ in Dialogue(model, [], QUESTION, []).round(
            reply, deadline=asyncio.get_running_loop().time() + CHECK_TIMEOUT_S
        ):
            pass
    except ModelFailed as problem:
        # one that thinks may well have spent all of its few tokens on that
        if reply.finish_reason != "length":
            hint = next((said for status, said in HINTS.items() if problem.detail.startswith(status)), problem.message)
            detail = f" ({problem.detail})" if problem.detail else ""
            request = f" The provider calls the request {problem.request_id}." if problem.request_id else ""
            return Checked(False, f"{hint}{detail}{request}")
    took_s = time.monotonic() - started
    cost = "" if reply.cost_usd is None else f" It cost {_money(reply.cost_usd)}."
    first = "" if reply.ttft_ms is None else f", the first token after {reply.ttft_ms / 1000:.1f} s"
    return Checked(True, f"It answered within {took_s:.1f} s{first}.{cost}")


def _money(usd: Decimal) -> str:
    return f"${usd:.6f}".rstrip("0").rstrip(".")
