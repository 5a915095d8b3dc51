"""Somebody who reads history: whose he may read, how much of it, and the note that he did.

The one door to `flows.history` for API and pages. Without the right flows.view a reader has his
own history only, without internal metadata. Opening somebody else's is written to the access log
before anything is shown.
"""

from dataclasses import asdict, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.http import Http404

from flows import history
from flows.history import DEFAULT_LIMIT, DEFAULT_SORT, FlowFilters, Page, Session, Shown, TurnFilters
from flows.models import InteractionFlow, Turn
from omni2.accounts.access import record_access
from omni2.accounts.models import User

VIEW = "flows.view"
OPERATE = "flows.operate"
OPENED, EXPORTED = "history_opened", "history_exported"


class NotYours(PermissionDenied):
    """Another's history, asked for without the right; says nothing about whether there is any."""


class NothingThere(Http404):
    """No such user or session, or a session that is not his."""


class Reader:
    """What one signed-in user may read. Two queries to make (his rights)."""

    def __init__(self, user: User) -> None:
        self.user_id = user.user_id
        self.sees_all = user.has_perm(VIEW)

    def flows_of(
        self, user_id: str, filters: FlowFilters, *, limit: int = DEFAULT_LIMIT, cursor: str | None = None
    ) -> Page[InteractionFlow]:
        """A user's checkpoints, newest first. Raises NotYours, NothingThere, BadCursor."""
        if user_id != self.user_id and not self.sees_all:
            raise NotYours("You may read only your own flows.")
        page = history.flows_of(user_id, filters, limit=limit, cursor=cursor)
        if not page.rows and user_id != self.user_id and not _exists(user_id):
            raise NothingThere("There is no such user.")
        self._note("user", user_id, asdict(filters), further_page=cursor is not None)
        return page

    def session(
        self, session_id: str, *, user_id: str | None = None, shown: Shown | None = None, action: str = OPENED
    ) -> Session:
        """A session; `user_id` and `shown` see `history.session()`. Raises NothingThere."""
        found = history.session(session_id, user_id if self.sees_all else self.user_id, shown=shown)
        if found is None:
            raise NothingThere("There is no such session.")
        self._note("session", found.user_id, {"session_id": session_id}, action=action)
        return found

    def turn(self, turn_id: UUID) -> Session:
        """One turn with its checkpoints, as a session of this turn alone. Raises NothingThere."""
        found = history.turn(turn_id)
        if found is None or (found.user_id != self.user_id and not self.sees_all):
            raise NothingThere("There is no such turn.")
        self._note("turn", found.user_id, {"session_id": found.session_id, "turn_id": str(turn_id)})
        return found

    def turns(
        self,
        filters: TurnFilters,
        *,
        sort: str = DEFAULT_SORT,
        limit: int = DEFAULT_LIMIT,
        cursor: str | None = None,
    ) -> Page[Turn]:
        """Turn summaries, sorted; his own unless he sees all. Raises NotYours, BadCursor."""
        filters = self.limited(filters)
        page = history.turns(filters, sort=sort, limit=limit, cursor=cursor)
        sorted_by = {} if sort == DEFAULT_SORT else {"sort": sort}
        self._note("turns", filters.user_id, {**asdict(filters), **sorted_by}, further_page=cursor is not None)
        return page

    def limited(self, filters: TurnFilters) -> TurnFilters:
        """The filters, for his own turns unless he sees all. Raises NotYours."""
        if self.sees_all:
            return filters
        if filters.user_id not in {None, self.user_id}:
            raise NotYours("You may read only your own turns.")
        return replace(filters, user_id=self.user_id)

    def note_export(self, filters: TurnFilters, **facts: Any) -> None:
        """One line of the access log for an export of others' turns: that it begins, or how it ended."""
        self._note("turns", filters.user_id, {**asdict(filters), **facts}, action=EXPORTED)

    def as_wire(self, row: InteractionFlow) -> dict[str, Any]:
        """The checkpoint as this reader gets it."""
        return history.as_wire(row, internal=self.sees_all)

    def _note(
        self,
        opened: str,
        subject: str | None,
        filters: dict[str, Any],
        *,
        further_page: bool = False,
        action: str = OPENED,
    ) -> None:
        """One line of the access log for another's history (one INSERT); nothing for his own."""
        if subject == self.user_id:
            return
        asked = {
            key: history.wire_time(value) if isinstance(value, datetime) else value
            for key, value in filters.items()
            if value is not None
        }
        detail = {"opened": opened, **asked, **({"further_page": True} if further_page else {})}
        record_access(actor=self.user_id, action=action, subject_user_id=subject, detail=detail)


def _exists(user_id: str) -> bool:
    return User.objects.filter(email=user_id).exists() or history.is_known(user_id)
