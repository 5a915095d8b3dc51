"""`python -m bench.reading`: what history, a session and analytics cost over a million checkpoints.

A PostgreSQL of its own, with the settings of the embedded one; `manage.py sample_flows` fills it and the
keeper keeps its past hours. Each question is asked as the pages ask it, ORM included, many times and with
other values each time. Prints a table, and writes it with the query plans into docs/performance.md.

`--checkpoints 100000` for a quick look (then nothing is written, unless --write).
"""

import argparse
import itertools
import os
import random
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from omni2 import embedded

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- reading figures -->", "<!-- end of reading figures -->"
GOAL_MS = 300.0
TIMES = 25
PLAN_LINES = 14


@dataclass
class Row:
    """One question, and how long its answers took."""

    name: str
    ms: list[float] = field(default_factory=list)
    cpu_ms: float = 0.0
    queries: int = 0
    rows: int = 0
    plan: list[str] = field(default_factory=list)

    @property
    def p50(self) -> float:
        return statistics.median(self.ms)

    @property
    def p95(self) -> float:
        return sorted(self.ms)[max(0, round(0.95 * len(self.ms)) - 1)]

    @property
    def met(self) -> bool:
        return self.p95 <= GOAL_MS


Ask = Callable[[random.Random], Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=1_000_000)
    parser.add_argument("--write", action="store_true", help="also write docs/performance.md from a smaller run")
    parser.add_argument("--database", help="a filled database to ask instead of one of its own (nothing is changed)")
    options = parser.parse_args()
    os.environ.update(
        SECRET_KEY="only-for-this-benchmark", DJANGO_SETTINGS_MODULE="omni2.settings", REDIS_ENABLED="false"
    )
    if options.database:
        os.environ["DATABASE_URL"] = options.database
        return run(options, fill=False)
    folder = Path(tempfile.mkdtemp(prefix="o2b-"))
    folder.chmod(0o755)
    server = embedded.start_postgres(folder / "pg", folder / "s")
    os.environ |= {"DATABASE_URL": embedded.postgres_url(folder / "s"), "OMNI2_DATA_DIR": str(folder / "data")}
    try:
        return run(options, fill=True)
    finally:
        embedded.stop(server, number=signal.SIGINT)
        shutil.rmtree(folder, ignore_errors=True)


def run(options: argparse.Namespace, *, fill: bool) -> int:
    import django

    django.setup()
    filled = make(options.checkpoints) if fill else "The database was filled before."
    rows = [measure(name, ask) for name, ask in itertools.chain(lists(), sessions(), analyses())]
    table = shown(rows)
    print(table)
    if options.write or options.checkpoints >= 1_000_000:
        write(table, rows, filled)
    return 0 if all(row.met for row in rows) else 1


def make(checkpoints: int) -> str:
    """Fill the database; how long that took, in words."""
    from django.core.management import call_command
    from django.db import connection

    from flows.keeping import keep

    call_command("migrate", verbosity=0)
    began = time.monotonic()
    call_command("sample_flows", checkpoints=checkpoints)
    made_s = time.monotonic() - began
    began, spans = time.monotonic(), 0
    while kept := keep(most=200):
        spans += kept
    kept_s = time.monotonic() - began
    with connection.cursor() as cursor:
        # what autovacuum would have done within a minute
        cursor.execute("VACUUM (ANALYZE) turns, interaction_flows, kept_spans, kept_tallies")
    return (
        f"Made in {made_s:.0f} s ({checkpoints / made_s:,.0f} checkpoints/s, one process, the persister's statement); "
        f"{spans} hours and days kept in {kept_s:.1f} s."
    )


# --- the questions ------------------------------------------------------------------------------------


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
    yield "history: outcomes beside the list", lambda _: history.outcomes(TurnFilters())
    yield (
        "history: outcomes beside the list, of a user",
        lambda chance: history.outcomes(TurnFilters(user_id=chance.choice(users))),
    )
    yield "history: outcomes beside the list, word", lambda _: history.outcomes(TurnFilters(q="invoice"))
    yield "history: what occurs, for the form", lambda _: history.occurring()
    yield "history: exact count", lambda _: history.count(TurnFilters())
    yield "history: exact count, tool", lambda _: history.count(TurnFilters(tool="search"))


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

    by_size = (
        Turn.objects.values("session_id").annotate(n=Count("pk")).order_by("-n").values_list("session_id", flat=True)
    )
    largest, some = by_size[0], list(by_size[100:400])
    users = list(Turn.objects.values_list("user_id", flat=True).distinct()[:500])
    yield "session: one", lambda chance: history.session(chance.choice(some)).rows
    yield "session: the one with most turns", lambda _: history.session(largest).rows
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
        return [analyse(Question(since, now, **filters), [*borders, now])]

    for name, hours in (("24 h", 24), ("7 d", 168), ("30 d", 720)):
        yield f"analytics {name}: everybody", lambda _, hours=hours: ask(hours)
        yield f"analytics {name}: a user", lambda chance, hours=hours: ask(hours, user_id=chance.choice(users))
        yield f"analytics {name}: the busiest user", lambda _, hours=hours: ask(hours, user_id=busiest)
        for model in ("gpt-5.2", "gpt-4.1-legacy"):
            yield f"analytics {name}: model {model}", lambda _, hours=hours, model=model: ask(hours, model=model)
        for tool in ("search", "legacy_lookup"):
            yield f"analytics {name}: tool {tool}", lambda _, hours=hours, tool=tool: ask(hours, tool=tool)
    yield "what is usual", lambda _: usual._asked()


# --- measuring ------------------------------------------------------------------------------------------


def measure(name: str, ask: Ask) -> Row:
    """Ask once to warm up and look at the queries, then TIMES times."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    row, chance = Row(name), random.Random(name)
    with CaptureQueriesContext(connection) as asked:
        answer = ask(chance)
    row.queries = len(asked)
    row.rows = len(answer) if hasattr(answer, "__len__") else 1
    slowest = max(asked.captured_queries, key=lambda query: float(query["time"]))["sql"]
    before_ms = cpu_ms()
    for _ in range(TIMES):
        began = time.perf_counter()
        ask(chance)
        row.ms.append((time.perf_counter() - began) * 1000)
    row.cpu_ms = (cpu_ms() - before_ms) / TIMES
    row.plan = plan_of(slowest)
    print(f"{row.name:50} p50 {row.p50:7.1f}  p95 {row.p95:7.1f} ms{'' if row.met else '  NOT MET'}", file=sys.stderr)
    return row


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


def shown(rows: list[Row]) -> str:
    lines = ["| question | CPU ms | p50 ms | p95 ms | queries | goal ms | met |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        met = "yes" if row.met else "**no**"
        lines.append(
            f"| {row.name} | {row.cpu_ms:.0f} | {row.p50:.0f} | {row.p95:.0f} | {row.queries} | {GOAL_MS:.0f} | {met} |"
        )
    return "\n".join(lines)


def different(rows: list[Row]) -> Iterator[Row]:
    """Of the questions that PostgreSQL answers in the same way, the slowest."""
    kinds: dict[str, Row] = {}  # a plan without its numbers and values → the question
    for row in sorted(rows, key=lambda row: row.p50):
        steps = [line for line in row.plan if "->" in line or not line.startswith(" ")]
        kinds[re.sub(r"\(.*?\)|[\d.]+ ms", "", "\n".join(steps))] = row
    yield from (row for row in rows if row in kinds.values())


def write(table: str, rows: list[Row], filled: str) -> None:
    """Put table and plans between the markers of docs/performance.md."""
    from flows.models import InteractionFlow, Turn

    machine = f"{os.cpu_count()} cores, {datetime.now(UTC):%Y-%m-%d}"
    size = f"{InteractionFlow.objects.count():,} checkpoints of {Turn.objects.count():,} turns"
    head = f"Last run: {size}, {machine}, load {os.getloadavg()[0]:.0f}. {filled}"
    plans = "\n".join(f"{row.name}:\n\n```\n{chr(10).join(row.plan)}\n```\n" for row in different(rows))
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(
        f"{before}{BEGIN}\n{head}\n\n{table}\n\n<details>"
        f"<summary>The plans: each question's slowest query, one of each kind</summary>\n\n{plans}\n</details>\n"
        f"{END}{after}"
    )


if __name__ == "__main__":
    sys.exit(main())
