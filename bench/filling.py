"""A database of many checkpoints within a minute: some are made by `manage.py sample_flows`, the rest are their
copies, at other times and with ids of their own.

A copy is a turn of the same person with the same words, models and tools, some days away at the same hour, in a session
of its own: so what is rare stays as rare, and what is frequent as frequent. Ids are UUIDv7 of the new times, rows lie
in the order of time, as the persister would have written them; indexes and keys are those of the product, made when
the rows are there.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

SAMPLED_CHECKPOINTS = 50_000
SEED = 9
"""One in whose turns the rare tool and the rare model are as frequent as in a million."""

DAYS = 30
PROCESS = "00000000-0000-0000-0000-000000000001"
"""By which all sampled turns say they were served."""

# What a row is called in copy %(c): a UUIDv7 of a time, the rest drawn from its first id.
_ID = """(lpad(to_hex((extract(epoch FROM {at}) * 1000)::bigint), 12, '0')
    || '7' || substr(md5({id}::text || {c}), 1, 3) || '8' || substr(md5({id}::text || {c}), 4, 15))::uuid"""

_SAMPLED = """
CREATE SCHEMA IF NOT EXISTS sampled;
DROP TABLE IF EXISTS sampled.flows, sampled.turns;
CREATE TABLE sampled.flows AS SELECT * FROM interaction_flows;
CREATE TABLE sampled.turns AS SELECT * FROM turns;
CREATE INDEX ON sampled.flows (turn_id);
ANALYZE sampled.flows; ANALYZE sampled.turns;
"""

# Each copy goes around the days: so many further, and at the end begins again.
_COPIES = f"""
DROP TABLE IF EXISTS sampled.copies;
CREATE TABLE sampled.copies AS
SELECT t.turn_id AS old_id, c, later, t.started_at + later AS started_at,
    {_ID.format(at="t.started_at + later", id="t.turn_id", c="c")} AS turn_id
FROM sampled.turns t
CROSS JOIN generate_series(0, %(copies)s - 1) AS c
CROSS JOIN (SELECT min(started_at) AS first FROM sampled.turns) AS f
CROSS JOIN LATERAL (SELECT make_interval(days => (((extract(day FROM t.started_at - first)::int + c * 7) %% {DAYS})
    - extract(day FROM t.started_at - first)::int), secs => c * 0.731) AS later) AS moved
WHERE t.started_at + later < now() - interval '5 minutes';
CREATE INDEX ON sampled.copies (started_at);
ANALYZE sampled.copies
"""

_FLOWS = f"""
INSERT INTO interaction_flows (flow_id, user_id, session_id, checkpoint, parent_id, metadata, created_at, turn_id)
SELECT {_ID.format(at="f.created_at + later", id="f.flow_id", c="c")}, f.user_id,
    md5(f.session_id || c)::uuid::text, f.checkpoint,
    CASE WHEN f.parent_id IS NOT NULL THEN {_ID.format(at="p.created_at + later", id="f.parent_id", c="c")} END,
    f.metadata, f.created_at + later, copies.turn_id
FROM sampled.copies JOIN sampled.flows f ON f.turn_id = old_id
LEFT JOIN sampled.flows p ON p.turn_id = old_id AND p.flow_id = f.parent_id
WHERE copies.started_at >= %(since)s AND copies.started_at < %(until)s
ORDER BY f.created_at + later
"""

_TURN_COLUMNS = """ended_at, duration_ms, outcome, question, model, checkpoints, tool_calls, input_tokens,
    output_tokens, cost_usd, ttft_ms, error, process_id, tags, stage, steps, step_ms"""

_TURNS = f"""
INSERT INTO turns (turn_id, session_id, user_id, started_at, {_TURN_COLUMNS})
SELECT copies.turn_id, md5(t.session_id || c)::uuid::text, t.user_id, copies.started_at,
    {_TURN_COLUMNS.replace("ended_at,", "t.ended_at + later,", 1)}
FROM sampled.copies JOIN sampled.turns t ON t.turn_id = old_id
ORDER BY copies.started_at
"""

# What a process that served them all would have said, and the usage that let them in.
_SAID = f"""
TRUNCATE serving_processes, ledger_entries, turn_usage;
INSERT INTO serving_processes (process_id, name, started_at, seen_at, ended_at, reported_at, given_up)
SELECT '{PROCESS}', 'bench:1', min(started_at), now(), now(), now(), 0 FROM turns;
INSERT INTO ledger_entries (process_id, hour, turns, turns_ended, checkpoints, durable, reported_at, given_up,
    turns_given_up, late)
SELECT '{PROCESS}', date_bin('1 hour', started_at, '2000-01-01Z'), count(*),
    count(*) FILTER (WHERE outcome <> 'abandoned'),
    sum(checkpoints - (outcome = 'abandoned')::int), sum(checkpoints - (outcome = 'abandoned')::int),
    now(), '{{}}', 0, 0
FROM turns GROUP BY 2;
INSERT INTO turn_usage (turn_id, user_id, session_id, day, input_tokens, output_tokens, cost_usd, started_at, ended_at,
    process_id)
SELECT turn_id, users.id, session_id::uuid, started_at::date, input_tokens, output_tokens, coalesce(cost_usd, 0),
    started_at, ended_at, '{PROCESS}'
FROM turns JOIN users ON email = turns.user_id WHERE stage > 2
"""

TABLES = ("interaction_flows", "turns")


@dataclass(frozen=True, slots=True)
class Filled:
    """How many there are, and how long which part took, in seconds."""

    checkpoints: int
    turns: int
    copied_s: float
    kept_s: float
    spans: int


def run_sql(sql: str, values: Any = None) -> list[tuple[Any, ...]]:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        while cursor.nextset():
            pass
        return cursor.fetchall() if cursor.description else []


def sample(checkpoints: int = 0) -> float:
    """Make what is copied later; how long it took."""
    from django.core.management import call_command

    began = time.monotonic()
    call_command("sample_flows", checkpoints=checkpoints or SAMPLED_CHECKPOINTS, seed=SEED, verbosity=0)
    run_sql(_SAMPLED)
    return time.monotonic() - began


def fill(checkpoints: int) -> Filled:
    """Replace all turns by so many checkpoints, and keep the figures of their past hours."""
    (sampled,) = run_sql("SELECT count(*) FROM sampled.flows")[0]
    began = time.monotonic()
    run_sql("TRUNCATE interaction_flows, turns, kept_spans, kept_tallies, prunings")
    run_sql(_COPIES, {"copies": max(1, round(checkpoints / sampled))})
    with without_indexes():
        for day in run_sql(
            "SELECT DISTINCT date_bin('1 day', started_at, '2000-01-01Z') FROM sampled.copies ORDER BY 1"
        ):
            (until,) = run_sql("SELECT %s::timestamptz + interval '1 day'", day)[0]
            run_sql(_FLOWS, {"since": day[0], "until": until})
        run_sql(_TURNS)
    run_sql(_SAID)
    run_sql("VACUUM (ANALYZE) interaction_flows, turns, turn_usage, ledger_entries, serving_processes")
    copied_s = time.monotonic() - began
    spans, kept_s = keep_all()
    (rows,), (turns,) = run_sql("SELECT count(*) FROM interaction_flows UNION ALL SELECT count(*) FROM turns")
    return Filled(rows, turns, copied_s, kept_s, spans)


def keep_all() -> tuple[int, float]:
    """As the persister does within a quarter of an hour."""
    from flows.keeping import keep

    began, spans = time.monotonic(), 0
    while kept := keep(most=200):
        spans += kept
    run_sql("VACUUM (ANALYZE) kept_spans, kept_tallies")
    return spans, time.monotonic() - began


@contextmanager
def without_indexes() -> Iterator[None]:
    """Their definitions are the product's own, read from the catalogue."""
    keys = run_sql(
        "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE conrelid = ANY(%s::regclass[]) AND contype IN ('p', 'f', 'u') ORDER BY contype <> 'f'",
        [list(TABLES)],
    )
    for table, name, _ in keys:
        run_sql(f'ALTER TABLE {table} DROP CONSTRAINT "{name}"')
    indexes = run_sql(
        "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index"
        " WHERE indrelid = ANY(%s::regclass[])",
        [list(TABLES)],
    )
    for name, _ in indexes:
        run_sql(f"DROP INDEX {name}")
    try:
        yield
    finally:
        run_sql("SET maintenance_work_mem = '256MB'")
        for _, definition in indexes:
            run_sql(definition)
        for table, name, definition in reversed(keys):
            run_sql(f'ALTER TABLE {table} ADD CONSTRAINT "{name}" {definition}')
