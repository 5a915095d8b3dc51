"""Every Redis key and channel name of Omni2, in one place."""

SHARDS = 8
"""Streams of the hand-off log. A turn always uses the same one, so its parents come before its children."""

GROUP = "persister"
"""Consumer group of the hand-off log."""

CONSUMER = "holder"
"""The one consumer name: whoever holds a shard's lease reads what an earlier holder left under it."""

EPOCH = "omni2:epoch"
"""Hash: `epoch` (changes when the log was restarted, flushed or bypassed) and the `run_id` it was made under."""

DEAD_LETTERS = "omni2:dead"
"""Stream of log entries that cannot be stored; each keeps the entry, its shard and the reason."""

PERSISTER = "omni2:persister"
"""Hash a persister renews: when it was alive by Redis' clock, what it stored, what each shard holds back."""

PERSISTERS = "omni2:persisters"
"""Sorted set of the persisters that are alive, with the time of their last word by Redis' clock (milliseconds)."""

CONTROL_CHANNEL = "omni2:control"
"""Pub/Sub: something an admin changed (monitoring, config); the message says what. Never a checkpoint."""


def user_stream(user_id: str) -> str:
    """The user's recent checkpoints: pre-roll and resume."""
    return f"interaction_flows:{user_id}"


def user_channel(user_id: str) -> str:
    """Pub/Sub of the user's checkpoints, only while he is monitored."""
    return f"flow_events:{user_id}"


def log_shard(number: int) -> str:
    """One stream of the hand-off log to the persister."""
    return f"omni2:log:{number}"


def shard_lease(number: int) -> str:
    """Held by the one persister that reads this shard now."""
    return f"omni2:lease:{number}"


def fence(process_id: str) -> str:
    """Set by the sweep before it ends the turns of a dead process: nothing of that process is taken any more."""
    return f"omni2:fence:{process_id}"


def held_back(number: int) -> str:
    """Field of PERSISTER: how many entries of this shard are refused and stay in the log."""
    return f"held_back:{number}"


LOG_SHARDS = tuple(log_shard(number) for number in range(SHARDS))
