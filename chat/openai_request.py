"""The body of POST /v1/chat/completions: what is asked, in our words, or which field is wrong.

What would change the answer and cannot be done is refused by name; what only hints is ignored. The fields are those of
OpenAI's API reference, "Create chat completion".
"""

import math
import re
from collections.abc import Mapping
from typing import Any, cast
from uuid import UUID

from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from chat.brought import Brought
from chat.checks import ClientSide, Question, parse
from chat.llm import JSON_OBJECT, Wishes
from chat.openai_messages import read_messages
from chat.openai_wrong import unsupported, wrong
from chat.threads import Thread, threads
from flows.checkpoints import clean_text

Body = Mapping[str, Any]

MODEL_CHARACTERS = 200
LABEL_CHARACTERS = 200
TOOLS = 128
STOPS = 16
TOKENS = 1_000_000
TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

# Fields whose other values would change the answer, with those that do not.
ONLY: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "modalities": (["text"],),
    "audio": (),
    "functions": (),
    "function_call": (),
    "web_search_options": (),
}
NUMBERS: Mapping[str, tuple[str, float, float]] = {
    "temperature": ("temperature", 0, 2),
    "top_p": ("top_p", 0, 1),
    "presence_penalty": ("presence_penalty", -2, 2),
    "frequency_penalty": ("frequency_penalty", -2, 2),
}


def read_request(body: bytes, client: ClientSide, credential: bytes) -> Question:
    """The question in a body. Raises Refused (400) with `param`, the field that is wrong."""
    asked = parse(body)
    if not isinstance(asked, dict):
        raise wrong("", "The body has to be a JSON object.")
    if b"\\u" in body or b"\x7f" in body:
        # NUL and lone surrogates can only come escaped
        asked = _clean(asked)
    for name, harmless in ONLY.items():
        if asked.get(name) is not None and asked[name] not in harmless:
            raise unsupported(name)
    model = _model(asked)
    said = read_messages(asked.get("messages"))
    tools = _tools(asked)
    thread = Thread(credential)
    thread.hear(said.before)
    session_id = _session(asked) or client.session_id or (threads.find(thread) if said.before else None)
    thread.hear(said.since)
    stream, include_usage = _stream(asked)
    brought = Brought(
        messages=said.messages,
        wishes=Wishes(
            settings=_settings(asked, tools),
            tools=tools,
            output=_output(asked),
            has_images=said.has_images,
            own_dialogue=True,
        ),
        thread=thread,
        results=said.results,
        no_tools=asked.get("tool_choice") == "none",
        stream=stream,
        include_usage=include_usage,
    )
    facts = {**client.facts, **_end_user(asked)}
    return Question(said.question, session_id, model, ClientSide(session_id, client.traceparent, facts), brought)


def _clean(value: Any) -> Any:
    """The same without NUL and lone surrogates, which neither PostgreSQL nor a model takes."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [_clean(each) for each in value]
    if isinstance(value, dict):
        return {clean_text(key): _clean(each) for key, each in value.items()}
    return value


def _model(asked: Body) -> str:
    name = asked.get("model")
    if name is None or name == "":
        raise wrong("model", "You must provide a model parameter.", code="missing_required_parameter")
    if not isinstance(name, str) or len(name) > MODEL_CHARACTERS:
        raise wrong("model", f"A name of at most {MODEL_CHARACTERS} characters is needed.")
    return name


def _session(asked: Body) -> str | None:
    """`metadata.session_id`, which goes before the header."""
    metadata = asked.get("metadata")
    if metadata is None:
        return None
    if not isinstance(metadata, dict):
        raise wrong("metadata", "An object is needed.")
    given = metadata.get("session_id")
    if given is None or given == "":
        return None
    try:
        return str(UUID(given))
    except (ValueError, AttributeError, TypeError):
        raise wrong("metadata.session_id", "Must be a valid UUID.") from None


def _end_user(asked: Body) -> dict[str, str]:
    """The client's own name for whoever sits before it: kept, and never believed."""
    label = asked.get("safety_identifier") or asked.get("user")
    if label is None or label == "":
        return {}
    if not isinstance(label, str):
        raise wrong("user", "A string is needed.")
    return {"end_user": label[:LABEL_CHARACTERS]}


def _stream(asked: Body) -> tuple[bool, bool]:
    stream = _flag(asked, "stream")
    options = asked.get("stream_options")
    if options is None:
        return stream, False
    if not stream:
        raise wrong("stream_options", "Only allowed when stream is true.")
    if not isinstance(options, dict):
        raise wrong("stream_options", "An object is needed.")
    return stream, _flag(options, "include_usage", "stream_options.")


def _flag(asked: Body, name: str, where: str = "") -> bool:
    value = asked.get(name)
    if value is not None and not isinstance(value, bool):
        raise wrong(where + name, "true or false is needed.")
    return bool(value)


# --- how the model should answer -----------------------------------------------------------------


def _settings(asked: Body, tools: list[ToolDefinition]) -> ModelSettings:
    found: dict[str, Any] = {}
    for name, (ours, least, most) in NUMBERS.items():
        if (number := _number(asked, name, least, most)) is not None:
            found[ours] = number
    longest = "max_completion_tokens" if asked.get("max_completion_tokens") is not None else "max_tokens"
    if (tokens := _whole(asked, longest, 1, TOKENS)) is not None:
        found["max_tokens"] = tokens
    if (seed := _whole(asked, "seed", -(2**63), 2**63 - 1)) is not None:
        found["seed"] = seed
    if (stops := _stops(asked)) is not None:
        found["stop_sequences"] = stops
    if (bias := asked.get("logit_bias")) is not None:
        found["logit_bias"] = _bias(bias)
    if (effort := asked.get("reasoning_effort")) is not None:
        if effort not in EFFORTS:
            raise wrong("reasoning_effort", f"One of {', '.join(EFFORTS)} is needed.")
        found["thinking"] = False if effort == "none" else effort
    if asked.get("parallel_tool_calls") is not None:
        found["parallel_tool_calls"] = _flag(asked, "parallel_tool_calls")
    if (choice := _tool_choice(asked.get("tool_choice"), tools)) is not None:
        found["tool_choice"] = choice
    return cast(ModelSettings, found)


def _number(asked: Body, name: str, least: float, most: float) -> float | None:
    value = asked.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise wrong(name, "A number is needed.")
    if not least <= value <= most:
        raise wrong(name, f"A number from {least:g} to {most:g} is needed.")
    return value


def _whole(asked: Body, name: str, least: int, most: int) -> int | None:
    value = asked.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise wrong(name, f"A whole number from {least} to {most} is needed.")
    return value


def _stops(asked: Body) -> list[str] | None:
    value = asked.get("stop")
    if value is None:
        return None
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > STOPS or not all(isinstance(each, str) for each in stops):
        raise wrong("stop", f"A string, or a list of at most {STOPS}, is needed.")
    return [each for each in stops if each] or None


def _bias(bias: Any) -> dict[str, int]:
    fits = isinstance(bias, dict) and all(
        isinstance(each, int | float) and not isinstance(each, bool) and -100 <= each <= 100 for each in bias.values()
    )
    if not fits:
        raise wrong("logit_bias", "An object of numbers from -100 to 100 is needed.")
    return cast(dict[str, int], bias)


def _output(asked: Body) -> OutputObjectDefinition | None:
    wanted = asked.get("response_format")
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return JSON_OBJECT
    if kind != "json_schema":
        raise wrong("response_format.type", "text, json_object or json_schema is needed.")
    described = wanted.get("json_schema")
    if not isinstance(described, dict) or not isinstance(described.get("schema"), dict):
        raise wrong("response_format.json_schema.schema", "A JSON schema is needed.")
    name, description, strict = (described.get(key) for key in ("name", "description", "strict"))
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        raise wrong("response_format.json_schema.name", "A name of letters, digits, _ and - is needed.")
    if description is not None and not isinstance(description, str):
        raise wrong("response_format.json_schema.description", "A string is needed.")
    if strict is not None and not isinstance(strict, bool):
        raise wrong("response_format.json_schema.strict", "true or false is needed.")
    return OutputObjectDefinition(described["schema"], name, description, bool(strict))


# --- tools ---------------------------------------------------------------------------------------


def _tools(asked: Body) -> list[ToolDefinition]:
    given = asked.get("tools")
    if given is None:
        return []
    if not isinstance(given, list) or len(given) > TOOLS:
        raise wrong("tools", f"A list of at most {TOOLS} tools is needed.")
    tools = [_tool(each, f"tools[{number}]") for number, each in enumerate(given)]
    names: set[str] = set()
    for number, tool in enumerate(tools):
        if tool.name in names:
            raise wrong(f"tools[{number}].function.name", "Two tools have the same name.")
        names.add(tool.name)
    return tools


def _tool(tool: Any, where: str) -> ToolDefinition:
    if not isinstance(tool, dict):
        raise wrong(where, "An object is needed.")
    if tool.get("type") != "function":
        raise unsupported(f"{where}.type", "Only tools of the type function are supported.")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise wrong(f"{where}.function", "An object is needed.")
    name, description, parameters, strict = (
        function.get(key) for key in ("name", "description", "parameters", "strict")
    )
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        raise wrong(f"{where}.function.name", "A name of at most 64 letters, digits, _ and - is needed.")
    if description is not None and not isinstance(description, str):
        raise wrong(f"{where}.function.description", "A string is needed.")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, dict):
        raise wrong(f"{where}.function.parameters", "A JSON schema is needed.")
    if strict is not None and not isinstance(strict, bool):
        raise wrong(f"{where}.function.strict", "true or false is needed.")
    # left open, pydantic-ai would make it strict where it can, and write another schema
    return ToolDefinition(name=name, description=description, parameters_json_schema=parameters, strict=bool(strict))


def _tool_choice(choice: Any, tools: list[ToolDefinition]) -> str | list[str] | None:
    if choice is None or choice in ("auto", "none"):
        # without tools there is nothing to choose from
        return cast(str, choice) if tools else None
    if choice == "required" and tools:
        return "required"
    if isinstance(choice, dict) and choice.get("type") == "function":
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if name in {tool.name for tool in tools}:
            return [cast(str, name)]
        raise wrong("tool_choice.function.name", "There is no such tool among tools.")
    if choice == "required":
        raise wrong("tool_choice", "Only allowed when tools are given.")
    if isinstance(choice, dict):
        raise unsupported("tool_choice.type")
    raise wrong("tool_choice", "none, auto, required or a function is needed.")
