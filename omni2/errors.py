"""Errors as people and programs get them: JSON below /api/, a page elsewhere, never a stack trace.

Programs get `{"detail", "code"}`; what is wrong with single fields, as DRF writes it:
`{"limit": ["…"]}`. DRF's views come through `exception_handler`, everything else through the
handlers that `omni2.urls` names.
"""

import logging
import sys
from http import HTTPStatus
from typing import Any

from django.core.exceptions import RequestDataTooBig
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.loader import get_template
from rest_framework.exceptions import APIException, ErrorDetail
from rest_framework.response import Response
from rest_framework.views import exception_handler as drf_exception_handler

logger = logging.getLogger("omni2.errors")

API_PREFIX = "/api/"
DATABASE_AWAY = (OperationalError, InterfaceError)
RETRY_AFTER_S = 5


class BodyTooLarge(APIException):
    """More than the 1 MiB a body may have."""

    status_code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    default_detail = "The body is too large: at most 1 MiB."
    default_code = "body_too_large"


class DatabaseUnavailable(APIException):
    """PostgreSQL cannot be reached, or did not answer in time."""

    status_code = HTTPStatus.SERVICE_UNAVAILABLE
    default_detail = "The database cannot be reached. Try again in a moment."
    default_code = "database_unavailable"
    wait = RETRY_AFTER_S


def exception_handler(problem: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's answer with a `code` beside each `detail`; None (a 500 in JSON, logged) for what nobody foresaw."""
    if isinstance(problem, DATABASE_AWAY):
        logger.error("PostgreSQL is away: %s", type(problem).__name__)
        problem = DatabaseUnavailable()
    elif isinstance(problem, RequestDataTooBig):
        problem = BodyTooLarge()
    response = drf_exception_handler(problem, context)
    if response is None:
        return None
    if isinstance(response.data, list):
        response.data = {"detail": " ".join(map(str, response.data)), "code": "invalid"}
    detail = response.data.get("detail")
    if isinstance(detail, ErrorDetail):
        response.data.setdefault("code", detail.code)
    return response


def bad_request(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """400, or 413 when that is what was wrong."""
    if isinstance(exception, RequestDataTooBig):
        return answer(request, 413, BodyTooLarge.default_code, BodyTooLarge.default_detail)
    return answer(request, 400, "bad_request", "This request cannot be understood.")


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    return answer(
        request, 403, "csrf_failed", "This form is too old, or cookies are off. Reload the page and send it again."
    )


def forbidden(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    return answer(request, 403, "permission_denied", "You may not do this.")


def not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    return answer(request, 404, "not_found", "There is nothing here.")


def server_error(request: HttpRequest) -> HttpResponse:
    """500, or 503 while PostgreSQL is away. Django has logged the exception; nobody else learns of it."""
    if isinstance(sys.exc_info()[1], DATABASE_AWAY):
        away = DatabaseUnavailable
        response = answer(request, 503, away.default_code, away.default_detail)
        response["Retry-After"] = str(RETRY_AFTER_S)
        return response
    return answer(request, 500, "server_error", "Something went wrong here. It was written down.")


def answer(request: HttpRequest, status: int, code: str, detail: str) -> HttpResponse:
    """JSON below /api/, a page elsewhere."""
    if request.path.startswith(API_PREFIX):
        return JsonResponse({"detail": detail, "code": code}, status=status)
    # No request goes in: a page about a failure asks neither session nor database anything.
    page = get_template(f"{_page_of(status)}.html").render({"detail": detail, "code": code})
    return HttpResponse(page, status=status)


def _page_of(status: int) -> int:
    """Which of the four pages speaks for this status."""
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return 500
    return status if status in {403, 404} else 400
