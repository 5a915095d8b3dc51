"""The list of scenarios. Each is a plain async function of a rig, for the short tests and the long run alike."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tests.faults.load import Told
from tests.faults.rig import Outcome, Rig

Play = Callable[[Rig], Awaitable[Outcome]]

SCRIPTED_ERROR = "script:error_in_middle"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One fault, what is promised about it, and how a long run plays it."""

    name: str
    promise: str
    play: Play
    times: int
    limit_s: float
    options: dict[str, Any]
    """for the product it runs against"""
    on_demand: bool = False
    """only when it is named"""


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    name: str, promise: str, *, times: int = 1, limit_s: float = 600, on_demand: bool = False, **options: Any
) -> Callable[[Play], Play]:
    """Put a function on the list. `times`: how often a long run injects the fault."""

    def add(play: Play) -> Play:
        SCENARIOS[name] = Scenario(name, promise, play, times, limit_s, options, on_demand)
        return play

    return add


def strange(told: Iterable[Told], *, errors: tuple[str, ...] = (), refusals: tuple[str, ...] = ()) -> list[str]:
    """What clients heard that nobody should: an answer cut off or never begun, an error that the model was not told to
    make, a refusal. `errors` and `refusals` are codes that are expected here."""
    found = []
    for each in told:
        where = f"{each.message} at {each.url}"
        if not each.over_s:
            found.append(f"{where}: not over yet")
        elif each.refused:
            if each.code not in {"user_blocked", *refusals}:
                found.append(f"{where}: refused with {each.status} {each.code}")
        elif each.end == "error":
            if SCRIPTED_ERROR not in each.message and each.code not in errors:
                found.append(f"{where}: {each.code}")
        elif each.end != "done":
            found.append(f"{where}: {'cut off' if each.sent else 'not reached'} after {each.tokens} tokens")
    return found
