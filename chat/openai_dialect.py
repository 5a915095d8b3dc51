"""POST /v1/chat/completions: how OpenAI's clients ask, are refused and are answered.

The way of a request is that of every other (chat.endpoint): the same doors, checks, limits and checkpoints.
"""

import time
from collections.abc import Mapping
from typing import Any

from chat import sse
from chat.brought import Brought
from chat.checks import Admission, Question, Refused
from chat.client_side import client_side
from chat.endpoint import (
    HEARTBEAT_S,
    STATUS_OF,
    Header,
    Scope,
    Send,
    answer_headers,
    send_json,
    turn_headers,
)
from chat.openai_request import read_request
from chat.threads import spoken, threads
from chat.turn import Audience
from flows.tracker import TurnTrack

CLIENT = "openai"
RETRY_WITHIN_S = 60
DONE = b"data: [DONE]\n\n"

# Of failures that OpenAI's clients have a class for, which the ask routes answer otherwise.
STATUS: Mapping[str, int] = {
    **STATUS_OF,
    "llm_rate_limited": 429,
    "content_refused": 400,
    "tools_not_supported": 400,
    "images_not_supported": 400,
    "format_not_supported": 400,
    "stopped": 409,
}
# The field that is to blame, where the code says it.
PARAM_OF = {
    "model_not_found": "model",
    "tools_not_supported": "tool_choice",
    "images_not_supported": "messages",
    "format_not_supported": "response_format",
    "context_too_long": "messages",
    "content_refused": "messages",
}
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
# What may be gone in a moment. OpenAI's clients try 408, 409, 429 and 5xx again by themselves, at once and for
# each code: what was answered by a turn that ran would only cost its user another one.
PASSING = frozenset(
    {
        "too_many_turns",
        "usage_limit",
        "server_busy",
        "database_unavailable",
        "request_timeout",
        "llm_unavailable",
        "llm_rate_limited",
        "server_stopping",
    }
)
FINISH_REASONS = {"length": "length", "content_filter": "content_filter"}


def error(status: int, told: Any) -> dict[str, Any]:
    """An error in OpenAI's shape, of the body of a refusal in ours; what else that says stands beside it."""
    if not isinstance(told, dict) or not isinstance(told.get("detail"), str):
        # errors of single fields, as DRF writes them
        name, words = next(iter(told.items())) if isinstance(told, dict) and told else ("", "This cannot be read.")
        words = words[0] if isinstance(words, list) and words else words
        told = {"detail": f"{name}: {words}", "code": "invalid_value", "param": name or None}
    more = {key: value for key, value in told.items() if key not in ("detail", "code", "param", "message")}
    code = told.get("code")
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    shape = {"message": told["detail"], "type": kind, "param": told.get("param") or PARAM_OF.get(code or "")}
    return {"error": {**shape, "code": code, **more}}


def retry_headers(status: int, code: str, retry_after_s: int | None) -> list[Header]:
    """Keeps OpenAI's clients from asking again where that is in vain."""
    tries_again = status in (408, 409, 429) or status >= 500
    if tries_again and (code not in PASSING or (retry_after_s or 0) > RETRY_WITHIN_S):
        return [(b"x-should-retry", b"false")]
    return []


class OpenAIDialect:
    """How a chat completion is asked for and told."""

    def read(self, scope: Scope, body: bytes) -> Question:
        headers = sorted(value for name, value in scope["headers"] if name.lower() in (b"authorization", b"cookie"))
        return read_request(body, client_side(scope, client=CLIENT), b"\n".join(headers))

    def refusal(self, refused: Refused) -> tuple[Any, list[Header]]:
        return error(refused.status, refused.body), retry_headers(refused.status, refused.code, refused.retry_after_s)

    def audience(self, send: Send, turn: TurnTrack, question: Question, admission: Admission) -> Audience:
        brought = question.brought
        assert brought is not None
        assert admission.model is not None
        told = Completion(turn, brought, admission.model.name, turn_headers(turn, admission))
        return StreamedCompletion(send, told) if brought.stream else WholeCompletion(send, told)


DIALECT = OpenAIDialect()


class Completion:
    """What a completion is made of, streamed or whole."""

    def __init__(self, turn: TurnTrack, brought: Brought, model: str, headers: list[Header]) -> None:
        self.turn = turn
        self.brought = brought
        self.model = model
        self.created = int(time.time())
        self.pieces: list[str] = []
        self.calls: list[dict[str, Any]] = []
        # x-request-id: what OpenAI's clients show as the id of a request
        self.headers = [*headers, (b"x-request-id", turn.turn_id.encode())]

    def envelope(self, kind: str, **content: Any) -> dict[str, Any]:
        about = {"id": f"chatcmpl-{self.turn.turn_id}", "object": kind, "created": self.created, "model": self.model}
        return {**about, **content}

    def take_call(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """A call that is handed over, as it stands in a message."""
        function = {"name": data["tool"], "arguments": data["arguments"]}
        call = {"id": data["call_id"], "type": "function", "function": function}
        self.calls.append(call)
        return call

    def finish(self, summary: Mapping[str, Any]) -> str:
        """Why it ended. What was said is remembered, so that this client's next request is known by it."""
        self.model = summary["model"]
        thread, text = self.brought.thread, "".join(self.pieces)
        thread.hear([spoken(text, [call["id"] for call in self.calls])])
        threads.remember(thread.key, self.turn.session_id)
        if self.calls:
            return "tool_calls"
        return FINISH_REASONS.get(summary["finish_reason"] or "", "stop")

    def usage(self, summary: Mapping[str, Any]) -> dict[str, int]:
        read, written = summary["usage"]["input_tokens"], summary["usage"]["output_tokens"]
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def was_filtered(self, data: Mapping[str, Any]) -> bool:
        """The provider's filter ended it in the middle: for OpenAI's clients that is an answer with that reason."""
        return data["code"] == "content_refused" and bool(self.pieces)

    def failure(self, data: Mapping[str, Any]) -> tuple[int, dict[str, Any], list[Header]]:
        """How a turn that failed is told: status, body, headers."""
        code = data["code"]
        status = STATUS.get(code, 502)
        ids = {"turn_id": self.turn.turn_id, "session_id": self.turn.session_id}
        body = error(status, {"detail": data["message"], "code": code, **ids})
        return status, body, [*self.headers, *retry_headers(status, code, None)]


class WholeCompletion:
    """A client that waits for the whole completion."""

    def __init__(self, send: Send, told: Completion) -> None:
        self._send = send
        self._told = told

    async def hear(self, name: str, data: Mapping[str, Any]) -> None:
        told = self._told
        match name:
            case "token":
                told.pieces.append(data["text"])
            case "handed_over":
                told.take_call(data)
            case "done":
                await send_json(self._send, 200, self._whole(told.finish(data), usage=told.usage(data)), told.headers)
            case "error" if told.was_filtered(data):
                await send_json(self._send, 200, self._whole("content_filter"), told.headers)
            case "error":
                await send_json(self._send, *told.failure(data))

    def _whole(self, reason: str, **usage: Any) -> dict[str, Any]:
        told = self._told
        text = "".join(told.pieces)
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not told.calls else None}
        message["refusal"] = None
        if told.calls:
            message["tool_calls"] = told.calls
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        return told.envelope("chat.completion", choices=[choice], **usage)

    def quiet_for_s(self) -> float | None:
        return None

    async def heartbeat(self) -> None:
        """JSON has no comments."""


class StreamedCompletion:
    """A client that reads the completion as it is made, in chunks.

    Nothing is sent before the model says something, or a heartbeat is due: a failure until then has its own status,
    and the client raises what belongs to it."""

    def __init__(self, send: Send, told: Completion) -> None:
        self._send = send
        self._told = told
        self._last_sent = time.monotonic()
        self._begun = False
        self._role_said = False
        self._over = False

    async def hear(self, name: str, data: Mapping[str, Any]) -> None:
        told = self._told
        match name:
            case "token":
                told.pieces.append(data["text"])
                await self._put(self._delta(content=data["text"]))
            case "handed_over":
                await self._put(self._call(len(told.calls), told.take_call(data)))
            case "done":
                await self._end(told.finish(data), told.usage(data))
            case "error" if told.was_filtered(data):
                await self._end("content_filter", None)
            case "error":
                await self._fail(data)

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        chunk = self._told.envelope("chat.completion.chunk", choices=choices, **more)
        if self._told.brought.include_usage:
            chunk.setdefault("usage", None)
        return b"data: %b\n\n" % sse.encode(chunk).encode()

    def _delta(self, *, reason: str | None = None, **delta: Any) -> bytes:
        """A piece of the message; before the first one stands whose message it is."""
        before = b""
        if not self._role_said:
            self._role_said = True
            before = self._delta(role="assistant", content="", refusal=None)
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return before + self._chunk([choice])

    def _call(self, index: int, call: dict[str, Any]) -> bytes:
        """A call as OpenAI streams it: first its name, then its arguments."""
        named = {**call, "function": {"name": call["function"]["name"], "arguments": ""}}
        given = {"function": {"arguments": call["function"]["arguments"]}}
        return self._delta(tool_calls=[{"index": index, **named}]) + self._delta(tool_calls=[{"index": index, **given}])

    async def _end(self, reason: str, usage: Mapping[str, int] | None) -> None:
        last = self._delta(reason=reason)
        if self._told.brought.include_usage and usage is not None:
            last += self._chunk([], usage=usage)
        self._over = True
        await self._put(last + DONE)

    async def _fail(self, data: Mapping[str, Any]) -> None:
        status, body, headers = self._told.failure(data)
        self._over = True
        if self._begun:
            await self._put(b"data: %b\n\n" % sse.encode(body).encode())
        else:
            await send_json(self._send, status, body, headers)

    async def _put(self, data: bytes) -> None:
        if not self._begun:
            self._begun = True
            headers = [*answer_headers(b"text/event-stream; charset=utf-8"), *self._told.headers]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        self._last_sent = time.monotonic()
        await self._send({"type": "http.response.body", "body": data, "more_body": not self._over})

    def quiet_for_s(self) -> float:
        return max(0.0, self._last_sent + HEARTBEAT_S - time.monotonic())

    async def heartbeat(self) -> None:
        if not (self.quiet_for_s() or self._over):
            await self._put(sse.HEARTBEAT)
