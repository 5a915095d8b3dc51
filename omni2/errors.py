"""Errors as people and programs get them: JSON below /api/, a page elsewhere, never a stack trace."""

from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from rest_framework.views import exception_handler as drf_exception_handler


def exception_handler(problem: Exception, context: dict[str, Any]) -> Any:
    return drf_exception_handler(problem, context)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    return JsonResponse({"detail": "CSRF check failed.", "code": "csrf_failed"}, status=403)


def bad_request(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    return JsonResponse({"detail": "Bad request.", "code": "bad_request"}, status=400)


def forbidden(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    return JsonResponse({"detail": "Not allowed.", "code": "forbidden"}, status=403)


def not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    return JsonResponse({"detail": "Not found.", "code": "not_found"}, status=404)


def server_error(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"detail": "Something went wrong.", "code": "server_error"}, status=500)
