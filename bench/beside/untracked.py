"""The product without tracking, for the benchmark alone: served as `bench.beside.untracked:application`.

The same application with the same checks, usage and conversations. What only tracking needs is not even made: no
checkpoint, no preview, no metadata; nothing is flushed, nothing waits for an acknowledgement, and there is no
heartbeat (it is there for the sweep).

It is no setting of the product: whoever runs Omni2 runs it to see what happens, and a refused turn that nobody can
look up afterwards would be a trap.
"""

from types import SimpleNamespace
from typing import Any

# the first of ours: it sets Django up
from omni2.asgi import application as application

# isort: split
from chat import turn as story
from chat.checks import Admission, Question
from flows import heartbeat

CHECK: Any = SimpleNamespace(dropped=False)


class Untracked:
    """Stands where a turn's track would, and keeps nothing."""

    recorded = 0
    durable = 0
    cancel = None

    def __init__(self, turn_id: str, session_id: str) -> None:
        self.turn_id = turn_id
        self.session_id = session_id

    def record(self, *_: Any, **__: Any) -> Any:
        return CHECK

    def end(self, *_: Any, **__: Any) -> None:
        """Nothing to end."""

    async def acknowledged(self, timeout_s: float = 0) -> int:
        return 0


def open_turn(admission: Admission, question: Question, turn_id: str) -> tuple[Any, Any]:
    return Untracked(turn_id, admission.session_id), CHECK


async def _no_heartbeat(_: heartbeat.Heartbeat) -> None:
    """Nobody judges this process."""


def _without_tracking() -> None:
    from chat import endpoint

    endpoint.open_turn = open_turn
    story._shown = lambda **_: {}
    heartbeat.Heartbeat.once = heartbeat.Heartbeat.run = _no_heartbeat  # type: ignore[method-assign]


_without_tracking()
