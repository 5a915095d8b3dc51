"""The pages of chat and usage, and the usage API. The ask routes are below Django: see omni2.asgi, chat.endpoint."""

from django.urls import path

from chat import usage_page
from chat.api_usage import Usage, UsersUsage
from chat.pages import page_urls

urlpatterns = [
    *page_urls,
    *usage_page.page_urls,
    path("api/v1/usage", Usage.as_view(), name="usage-api"),
    path("api/v1/usage/users", UsersUsage.as_view(), name="usage-of-users"),
]
