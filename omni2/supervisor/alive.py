"""Whether a persister has said lately that it is alive: the health check of its container.

Run as `python -m omni2.supervisor.alive`; ends with 0 or with a line that says what is wrong. It does
without Django, since it runs three times a minute.
"""

import sys

import redis

from flows import keys
from omni2 import env

SILENT_S = 15.0


def problem() -> str:
    """What is wrong, "" when nothing is. One round trip."""
    if not env.redis_enabled():
        return ""
    try:
        with redis.Redis.from_url(env.redis_url(), socket_timeout=3, socket_connect_timeout=3) as client:
            # both by Redis' clock: this machine's may differ from that of the persister's
            (seconds, _), at = client.pipeline(transaction=False).time().hget(keys.PERSISTER, "at").execute()
    except redis.RedisError as problem:
        return f"Redis does not answer: {problem}"
    silent_s = seconds - float(at) if isinstance(at, bytes) else None
    if silent_s is None or silent_s > SILENT_S:
        return "no persister has spoken" + ("" if silent_s is None else f" for {silent_s:.0f} s")
    return ""


if __name__ == "__main__":
    sys.exit(problem() or 0)
