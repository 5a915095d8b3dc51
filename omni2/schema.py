"""The OpenAPI description of the whole API, also of what DRF does not see.

The two ask routes and those of OpenAI's API (omni2.schema_openai) are ASGI routes below Django, so they are described
by hand; the shape of errors is added to every operation. `manage.py spectacular --validate --fail-on-warn` must pass.
"""

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework import serializers

from omni2 import schema_openai

Schema = dict[str, Any]

FIELD_ERRORS: Schema = {"$ref": "#/components/schemas/FieldErrors"}


class ErrorSerializer(serializers.Serializer[Any]):
    """Any error that is not about single fields."""

    detail = serializers.CharField(help_text="for people")
    code = serializers.CharField(help_text="for programs; does not change")


ERROR = ErrorSerializer


class ApiAuthenticationScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """Both ways to say who one is; the header wins."""

    target_class = "omni2.accounts.authenticate.ApiAuthentication"
    name = ["bearer", "session"]

    def get_security_requirement(self, auto_schema: Any) -> list[dict[str, list[Any]]]:
        return [{"bearer": []}, {"session": []}]

    def get_security_definition(self, auto_schema: Any) -> list[Schema]:
        return [BEARER, SESSION]


BEARER: Schema = {
    "type": "http",
    "scheme": "bearer",
    "description": "A token from the page /account/tokens/, from POST /api/v1/auth/token or `manage.py create_token`.",
}
SESSION: Schema = {
    "type": "apiKey",
    "in": "cookie",
    "name": "sessionid",
    "description": "The browser session. Whatever changes something also needs the header X-CSRFToken.",
}


DESCRIPTIONS = {
    "200": "Done",
    "201": "Made",
    "204": "Done; nothing to say",
    "400": "The body is not JSON, or a field is wrong",
    "401": "No token or session, or a bad one",
    "403": "Not allowed",
    "404": "Nothing there, or nothing this reader may know of",
    "409": "Not as things are now",
    "413": "`body_too_large`: more than 1 MiB",
    "429": "Too many; `Retry-After` says how many seconds to wait",
    "503": "`database_unavailable`; `Retry-After` says how many seconds to wait",
}


def complete(result: Schema, generator: Any, request: Any, public: bool) -> Schema:
    """drf-spectacular's last step: add the ask routes, the docs page and the errors every route may answer."""
    components = result.setdefault("components", {}).setdefault("schemas", {})
    components.update(COMPONENTS | schema_openai.COMPONENTS)
    result["paths"] = dict(sorted({**result["paths"], **ASK_PATHS, **schema_openai.PATHS, **DOCS_PATH}.items()))
    for path, item in result["paths"].items():
        for method, operation in item.items():
            if method != "parameters":
                operation["tags"] = [_tag(path)]
                _complete_operation(operation)
    return result


def _tag(path: str) -> str:
    """The area an address belongs to: /api/v1/monitoring/enable → monitoring."""
    if path.startswith("/v1/"):
        return "openai"
    area = path.removeprefix("/api/").removeprefix("v1/").split("/")[0]
    return "description" if area in {"schema", "docs"} else area


def _complete_operation(operation: Schema) -> None:
    content = operation.get("requestBody", {}).get("content", {})
    if "*/*" in content:
        # read as JSON whatever it is called; this is what it should be called
        content["application/json"] = content.pop("*/*")
    responses = operation["responses"]
    possible = {
        "400": True,
        "401": bool(operation.get("security")),
        "403": bool(operation.get("security")),
        "404": any(parameter["in"] == "path" for parameter in operation.get("parameters", [])),
        "413": bool(content),
        "503": True,
    }
    for status in (status for status, may_be in possible.items() if may_be):
        responses.setdefault(status, {"description": ""})
    for status, answer in responses.items():
        answer["description"] = answer["description"] or DESCRIPTIONS.get(status, "")
        if status >= "400":
            error = FIELD_ERRORS if status == "400" and content else _ref("Error")
            answer.setdefault("content", {"application/json": {"schema": error}})
    operation["responses"] = dict(sorted(responses.items()))


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: Schema, description: str, *, optional: tuple[str, ...] = ()) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "description": description, "properties": properties, "required": required}


def _answer(description: str, schema: Schema, media_type: str = "application/json", **headers: str) -> Schema:
    answer: Schema = {"description": description, "content": {media_type: {"schema": schema}}}
    if headers:
        answer["headers"] = {
            name.replace("_", "-"): {"description": text, "schema": {"type": "string"}}
            for name, text in headers.items()
        }
    return answer


_STRING: Schema = {"type": "string"}
_UUID: Schema = {"type": "string", "format": "uuid"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_MS: Schema = {"type": "number", "minimum": 0}

COMPONENTS: Schema = {
    "Error": _object({"detail": _STRING, "code": _STRING}, "An error: `detail` for people, `code` for programs."),
    "FieldErrors": {
        "type": "object",
        "description": "What is wrong with which field; or `detail` and `code` when it is not about one field.",
        "additionalProperties": {"oneOf": [_STRING, {"type": "array", "items": _STRING}]},
        "example": {"limit": ["A whole number from 1 to 500 is needed."]},
    },
    "Ask": _object(
        {
            "message": {"type": "string", "minLength": 1, "description": "What is asked"},
            "session_id": {
                **_UUID,
                "nullable": True,
                "description": "Continues this conversation; without it a new one begins",
            },
        },
        "One message.",
        optional=("session_id",),
    ),
    "AskUsage": _object(
        {
            "input_tokens": _COUNT,
            "output_tokens": _COUNT,
            "cost_usd": {"type": "number", "nullable": True, "description": "null: the price is not known"},
        },
        "What the turn used.",
    ),
    "Tracked": _object(
        {"checkpoints": _COUNT, "durable": _COUNT},
        "How many checkpoints the turn made, and how many the log has acknowledged.",
    ),
    "Answer": _object(
        {
            "answer": _STRING,
            "session_id": _UUID,
            "turn_id": _UUID,
            "model": _STRING,
            "usage": _ref("AskUsage"),
            "duration_ms": _MS,
            "tracked": _ref("Tracked"),
            "limits": {"type": "array", "items": _ref("NearLimit"), "description": "only when little of one is left"},
        },
        "The whole answer at once.",
        optional=("limits",),
    ),
    "NearLimit": _object(
        {
            "limit_name": _STRING,
            "used": {"type": "number"},
            "limit": {"type": "number"},
            "resets_at": {"type": "string", "format": "date-time"},
        },
        "A limit of which four fifths or more are used, this turn counted in.",
    ),
    "Refusal": {
        **_object(
            {
                "detail": _STRING,
                "code": _STRING,
                "turn_id": {**_UUID, "description": "of the refused turn, where one was recorded"},
                "session_id": _UUID,
                "used": {"type": "number"},
                "limit": {"type": "number"},
                "limit_name": _STRING,
                "resets_at": {"type": "string", "format": "date-time"},
            },
            "Why a turn was refused.",
            optional=("turn_id", "session_id", "used", "limit", "limit_name", "resets_at"),
        ),
        "additionalProperties": True,
    },
}

EVENTS = ["session", "token", "tool_call", "approval", "tool_result", "done", "error"]
_EVENTS = """A stream of Server-Sent Events, each `event:` with one line of JSON as `data:`

| event | data |
|---|---|
| `session` | `{"session_id","turn_id"}`, first of all |
| `token` | `{"text"}` as the model produces it |
| `tool_call` | `{"tool","call_id"}` |
| `approval` | `{"tool","server","call_id","arguments","expires_in_s","turn_id"}`: this call waits for the user's yes |
| `tool_result` | `{"tool","call_id","status","duration_ms"}` |
| `done` | as the answer of `POST /api/v1/ask`, without `answer` |
| `error` | `{"code","message","turn_id"}`; after it the stream ends |

A comment line comes when nothing was sent for 15 s. Closing the connection cancels the model call."""

_EVENT: Schema = _object(
    {"event": {"type": "string", "enum": EVENTS}, "data": {"type": "string", "description": "JSON, as described"}},
    "One event of the stream.",
)

RATE_LIMITS = {
    "RateLimit_Policy": "Every limit of this user: its name, how much (`q`), in how many seconds (`w`)",
    "RateLimit": "What is left of each (`r`), and after how many seconds there is more (`t`)",
}

_REFUSALS: Schema = {
    "400": _answer("The body is not JSON, or a field is wrong", FIELD_ERRORS),
    "401": _answer("No token, or a bad one", _ref("Refusal")),
    "403": _answer(
        "`inactive`, `user_blocked` (with the message meant for the user) or `csrf_failed`", _ref("Refusal")
    ),
    "404": _answer("`not_found`: no such session of this user", _ref("Error")),
    "413": _answer("`body_too_large`", _ref("Error")),
    "429": _answer(
        "`usage_limit` or `too_many_turns`",
        _ref("Refusal"),
        Retry_After="Seconds until it is worth another try",
        **RATE_LIMITS,
    ),
    "503": _answer("`llm_unavailable` or `database_unavailable`", _ref("Refusal")),
}


def _ask(operation_id: str, summary: str, responses: Schema) -> Schema:
    return {
        "post": {
            "operationId": operation_id,
            "summary": summary,
            "description": "One turn: a message and its answer. The body is read as JSON whatever its Content-Type.",
            "security": [{"bearer": []}, {"session": []}],
            "requestBody": {"required": True, "content": {"application/json": {"schema": _ref("Ask")}}},
            "responses": {**responses, **_REFUSALS},
        }
    }


ASK_PATHS: Schema = {
    "/api/v1/ask": _ask(
        "ask",
        "Ask, and get the whole answer at once",
        {
            "200": _answer("The answer", _ref("Answer"), **RATE_LIMITS),
            "502": _answer("`llm_failed`: the model did not answer properly", _ref("Refusal")),
            "504": _answer("`llm_timeout`", _ref("Refusal")),
        },
    ),
    "/api/v1/ask/stream": _ask(
        "ask_stream",
        "Ask, and get the answer as it is made",
        {"200": _answer(_EVENTS, _EVENT, "text/event-stream", **RATE_LIMITS)},
    ),
}
DOCS_PATH: Schema = {
    "/api/docs/": {
        "get": {
            "operationId": "docs",
            "summary": "This description as a page to try things on",
            "security": [{}],
            "responses": {"200": _answer("The page", _STRING, "text/html")},
        }
    }
}
