"""The chat page, and stopping and blocking. The two ask routes are below Django: see omni2.asgi and chat.endpoint."""

from django.urls import URLPattern, URLResolver, path

from chat.api_stops import Block, StopTurn
from chat.pages import page_urls

# <path:…> because an e-mail address may contain a slash, and whoever is not signed in is told that first
api_urls: list[URLPattern | URLResolver] = [
    path("api/v1/turns/<path:turn_id>/stop", StopTurn.as_view(), name="turn-stop"),
    path("api/v1/users/<path:user_id>/block", Block.as_view(), name="user-block"),
]

urlpatterns = api_urls + page_urls
