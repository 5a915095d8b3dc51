"""store(): checkpoints become rows, and their turns' summaries follow, in one statement.

Used by the persister, and by the flusher while Redis is away: storing twice is storing once.
"""

from collections.abc import Sequence

from django.db import connection

# A row that is there already (by its key, or a second flow_end of a turn) is left out, and only
# rows that were new count towards the summary: so a repeated delivery changes nothing.
# One jsonb parameter for all rows: a child may stand before its parent in it, since the immediate
# foreign key is checked at the end of the statement.
_STORE = """
WITH incoming AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset(%s::jsonb) AS r(
        flow_id uuid, user_id text, session_id text, turn_id uuid, checkpoint text, parent_id uuid, metadata jsonb, created_at timestamptz)
), added AS (
    INSERT INTO interaction_flows (flow_id, user_id, session_id, turn_id, checkpoint, parent_id, metadata, created_at)
    SELECT flow_id, user_id, session_id, turn_id, checkpoint, parent_id, metadata, created_at FROM incoming
    ON CONFLICT DO NOTHING
    RETURNING flow_id, turn_id, user_id, session_id, checkpoint, metadata, created_at
), facts AS (
    SELECT turn_id, user_id, session_id, checkpoint, metadata, created_at,
        CASE WHEN jsonb_typeof(metadata -> 'input_tokens') = 'number' THEN least(greatest((metadata ->> 'input_tokens')::numeric, 0), 1e15)::bigint END AS input_tokens,
        CASE WHEN jsonb_typeof(metadata -> 'output_tokens') = 'number' THEN least(greatest((metadata ->> 'output_tokens')::numeric, 0), 1e15)::bigint END AS output_tokens,
        CASE WHEN jsonb_typeof(metadata -> 'cost_usd') = 'number' THEN least(greatest((metadata ->> 'cost_usd')::numeric, 0), 99999) END AS cost_usd,
        CASE WHEN jsonb_typeof(metadata -> 'duration_ms') = 'number' THEN least(greatest((metadata ->> 'duration_ms')::numeric, 0), 1e15)::float8 END AS duration_ms,
        CASE WHEN jsonb_typeof(metadata -> 'ttft_ms') = 'number' THEN least(greatest((metadata ->> 'ttft_ms')::numeric, 0), 1e15)::float8 END AS ttft_ms
    FROM added WHERE turn_id IS NOT NULL
), summed AS (
    INSERT INTO turns AS t (turn_id, session_id, user_id, started_at, ended_at, duration_ms, outcome, question, model,
        checkpoints, tool_calls, input_tokens, output_tokens, cost_usd, ttft_ms, error, process_id)
    SELECT turn_id, min(session_id), min(user_id), min(created_at),
        max(created_at) FILTER (WHERE checkpoint = 'flow_end'),
        max(duration_ms) FILTER (WHERE checkpoint = 'flow_end'),
        left(max(metadata ->> 'outcome') FILTER (WHERE checkpoint = 'flow_end'), 20),
        coalesce(max(metadata ->> 'question') FILTER (WHERE checkpoint = 'auth_check'), ''),
        left((array_agg(metadata ->> 'model' ORDER BY created_at DESC) FILTER (WHERE checkpoint = 'llm_thinking' AND metadata ? 'model'))[1], 200),
        count(*), count(*) FILTER (WHERE checkpoint = 'tool_call'),
        coalesce(sum(input_tokens) FILTER (WHERE checkpoint = 'llm_complete'), 0),
        coalesce(sum(output_tokens) FILTER (WHERE checkpoint = 'llm_complete'), 0),
        sum(cost_usd) FILTER (WHERE checkpoint = 'llm_complete'),
        -- the turn's own first token, where the turn says it; else the first round's
        coalesce(max(ttft_ms) FILTER (WHERE checkpoint = 'flow_end'),
                 (array_agg(ttft_ms ORDER BY created_at) FILTER (WHERE checkpoint = 'llm_complete' AND ttft_ms IS NOT NULL))[1]),
        coalesce((array_agg(metadata ->> 'code' ORDER BY created_at DESC) FILTER (WHERE checkpoint = 'error'))[1],
                 (array_agg(metadata ->> 'reason' ORDER BY created_at) FILTER (WHERE checkpoint LIKE '%%\\_check' AND metadata ->> 'status' = 'failed'))[1]),
        max(CASE WHEN metadata ->> 'process' ~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' THEN metadata ->> 'process' END)
            FILTER (WHERE checkpoint = 'auth_check')::uuid
    FROM facts GROUP BY turn_id
    -- always in the same order, so that two writers cannot wait for each other in a circle
    ORDER BY turn_id
    ON CONFLICT (turn_id) DO UPDATE SET
        started_at = least(t.started_at, EXCLUDED.started_at),
        ended_at = coalesce(t.ended_at, EXCLUDED.ended_at),
        duration_ms = coalesce(t.duration_ms, EXCLUDED.duration_ms),
        outcome = coalesce(t.outcome, EXCLUDED.outcome),
        question = CASE WHEN t.question = '' THEN EXCLUDED.question ELSE t.question END,
        model = coalesce(EXCLUDED.model, t.model),
        checkpoints = t.checkpoints + EXCLUDED.checkpoints,
        tool_calls = t.tool_calls + EXCLUDED.tool_calls,
        input_tokens = t.input_tokens + EXCLUDED.input_tokens,
        output_tokens = t.output_tokens + EXCLUDED.output_tokens,
        cost_usd = CASE WHEN EXCLUDED.cost_usd IS NULL THEN t.cost_usd ELSE coalesce(t.cost_usd, 0) + EXCLUDED.cost_usd END,
        ttft_ms = CASE WHEN EXCLUDED.outcome IS NOT NULL THEN coalesce(EXCLUDED.ttft_ms, t.ttft_ms) ELSE coalesce(t.ttft_ms, EXCLUDED.ttft_ms) END,
        error = coalesce(EXCLUDED.error, t.error),
        process_id = coalesce(t.process_id, EXCLUDED.process_id)
)
SELECT count(*) FROM added
"""


def store(documents: Sequence[bytes]) -> int:
    """Store checkpoint documents; returns how many were new.

    One statement, one round trip, idempotent; the turns' summaries are updated from the new rows in
    the same transaction. Raises django.db.DataError (a document that cannot be a row: nothing of the
    batch is stored), IntegrityError (a parent that is neither stored nor in the batch) or
    OperationalError (PostgreSQL is away).
    """
    if not documents:
        return 0
    with connection.cursor() as cursor:
        cursor.execute(_STORE, [(b"[" + b",".join(documents) + b"]").decode()])
        row = cursor.fetchone()
    return int(row[0])
