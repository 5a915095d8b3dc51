"""The turns that this process answers now, and which turns must end.

A turn is in here from the beginning of its story to its end. What must end is read from PostgreSQL by every process
(chat.stops); each stops what it serves itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from flows.tracker import TurnTrack


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a turn must end. `message` is for its user, the rest for admins."""

    message: str
    stopped_by: str = ""
    """user_id; empty: nobody is known"""
    stopped_by_name: str = ""
    reason: str = ""


class Stoppable(Protocol):
    """A story, as far as it matters here."""

    @property
    def turn(self) -> TurnTrack: ...

    def stop(self, why: Stop) -> None:
        """End it now. Returns at once; a story that is over, or ends already, is not changed by it."""


class Running:
    """The running turns of one process. Used on its event loop alone."""

    def __init__(self) -> None:
        self._stories: dict[str, Stoppable] = {}
        self._must_end: Mapping[str, Stop] = MappingProxyType({})

    def begin(self, story: Stoppable) -> None:
        """A story begins. If it must end, it is stopped at once: a stop may come between the moment a turn is let
        in and the moment its process knows it."""
        turn_id = story.turn.turn_id
        self._stories[turn_id] = story
        if turn_id in self._must_end:
            story.stop(self._must_end[turn_id])

    def end(self, story: Stoppable) -> None:
        """A story is over."""
        self._stories.pop(story.turn.turn_id, None)

    def hear(self, must_end: Mapping[str, Stop]) -> None:
        """All turns that must end now, of whatever process."""
        self._must_end = must_end
        for turn_id, why in must_end.items():
            if turn_id in self._stories:
                self._stories[turn_id].stop(why)


running = Running()
