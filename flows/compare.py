"""Two turns side by side: which step of the one is which of the other. Pure: no database, stdlib only.

Steps are matched level by level, by checkpoint and name: rounds of the model by their number (so
that two models can be compared), tools by their name. Tools called in one round run at the same
time, so their order says nothing; everything else keeps its order. Comparing B with A gives the
pairs of A with B, turned round.
"""

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from flows import tree, words

Row = dict[str, Any]
Key = tuple[str, str]
Match = tuple[int, int]

# Beyond so many comparisons a level is matched by counting alone (a turn of thousands of steps).
MOST_COMPARISONS = 1_000_000


@dataclass(slots=True, eq=False)
class Step:
    """A checkpoint with the one that ended it, and the steps below. `begin_ms`, `end_ms`: since the turn began."""

    start: Row
    end: Row | None
    begin_ms: float
    end_ms: float
    children: list["Step"] = field(default_factory=list)

    @property
    def took_ms(self) -> float:
        return self.end_ms - self.begin_ms

    @property
    def key(self) -> Key:
        name, data = self.start["checkpoint"], self.start["metadata"]
        if name in {"tool_call", "tool_result"}:
            return name, words.plain(data.get("tool"))
        return name, words.plain(data.get("round")) if name == "llm_thinking" else ""


@dataclass(frozen=True, slots=True)
class Pair:
    """One line of the comparison: a step of A, of B, or of both; `depth` 0 is the root of a turn."""

    depth: int
    a: Step | None
    b: Step | None


def align(a: Sequence[Row], b: Sequence[Row]) -> list[Pair]:
    """Both turns' steps as pairs, parents before children, each step once.

    `a` and `b` are the rows of `flows.history.as_wire()`, in order. Where a level holds more than a
    thousand steps on both sides, only the n-th of a name is matched with the n-th.
    """
    pairs = []
    stack = [(0, one, other) for one, other in reversed(_level(steps_of(a), steps_of(b)))]
    while stack:
        depth, one, other = stack.pop()
        pairs.append(Pair(depth, one, other))
        below = _level(one.children if one else [], other.children if other else [])
        stack.extend((depth + 1, left, right) for left, right in reversed(below))
    return pairs


def steps_of(rows: Sequence[Row]) -> list[Step]:
    """The roots of a turn's steps; every row is the start or the end of exactly one step. Linear."""
    if not rows:
        return []
    ends, clock = tree.ends(rows), _Clock(rows)
    ended = {row["flow_id"]: start for start, row in ends.items()}
    steps: dict[str, Step] = {}
    roots: list[Step] = []
    for _, node in tree.walk(tree.nest(rows)):
        above = steps.get(node["parent_id"])
        if node["flow_id"] in ended and above is not None:
            steps[node["flow_id"]] = above  # what hangs below the end hangs below the step
            continue
        end = ends.get(node["flow_id"])
        begin_ms, end_ms = clock.span(node, end, above)
        step = steps[node["flow_id"]] = Step(node, end, begin_ms, end_ms)
        (above.children if above else roots).append(step)
    return roots


class _Clock:
    """Milliseconds since the turn began, and from when to when a step took: as the tree of the pages draws it."""

    def __init__(self, rows: Sequence[Row]) -> None:
        times = [datetime.fromisoformat(row["created_at"]) for row in rows]
        self.zero, self.last = min(times), max(times)

    def at(self, row: Row) -> float:
        return (datetime.fromisoformat(row["created_at"]) - self.zero).total_seconds() * 1000

    def span(self, row: Row, end: Row | None, above: Step | None) -> tuple[float, float]:
        at, took = self.at(row), row["metadata"].get("duration_ms")
        if end is not None:
            return at, self.at(end)
        if row["checkpoint"] in tree.ENDED_BY:  # left open
            return at, (self.last - self.zero).total_seconds() * 1000
        measured = words.is_number(took) and took >= 0
        if row["checkpoint"] in tree.ENDED_BY.values() and measured:
            return at - took, at
        if words.CHECKPOINTS.get(row["checkpoint"], words.UNKNOWN)["kind"] != "check":
            return at, at
        return (at - took if measured else above.end_ms if above else at), at


def _level(a: list[Step], b: list[Step]) -> list[tuple[Step | None, Step | None]]:
    """Siblings in A's order; what only B has stands before what follows it in B."""
    partner = dict(_matches(a, b))
    taken = set(partner.values())
    alone = deque(at for at in range(len(b)) if at not in taken)
    found: list[tuple[Step | None, Step | None]] = []
    for here, step in enumerate(a):
        there = partner.get(here)
        while there is not None and alone and alone[0] < there:
            found.append((None, b[alone.popleft()]))
        found.append((step, None if there is None else b[there]))
    return [*found, *((None, b[at]) for at in alone)]


def _matches(a: list[Step], b: list[Step]) -> Iterator[Match]:
    tools_a, tools_b = _which(a, tool=True), _which(b, tool=True)
    for left, right in _by_count([a[at].key for at in tools_a], [b[at].key for at in tools_b]):
        yield tools_a[left], tools_b[right]
    others_a, others_b = _which(a, tool=False), _which(b, tool=False)
    for left, right in _in_sequence([a[at].key for at in others_a], [b[at].key for at in others_b]):
        yield others_a[left], others_b[right]


def _which(steps: list[Step], *, tool: bool) -> list[int]:
    return [at for at, step in enumerate(steps) if (step.start["checkpoint"] == "tool_call") is tool]


def _by_count(a: list[Key], b: list[Key]) -> Iterator[Match]:
    """The n-th of a key with the n-th of that key, wherever it stands."""
    places: defaultdict[Key, list[int]] = defaultdict(list)
    for at in reversed(range(len(b))):
        places[b[at]].append(at)
    for at, key in enumerate(a):
        if places[key]:
            yield at, places[key].pop()


def _in_sequence(a: list[Key], b: list[Key]) -> list[Match]:
    """A longest common subsequence, the same one from both sides."""
    if b < a:
        return [(left, right) for right, left in _in_sequence(b, a)]
    head = 0
    while head < min(len(a), len(b)) and a[head] == b[head]:
        head += 1
    tail = 0
    while tail < min(len(a), len(b)) - head and a[-1 - tail] == b[-1 - tail]:
        tail += 1
    middle = _longest(a[head : len(a) - tail], b[head : len(b) - tail])
    ends = [(len(a) - at, len(b) - at) for at in range(tail, 0, -1)]
    return [*((at, at) for at in range(head)), *((left + head, right + head) for left, right in middle), *ends]


def _longest(a: list[Key], b: list[Key]) -> list[Match]:
    if len(a) * len(b) > MOST_COMPARISONS:
        return list(_by_count(a, b))
    # length[i][j]: of the longest one of a[i:] and b[j:]
    length = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in reversed(range(len(a))):
        for j in reversed(range(len(b))):
            same = a[i] == b[j]
            length[i][j] = length[i + 1][j + 1] + 1 if same else max(length[i + 1][j], length[i][j + 1])
    found, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        if a[i] == b[j]:
            found.append((i, j))
            i, j = i + 1, j + 1
        elif length[i + 1][j] >= length[i][j + 1]:
            i += 1
        else:
            j += 1
    return found
