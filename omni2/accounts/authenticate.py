"""Who is this? The one answer, used by DRF, the ask routes and the sockets alike.

An Authorization header always wins over a cookie. Whatever a stranger sends, the answer is an
Identity: nothing here raises for bad input.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from io import BytesIO
from typing import Any, Literal, NamedTuple

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.backends.base import SessionBase
from django.core.handlers.asgi import ASGIRequest
from django.db.models import BooleanField, ExpressionWrapper, Q
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse, parse_cookie
from django.middleware.csrf import CsrfViewMiddleware
from django.utils.crypto import constant_time_compare
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed, PermissionDenied
from rest_framework.request import Request

from omni2.accounts.models import ApiToken, User
from omni2.accounts.sessions import SessionStore

Problem = Literal["unknown", "inactive", "expired", "revoked"]
Method = Literal["token", "session"]

WWW_AUTHENTICATE = 'Bearer realm="omni2"'
# The b64token of RFC 6750; the length only keeps a stranger from having megabytes digested.
TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,200}", re.ASCII)
USE_NOTED_EVERY = timedelta(minutes=1)


class Refusal(NamedTuple):
    """How a credential that does not let anybody in is answered over HTTP."""

    status: int
    code: str
    detail: str


NOT_AUTHENTICATED = Refusal(
    401, "not_authenticated", "Sign in, or send a token in the header Authorization: Bearer <token>."
)
CSRF_FAILED = Refusal(403, "csrf_failed", "The CSRF token is missing or wrong: send the cookie's in X-CSRFToken.")
REFUSALS: dict[Problem, Refusal] = {
    "unknown": Refusal(401, "token_unknown", "This token is not known."),
    "expired": Refusal(401, "token_expired", "This token has expired."),
    "revoked": Refusal(401, "token_revoked", "This token was revoked."),
    "inactive": Refusal(403, "inactive", "This account is not active."),
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a credential names, and what is wrong with it.

    No credential: no user, no method, problem "unknown". A credential nobody knows: no user. One
    that is expired, revoked or of an inactive person names its user and says so in `problem`.
    Without a problem the user may go on.
    """

    user: User | None = None
    problem: Problem | None = None
    method: Method | None = None
    token_id: int | None = None
    token_name: str | None = None
    expires_at: datetime | None = None
    session_key: str | None = field(default=None, repr=False)

    @property
    def refusal(self) -> Refusal | None:
        """What to answer instead of serving; None when this one is let in."""
        if self.problem is None:
            return None
        return NOT_AUTHENTICATED if self.method is None else REFUSALS[self.problem]


ANONYMOUS = Identity(problem="unknown")
UNKNOWN_TOKEN = Identity(problem="unknown", method="token")


def authenticate_token(token: str) -> Identity:
    """Whose token is this? One query: the token with its user, judged by PostgreSQL's clock.

    Once a minute a token that is let in costs a second statement, which notes its use.
    """
    if not TOKEN.fullmatch(token):
        return UNKNOWN_TOKEN
    row = (
        ApiToken.objects.with_state()
        .annotate(use_is_old=ExpressionWrapper(_use_is_old(), output_field=BooleanField()))
        .select_related("user")
        .filter(digest=ApiToken.digest_of(token))
        .order_by()
        .first()
    )
    if row is None:
        return UNKNOWN_TOKEN
    problem = _problem(row.state, row.user)
    if problem is None and row.use_is_old:
        # conditional: of many requests at once, one writes
        ApiToken.objects.filter(_use_is_old(), pk=row.pk).update(last_used_at=Now())
    return Identity(
        user=row.user,
        problem=problem,
        method="token",
        token_id=row.pk,
        token_name=str(row),
        expires_at=row.expires_at,
    )


def _use_is_old() -> Q:
    return Q(last_used_at__isnull=True) | Q(last_used_at__lt=Now() - USE_NOTED_EVERY)


def _problem(state: str, user: User) -> Problem | None:
    # The token comes before its owner: one that was taken back tells nothing about the account.
    if state == "revoked":
        return "revoked"
    if state == "expired":
        return "expired"
    return None if user.is_active else "inactive"


def authenticate_header(value: str) -> Identity:
    """The same for the whole value of an Authorization header; anything but Bearer is unknown."""
    return authenticate_token(bearer_token(value))


def bearer_token(value: str) -> str:
    """The token in the value of an Authorization header, "" in that of any other scheme."""
    scheme, _, token = value.strip(" \t").partition(" ")
    return token.strip(" ") if scheme.lower() == "bearer" else ""


def authenticate_session(session: SessionBase) -> Identity:
    """Whose browser session is this? Two queries: the session and its user.

    As Django does, but a deactivated person is named instead of vanishing. A session from before
    a password change is nobody's.
    """
    user_pk, stamp = session.get(SESSION_KEY), session.get(HASH_SESSION_KEY)
    if user_pk is None or not stamp or session.get(BACKEND_SESSION_KEY) not in settings.AUTHENTICATION_BACKENDS:
        return ANONYMOUS
    user = User.objects.filter(pk=user_pk).first()
    if user is None or not _is_stamp_of(user, stamp):
        return ANONYMOUS
    return Identity(
        user=user,
        problem=None if user.is_active else "inactive",
        method="session",
        session_key=session.session_key,
    )


def _is_stamp_of(user: User, stamp: str) -> bool:
    known = (user.get_session_auth_hash(), *user.get_session_auth_fallback_hash())
    return any(constant_time_compare(stamp, each) for each in known)


def authenticate_scope(scope: Mapping[str, Any]) -> Identity:
    """Who sends this ASGI request or opens this socket? At most two queries; call it in a thread.

    The Authorization header if there is one, else the session cookie. CSRF (`passes_csrf`) and
    Origin are the caller's to check when `method` is "session".
    """
    values = header(scope, b"authorization")
    if values:
        return authenticate_header(values[0]) if len(values) == 1 else UNKNOWN_TOKEN
    cookies = parse_cookie("; ".join(header(scope, b"cookie")))
    return authenticate_session(open_session(cookies.get(settings.SESSION_COOKIE_NAME)))


def has_authorization(scope: Mapping[str, Any]) -> bool:
    """Does this request have an Authorization header, whatever is in it?"""
    return any(name.lower() == b"authorization" for name, _ in scope["headers"])


def header(scope: Mapping[str, Any], name: bytes) -> list[str]:
    """The values of a header of an ASGI scope, by its lower-case name."""
    return [value.decode("latin-1") for each, value in scope.get("headers", ()) if each.lower() == name]


def open_session(key: str | None) -> SessionStore:
    """The browser session of that key; nothing is asked yet."""
    return SessionStore(key)


class _CsrfProbe(HttpRequest):
    """Looks like a request to Django's CSRF check and has no body that the check could eat."""

    def __init__(self, request: HttpRequest) -> None:
        super().__init__()
        self.method = request.method
        self.path = request.path
        self.META = dict(request.META)
        self.COOKIES = dict(request.COOKIES)
        self._is_secure = request.is_secure()
        # how Django's test client says that it does not want the check
        self._dont_enforce_csrf_checks = getattr(request, "_dont_enforce_csrf_checks", False)

    def is_secure(self) -> bool:
        return self._is_secure


class _CsrfCheck(CsrfViewMiddleware):
    def _reject(self, request: HttpRequest, reason: str) -> HttpResponse:
        return HttpResponse(reason, status=403)


def _never_called(request: HttpRequest) -> HttpResponse:
    raise NotImplementedError


def passes_csrf(request: HttpRequest | Mapping[str, Any]) -> bool:
    """Does this request of a session caller carry its CSRF token (header X-CSRFToken)? No query.

    Takes a Django request or the ASGI scope of an HTTP request. Only the header counts, never a
    form field: the body stays unread.
    """
    if isinstance(request, Mapping):
        # the query plays no part, and need not be text that Django can decode
        request = ASGIRequest({**request, "query_string": b""}, BytesIO())
    probe = _CsrfProbe(request)
    check = _CsrfCheck(_never_called)
    check.process_request(probe)
    return check.process_view(probe, _never_called, (), {}) is None


class ApiAuthentication(BaseAuthentication):
    """DRF's door: a Bearer token (no CSRF), else the browser session (with CSRF).

    `request.user` is the person, `request.auth` the Identity. 401 for a token that is unknown,
    expired or revoked, 403 `inactive` and `csrf_failed`.
    """

    def authenticate(self, request: Request) -> tuple[User, Identity] | None:
        header = request.META.get("HTTP_AUTHORIZATION")
        identity = self._of_session(request) if header is None else authenticate_header(header)
        if identity.method is None:
            return None
        if identity.refusal is not None:
            raise _as_exception(identity.refusal)
        if identity.method == "session" and not passes_csrf(request._request):
            raise _as_exception(CSRF_FAILED)
        assert identity.user is not None
        return identity.user, identity

    def authenticate_header(self, request: Request) -> str:
        return WWW_AUTHENTICATE

    @staticmethod
    def _of_session(request: Request) -> Identity:
        session = getattr(request._request, "session", None)
        return ANONYMOUS if session is None else authenticate_session(session)


def _as_exception(refusal: Refusal) -> AuthenticationFailed | PermissionDenied:
    kind = AuthenticationFailed if refusal.status == 401 else PermissionDenied
    return kind(refusal.detail, code=refusal.code)
