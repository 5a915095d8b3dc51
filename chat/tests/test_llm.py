"""Which model answers, when it is not even asked, what it costs."""

import time
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic_ai import exceptions
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.usage import RequestUsage

from chat import llm
from chat.llm import Breaker, Models, ModelUnavailable
from chat.tools import TOOLS


@pytest.fixture
def configured(settings: Any) -> Any:
    """configured(LLM_MODEL=…): these settings and no others."""

    def put(**values: str) -> None:
        for name in ("LLM_BASE_URL", "LLM_API_KEY", "LOCAL_MODEL_URL", "LOCAL_MODEL_KEY"):
            setattr(settings, name, "")
        settings.LLM_MODEL = "local"
        for name, value in values.items():
            setattr(settings, name, value)

    return put


def test_the_local_model_gets_no_tools_and_a_small_memory(configured: Any) -> None:
    configured(LOCAL_MODEL_URL="http://127.0.0.1:1/v1", LOCAL_MODEL_KEY="k")
    model = Models().answering("bob@example.com")
    assert (model.name, model.provider) == ("local", "local")
    assert not model.takes_tools
    assert model.memory_characters == llm.LOCAL_MEMORY_CHARACTERS
    assert model.settings["max_tokens"] == llm.LOCAL_ANSWER_TOKENS
    assert llm.Dialogue(model, [], "Hello", TOOLS.values()).parameters.function_tools == []


def test_any_name_goes_with_a_base_url(configured: Any) -> None:
    configured(LLM_MODEL="llama3:8b-instruct", LLM_BASE_URL="http://127.0.0.1:1/v1")
    model = Models().answering("bob@example.com")
    assert (model.name, model.provider) == ("llama3:8b-instruct", "openai-compatible")
    assert model.model.model_name == "llama3:8b-instruct"
    assert model.takes_tools


@pytest.mark.parametrize(
    ("name", "provider"), [("openai:gpt-5.2", "openai"), ("anthropic:claude-sonnet-4-5", "anthropic")]
)
def test_a_pydantic_ai_name_goes_with_our_key(name: str, provider: str, configured: Any) -> None:
    configured(LLM_MODEL=name, LLM_API_KEY="a-key-of-ours")
    model = Models().answering("bob@example.com")
    assert (model.name, model.provider) == (name.partition(":")[2], provider)
    assert model.model.client.api_key == "a-key-of-ours"  # type: ignore[attr-defined]


def test_a_scripted_model_is_shown_as_scripted(configured: Any) -> None:
    configured(LLM_MODEL="scripted-demo", LLM_BASE_URL="http://127.0.0.1:1/v1")
    assert Models().answering("bob@example.com").provider == "scripted"


def test_a_model_is_made_once(configured: Any) -> None:
    configured(LLM_MODEL="x", LLM_BASE_URL="http://127.0.0.1:1/v1")
    models = Models()
    assert models.answering("bob@example.com") is models.answering("charlie@example.com")


def test_demonstration_users_get_the_scripted_model_and_no_other(configured: Any, settings: Any, tmp_path: Any) -> None:
    import os

    from chat import demonstration

    configured(LLM_MODEL="x", LLM_BASE_URL="http://127.0.0.1:1/v1")
    settings.DATA_DIR = tmp_path
    models = Models()
    dora = f"dora@{demonstration.DOMAIN}"
    server = demonstration.ModelServer("http://127.0.0.1:2/v1", "key", os.getpid())

    def nothing_for_dora() -> None:
        with pytest.raises(ModelUnavailable):
            models.answering(dora)

    nothing_for_dora()
    demonstration.announce(server)
    assert demonstration.server_file().stat().st_mode & 0o777 == 0o600
    assert (models.answering(dora).name, models.answering(dora).provider) == ("scripted-demo", "scripted")
    assert models.answering("bob@example.com").name == "x"
    demonstration.withdraw(demonstration.ModelServer("http://elsewhere", "", 1))
    assert models.answering(dora).provider == "scripted"
    demonstration.withdraw(server)
    nothing_for_dora()
    demonstration.announce(demonstration.ModelServer(server.url, "key", 2**22 + 1))  # its process is gone
    nothing_for_dora()
    demonstration.server_file().write_text("{")
    nothing_for_dora()


def test_the_breaker_opens_after_three_failures_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    breaker = Breaker()
    for _ in range(2):
        breaker.could_not_connect()
    breaker.worked()
    for _ in range(2):
        breaker.could_not_connect()
    assert breaker.seconds_left() == 0
    breaker.could_not_connect()
    assert 0 < breaker.seconds_left() <= Breaker.OPEN_S
    now = time.monotonic() + Breaker.OPEN_S + 1
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert breaker.seconds_left() == 0, "it tries again"
    breaker.could_not_connect()
    assert breaker.seconds_left() > 0, "one more failure is enough"
    breaker.worked()
    assert breaker.seconds_left() == 0


def test_an_open_breaker_is_known_without_asking(configured: Any) -> None:
    configured(LLM_MODEL="x", LLM_BASE_URL="http://127.0.0.1:1/v1")
    models = Models()
    breaker = models.answering("bob@example.com").breaker
    for _ in range(Breaker.FAILURES):
        breaker.could_not_connect()
    with pytest.raises(ModelUnavailable) as away:
        models.answering("bob@example.com")
    assert 1 <= away.value.retry_after_s <= 10


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (exceptions.ModelHTTPError(500, "m"), "llm_failed"),
        (exceptions.ModelRateLimitError("m", "slow down"), "llm_rate_limited"),
        (exceptions.ModelQuotaExceededError("m", "pay"), "llm_rate_limited"),
        (exceptions.ModelOverloadedError("m", "busy"), "llm_unavailable"),
        (exceptions.ModelUnavailableError("m", "away"), "llm_unavailable"),
        (exceptions.ModelTimeoutError("m", "late", phase="read"), "llm_timeout"),
        (exceptions.ModelTimeoutError("m", "late", phase="connect"), "llm_unavailable"),
        (exceptions.ModelConnectionError("m", "no", phase="connect"), "llm_unavailable"),
        (exceptions.ModelConnectionError("m", "cut", phase="read"), "llm_failed"),
        (exceptions.ModelContextWindowExceededError("m", "long"), "context_too_long"),
        (
            exceptions.ModelRequestRejectedError("m", "x", provider_error_type="exceed_context_size_error"),
            "context_too_long",
        ),
        (exceptions.ModelRequestRejectedError("m", "x"), "llm_failed"),
        (exceptions.ModelAuthenticationError("m", "x"), "llm_failed"),
        (exceptions.UnexpectedModelBehavior("x"), "llm_failed"),
        (exceptions.UserError("x"), "llm_failed"),
        (OSError("x"), "llm_failed"),
    ],
)
def test_every_failure_has_a_code(problem: Exception, code: str) -> None:
    failure = llm._in_our_words(problem)
    assert failure.code == code
    assert failure.message == llm.WORDS[code]


def test_no_answer_of_a_model_is_written_into_the_log() -> None:
    odd = llm._in_our_words(exceptions.UnexpectedModelBehavior("no such shape", '{"said": "what Bob told it"}'))
    assert str(odd) == "llm_failed: UnexpectedModelBehavior: no such shape, body:"
    refused = llm._in_our_words(exceptions.ModelHTTPError(400, "m", {"message": "what Bob told it"}))
    assert str(refused) == "llm_failed: HTTP 400"


def response(model: str, provider: str, url: str) -> ModelResponse:
    return ModelResponse(
        parts=[TextPart("x")],
        model_name=model,
        provider_name=provider,
        provider_url=url,
        usage=RequestUsage(input_tokens=1000, output_tokens=500),
    )


def test_a_known_model_has_a_price_and_an_unknown_one_has_none() -> None:
    known = llm.list_cost(response("gpt-4o", "openai", "https://api.openai.com/v1/"))
    assert known is not None
    assert Decimal("0.001") < known < Decimal("0.1")
    assert llm.list_cost(response("scripted-model", "scripted", "http://127.0.0.1:1/v1")) is None
    assert llm.list_cost(response("local", "local", "http://127.0.0.1:1/v1")) is None


def test_tokens_nobody_told_are_unknown_and_not_zero() -> None:
    reply = llm.Reply()
    llm._measure(SimpleNamespace(usage=RequestUsage(), provider_response_id=None), reply, None)  # type: ignore[arg-type]
    assert (reply.input_tokens, reply.output_tokens, reply.cost_usd) == (None, None, None)
