"""From a figure to the turns it counts: addresses of the history list, and of analytics itself.

A figure that no filter of the history list picks out exactly has no address: better none than one
that leads to other turns.
"""

from collections.abc import Mapping
from datetime import datetime
from urllib.parse import quote, urlencode

from flows import history
from flows.analytics import Question
from flows.history import RUNNING
from flows.models import Outcome, Turn

LONGEST = {"user_id": 255, "error": 100, "checkpoint": 50}  # what the history list can be asked for; others 200


class Links:
    """The addresses behind the figures that answer one question."""

    def __init__(self, question: Question) -> None:
        self._chosen = {"user_id": question.user_id, "model": question.model, "tool": question.tool}
        times = {"since": history.wire_time(question.since), "until": history.wire_time(question.until)}
        # written once: a page has hundreds of such addresses
        base = {name: value for name, value in {**self._chosen, **times}.items() if value}
        self._base = {name: urlencode({name: value}) for name, value in base.items()}

    def turns(self, **filters: str | float | datetime | None) -> str:
        """The history list of the question's turns, narrowed by these filters; "" where it cannot be.

        None means: of any. Another model, user or tool than the question's can only be asked for
        instead of it, so there is no such address.
        """
        narrowed = {name: _text(value) for name, value in filters.items() if value is not None}
        for name, value in narrowed.items():
            if self._chosen.get(name) not in {None, value} or not _can_be_asked(name, value):
                return ""
        own = {name: urlencode({name: value}) for name, value in narrowed.items()}
        return "/flows/?" + "&".join({**self._base, **own}.values())


def _can_be_asked(name: str, value: str) -> bool:
    """Whether the history list takes this value as it is: what comes from outside may be of any kind."""
    if name == "outcome" and value not in {*Outcome.values, RUNNING}:
        return False
    as_read = value.strip().lower() if name == "user_id" else value.strip()
    return value == as_read != "" and len(value) <= LONGEST.get(name, 200)


def here(spelled: Mapping[str, str], **changed: str) -> str:
    """The analytics page with these parameters, some of them changed; an empty one is left out."""
    kept = {name: value for name, value in {**spelled, **changed}.items() if value}
    return "/analytics/" + ("?" + urlencode(kept) if kept else "")


def of_turn(turn: Turn) -> str:
    """The turn in its session's page."""
    return f"/flows/{quote(turn.session_id, safe='')}/#{turn.turn_id}"


def _text(value: str | float | datetime) -> str:
    if isinstance(value, datetime):
        return history.wire_time(value)
    return value if isinstance(value, str) else f"{value:.1f}"
