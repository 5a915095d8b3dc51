"""How the road of the checkpoints is doing: what /readyz and the pages say."""

from typing import Any

from flows import keys
from flows.redis import sync_client
from flows.tracker import tracker

PERSISTER_SILENT_S = 15.0
LAG_LIMIT_S = 30.0


def tracking_status() -> dict[str, Any]:
    """This process's tracker and flusher; no I/O."""
    flusher = tracker.flusher
    return {
        "queue": len(tracker.queue),
        "running_turns": len(tracker.running),
        "given_up": tracker.given_up,
        "late": tracker.late,
        "redis_away": bool(flusher and flusher.redis_away),
        "postgres_away": bool(flusher and flusher.postgres_away),
    }


def persister_status() -> dict[str, Any]:
    """The persister, as Redis knows it. One round trip; raises RedisError or OSError.

    `lag_s` is the age of the oldest checkpoint still in the hand-off log, `waiting` how many are
    there, `dead_letters` how many were set aside, `held_back` how many are refused and stay in the log
    since there is a flood of them, `silent_s` how long since a persister last said it is alive (None: never).
    """
    client = sync_client()
    try:
        pipeline = client.pipeline(transaction=False)
        pipeline.time()
        pipeline.hmget(keys.PERSISTER, "at", *map(keys.held_back, range(keys.SHARDS)))
        pipeline.xlen(keys.DEAD_LETTERS)
        for name in keys.LOG_SHARDS:
            pipeline.xlen(name)
            pipeline.xrange(name, count=1)
        (seconds, microseconds), (at, *held_back), dead_letters, *shards = pipeline.execute()
    finally:
        client.close()
    now_ms = seconds * 1000 + microseconds // 1000
    oldest = [int(entries[0][0].partition(b"-")[0]) for entries in shards[1::2] if entries]
    return {
        "waiting": sum(shards[0::2]),
        "lag_s": round(max(0, now_ms - min(oldest)) / 1000, 3) if oldest else 0.0,
        "dead_letters": dead_letters,
        "held_back": sum(int(each or 0) for each in held_back),
        "silent_s": round(max(0.0, now_ms / 1000 - float(at)), 1) if at else None,
    }
