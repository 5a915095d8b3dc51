"""How the API reads and writes: JSON in, whatever the Content-Type says; JSON out, whatever is accepted.

DRF takes these three from the settings; nothing of what they refuse reaches a view.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

from django.http import Http404
from rest_framework.exceptions import NotAcceptable, ParseError, ValidationError
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.parsers import BaseParser, JSONParser
from rest_framework.renderers import BaseRenderer
from rest_framework.renderers import JSONRenderer as DRFJSONRenderer
from rest_framework.request import Request
from rest_framework.utils.encoders import JSONEncoder


class JSONRenderer(DRFJSONRenderer):
    """Writes JSON of any depth; always valid UTF-8, whatever a client's text contained."""

    def render(
        self, data: Any, accepted_media_type: str | None = None, renderer_context: Mapping[str, Any] | None = None
    ) -> bytes:
        if data is None:
            return b""
        try:
            text = json.dumps(data, cls=JSONEncoder, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except RecursionError:
            text = "".join(deep_json(data))
        # an error message may repeat what was sent, and that may hold a lone surrogate
        return text.encode("utf-8", "replace")


def deep_json(value: Any) -> Iterator[str]:
    """The JSON of dicts and lists nested deeper than Python's recursion goes, in pieces. Slower."""
    encoder = JSONEncoder(ensure_ascii=False, allow_nan=False)
    # what is still to be written, the next on top: finished text, or a value
    todo: list[tuple[bool, Any]] = [(False, value)]
    while todo:
        written, item = todo.pop()
        if written:
            yield item
        elif isinstance(item, Mapping):
            parts = [[(True, f"{encoder.encode(str(key))}:"), (False, each)] for key, each in item.items()]
            todo.extend(_enclosed("{", parts, "}"))
        elif isinstance(item, list | tuple):
            todo.extend(_enclosed("[", [[(False, each)] for each in item], "]"))
        else:
            yield encoder.encode(item)


def _enclosed(opening: str, parts: Sequence[list[tuple[bool, Any]]], closing: str) -> Iterator[tuple[bool, Any]]:
    """The parts between brackets with commas, last first, as a stack wants them."""
    yield True, closing
    for number, part in reversed(list(enumerate(parts))):
        yield from reversed(part)
        if number:
            yield True, ","
    yield True, opening


class AnyTypeJSONParser(JSONParser):
    """Reads the body as one JSON object, whatever its Content-Type says.

    Refused as parse_error: bad UTF-8, nesting beyond Python's recursion, anything that is not an
    object; under the name of its field: NaN, infinities, numbers too large to be meant.
    """

    media_type = "*/*"

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        body = _parsed(stream.read())
        if not isinstance(body, dict):
            raise ParseError("The body must be a JSON object.")
        wrong = {name: [NO_NUMBER] for name, value in body.items() if _holds_no_number(value)}
        if wrong:
            raise ValidationError(wrong)
        return body


NO_NUMBER = "NaN, infinities and numbers of hundreds of digits are not accepted."
MAX_DIGITS = 300


def _parsed(body: bytes) -> Any:
    """The JSON; what is no usable number becomes NaN."""
    try:
        return json.loads(body.decode("utf-8-sig"), parse_int=_int)
    except UnicodeDecodeError:
        raise ParseError("The body is not UTF-8.") from None
    except RecursionError:
        raise ParseError("The body is nested too deeply.") from None
    except ValueError as problem:
        raise ParseError(f"The body is not JSON: {problem}") from None


def _int(digits: str) -> float:
    return int(digits) if len(digits) <= MAX_DIGITS else math.nan


def _holds_no_number(value: Any) -> bool:
    """Whether there is a number in it, at any depth, that is not finite."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, float) and not math.isfinite(item):
            return True
        if isinstance(item, dict | list):
            todo.extend(item.values() if isinstance(item, dict) else item)
    return False


class AlwaysJSON(DefaultContentNegotiation):
    """No 406 and no 415: what cannot be had is answered in the view's first format."""

    def select_parser(self, request: Request, parsers: Iterable[BaseParser]) -> BaseParser:
        return next(iter(parsers))

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        try:
            chosen, media_type = super().select_renderer(request, renderers, format_suffix)
        except (NotAcceptable, Http404):
            chosen = next(iter(renderers))
            media_type = str(chosen.media_type)
        return chosen, media_type
