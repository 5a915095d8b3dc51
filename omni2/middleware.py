"""Headers every page carries."""

from collections.abc import Callable
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.core.exceptions import BadRequest
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import sync_and_async_middleware

# Alpine in the admin shell evaluates its attributes, so scripts need 'unsafe-eval'; they never get
# 'unsafe-inline'. Styles do: the shell's charts and Alpine set style attributes.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'"
)


@sync_and_async_middleware
def security_headers(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Adds the Content-Security-Policy to every answer that has none, and lets nobody between keep
    what the API answered: it is one person's, or about one."""

    def add(request: HttpRequest, response: HttpResponse) -> HttpResponse:
        response.headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        if request.path.startswith("/api/v1/"):
            response.headers.setdefault("Cache-Control", "no-store")
        return response

    if iscoroutinefunction(get_response):

        async def middleware_async(request: HttpRequest) -> HttpResponse:
            return add(request, await get_response(request))

        return middleware_async

    def middleware(request: HttpRequest) -> HttpResponse:
        return add(request, get_response(request))

    return middleware


@sync_and_async_middleware
def no_nul_in_admin(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Refuses NUL in the query of an admin page with a 400.

    The admin puts its filters into SQL as they come, and PostgreSQL's text knows no NUL.
    """

    def check(request: HttpRequest) -> None:
        if request.path.startswith("/admin/") and any(
            "\0" in text for _, texts in request.GET.lists() for text in texts
        ):
            raise BadRequest("NUL in the query")

    if iscoroutinefunction(get_response):

        async def middleware_async(request: HttpRequest) -> HttpResponse:
            check(request)
            response: HttpResponse = await get_response(request)
            return response

        return middleware_async

    def middleware(request: HttpRequest) -> HttpResponse:
        check(request)
        response: HttpResponse = get_response(request)
        return response

    return middleware
