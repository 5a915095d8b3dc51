"""How often one may try to sign in: counted in PostgreSQL, so all processes count together.

An attempt is counted before the password is looked at, so that a thousand at once are a thousand
attempts; one that succeeds is taken back. Works without Redis.
"""

import hashlib
import ipaddress
import math
from dataclasses import dataclass

from django.db import connection
from django.http import HttpRequest
from rest_framework.request import Request

WINDOW_S = 15 * 60
# A person mistypes a few times; an office behind one address has several such persons.
TRIES_PER_EMAIL = 10
TRIES_PER_ADDRESS = 60
# Nobody waits for a row this old; it is only cleared away.
FORGET_AFTER_S = 24 * 3600

# An upsert locks its row: two processes never both get the last free attempt.
COUNT = """
INSERT INTO sign_in_counts AS c (key, started_at, count) VALUES (%(key)s, statement_timestamp(), 1)
ON CONFLICT (key) DO UPDATE SET
    (count, started_at) = (
        SELECT CASE WHEN fresh THEN c.count + 1 ELSE 1 END, CASE WHEN fresh THEN c.started_at ELSE now END
        FROM (SELECT statement_timestamp() AS now) AS n,
             LATERAL (SELECT c.started_at > now - make_interval(secs => %(window_s)s) AS fresh) AS f
    )
RETURNING count, extract(epoch FROM started_at + make_interval(secs => %(window_s)s) - statement_timestamp())
"""
TAKE_BACK = "UPDATE sign_in_counts SET count = greatest(count - 1, 0) WHERE key = %s"
FORGET = "DELETE FROM sign_in_counts WHERE key = %s"
# Skips what somebody else is just counting: two of these never wait for each other.
CLEAR_AWAY = """
DELETE FROM sign_in_counts WHERE key IN (
    SELECT key FROM sign_in_counts WHERE started_at < statement_timestamp() - make_interval(secs => %s)
    LIMIT 1000 FOR UPDATE SKIP LOCKED
)
"""


class TooManyTries(Exception):
    """Signing in is refused for now, whatever the password."""

    code = "too_many_tries"

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"Too many attempts to sign in. Try again in {_minutes(retry_after_s)}.")
        self.retry_after_s = retry_after_s


def _minutes(seconds: int) -> str:
    count = math.ceil(seconds / 60)
    return "a minute" if count <= 1 else f"{count} minutes"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to sign in, already counted."""

    email_key: str
    address_key: str | None

    def succeeded(self) -> None:
        """The person is who he says: forget his mistakes, and take this attempt off the address.

        The address keeps its failures: whoever guesses at others' passwords must not be able to
        start afresh by signing in as himself in between. Two statements.
        """
        with connection.cursor() as cursor:
            cursor.execute(FORGET, [self.email_key])
            if self.address_key:
                cursor.execute(TAKE_BACK, [self.address_key])


def count_attempt(*, email: str, address: str | None) -> Attempt:
    """Count one attempt for both; raises TooManyTries when either has had too many. Two statements.

    The address comes first: somebody who tries many names fills no table and locks nobody out.
    """
    attempt = Attempt(_key("email", email), _key("address", _network(address)) if address else None)
    if attempt.address_key:
        _count(attempt.address_key, TRIES_PER_ADDRESS)
    _count(attempt.email_key, TRIES_PER_EMAIL)
    return attempt


def address_of(request: HttpRequest | Request) -> str | None:
    """Where the request comes from; through a trusted proxy, what that says (omni2.proxies)."""
    return request.META.get("REMOTE_ADDR") or None


def _count(key: str, most: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(COUNT, {"key": key, "window_s": WINDOW_S})
        count, seconds_left = cursor.fetchone()
        if count == 1:
            cursor.execute(CLEAR_AWAY, [FORGET_AFTER_S])
    if count > most:
        raise TooManyTries(max(1, math.ceil(seconds_left)))


def _key(kind: str, text: str) -> str:
    return hashlib.sha256(f"{kind}:{text}".encode("utf-8", "replace")).hexdigest()


def _network(address: str) -> str:
    """One household for IPv6: its /64, since every machine there has as many addresses as it likes."""
    try:
        known = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(known, ipaddress.IPv6Address) and known.ipv4_mapped is None:
        return str(ipaddress.ip_network((known, 64), strict=False))
    return str(getattr(known, "ipv4_mapped", None) or known)
