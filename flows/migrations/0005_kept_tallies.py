"""Where figures of past hours and days are kept, and the trigger that says when they are no longer true.

It is a trigger, and not a part of flows/store.py, so that whoever changes `turns` cannot forget it.
It takes a shared lock that ends with the transaction; who begins to keep an hour takes the same one
exclusively for a moment, and so knows that every change from then on will find his mark.
"""

import django.contrib.postgres.fields
import django.db.models.deletion
from django.db import migrations, models

TRIGGERS = """
CREATE FUNCTION turns_changed() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    moments timestamptz[];
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('omni2 tallies', 0));
    IF TG_OP = 'INSERT' THEN
        SELECT array_agg(DISTINCT date_bin('1 hour', started_at, '2000-01-01Z')) INTO moments FROM after;
    ELSIF TG_OP = 'DELETE' THEN
        SELECT array_agg(DISTINCT date_bin('1 hour', started_at, '2000-01-01Z')) INTO moments FROM before;
    ELSE
        SELECT array_agg(DISTINCT date_bin('1 hour', started_at, '2000-01-01Z')) INTO moments
        FROM (SELECT started_at FROM before UNION ALL SELECT started_at FROM after) AS both_sides;
    END IF;
    -- each statement of this function sees what was committed when it began: the marks too
    UPDATE kept_spans SET state = 0 WHERE hours = 1 AND start = ANY (moments) AND state <> 0;
    UPDATE kept_spans SET state = 0 WHERE hours = 24 AND state <> 0
        AND start = ANY (ARRAY(SELECT DISTINCT date_bin('1 day', unnest(moments), '2000-01-01Z')));
    RETURN NULL;
END $$;
CREATE TRIGGER turns_inserted AFTER INSERT ON turns REFERENCING NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION turns_changed();
CREATE TRIGGER turns_updated AFTER UPDATE ON turns REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION turns_changed();
CREATE TRIGGER turns_deleted AFTER DELETE ON turns REFERENCING OLD TABLE AS before
    FOR EACH STATEMENT EXECUTE FUNCTION turns_changed();
"""
NO_TRIGGERS = """
DROP TRIGGER turns_inserted ON turns;
DROP TRIGGER turns_updated ON turns;
DROP TRIGGER turns_deleted ON turns;
DROP FUNCTION turns_changed();
"""


class Migration(migrations.Migration):
    dependencies = [("flows", "0004_saved_views")]

    operations = [
        migrations.CreateModel(
            name="KeptSpan",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("hours", models.SmallIntegerField(help_text="1 or 24")),
                ("start", models.DateTimeField()),
                ("state", models.SmallIntegerField(default=0)),
            ],
            options={
                "db_table": "kept_spans",
                "default_permissions": (),
                "constraints": [models.UniqueConstraint(fields=("hours", "start"), name="one_kept_span")],
            },
        ),
        migrations.CreateModel(
            name="KeptTally",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("figure", models.CharField(max_length=10)),
                ("key", models.TextField(null=True)),
                ("key2", models.TextField(null=True)),
                ("key3", models.TextField(null=True)),
                ("count", models.BigIntegerField()),
                ("input_tokens", models.BigIntegerField()),
                ("output_tokens", models.BigIntegerField()),
                ("cost_usd", models.DecimalField(decimal_places=8, max_digits=24, null=True)),
                (
                    "buckets",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.SmallIntegerField(), help_text="of durations, see flows.tallies", null=True, size=None
                    ),
                ),
                (
                    "counts",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.IntegerField(),
                        help_text="how many durations in each of the buckets",
                        null=True,
                        size=None,
                    ),
                ),
                ("span", models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, to="flows.keptspan")),
            ],
            options={"db_table": "kept_tallies", "default_permissions": ()},
        ),
        migrations.RunSQL(TRIGGERS, NO_TRIGGERS),
    ]
