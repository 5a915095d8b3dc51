"""store(): checkpoints become rows, and their turns' summaries follow, in one statement.

Used by the persister, and by the flusher while Redis is away: storing twice is storing once.
"""

from collections.abc import Sequence

import psycopg
from django.db import Error, connection

# What the summaries read of a checkpoint. Numbers are bounded to what their columns take; money is rounded as its
# column rounds, so that the same rows give the same sum in whatever portions they come.
_FACTS = """checkpoint, metadata, created_at,
        left(metadata ->> 'status', 50) AS status,
        CASE WHEN checkpoint IN ('tool_call', 'tool_result') THEN left(metadata ->> 'tool', 200) END AS tool,
        coalesce(metadata ->> 'status' IN ('failed', 'error'), false) AS failed,
        CASE WHEN jsonb_typeof(metadata -> 'input_tokens') = 'number' THEN least(greatest((metadata ->> 'input_tokens')::numeric, 0), 1e15)::bigint END AS input_tokens,
        CASE WHEN jsonb_typeof(metadata -> 'output_tokens') = 'number' THEN least(greatest((metadata ->> 'output_tokens')::numeric, 0), 1e15)::bigint END AS output_tokens,
        CASE WHEN jsonb_typeof(metadata -> 'cost_usd') = 'number' THEN round(least(greatest((metadata ->> 'cost_usd')::numeric, 0), 99999), 8) END AS cost_usd,
        CASE WHEN jsonb_typeof(metadata -> 'duration_ms') = 'number' THEN least(greatest((metadata ->> 'duration_ms')::numeric, 0), 1e15)::float8 END AS duration_ms,
        CASE WHEN jsonb_typeof(metadata -> 'ttft_ms') = 'number' THEN least(greatest((metadata ->> 'ttft_ms')::numeric, 0), 1e15)::float8 END AS ttft_ms"""
# What of a turn hangs on the order of its checkpoints. They are nearly always stored in it; where two portions
# differ, which one is right is read from all of the turn's rows.
_MODEL = """left((array_agg(metadata ->> 'model' ORDER BY created_at DESC)
            FILTER (WHERE checkpoint = 'llm_thinking' AND metadata ->> 'model' IS NOT NULL))[1], 200)"""
# the turn's own first token, where the turn says it; else the first round's
_FIRST_MS = """coalesce(max(ttft_ms) FILTER (WHERE checkpoint = 'flow_end'),
            (array_agg(ttft_ms ORDER BY created_at) FILTER (WHERE checkpoint = 'llm_complete' AND ttft_ms IS NOT NULL))[1])"""
# never the reason of a block: that is one admin's word for the others, and the user reads this
_WHY_NOT = "coalesce(metadata ->> 'code', CASE checkpoint WHEN 'block_check' THEN 'user_blocked' ELSE metadata ->> 'reason' END)"
_ERROR = f"""coalesce((array_agg(metadata ->> 'code' ORDER BY created_at DESC)
                FILTER (WHERE checkpoint = 'error' AND metadata ->> 'code' IS NOT NULL))[1],
            (array_agg({_WHY_NOT} ORDER BY created_at)
                FILTER (WHERE checkpoint LIKE '%%\\_check' AND metadata ->> 'status' = 'failed' AND {_WHY_NOT} IS NOT NULL))[1])"""
# Of turn t: what was stored before this statement, and what it adds.
_TOLD = """(SELECT {facts} FROM (
                SELECT checkpoint, metadata, created_at FROM interaction_flows f WHERE f.turn_id = t.turn_id
                UNION ALL SELECT checkpoint, metadata, created_at FROM added WHERE added.turn_id = t.turn_id) AS both_of_it) AS told"""

# A row that is there already (by its key, or a second flow_end of a turn) is left out, and only
# rows that were new count towards the summary: so a repeated delivery changes nothing.
# One jsonb parameter for all rows: a child may stand before its parent in it, since the immediate
# foreign key is checked at the end of the statement.
_STATEMENT = """
WITH incoming AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset(%s::jsonb) AS r(
        flow_id uuid, user_id text, session_id text, turn_id uuid, checkpoint text, parent_id uuid, metadata jsonb, created_at timestamptz)
), added AS (
    INSERT INTO interaction_flows (flow_id, user_id, session_id, turn_id, checkpoint, parent_id, metadata, created_at)
    SELECT flow_id, user_id, session_id, turn_id, checkpoint, parent_id, metadata, created_at FROM incoming
    -- always in the same order, so that two writers of the same rows cannot wait for each other in a circle
    ORDER BY flow_id
    ON CONFLICT DO NOTHING
    RETURNING flow_id, turn_id, user_id, session_id, checkpoint, metadata, created_at
), facts AS MATERIALIZED (
    SELECT turn_id, user_id, session_id, {facts}
    FROM added WHERE turn_id IS NOT NULL
), summed AS (
    INSERT INTO turns AS t (turn_id, session_id, user_id, started_at, ended_at, duration_ms, outcome, question, model,
        checkpoints, tool_calls, input_tokens, output_tokens, cost_usd, ttft_ms, error, process_id,
        tags, stage, steps, step_ms)
    SELECT turn_id, min(session_id), min(user_id), min(created_at),
        max(created_at) FILTER (WHERE checkpoint = 'flow_end'),
        max(duration_ms) FILTER (WHERE checkpoint = 'flow_end'),
        left(max(metadata ->> 'outcome') FILTER (WHERE checkpoint = 'flow_end'), 20),
        coalesce(max(metadata ->> 'question') FILTER (WHERE checkpoint = 'auth_check'), ''),
        {model},
        count(*), count(*) FILTER (WHERE checkpoint = 'tool_call'),
        coalesce(sum(input_tokens) FILTER (WHERE checkpoint = 'llm_complete'), 0),
        coalesce(sum(output_tokens) FILTER (WHERE checkpoint = 'llm_complete'), 0),
        sum(cost_usd) FILTER (WHERE checkpoint = 'llm_complete'),
        {first_ms},
        {error},
        max(CASE WHEN metadata ->> 'process' ~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' THEN metadata ->> 'process' END)
            FILTER (WHERE checkpoint = 'auth_check')::uuid,
        -- as flows.models.tag() and tool_tag() spell them
        array_agg(DISTINCT 'a' || status) FILTER (WHERE status IS NOT NULL)
            || array_agg(DISTINCT 'c' || checkpoint)
            || array_agg(DISTINCT 's' || checkpoint || '=' || status) FILTER (WHERE status IS NOT NULL)
            || array_agg(DISTINCT 't' || tool) FILTER (WHERE checkpoint = 'tool_call' AND tool IS NOT NULL),
        coalesce(max(CASE checkpoint
            WHEN 'auth_check' THEN CASE status WHEN 'passed' THEN 1 END
            WHEN 'block_check' THEN CASE status WHEN 'passed' THEN 2 END
            WHEN 'usage_check' THEN CASE status WHEN 'passed' THEN 3 END
            WHEN 'llm_thinking' THEN 4
            WHEN 'llm_complete' THEN CASE WHEN ttft_ms IS NOT NULL THEN 5 END
            WHEN 'flow_end' THEN CASE WHEN metadata ->> 'outcome' = 'completed' THEN 6 WHEN ttft_ms IS NOT NULL THEN 5 END
        END), 0),
        coalesce(array_agg(step) FILTER (WHERE step IS NOT NULL), '{}'),
        coalesce(array_agg(duration_ms::real) FILTER (WHERE step IS NOT NULL), '{}')
    -- calls of a tool (c), what they gave (r; R: failed), and other steps that were measured or failed (s; S)
    FROM facts CROSS JOIN LATERAL (SELECT CASE
        WHEN checkpoint = 'tool_call' THEN 'c' || coalesce(tool, '')
        WHEN checkpoint = 'tool_result' THEN CASE WHEN failed THEN 'R' ELSE 'r' END || coalesce(tool, '')
        WHEN checkpoint <> 'flow_end' AND (failed OR duration_ms IS NOT NULL) THEN CASE WHEN failed THEN 'S' ELSE 's' END || checkpoint
    END AS step) AS named
    GROUP BY turn_id
    -- here too: always in the same order
    ORDER BY turn_id
    ON CONFLICT (turn_id) DO UPDATE SET
        started_at = least(t.started_at, EXCLUDED.started_at),
        ended_at = coalesce(t.ended_at, EXCLUDED.ended_at),
        duration_ms = coalesce(t.duration_ms, EXCLUDED.duration_ms),
        outcome = coalesce(t.outcome, EXCLUDED.outcome),
        question = CASE WHEN t.question = '' THEN EXCLUDED.question ELSE t.question END,
        model = CASE WHEN EXCLUDED.model IS NULL OR t.model = EXCLUDED.model THEN t.model
            WHEN t.model IS NULL THEN EXCLUDED.model ELSE (SELECT {model} FROM {told}) END,
        checkpoints = t.checkpoints + EXCLUDED.checkpoints,
        tool_calls = t.tool_calls + EXCLUDED.tool_calls,
        input_tokens = t.input_tokens + EXCLUDED.input_tokens,
        output_tokens = t.output_tokens + EXCLUDED.output_tokens,
        cost_usd = CASE WHEN EXCLUDED.cost_usd IS NULL THEN t.cost_usd ELSE coalesce(t.cost_usd, 0) + EXCLUDED.cost_usd END,
        ttft_ms = CASE WHEN EXCLUDED.ttft_ms IS NULL OR t.ttft_ms = EXCLUDED.ttft_ms THEN t.ttft_ms
            WHEN t.ttft_ms IS NULL THEN EXCLUDED.ttft_ms ELSE (SELECT {first_ms} FROM {told}) END,
        error = CASE WHEN EXCLUDED.error IS NULL OR t.error = EXCLUDED.error THEN t.error
            WHEN t.error IS NULL THEN EXCLUDED.error ELSE (SELECT {error} FROM {told}) END,
        process_id = coalesce(t.process_id, EXCLUDED.process_id),
        -- What brings nothing new leaves the column as it is, without even unpacking it: a turn of
        -- 5,000 checkpoints may come in as many batches.
        tags = CASE WHEN t.tags @> EXCLUDED.tags THEN t.tags
            ELSE t.tags || ARRAY(SELECT new FROM unnest(EXCLUDED.tags) AS new WHERE new <> ALL (t.tags)) END,
        stage = greatest(t.stage, EXCLUDED.stage),
        steps = CASE WHEN EXCLUDED.steps = '{}' THEN t.steps ELSE t.steps || EXCLUDED.steps END,
        step_ms = CASE WHEN EXCLUDED.steps = '{}' THEN t.step_ms ELSE t.step_ms || EXCLUDED.step_ms END
)
SELECT count(*) FROM added
"""
_STORE = (
    _STATEMENT.replace("{told}", _TOLD)
    .replace("{facts}", _FACTS)
    .replace("{model}", _MODEL)
    .replace("{first_ms}", _FIRST_MS)
    .replace("{error}", _ERROR)
)


def _array(documents: Sequence[bytes]) -> str:
    return (b"[" + b",".join(documents) + b"]").decode()


# SQLSTATE classes that speak of the data and not of the server: cardinality, data, integrity,
# program limits (JSON nested too deep). Sent again, they fail again.
REFUSALS = ("21", "22", "23", "54")


def is_refusal(problem: Error) -> bool:
    """Whether PostgreSQL refused the data itself; otherwise it is away or busy, and one tries again."""
    state = getattr(problem.__cause__, "sqlstate", None) or ""
    return state[:2] in REFUSALS


def store(documents: Sequence[bytes]) -> int:
    """Store checkpoint documents; returns how many were new.

    One statement, one round trip, idempotent; the turns' summaries are updated from the new rows in
    the same transaction. Raises django.db.Error, and then nothing of the batch is stored:
    `is_refusal` tells a document that cannot be a row, or a parent that is neither stored nor in
    the batch, from a PostgreSQL that is away. UnicodeDecodeError: a document is not UTF-8.
    """
    if not documents:
        return 0
    array = _array(documents)
    with connection.cursor() as cursor, connection.wrap_database_errors:
        # a cursor that sends the value beside the statement: Django's writes it into the text, where it is quoted
        # here and read letter by letter there
        row = psycopg.Cursor(cursor.connection).execute(_STORE, [array]).fetchone()
    return int(row[0]) if row else 0


def lacked_parent(problem: Error) -> bool:
    """Whether PostgreSQL refused a checkpoint because its parent was not there: it may come, or have come by now."""
    return getattr(problem.__cause__, "sqlstate", None) == "23503"


_MISSING_PARENTS = """
SELECT DISTINCT r.parent_id FROM jsonb_to_recordset(%s::jsonb) AS r(flow_id uuid, parent_id uuid)
WHERE r.parent_id IS NOT NULL AND NOT EXISTS (SELECT FROM interaction_flows f WHERE f.flow_id = r.parent_id)
"""


def missing_parents(documents: Sequence[bytes]) -> list[str]:
    """The parents these documents name that are not stored. One query."""
    with connection.cursor() as cursor:
        cursor.execute(_MISSING_PARENTS, [_array(documents)])
        return [str(row[0]) for row in cursor.fetchall()]
