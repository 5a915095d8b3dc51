"""The trigger that makes kept figures stale costs a store of running turns next to nothing: an hour that
is not over cannot be kept, so there is nothing to look up. The lock it takes all the same: with it, nobody
begins to keep the hour before the change is committed, however long that takes.
"""

from importlib import import_module

from django.db import migrations

BEFORE = import_module("flows.migrations.0005_kept_tallies").TRIGGERS.partition("CREATE TRIGGER")[0]

QUICKER = """
CREATE OR REPLACE FUNCTION turns_changed() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    moments timestamptz[];
BEGIN
    IF TG_OP = 'INSERT' THEN
        SELECT array_agg(DISTINCT date_bin('1 hour', started_at, '2000-01-01Z') ORDER BY date_bin('1 hour', started_at, '2000-01-01Z')) INTO moments FROM after;
    ELSIF TG_OP = 'DELETE' THEN
        SELECT array_agg(DISTINCT date_bin('1 hour', started_at, '2000-01-01Z') ORDER BY date_bin('1 hour', started_at, '2000-01-01Z')) INTO moments FROM before;
    ELSE
        SELECT array_agg(DISTINCT date_bin('1 hour', started_at, '2000-01-01Z') ORDER BY date_bin('1 hour', started_at, '2000-01-01Z')) INTO moments
        FROM (SELECT started_at FROM before UNION ALL SELECT started_at FROM after) AS both_sides;
    END IF;
    IF moments IS NULL THEN
        RETURN NULL;
    END IF;
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('omni2 tallies', 0));
    -- the first is the earliest
    IF moments[1] > clock_timestamp() - interval '1 hour' THEN
        RETURN NULL;
    END IF;
    -- each statement of this function sees what was committed when it began: the marks too
    UPDATE kept_spans SET state = 0 WHERE hours = 1 AND start = ANY (moments) AND state <> 0;
    UPDATE kept_spans SET state = 0 WHERE hours = 24 AND state <> 0
        AND start = ANY (ARRAY(SELECT DISTINCT date_bin('1 day', unnest(moments), '2000-01-01Z')));
    RETURN NULL;
END $$;
"""


class Migration(migrations.Migration):
    dependencies = [("flows", "0007_kept_scopes")]

    operations = [migrations.RunSQL(QUICKER, BEFORE.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))]
