"""A bare asynchronous Django view that streams the model's answer: served as `bench.beside.bare:application`.

What is left when everything is taken away that Omni2 adds: no sign-in, no checks, no usage, no conversation, no
tracking, no middleware, no database. The model is asked through the same pydantic-ai model on the same HTTP client,
kept as well, but without time-outs for each token. A chat ends with the model's own count of tokens.
"""

import json
import os
from collections.abc import AsyncIterator

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "omni2.settings")

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path

settings.MIDDLEWARE = []
settings.ROOT_URLCONF = __name__
application = get_asgi_application()

from pydantic_ai.direct import model_request_stream
from pydantic_ai.messages import ModelRequest, PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta

from chat.llm import INSTRUCTIONS, models


async def ask(request: HttpRequest) -> StreamingHttpResponse:
    message = json.loads(request.body)["message"]
    return StreamingHttpResponse(_answer(message), content_type="text/event-stream")


async def _answer(message: str) -> AsyncIterator[bytes]:
    asked = [ModelRequest.user_text_prompt(message, instructions=INSTRUCTIONS)]
    async with model_request_stream(models().answering("").model, asked, instrument=False) as response:
        async for event in response:
            match event:
                case (
                    PartStartEvent(part=TextPart(content=text))
                    | PartDeltaEvent(delta=TextPartDelta(content_delta=text))
                ):
                    yield _event("token", {"text": text})
        used = response.usage
    yield _event("done", {"usage": {"input_tokens": used.input_tokens, "output_tokens": used.output_tokens}})


def _event(name: str, data: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


async def healthz(request: HttpRequest) -> HttpResponse:
    """For whoever waits until this process answers."""
    return HttpResponse()


urlpatterns = [path("api/v1/ask/stream", ask), path("healthz", healthz)]
