"""Every address of the product, from its URL conf and from its own OpenAPI description, for tests that try them all."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from django.urls import URLPattern, URLResolver

METHODS = ("get", "post", "put", "patch", "delete")
# below Django: only a really started server answers these
ASGI_PATHS = {"/api/v1/ask", "/api/v1/ask/stream"}
OPENAI_PATHS = {"/v1/chat/completions", "/v1/models", "/v1/models/{model}"}
BELOW_DJANGO = ASGI_PATHS | OPENAI_PATHS


class Operation(NamedTuple):
    """One method of one address, with everything looked up that it refers to."""

    method: str
    path: str
    path_parameters: list[str]
    query_parameters: list[str]
    body_fields: dict[str, dict[str, Any]]
    takes_body: bool
    needs_sign_in: bool

    def url(self, **values: str) -> str:
        """The address, filled in; what is not given becomes something that is not there."""
        url = self.path
        for name in self.path_parameters:
            url = url.replace("{" + name + "}", values.get(name, "0"))
        return url

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@cache
def schema() -> dict[str, Any]:
    from drf_spectacular.generators import SchemaGenerator

    described: dict[str, Any] = SchemaGenerator().get_schema(public=True)
    return described


@cache
def operations() -> list[Operation]:
    return [
        _operation(path, method, item[method])
        for path, item in schema()["paths"].items()
        for method in METHODS
        if method in item
    ]


def _operation(path: str, method: str, described: dict[str, Any]) -> Operation:
    parameters = described.get("parameters", [])
    body = described.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    return Operation(
        method=method,
        path=path,
        path_parameters=[each["name"] for each in parameters if each["in"] == "path"],
        query_parameters=[each["name"] for each in parameters if each["in"] == "query"],
        body_fields=_followed(body).get("properties", {}),
        takes_body="requestBody" in described,
        needs_sign_in=bool(described.get("security")) and {} not in described["security"],
    )


def _followed(part: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in part:
        return part
    found: dict[str, Any] = schema()["components"]["schemas"][part["$ref"].rpartition("/")[2]]
    return found


def addresses(patterns: list[URLPattern | URLResolver], before: str = "") -> Iterator[str]:
    """Every address of the URL conf, its parts as `{name}`."""
    for pattern in patterns:
        here = before + re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", str(pattern.pattern))
        if isinstance(pattern, URLResolver):
            yield from addresses(pattern.url_patterns, here)
        else:
            yield "/" + here
