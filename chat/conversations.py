"""A user's conversations: to list, find, rename, delete and take along. Always his own.

Behind the chat page and `/api/v1/conversations`. What was said is in `conversations` and `messages`; the checkpoints of
its turns are the admins' record and stay, whatever happens here.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from django.db import connection
from django.db.models import Q, QuerySet

from chat.models import Conversation
from flows import cursor as cursors
from flows.cursor import Place

PER_PAGE = 100


@dataclass(frozen=True, slots=True)
class ConversationPage:
    """Some conversations, the one that was last continued first; `next`: where the following ones begin."""

    conversations: Sequence[Conversation]
    next: str | None


def conversations_of(user_pk: int) -> QuerySet[Conversation]:
    """A user's conversations, the one that was last continued first. Slice it: one query."""
    return Conversation.objects.filter(user_id=user_pk).order_by("-updated_at", "-session_id")


def page_of(user_pk: int, *, q: str = "", cursor: str | None = None, limit: int = PER_PAGE) -> ConversationPage:
    """A page of a user's conversations, those with `q` in their title. One query, along the index of his
    conversations. Raises BadCursor.

    One that is continued meanwhile moves to the beginning: it is then not on the pages that follow."""
    asked: cursors.Question = {"list": "conversations", "user": str(user_pk), "q": q}
    found = conversations_of(user_pk)
    if q:
        found = found.filter(title__icontains=q)
    if cursor:
        place = cursors.decode(cursor, asked)
        found = found.filter(
            Q(updated_at__lt=place.value) | Q(updated_at=place.value, session_id__lt=place.id),
            updated_at__lte=place.value,
        )
    rows = list(found[: limit + 1])
    more = len(rows) > limit
    last = rows[limit - 1] if more else None
    return ConversationPage(
        rows[:limit], cursors.encode(Place(last.updated_at, last.session_id), asked) if last else None
    )


def one_of(user_pk: int, session_id: str) -> Conversation | None:
    """One conversation of this user; None when there is none, or when it is somebody else's. One query."""
    return Conversation.objects.filter(user_id=user_pk, session_id=session_id).first()


def rename(user_pk: int, session_id: str, title: str) -> Conversation | None:
    """Give one of his conversations another title. Returns it; None when it is not his. Two queries."""
    if not Conversation.objects.filter(user_id=user_pk, session_id=session_id).update(title=title):
        return None
    return one_of(user_pk, session_id)


# Three statements in one trip, so that the last sees what was committed while the others waited. The first lock is
# that of the statement that lets a turn into this session (chat.usage): a question that comes at the same time is
# either wholly in what is deleted, or begins the conversation anew. The second keeps answers out.
_DELETE = """
SELECT pg_advisory_xact_lock(hashtextextended('omni2 session ' || %(session)s, 0));
SELECT session_id FROM conversations WHERE session_id = %(session)s::uuid AND user_id = %(user)s FOR UPDATE;
WITH gone AS (
    DELETE FROM conversations WHERE session_id = %(session)s::uuid AND user_id = %(user)s RETURNING session_id
),
said AS (DELETE FROM messages USING gone WHERE messages.conversation_id = gone.session_id)
SELECT count(*) FROM gone
"""


def delete(user_pk: int, session_id: str) -> bool:
    """Delete one of his conversations with all that was said in it; False when it is not his. One trip to PostgreSQL.

    A turn of it that still runs goes on for whoever listens and is paid for, but nothing of it is kept here: the
    statement that closes it (chat.usage) keeps an answer only beside its question."""
    with connection.cursor() as cursor:
        cursor.execute(_DELETE, {"session": str(uuid.UUID(session_id)), "user": user_pk})
        while cursor.nextset():
            pass
        return bool(cursor.fetchone()[0])
