"""Turns get marks to be found by, how far they came and their measured steps; what is stored is
filled in here, with the words of flows/store.py of the same day.

Words in the questions are found through pg_trgm, a trusted extension: who may create things in the
database may install it. Where that is refused, or the server does not have it, there is no such
index, and the search reads the questions one by one.
"""

import sys

import django.contrib.postgres.fields
import django.contrib.postgres.indexes
from django.db import DatabaseError, migrations, models, transaction

import flows.models

FILL_IN = """
WITH facts AS (
    SELECT turn_id, checkpoint, metadata, created_at, flow_id,
        left(metadata ->> 'status', 50) AS status,
        CASE WHEN checkpoint IN ('tool_call', 'tool_result') THEN left(metadata ->> 'tool', 200) END AS tool,
        coalesce(metadata ->> 'status' IN ('failed', 'error'), false) AS failed,
        CASE WHEN jsonb_typeof(metadata -> 'duration_ms') = 'number' THEN least(greatest((metadata ->> 'duration_ms')::numeric, 0), 1e15)::float8 END AS duration_ms,
        coalesce(jsonb_typeof(metadata -> 'ttft_ms') = 'number', false) AS has_first_token
    FROM interaction_flows WHERE turn_id IS NOT NULL
), made AS (
    SELECT turn_id,
        array_agg(DISTINCT 'a' || status COLLATE "C") FILTER (WHERE status IS NOT NULL)
            || array_agg(DISTINCT 'c' || checkpoint COLLATE "C")
            || array_agg(DISTINCT 's' || checkpoint || '=' || status COLLATE "C") FILTER (WHERE status IS NOT NULL)
            || array_agg(DISTINCT 't' || tool COLLATE "C") FILTER (WHERE checkpoint = 'tool_call' AND tool IS NOT NULL) AS tags,
        coalesce(max(CASE checkpoint
            WHEN 'auth_check' THEN CASE status WHEN 'passed' THEN 1 END
            WHEN 'block_check' THEN CASE status WHEN 'passed' THEN 2 END
            WHEN 'usage_check' THEN CASE status WHEN 'passed' THEN 3 END
            WHEN 'llm_thinking' THEN 4
            WHEN 'llm_complete' THEN CASE WHEN has_first_token THEN 5 END
            WHEN 'flow_end' THEN CASE WHEN metadata ->> 'outcome' = 'completed' THEN 6 WHEN has_first_token THEN 5 END
        END), 0) AS stage,
        coalesce(array_agg(step ORDER BY created_at, flow_id) FILTER (WHERE step IS NOT NULL), '{}') AS steps,
        coalesce(array_agg(duration_ms::real ORDER BY created_at, flow_id) FILTER (WHERE step IS NOT NULL), '{}') AS step_ms
    FROM facts CROSS JOIN LATERAL (SELECT CASE
        WHEN checkpoint = 'tool_call' THEN 'c' || coalesce(tool, '')
        WHEN checkpoint = 'tool_result' THEN CASE WHEN failed THEN 'R' ELSE 'r' END || coalesce(tool, '')
        WHEN checkpoint <> 'flow_end' AND (failed OR duration_ms IS NOT NULL) THEN CASE WHEN failed THEN 'S' ELSE 's' END || checkpoint
    END AS step) AS named
    GROUP BY turn_id
)
UPDATE turns SET tags = made.tags, stage = made.stage, steps = made.steps, step_ms = made.step_ms
FROM made WHERE turns.turn_id = made.turn_id
"""

# It may be there already, in a schema that is not on our search path.
WHERE_TRIGRAMS_ARE = "SELECT nspname FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = 'pg_trgm'"


def index_the_questions(apps, schema_editor):
    """For `question__icontains`, which Django makes UPPER(question) LIKE UPPER(…)."""
    with schema_editor.connection.cursor() as cursor:
        try:
            with transaction.atomic(schema_editor.connection.alias):
                cursor.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
                cursor.execute(WHERE_TRIGRAMS_ARE)
                schema = schema_editor.quote_name(cursor.fetchone()[0])
                cursor.execute(f"CREATE INDEX IF NOT EXISTS idx_turns_question ON turns USING gin (upper(question) {schema}.gin_trgm_ops)")
        except DatabaseError as problem:
            reason = str(problem).partition("\n")[0]
            print(f"\n  No index for words in the questions, since pg_trgm cannot be installed: {reason}", file=sys.stderr)


class Migration(migrations.Migration):
    dependencies = [("flows", "0002_parent_key")]

    operations = [
        migrations.AddField(
            model_name="turn",
            name="tags",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.TextField(), db_default=[], default=list, help_text="see tag() and tool_tag()", size=None
            ),
        ),
        migrations.AddField(
            model_name="turn",
            name="stage",
            field=models.SmallIntegerField(
                choices=[(0, "begun"), (1, "signed_in"), (2, "not_blocked"), (3, "within_limits"), (4, "model_called"), (5, "first_token"), (6, "completed")],
                db_default=0,
                default=0,
            ),
        ),
        migrations.AddField(
            model_name="turn",
            name="steps",
            field=django.contrib.postgres.fields.ArrayField(base_field=models.TextField(), db_default=[], default=list, size=None),
        ),
        migrations.AddField(
            model_name="turn",
            name="step_ms",
            field=django.contrib.postgres.fields.ArrayField(base_field=flows.models.RealField(null=True), db_default=[], default=list, size=None),
        ),
        migrations.RunSQL(FILL_IN, migrations.RunSQL.noop),
        migrations.AddIndex(
            model_name="turn",
            index=models.Index(
                models.OrderBy(models.F("duration_ms"), descending=True),
                models.OrderBy(models.F("turn_id"), descending=True),
                condition=models.Q(("duration_ms__isnull", False)),
                name="idx_turns_duration",
            ),
        ),
        migrations.AddIndex(
            model_name="turn",
            index=django.contrib.postgres.indexes.GinIndex(fields=["tags"], name="idx_turns_tags"),
        ),
        migrations.RunPython(
            index_the_questions,
            lambda apps, schema_editor: schema_editor.execute("DROP INDEX IF EXISTS idx_turns_question"),
        ),
    ]
