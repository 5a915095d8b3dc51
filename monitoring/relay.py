"""The relay: one Redis subscription per process, however many watchers; fan-out in memory.

Pub/Sub is only the fast way. Redis drops messages of a slow or broken connection without a word,
so the stream decides: each message names its predecessor, each (re)subscription and a check every
two seconds compare positions, and a hole is read from the stream before anything after it goes on.
The reader never waits for a watcher.
"""

import asyncio
import logging
import math
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import Error as DatabaseProblem

from flows import keys, log
from flows.flusher import REDIS_AWAY
from flows.preroll import Preroll, created_at_of, flow_id_of, preroll
from flows.redis import new_connection, was_cancelled
from flows.status import tracking_status
from monitoring import messages
from monitoring.admission import still_allowed
from monitoring.framing import framed
from monitoring.messages import START, NotAnEvent, Place
from monitoring.watcher import TRY_LATER, Batch, Frame, Watcher, stream_id
from monitoring.watchlist import Change, Period, watchlist
from omni2.database import in_database

logger = logging.getLogger(__name__)

CHECK_EVERY_S = 1.8
ON_ITS_WAY_S = 0.2
"""How long Pub/Sub may take to bring what is in the stream already."""

RIGHTS_EVERY_S = 2.5
TICK_S = 1.0
PING_EVERY_S = 15.0
REDIS_PING_EVERY_S = 5.0
SILENT_S = 12.0
"""A connection that does not even answer a PING for so long is given up."""

PAUSE_S = (0.05, 0.1, 0.2, 0.5, 1.0)
RECENT_FLOW_IDS = 1000
"""How far back a feed knows a repeated entry: a retried append follows its first try closely."""

WAITING_MESSAGES = 2000
PAGE_ENTRIES = 1000
PREROLLS_AT_ONCE = 4


@dataclass(slots=True)
class Counts:
    """What happened since the process started."""

    frames: int = 0
    holes: int = 0
    """reads of the stream for what Pub/Sub had not brought"""
    restarts: int = 0
    """new beginnings: an epoch that changed, or a log that did not reach back"""
    repeats: int = 0
    reconnects: int = 0
    strangers: int = 0
    """messages on a user's channel that are none of ours"""
    too_slow: int = 0


counts = Counts()


class Feed:
    """One watched user: where we stand in his stream, and who is sent what comes next."""

    def __init__(self, relay: "Relay", user_id: str) -> None:
        self.relay = relay
        self.user_id = user_id
        self.channel = keys.user_channel(user_id).encode()
        self.counts = counts
        self.watchers: set[Watcher] = set()
        self.epoch: str | None = None
        self.tail: Place = START
        """place of the last frame given to the watchers, or where we began"""
        self.is_away = not settings.REDIS_ENABLED
        self.last_frame: Frame | None = None
        self._frames: list[Frame] = []  # to be handed out in a moment
        self._last: Place = START  # of the stream; beyond `tail` only by entries that were repeats
        self._recent: OrderedDict[bytes, Place] = OrderedDict()
        self._waiting: deque[bytes] = deque(maxlen=WAITING_MESSAGES)
        self._synchronising: asyncio.Task[None] | None = None
        self._again = False
        self._prerolls: dict[datetime | None, asyncio.Task[Preroll]] = {}

    @property
    def is_ready(self) -> bool:
        """Whether we know where the stream stands."""
        return self.epoch is not None and not self.is_away

    def first_place_of(self, flow_id: bytes) -> Place | None:
        """Where this checkpoint came first, if that was lately."""
        return self._recent.get(flow_id)

    async def preroll(self, since: datetime | None) -> Preroll:
        """The pre-roll now; those who want the same at the same time share one."""
        task = self._prerolls.get(since)
        if task is None:
            task = self._prerolls[since] = asyncio.get_running_loop().create_task(self._read_preroll(since))
            task.add_done_callback(lambda _: self._prerolls.pop(since, None))
        # shielded: a watcher who leaves must not take it from the others
        return await asyncio.shield(task)

    async def _read_preroll(self, since: datetime | None) -> Preroll:
        async with self.relay.prerolls_at_once:
            return await preroll(self.user_id, since=since)

    # --- what Redis says --------------------------------------------------------------------------

    def hear(self, data: bytes) -> None:
        """A message on the user's channel."""
        if not watchlist.is_monitored(self.user_id):
            return  # it stays in the stream: if monitoring goes on after all, it is found there
        if self._synchronising is not None:
            self._waiting.append(data)
        elif not self._follows(data):
            self._waiting.append(data)
            self.synchronise()

    def _follows(self, data: bytes) -> bool:
        """Deliver the message if it is the next one, drop it if it was covered; False at a hole."""
        try:
            event = messages.read_event(data)
        except NotAnEvent:
            self.counts.strangers += 1
            return True
        if event.epoch != self.epoch or event.prev > self._last:
            return False
        if event.place > self._last:
            self._deliver(event.place, event.flow_id, event.document)
        return True

    def _deliver(self, place: Place, flow_id: bytes, document: bytes) -> None:
        self._last = place
        if flow_id in self._recent:
            self.counts.repeats += 1
            return
        self._remember(flow_id, place)
        assert self.epoch is not None
        cursor = log.cursor(self.epoch, stream_id(place))
        text = messages.checkpoint(cursor, document)
        prev = self._frames[-1].place if self._frames else self.tail
        if not self._frames:
            # after what has come together with this one: then a watcher is served once for all of it
            self.relay.soon(self._hand_out)
        self._frames.append(Frame(place, prev, cursor, created_at_of(document), len(document), text, framed(text)))

    def _hand_out(self) -> None:
        """Give the watchers what has come. To be called before anything else is said to them."""
        if not self._frames:
            return
        frames, self._frames = self._frames, []
        self.last_frame = frames[-1]
        self.tail = self.last_frame.place
        self.counts.frames += len(frames)
        batch = Batch.of(frames)
        is_live = self.is_ready and watchlist.is_monitored(self.user_id)
        for watcher in self.watchers:
            watcher.offer(batch, is_live=is_live)

    def _remember(self, flow_id: bytes, place: Place) -> None:
        self._recent[flow_id] = place
        if len(self._recent) > RECENT_FLOW_IDS:
            self._recent.popitem(last=False)

    # --- the stream decides ---------------------------------------------------------------------------

    def synchronise(self) -> None:
        """Compare with the stream and read what is missing; what comes meanwhile waits."""
        self._again = True
        if self._synchronising is None and settings.REDIS_ENABLED and watchlist.is_monitored(self.user_id):
            self._synchronising = self.relay.run(self._synchronise())

    async def _synchronise(self) -> None:
        try:
            while self._again and not was_cancelled():
                self._again = False
                await self._read_what_is_missing()
                self._take_waiting()
        except REDIS_AWAY:
            # the next subscription or the next check tries again
            self.lose()
        finally:
            self._synchronising = None

    async def _read_what_is_missing(self) -> None:
        position = await log.position(self.user_id)
        if position.epoch != self.epoch:
            return await self._begin_anew(position)
        while entries := await log.read_after(self.user_id, stream_id(self._last), count=PAGE_ENTRIES):
            # asked after reading: what is not trimmed now was not trimmed then
            position = await log.position(self.user_id)
            if position.epoch != self.epoch or not log.reaches_back(position, stream_id(self._last)):
                return await self._begin_anew(position)
            self.counts.holes += 1
            for entry in entries:
                self._deliver(log.id_order(entry.stream_id), flow_id_of(entry.document), entry.document)
            if len(entries) < PAGE_ENTRIES:
                # that was all; what was appended since is on its way, and what is not shows as a hole again
                break
        self._found()
        return None

    async def _begin_anew(self, position: log.Position) -> None:
        """Stand at the end of the stream. Watchers whose place is of another epoch start afresh; the
        others see by our place that they are behind, and read on themselves."""
        recent = await log.read_recent(self.user_id, count=RECENT_FLOW_IDS)
        self._hand_out()
        self.counts.restarts += self.epoch is not None
        self.epoch = position.epoch
        self._last = log.id_order(recent[-1].stream_id if recent else position.tail)
        self.tail = self._last
        self._recent.clear()
        for entry in recent:
            self._recent.setdefault(flow_id_of(entry.document), log.id_order(entry.stream_id))
        self._found()
        for watcher in self.watchers:
            watcher.log_restarted()

    def _take_waiting(self) -> None:
        waiting, self._waiting = self._waiting, deque(maxlen=WAITING_MESSAGES)
        for data in waiting:
            if not self._follows(data):
                # a hole in what came meanwhile too, or another epoch: once more
                self._again = True
                return

    def _found(self) -> None:
        if self.is_away:
            self.is_away = False
            for watcher in self.watchers:
                watcher.wake()

    def lose(self) -> None:
        """Redis is away: what we know of the stream may be old."""
        self._hand_out()
        self.is_away = True
        for watcher in self.watchers:
            watcher.wake()

    async def check(self) -> Place:
        """How far the stream reaches. One round trip; raises when Redis is away."""
        if not watchlist.is_monitored(self.user_id) or self._synchronising is not None:
            return START
        position = await log.position(self.user_id)
        if self.is_away or position.epoch != self.epoch:
            self.synchronise()
            return START
        return START if position.last_id is None else log.id_order(position.last_id)

    def must_have(self, place: Place) -> None:
        """By now Pub/Sub has brought all up to here, or has left something out."""
        if self._last < place:
            self.synchronise()

    def monitoring_changed(self, change: Change, period: Period | None) -> None:
        """Tell the watchers; a new period begins at the stream's end, as it is when it is read."""
        self._hand_out()
        if change == "enabled":
            self.epoch = None
            self._waiting.clear()
        if period is not None:
            self.synchronise()
        for watcher in tuple(self.watchers):
            watcher.monitoring_changed(change, period)


class Relay:
    """One loop's relay: started by its first watcher, ended after its last."""

    def __init__(self) -> None:
        self.feeds: dict[str, Feed] = {}
        self.connected = False
        self.trouble = False
        self._told_live = "on"
        self.prerolls_at_once = asyncio.Semaphore(PREROLLS_AT_ONCE)
        self._loop = asyncio.get_running_loop()
        self._by_channel: dict[bytes, Feed] = {}
        self._wanted = asyncio.Event()
        self._heard_at_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._running = False

    @property
    def watchers(self) -> list[Watcher]:
        # copied, since /readyz asks from another thread
        return [watcher for feed in list(self.feeds.values()) for watcher in tuple(feed.watchers)]

    @property
    def live(self) -> str:
        """What the pages say: "on"; "degraded" while Redis is away, or takes no checkpoints (it may be full), so
        that they come late; "off" without it."""
        if not settings.REDIS_ENABLED:
            return "off"
        return "degraded" if self.trouble or tracking_status()["redis_away"] else "on"

    # --- watchers come and go -----------------------------------------------------------------------

    def feed_of(self, user_id: str) -> Feed:
        """The user's feed, made when somebody begins to watch him. To be joined at once."""
        if not self._running:
            self._start()
        feed = self.feeds.get(user_id)
        if feed is None:
            feed = self.feeds[user_id] = Feed(self, user_id)
            self._by_channel[feed.channel] = feed
            feed.is_away = feed.is_away or self.trouble
            self._wanted.set()
            # no need to wait for the subscription: its confirmation compares positions once more
            feed.synchronise()
        return feed

    def join(self, watcher: Watcher) -> None:
        """Greet him and send him what comes from now on."""
        watcher.ping_at_s = time.monotonic() + PING_EVERY_S
        watcher.feed.watchers.add(watcher)
        watcher.greet(self.live)

    def leave(self, watcher: Watcher) -> None:
        """He is gone; the last one ends the feed, and the relay."""
        watcher.leave()
        feed = watcher.feed
        feed.watchers.discard(watcher)
        if not feed.watchers and self.feeds.get(feed.user_id) is feed:
            del self.feeds[feed.user_id]
            del self._by_channel[feed.channel]
            self._wanted.set()
        if not self.feeds:
            self._stop()

    def _start(self) -> None:
        self._running = True
        watchlist.add_listener(self._monitoring_changed)
        self.run(self._tick())
        self.run(self._watch_rights())
        if settings.REDIS_ENABLED:
            self.run(self._stay_connected())
            self.run(self._check_positions())

    def _stop(self) -> None:
        watchlist.remove_listener(self._monitoring_changed)
        for task in self._tasks:
            task.cancel()
        self._tasks = set()
        self._running = False
        self.connected = self.trouble = False

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run one of our parts; should it fail, the relay begins anew with new sockets."""
        task = self._loop.create_task(work, name="relay")
        self._tasks.add(task)
        task.add_done_callback(self._part_ended)
        return task

    def soon(self, work: Callable[[], None]) -> None:
        """Do this as soon as what is being done is done."""
        self._loop.call_soon(work)

    def _part_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        logger.error("the relay failed; its watchers come back to a new one", exc_info=task.exception())
        for watcher in self.watchers:
            watcher.close(TRY_LATER)

    def _monitoring_changed(self, user_id: str, change: Change, period: Period | None) -> None:
        feed = self.feeds.get(user_id)
        if feed is not None:
            feed.monitoring_changed(change, period)

    # --- Redis --------------------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        failures = 0
        while not was_cancelled():
            try:
                await self._listen()
            except REDIS_AWAY as problem:
                failures = 0 if self.connected else failures + 1
                self._disconnected(problem)
            await asyncio.sleep(PAUSE_S[min(failures, len(PAUSE_S) - 1)])

    async def _listen(self) -> None:
        """Read one connection until it breaks. Our own, without redis-py's silent reconnect."""
        connection = new_connection(protocol=2, client_name="omni2-relay")
        asking: asyncio.Task[None] | None = None
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            self._connected()
            asking = self.run(self._ask(connection))
            while not was_cancelled():
                answer = await connection.read_response(timeout=math.inf, disconnect_on_error=False)
                self._heard_at_s = time.monotonic()
                if isinstance(answer, list) and len(answer) == 3:
                    self._hear(*answer)
        finally:
            try:
                if asking is not None:
                    asking.cancel()
                    # never take the connection away from under a command that is being sent
                    await asyncio.wait([asking])
            finally:
                with suppress(*REDIS_AWAY):
                    await connection.disconnect(nowait=True)

    def _hear(self, kind: bytes, channel: bytes, data: Any) -> None:
        feed = self._by_channel.get(channel)
        if feed is None:
            return
        if kind == b"message":
            feed.hear(data)
        elif kind == b"subscribe":
            # from here on nothing is missed; what came before is in the stream
            feed.synchronise()

    async def _ask(self, connection: Any) -> None:
        """Keep the connection subscribed to what is watched, and see that it is alive."""
        asked: set[bytes] = set()
        try:
            while not was_cancelled():
                self._wanted.clear()
                wanted = set(self._by_channel)
                if wanted - asked:
                    await connection.send_command("SUBSCRIBE", *(wanted - asked), check_health=False)
                if asked - wanted:
                    await connection.send_command("UNSUBSCRIBE", *(asked - wanted), check_health=False)
                asked = wanted
                if not was_cancelled():
                    await self._wait_or_ping(connection)
        except REDIS_AWAY:
            # the reader sees it too, and begins again
            await connection.disconnect(nowait=True)

    async def _wait_or_ping(self, connection: Any) -> None:
        try:
            async with asyncio.timeout(REDIS_PING_EVERY_S):
                await self._wanted.wait()
        except TimeoutError:
            if time.monotonic() - self._heard_at_s > SILENT_S:
                raise ConnectionError("Redis is silent") from None
            await connection.send_command("PING", check_health=False)

    def _connected(self) -> None:
        self._heard_at_s = time.monotonic()
        self.connected = True
        self._note_trouble(False)

    def _disconnected(self, problem: BaseException) -> None:
        if self.connected or not self.trouble:
            logger.warning("the relay lost Redis (%s): watchers catch up when it is back", type(problem).__name__)
        counts.reconnects += self.connected
        self.connected = False
        self._note_trouble(True)
        for feed in self.feeds.values():
            feed.lose()

    def _note_trouble(self, trouble: bool) -> None:
        self.trouble = trouble
        self._tell_live()

    def _tell_live(self) -> None:
        """Say at once how live is doing when that has changed; the usual pings say it as well."""
        if self._told_live != self.live:
            self._told_live = self.live
            self._ping(self.watchers)

    async def _check_positions(self) -> None:
        while not was_cancelled():
            await asyncio.sleep(CHECK_EVERY_S)
            try:
                reached = [(feed, await feed.check()) for feed in list(self.feeds.values())]
            except REDIS_AWAY:
                for feed in self.feeds.values():
                    feed.lose()
                continue
            # what was appended a moment ago is on its way: taken for a hole, it would be read from the stream
            await asyncio.sleep(ON_ITS_WAY_S)
            for feed, place in reached:
                feed.must_have(place)

    # --- time, and rights --------------------------------------------------------------------------

    async def _tick(self) -> None:
        while not was_cancelled():
            await asyncio.sleep(TICK_S)
            now_s = time.monotonic()
            watchers = self.watchers
            for watcher in watchers:
                watcher.look_at_time(now_s)
            self._ping([watcher for watcher in watchers if watcher.ping_at_s <= now_s])
            self._tell_live()

    def _ping(self, watchers: Iterable[Watcher]) -> None:
        text = messages.ping(server_time=watchlist.now(), live=self.live)
        for watcher in watchers:
            watcher.ping_at_s = time.monotonic() + PING_EVERY_S
            watcher.say(text)

    async def _watch_rights(self) -> None:
        """One query for all open sockets. While PostgreSQL is away nobody can take a right away."""
        while not was_cancelled():
            await asyncio.sleep(RIGHTS_EVERY_S)
            watchers = self.watchers
            with suppress(DatabaseProblem, OSError):
                verdicts = await in_database(still_allowed, [watcher.admission for watcher in watchers])
                for watcher, verdict in zip(watchers, verdicts, strict=True):
                    if verdict.code is not None:
                        watcher.close(verdict.code)
                    elif verdict.sees_all != watcher.admission.sees_all:
                        watcher.may_still_watch(replace(watcher.admission, sees_all=verdict.sees_all))


_relays: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Relay]" = weakref.WeakKeyDictionary()


def relay_here() -> Relay:
    """The running loop's relay."""
    loop = asyncio.get_running_loop()
    relay = _relays.get(loop)
    if relay is None:
        relay = _relays[loop] = Relay()
    return relay


def status() -> dict[str, Any]:
    """How live delivery is doing in this process, for /readyz and the pages. No I/O.

    `live`: "on", "degraded" (watchers are connected and Redis is away) or "off" (REDIS_ENABLED=false);
    without watchers there is no connection to Redis, and `connected` is None.
    """
    relays = [relay for relay in list(_relays.values()) if relay.feeds]
    frames = [feed.last_frame for relay in relays for feed in relay.feeds.values() if feed.last_frame is not None]
    last = max(frames, key=lambda frame: frame.place, default=None)
    live = "on" if settings.REDIS_ENABLED else "off"
    return {
        "live": "degraded" if any(relay.trouble for relay in relays) else live,
        "connected": all(relay.connected for relay in relays) if relays and settings.REDIS_ENABLED else None,
        "feeds": sum(len(relay.feeds) for relay in relays),
        "watchers": sum(len(relay.watchers) for relay in relays),
        "last_frame_created_at": last and last.created_at,
        **asdict(counts),
    }
