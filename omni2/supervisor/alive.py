"""Whether a persister has said lately that it is alive: the health check of its container.

Run as `python -m omni2.supervisor.alive`; ends with 0 or with a line that says what is wrong. It does
without Django, since it runs three times a minute.
"""

import sys
from typing import Any

import redis
from redis.sentinel import Sentinel

from flows import keys
from omni2 import env

SILENT_S = 15.0


def problem() -> str:
    """What is wrong, "" when nothing is. One round trip."""
    if not env.redis_enabled():
        return ""
    try:
        with _client() as client:
            # both by Redis' clock: this machine's may differ from that of the persister's
            (seconds, _), at = client.pipeline(transaction=False).time().hget(keys.PERSISTER, "at").execute()
    except redis.RedisError as problem:
        return f"Redis does not answer: {problem}"
    silent_s = seconds - float(at) if isinstance(at, bytes) else None
    if silent_s is None or silent_s > SILENT_S:
        return "no persister has spoken" + ("" if silent_s is None else f" for {silent_s:.0f} s")
    return ""


def _client() -> redis.Redis:
    limits: dict[str, Any] = {"socket_timeout": 3, "socket_connect_timeout": 3}
    if sentinels := env.redis_sentinels():
        asking = {**limits, "password": env.redis_sentinel_password() or None}
        known = Sentinel(sentinels, sentinel_kwargs=asking)  # type: ignore[no-untyped-call]
        login = {"password": env.redis_password() or None, "db": env.redis_database()}
        client: redis.Redis = known.master_for(  # type: ignore[no-untyped-call]
            env.redis_sentinel_master(), **login, **limits
        )
        return client
    return redis.Redis.from_url(env.redis_url(), **limits)


if __name__ == "__main__":
    sys.exit(problem() or 0)
