"""Who a credential names, found by the very statement that acts on it: no trip to PostgreSQL of its own.

`omni2.accounts.authenticate` asks who somebody is, and answers. The ask routes have no time for that: they
put `Credential.person` into their own statement, as a row of whoever it is, or no row at all.

A token is found by its digest. A browser session is signed text that PostgreSQL cannot read: this process remembers
whose it was, and lets the statement compare that the session is still there as it was, has not run out, and that its
user's password is the same. So the memory is never believed, and whoever signed out a moment ago is nobody.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from django.conf import settings
from django.http import parse_cookie

from omni2.accounts.authenticate import (
    TOKEN,
    USE_NOTED_EVERY,
    Identity,
    Method,
    authenticate_session,
    bearer_token,
    header,
    open_session,
)
from omni2.accounts.models import ApiToken, User

REMEMBERED = 10_000
"""Browser sessions a process knows; the one that was away longest is asked for again."""

_TOKENS_OWNER = """
SELECT owner.id, owner.email,
       CASE WHEN token.revoked_at IS NOT NULL THEN 'revoked'
            WHEN token.expires_at <= statement_timestamp() THEN 'expired'
            WHEN NOT owner.is_active THEN 'inactive' END AS problem,
       token.id AS token_id, COALESCE(NULLIF(token.name, ''), token.prefix || '…') AS token_name, token.expires_at,
       COALESCE(token.last_used_at < statement_timestamp() - %(use_noted_every)s, true) AS use_is_old
FROM api_tokens AS token JOIN users AS owner ON owner.id = token.user_id WHERE token.digest = %(digest)s"""

_BROWSERS_USER = """
SELECT owner.id, owner.email, CASE WHEN NOT owner.is_active THEN 'inactive' END AS problem,
       NULL::bigint AS token_id, NULL::text AS token_name, NULL::timestamptz AS expires_at, false AS use_is_old
FROM users AS owner JOIN django_session AS browser ON browser.session_key = %(session_key)s
WHERE owner.id = %(session_user)s AND sha256(convert_to(owner.password, 'UTF8')) = %(password)s
  AND browser.session_data = %(session_data)s AND browser.expire_date > statement_timestamp()"""

# `person` is known in a statement that has this; a token's use is noted once a minute
NOTED = """
noted AS (
    UPDATE api_tokens SET last_used_at = statement_timestamp() FROM person
    WHERE api_tokens.id = person.token_id AND person.problem IS NULL AND person.use_is_old
)"""
IDENTITY = "person.id, person.email, person.problem, person.token_id, person.token_name, person.expires_at"


@dataclass(frozen=True, slots=True)
class Credential:
    """Something that may name somebody: a token of the right shape, or a session this process has seen before."""

    method: Method
    person: str
    """SQL of at most one row, for a CTE `person`"""
    parameters: Mapping[str, Any] = field(repr=False)

    def identity(self, row: tuple[Any, ...]) -> Identity:
        """Who it names, of the columns IDENTITY."""
        pk, email, problem, token_id, token_name, expires_at = row
        user = User.from_db(None, ["id", "email", "is_active"], [pk, email, problem != "inactive"])
        return Identity(
            user=user,
            problem=problem,
            method=self.method,
            token_id=token_id,
            token_name=token_name,
            expires_at=expires_at,
            session_key=self.parameters.get("session_key"),
        )


def token_of(scope: Mapping[str, Any]) -> Credential | None:
    """The Bearer token of a request; None when it has none that could be one. No query."""
    values = header(scope, b"authorization")
    token = bearer_token(values[0]) if len(values) == 1 else ""
    if not TOKEN.fullmatch(token):
        return None
    digest = ApiToken.digest_of(token)
    return Credential("token", _TOKENS_OWNER, {"digest": digest, "use_noted_every": USE_NOTED_EVERY})


class Browsers:
    """The browser sessions this process has seen. Used by any number of threads."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Credential] = OrderedDict()
        self._lock = Lock()

    def find(self, scope: Mapping[str, Any]) -> Credential | None:
        """The session of a request that has no Authorization header; None when it is nobody's. No query for one that
        is known, else two."""
        cookies = parse_cookie("; ".join(header(scope, b"cookie")))
        session_key = cookies.get(settings.SESSION_COOKIE_NAME, "")
        with self._lock:
            known = self._known.get(session_key)
            if known is not None:
                self._known.move_to_end(session_key)
        return known or self._learn(session_key)

    def _learn(self, session_key: str) -> Credential | None:
        session = open_session(session_key)
        identity = authenticate_session(session)
        if identity.user is None:
            return None
        facts = {
            "session_key": identity.session_key,
            "session_user": identity.user.pk,
            "session_data": session.stored,
            "password": hashlib.sha256(identity.user.password.encode()).digest(),
        }
        learned = Credential("session", _BROWSERS_USER, facts)
        with self._lock:
            self._known[session_key] = learned
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return learned

    def forget(self, credential: Credential | None) -> None:
        """What is remembered of it is not true any more."""
        if credential is not None:
            with self._lock:
                self._known.pop(credential.parameters["session_key"], None)


browsers = Browsers()
