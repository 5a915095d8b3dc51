"""The usual way to show messages live, which row 4 and 5 compare with: a listener, a channel layer, a Channels
consumer for each socket. A program of its own: `python -m bench.usual_watching` is the listener, the application
runs on Daphne.

The layer is the faster of the two that channels_redis has (Pub/Sub). What was published goes through as it is,
as text: nothing is parsed or encoded again but by the layer itself.
"""

import asyncio
import os
import sys
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "omni2.settings")

import django

django.setup()

from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import get_channel_layer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import path

from flows import keys
from flows.redis import get_redis

USERS = "usual-*"
"""Whose checkpoints the listener hands on: those of `usual-7@example.com` to the group `usual-7`."""


class Bare(AsyncWebsocketConsumer):
    """Does nothing: what a socket of Channels costs."""


class Watcher(AsyncWebsocketConsumer):
    """A member of the group of the user it watches."""

    async def connect(self) -> None:
        self.group = self.scope["url_route"]["kwargs"]["group"]
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept()

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard(self.group, self.channel_name)

    async def checkpoint(self, event: dict[str, Any]) -> None:
        await self.send(event["text"])


application = ProtocolTypeRouter(
    {
        "http": get_asgi_application(),
        "websocket": URLRouter([path("bare", Bare.as_asgi()), path("group/<slug:group>", Watcher.as_asgi())]),
    }
)


async def listen() -> None:
    """Hand each message on to its group. The first line on standard output says that it listens."""
    layer = get_channel_layer()
    async with get_redis().pubsub() as subscription:
        await subscription.psubscribe(keys.user_channel(USERS))
        async for message in subscription.listen():
            if message["type"] == "psubscribe":
                print("listens", flush=True)
            if message["type"] == "pmessage":
                group = message["channel"].decode().removeprefix(keys.user_channel("")).partition("@")[0]
                await layer.group_send(group, {"type": "checkpoint", "text": message["data"].decode()})


if __name__ == "__main__":
    sys.exit(asyncio.run(listen()))
