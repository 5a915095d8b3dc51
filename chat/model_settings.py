"""What an admin may set for a model of the catalogue: the names pydantic-ai knows, with their types and bounds.

What has a field of its own (time-outs, attempts), or may hold a secret (headers), is not among them.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

_Kind = TypeAdapter[Any]
_COUNT: _Kind = TypeAdapter(Annotated[int, Field(strict=True, ge=1, le=10_000_000)])
_PENALTY: _Kind = TypeAdapter(Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)])
_SHARE: _Kind = TypeAdapter(Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)])

SETTINGS: Mapping[str, _Kind] = MappingProxyType(
    {
        "max_tokens": _COUNT,
        "temperature": TypeAdapter(Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]),
        "top_p": _SHARE,
        "top_k": _COUNT,
        "seed": TypeAdapter(Annotated[int, Field(strict=True)]),
        "presence_penalty": _PENALTY,
        "frequency_penalty": _PENALTY,
        "stop_sequences": TypeAdapter(list[Annotated[str, Field(min_length=1)]]),
        "logit_bias": TypeAdapter(dict[str, Annotated[int, Field(strict=True, ge=-100, le=100)]]),
        "parallel_tool_calls": TypeAdapter(Annotated[bool, Field(strict=True)]),
        "thinking": TypeAdapter(bool | Literal["minimal", "low", "medium", "high", "xhigh", "max"]),
        "service_tier": TypeAdapter(Literal["auto", "default", "flex", "priority"]),
        "extra_body": TypeAdapter(dict[str, Any]),
    }
)
ELSEWHERE: Mapping[str, str] = MappingProxyType(
    {
        "timeout": "the time-outs have fields of their own",
        "request_timeout": "the time-outs have fields of their own",
        "first_event_timeout": "the time-outs have fields of their own",
        "max_retries": "the attempts have a field of their own",
        "tool_choice": "which tool is called is the model's own choice",
        "extra_headers": "headers may hold secrets, and these settings are no place for them",
    }
)


def problems_of(settings: Any) -> list[str]:
    """What is wrong with these settings, one sentence for each key; empty: nothing is."""
    if not isinstance(settings, dict):
        return ['This has to be a JSON object such as {"temperature": 0.2, "max_tokens": 1000}.']
    return [said for name, value in settings.items() if (said := _problem(name, value))]


def _problem(name: str, value: Any) -> str:
    if name in ELSEWHERE:
        return f"“{name}” cannot be set here: {ELSEWHERE[name]}."
    if name not in SETTINGS:
        return f"“{name[:60]}” is not known. Known are: {', '.join(SETTINGS)}."
    # a number in quotes and a boolean are no number
    if isinstance(value, bool) and name not in ("parallel_tool_calls", "thinking"):
        return f"“{name}” cannot be true or false."
    try:
        SETTINGS[name].validate_python(value, strict=None if isinstance(value, int) else True)
    except ValidationError as problem:
        return f"“{name}”: {problem.errors()[0]['msg']}."
    return ""
