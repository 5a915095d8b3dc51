"""The monitoring API and the live page."""

from django.urls import URLPattern, URLResolver, path

from flows.api import SessionFlows, UserFlows
from monitoring.api import Disable, Enable, MonitoredUsers
from monitoring.pages import page_urls

# <path:…> because an e-mail address may contain a slash
api_urls: list[URLPattern | URLResolver] = [
    path("api/v1/monitoring/enable", Enable.as_view(), name="monitoring-enable"),
    path("api/v1/monitoring/disable", Disable.as_view(), name="monitoring-disable"),
    path("api/v1/monitoring/users", MonitoredUsers.as_view(), name="monitoring-users"),
    path("api/v1/monitoring/flows/user/<path:user_id>", UserFlows.as_view(), name="monitoring-flows-of-user"),
    path(
        "api/v1/monitoring/flows/session/<path:session_id>", SessionFlows.as_view(), name="monitoring-flows-of-session"
    ),
]

urlpatterns = api_urls + page_urls
