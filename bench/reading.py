"""What history, a session, analytics and the ledger cost over a million checkpoints (ten million in a full run).

A PostgreSQL of its own, with the settings of the embedded one, filled by `bench.filling`. Each question is asked as the
pages ask it, ORM included, many times and with other values each time; the floor beside it is the rows of its answer
read by their primary key, in the same rounds. Then the same for a tenth of the rows: what a page costs must not
grow with the table.
"""

import json
import os
import random
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bench import filling
from bench.section import Plan, WrongResult
from bench.servers import own_servers
from bench.sides import AT_MOST, Row, percentile
from omni2 import embedded

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
MARKS = {
    "short": ("<!-- reading figures -->", "<!-- end of reading figures -->"),
    "full": ("<!-- full reading figures -->", "<!-- end of full reading figures -->"),
}
TIMES = 15
LEDGER_TIMES = 4
PLAN_LINES = 14
GROWN = 10
"""How many times as many rows the small measurement has."""

GROWTH_GOAL = 2.0
"""Ten times the rows may make the same page cost so many times as much: indexes are a level deeper, caches colder."""

COMPARED = {
    "list": ("history: newest", "history: of a user", "history: outcome failed", "history: sort -duration"),
    "session": ("session: one",),
    "figures": tuple(f"analytics {name}: everybody" for name in ("24 h", "7 d", "30 d")),
}
"""The questions whose cost is compared with that over a tenth of the rows."""

# What stands in the big table: the slowest question of each kind.
KINDS = {
    "history list": "history: ",
    "session tree": "session: ",
    "checkpoints of a user": "flows of a user",
    "analytics 24 h": "analytics 24 h: ",
    "analytics 7 d": "analytics 7 d: ",
    "analytics 30 d": "analytics 30 d: ",
    "what is usual": "what is usual",
}
LEDGERS = ("ledger 24 h", "ledger 7 d", "ledger 30 d")


@dataclass
class Measured:
    """One question, and how long its answers took; beside each, its rows by their keys."""

    name: str
    ms: list[float] = field(default_factory=list)
    floor_ms: list[float] = field(default_factory=list)
    cpu_ms: float = 0.0
    queries: int = 0
    plan: list[str] = field(default_factory=list)

    @property
    def p50(self) -> float:
        return statistics.median(self.ms)

    @property
    def p95(self) -> float:
        return percentile(self.ms, 0.95)

    @property
    def floor(self) -> float | None:
        return statistics.median(self.floor_ms) if self.floor_ms else None


Ask = Callable[[random.Random], Any]
Floor = Callable[[Any], Callable[[], Any] | None]


def run(plan: Plan) -> list[Row]:
    """Row 9. Fills the database unless a full run has left a filled one; raises WrongResult when the filled one
    does not add up, or kept figures are not what the turns say."""
    os.environ["REDIS_ENABLED"] = "false"
    checkpoints, goal_ms = (10_000_000, 300.0) if plan.full else (1_000_000, 100.0)
    with _database(plan) as folder:
        small, filled = _filled(folder, checkpoints)
        measured = [measure(name, ask, floor) for name, ask, floor in questions()]
        check()
        write("full" if plan.full else "short", measured, filled, goal_ms)
    return [*_kinds(measured, goal_ms), *_growth(small, measured, checkpoints)]


@contextmanager
def _database(plan: Plan) -> Iterator[Path | None]:
    """A PostgreSQL that is gone afterwards; in a full run one that stays, with its folder."""
    if not plan.full or plan.folder is None:
        with own_servers(valkey=False):
            yield None
        return
    folder = plan.folder / "reading"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(
        SECRET_KEY="only-for-this-benchmark",
        DJANGO_SETTINGS_MODULE="omni2.settings",
        OMNI2_DATA_DIR=str(folder / "data"),
    )
    short = Path(tempfile.mkdtemp(prefix="o2b-"))
    short.chmod(0o755)
    server = embedded.start_postgres(folder / "pg", short / "s")
    os.environ["DATABASE_URL"] = embedded.postgres_url(short / "s")
    try:
        import django
        from django.core.management import call_command

        django.setup()
        call_command("migrate", verbosity=0)
        yield folder
    finally:
        embedded.stop(server, number=signal.SIGINT)
        shutil.rmtree(short, ignore_errors=True)


def _filled(folder: Path | None, checkpoints: int) -> tuple[list[Measured], str]:
    """Fill with a tenth and measure what is compared, then with all; what was done before is not done again."""
    known = folder / "filled.json" if folder else None
    if known and known.exists():
        found = json.loads(known.read_text())
        return [Measured(**each) for each in found["small"]], found["said"]
    sampled_s = filling.sample()
    filling.fill(checkpoints // GROWN)
    wanted = {name for names in COMPARED.values() for name in names}
    small = [measure(name, ask, floor) for name, ask, floor in questions() if name in wanted]
    filled = filling.fill(checkpoints)
    if abs(filled.checkpoints / checkpoints - 1) > 0.05:
        raise WrongResult(f"{filled.checkpoints:,} checkpoints instead of {checkpoints:,}")
    said = (
        f"{filled.checkpoints:,} checkpoints of {filled.turns:,} turns. Made in {sampled_s + filled.copied_s:.0f} s; "
        f"{filled.spans:,} hours and days kept in {filled.kept_s:.0f} s."
    )
    if known:
        known.write_text(json.dumps({"said": said, "small": [asdict(each) for each in small]}))
    return small, said


def check() -> None:
    """What is stored adds up, and the kept figures are what the turns say."""
    from flows import tallies
    from flows.judging import judge
    from flows.ledger import read
    from flows.tallies import Chosen

    now = datetime.now(UTC)
    account = judge(read(now - timedelta(days=filling.DAYS), now))
    if not account.adds_up or not account.total.stored:
        raise WrongResult(f"the ledger does not add up: {[(one.kind, one.count) for one in account.problems][:5]}")
    for hours in (30, 24 * 20):
        times = now - timedelta(hours=hours), now
        kept, told = (
            {(each.figure, each.key, each.key2, each.key3): (each.count, each.times) for each in found}
            for found in (tallies.of_turns(*times, Chosen()), tallies.read(*times, Chosen()))
        )
        if kept != told:
            raise WrongResult("kept figures are not what the turns say")


def _kinds(measured: Sequence[Measured], goal_ms: float) -> Iterator[Row]:
    for kind, beginning in KINDS.items():
        of_kind = [each for each in measured if each.name.startswith(beginning)]
        worst = max(of_kind, key=lambda each: each.p95)
        note = f"p95 of the slowest of {len(of_kind)} questions ({worst.name}); p50 {worst.p50:.0f} ms"
        yield _row(kind, worst, goal_ms, note)
    for name in LEDGERS:
        (found,) = [each for each in measured if each.name == name]
        yield _row(name, found, None, f"p95; p50 {found.p50:.0f} ms")


def _row(name: str, found: Measured, goal_ms: float | None, note: str) -> Row:
    return Row(
        number=9, name=name, ours=found.p95, unit="ms", goal=goal_ms, sense=AT_MOST, other=found.floor,
        against="the rows of the answer by their primary key, p50" if found.floor is not None else "", note=note,
    )  # fmt: skip


def _growth(small: Sequence[Measured], measured: Sequence[Measured], checkpoints: int) -> Iterator[Row]:
    before, after = ({each.name: each for each in found} for found in (small, measured))
    for kind, names in COMPARED.items():
        ratios = sorted(after[name].p50 / before[name].p50 for name in names)
        cpu = statistics.median(after[name].cpu_ms / max(before[name].cpu_ms, 0.1) for name in names)
        yield Row(
            number=9, name=f"{kind}: growth", unit="ms", goal=GROWTH_GOAL, sense=AT_MOST,
            ours=statistics.median(after[name].p50 for name in names),
            other=statistics.median(before[name].p50 for name in names),
            against=f"the same over {checkpoints // GROWN:,} checkpoints", ratio=statistics.median(ratios),
            ratio_of="ours / theirs", spread=f"{ratios[0]:.3g}…{ratios[-1]:.3g}",
            note=f"p50 over {checkpoints:,} checkpoints; CPU grew by {cpu:.2g}",
        )  # fmt: skip


# --- the questions ------------------------------------------------------------------------------------


def questions() -> Iterator[tuple[str, Ask, Floor]]:
    for name, ask in lists():
        yield name, ask, rows_by_key
    for name, ask in sessions():
        yield name, ask, session_by_key
    for name, ask in analyses():
        yield name, ask, figures_by_key
    yield from ((name, ask, lambda _: None) for name, ask in ledgers())


def rows_by_key(answer: Any) -> Callable[[], Any] | None:
    """The same rows again, by their primary key."""
    from flows.models import Turn

    if not isinstance(answer, list) or not answer or not isinstance(answer[0], Turn):
        return None
    keys = [row.pk for row in answer]
    return lambda: list(Turn.objects.filter(pk__in=keys).defer("tags", "steps", "step_ms"))


def session_by_key(answer: Any) -> Callable[[], Any] | None:
    from flows.history import _readable, _stored
    from flows.models import Turn

    rows, turns = (answer.rows, answer.turns) if hasattr(answer, "turns") else (answer, [])
    if not rows:
        return None
    keys, turn_keys = [row.pk for row in rows], [each.pk for each in turns]
    return lambda: (list(Turn.objects.filter(pk__in=turn_keys)), _readable(_stored().filter(pk__in=keys)))


def figures_by_key(answer: Any) -> Callable[[], Any] | None:
    """The kept rows that an answer can be made of."""
    from django.db import connection

    from flows.models import KeptTally
    from flows.tallies import Chosen, _kept_within

    if not isinstance(answer, list):
        return None
    asked = answer[0]
    spans = [each.id for each in _kept_within(asked.since, asked.until, Chosen(asked.user_id, asked.model, asked.tool))]
    keys = list(KeptTally.objects.filter(span__in=spans).values_list("pk", flat=True))

    def read() -> Any:
        with connection.cursor() as cursor:
            cursor.execute("SELECT * FROM kept_tallies WHERE id = ANY(%s)", [keys])
            return cursor.fetchall()

    return read if keys else None


def lists() -> Iterator[tuple[str, Ask]]:
    """The history list as the page asks for it: a page of 50, and the counts beside it."""
    from flows import history
    from flows.history import SORTS, TurnFilters
    from flows.models import STAGES, Turn

    users = list(Turn.objects.values_list("user_id", flat=True).distinct()[:500])
    sessions = list(Turn.objects.values_list("session_id", flat=True)[:500])
    busiest, rarest = ends(users)
    now = datetime.now(UTC)

    def page(sort: str = "-started", **filters: Any) -> Any:
        return history.turns(TurnFilters(**filters), sort=sort, limit=50).rows

    def beside(**filters: Any) -> Any:
        asked = TurnFilters(**filters)
        return history.outcomes(replace(asked, since=history.counted_since(asked)))

    yield "history: newest", lambda _: page()
    yield "history: of a user", lambda chance: page(user_id=chance.choice(users))
    yield "history: of the busiest user", lambda _: page(user_id=busiest)
    yield "history: of the quietest user", lambda _: page(user_id=rarest)
    yield "history: of a session", lambda chance: page(session_id=chance.choice(sessions))
    for outcome in ("completed", "refused", "failed", "abandoned", "stopped", "running"):
        yield f"history: outcome {outcome}", lambda _, outcome=outcome: page(outcome=outcome)
    for model in ("gpt-5.2", "gpt-4.1-legacy", "no such model"):
        yield f"history: model {model}", lambda _, model=model: page(model=model)
    for tool in ("search", "legacy_lookup", "no such tool"):
        yield f"history: tool {tool}", lambda _, tool=tool: page(tool=tool)
    yield "history: checkpoint tool_result, status error", lambda _: page(checkpoint="tool_result", status="error")
    yield "history: checkpoint never seen", lambda _: page(checkpoint="never_seen")
    yield "history: any step failed", lambda _: page(status="failed")
    for error in ("usage_limit", "internal_error", "no_such_code"):
        yield f"history: error {error}", lambda _, error=error: page(error=error)
    for stage in STAGES.values():
        yield f"history: stage {stage}", lambda _, stage=stage: page(stage=stage)
    yield "history: last 24 hours", lambda _: page(since=now - timedelta(hours=24))
    yield "history: a week in the past", lambda chance: page(**week(now, chance))
    for slower_ms in (5_000, 60_000, 10_000_000):
        yield f"history: slower than {slower_ms} ms", lambda _, ms=slower_ms: page(slower_ms=ms)
    for word in ("invoice", "Tokyo", "number 4711", "zymurgy", "ü", "a"):
        yield f"history: word {word!r}", lambda _, word=word: page(q=word)
    yield "history: word 'ü', sort -duration", lambda _: page("-duration", q="ü")
    yield (
        "history: word, tool, outcome and week",
        lambda chance: page(q="contract", tool="search", outcome="failed", **week(now, chance)),
    )
    yield "history: rare tool of one user", lambda _: page(tool="legacy_lookup", user_id=busiest)
    for sort in [sign + name for name in SORTS for sign in ("-", "")]:
        yield f"history: sort {sort}", lambda _, sort=sort: page(sort=sort)
    yield "history: sort -tokens, refused", lambda _: page(sort="-tokens", outcome="refused")
    yield "history: sort -duration, of a user", lambda chance: page(sort="-duration", user_id=chance.choice(users))
    yield "history: sort -cost, last 24 hours", lambda _: page(sort="-cost", since=now - timedelta(hours=24))
    far = cursor_of_page(1000)
    yield "history: page 1,000", lambda _: history.turns(TurnFilters(), limit=50, cursor=far).rows
    yield "history: outcomes beside the list", lambda _: beside()
    yield (
        "history: outcomes beside the list, of a user",
        lambda chance: beside(user_id=chance.choice(users)),
    )
    yield "history: outcomes beside the list, word", lambda _: beside(q="invoice")
    yield "history: outcomes beside the list, word 'ü'", lambda _: beside(q="ü")
    yield "history: outcomes beside the list, word 'how'", lambda _: beside(q="how")
    yield "history: what occurs, for the form", lambda _: history.occurring()


def ends(users: list[str]) -> tuple[str, str]:
    """Who asked most, and who least."""
    from django.db.models import Count

    from flows.models import Turn

    order = list(
        Turn.objects.values("user_id").annotate(n=Count("pk")).order_by("-n").values_list("user_id", flat=True)
    )
    assert users
    return order[0], order[-1]


def week(now: datetime, chance: random.Random) -> dict[str, datetime]:
    since = now - timedelta(days=chance.uniform(7, 30))
    return {"since": since, "until": since + timedelta(days=7)}


def cursor_of_page(number: int) -> str | None:
    """The cursor that leads to this page of 50, or to the last one before the end."""
    from flows import history
    from flows.history import TurnFilters

    cursor = None
    for _ in range((number - 1) // 10):
        found = history.turns(TurnFilters(), limit=500, cursor=cursor)
        if found.next is None:
            break
        cursor = found.next
    return cursor


def sessions() -> Iterator[tuple[str, Ask]]:
    """The session page's data, and a user's checkpoints as the API gives them."""
    from django.db.models import Count

    from flows import history
    from flows.history import FlowFilters
    from flows.models import Turn
    from flows.tree import nest

    by_size = (
        Turn.objects.values("session_id").annotate(n=Count("pk")).order_by("-n").values_list("session_id", flat=True)
    )
    largest, some = by_size[0], list(by_size[100:400])
    users = list(Turn.objects.values_list("user_id", flat=True).distinct()[:500])

    def whole(session_id: str) -> Any:
        found = history.session(session_id)
        nest([history.as_wire(row) for row in found.rows])
        return found

    yield "session: one", lambda chance: whole(chance.choice(some))
    yield "session: the one with most turns", lambda _: whole(largest)
    yield "flows of a user, 50", lambda chance: history.flows_of(chance.choice(users), FlowFilters()).rows
    yield (
        "flows of a user, never seen",
        lambda chance: history.flows_of(chance.choice(users), FlowFilters(checkpoint="never_seen")).rows,
    )


def analyses() -> Iterator[tuple[str, Ask]]:
    """The analytics page's question over its usual times, everybody's and filtered; and what is usual."""
    from flows import usual
    from flows.analytics import Question, analyse
    from flows.models import Turn

    users = list(Turn.objects.values_list("user_id", flat=True).distinct()[:500])
    busiest, _ = ends(users)
    now = datetime.now(UTC)

    def ask(hours: int, **filters: Any) -> Any:
        slot = timedelta(hours=1 if hours <= 48 else 24)
        since = (now - timedelta(hours=hours)).replace(minute=0, second=0, microsecond=0)
        borders = [since + slot * number for number in range(int((now - since) / slot) + 1)]
        question = Question(since, now, **filters)
        analyse(question, [*borders, now])
        return [question]

    for name, hours in (("24 h", 24), ("7 d", 168), ("30 d", 720)):
        yield f"analytics {name}: everybody", lambda _, hours=hours: ask(hours)
        yield f"analytics {name}: a user", lambda chance, hours=hours: ask(hours, user_id=chance.choice(users))
        yield f"analytics {name}: the busiest user", lambda _, hours=hours: ask(hours, user_id=busiest)
        for model in ("gpt-5.2", "gpt-4.1-legacy"):
            yield f"analytics {name}: model {model}", lambda _, hours=hours, model=model: ask(hours, model=model)
        for tool in ("search", "legacy_lookup"):
            yield f"analytics {name}: tool {tool}", lambda _, hours=hours, tool=tool: ask(hours, tool=tool)
    yield "what is usual", lambda _: usual._asked()


def ledgers() -> Iterator[tuple[str, Ask]]:
    """The account of the ledger page."""
    from flows.judging import judge
    from flows.ledger import read

    def account(hours: int) -> Any:
        now = datetime.now(UTC)
        return judge(read(now - timedelta(hours=hours), now))

    for name, hours in zip(LEDGERS, (24, 168, 720), strict=True):
        yield name, lambda _, hours=hours: account(hours)


# --- measuring ------------------------------------------------------------------------------------------


def measure(name: str, ask: Ask, floor: Floor) -> Measured:
    """Ask once to warm up and look at the queries, then many times, each time beside the floor."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    found, chance = Measured(name), random.Random(name)
    with CaptureQueriesContext(connection) as asked:
        by_key = floor(ask(chance))
    found.queries = len(asked)
    slowest = max(asked.captured_queries, key=lambda query: float(query["time"]))["sql"]
    spent_ms = 0.0
    times = LEDGER_TIMES if name in LEDGERS else TIMES
    for _ in range(times):
        before_ms, began = cpu_ms(), time.perf_counter()
        answer = ask(chance)
        found.ms.append((time.perf_counter() - began) * 1000)
        spent_ms += cpu_ms() - before_ms
        by_key = floor(answer)
        if by_key is not None:
            by_key()  # what was not in memory yet
            began = time.perf_counter()
            by_key()
            found.floor_ms.append((time.perf_counter() - began) * 1000)
    found.cpu_ms = spent_ms / times
    if found.p95 > 50:
        found.plan = plan_of(slowest)
    print(f"{found.name:50} p50 {found.p50:7.1f}  p95 {found.p95:7.1f} ms", file=sys.stderr)
    return found


def cpu_ms() -> float:
    """CPU so far of this process and of its PostgreSQL backend (without parallel workers, and without the
    backend where /proc is not to be read): the figure that other work on the machine moves least."""
    from django.db import connection

    connection.ensure_connection()
    backend = Path(f"/proc/{connection.connection.info.backend_pid}/schedstat")
    spent_ns = int(backend.read_text().split()[0]) if backend.exists() else 0
    return time.process_time() * 1000 + spent_ns / 1e6


def plan_of(sql: str) -> list[str]:
    """EXPLAIN (ANALYZE, BUFFERS), shortened to what says where the time goes."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, COSTS OFF) " + sql)
        lines = [line for (line,) in cursor.fetchall()]
    wanted = re.compile(r"->|^\w|Index Cond|Filter:|Rows Removed|Sort Key|Execution Time|Heap Fetches")
    found = [re.sub(r"\s*\(never executed\)", "", line) for line in lines if wanted.search(line)]
    found = [line if len(line) <= 130 else line[:127] + "…" for line in found if "Planning" not in line]
    return found if len(found) <= PLAN_LINES else [*found[: PLAN_LINES - 1], "…", found[-1]]


def shown(rows: Sequence[Measured], goal_ms: float) -> str:
    lines = [
        "| question | CPU ms | p50 ms | p95 ms | its rows by key, p50 ms | queries | goal ms | met |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        goal = "" if row.name in LEDGERS else f"{goal_ms:.0f}"
        met = "" if not goal else "yes" if row.p95 <= goal_ms else "**no**"
        floor = "" if row.floor is None else f"{row.floor:.1f}"
        figures = f"{row.cpu_ms:.0f} | {row.p50:.0f} | {row.p95:.0f} | {floor} | {row.queries}"
        lines.append(f"| {row.name} | {figures} | {goal} | {met} |")
    return "\n".join(lines)


def write(kind: str, rows: Sequence[Measured], filled: str, goal_ms: float) -> None:
    """Put the table, and the plans of what missed its goal, between the marks of docs/performance.md."""
    begin, end = MARKS[kind]
    machine = f"{os.cpu_count()} cores, {datetime.now(UTC):%Y-%m-%d}, load {os.getloadavg()[0]:.0f}"
    late = [row for row in rows if row.p95 > goal_ms and row.name not in LEDGERS]
    plans = [f"{row.name}:\n\n```\n{chr(10).join(row.plan)}\n```\n" for row in late]
    folded = ["<details><summary>The plans of what missed its goal</summary>\n", *plans, "</details>"] if late else []
    text = "\n".join([begin, f"Last run: {machine}. {filled}", "", shown(rows, goal_ms), "", *folded, end])
    page = PAGE.read_text()
    if begin not in page:
        page = page.replace(MARKS["short"][1], f"{MARKS['short'][1]}\n\n{begin}{end}", 1)
    before, _, rest = page.partition(begin)
    PAGE.write_text(before + text + rest.partition(end)[2])
