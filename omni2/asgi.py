"""The ASGI application, the same under Daphne and uvicorn.

http  /api/v1/ask, /api/v1/ask/stream  → chat.endpoint, below Django: no thread per open answer
http  /v1/...                          → chat.openai_routes, below Django too: what OpenAI's clients ask
http  everything else                  → Django
ws    /ws/flows/{user_id}              → monitoring.consumers
"""

import os
from collections.abc import Awaitable, Callable
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "omni2.settings")

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.exceptions import ImproperlyConfigured

from omni2.database import limit_statements
from omni2.lasting import keep_for_good, loading_begins, loading_ends

loading_begins()
django_application = get_asgi_application()

if not settings.SECRET_KEY_CONFIGURED:
    # two processes with keys of their own would not know each other's sessions
    raise ImproperlyConfigured("SECRET_KEY is not set: a server needs one, the same for all its processes")

limit_statements(settings.STATEMENT_TIMEOUT_S)

# Only after Django is set up: these modules load models.
from chat.endpoint import ask_application, is_ask_path
from chat.llm import warm_up
from chat.openai_routes import is_openai_path, openai_application
from chat.openai_routes import refuse_while_ending as refuse_openai_while_ending
from monitoring.routing import websocket_application
from omni2 import wiring
from omni2.intake import intake
from omni2.proxies import as_the_proxy_says
from omni2.whole import whole_or_broken_off

loading_ends()
checked_django_application = whole_or_broken_off(intake(django_application))

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


async def prepare() -> None:
    """Beside the first requests: load what later ones need."""
    await warm_up()
    keep_for_good()


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Start what this process needs on its first request (Daphne has no lifespan), then route."""
    kind = scope["type"]
    if kind == "lifespan":
        return await wiring.lifespan(receive, send, prepare)
    await wiring.start(prepare)
    scope = as_the_proxy_says(scope, settings.TRUSTED_PROXIES)
    if kind == "websocket":
        return await websocket_application(scope, receive, send)
    with wiring.answering():
        return await answer(scope, receive, send)


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """One HTTP request, to its last byte."""
    if is_openai_path(scope["path"]):
        if wiring.draining():
            return await refuse_openai_while_ending(send)
        return await openai_application(scope, receive, send)
    asks = is_ask_path(scope["path"])
    if wiring.draining() and (asks or scope["path"] == "/readyz"):
        return await refuse_while_ending(send)
    if asks:
        return await ask_application(scope, receive, send)
    return await checked_django_application(scope, receive, send)


async def refuse_while_ending(send: Send) -> None:
    """No new turn in a process that is about to end, and it is not ready either; another one, or the next,
    takes it. Only who is connected already hears it: others are not let in."""
    body = b'{"detail":"The server is being restarted. Please ask again.","code":"server_stopping"}'
    headers = [(b"content-type", b"application/json"), (b"retry-after", b"2"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
