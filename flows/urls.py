"""The history API and the history pages."""

from django.urls import URLPattern, URLResolver, path

from flows.analytics_pages import analytics_urls
from flows.api import SessionFlows, Turns, TurnsExport, UserFlows
from flows.compare_pages import compare_urls
from flows.ledger_api import LedgerOfHours
from flows.ledger_pages import ledger_urls
from flows.pages import page_urls
from flows.session_pages import session_urls

# <path:…> because an e-mail address may contain a slash
api_urls: list[URLPattern | URLResolver] = [
    path("api/v1/flows/user/<path:user_id>", UserFlows.as_view(), name="flows-of-user"),
    path("api/v1/flows/session/<path:session_id>", SessionFlows.as_view(), name="flows-of-session"),
    path("api/v1/turns", Turns.as_view(), name="turns"),
    path("api/v1/turns/export", TurnsExport.as_view(), name="turns-export"),
    path("api/v1/ledger", LedgerOfHours.as_view(), name="ledger"),
]
urlpatterns = api_urls + page_urls + compare_urls + session_urls + analytics_urls + ledger_urls
