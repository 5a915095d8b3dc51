"""The only door to the model and to pydantic-ai: which model answers, and one round of it as a stream.

The loop over rounds and tools is the turn's own (chat.turn). So is each request: it has one pair of checkpoints,
and nothing here or in the SDKs retries behind its back; `Dialogue.again` says whether and when to ask once more, and
whom. Failures come out as ModelFailed with a code a client can act on and words a person can read.
"""

import asyncio
import contextlib
import json
import logging
import math
import random
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from decimal import Decimal
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary, finalize

import httpx2
from django.conf import settings
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
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.providers import Provider, infer_provider, infer_provider_class
from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from chat.catalogue import Entry, catalogue
from chat.history import Exchange
from chat.scripted_model import SCRIPTED
from chat.tools import Tool
from chat.wanted import NoKey, Wanted, wanted_entry, wanted_model
from flows.checkpoints import clean_text
from omni2.database import in_database

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 15.0
"""Whoever refuses does so at once; this is for a model that is not there at all. It is long since a process that a
thousand ask at once may itself be what keeps the connection waiting."""
FIRST_TOKEN_TIMEOUT_S = 90.0
BETWEEN_TOKENS_TIMEOUT_S = 60.0
NOT_CONFIGURED_RETRY_S = 30
BACK_OFF_S = (0.5, 1.0, 2.0, 4.0)
"""Before the second request, the third and so on; up to a half longer, so that many who failed together do not
come again together."""
RETRY_AFTER_AT_MOST_S = 10.0
"""A server that asks for more patience than a person has is not asked again in this turn."""

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
    request_id: str = ""
    """what the provider calls the request that failed, if it said so"""
    passes: bool = False
    """the same request may succeed in a moment"""
    elsewhere: bool = True
    """another model might answer it"""
    retry_after_s: float | None = None

    def __str__(self) -> str:
        said = f"{self.code}: {self.detail or self.message}"
        return f"{said} (request {self.request_id})" if self.request_id else said


WORDS = {
    "llm_failed": "The model could not answer.",
    "llm_timeout": "The model did not answer in time.",
    "llm_rate_limited": "The model has too much to do at the moment. Please try again in a minute.",
    "llm_unavailable": "The model cannot be reached at the moment.",
    "context_too_long": "This conversation is too long for the model. Please start a new one or ask less at once.",
    "content_refused": "The model declined to answer this.",
}


def failed(code: str, detail: str = "", **more: Any) -> ModelFailed:
    """The failure of that code, in its usual words."""
    elsewhere = code not in ("context_too_long", "content_refused")
    return ModelFailed(code, WORDS[code], detail, elsewhere=elsewhere, **more)


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
class Price:
    """What an admin says a model costs, in US dollars for a million tokens."""

    input_usd: Decimal
    output_usd: Decimal

    def of(self, input_tokens: int, output_tokens: int) -> Decimal:
        return (self.input_usd * input_tokens + self.output_usd * output_tokens) / 1_000_000


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class ChatModel:
    """A model ready to be asked, and what it can take."""

    name: str
    """what users call it"""
    provider: str
    model: Model = field(repr=False)
    takes_tools: bool
    history_tokens: int
    """of the conversation so far, at most"""
    settings: ModelSettings
    breaker: Breaker = field(default_factory=Breaker)
    wanted: Wanted | None = None
    system_prompt: str = INSTRUCTIONS
    attempts: int = 1
    first_token_timeout_s: float | None = None
    next_token_timeout_s: float | None = None
    price: Price | None = None
    """None: as genai-prices has it"""

    @property
    def entry(self) -> Entry | None:
        """Its row of the catalogue, if it is one of it."""
        return self.wanted.entry if self.wanted else None


class Models:
    """The models of one event loop, made when they are first asked for: a model's HTTP connections
    belong to the loop that opened them.

    A row of the catalogue that was changed or deleted is forgotten; its connections are closed when no turn has
    its model any more."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop
        self._made: dict[Wanted, ChatModel] = {}
        self._unusable: set[Any] = set()
        """wanted models and entries of which the log has been told already"""
        self._entries: Mapping[int, Entry] = catalogue.entries
        self._making = Lock()

    def answering(self, user_id: str) -> ChatModel:
        """The model that answers this user. Raises ModelUnavailable when it is known without
        asking that it cannot. The first time reads files: call it in a thread."""
        return self._ready(wanted_model(user_id))

    def _ready(self, wanted: Wanted) -> ChatModel:
        with self._making:
            if self._entries is not catalogue.entries:
                self._forget_old_entries()
            model = self._made.get(wanted) or self._make(wanted)
        if wait_s := model.breaker.seconds_left():
            raise ModelUnavailable(retry_after_s=math.ceil(wait_s))
        return model

    def chosen(self, pk: int, version: str) -> ChatModel:
        """The model of the catalogue that was chosen, or, while it is down, its fallback. Raises ModelUnavailable
        when none of them can be asked."""
        return self._first_ready(catalogue.find(pk, version), tried=set())

    def instead_of(self, failing: ChatModel, tried: set[tuple[str, str, str]]) -> ChatModel | None:
        """The fallback of a model that just failed: the next in its chain that can be asked and is not one of those
        that were `tried` (Wanted.server). The first time reads files: call it in a thread."""
        entry = failing.entry
        if entry is None or entry.row["fallback_id"] is None:
            return None
        try:
            return self._first_ready(catalogue.known(entry.row["fallback_id"]), tried)
        except ModelUnavailable:
            return None

    def _first_ready(self, entry: Entry | None, tried: set[tuple[str, str, str]]) -> ChatModel:
        away: ModelUnavailable | None = None
        looked_at: set[int] = set()
        while entry is not None and entry.pk not in looked_at:
            looked_at.add(entry.pk)
            if entry.enabled:
                try:
                    wanted = self._wanted(entry)
                    if wanted.server not in tried:
                        return self._ready(wanted)
                except ModelUnavailable as problem:
                    away = away or problem
            entry = catalogue.known(entry.row["fallback_id"])
        raise away or ModelUnavailable(NOT_CONFIGURED_RETRY_S)

    def _wanted(self, entry: Entry) -> Wanted:
        try:
            return wanted_entry(entry)
        except NoKey as problem:
            raise self._cannot_be_used(entry, entry.name, problem) from None

    def _cannot_be_used(self, what: Any, name: str, problem: Exception) -> ModelUnavailable:
        """Only an operator can mend it: he is told once."""
        if what not in self._unusable:
            self._unusable.add(what)
            logger.error("no model: %s cannot be used: %s", name, problem)
        return ModelUnavailable(retry_after_s=NOT_CONFIGURED_RETRY_S)

    def _forget_old_entries(self) -> None:
        self._entries = catalogue.entries
        current = set(self._entries.values())
        self._made = {
            wanted: model for wanted, model in self._made.items() if wanted.entry is None or wanted.entry in current
        }
        self._unusable = {
            each for each in self._unusable if (each.entry if isinstance(each, Wanted) else each) in (None, *current)
        }

    def warm(self) -> None:
        """Make the model everybody is answered by, so that the first to ask need not wait for it."""
        with contextlib.suppress(ModelUnavailable):
            self.answering("")

    def _make(self, wanted: Wanted) -> ChatModel:
        client = http_client()
        try:
            model = make(wanted, client)
        except (exceptions.UserError, ImportError, ValueError) as problem:
            # An unknown name, no API key, a package that is not installed.
            name = wanted.entry.name if wanted.entry else wanted.name
            raise self._cannot_be_used(wanted, name, problem) from None
        if self._loop is not None:
            # turns that have it go on with it; the last of them lets it go
            finalize(model, _close_later, self._loop, client).atexit = False
        return self._made.setdefault(wanted, model)


def _close_later(loop: asyncio.AbstractEventLoop, client: httpx2.AsyncClient) -> None:
    """Close the client's connections on the loop that opened them; called from whatever thread."""
    with contextlib.suppress(RuntimeError):  # the loop is over, and its connections with it
        loop.call_soon_threadsafe(_close, client)


_closing: set["asyncio.Task[None]"] = set()


def _close(client: httpx2.AsyncClient) -> None:
    closing = asyncio.create_task(client.aclose())
    _closing.add(closing)
    closing.add_done_callback(_closing.discard)


async def warm_up() -> None:
    """Make the running loop's model now, in a thread."""
    await asyncio.to_thread(models().warm)


_models: WeakKeyDictionary[asyncio.AbstractEventLoop, Models] = WeakKeyDictionary()


def models() -> Models:
    """The models of the running event loop."""
    loop = asyncio.get_running_loop()
    return _models.get(loop) or _models.setdefault(loop, Models(loop))


def make(wanted: Wanted, client: httpx2.AsyncClient) -> ChatModel:
    """A model ready to be asked over this HTTP client. Asks nobody. Raises UserError, ImportError or ValueError
    for one that cannot be made: an unknown name, no API key, a package that is not installed."""
    model = _connect(wanted, client)
    if wanted.entry is not None:
        return _from_catalogue(wanted, wanted.entry.row, model)
    if wanted.provider == "local":
        # It cannot call tools, and its context is small.
        return ChatModel(
            wanted.name,
            "local",
            model,
            False,
            LOCAL_HISTORY_TOKENS,
            {**_SETTINGS, "max_tokens": LOCAL_ANSWER_TOKENS},
            wanted=wanted,
            attempts=settings.LLM_ATTEMPTS,
        )
    name = wanted.name if wanted.base_url else model.model_name
    provider = wanted.provider or model.system
    return ChatModel(
        name, provider, model, True, HISTORY_TOKENS, _SETTINGS, wanted=wanted, attempts=settings.LLM_ATTEMPTS
    )


def _from_catalogue(wanted: Wanted, row: Mapping[str, Any], model: Model) -> ChatModel:
    input_usd, output_usd = row["input_usd_per_million"], row["output_usd_per_million"]
    priced = input_usd is not None or output_usd is not None
    own: Any = json.loads(row["settings"]) if isinstance(row["settings"], str) else row["settings"]
    return ChatModel(
        row["name"],
        wanted.provider or model.system,
        model,
        row["takes_tools"],
        row["history_tokens"],
        {**own, **_SETTINGS},
        wanted=wanted,
        system_prompt=row["system_prompt"].strip() or INSTRUCTIONS,
        attempts=max(1, row["attempts"]),
        first_token_timeout_s=row["first_token_timeout_s"],
        next_token_timeout_s=row["next_token_timeout_s"],
        price=Price(input_usd or Decimal(0), output_usd or Decimal(0)) if priced else None,
    )


# One request a round, so that what is written down is what happened: the SDKs retry nothing.
_SETTINGS: ModelSettings = {"max_retries": 0}


def _connect(wanted: Wanted, client: httpx2.AsyncClient) -> Model:
    if wanted.base_url:
        provider = OpenAICompatibleProvider(
            wanted.provider, base_url=wanted.base_url, api_key=wanted.api_key, http_client=client
        )
        return OpenAIChatModel(wanted.name, provider=provider)
    if wanted.provider == "local":
        raise ValueError("the local model is not running (OMNI2_LOCAL_MODEL_URL is not set)")
    if wanted.provider == SCRIPTED:
        raise ValueError("no demonstration is running (manage.py demo)")
    return infer_model(wanted.name, lambda provider: _provider(provider, wanted.api_key, client))


def http_client() -> httpx2.AsyncClient:
    """A client for one model; it opens no connection before it is used."""
    # How long an answer may take is decided here in this module, token by token.
    return httpx2.AsyncClient(
        timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S),
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
        event_hooks={"response": [_hear_request_id]},
    )


def _provider(name: str, key: str, client: httpx2.AsyncClient) -> Provider[Any]:
    """A provider by its name, with our key, else the one its own environment variable holds."""
    kind: Any = infer_provider_class(name)
    for options in ({"http_client": client}, {}):
        try:
            made: Provider[Any] = kind(**options, **({"api_key": key} if key else {}))
        except TypeError:
            # a provider that signs in or connects by other means
            continue
        return made
    return infer_provider(name)


# --- what the provider calls a request -------------------------------------------------------------

_REQUEST_ID_HEADERS = ("x-request-id", "request-id", "apim-request-id", "x-amzn-requestid", "x-goog-request-id")
ID_CHARACTERS = 200

_heard: ContextVar["Reply | None"] = ContextVar("heard", default=None)


async def _hear_request_id(response: httpx2.Response) -> None:
    """An answer begins: note its request's id where it is waited for."""
    if (reply := _heard.get()) is not None:
        reply.request_id = _request_id_in(response.headers) or reply.request_id


@contextmanager
def _hearing(reply: "Reply") -> Iterator[None]:
    """While a request is opened. Never around a `yield` to somebody else: the variable would be his too."""
    token = _heard.set(reply)
    try:
        yield
    finally:
        _heard.reset(token)


def _request_id_in(headers: Mapping[str, str]) -> str:
    found = next((headers[name] for name in _REQUEST_ID_HEADERS if headers.get(name)), "")
    return clean_text(found)[:ID_CHARACTERS]


def _request_id_of(problem: BaseException) -> str:
    """The id in the headers or in the body of an error; empty: none was said."""
    if (headers := getattr(problem, "headers", None)) and (found := _request_id_in(headers)):
        return found
    body = getattr(problem, "body", None)
    said = body.get("request_id") if isinstance(body, dict) else None
    return clean_text(said)[:ID_CHARACTERS] if isinstance(said, str) else ""


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
    request_id: str = ""
    """what the provider calls this request; empty: it did not say"""
    response_id: str = ""
    """what it calls the answer"""

    @property
    def text(self) -> str:
        return "".join(self.pieces)


JSON_OBJECT = OutputObjectDefinition({"type": "object"})


@dataclass(frozen=True, slots=True)
class Wishes:
    """How a client wants to be answered, by whichever model does."""

    settings: ModelSettings = field(default_factory=ModelSettings)
    tools: Sequence[ToolDefinition] = ()
    """of its own, which it runs itself; none: those of the server, as far as it is offered any"""
    output: OutputObjectDefinition | None = None
    """what the answer has to be; JSON_OBJECT: any object"""
    has_images: bool = False
    own_dialogue: bool = False
    """it keeps the dialogue itself"""

    def withheld_from(self, model: ChatModel) -> Sequence[ToolDefinition]:
        """The client's tools when this model cannot call any: it answers without, as any model may that is free to
        choose. Some clients bring tools along with every question."""
        return () if model.takes_tools else self.tools

    def demand(self, model: ChatModel) -> None:
        """Raises ModelFailed for what this model cannot do."""
        choice = self.settings.get("tool_choice")
        if self.withheld_from(model) and choice not in (None, "auto", "none"):
            raise ModelFailed("tools_not_supported", f"tool_choice: the model {model.name} cannot call any tool.")
        if not self.has_images and self.output is None:
            return
        profile: Mapping[str, Any] = model.model.profile
        if self.has_images and not profile.get("supports_image_input", True):
            raise ModelFailed("images_not_supported", f"messages: the model {model.name} takes no images.")
        if self.output is None:
            return
        ability = "supports_json_object_output" if self.output is JSON_OBJECT else "supports_json_schema_output"
        if not profile.get(ability):
            raise ModelFailed("format_not_supported", f"response_format: the model {model.name} does not offer this.")

    def settings_for(self, model: ChatModel) -> ModelSettings:
        """The client's word goes before the admin's, but nobody gets a longer answer than an admin allows."""
        if not self.settings:
            return model.settings
        both: ModelSettings = {**model.settings, **self.settings}
        if self.withheld_from(model):
            both.pop("tool_choice", None)
            both.pop("parallel_tool_calls", None)
        if "max_tokens" in model.settings:
            both["max_tokens"] = min(model.settings["max_tokens"], both["max_tokens"])
        if "extra_headers" in model.settings:
            both["extra_headers"] = {**both["extra_headers"], **model.settings["extra_headers"]}
        return both

    def parameters(self, model: ChatModel, offered: list[ToolDefinition]) -> ModelRequestParameters:
        """The tools and the form of the answer."""
        tools = (list(self.tools) or offered) if model.takes_tools else []
        if self.output is None:
            return ModelRequestParameters(function_tools=tools)
        if self.output is not JSON_OBJECT:
            return ModelRequestParameters(function_tools=tools, output_mode="native", output_object=self.output)
        # without a template: OpenAI's API too leaves it to the client to say in words what it wants
        return ModelRequestParameters(
            function_tools=tools, output_mode="prompted", output_object=self.output, prompted_output_template=False
        )


NO_WISHES = Wishes()


class Dialogue:
    """What is said between Omni2 and the model in one turn: memory, question, rounds, results.

    `prompts` are told to whichever model answers, after its own system prompt."""

    def __init__(
        self,
        model: ChatModel,
        memory: Iterable[Exchange],
        question: str,
        tools: Iterable[Tool],
        *,
        prompts: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.wishes = NO_WISHES
        self.messages: list[ModelMessage] = []
        self._prompts = prompts
        self._tools = [_definition(tool) for tool in tools]
        self._tried: set[tuple[str, str, str]] = set()
        self._attempts = 0
        """requests to the model of now since it last brought a token"""
        for exchange in memory:
            self.messages.append(ModelRequest.user_text_prompt(exchange.question))
            self.messages.append(ModelResponse(parts=[TextPart(exchange.answer)]))
        self.messages.append(ModelRequest.user_text_prompt(question))

    def let_in(self, messages: Sequence[ModelMessage], wishes: Wishes) -> None:
        """Let this be what is said, instead of memory and question."""
        self.messages, self.wishes = list(messages), wishes

    def join_trace(self, traceparent: str) -> None:
        """Send the client's W3C trace along with each request to the model."""
        headers = {**self.wishes.settings.get("extra_headers", {}), "traceparent": traceparent}
        self.wishes = replace(self.wishes, settings={**self.wishes.settings, "extra_headers": headers})

    async def round(self, reply: Reply, *, deadline: float) -> AsyncGenerator[str, None]:
        """One request to the model: its text piece by piece, all the rest in `reply`.

        `deadline` by the loop's clock. Raises ModelFailed. Closing or cancelling it closes the
        connection to the model at once, which is how a model learns to stop.
        """
        model = self.model
        breaker = model.breaker
        self._attempts += 1
        try:
            async with AsyncExitStack() as stack:
                started = time.perf_counter()
                async with _within(model.first_token_timeout_s or FIRST_TOKEN_TIMEOUT_S, deadline):
                    with _hearing(reply):
                        response = await stack.enter_async_context(self._request())
                    # whatever happens from here on, what the provider said so far is kept
                    stack.callback(_measure, response, reply, model.price)
                    arriving = aiter(response)
                    arrived = await anext(arriving, None)
                breaker.worked()
                self._attempts = 0
                reply.ttft_ms = _ms_since(started)
                while arrived is not None:
                    if text := _text_of(arrived):
                        reply.pieces.append(text)
                        yield text
                    async with _within(model.next_token_timeout_s or BETWEEN_TOKENS_TIMEOUT_S, deadline):
                        arrived = await anext(arriving, None)
                self._take(response.get(), reply)
        except TimeoutError:
            raise failed("llm_timeout", "no token in time", request_id=reply.request_id, passes=True) from None
        except (exceptions.AgentRunError, exceptions.UserError, httpx2.HTTPError, OSError) as problem:
            if _could_not_connect(problem):
                breaker.could_not_connect()
            else:
                breaker.worked()
            raise _in_our_words(problem, reply.request_id) from None

    async def again(self, problem: ModelFailed, reply: Reply, *, models: Models, deadline: float) -> float | None:
        """Whether the round is asked once more, and after how many seconds; None: it has failed for good.

        Only before a first token, and only for what may pass: first the same model, as often as it may be asked,
        then its fallback, which this dialogue goes on with.
        """
        now = asyncio.get_running_loop().time()
        if reply.ttft_ms is not None or not problem.elsewhere or now >= deadline:
            return None
        wait_s = _pause_s(self._attempts, problem.retry_after_s)
        may_ask = problem.passes and self._attempts < self.model.attempts and not self.model.breaker.seconds_left()
        if may_ask and wait_s is not None:
            return wait_s if now + wait_s < deadline else None
        if self.model.wanted is not None:
            self._tried.add(self.model.wanted.server)
        other = await in_database(models.instead_of, self.model, self._tried)
        if other is None:
            return None
        self.model, self._attempts = other, 0
        return 0.0

    @property
    def instructions(self) -> str | None:
        """What the model is told about itself: its system prompt, and the prompts of the user's groups. Omni2's own
        plain words not, where the client says himself what it should be."""
        told = (self.model.system_prompt, *self._prompts)
        if self.wishes.own_dialogue:
            told = tuple(each for each in told if each != INSTRUCTIONS)
        return "\n\n".join(told) or None

    @property
    def withheld(self) -> list[str]:
        """The names of the client's tools that this model is not told of."""
        return [tool.name for tool in self.wishes.withheld_from(self.model)]

    def _request(self) -> AbstractAsyncContextManager[StreamedResponse]:
        *before, last = self.messages
        assert isinstance(last, ModelRequest)
        return model_request_stream(
            self.model.model,
            [*before, replace(last, instructions=self.instructions)],
            model_settings=self.wishes.settings_for(self.model),
            model_request_parameters=self.parameters,
            instrument=False,
        )

    @property
    def parameters(self) -> ModelRequestParameters:
        """The tools, for a model that takes any, and what the answer has to be. Raises ModelFailed for a wish that
        this model cannot grant."""
        self.wishes.demand(self.model)
        return self.wishes.parameters(self.model, self._tools)

    def _take(self, response: ModelResponse, reply: Reply) -> None:
        """The round is over: keep what was said, and note which tools are asked for."""
        reply.finish_reason = response.finish_reason
        reply.tool_calls = [_tool_call(part) for part in response.parts if isinstance(part, ToolCallPart)]
        if response.finish_reason == "content_filter":
            # also in the middle of an answer: what was said then is not all that it wanted to say
            raise failed("content_refused", "finish reason content_filter", request_id=reply.request_id)
        if not reply.pieces and not reply.tool_calls:
            raise ModelFailed("llm_failed", "The model said nothing.", request_id=reply.request_id)
        self.messages.append(response)

    def add_results(self, results: Sequence[tuple[ToolCall, str, bool]]) -> None:
        """What the tools answered (call, text, whether it worked), for the next round."""
        self.messages.append(
            ModelRequest(
                parts=[
                    ToolReturnPart(call.tool, text, call.call_id, outcome="success" if worked else "failed")
                    for call, text, worked in results
                ]
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


def _measure(response: StreamedResponse, reply: Reply, price: Price | None) -> None:
    """Tokens and cost, and what the provider calls its answer, as far as it has said them."""
    used = response.usage
    if used.input_tokens or used.output_tokens:
        reply.input_tokens, reply.output_tokens = used.input_tokens, used.output_tokens
        reply.cost_usd = price.of(used.input_tokens, used.output_tokens) if price else list_cost(response.get())
    reply.response_id = clean_text(response.provider_response_id or "")[:ID_CHARACTERS]


def list_cost(response: ModelResponse) -> Decimal | None:
    """US dollars by the price list that came with genai-prices; None for a model it does not know."""
    try:
        return response.cost().total_price
    except (LookupError, ValueError, AssertionError):
        return None


def _pause_s(attempt: int, retry_after_s: float | None) -> float | None:
    """How long to wait after so many requests that failed; None: longer than anybody would."""
    if retry_after_s is not None:
        return retry_after_s if retry_after_s <= RETRY_AFTER_AT_MOST_S else None
    least = BACK_OFF_S[min(attempt, len(BACK_OFF_S)) - 1]
    return least * random.uniform(1, 1.5)  # noqa: S311 - no secret


# --- failures ------------------------------------------------------------------------------------


def _could_not_connect(problem: BaseException) -> bool:
    return isinstance(problem, exceptions.ModelConnectionError) and problem.phase in ("connect", "pool")


def _in_our_words(problem: BaseException, request_id: str = "") -> ModelFailed:
    code = _code_of(problem)
    return failed(
        code,
        _for_operators(problem),
        request_id=request_id or _request_id_of(problem),
        passes=isinstance(problem, _PASSING),
        retry_after_s=getattr(problem, "retry_after", None),
    )


def _for_operators(problem: BaseException) -> str:
    """What went wrong, in one short line: the provider's body may repeat what the user wrote."""
    if isinstance(problem, exceptions.ModelHTTPError):
        kind = problem.provider_error_type or problem.provider_error_code or ""
        return f"HTTP {problem.status_code} {kind}".rstrip()
    first_line, _, _ = str(problem).partition("\n")
    return f"{type(problem).__name__}: {first_line}"[:200]


def _code_of(problem: BaseException) -> str:
    if isinstance(problem, exceptions.ModelRequestRejectedError):
        said = f"{problem.provider_error_type} {problem.provider_error_code}"
        if "context" in said:
            return "context_too_long"  # llama.cpp says exceed_context_size_error
        if any(word in said for word in _REFUSALS) or _is_flagged(problem.body):
            return "content_refused"
    if _could_not_connect(problem):
        return "llm_unavailable"
    return next((code for kinds, code in CODES if isinstance(problem, kinds)), "llm_failed")


def _is_flagged(body: object) -> bool:
    """OpenRouter's way to say that its moderation refused the question."""
    metadata = body.get("metadata") if isinstance(body, dict) else None
    return isinstance(metadata, dict) and "flagged_input" in metadata


_REFUSALS = ("content_filter", "content_policy", "moderation", "safety")
"""In the code or type with which OpenAI, Azure and who copies them reject a question for what it says."""

CODES: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    ((exceptions.ModelContextWindowExceededError,), "context_too_long"),
    ((exceptions.ContentFilterError,), "content_refused"),
    ((exceptions.ModelRateLimitError, exceptions.ModelQuotaExceededError), "llm_rate_limited"),
    ((exceptions.ModelTimeoutError, exceptions.ModelRequestTimeout), "llm_timeout"),
    ((exceptions.ModelUnavailableError,), "llm_unavailable"),
)

# What may be over in a moment. Not an exhausted quota, a wrong key or a rejected request.
_PASSING = (
    exceptions.ModelRateLimitError,
    exceptions.ModelUnavailableError,
    exceptions.ModelServerError,
    exceptions.ModelConnectionError,
    exceptions.ModelRequestTimeout,
    httpx2.TransportError,
    OSError,
)
