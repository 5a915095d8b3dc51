"""Bad input everywhere: a 4xx that names what is wrong, always JSON, never a 5xx.

What to send is read from the product's own OpenAPI description, so a new address is tried as soon
as it is described (and tests/test_permission_matrix.py sees to it that it is).
"""

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from django.test import Client

from omni2.accounts.models import User
from tests.llm_server import LlmServer
from tests.openapi import ASGI_PATHS, BELOW_DJANGO, Operation, operations
from tests.running import Running, running

DEEP = 100_000
NO_OBJECT = [
    b"{",
    b"nonsense",
    b"[]",
    b"null",
    b"1",
    b'"x"',
    b"[" * DEEP,
    b'{"a":' * DEEP,
    b'{"user_id":' + b"[" * DEEP + b"]" * DEEP + b"}",
    b"\xff\xfe",
    b'{"user_id": "\xed\xa0\x80"}',
    b"user_id=1",
]
WRONG_FOR_ANY_FIELD = ['{"a": 1}', "[]", "[1]", "true", '"\\u0000"', "NaN", "-Infinity", "1e999", "9" * 5000]
STRANGE = [
    "null",
    "false",
    "0",
    "-1",
    "1.5",
    "1e300",
    '""',
    '" "',
    '"\\ud800"',
    '"\\udfff\\u0000"',
    '"é"',
    json.dumps("x" * 70_000),
]
STRANGE_PARTS = [
    "\x00",
    "\ud800",
    "\ufffd",
    "é",
    "x" * 3000,
    "-1",
    "0",
    "1e9",
    "9" * 40,
    "..",
    "%",
    "'",
    "{}",
    "a b",
    "\n",
    "null",
]
BAD_CREDENTIALS = [
    "Bearer",
    "Bearer ",
    "Bearer x",
    "Bearer \x00",
    "Bearer é",
    "Bearer 日本",
    "Basic eDp4",
    "x" * 5000,
    "",
    "Bearer a b",
    "bearer x,y",
]

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
]

IN_DJANGO = [operation for operation in operations() if operation.path not in BELOW_DJANGO]
WITH_BODY = [operation for operation in IN_DJANGO if operation.takes_body]


def ids(operation: Operation) -> str:
    return str(operation)


@pytest.fixture
def as_ada(ada: User, token_of: Callable[[User], str]) -> Client:
    """Somebody who may everything, so that no check of rights stands before the check of input."""
    return Client(headers={"Authorization": f"Bearer {token_of(ada)}"})


def send(client: Client, operation: Operation, body: bytes = b"", *, url: str = "", **more: Any) -> Any:
    return client.generic(
        operation.method.upper(), url or operation.url(), body, content_type="application/json", **more
    )


def assert_refused(answer: Any, about: object = "") -> dict[str, Any]:
    assert 400 <= answer.status_code < 500, about
    assert answer["Content-Type"].startswith("application/json"), about
    found: dict[str, Any] = answer.json()
    return found


def assert_not_broken(answer: Any, about: object = "") -> None:
    assert answer.status_code < 500, about
    if answer.status_code >= 400:
        assert answer["Content-Type"].startswith("application/json"), about


# --- inside this process --------------------------------------------------------------------------


@pytest.mark.parametrize("operation", WITH_BODY, ids=ids)
def test_it_refuses_a_body_that_is_no_json_object(as_ada: Client, operation: Operation) -> None:
    for body in NO_OBJECT:
        assert assert_refused(send(as_ada, operation, body), body[:40])["code"] == "parse_error"
    assert_not_broken(send(as_ada, operation, b""))
    assert assert_refused(send(as_ada, operation, b" " * (1024 * 1024 + 1)))["code"] == "body_too_large"


@pytest.mark.parametrize("operation", WITH_BODY, ids=ids)
def test_it_names_the_field_that_is_wrong(as_ada: Client, operation: Operation) -> None:
    assert operation.body_fields
    for field, schema in operation.body_fields.items():
        for value in WRONG_FOR_ANY_FIELD:
            if value == "true" and schema.get("type") == "boolean":
                continue  # the one kind of field it is right for
            answer = send(as_ada, operation, f'{{"{field}": {value}}}'.encode())
            assert field in assert_refused(answer, (field, value[:40])), (field, value[:40], answer.content)


@pytest.mark.parametrize("operation", WITH_BODY, ids=ids)
def test_it_is_not_broken_by_any_value_of_any_field(as_ada: Client, operation: Operation) -> None:
    for value in STRANGE:
        for field in operation.body_fields:
            assert_not_broken(send(as_ada, operation, f'{{"{field}": {value}}}'.encode()), (field, value[:40]))
        everywhere = ", ".join(f'"{field}": {value}' for field in operation.body_fields)
        assert_not_broken(send(as_ada, operation, f"{{{everywhere}}}".encode()), value[:40])


@pytest.mark.parametrize("operation", IN_DJANGO, ids=ids)
def test_it_is_not_broken_by_any_part_of_an_address(as_ada: Client, operation: Operation) -> None:
    for part in STRANGE_PARTS:
        text = quote(part.encode("utf-8", "surrogatepass"), safe="")
        for name in operation.path_parameters:
            assert_refused(send(as_ada, operation, b"{}", url=operation.url(**{name: text})), (name, part[:40]))
        for name in [*operation.query_parameters, "format", "page"]:
            answer = send(as_ada, operation, b"{}", url=f"{operation.url()}?{name}={text}")
            assert_not_broken(answer, (name, part[:40]))


@pytest.mark.parametrize("operation", [each for each in IN_DJANGO if each.needs_sign_in], ids=ids)
def test_it_knows_nobody_by_a_bad_credential(db: None, operation: Operation) -> None:
    for credential in BAD_CREDENTIALS:
        answer = send(Client(), operation, b"{}", headers={"Authorization": credential})
        assert answer.status_code == 401, credential
        assert set(assert_refused(answer)) == {"detail", "code"}


@pytest.mark.parametrize(
    "ttl", ["0", "-1", "1e9", "NaN", "true", '"x"', "null", "[]", "Infinity", "1e-9", '"1"', "720.1"]
)
def test_it_names_the_ttl_that_cannot_be(as_ada: Client, bob: User, ttl: str) -> None:
    body = f'{{"user_id": "bob@example.com", "ttl_hours": {ttl}}}'.encode()
    answer = as_ada.post("/api/v1/monitoring/enable", body, content_type="application/json")
    if ttl != "null":  # that is: the default, please
        assert list(assert_refused(answer)) == ["ttl_hours"]
    assert_not_broken(answer)


# --- against a started server ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def omni2() -> Iterator[Running]:
    with LlmServer() as llm, running(**llm.environment) as started:
        yield started


@pytest.fixture(scope="module")
def token(omni2: Running) -> str:
    omni2.create_user("ada@example.com", is_superuser=True, is_staff=True)
    omni2.create_user("bob@example.com")
    made: str = omni2.create_token("ada@example.com")
    return made


def raw(omni2: Running, head: bytes, body: bytes = b"") -> tuple[int, bytes]:
    """Status and body of a request written by hand."""
    address = urlsplit(omni2.url)
    with socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=20) as connection:
        with suppress(ConnectionError):  # it may be answered before it was all sent
            connection.sendall(head + b"\r\nHost: localhost\r\nConnection: close\r\n\r\n" + body)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    status = int(answer.split(b" ", 2)[1])
    return status, answer.partition(b"\r\n\r\n")[2]


def posted(omni2: Running, token: str, path: str, body: bytes, *headers: str) -> tuple[int, dict[str, Any]]:
    lines = [f"POST {path} HTTP/1.1", f"Authorization: Bearer {token}", f"Content-Length: {len(body)}", *headers]
    status, content = raw(omni2, "\r\n".join(lines).encode("latin-1"), body)
    return status, json.loads(content)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(ASGI_PATHS))
def test_the_ask_routes_refuse_bad_bodies(omni2: Running, token: str, path: str) -> None:
    for body in [*NO_OBJECT, b"", b"{}"]:
        status, found = posted(omni2, token, path, body)
        assert status == 400, body[:40]
        assert {"code", "message", "non_field_errors"} & set(found), found
    for field in ("message", "session_id"):
        for value in WRONG_FOR_ANY_FIELD:
            fields = {"message": '"hello"', field: value}
            text = ", ".join(f'"{name}": {each}' for name, each in fields.items())
            status, found = posted(omni2, token, path, f"{{{text}}}".encode())
            assert status == 400, (field, value[:40])
            assert field in found or found.get("code"), (field, value[:40], found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", ["/api/v1/ask", "/api/v1/ask/stream", "/api/v1/monitoring/enable", "/api/v1/auth/token"]
)
def test_it_refuses_a_body_over_a_mebibyte_however_it_comes(omni2: Running, token: str, path: str) -> None:
    body = b'{"message": "' + b"x" * 1024 * 1024 + b'"}'
    assert posted(omni2, token, path, body)[0] == 413
    head = f"POST {path} HTTP/1.1\r\nAuthorization: Bearer {token}\r\nTransfer-Encoding: chunked".encode()
    status, content = raw(omni2, head, b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
    assert status == 413
    assert json.loads(content)["code"] == "body_too_large"


@pytest.mark.slow
def test_it_reads_a_chunked_body(omni2: Running, token: str) -> None:
    head = f"POST /api/v1/monitoring/enable HTTP/1.1\r\nAuthorization: Bearer {token}\r\nTransfer-Encoding: chunked"
    status, content = raw(omni2, head.encode(), b'9\r\n{"user_id\r\n13\r\n": "bob@example.com\r\n2\r\n"}\r\n0\r\n\r\n')
    assert status == 200, content
    assert json.loads(content)["user_id"] == "bob@example.com"


@pytest.mark.slow
@pytest.mark.parametrize(
    "target",
    [
        b"/api/v1/turns?q=%FF%00",
        b"/api/v1/turns?limit=%C0%80",
        b"/api/v1/flows/user/%FF@example.com",
        b"/api/v1/flows/user/%00",
        b"/api/v1/flows/user/%ED%A0%80",
        b"/api/v1/flows/session/%2e%2e%2f",
        b"/api/v1/flows/user/a%2Fb@example.com",
    ],
)
def test_it_is_not_broken_by_bytes_that_are_no_text(omni2: Running, token: str, target: bytes) -> None:
    status, content = raw(omni2, b"GET " + target + b" HTTP/1.1\r\nAuthorization: Bearer " + token.encode())
    assert 200 <= status < 500
    json.loads(content)


@pytest.mark.slow
@pytest.mark.parametrize("target", [b"/api/v1/turns?q=\xff", b"/api/v1/flows/user/\xff@example.com", b"/\xff"])
def test_the_server_itself_refuses_an_address_that_is_no_ascii(omni2: Running, token: str, target: bytes) -> None:
    status, content = raw(omni2, b"GET " + target + b" HTTP/1.1\r\nAuthorization: Bearer " + token.encode())
    assert status == 400
    assert b"Traceback" not in content


@pytest.mark.slow
@pytest.mark.parametrize(
    "credential", [b"Bearer \xc3\xa9", b"Bearer \xff\xfe", b"Bearer " + b"x" * 4000, b"Bearer", b"x"]
)
@pytest.mark.parametrize("target", [b"GET /api/v1/turns", b"POST /api/v1/ask", b"POST /api/v1/ask/stream"])
def test_it_is_not_broken_by_a_token_that_is_no_text(omni2: Running, target: bytes, credential: bytes) -> None:
    status, content = raw(omni2, target + b" HTTP/1.1\r\nContent-Length: 0\r\nAuthorization: " + credential)
    assert status == 401
    assert set(json.loads(content)) == {"detail", "code"}


# DELETE goes last and alone: schemathesis learns ids from answers, and revokes the token it comes with.
@pytest.mark.slow
@pytest.mark.parametrize("part", ["--exclude-method", "--include-method"])
def test_schemathesis_finds_no_server_error_and_nothing_undescribed(omni2: Running, token: str, part: str) -> None:
    done = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"),
            *("run", f"{omni2.url}/api/schema/", part, "DELETE"),
            *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"),
            *("--max-examples", "8", "--seed", "1", "--no-shrink", "--continue-on-failure", "--workers", "1"),
            *("--generation-database", "none", "--suppress-health-check", "all", "--warnings", "off", "--no-color"),
            *("--header", f"Authorization: Bearer {token}"),
        ],
        capture_output=True,
        text=True,
        cwd=omni2.folder,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    if part == "--exclude-method":
        status, _ = raw(omni2, f"GET /api/v1/turns HTTP/1.1\r\nAuthorization: Bearer {token}".encode())
        assert status == 200, "it was let in to the end"
