"""The API describes itself: every address, valid OpenAPI 3, and a page that needs nobody else's server."""

import re
from io import StringIO
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from django.core.management import call_command
from django.test import Client
from django.urls import get_resolver

from chat.endpoint import STATUS_OF
from omni2.env import BASE_DIR
from tests.chromium import chromium, required
from tests.openapi import BELOW_DJANGO, addresses, schema
from tests.running import running


def test_it_describes_every_api_address_and_no_other() -> None:
    served = {address for address in addresses(get_resolver().url_patterns) if address.startswith("/api/")}
    assert set(schema()["paths"]) == served | BELOW_DJANGO


def test_it_is_valid_and_without_a_warning() -> None:
    written = StringIO()
    call_command("spectacular", validate=True, fail_on_warn=True, stdout=written)
    assert yaml.safe_load(written.getvalue())["openapi"].startswith("3.")


def test_it_comes_as_json_and_as_yaml_to_anybody(client: Client) -> None:
    as_json = client.get("/api/schema/").json()
    as_yaml = yaml.safe_load(client.get("/api/schema/?format=yaml").content)
    assert as_json == as_yaml
    assert client.get("/api/schema/", headers={"Authorization": "Bearer nonsense"}).status_code == 200


def test_it_names_both_ways_to_sign_in() -> None:
    schemes = schema()["components"]["securitySchemes"]
    assert schemes["bearer"]["scheme"] == "bearer"
    assert (schemes["session"]["in"], schemes["session"]["name"]) == ("cookie", "sessionid")
    open_to_all = {
        f"{method} {path}"
        for path, item in schema()["paths"].items()
        for method, operation in item.items()
        if not operation.get("security") or {} in operation["security"]
    }
    assert open_to_all == {"get /api/docs/", "get /api/schema/", "post /api/v1/auth/token"}


def test_it_describes_the_streaming_answer() -> None:
    answers = schema()["paths"]["/api/v1/ask/stream"]["post"]["responses"]
    assert list(answers["200"]["content"]) == ["text/event-stream"]
    for event in ("session", "token", "tool_call", "approval", "tool_result", "done", "error"):
        assert f"`{event}`" in answers["200"]["description"]
    assert {"400", "401", "403", "404", "413", "429", "503"} <= set(answers)
    assert "Retry-After" in answers["429"]["headers"]


def test_every_code_of_an_answer_is_explained() -> None:
    """Every code that the chat's sources know is in docs/api.md, or in docs/openai.md when only OpenAI's clients hear
    it; those that end a turn beside their status."""
    said, openai = ((BASE_DIR / "docs" / name).read_text() for name in ("api.md", "openai.md"))
    table = said.partition("| `code` | status | |")[2].partition("\n\n")[0]
    statuses = {
        code: int(row.split("|")[2])
        for row in table.splitlines()
        if row.startswith("| `")
        for code in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    assert STATUS_OF.items() <= statuses.items()
    assert {code for code, status in statuses.items() if status != STATUS_OF.get(code, 502)} == set()
    sources = "".join(file.read_text() for file in (BASE_DIR / "chat").glob("*.py"))
    codes = set(re.findall(r"""Refused\.because\(\s*\d+,\s*"(\w+)"|Failed\("(\w+)",|failed\("(\w+)",""", sources))
    known = {code for found in codes for code in found if code}
    assert {"user_blocked", "too_many_refusals", "tool_failed", "llm_timeout"} <= known
    assert known - set(re.findall(r"`(\w+)`", said + openai)) == set()


def test_every_reference_leads_somewhere() -> None:
    references = re.findall(r"'\$ref': '#/components/schemas/(\w+)'", str(schema()))
    assert references
    assert set(references) <= set(schema()["components"]["schemas"])


@pytest.mark.slow
@pytest.mark.browser
def test_the_page_shows_every_area_and_asks_no_other_server() -> None:
    from playwright.sync_api import sync_playwright

    path = chromium()
    if path is None:
        (pytest.fail if required() else pytest.skip)("No Chromium is installed.")
    said: list[str] = []
    asked: list[str] = []

    def listen(page: Any) -> None:
        page.on("console", lambda message: said.append(message.text) if message.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))

    with running(persisters=0) as omni2, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
        )
        page = browser.new_page()
        listen(page)
        page.goto(f"{omni2.url}/api/docs/")
        page.wait_for_selector('[data-path="/api/v1/ask/stream"]')
        page.get_by_text("Ask, and get the answer as it is made").click()
        page.get_by_text("A stream of Server-Sent Events").wait_for()
        areas = page.locator(".opblock-tag").all_inner_texts()
        browser.close()
    assert {area.split()[0] for area in areas} == {
        "approvals",
        "ask",
        "auth",
        "conversations",
        "flows",
        "models",
        "ledger",
        "monitoring",
        "openai",
        "usage",
        "turns",
        "users",
        "description",
    }
    assert said == []
    assert {urlsplit(url).netloc for url in asked if not url.startswith("data:")} == {urlsplit(omni2.url).netloc}
