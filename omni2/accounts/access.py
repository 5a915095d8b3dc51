"""The access log: who looked at whom. Written by whoever opens a door to another person's data."""

import math
from typing import Any

from omni2.accounts.models import AccessLog, User


def record_access(
    *, actor: User | str, action: str, subject_user_id: str | None, detail: dict[str, Any] | None = None
) -> AccessLog:
    """Add one line: one INSERT, by PostgreSQL's clock. It cannot be changed or taken back.

    Whatever is in `detail` is made storable first, so that a filter or a reason somebody typed
    can never make the looking unrecorded: NUL and lone surrogates become U+FFFD, numbers that are
    not finite become null, and values JSON does not know become their text.
    """
    return AccessLog.objects.create(
        actor=_storable(actor.user_id if isinstance(actor, User) else actor),
        action=action,
        subject_user_id=_storable(subject_user_id),
        detail=_storable(detail or {}),
    )


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_storable(str(key)): _storable(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_storable(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    return _storable(str(value))
