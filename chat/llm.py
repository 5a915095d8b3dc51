"""The only door to the model and to pydantic-ai: which model answers, and one round of it as a stream.

The loop over rounds and tools is the turn's own (chat.turn): each round is exactly one request to
the model and one pair of checkpoints, so nothing here retries behind their back. Failures come
out as ModelFailed with a code a client can act on and words a person can read.
"""

import asyncio
import contextlib
import json
import logging
import math
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import httpx2
from pydantic_ai import exceptions
from pydantic_ai.direct import model_request_stream
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    ModelResponseStreamEvent,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse, infer_model
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers import Provider, infer_provider, infer_provider_class
from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from chat.catalogue import catalogue
from chat.history import Exchange
from chat.scripted_model import SCRIPTED
from chat.tools import Tool
from chat.wanted import Wanted, wanted_entry, wanted_model
from flows.checkpoints import clean_text

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 15.0
"""Whoever refuses does so at once; this is for a model that is not there at all. It is long since a process that a
thousand ask at once may itself be what keeps the connection waiting."""
FIRST_TOKEN_TIMEOUT_S = 90.0
BETWEEN_TOKENS_TIMEOUT_S = 60.0
NOT_CONFIGURED_RETRY_S = 30

INSTRUCTIONS = "You are a helpful assistant. Answer plainly and briefly."
HISTORY_TOKENS = 6_000
"""of the conversation so far, for a model that is not of the catalogue"""
# The local model takes 4,096 tokens a conversation (omni2.localmodel), and reading a long memory would cost it
# seconds. What does not fit is refused by its server (context_too_long).
LOCAL_HISTORY_TOKENS = 1_000
LOCAL_ANSWER_TOKENS = 512


@dataclass(eq=False)
class ModelFailed(Exception):
    """The model gave no whole answer. `message` is for the user and says nothing internal,
    `detail` is one short line for operators."""

    code: str
    message: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.code}: {self.detail or self.message}"


WORDS = {
    "llm_failed": "The model could not answer.",
    "llm_timeout": "The model did not answer in time.",
    "llm_rate_limited": "The model has too much to do at the moment. Please try again in a minute.",
    "llm_unavailable": "The model cannot be reached at the moment.",
    "context_too_long": "This conversation is too long for the model. Please start a new one or ask less at once.",
}


def failed(code: str, detail: str = "") -> ModelFailed:
    """The failure of that code, in its usual words."""
    return ModelFailed(code, WORDS[code], detail)


@dataclass(eq=False)
class ModelUnavailable(Exception):
    """There is no model to ask: none is configured, or it could not be reached a moment ago."""

    retry_after_s: int


# --- which model ---------------------------------------------------------------------------------


class Breaker:
    """Stops asking a model that cannot be reached: after three connections that failed in a row it
    is open for ten seconds. The first request after that tries again, and closes or opens it."""

    FAILURES = 3
    OPEN_S = 10.0

    def __init__(self) -> None:
        self.failures = 0
        self.open_until = 0.0

    def seconds_left(self) -> float:
        """How long the model is not asked; 0 when it may be."""
        return max(0.0, self.open_until - time.monotonic())

    def worked(self) -> None:
        self.failures = 0
        self.open_until = 0.0

    def could_not_connect(self) -> None:
        self.failures += 1
        if self.failures >= self.FAILURES:
            self.open_until = time.monotonic() + self.OPEN_S


@dataclass(frozen=True, slots=True)
class ChatModel:
    """A model ready to be asked, and what it can take."""

    name: str
    provider: str
    model: Model
    takes_tools: bool
    history_tokens: int
    """of the conversation so far, at most"""
    settings: ModelSettings
    breaker: Breaker = field(default_factory=Breaker)


class Models:
    """The models of one event loop, made when they are first asked for: a model's HTTP connections
    belong to the loop that opened them."""

    def __init__(self) -> None:
        self._made: dict[Wanted, ChatModel] = {}
        self._unusable: set[Wanted] = set()
        self._making = Lock()

    def answering(self, user_id: str) -> ChatModel:
        """The model that answers this user. Raises ModelUnavailable when it is known without
        asking that it cannot. The first time reads files: call it in a thread."""
        return self._ready(wanted_model(user_id))

    def _ready(self, wanted: Wanted) -> ChatModel:
        with self._making:
            model = self._made.get(wanted) or self._make(wanted)
        if wait_s := model.breaker.seconds_left():
            raise ModelUnavailable(retry_after_s=math.ceil(wait_s))
        return model

    def chosen(self, pk: int, version: str) -> ChatModel:
        """The model of the catalogue that was chosen, or, while it is down, its fallback. Raises ModelUnavailable
        when none of them can be asked."""
        away: ModelUnavailable | None = None
        tried: set[int] = set()
        entry = catalogue.find(pk, version)
        while entry is not None and entry.pk not in tried:
            tried.add(entry.pk)
            try:
                return self._ready(wanted_entry(entry))
            except ModelUnavailable as problem:
                away = away or problem
            fallback = entry.row["fallback_id"]
            entry = catalogue.find(fallback) if fallback is not None else None
        raise away or ModelUnavailable(NOT_CONFIGURED_RETRY_S)

    def warm(self) -> None:
        """Make the model everybody is answered by, so that the first to ask need not wait for it."""
        with contextlib.suppress(ModelUnavailable):
            self.answering("")

    def _make(self, wanted: Wanted) -> ChatModel:
        try:
            model = _make(wanted)
        except (exceptions.UserError, ImportError, ValueError) as problem:
            # An unknown name, no API key, a package that is not installed: only an operator can mend it.
            if wanted not in self._unusable:
                self._unusable.add(wanted)
                logger.error("no model: %s cannot be used: %s", wanted.name, problem)
            raise ModelUnavailable(retry_after_s=NOT_CONFIGURED_RETRY_S) from None
        return self._made.setdefault(wanted, model)


async def warm_up() -> None:
    """Make the running loop's model now, in a thread."""
    await asyncio.to_thread(models().warm)


_models: WeakKeyDictionary[asyncio.AbstractEventLoop, Models] = WeakKeyDictionary()


def models() -> Models:
    """The models of the running event loop."""
    return _models.setdefault(asyncio.get_running_loop(), Models())


def _make(wanted: Wanted) -> ChatModel:
    model = _connect(wanted)
    if wanted.provider == "local":
        # It cannot call tools, and its context is small.
        return ChatModel(
            wanted.name,
            "local",
            model,
            False,
            LOCAL_HISTORY_TOKENS,
            {**_SETTINGS, "max_tokens": LOCAL_ANSWER_TOKENS},
        )
    # what users call it, where it is one of the catalogue
    name = wanted.entry.name if wanted.entry else wanted.name if wanted.base_url else model.model_name
    history_tokens = wanted.entry.row["history_tokens"] if wanted.entry else HISTORY_TOKENS
    return ChatModel(name, wanted.provider or model.system, model, True, history_tokens, _SETTINGS)


# One request a round, so that what is written down is what happened: the SDKs retry nothing.
_SETTINGS: ModelSettings = {"max_retries": 0}


def _connect(wanted: Wanted) -> Model:
    if wanted.base_url:
        provider = OpenAICompatibleProvider(
            wanted.provider, base_url=wanted.base_url, api_key=wanted.api_key, http_client=_http_client()
        )
        return OpenAIChatModel(wanted.name, provider=provider)
    if wanted.provider == "local":
        raise ValueError("the local model is not running (OMNI2_LOCAL_MODEL_URL is not set)")
    if wanted.provider == SCRIPTED:
        raise ValueError("no demonstration is running (manage.py demo)")
    if wanted.api_key:
        return infer_model(wanted.name, lambda provider: _with_key(provider, wanted.api_key))
    return infer_model(wanted.name)


def _http_client() -> httpx2.AsyncClient:
    # How long an answer may take is decided here in this module, token by token.
    return httpx2.AsyncClient(
        timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S),
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
    )


def _with_key(provider: str, key: str) -> Provider[Any]:
    kind: Any = infer_provider_class(provider)
    try:
        made: Provider[Any] = kind(api_key=key)
    except TypeError:
        # a provider that signs in by other means
        return infer_provider(provider)
    return made


# --- one round -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool the model asks for. `arguments` is None when they are not a JSON object."""

    call_id: str
    tool: str
    arguments: dict[str, Any] | None
    raw: str


@dataclass(slots=True)
class Reply:
    """What one round brought, filled while it streams: whole when it ends, and as far as it came
    when it was cut short. Unknown numbers are None."""

    pieces: list[str] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: Decimal | None = None
    finish_reason: str | None = None
    ttft_ms: float | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class Dialogue:
    """What is said between Omni2 and the model in one turn: memory, question, rounds, results."""

    def __init__(self, model: ChatModel, memory: Iterable[Exchange], question: str, tools: Iterable[Tool]) -> None:
        self.model = model
        self.messages: list[ModelMessage] = []
        for exchange in memory:
            self.messages.append(ModelRequest.user_text_prompt(exchange.question))
            self.messages.append(ModelResponse(parts=[TextPart(exchange.answer)]))
        self.messages.append(ModelRequest.user_text_prompt(question, instructions=INSTRUCTIONS))
        self._parameters = ModelRequestParameters(
            function_tools=[_definition(tool) for tool in tools] if model.takes_tools else []
        )

    async def round(self, reply: Reply, *, deadline: float) -> AsyncGenerator[str, None]:
        """One request to the model: its text piece by piece, all the rest in `reply`.

        `deadline` by the loop's clock. Raises ModelFailed. Closing or cancelling it closes the
        connection to the model at once, which is how a model learns to stop.
        """
        breaker = self.model.breaker
        try:
            async with AsyncExitStack() as stack:
                started = time.perf_counter()
                async with _within(FIRST_TOKEN_TIMEOUT_S, deadline):
                    response = await stack.enter_async_context(self._request())
                    # whatever happens from here on, what the provider said so far is kept
                    stack.callback(_measure, response, reply)
                    arriving = aiter(response)
                    arrived = await anext(arriving, None)
                breaker.worked()
                reply.ttft_ms = _ms_since(started)
                while arrived is not None:
                    if text := _text_of(arrived):
                        reply.pieces.append(text)
                        yield text
                    async with _within(BETWEEN_TOKENS_TIMEOUT_S, deadline):
                        arrived = await anext(arriving, None)
                self._take(response.get(), reply)
        except TimeoutError:
            raise failed("llm_timeout", "no token in time") from None
        except (exceptions.AgentRunError, exceptions.UserError, httpx2.HTTPError, OSError) as problem:
            if _could_not_connect(problem):
                breaker.could_not_connect()
            else:
                breaker.worked()
            raise _in_our_words(problem) from None

    def _request(self) -> AbstractAsyncContextManager[StreamedResponse]:
        return model_request_stream(
            self.model.model,
            self.messages,
            model_settings=self.model.settings,
            model_request_parameters=self._parameters,
            instrument=False,
        )

    def _take(self, response: ModelResponse, reply: Reply) -> None:
        """The round is over: keep what was said, and note which tools are asked for."""
        reply.finish_reason = response.finish_reason
        reply.tool_calls = [_tool_call(part) for part in response.parts if isinstance(part, ToolCallPart)]
        if not reply.pieces and not reply.tool_calls:
            declined = response.finish_reason == "content_filter"
            raise ModelFailed("llm_failed", "The model declined to answer." if declined else "The model said nothing.")
        self.messages.append(response)

    def add_results(self, results: Sequence[tuple[ToolCall, str, bool]]) -> None:
        """What the tools answered (call, text, whether it worked), for the next round."""
        self.messages.append(
            ModelRequest(
                parts=[
                    ToolReturnPart(call.tool, text, call.call_id, outcome="success" if worked else "failed")
                    for call, text, worked in results
                ],
                instructions=INSTRUCTIONS,
            )
        )


def _definition(tool: Tool) -> ToolDefinition:
    return ToolDefinition(name=tool.name, description=tool.description, parameters_json_schema=tool.parameters)


def _within(seconds: float, deadline: float) -> asyncio.Timeout:
    return asyncio.timeout_at(min(asyncio.get_running_loop().time() + seconds, deadline))


def _ms_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)


def _text_of(event: ModelResponseStreamEvent) -> str:
    match event:
        case PartStartEvent(part=TextPart(content=text)):
            return clean_text(text)
        case PartDeltaEvent(delta=TextPartDelta(content_delta=text)):
            return clean_text(text)
    return ""


def _tool_call(part: ToolCallPart) -> ToolCall:
    raw = part.args if isinstance(part.args, str) else json.dumps(part.args or {}, ensure_ascii=False)
    try:
        arguments = json.loads(raw) if raw.strip() else {}
    except (ValueError, RecursionError):
        arguments = None
    return ToolCall(part.tool_call_id, part.tool_name, arguments if isinstance(arguments, dict) else None, raw)


def _measure(response: StreamedResponse, reply: Reply) -> None:
    """Tokens and cost, as far as the provider has said them."""
    used = response.usage
    if used.input_tokens or used.output_tokens:
        reply.input_tokens, reply.output_tokens = used.input_tokens, used.output_tokens
        reply.cost_usd = _cost(response.get())


def _cost(response: ModelResponse) -> Decimal | None:
    """US dollars by the price list that came with genai-prices; None for a model it does not know."""
    try:
        return response.cost().total_price
    except (LookupError, ValueError, AssertionError):
        return None


# --- failures ------------------------------------------------------------------------------------


def _could_not_connect(problem: BaseException) -> bool:
    return isinstance(problem, exceptions.ModelConnectionError) and problem.phase in ("connect", "pool")


def _in_our_words(problem: BaseException) -> ModelFailed:
    return failed(_code_of(problem), _for_operators(problem))


def _for_operators(problem: BaseException) -> str:
    """What went wrong, in one short line: the provider's body may repeat what the user wrote."""
    if isinstance(problem, exceptions.ModelHTTPError):
        kind = problem.provider_error_type or problem.provider_error_code or ""
        return f"HTTP {problem.status_code} {kind}".rstrip()
    first_line, _, _ = str(problem).partition("\n")
    return f"{type(problem).__name__}: {first_line}"[:200]


def _code_of(problem: BaseException) -> str:
    if isinstance(problem, exceptions.ModelRequestRejectedError) and "context" in str(problem.provider_error_type):
        return "context_too_long"  # llama.cpp says exceed_context_size_error
    if _could_not_connect(problem):
        return "llm_unavailable"
    return next((code for kinds, code in CODES if isinstance(problem, kinds)), "llm_failed")


CODES: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    ((exceptions.ModelContextWindowExceededError,), "context_too_long"),
    ((exceptions.ModelRateLimitError, exceptions.ModelQuotaExceededError), "llm_rate_limited"),
    ((exceptions.ModelTimeoutError, exceptions.ModelRequestTimeout), "llm_timeout"),
    ((exceptions.ModelUnavailableError,), "llm_unavailable"),
)
