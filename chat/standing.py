"""How a user stands with his limits, told to him: near which of them he is, and the headers of an answer.

All of it is reckoned from the numbers the admitting statement has read; nothing is asked for it.
"""

from collections.abc import Mapping
from typing import Any

from chat.limits import LIMITS, Limit
from chat.usage import Totals, Verdict
from flows.history import wire_time

NEAR = 0.8
"""From this part of a limit on an answer says how much is left."""

Header = tuple[bytes, bytes]

_WINDOW_S = {"minute": 60, "day": 86_400}
# A month has no length in seconds; and what is counted in dollars is no whole number, as these headers want it.
_UNITS = {"requests": "", "tokens": ';qu="tokens"', "turns": ';qu="concurrent-requests"'}


def after(verdict: Verdict, used: Totals | None = None) -> Mapping[str, Limit]:
    """The limits with this request counted in, if it was let in, and with what its turn `used`."""
    if not verdict.admitted:
        return verdict.limits
    used = used or Totals()
    own = {"requests": 1, "turns": 1, "tokens": used.input_tokens + used.output_tokens, "cost": float(used.cost_usd)}
    return {
        name: limit._replace(used=limit.used + own[name.partition("_")[0]]) for name, limit in verdict.limits.items()
    }


def nearly_used(verdict: Verdict, used: Totals) -> list[dict[str, Any]]:
    """The limits of which a turn that was let in has left a fifth or less, the most used first:
    `{"limit_name", "used", "limit", "resets_at"}`. Turns at once are no such limit: an answer gives its own back."""
    near = [
        (limit.used / limit.limit if limit.limit else 1, name, limit)
        for name, limit in after(verdict, used).items()
        if limit.limit is not None and limit.resets_at is not None and limit.used >= NEAR * limit.limit
    ]
    near.sort(key=lambda each: -each[0])
    return [
        {"limit_name": name, "used": limit.used, "limit": limit.limit, "resets_at": wire_time(limit.resets_at)}
        for _, name, limit in near
        if limit.resets_at is not None
    ]


def rate_limit_headers(verdict: Verdict | None) -> list[Header]:
    """`RateLimit-Policy` and `RateLimit` of every limit that applies (draft-ietf-httpapi-ratelimit-headers-10), and
    the `x-ratelimit-*` names that clients of OpenAI read, of the tightest limit of requests and of tokens. Empty for
    somebody who was not judged, who is blocked, and where there are no limits."""
    if verdict is None or verdict.word in ("blocked", "not_his_session"):
        return []
    standing = {
        name: limit
        for name, limit in after(verdict).items()
        if limit.limit is not None and name.partition("_")[0] in _UNITS
    }
    if not standing:
        return []
    policies, left = [], []
    for name, limit in standing.items():
        window_s = _WINDOW_S.get(LIMITS[name].window)
        policy = f'"{name}";q={limit.limit:.0f}{_UNITS[name.partition("_")[0]]}'
        policies.append(policy if window_s is None else f"{policy};w={window_s}")
        rest = f'"{name}";r={limit.remaining:.0f}'
        left.append(rest if limit.resets_at is None else f"{rest};t={limit.seconds_to_reset}")
    return [
        (b"ratelimit-policy", ", ".join(policies).encode()),
        (b"ratelimit", ", ".join(left).encode()),
        *_of_openai("requests", standing),
        *_of_openai("tokens", standing),
    ]


def _of_openai(what: str, standing: Mapping[str, Limit]) -> list[Header]:
    limits = [limit for name, limit in standing.items() if name.startswith(f"{what}_")]
    if not limits:
        return []
    tightest = min(limits, key=lambda limit: limit.remaining or 0)
    return [
        (f"x-ratelimit-limit-{what}".encode(), b"%d" % (tightest.limit or 0)),
        (f"x-ratelimit-remaining-{what}".encode(), b"%d" % (tightest.remaining or 0)),
        (f"x-ratelimit-reset-{what}".encode(), b"%ds" % tightest.seconds_to_reset),
    ]
