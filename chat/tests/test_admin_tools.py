"""Tool servers in the admin: checked when saved, secrets that nobody sees again, programs for superusers alone."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.test import Client

from chat.models import ToolServer
from chat.tool_rows import open_pairs
from tests.people import PASSWORD, make_person
from tests.running import free_port
from tests.tool_server import run_http

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "/admin/chat/toolserver/"
TIME_SERVER = str(Path(sys.executable).with_name("mcp-server-time"))


@pytest.fixture(scope="module")
def things() -> Iterator[str]:
    with run_http() as (url, _):
        yield url


@pytest.fixture(autouse=True)
def _programs(settings: Any) -> None:
    settings.STDIO_TOOLS = True


def signed_in(user: Any) -> Client:
    browser = Client()
    assert browser.login(email=user.email, password=PASSWORD)
    return browser


@pytest.fixture
def staff(db: None) -> Any:
    """May change tool servers, and is no superuser."""
    user = make_person("staff@example.com", "Stefan", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(content_type__app_label="chat"))
    return user


def filled(**fields: Any) -> dict[str, Any]:
    return {
        "name": "things", "transport": "http", "url": "", "headers": "", "command": "", "arguments": "",
        "environment": "", "timeout_s": "30", "enabled": "on", **fields,
    }  # fmt: skip


def save(browser: Client, path: str = LIST + "add/", **fields: Any) -> str:
    """The page after it, with what it says."""
    return browser.post(path, filled(**fields), follow=True).content.decode()


def test_saving_asks_the_server_for_its_tools_and_lets_them_be_chosen(ada: Any, things: str) -> None:
    browser = signed_in(ada)
    assert "things answers and has 9 tools." in save(browser, url=things)
    row = ToolServer.objects.get()
    assert row.checked_at
    page = browser.get(f"{LIST}{row.pk}/change/").content.decode()
    assert "Adds two whole numbers." in page
    chosen = {"allowed_tools": ["add", "fail"], "approved_tools": ["fail"]}
    save(browser, f"{LIST}{row.pk}/change/", url=things, **chosen)
    row.refresh_from_db()
    assert (row.allowed_tools, row.approved_tools) == (["add", "fail"], ["fail"])
    assert "not one of the available choices" in save(
        browser, f"{LIST}{row.pk}/change/", url=things, allowed_tools=["rm"]
    )


def test_one_that_does_not_answer_is_saved_with_what_is_wrong(ada: Any) -> None:
    browser = signed_in(ada)
    said = save(browser, url=f"http://127.0.0.1:{free_port()}/mcp")
    assert "Nobody answers at its address." in said
    said = save(browser, name="gone", transport="stdio", command="/no/such/program")
    assert "The program cannot be started: No such file or directory." in said
    crashing = "import sys; sys.exit('it lacks a licence')"
    said = save(browser, name="crash", transport="stdio", command=sys.executable, arguments=f"-c\n{crashing}")
    assert "it lacks a licence" in said
    assert {row.name for row in ToolServer.objects.exclude(problem="")} == {"things", "gone", "crash"}


def test_it_is_checked_on_demand(ada: Any, things: str) -> None:
    row = ToolServer.objects.create(name="time", transport="stdio", command=TIME_SERVER)
    asked = {"action": "check_now", "_selected_action": [row.pk]}
    said = signed_in(ada).post(LIST, asked, follow=True).content.decode()
    assert "time answers and has 2 tools." in said
    row.refresh_from_db()
    assert [tool["name"] for tool in row.tools] == ["get_current_time", "convert_time"]


def test_secrets_are_entered_and_never_shown(ada: Any, things: str) -> None:
    browser = signed_in(ada)
    said = save(browser, url=things, headers="X-Key: open sesame\nAuthorization: Bearer swordfish")
    row = ToolServer.objects.get()
    assert open_pairs(row.sealed_headers) == {"X-Key": "open sesame", "Authorization": "Bearer swordfish"}
    page = browser.get(f"{LIST}{row.pk}/change/").content.decode()
    for shown in (said, page, str(ToolServer.objects.values()), browser.get(LIST).content.decode()):
        assert "open sesame" not in shown
        assert "swordfish" not in shown
    assert "Kept now: Authorization, X-Key." in page
    save(browser, f"{LIST}{row.pk}/change/", url=things, headers="X-Key: other\nAuthorization:")
    row.refresh_from_db()
    assert open_pairs(row.sealed_headers) == {"X-Key": "other"}
    history = browser.get(f"{LIST}{row.pk}/history/").content.decode()
    assert "other" not in history.replace("another", "")


def test_headers_do_not_follow_to_another_address(ada: Any, staff: Any, things: str) -> None:
    """Else whoever may change the address could have them sent to himself."""
    save(signed_in(ada), url=things, headers="X-Key: open sesame")
    row = ToolServer.objects.get()
    browser = signed_in(staff)
    save(browser, f"{LIST}{row.pk}/change/", url=things + "/v2")
    row.refresh_from_db()
    assert open_pairs(row.sealed_headers) == {"X-Key": "open sesame"}
    save(browser, f"{LIST}{row.pk}/change/", url=f"http://127.0.0.1:{free_port()}/mcp")
    row.refresh_from_db()
    assert row.sealed_headers == ""


def test_only_superusers_run_programs_and_only_where_it_is_switched_on(ada: Any, staff: Any, settings: Any) -> None:
    browser = signed_in(staff)
    assert "Only superusers" in save(browser, transport="stdio", command="/bin/true")
    row = ToolServer.objects.create(name="time", transport="stdio", command=TIME_SERVER)
    path = f"{LIST}{row.pk}/change/"
    assert browser.post(path, filled(name="time", transport="stdio", command="/bin/true")).status_code == 403
    assert browser.post(path, filled(name="time", url="http://127.0.0.1/mcp")).status_code == 403
    row.refresh_from_db()
    assert row.command == TIME_SERVER
    settings.STDIO_TOOLS = False
    assert "OMNI2_STDIO_TOOLS" in save(signed_in(ada), transport="stdio", command="/bin/true")
    assert ToolServer.objects.count() == 1


def test_who_has_no_right_sees_nothing(charlie: Any) -> None:
    browser = signed_in(charlie)
    for path in (LIST, LIST + "add/"):
        assert browser.get(path).status_code in (302, 403)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"url": ""}, "needs a URL such as"),
        ({"url": "ftp://a.example/mcp"}, "needs a URL such as"),
        ({"url": "http://[/mcp"}, "This is no URL."),
        ({"url": "http://me:secret@a.example/mcp"}, "use a header"),
        ({"url": "http://a.example/mcp", "headers": "no colon"}, "Each line must read Name: value."),
        ({"url": "http://a.example/mcp", "headers": "X-Key: ü"}, "plain ASCII"),
        ({"url": "http://a.example/mcp", "command": "/bin/true"}, "has no command"),
        ({"transport": "stdio"}, "A program needs its command."),
        ({"transport": "stdio", "command": "/bin/true", "url": "http://a.example/"}, "has no URL"),
        ({"url": "http://a.example/mcp", "timeout_s": "0"}, "From 1 to 300 seconds."),
        ({"url": "http://a.example/mcp", "name": "a__b"}, "Two underscores"),
    ],
)
def test_a_mistake_is_named_at_its_field(fields: dict[str, str], said: str, ada: Any) -> None:
    assert said in save(signed_in(ada), **fields)
    assert not ToolServer.objects.exists()
