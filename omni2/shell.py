"""The one shell around every page: navigation by what its reader may do."""

from typing import Any

from django.http import HttpRequest
from django.templatetags.static import static


def stylesheet(request: HttpRequest) -> str:
    return static("css/omni2.css")


def navigation(request: HttpRequest) -> list[dict[str, Any]]:
    return []


def shell(request: HttpRequest) -> dict[str, Any]:
    return {}
