"""A conversation to take along: JSON or Markdown, streamed.

Read some messages at a time, each page in a short function that gives its connection back. What was said is
untrusted text: the Markdown holds no HTML, so that no viewer finds any.
"""

import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from django.db import connections
from django.http import StreamingHttpResponse
from django.utils import timezone
from markdown_it import MarkdownIt
from markdown_it.token import Token

from chat.markdown import MOST_CHARACTERS
from chat.models import Conversation, Message, Role
from flows.history import wire_time
from flows.models import Turn
from omni2.database import in_database

Format = Literal["json", "markdown"]
PAGE_MESSAGES = 100
CONTENT_TYPES: dict[Format, str] = {"json": "application/json", "markdown": "text/markdown; charset=utf-8"}
SUFFIXES: dict[Format, str] = {"json": "json", "markdown": "md"}


@dataclass(frozen=True, slots=True)
class Line:
    """One message, and of an answer: which model gave it and how its turn ended, as far as that is still known."""

    number: int
    turn_id: UUID
    role: str
    content: str
    at: datetime
    model: str = ""
    outcome: str = ""


def answer(conversation: Conversation, *, format: Format) -> StreamingHttpResponse:
    """The export as a download. The caller's own connection is given back: the answer may stream for long."""
    for each in connections.all(initialized_only=True):
        if not each.in_atomic_block:
            each.close()
    writer = _Json(conversation) if format == "json" else _Markdown(conversation)
    response = StreamingHttpResponse(_stream(conversation, writer), content_type=CONTENT_TYPES[format])
    # no title in a file's name: it is whatever somebody wrote
    name = f"omni2-conversation-{conversation.created_at:%Y-%m-%d}-{str(conversation.session_id)[:8]}"
    response["Content-Disposition"] = f'attachment; filename="{name}.{SUFFIXES[format]}"'
    response["Cache-Control"] = "no-store"
    return response


async def _stream(conversation: Conversation, writer: "_Json | _Markdown") -> AsyncIterator[bytes]:
    yield writer.begin().encode()
    after = 0
    while lines := await in_database(_page, conversation, after):
        yield "".join(map(writer.line, lines)).encode()
        after = lines[-1].number
    yield writer.end().encode()


def _page(conversation: Conversation, after: int) -> list[Line]:
    """The next messages, while they are still his. Two queries."""
    of = {"conversation_id": conversation.session_id, "conversation__user_id": conversation.user_id}
    said = list(Message.objects.filter(**of, id__gt=after).order_by("id")[:PAGE_MESSAGES])
    answered = [each.turn_id for each in said if each.role == Role.ASSISTANT]
    turns = Turn.objects.only("model", "outcome").in_bulk(answered) if answered else {}

    def line(each: Message) -> Line:
        turn = turns.get(each.turn_id) if each.role == Role.ASSISTANT else None
        model, outcome = (turn.model or "", turn.outcome or "") if turn else ("", "")
        return Line(each.pk, each.turn_id, each.role, each.content, each.created_at, model, outcome)

    return [line(each) for each in said]


class _Json:
    """One document, a message a line; valid only when it is whole."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._count = 0

    def begin(self) -> str:
        head = json.dumps(described(self._conversation), ensure_ascii=False)
        return head[:-1] + ', "messages": ['

    def line(self, line: Line) -> str:
        said: dict[str, Any] = {
            "turn_id": str(line.turn_id),
            "role": line.role,
            "content": line.content,
            "created_at": wire_time(line.at),
        }
        if line.role == Role.ASSISTANT:
            said |= {"model": line.model or None, "outcome": line.outcome or None}
        between = ",\n" if self._count else "\n"
        self._count += 1
        return between + json.dumps(said, ensure_ascii=False)

    def end(self) -> str:
        return f'\n], "count": {self._count}}}\n'


def described(conversation: Conversation) -> dict[str, Any]:
    """A conversation as the API says it."""
    return {
        "session_id": str(conversation.session_id),
        "title": conversation.title,
        "created_at": wire_time(conversation.created_at),
        "updated_at": wire_time(conversation.updated_at),
    }


class _Markdown:
    """Questions as quotes, answers as the model wrote them."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    def begin(self) -> str:
        taken = f"Session `{self._conversation.session_id}`, taken along {_said_at(timezone.now())}."
        return f"# {_plain(self._conversation.title) or 'Conversation'}\n\n{taken}\n"

    def line(self, line: Line) -> str:
        if line.role == Role.USER:
            quoted = "\n".join(f"> {each}".rstrip() for each in _lines(line.content))
            return f"\n## Asked {_said_at(line.at)}\n\n{without_html(quoted)}\n"
        by = f" by {_plain(line.model)}" if line.model else ""
        broken_off = "" if line.outcome in ("", "completed") else f"\n*The answer is not complete ({line.outcome}).*\n"
        return f"\n## Answered{by}\n\n{_closed(without_html(chr(10).join(_lines(line.content))))}\n{broken_off}"

    def end(self) -> str:
        return ""


def _lines(text: str) -> list[str]:
    return re.split(r"\r\n|\r|\n", text)


def _said_at(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _plain(text: str) -> str:
    """Text that is nothing but text, on one line of Markdown."""
    return re.sub(r"([\\`*_\[\]<>#|!~&])", r"\\\1", " ".join(text.split()))


# Finds HTML where it is; chat.markdown's own parser knows none.
_finder = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_MOST_PASSES = 8


def without_html(text: str) -> str:
    """The same Markdown, its HTML shown as text. In code, where a < is only a <, nothing is changed."""
    if len(text) > MOST_CHARACTERS:
        return text.replace("<", "&lt;")
    # What is no longer HTML may make code of something else, or the other way round: look again until there is none.
    for _ in range(_MOST_PASSES):
        lines = text.split("\n")
        found = _lines_with_html(_finder.parse(text))
        if not found:
            return text
        text = "\n".join(_TAG.sub("&lt;", line) if number in found else line for number, line in enumerate(lines))
    return text.replace("<", "&lt;")


def _lines_with_html(tokens: list[Token]) -> set[int]:
    found: set[int] = set()
    for token in tokens:
        if token.map and (token.type == "html_block" or _has_html(token)):
            found.update(range(*token.map))
    return found


def _has_html(token: Token) -> bool:
    return token.type == "html_inline" or any(_has_html(child) for child in token.children or ())


def _closed(text: str) -> str:
    """A block of code that was never ended would swallow what comes after it."""
    if len(text) > MOST_CHARACTERS:
        return text
    tokens = [token for token in _finder.parse(text) if token.level == 0]
    last = tokens[-1] if tokens else None
    if last is None or last.type != "fence" or text.rstrip().split("\n")[-1].strip().startswith(last.markup):
        return text
    return f"{text}\n{last.markup}"
