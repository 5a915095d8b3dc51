"""The pages of chat and usage, and their API. The ask routes are below Django: see omni2.asgi and chat.endpoint."""

from django.urls import URLPattern, URLResolver, path

from chat import usage_page
from chat.api_approvals import Approve, OpenApprovals
from chat.api_conversations import conversation_urls
from chat.api_models import model_urls
from chat.api_stops import Block, StopTurn
from chat.api_usage import Usage, UsersUsage
from chat.pages import page_urls

# <path:…> because an e-mail address may contain a slash, and whoever is not signed in is told that first
api_urls: list[URLPattern | URLResolver] = [
    *model_urls,
    *conversation_urls,
    path("api/v1/approvals", OpenApprovals.as_view(), name="approvals"),
    path("api/v1/turns/<str:turn_id>/approvals/<path:call_id>", Approve.as_view(), name="approve"),
    path("api/v1/turns/<path:turn_id>/stop", StopTurn.as_view(), name="turn-stop"),
    path("api/v1/users/<path:user_id>/block", Block.as_view(), name="user-block"),
    path("api/v1/usage", Usage.as_view(), name="usage-api"),
    path("api/v1/usage/users", UsersUsage.as_view(), name="usage-of-users"),
]

urlpatterns = [*page_urls, *usage_page.page_urls, *api_urls]
