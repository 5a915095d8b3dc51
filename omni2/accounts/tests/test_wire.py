"""What strangers send over a real connection to really started servers."""

import json
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from omni2.accounts.throttle import TRIES_PER_EMAIL
from tests.people import PASSWORD
from tests.running import Running, running

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def omni2() -> Iterator[Running]:
    with running(web=2) as started:
        started.create_user("bob@example.com", "Bob Kahn")
        yield started


def ask(url: str, head: list[bytes], *, body: bytes = b"", method: str = "GET", path: str) -> tuple[int, dict, bytes]:
    """Status, headers and body of one request, sent byte for byte."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
        lines = [f"{method} {path} HTTP/1.1".encode(), b"Host: localhost", b"Connection: close", *head]
        lines.append(b"Content-Length: %d" % len(body))
        connection.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    top, _, rest = answer.partition(b"\r\n\r\n")
    status, *fields = top.split(b"\r\n")
    headers = {
        name.strip().lower().decode(): value.strip() for name, _, value in (each.partition(b":") for each in fields)
    }
    return int(status.split()[1]), headers, rest


def session(omni2: Running) -> bytes:
    return (
        b"Cookie: " + "; ".join(f"{name}={value}" for name, value in omni2.sign_in("bob@example.com").items()).encode()
    )


HOSTILE = {
    "empty": [b"Authorization:"],
    "not ascii": [b"Authorization: Bearer \xc3\xbc"],
    "not utf-8": [b"Authorization: Bearer \xff\xfe"],
    "long": [b"Authorization: Bearer " + b"a" * 10_000],
    "wrong scheme": [b"Authorization: Basic Ym9iOmJvYg=="],
    "no scheme": [b"Authorization: omni2_nonsense"],
}
DOORS = [("GET", "/api/v1/auth/tokens", b""), ("POST", "/api/v1/ask", b'{"message": "hi"}')]


@pytest.mark.parametrize(("method", "path", "body"), DOORS, ids=["api", "ask"])
@pytest.mark.parametrize("head", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_header_is_401_even_beside_a_good_session(omni2, head, method, path, body) -> None:
    status, headers, answer = ask(omni2.url, [*head, session(omni2)], method=method, path=path, body=body)
    assert (status, json.loads(answer)["code"]) == (401, "token_unknown")
    assert headers["www-authenticate"].startswith(b"Bearer")


@pytest.mark.parametrize(("method", "path", "body"), DOORS, ids=["api", "ask"])
def test_two_headers_are_401_even_when_both_are_good(omni2, method, path, body) -> None:
    header = b"Authorization: Bearer " + omni2.create_token("bob@example.com").encode()
    status, _, answer = ask(omni2.url, [header, header], method=method, path=path, body=body)
    assert (status, json.loads(answer)["code"]) == (401, "token_unknown")


def test_a_session_lets_in_and_a_strange_cookie_does_not(omni2) -> None:
    assert ask(omni2.url, [session(omni2)], path="/api/v1/auth/tokens")[0] == 200
    for cookie in (rb'Cookie: sessionid="aaaaaaaa\000aaaaaaaa"', b"Cookie: sessionid=\xff\xff\xff\xff\xff\xff\xff\xff"):
        assert ask(omni2.url, [cookie], path="/api/v1/auth/tokens")[0] == 401


def test_two_web_processes_count_together_and_log_no_secret(omni2) -> None:
    def sign_in(number: int, password: str) -> tuple[int, dict, bytes]:
        body = json.dumps({"email": "bob@example.com", "password": password}).encode()
        return ask(omni2.urls[number % 2], [], method="POST", path="/api/v1/auth/token", body=body)

    status, _, answer = sign_in(0, PASSWORD)
    assert status == 200
    token = json.loads(answer)["token"]
    assert ask(omni2.urls[1], [f"Authorization: Bearer {token}".encode()], path="/api/v1/auth/tokens")[0] == 200

    assert [sign_in(number, "wrong")[0] for number in range(TRIES_PER_EMAIL)] == [401] * TRIES_PER_EMAIL
    for number in range(2):
        status, headers, answer = sign_in(number, PASSWORD)
        assert (status, json.loads(answer)["code"]) == (429, "too_many_tries")
        assert int(headers["retry-after"]) > 0

    logs = "".join(process.output for process in omni2.web)
    assert token not in logs
    assert PASSWORD not in logs
