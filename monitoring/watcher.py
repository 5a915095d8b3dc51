"""One watcher: what he was sent, what he may be sent, and how he catches up.

A watcher stands at a place in the user's stream: all up to there was sent. A live frame names the
frame before it; it is sent only when that is not beyond the watcher's place. Otherwise he is
behind and reads on from the log. First open, resume, a restart of Redis and a client that was slow
are all this one rule, and nobody ever waits for a watcher.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from flows import log
from flows.flusher import REDIS_AWAY
from flows.history import wire_time
from flows.preroll import Preroll, created_at_of, flow_id_of, stored_preroll
from monitoring import messages
from monitoring.admission import Admission
from monitoring.framing import straight_to
from monitoring.messages import Place
from monitoring.watchlist import Change, Period, watchlist

if TYPE_CHECKING:
    from monitoring.relay import Feed

logger = logging.getLogger(__name__)

CREDIT_FRAMES = 500
CREDIT_BYTES = 4 * 1024 * 1024
PATIENCE_S = 5.0
"""How long a client may be without credit, or not take a frame, before it is closed."""

WAITING_FRAMES = 500
"""Live frames kept for a watcher who cannot be sent to now; beyond it he reads them from the log."""

HEARD_BYTES = 4096
"""An acknowledgement has less than 100."""

PAGE_ENTRIES = 1000
RETRY_S = 1.0
REPEATED_WITHIN_MS = 60_000
"""How long after its first entry a retried append may make a second one."""

TOO_SLOW = 4408
TOO_BIG = 4413
TRY_LATER = 4503

Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Frame:
    """One live checkpoint, encoded once for all watchers. `prev`: where a watcher must stand to be sent it."""

    place: Place
    prev: Place
    cursor: str
    created_at: str
    size: int
    text: bytes
    framed: bytes
    """the same, ready for the wire"""


@dataclass(frozen=True, slots=True)
class Batch:
    """Live frames that came together."""

    frames: Sequence[Frame]
    size: int
    earliest: str
    framed: bytes
    """all of them, ready for the wire"""

    @classmethod
    def of(cls, frames: Sequence[Frame]) -> "Batch":
        return cls(
            frames,
            sum(frame.size for frame in frames),
            min(frame.created_at for frame in frames),
            frames[0].framed if len(frames) == 1 else b"".join([frame.framed for frame in frames]),
        )


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a snapshot that waits for credit. `place`: where the watcher stands after it."""

    documents: Sequence[bytes]
    complete: bool
    more: bool
    cursor: str | None
    place: Place | None


class Sent(NamedTuple):
    """What credit keeps of a part: its documents may be large."""

    cursor: str
    size: int


class Credit:
    """What is on its way to the client: at most 500 frames or 4 MiB, until he says that he has drawn them."""

    __slots__ = ("_bytes", "_sent")

    def __init__(self) -> None:
        self._sent: deque[Frame | Sent] = deque()
        self._bytes = 0

    @property
    def left(self) -> bool:
        return len(self._sent) < CREDIT_FRAMES and self._bytes < CREDIT_BYTES

    def covers(self, frames: int, size: int) -> bool:
        """Whether there is enough for all of these."""
        return len(self._sent) + frames <= CREDIT_FRAMES and self._bytes + size <= CREDIT_BYTES

    def spend(self, sent: Iterable[Frame | Sent], size: int) -> None:
        self._sent.extend(sent)
        self._bytes += size

    def give_back(self, cursor: str) -> None:
        """All up to and including the last frame with this cursor is drawn; an unknown cursor says nothing."""
        drawn = next((n for n in range(len(self._sent), 0, -1) if self._sent[n - 1].cursor == cursor), 0)
        for _ in range(drawn):
            self._bytes -= self._sent.popleft().size


class Watcher:
    """One open socket. All methods but `_write` and what it calls are plain calls that never wait."""

    __slots__ = (
        "_closing", "_credit", "_earliest", "_epoch", "_generation", "_half_sent", "_known", "_loop", "_on_gone",
        "_outbox", "_part_number", "_parts", "_patience", "_period", "_place", "_reading", "_resuming", "_retry",
        "_saw_some", "_send_to_client", "_sending_since", "_straight", "_words", "_writer", "admission", "closed",
        "feed", "ping_at_s", "since_when",
    )  # fmt: skip

    def __init__(
        self,
        feed: "Feed",
        send: Send,
        admission: Admission,
        *,
        on_gone: Callable[[], None],
    ) -> None:
        self.feed = feed
        self.admission = admission
        self.closed = False
        self.since_when = watchlist.now()
        self.ping_at_s = 0.0
        self._send_to_client = send
        self._straight = straight_to(send)
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._writer: asyncio.Task[None] | None = None
        # reads what he needs while the writer can still say a word
        self._reading: asyncio.Task[bool] | None = None
        self._sending_since: float | None = None
        self._closing: int | None = None
        self._period: Period | None = None
        # when the first checkpoint that he may see was made, as its document says it
        self._earliest = ""
        self._words: deque[str] = deque()
        self._outbox: deque[Frame] = deque(maxlen=WAITING_FRAMES)
        self._parts: deque[Part] = deque()
        self._part_number = 0
        self._credit = Credit()
        self._patience: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        # Where he stands; no place: he needs a pre-roll. With `after` he stood there before.
        self._epoch: str = ""
        self._place: Place | None = None
        if admission.after is not None:
            self._epoch, self._place = admission.after
        # whether he has something on his page that a pre-roll may leave a gap to
        self._saw_some = admission.after is not None
        # whether a snapshot is due or half sent, though he may not be behind
        self._resuming = admission.after is not None
        # whether a fresh snapshot was begun and not ended
        self._half_sent = False
        self._known: set[bytes] | None = None
        # changes whenever what is being read for him has become worthless
        self._generation = 0

    # --- what others tell him ------------------------------------------------------------------------

    def greet(self, live: str) -> None:
        """Say hello; whoever is not monitored has an empty snapshot and nothing else."""
        self._period = watchlist.period(self.feed.user_id)
        self._note_since()
        server_time = watchlist.now()
        self._words.append(messages.hello(self.feed.user_id, self._period, server_time=server_time, live=live))
        if self._period is None:
            self._words.append(messages.snapshot([], complete=True, cursor=None, more=False))
            self._start_afresh(saw_some=False)
        self.wake()

    def say(self, text: str) -> None:
        """A word that is no checkpoint and costs no credit: a ping."""
        self._words.append(text)
        self.wake()

    def offer(self, batch: Batch, *, is_live: bool) -> None:
        """The next live frames of the user. Written at once when they are the next he is due and the server
        takes them without waiting; else the writer sees to them. `is_live`: whether the feed stands in the
        present and its user is monitored."""
        if self._period is None:
            return
        if is_live and self._straight is not None and self._is_due(batch):
            self._place = batch.frames[-1].place
            self._spend(batch.frames, batch.size)
            self._straight(batch.framed)
            return
        self._outbox.extend(batch.frames)  # the oldest fall out: then he is behind
        if self._credit.left:
            self.wake()

    def _is_due(self, batch: Batch) -> bool:
        """Whether the writer would find nothing to do but to send all of this."""
        return (
            self._place == batch.frames[0].prev
            and self._epoch == self.feed.epoch
            and self._writer is None
            and self._reading is None
            and self._closing is None
            and not (self._outbox or self._words or self._parts or self._resuming or self.closed)
            and self._credit.covers(len(batch.frames), batch.size)
            and batch.earliest >= self._earliest
        )

    def monitoring_changed(self, change: Change, period: Period | None) -> None:
        """The user's monitoring began, goes on longer, or ended."""
        if period == self._period:
            return  # he was told when he came
        is_new = self._period is None or period is None or period.period_id != self._period.period_id
        self._period = period
        self._note_since()
        self._words.append(messages.monitoring(change, period))
        if is_new:
            # this word ends a snapshot that is half sent, as the contract says
            self._half_sent = False
            self._start_afresh(saw_some=False)
        self.wake()

    def log_restarted(self) -> None:
        """The user's log has another epoch than before: cursors of the old one lead nowhere."""
        if self._place is not None and self._epoch != self.feed.epoch:
            self._start_afresh(saw_some=True)
        elif self._place is None:
            self._start_afresh(saw_some=self._saw_some)
        self.wake()

    def heard(self, message: dict[str, Any]) -> None:
        """What the client sent: an acknowledgement, or something to ignore."""
        said = message.get("text") or message.get("bytes") or ""
        if len(said) > HEARD_BYTES:
            return self.close(TOO_BIG)
        try:
            word = orjson.loads(said)
        except ValueError:
            return None
        if isinstance(word, dict) and word.get("type") == "ack" and isinstance(word.get("cursor"), str):
            waits_for_it = not self._credit.left
            self._credit.give_back(word["cursor"])
            if waits_for_it:
                self._mind_credit()
                self.wake()
        return None

    def may_still_watch(self, admission: Admission) -> None:
        """His rights were looked at again, and they still let him watch."""
        self.admission = admission
        self._note_since()

    def close(self, code: int) -> None:
        """Close the socket with this code, before anything else is sent."""
        if self._closing is None:
            self._closing = code
            self.wake()

    def look_at_time(self, now_s: float) -> None:
        """A client that does not take a frame for so long is gone, or as good as."""
        if self._sending_since is not None and now_s - self._sending_since > PATIENCE_S:
            self._give_up()

    def leave(self) -> None:
        """The socket is gone."""
        self.closed = True
        self._on_gone = _nothing
        for timer in (self._patience, self._retry):
            if timer is not None:
                timer.cancel()
        for task in (self._writer, self._reading):
            if task is not None:
                task.cancel()

    def wake(self) -> None:
        """Let the writer look whether there is something to send."""
        if self._writer is None and not self.closed:
            self._writer = self._loop.create_task(self._write(), name="watcher")
            self._writer.add_done_callback(self._written)

    # --- the writer: runs only while there is something to send -----------------------------------------

    async def _write(self) -> None:
        while not self.closed and await self._step():
            pass
        self._writer = None

    def _written(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and task.exception() is not None:
            logger.error("a watcher's writer failed", exc_info=task.exception())
            self._give_up()

    async def _step(self) -> bool:
        """Send or prepare the one next thing; False when there is none until somebody wakes him."""
        if self._closing is not None:
            return await self._say_goodbye(self._closing)
        if self._words:
            return await self._say(self._words.popleft())
        if self._period is None or not watchlist.is_monitored(self.feed.user_id) or not self._credit.left:
            return False
        if self._parts:
            return await self._send_part(self._parts.popleft())
        return self._reading is None and await self._follow()

    async def _follow(self) -> bool:
        """From nowhere to the present, from behind to the present, or one frame on."""
        if not self.feed.is_ready:
            return self._show_what_is_stored()
        if self._place is None:
            return self._read(self._take_preroll())
        if self._epoch != self.feed.epoch:
            self._start_afresh(saw_some=True)
            return True
        if self._resuming or self._is_behind(self._place):
            return self._read(self._read_on(self._place))
        if self._outbox:
            return await self._send_frame(self._outbox.popleft())
        return False

    def _is_behind(self, place: Place) -> bool:
        while self._outbox and self._outbox[0].place <= place:
            self._outbox.popleft()
        reached = self._outbox[0].prev if self._outbox else self.feed.tail
        return reached > place

    async def _say(self, text: str) -> bool:
        self._sending_since = time.monotonic()
        try:
            await self._send_to_client({"type": "websocket.send", "text": text})
        except (OSError, RuntimeError):
            # the socket closed meanwhile; what servers raise then is not the same everywhere
            self.closed = True
            self._on_gone()
        self._sending_since = None
        return True

    async def _say_goodbye(self, code: int) -> bool:
        self.closed = True
        self._sending_since = time.monotonic()
        try:
            await self._send_to_client({"type": "websocket.close", "code": code})
        except (OSError, RuntimeError):
            logger.debug("the socket was closed before it could be closed with %d", code)
        self._sending_since = None
        self._on_gone()
        return False

    async def _send_part(self, part: Part) -> bool:
        if part.place is not None:
            self._place = part.place
        self._saw_some = self._saw_some or bool(part.documents)
        self._half_sent = part.more and not part.complete
        text = messages.snapshot(part.documents, complete=part.complete, cursor=part.cursor, more=part.more)
        if part.cursor is not None:
            size = sum(map(len, part.documents))
            self._spend((Sent(part.cursor, size),), size)
        return await self._say(text)

    async def _send_frame(self, frame: Frame) -> bool:
        self._place = frame.place
        if frame.created_at < self._earliest:
            return True
        self._spend((frame,), frame.size)
        if self._straight is None:
            return await self._say(frame.text.decode())
        self._straight(frame.framed)
        return True

    def _spend(self, sent: Iterable[Frame | Sent], size: int) -> None:
        self._credit.spend(sent, size)
        self._mind_credit()

    def _mind_credit(self) -> None:
        """Start the clock when the credit is used up, stop it when there is some again."""
        if self._credit.left:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None
        elif self._patience is None:
            self._patience = self._loop.call_later(PATIENCE_S, self._too_slow)

    def _too_slow(self) -> None:
        self.feed.counts.too_slow += 1
        self.close(TOO_SLOW)

    def _give_up(self) -> None:
        """Nothing can be said to this client any more, not even goodbye."""
        self.closed = True
        # said once: each word of it grants the client another ten seconds to go
        self._sending_since = None
        if self._writer is not None:
            self._writer.cancel()
        self._on_gone()

    # --- catching up --------------------------------------------------------------------------------

    def _since(self) -> datetime | None:
        """From when on he may see checkpoints: of this monitoring period, if he may not see all."""
        return None if self.admission.sees_all or self._period is None else self._period.enabled_at

    def _note_since(self) -> None:
        since = self._since()
        self._earliest = "" if since is None else wire_time(since)

    def _start_afresh(self, *, saw_some: bool) -> None:
        """Forget where he stood: a pre-roll comes next, and what was being read is worthless."""
        if self._half_sent:
            # or the next one, fresh as well, would be taken for the rest of this one
            self._words.append(messages.snapshot([], complete=False, cursor=None, more=False))
            self._half_sent = False
        self._generation += 1
        self._epoch, self._place = "", None
        self._saw_some = saw_some
        self._resuming = False
        self._known = None
        self._parts.clear()
        self._outbox.clear()

    def _again_later(self) -> bool:
        if self._retry is None or self._retry.when() < self._loop.time():
            self._retry = self._loop.call_later(RETRY_S, self.wake)
        return False

    def _read(self, work: Coroutine[Any, Any, bool]) -> bool:
        """Begin to read what he needs; the writer rests and is woken when it is there. `work` says
        False when it has to be tried again later."""
        self._reading = self._loop.create_task(work, name="watcher reads")
        self._reading.add_done_callback(self._has_read)
        return False

    def _has_read(self, task: "asyncio.Task[bool]") -> None:
        self._reading = None
        if task.cancelled():
            return
        if task.exception() is not None:
            logger.error("a watcher could not be shown what he needs", exc_info=task.exception())
            self.close(TRY_LATER)
        elif task.result():
            self.wake()

    def _show_what_is_stored(self) -> bool:
        """Redis is away: whoever has nothing yet sees what PostgreSQL has, marked as not complete."""
        if not self.feed.is_away or self._place is not None or self._saw_some:
            return False
        return self._read(self._take_stored())

    async def _take_stored(self) -> bool:
        generation = self._generation
        preroll = await stored_preroll(self.feed.user_id, since=self._since())
        if generation == self._generation:
            self._saw_some = True
            self._plan_preroll(preroll, complete=False)
        return True

    async def _take_preroll(self) -> bool:
        generation = self._generation
        try:
            preroll = await self.feed.preroll(self._since())
        except REDIS_AWAY:
            return self._again_later()
        if generation != self._generation:
            return True
        if preroll.position is None or preroll.position[0] != self.feed.epoch:
            # the log restarted and the feed has not seen it yet; it wakes us when it has
            self.feed.synchronise()
            return self._again_later()
        self._plan_preroll(preroll, complete=preroll.whole and not self._saw_some)
        return True

    def _plan_preroll(self, preroll: Preroll, *, complete: bool) -> None:
        """Its last part carries the real cursor. The others' can be acknowledged but lead nowhere:
        whoever comes back with one gets a fresh pre-roll."""
        *firsts, last = messages.in_parts(preroll.documents)
        for documents in firsts:
            cursor = None
            if preroll.position is not None:
                self._part_number += 1
                cursor = log.cursor(preroll.position[0], f"0-{self._part_number}")
            self._parts.append(Part(documents, complete, True, cursor, None))
        if preroll.position is None:
            self._parts.append(Part(last, complete, False, None, None))
            return
        epoch, stream_id = preroll.position
        self._epoch = epoch
        self._parts.append(Part(last, complete, False, log.cursor(epoch, stream_id), log.id_order(stream_id)))

    async def _read_on(self, start: Place) -> bool:
        """Read a page of the log after his place: all of it, or a fresh pre-roll; never a part of the gap."""
        generation, tail = self._generation, self.feed.tail
        try:
            known = self._known if self._known is not None else await self._ids_before(start)
            entries = await log.read_after(self.feed.user_id, stream_id(start), count=PAGE_ENTRIES)
            # asked after reading: what is not trimmed now was not trimmed then
            position = await log.position(self.feed.user_id)
        except REDIS_AWAY:
            return self._again_later()
        if generation != self._generation:
            return True
        self._known = known
        earliest = self._earliest
        if (
            position.epoch != self._epoch
            or not log.reaches_back(position, stream_id(start))
            or any(created_at_of(entry.document) < earliest for entry in entries)
        ):
            self._start_afresh(saw_some=True)
            return True
        self._plan_page(start, entries, position, tail)
        return True

    def _plan_page(self, start: Place, entries: Sequence[log.Entry], position: log.Position, tail: Place) -> None:
        last = log.id_order(entries[-1].stream_id) if entries else start
        # a page that is not full was all there was: what came since waits in the outbox, or he is behind again
        is_full = len(entries) == PAGE_ENTRIES
        more = is_full and position.last_id is not None and last < log.id_order(position.last_id)
        fresh = [entry for entry in entries if not self._is_repeat(entry)]
        if not more:
            last = max(last, tail)
        if fresh or (self._resuming and not more):
            self._plan_parts(fresh, more=more, last=last)
        else:
            self._place = last
        self._resuming = more and (self._resuming or bool(fresh))
        if not more:
            self._known = None

    def _plan_parts(self, entries: Sequence[log.Entry], *, more: bool, last: Place) -> None:
        """Each part carries the cursor of its last entry, so that one can resume from any of them."""
        parts = messages.in_parts([entry.document for entry in entries])
        sent = 0
        for number, documents in enumerate(parts):
            sent += len(documents)
            is_last = number == len(parts) - 1
            place = last if is_last else log.id_order(entries[sent - 1].stream_id)
            cursor = log.cursor(self._epoch, stream_id(place))
            self._parts.append(Part(documents, True, more or not is_last, cursor, place))

    def _is_repeat(self, entry: log.Entry) -> bool:
        """A second entry of a checkpoint he was sent, which a retried append can leave."""
        assert self._known is not None
        flow_id = flow_id_of(entry.document)
        first = self.feed.first_place_of(flow_id)
        if flow_id in self._known or (first is not None and first < log.id_order(entry.stream_id)):
            return True
        self._known.add(flow_id)
        return False

    async def _ids_before(self, start: Place) -> set[bytes]:
        """The checkpoints of the minute before his place: their repetitions may come after it."""
        known: set[bytes] = set()
        place, until = f"{max(0, start[0] - REPEATED_WITHIN_MS)}-0", stream_id(start)
        while page := await log.read_after(self.feed.user_id, place, count=PAGE_ENTRIES, until=until):
            known.update(flow_id_of(entry.document) for entry in page)
            place = page[-1].stream_id
        return known


def _nothing() -> None:
    pass


def stream_id(place: Place) -> str:
    """A place as Redis writes it."""
    return f"{place[0]}-{place[1]}"
