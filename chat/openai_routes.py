"""The addresses under /v1/ that any client of OpenAI's API may use, as an ASGI application below Django.

POST /v1/chat/completions   chat.openai_dialect
GET  /v1/models             which models the caller may use
GET  /v1/models/{name}      one of them
"""

import logging
from typing import Any
from urllib.parse import unquote

from django.db import InterfaceError, OperationalError

from chat import doors
from chat.catalogue import models_for
from chat.checks import Refused, not_signed_in
from chat.endpoint import Receive, Scope, Send, carries_credential, not_allowed, refuse, send_json, serve
from chat.openai_dialect import DIALECT
from omni2.accounts.authenticate import NOT_AUTHENTICATED, authenticate_scope
from omni2.database import in_database

logger = logging.getLogger(__name__)

PREFIX = "/v1/"
COMPLETIONS_PATH = "/v1/chat/completions"
MODELS_PATH = "/v1/models"
OWNER = "omni2"


def is_openai_path(path: str) -> bool:
    """Is this an address of OpenAI's API? What Omni2 does not offer of it is refused in OpenAI's words too."""
    return path.startswith(PREFIX)


async def openai_application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request under /v1/."""
    path = scope["path"].rstrip("/")
    if path == COMPLETIONS_PATH:
        return await serve(DIALECT, scope, receive, send)
    try:
        body = await _read_only(scope, path)
    except Refused as refused:
        return await refuse(send, refused, DIALECT, headers=[(b"allow", b"GET")] if refused.status == 405 else ())
    return await send_json(send, 200, body, [])


async def refuse_while_ending(send: Send) -> None:
    """No new turn in a process that is about to end; another one, or the next, takes it."""
    words = "The server is being restarted. Please ask again."
    stopping = Refused.because(503, "server_stopping", words, retry_after_s=2)
    await refuse(send, stopping, DIALECT, headers=[(b"connection", b"close")])


async def _read_only(scope: Scope, path: str) -> dict[str, Any]:
    """What GET answers. Raises Refused."""
    if path != MODELS_PATH and not path.startswith(MODELS_PATH + "/"):
        raise Refused.because(404, "unknown_url", "There is no such address here.")
    if scope["method"] != "GET":
        raise not_allowed(scope)
    if not carries_credential(scope):
        raise not_signed_in()
    offered = [_model(each["name"]) for each in await _offered(scope)]
    if path == MODELS_PATH:
        return {"object": "list", "data": offered}
    name = unquote(path.removeprefix(MODELS_PATH + "/"))
    for model in offered:
        if model["id"] == name:
            return model
    raise Refused.because(404, "model_not_found", "There is no such model, or you may not use it.")


async def _offered(scope: Scope) -> list[dict[str, Any]]:
    doors.database.pass_or_refuse()
    try:
        offered = await in_database(_models_of_caller, scope)
    except (OperationalError, InterfaceError) as problem:
        logger.error("no list of models: PostgreSQL cannot be reached: %s", problem)
        doors.database.failed()
        raise doors.database_unavailable() from None
    doors.database.answered()
    return offered


def _models_of_caller(scope: Scope) -> list[dict[str, Any]]:
    """Two queries. Raises Refused (401, 403)."""
    identity = authenticate_scope(scope)
    if identity.user is None or identity.refusal is not None:
        raise Refused.because(*(identity.refusal or NOT_AUTHENTICATED))
    return models_for(identity.user)


def _model(name: str) -> dict[str, Any]:
    # `created` is required; when a model was made is nothing Omni2 knows
    return {"id": name, "object": "model", "created": 0, "owned_by": OWNER}
