"""Turns to take along: CSV or JSON, streamed, with the filters and the order of the table.

Read a thousand at a time, each page in a short function that gives its connection back, so an
export of any size holds no connection and no more than a page of rows. Whatever goes wrong on the
way breaks the answer off (see omni2.whole): what arrived whole is all there was.
"""

import asyncio
import csv
import io
import json
import logging
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from django.core.exceptions import PermissionDenied
from django.db import DatabaseError, connections
from django.http import StreamingHttpResponse
from django.utils import timezone

from flows import history
from flows.history import TurnFilters
from flows.models import Turn
from flows.reader import Reader
from flows.session_export import defused
from omni2.accounts.models import User
from omni2.database import in_database

logger = logging.getLogger(__name__)

Format = Literal["csv", "json"]
PAGE_ROWS = 1000
COLUMNS = (
    *("turn_id", "session_id", "user_id", "started_at", "ended_at", "duration_ms", "outcome", "model", "checkpoints"),
    *("tool_calls", "input_tokens", "output_tokens", "cost_usd", "ttft_ms", "error", "question"),
)
CONTENT_TYPES: dict[Format, str] = {"csv": "text/csv; charset=utf-8", "json": "application/json"}
# Notes of exports whose clients left: kept until they are written.
_notes: set[asyncio.Task[None]] = set()


@dataclass(frozen=True, slots=True)
class Export:
    """What one reader takes along."""

    user_pk: int
    filters: TurnFilters
    sort: str
    format: Format

    def page(self, cursor: str | None) -> history.Page[Turn]:
        """The next rows, with the reader's rights as they are now. Raises PermissionDenied when they are gone."""
        reader = self._reader()
        filters = reader.limited(self.filters)
        return history.turns(filters, sort=self.sort, limit=PAGE_ROWS, cursor=cursor)

    def note(self, **facts: Any) -> None:
        """A line of the access log, if these are not his own turns alone."""
        Reader(User.objects.get(pk=self.user_pk)).note_export(self.filters, **facts)

    def _reader(self) -> Reader:
        user = User.objects.filter(pk=self.user_pk, is_active=True).first()
        if user is None:
            raise PermissionDenied("This account is not active.")
        return Reader(user)


def answer(user: User, filters: TurnFilters, *, sort: str, format: Format) -> StreamingHttpResponse:
    """The export as a download. The note that it begins is written before anything is sent.

    Raises NotYours. The caller's own connection is given back: the answer may stream for long.
    """
    export = Export(user.pk, Reader(user).limited(filters), sort, format)
    export.note(opened="turns", format=format)
    _give_back()
    response = StreamingHttpResponse(_stream(export), content_type=CONTENT_TYPES[format])
    name = f"omni2-turns-{timezone.now():%Y-%m-%d}.{format}"
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    response["Cache-Control"] = "no-store"
    return response


def _give_back() -> None:
    for each in connections.all(initialized_only=True):
        if not each.in_atomic_block:
            each.close()


async def _stream(export: Export) -> AsyncIterator[bytes]:
    """The document in pieces of PAGE_ROWS rows; at its end, or when the client leaves, the number of rows is noted."""
    writer = _Csv() if export.format == "csv" else _Json()
    rows, complete = 0, False
    try:
        yield writer.begin()
        cursor: str | None = None
        while True:
            page = await in_database(export.page, cursor)
            if page.rows:
                yield writer.rows(page.rows)
            rows += len(page.rows)
            cursor = page.next
            if cursor is None:
                break
        yield writer.end(rows)
        complete = True
    finally:
        # a task of its own: whoever cancels this generator does not cancel the note
        note = asyncio.get_running_loop().create_task(_note(export, rows, complete=complete))
        _notes.add(note)
        note.add_done_callback(_notes.discard)
        if complete:
            await asyncio.shield(note)


async def _note(export: Export, rows: int, *, complete: bool) -> None:
    try:
        await in_database(export.note, opened="turns", format=export.format, rows=rows, complete=complete)
    except DatabaseError as problem:
        # that it began is written; PostgreSQL may well be what broke it off
        logger.error("The end of an export of %d rows could not be noted: %s", rows, problem)


def record(turn: Turn) -> dict[str, Any]:
    """What is exported of a turn: its summary and what is kept of its question."""
    return {**history.summary(turn), "question": turn.question}


class _Csv:
    """RFC 4180: a header row, CRLF, quotes where needed; UTF-8."""

    def begin(self) -> bytes:
        return self._lines([COLUMNS])

    def rows(self, turns: Iterable[Turn]) -> bytes:
        return self._lines([_cell(value) for value in record(turn).values()] for turn in turns)

    def end(self, rows: int) -> bytes:
        return b""

    @staticmethod
    def _lines(lines: Iterable[Iterable[Any]]) -> bytes:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(lines)
        return text.getvalue().encode()


def _cell(value: Any) -> Any:
    return defused(value) if isinstance(value, str) else value


class _Json:
    """One document, `{"turns": […], "count": n}`, a turn a line; valid only when it is whole."""

    def __init__(self) -> None:
        self._between = "\n"

    def begin(self) -> bytes:
        return b'{"turns":['

    def rows(self, turns: Iterable[Turn]) -> bytes:
        lines = ",\n".join(json.dumps(record(turn), ensure_ascii=False, allow_nan=False) for turn in turns)
        before, self._between = self._between, ",\n"
        return (before + lines).encode()

    def end(self, rows: int) -> bytes:
        return b'\n],"count":%d}\n' % rows
