"""A turn as one line of a page: whose it was, how it ended, how long and how much.

What the table of turns and the session page say about a turn in the same words.
"""

from collections.abc import Iterable
from typing import Any

from flows import history, words
from flows.models import Turn
from omni2.accounts.models import User


def names(user_ids: Iterable[str]) -> dict[str, str]:
    """user_id → name, of those who have one. One query."""
    found = User.objects.filter(email__in=set(user_ids)).exclude(name="")
    return dict(found.values_list("email", "name"))


def line(turn: Turn, called: dict[str, str]) -> dict[str, Any]:
    """A turn as the templates need it."""
    return {
        "turn": turn,
        "name": called.get(turn.user_id) or turn.user_id,
        "outcome": words.outcome(turn.outcome),
        "began": history.wire_time(turn.started_at),
        "took": words.duration(turn.duration_ms),
        "first_token": words.duration(turn.ttft_ms),
        "tokens": turn.input_tokens + turn.output_tokens,
        "cost": words.money(turn.cost_usd),
        # a stopped turn's error says no more than its outcome
        "why": words.reason(turn.error) if turn.error and turn.error != turn.outcome else "",
    }
