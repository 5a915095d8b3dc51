"""The monitoring API and the live page."""

from django.urls import URLPattern, URLResolver

from monitoring.pages import page_urls

api_urls: list[URLPattern | URLResolver] = []

urlpatterns = api_urls + page_urls
