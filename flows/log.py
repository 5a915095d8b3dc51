"""The log in Redis: append + publish, read, and where a reader stands. The only X-commands of the web process.

One server-side step appends a batch: hand-off log first, the user's stream second, PUBLISH last, so
that the order of Pub/Sub is the order of the stream. A live message carries its own cursor and its
predecessor's, so that a reader sees a hole at once.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha1
from itertools import groupby
from operator import attrgetter
from typing import Any, Literal
from zlib import crc32

from redis.exceptions import NoScriptError

from flows import keys
from flows.redis import get_redis

RECENT_ENTRIES = 10_000
"""About how many checkpoints a user's stream keeps."""

RECENT_SECONDS = 24 * 3600
"""How long it keeps them after the last one."""

EXPIRY_MARGIN_SECONDS = 60
"""So much earlier a reader takes a stream for expired than Redis does: what he asks for and what he is
told lie that far apart at most."""

# Besides the epoch the name of the log's life, `origin`: it changes only when Redis was restarted, failed
# over or flushed, so that what was acknowledged may be gone.
_ENSURE_EPOCH = """
local function ensure_epoch(key, run_id, candidate)
  local known = redis.call('HMGET', key, 'epoch', 'run_id', 'origin')
  if known[1] and (run_id == '' or known[2] == run_id) then return known[1], known[3] or '' end
  redis.call('HSET', key, 'epoch', candidate, 'run_id', run_id, 'origin', candidate)
  return candidate, candidate
end
local function run_id() return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or '' end
"""

# KEYS: epoch, the writer's fence, then streams. Nothing is written, and the answer is FENCED, when the
# writer was declared dead: its turns were ended, and no turn may be seen to end twice.
# The answer is the log's origin.
# ARGV: run_id, candidate epoch, entries kept, milliseconds kept, number of users, 1 for a new epoch else 0,
# then per user: his stream's place in KEYS, his channel or '' when nobody watches him;
# then per run of checkpoints of one turn: shard's place in KEYS (0: not for the hand-off log), user's number, how
# many, and their documents.
# What is not new changes the epoch in the same step: a pre-roll may have had it from PostgreSQL already, so
# it must never follow one.
_APPEND = (
    _ENSURE_EPOCH
    + """
if redis.call('EXISTS', KEYS[2]) == 1 then return 'FENCED' end
local epoch, origin = ensure_epoch(KEYS[1], ARGV[1], ARGV[2])
local users = tonumber(ARGV[5])
local first = 7 + users * 2
if ARGV[6] == '1' then redis.call('HSET', KEYS[1], 'epoch', ARGV[2]) end
local i = first
while i <= #ARGV do
  local shard, final = KEYS[tonumber(ARGV[i])], i + 2 + tonumber(ARGV[i + 2])
  if shard then
    for d = i + 3, final do redis.call('XADD', shard, '*', 'd', ARGV[d]) end
  end
  i = final + 1
end
local last = {}
for u = 1, users do
  if ARGV[6 + u * 2] ~= '' then
    local newest = redis.call('XREVRANGE', KEYS[tonumber(ARGV[5 + u * 2])], '+', '-', 'COUNT', 1)[1]
    last[u] = newest and ('"' .. epoch .. '.' .. newest[1] .. '"') or 'null'
  end
end
i = first
while i <= #ARGV do
  local u, final = tonumber(ARGV[i + 1]), i + 2 + tonumber(ARGV[i + 2])
  local stream, channel = KEYS[tonumber(ARGV[5 + u * 2])], ARGV[6 + u * 2]
  for d = i + 3, final do
    local id = redis.call('XADD', stream, 'MAXLEN', '~', ARGV[3], '*', 'd', ARGV[d])
    if channel ~= '' then
      local cursor = '"' .. epoch .. '.' .. id .. '"'
      local head = '{"cursor":' .. cursor .. ',"prev":' .. last[u]
      redis.call('PUBLISH', channel, head .. ',"checkpoint":' .. ARGV[d] .. '}')
      last[u] = cursor
    end
  end
  i = final + 1
end
for u = 1, users do redis.call('PEXPIRE', KEYS[tonumber(ARGV[5 + u * 2])], ARGV[4]) end
return origin
"""
)

# KEYS: epoch, the hand-off shards. ARGV: candidate. The log's origin, a new one when Redis was restarted or flushed
# since; and for how many milliseconds the oldest entry waits to be stored, 0 when none does.
_ORIGIN = (
    _ENSURE_EPOCH
    + """
local _, origin = ensure_epoch(KEYS[1], run_id(), ARGV[1])
local time, waits = redis.call('TIME'), 0
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 2, #KEYS do
  local oldest = redis.call('XRANGE', KEYS[i], '-', '+', 'COUNT', 1)[1]
  if oldest then waits = math.max(waits, now - string.match(oldest[1], '%d+')) end
end
return {origin, waits}
"""
)

# KEYS: epoch. ARGV: candidate. A new epoch, whatever the old one was: checkpoints went around the log.
_NEW_EPOCH = (
    _ENSURE_EPOCH
    + """
ensure_epoch(KEYS[1], run_id(), ARGV[1])
redis.call('HSET', KEYS[1], 'epoch', ARGV[1])
return ARGV[1]
"""
)

# KEYS: epoch, the user's stream. ARGV: candidate epoch.
_POSITION = (
    _ENSURE_EPOCH
    + """
local epoch = ensure_epoch(KEYS[1], run_id(), ARGV[1])
local now = redis.call('TIME')
local now_ms = now[1] .. string.format('%03d', math.floor(tonumber(now[2]) / 1000))
if redis.call('EXISTS', KEYS[2]) == 0 then return {epoch, now_ms, 0, 0, '', ''} end
local facts = {}
local info = redis.call('XINFO', 'STREAM', KEYS[2])
for i = 1, #info, 2 do facts[info[i]] = info[i + 1] end
local first = facts['first-entry']
return {epoch, now_ms, facts['length'], facts['entries-added'], first and first[1] or '', facts['last-generated-id']}
"""
)


FENCED = b"FENCED"
"""What an append answers to a writer that was declared dead."""

FENCE_SECONDS = 7 * 24 * 3600
"""How long a process that stood still may not come back to its turns."""


class Script:
    """A Lua script called by its digest, loaded again when the server has forgotten it."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.digest = sha1(source.encode(), usedforsecurity=False).hexdigest().encode()


APPEND = Script(_APPEND)
NEW_EPOCH = Script(_NEW_EPOCH)
ORIGIN = Script(_ORIGIN)
POSITION = Script(_POSITION)


def pack_origin() -> list[bytes | str]:
    """The words that ask for the log's origin and for how long its oldest entry waits: (origin, milliseconds)."""
    names = [keys.EPOCH, *keys.LOG_SHARDS]
    return [b"EVAL", ORIGIN.source, b"%d" % len(names), *names, new_epoch_name()]


def new_epoch_name() -> bytes:
    """A name no earlier epoch had."""
    return secrets.token_hex(6).encode()


# --- cursors and ids ---------------------------------------------------------------------------


def cursor(epoch: str, stream_id: str) -> str:
    """`<epoch>.<ms>-<seq>`: opaque to clients."""
    return f"{epoch}.{stream_id}"


def id_order(stream_id: str) -> tuple[int, int]:
    """A stream id as numbers, to compare by."""
    millisecond, _, sequence = stream_id.partition("-")
    return int(millisecond), int(sequence)


def split_cursor(text: str) -> tuple[str, str]:
    """The (epoch, stream id) of a cursor; ValueError when it is none."""
    epoch, dot, stream_id = text.partition(".")
    millisecond, dash, sequence = stream_id.partition("-")
    numbers = millisecond + sequence
    well_formed = (
        dot
        and dash
        and millisecond
        and sequence
        and numbers.isascii()
        and numbers.isdigit()
        and 0 < len(epoch) <= 40
        and epoch.isascii()
        and epoch.isalnum()
    )
    # both halves of a stream id are 64 bits wide
    if not well_formed or len(numbers) > 40 or max(int(millisecond), int(sequence)) >= 1 << 64:
        raise ValueError("not a cursor")
    return epoch, f"{int(millisecond)}-{int(sequence)}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a user's stream."""

    stream_id: str
    document: bytes


@dataclass(frozen=True, slots=True)
class Position:
    """Where a user's stream stands. `tail` is always a stream id to read on from: the last entry's,
    or, of an empty stream, one just before Redis' present."""

    epoch: str
    now_ms: int
    first_id: str | None
    last_id: str | None
    tail: str
    nothing_trimmed: bool


def reaches_back(position: Position, stream_id: str) -> bool:
    """Whether everything appended after `stream_id` (of the same epoch) is still in the stream.

    Yes from the first entry on. Before it only when the stream never lost an entry and cannot have
    expired since: expiry counts from the last entry, so within that time nothing vanished.
    """
    if position.first_id is not None and id_order(stream_id) >= id_order(position.first_id):
        return True
    age_ms = position.now_ms - id_order(stream_id)[0]
    return position.nothing_trimmed and age_ms < (RECENT_SECONDS - EXPIRY_MARGIN_SECONDS) * 1000


# --- reading -----------------------------------------------------------------------------------


def _entries(raw: Any) -> list[Entry]:
    return [Entry(stream_id.decode(), fields[b"d"]) for stream_id, fields in raw or () if b"d" in fields]


async def _run(script: Script, names: Sequence[str], *arguments: bytes) -> Any:
    redis = get_redis()
    try:
        return await redis.evalsha(script.digest.decode(), len(names), *names, *arguments)
    except NoScriptError:
        return await redis.eval(script.source, len(names), *names, *arguments)


async def position(user_id: str) -> Position:
    """Where the user's stream stands now. One round trip; a log without an epoch, or restarted
    since it was made, gets a new one. Raises RedisError, OSError or TimeoutError."""
    epoch, now_ms, length, added, first, last = await _run(
        POSITION, [keys.EPOCH, keys.user_stream(user_id)], new_epoch_name()
    )
    last_id = last.decode() if length else None
    return Position(
        epoch=epoch.decode(),
        now_ms=int(now_ms),
        first_id=first.decode() or None,
        last_id=last_id,
        # one millisecond back: an entry of this very millisecond must come after it
        tail=last_id or f"{int(now_ms) - 1}-0",
        nothing_trimmed=int(added) == int(length),
    )


async def read_after(user_id: str, stream_id: str, *, count: int = 1000, until: str = "+") -> list[Entry]:
    """At most `count` entries after `stream_id`, oldest first. One round trip."""
    return _entries(await get_redis().xrange(keys.user_stream(user_id), f"({stream_id}", until, count=count))


async def read_recent(user_id: str, *, count: int) -> list[Entry]:
    """The newest `count` entries, oldest first. One round trip."""
    newest_first = _entries(await get_redis().xrevrange(keys.user_stream(user_id), count=count))
    return newest_first[::-1]


async def oldest_waiting_ms() -> int | None:
    """When the oldest checkpoint that is not in PostgreSQL yet was appended (its stream ids' milliseconds;
    one append uses one millisecond for all its streams); None when nothing waits. One round trip."""
    pipeline = get_redis().pipeline(transaction=False)
    for shard in keys.LOG_SHARDS:
        pipeline.xrange(shard, count=1)
    oldest = [entries[0][0] for entries in await pipeline.execute() if entries]
    return min((int(entry_id.partition(b"-")[0]) for entry_id in oldest), default=None)


# --- appending ---------------------------------------------------------------------------------


def shard_of(turn_id: str) -> int:
    """The hand-off shard of a turn: always the same, so that parents come before children."""
    return crc32(turn_id.encode()) % keys.SHARDS


Way = Literal["live", "around", "again"]
"""How checkpoints come to the log. "live": for the first time, published where they are watched. "around":
they are in PostgreSQL already, so only to the users' streams. "again": they were acknowledged and may be
gone. What is not live is not published and begins a new epoch."""


@dataclass(frozen=True, slots=True)
class Line:
    """What an append needs to know of a checkpoint."""

    user_id: str
    turn_id: str
    document: bytes


_TURN_ID = attrgetter("turn_id")
_DOCUMENT = attrgetter("document")


def pack_append(
    lines: Sequence[Any],
    is_monitored: Callable[[str], bool],
    *,
    run_id: bytes = b"",
    way: Way = "live",
    writer: str = "",
) -> list[bytes | str]:
    """The words of one EVALSHA that appends these checkpoints (anything with user_id, turn_id and
    document), in order. It answers with the log's origin, or FENCED when `writer`, the process whose
    turns these are, was declared dead."""
    names: list[bytes | str] = [keys.EPOCH, keys.fence(writer)]
    places: dict[str, bytes] = {}

    def place(name: str) -> bytes:
        found = places.get(name)
        if found is None:
            names.append(name)
            found = places[name] = b"%d" % len(names)
        return found

    users: dict[str, bytes] = {}
    user_words: list[bytes | str] = []
    body: list[bytes | str] = []
    # what a turn recorded since the last batch stands together, mostly
    for turn_id, group in groupby(lines, _TURN_ID):
        run = list(group)
        user_id = run[0].user_id
        number = users.get(user_id)
        if number is None:
            number = users[user_id] = b"%d" % (len(users) + 1)
            user_words += [
                place(keys.user_stream(user_id)),
                keys.user_channel(user_id) if way == "live" and is_monitored(user_id) else b"",
            ]
        shard = place(keys.LOG_SHARDS[shard_of(turn_id)]) if way != "around" else b"0"
        body += (shard, number, b"%d" % len(run), *map(_DOCUMENT, run))
    kept_ms = b"%d" % (RECENT_SECONDS * 1000)
    head = [run_id, new_epoch_name(), b"%d" % RECENT_ENTRIES, kept_ms, b"%d" % len(users)]
    head.append(b"0" if way == "live" else b"1")
    return [b"EVALSHA", APPEND.digest, b"%d" % len(names), *names, *head, *user_words, *body]
