"""Who is this? One query, used by DRF, the ask routes and the sockets alike."""

from typing import Any

from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request


class ApiAuthentication(BaseAuthentication):
    def authenticate(self, request: Request) -> tuple[Any, Any] | None:
        return None
