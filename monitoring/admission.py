"""Who may open a watcher's socket, and who may keep it.

Asked when a socket opens, and again every few seconds for all open sockets of the process at
once: a right that is taken away, a session that ends or a token that is revoked raises no event.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from django.conf import settings
from django.db import connection
from django.http.request import split_domain_port, validate_host
from django.utils.http import is_same_domain

from flows import log
from monitoring.messages import Place
from omni2.accounts.access import record_access
from omni2.accounts.authenticate import Identity, authenticate_scope, authenticate_token
from omni2.accounts.models import User

MALFORMED_AFTER = 4400
NOT_SIGNED_IN = 4401
NOT_ALLOWED = 4403
NO_SUCH_USER = 4404

BEARER = "bearer"
LOCAL_HOSTS = [".localhost", "127.0.0.1", "[::1]"]


class Refused(Exception):
    """This socket is not opened; `code` is what it is closed with."""

    def __init__(self, code: int) -> None:
        super().__init__(str(code))
        self.code = code


class ForeignPage(Exception):
    """A browser session from a page that is not ours: the handshake itself is refused."""


@dataclass(frozen=True, slots=True)
class Admission:
    """Why a socket is open: whose it is, and what it stands on."""

    actor: str
    user_pk: int
    password: str = field(repr=False)
    token_id: int | None
    session_key: str | None = field(repr=False)
    sees_all: bool
    """may also read everybody's history, so a pre-roll may reach back beyond the monitoring period"""
    after: tuple[str, Place] | None
    """where he was before: epoch and place of the cursor he came with"""


def admit(scope: Mapping[str, Any], user_id: str) -> Admission:
    """Let in whoever may watch this user, and write down that he does.

    About five queries. Raises ForeignPage, Refused, or django.db.Error when PostgreSQL is away.
    """
    identity = _identity(scope)
    user = identity.user
    if identity.problem is not None or user is None:
        raise Refused(NOT_SIGNED_IN)
    if not user.has_perm("flows.watch"):
        raise Refused(NOT_ALLOWED)
    if not User.objects.filter(email=user_id).exists():
        raise Refused(NO_SUCH_USER)
    after = _after(scope)
    record_access(actor=user, action="watch_started", subject_user_id=user_id, detail={"by": identity.method})
    return Admission(
        actor=user.user_id,
        user_pk=user.pk,
        password=user.password,
        token_id=identity.token_id,
        session_key=identity.session_key,
        sees_all=user.has_perm("flows.view"),
        after=after,
    )


def _after(scope: Mapping[str, Any]) -> tuple[str, Place] | None:
    values = parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True).get("after", [])
    if not values:
        return None
    try:
        epoch, stream_id = log.split_cursor(values[0])
    except ValueError:
        raise Refused(MALFORMED_AFTER) from None
    if len(values) > 1:
        raise Refused(MALFORMED_AFTER)
    return epoch, log.id_order(stream_id)


def _identity(scope: Mapping[str, Any]) -> Identity:
    """The Authorization header, else the subprotocol `bearer, <token>`, else a session from our own page."""
    if not _headers(scope, b"authorization"):
        offered = list(scope.get("subprotocols", ()))
        if len(offered) == 2 and offered[0] == BEARER:
            return authenticate_token(offered[1])
    identity = authenticate_scope(scope)
    # another site's page can make a browser open a socket with our cookie; a program sends no Origin
    by_browser = identity.method == "session" or (identity.method is None and bool(_headers(scope, b"origin")))
    if by_browser and not comes_from_our_page(scope):
        raise ForeignPage
    return identity


def _headers(scope: Mapping[str, Any], name: bytes) -> list[str]:
    return [value.decode("latin-1") for each, value in scope.get("headers", ()) if each.lower() == name]


def comes_from_our_page(scope: Mapping[str, Any]) -> bool:
    """Whether the Origin is the host that was asked (and is ours to serve), or one we trust: as
    Django judges an unsafe request."""
    origins, hosts = _headers(scope, b"origin"), _headers(scope, b"host")
    if len(origins) != 1 or len(hosts) != 1:
        return False
    try:
        origin = urlsplit(origins[0])
        port = origin.port
    except ValueError:
        return False
    if origin.scheme not in ("http", "https"):
        return False
    if any(_is_trusted(origin.scheme, origin.netloc, trusted) for trusted in settings.CSRF_TRUSTED_ORIGINS):
        return True
    default_port = {"http": 80, "https": 443}[origin.scheme]
    host, host_port = split_domain_port(hosts[0])
    allowed = settings.ALLOWED_HOSTS or (LOCAL_HOSTS if settings.DEBUG else [])
    same_port = (int(host_port) if host_port else default_port) == (port or default_port)
    return bool(host) and validate_host(host, allowed) and same_port and split_domain_port(origin.netloc)[0] == host


def _is_trusted(scheme: str, netloc: str, trusted: str) -> bool:
    """CSRF_TRUSTED_ORIGINS as Django reads it: `https://*.example.com` stands for its subdomains."""
    known = urlsplit(trusted)
    pattern = known.netloc.lstrip("*")
    return scheme == known.scheme and is_same_domain(netloc, pattern)


# --- for as long as it is open ---------------------------------------------------------------------

_STILL_ALLOWED = """
SELECT asked.number,
    coalesce(person.is_active AND person.password = asked.password, false)
        AND (asked.token_id IS NULL OR EXISTS (SELECT FROM api_tokens t
            WHERE t.id = asked.token_id AND t.revoked_at IS NULL AND t.expires_at > statement_timestamp()))
        AND (asked.session_key IS NULL OR EXISTS (SELECT FROM django_session s
            WHERE s.session_key = asked.session_key AND s.expire_date > statement_timestamp())),
    coalesce(person.is_superuser, false) OR 'watch' = ANY (rights.names),
    coalesce(person.is_superuser, false) OR 'view' = ANY (rights.names)
FROM unnest(%s::int[], %s::bigint[], %s::text[], %s::bigint[], %s::text[])
    AS asked(number, user_pk, password, token_id, session_key)
LEFT JOIN users person ON person.id = asked.user_pk
LEFT JOIN LATERAL (
    SELECT coalesce(array_agg(p.codename), '{}') AS names
    FROM auth_permission p JOIN django_content_type c ON c.id = p.content_type_id AND c.app_label = 'flows'
    WHERE p.codename IN ('watch', 'view') AND (
        EXISTS (SELECT FROM users_user_permissions up WHERE up.permission_id = p.id AND up.user_id = person.id)
        OR EXISTS (SELECT FROM auth_group_permissions gp JOIN users_groups ug ON ug.group_id = gp.group_id
            WHERE gp.permission_id = p.id AND ug.user_id = person.id))
) rights ON true
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an admission: a close code, or None; and whether he may still see all."""

    code: int | None
    sees_all: bool


def still_allowed(admissions: Sequence[Admission]) -> list[Verdict]:
    """One query, however many; the answers in the order of the questions.

    A password that changed ends the sockets of all sessions and tokens, as it ends those.
    """
    if not admissions:
        return []
    columns: list[Any] = [
        list(range(len(admissions))),
        [each.user_pk for each in admissions],
        [each.password for each in admissions],
        [each.token_id for each in admissions],
        [each.session_key for each in admissions],
    ]
    with connection.cursor() as cursor:
        cursor.execute(_STILL_ALLOWED, columns)
        rows = {number: rest for number, *rest in cursor.fetchall()}
    return [_verdict(*rows[number]) for number in range(len(admissions))]


def _verdict(signed_in: bool, may_watch: bool, sees_all: bool) -> Verdict:
    if not signed_in:
        return Verdict(NOT_SIGNED_IN, False)
    return Verdict(None if may_watch else NOT_ALLOWED, sees_all)
