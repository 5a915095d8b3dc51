"""Errors: JSON below /api/, pages elsewhere, never a trace, whatever went wrong."""

import json
import logging
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import include, path
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from omni2.accounts.models import User
from omni2.rest import JSONRenderer, deep_json

pytestmark = pytest.mark.django_db
SECRET = "postgresql://omni2:hunter2@db/omni2"
RAISED: dict[str, Exception] = {
    "boom": RuntimeError(SECRET),
    "recursion": RecursionError(),
    "away": OperationalError(SECRET),
    "interface": InterfaceError(SECRET),
    "too-big": RequestDataTooBig(SECRET),
    "suspicious": SuspiciousOperation(SECRET),
    "forbidden": PermissionDenied(),
    "nothing": Http404(),
}
EXPECTED = {
    "boom": (500, "server_error"),
    "recursion": (500, "server_error"),
    "away": (503, "database_unavailable"),
    "interface": (503, "database_unavailable"),
    "too-big": (413, "body_too_large"),
    "suspicious": (400, "bad_request"),
    "forbidden": (403, "permission_denied"),
    "nothing": (404, "not_found"),
}


def plain_view(request: HttpRequest, what: str) -> HttpResponse:
    raise RAISED[what]


class RestView(APIView):
    authentication_classes = ()
    permission_classes = ()

    def get(self, request: Request, what: str) -> Response:
        raise RAISED[what]

    def post(self, request: Request, what: str) -> Response:
        return Response({"got": request.data})


urlpatterns = [
    path("api/plain/<what>", plain_view),
    path("api/rest/<what>", RestView.as_view()),
    path("page/<what>", plain_view),
    path("", include("omni2.urls")),
]
handler400 = "omni2.errors.bad_request"
handler403 = "omni2.errors.forbidden"
handler404 = "omni2.errors.not_found"
handler500 = "omni2.errors.server_error"


@pytest.fixture
def careless() -> Client:
    """A client that takes a 500 for an answer instead of raising what caused it."""
    return Client(raise_request_exception=False)


@pytest.mark.urls(__name__)
@pytest.mark.parametrize("what", EXPECTED)
@pytest.mark.parametrize("kind", ["plain", "rest"])
def test_it_answers_any_exception_in_json(careless: Client, kind: str, what: str) -> None:
    answer = careless.get(f"/api/{kind}/{what}")
    status, code = EXPECTED[what]
    assert answer.status_code == status
    assert answer["Content-Type"].startswith("application/json")
    assert set(answer.json()) == {"detail", "code"}
    assert answer.json()["code"] == code
    assert "hunter2" not in answer.content.decode()
    assert ("Retry-After" in answer.headers) == (status == 503)


@pytest.mark.urls(__name__)
@pytest.mark.parametrize("what", EXPECTED)
def test_it_answers_any_exception_of_a_page_with_a_page(careless: Client, what: str) -> None:
    answer = careless.get(f"/page/{what}")
    assert answer.status_code == EXPECTED[what][0]
    assert answer["Content-Type"].startswith("text/html")
    for trace in ("hunter2", "Traceback", "RuntimeError", __file__):
        assert trace not in answer.content.decode()


@pytest.mark.urls(__name__)
def test_it_logs_what_nobody_foresaw_and_no_credential(careless: Client, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        careless.get("/api/rest/boom", headers={"Authorization": "Bearer very-secret", "Cookie": "sessionid=so-secret"})
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    "url", ["/api/", "/api/nothing", "/api/v1/nothing", "/api/v1/flows/user/", "/api//v1", "/api/%00"]
)
def test_it_answers_an_unknown_address_in_json(client: Client, url: str) -> None:
    for method in ("get", "post", "delete"):
        answer = getattr(client, method)(url)
        assert answer.status_code == 404
        assert answer.json() == {"detail": "There is nothing here.", "code": "not_found"}


def test_it_answers_an_unknown_page_with_a_page(client: Client) -> None:
    answer = client.get("/nothing/here")
    assert answer.status_code == 404
    assert answer["Content-Type"].startswith("text/html")
    assert "script-src 'self' 'unsafe-eval'" in answer["Content-Security-Policy"]


def test_it_answers_a_wrong_method_in_json(client: Client, bob: User) -> None:
    client.force_login(bob)
    answer = client.put("/api/v1/turns")
    assert answer.status_code == 405
    assert answer.json()["code"] == "method_not_allowed"
    assert "GET" in answer["Allow"]
    assert client.post("/api/docs/").json()["code"] == "method_not_allowed"
    assert client.post("/api/schema/").json()["code"] == "method_not_allowed"
    assert client.options("/api/docs/").status_code == 405


@pytest.mark.parametrize("accept", ["text/html", "application/xml", "image/png;q=x", "", "*", "a/b;" * 50, "é"])
def test_it_answers_json_whatever_is_accepted(client: Client, bob: User, accept: str) -> None:
    client.force_login(bob)
    answer = client.get("/api/v1/turns", headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer.json() == {"turns": [], "next": None}


@pytest.mark.parametrize("wanted", ["json", "xml", "api", "\x00"])
def test_it_answers_json_whatever_format_is_asked_for(client: Client, bob: User, wanted: str) -> None:
    client.force_login(bob)
    assert client.get("/api/v1/turns", {"format": wanted}).json() == {"turns": [], "next": None}


def test_it_refuses_a_session_without_its_csrf_token(bob: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(bob)
    answer = client.post("/api/v1/auth/tokens", {"name": "x"}, content_type="application/json")
    assert answer.status_code == 403
    assert answer.json()["code"] == "csrf_failed"


def test_it_tells_a_stranger_how_to_sign_in(client: Client) -> None:
    answer = client.get("/api/v1/turns")
    assert answer.status_code == 401
    assert answer["WWW-Authenticate"].startswith("Bearer")
    assert answer.json()["code"] == "not_authenticated"


# --- bodies -------------------------------------------------------------------------------------


def post(client: Client, body: bytes, content_type: str = "application/json") -> Any:
    return client.generic("POST", "/api/rest/echo", body, content_type=content_type)


@pytest.mark.urls(__name__)
@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "multipart/form-data",
        "text/plain; charset=utf-16",
        "nonsense",
        "",
        "a/" + "b" * 400,
        "application/json; charset=nonsense",
        "application/json; charset=zlib",
    ],
)
def test_it_reads_json_whatever_the_content_type_says(client: Client, content_type: str) -> None:
    answer = post(client, '{"a": "é"}'.encode(), content_type)
    assert answer.status_code == 200
    assert answer.json() == {"got": {"a": "é"}}


@pytest.mark.urls(__name__)
@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"nonsense",
        b" ",
        b"{'a': 1}",
        b'{"a": 1,}',
        b'{"a": 1} x',
        b"a=1&b=2",
        b"[]",
        b"null",
        b"true",
        b"1",
        b'"text"',
        b"NaN",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"\xff\xfe{}",
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": "\x00"}',
        b'{"a": "\n"}',
        b"\x1f\x8b\x08\x00",
    ],
)
def test_it_refuses_what_is_no_json_object(client: Client, body: bytes) -> None:
    answer = post(client, body)
    assert answer.status_code == 400
    assert answer.json()["code"] == "parse_error"


@pytest.mark.urls(__name__)
@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000, "[1, [NaN]]", '{"x": -Infinity}']
)
def test_it_refuses_what_is_no_number_under_the_name_of_its_field(client: Client, number: str) -> None:
    answer = post(client, f'{{"fine": 1, "ttl": {number}}}'.encode())
    assert answer.status_code == 400
    assert list(answer.json()) == ["ttl"]


@pytest.mark.urls(__name__)
def test_it_reads_an_empty_body_a_byte_order_mark_and_double_keys(client: Client) -> None:
    assert post(client, b"").json() == {"got": {}}
    assert post(client, b'\xef\xbb\xbf{"a": 1}').json() == {"got": {"a": 1}}
    assert post(client, b'{"a": 1, "a": 2}').json() == {"got": {"a": 2}}


@pytest.mark.urls(__name__)
def test_it_refuses_more_than_a_mebibyte(client: Client) -> None:
    for content_type in ("application/json", "application/x-www-form-urlencoded"):
        answer = post(client, b'{"a": "' + b"x" * 1024 * 1024 + b'"}', content_type)
        assert answer.status_code == 413
        assert answer.json()["code"] == "body_too_large"


@pytest.mark.urls(__name__)
def test_it_gives_back_valid_json_of_text_that_is_none(client: Client) -> None:
    answer = post(client, b'{"a": "\\ud800", "b": "\\u2028 \\u0000 \xf0\x9f\x98\x80"}')
    assert answer.json() == {"got": {"a": "?", "b": "\u2028 \x00 😀"}}


# --- writing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [{}, [], {"a": []}, {"a": {"b": [1, None, True, 1.5, 'é"\n', {}]}, "c": ()}, [[], [[]], {"": {}}], "x", None],
)
def test_it_writes_deep_json_like_any_other(value: Any) -> None:
    assert "".join(deep_json(value)) == json.dumps(value, ensure_ascii=False).replace('": ', '":').replace(
        ", ", ", "
    ) or (json.loads("".join(deep_json(value))) == json.loads(json.dumps(value)))


def test_it_writes_json_of_any_depth() -> None:
    deep: Any = "end"
    for number in range(20_000):
        deep = {"children": [deep]} if number % 2 else [deep, number]
    text = JSONRenderer().render(deep).decode()
    assert text.startswith('{"children":[[{"children":[[')
    assert text.count("[") == text.count("]") == 20_000
    assert '"end"' in text


@override_settings(DEBUG=False)
@pytest.mark.parametrize("url", ["/api/v1/turns", "/nothing"])
def test_it_survives_a_host_it_does_not_serve(careless: Client, url: str) -> None:
    answer = careless.get(url, headers={"Host": "evil.example"})
    assert answer.status_code == 400
    assert "evil.example" not in answer.content.decode()
    assert answer["Content-Type"].startswith("application/json" if url.startswith("/api/") else "text/html")
