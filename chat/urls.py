"""The chat page and its API. The two ask routes are below Django: see omni2.asgi and chat.endpoint."""

from django.urls import path

from chat.api_approvals import Approve, OpenApprovals
from chat.api_models import model_urls
from chat.pages import page_urls

urlpatterns = [
    *page_urls,
    *model_urls,
    path("api/v1/approvals", OpenApprovals.as_view(), name="approvals"),
    path("api/v1/turns/<str:turn_id>/approvals/<path:call_id>", Approve.as_view(), name="approve"),
]
