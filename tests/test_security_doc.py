"""docs/security.md names every door there is, and none that is not."""

import re

import pytest
from django.test import Client
from django.urls import get_resolver

from omni2.env import BASE_DIR
from omni2.middleware import CONTENT_SECURITY_POLICY
from tests.openapi import BELOW_DJANGO
from tests.test_api_docs import addresses

TEXT = (BASE_DIR / "docs" / "security.md").read_text()
OWN_ADMIN_DOORS = {"/admin/login/", "/admin/logout/", "/admin/password_change/"}
SOCKET = "/ws/flows/{user_id}"


def named() -> set[str]:
    """The addresses in the first column of the table of doors."""
    table = TEXT.split("## Doors")[1].split("\n## ")[0]
    first = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {address for cell in first for address in re.findall(r"`([^`]+)`", cell)}


def test_it_names_every_door_and_no_other() -> None:
    served = {address for address in addresses(get_resolver().url_patterns) if not address.startswith("/admin/")}
    assert named() == served | OWN_ADMIN_DOORS | BELOW_DJANGO | {SOCKET, "/admin/"}


def test_it_quotes_the_content_security_policy() -> None:
    assert CONTENT_SECURITY_POLICY in re.sub(r"\s+", " ", TEXT)


@pytest.mark.parametrize("path", ["/login/", "/api/v1/turns", "/nowhere/"])
def test_it_quotes_the_headers_that_are_sent(client: Client, db: None, path: str) -> None:
    headers = client.get(path).headers
    assert headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
    for name in ("X-Frame-Options", "X-Content-Type-Options", "Referrer-Policy"):
        assert f"`{name}: {headers[name]}`" in TEXT
