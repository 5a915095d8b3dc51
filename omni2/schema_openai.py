"""The addresses under /v1/ in the OpenAPI description: what of OpenAI's API Omni2 answers, and how.

Only what Omni2 reads and says; OpenAI's own reference has the rest of each shape.
"""

from typing import Any

Schema = dict[str, Any]

_STRING: Schema = {"type": "string"}
_NULLABLE: Schema = {"type": "string", "nullable": True}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_OBJECT: Schema = {"type": "object", "additionalProperties": True}
_REASONS = ["stop", "length", "tool_calls", "content_filter"]


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _shape(properties: Schema, *required: str, **more: Any) -> Schema:
    shape = {"type": "object", "properties": properties, **more}
    return {**shape, "required": list(required)} if required else shape


COMPONENTS: Schema = {
    "OpenAIError": _shape(
        {
            "error": _shape(
                {
                    "message": {**_STRING, "description": "for people"},
                    "type": _STRING,
                    "param": {**_NULLABLE, "description": "the field that is wrong"},
                    "code": {**_NULLABLE, "description": "for programs; Omni2's own, as on the other routes"},
                },
                "message",
                "type",
                "param",
                "code",
                additionalProperties=True,
            )
        },
        "error",
        description="An error in OpenAI's shape. `turn_id` and `session_id` are there when a turn was recorded.",
    ),
    "OpenAIModel": _shape(
        {"id": _STRING, "object": {"type": "string", "enum": ["model"]}, "created": _COUNT, "owned_by": _STRING},
        *("id", "object", "created", "owned_by"),
    ),
    "OpenAIModels": _shape(
        {
            "object": {"type": "string", "enum": ["list"]},
            "data": {"type": "array", "items": _ref("OpenAIModel")},
        },
        *("object", "data"),
    ),
    "OpenAICompletionRequest": _shape(
        {
            "model": {**_STRING, "minLength": 1, "maxLength": 200},
            "messages": {
                "type": "array",
                "minItems": 1,
                "description": "The whole dialogue; Omni2 adds no memory of its own",
                "items": _shape(
                    {
                        "role": {"type": "string", "enum": ["system", "developer", "user", "assistant", "tool"]},
                        "content": {"description": "text, or a list of parts (text, image_url)"},
                    },
                    "role",
                    additionalProperties=True,
                ),
            },
            "stream": {"type": "boolean", "nullable": True},
            "stream_options": {**_shape({"include_usage": {"type": "boolean"}}), "nullable": True},
            "tools": {"type": "array", "maxItems": 128, "nullable": True, "items": _OBJECT},
            "tool_choice": {"nullable": True, "description": "none, auto, required or a function"},
            "parallel_tool_calls": {"type": "boolean", "nullable": True},
            "temperature": {"type": "number", "minimum": 0, "maximum": 2, "nullable": True},
            "top_p": {"type": "number", "minimum": 0, "maximum": 1, "nullable": True},
            "max_tokens": {"type": "integer", "minimum": 1, "nullable": True},
            "max_completion_tokens": {"type": "integer", "minimum": 1, "nullable": True},
            "stop": {"nullable": True, "description": "a string, or a list of them"},
            "seed": {"type": "integer", "nullable": True},
            "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2, "nullable": True},
            "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2, "nullable": True},
            "logit_bias": {**_OBJECT, "nullable": True},
            "reasoning_effort": {**_NULLABLE},
            "response_format": {**_OBJECT, "nullable": True},
            "metadata": {**_OBJECT, "nullable": True, "description": "`session_id`: the conversation that goes on"},
            "user": {**_NULLABLE, "description": "the client's name for its end user: kept, never believed"},
        },
        *("model", "messages"),
        additionalProperties=True,
        description="What would change the answer and is not listed is refused by name; what only hints is ignored.",
    ),
    "OpenAICompletion": _shape(
        {
            "id": {**_STRING, "description": "`chatcmpl-` and the turn_id"},
            "object": {"type": "string", "enum": ["chat.completion"]},
            "created": _COUNT,
            "model": _STRING,
            "choices": {
                "type": "array",
                "items": _shape(
                    {
                        "index": _COUNT,
                        "message": _OBJECT,
                        "finish_reason": {"type": "string", "enum": _REASONS},
                        "logprobs": {"nullable": True},
                    },
                    *("index", "message", "finish_reason"),
                ),
            },
            "usage": _shape(
                {"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT},
                *("prompt_tokens", "completion_tokens", "total_tokens"),
            ),
        },
        *("id", "object", "created", "model", "choices"),
    ),
}

_HEADERS: Schema = {
    name: {"description": text, "schema": _STRING}
    for name, text in {
        "X-Omni2-Turn-Id": "The turn: its tree in the history",
        "X-Omni2-Session-Id": "The conversation: send it back as X-Session-Id to go on",
    }.items()
}


def _error(description: str, **headers: str) -> Schema:
    answer: Schema = {"description": description, "content": {"application/json": {"schema": _ref("OpenAIError")}}}
    if headers:
        answer["headers"] = {
            name.replace("_", "-"): {"description": text, "schema": _STRING} for name, text in headers.items()
        }
    return answer


_NO_DATABASE = _error("`database_unavailable`", Retry_After="Seconds until it is worth another try")
_KNOWN: Schema = {
    "400": _error("The request cannot be understood"),
    "401": _error("No token or session, or a bad one"),
    "403": _error("`inactive`, `user_blocked` or `csrf_failed`"),
    "503": _NO_DATABASE,
}
_SIGNED_IN: list[Schema] = [{"bearer": []}, {"session": []}]

PATHS: Schema = {
    "/v1/chat/completions": {
        "post": {
            "operationId": "openai_chat_completions",
            "summary": "A chat completion, for any client of OpenAI's API",
            "description": "One turn, checked, limited and recorded like any other. `stream` gives chunks as "
            'Server-Sent Events, then `data: [DONE]`; an error after the first word is `data: {"error": …}`. '
            "Closing the connection cancels the model call.",
            "security": _SIGNED_IN,
            "parameters": [
                {
                    "name": "X-Session-Id",
                    "in": "header",
                    "required": False,
                    "description": "The conversation that goes on, or begins under this id",
                    "schema": {"type": "string", "format": "uuid"},
                }
            ],
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": _ref("OpenAICompletionRequest")}},
            },
            "responses": {
                **_KNOWN,
                "200": {
                    "description": "The completion; with `stream` its chunks",
                    "headers": _HEADERS,
                    "content": {
                        "application/json": {"schema": _ref("OpenAICompletion")},
                        "text/event-stream": {"schema": _STRING},
                    },
                },
                "404": _error("`model_not_found`, or `not_found`: no such session of this user"),
                "408": _error("`request_timeout`: the body took too long to arrive"),
                "409": _error("`stopped`: somebody stopped it"),
                "413": _error("`body_too_large`: more than 1 MiB"),
                "429": _error(
                    "`usage_limit`, `too_many_turns` or `llm_rate_limited`",
                    Retry_After="Seconds until it is worth another try",
                    x_should_retry="`false` where OpenAI's clients should not try again by themselves",
                ),
                "500": _error("`internal_error`"),
                "502": _error("`llm_failed`, or what else kept the model from answering"),
                "503": _error("`llm_unavailable`, `server_busy`, `server_stopping` or `database_unavailable`"),
                "504": _error("`llm_timeout`"),
            },
        }
    },
    "/v1/models": {
        "get": {
            "operationId": "openai_models",
            "summary": "The models the caller may use, for any client of OpenAI's API",
            "security": _SIGNED_IN,
            "responses": {
                **_KNOWN,
                "200": {
                    "description": "The models",
                    "content": {"application/json": {"schema": _ref("OpenAIModels")}},
                },
            },
        }
    },
    "/v1/models/{model}": {
        "get": {
            "operationId": "openai_model",
            "summary": "One of the models the caller may use",
            "security": _SIGNED_IN,
            "parameters": [{"name": "model", "in": "path", "required": True, "schema": _STRING}],
            "responses": {
                **_KNOWN,
                "200": {
                    "description": "The model",
                    "content": {"application/json": {"schema": _ref("OpenAIModel")}},
                },
                "404": _error("`model_not_found`"),
            },
        }
    },
}
