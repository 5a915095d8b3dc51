"""Figures of a past day are also kept of one model's, one tool's or one person's turns alone; and the
few turns that did not go through are found by why and where they ended."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("flows", "0006_sorting")]

    operations = [
        migrations.AddIndex(
            model_name="turn",
            index=models.Index(
                models.F("error"),
                models.OrderBy(models.F("started_at"), descending=True),
                models.OrderBy(models.F("turn_id"), descending=True),
                condition=models.Q(("error__isnull", False)),
                name="idx_turns_error",
            ),
        ),
        migrations.AddIndex(
            model_name="turn",
            index=models.Index(
                models.F("stage"),
                models.OrderBy(models.F("started_at"), descending=True),
                models.OrderBy(models.F("turn_id"), descending=True),
                condition=models.Q(("stage__lt", 6)),
                name="idx_turns_stage",
            ),
        ),
        migrations.AddField(
            model_name="keptspan",
            name="scope",
            field=models.CharField(db_default="", default="", max_length=256),
        ),
        migrations.RemoveConstraint(model_name="keptspan", name="one_kept_span"),
        migrations.AddConstraint(
            model_name="keptspan",
            constraint=models.UniqueConstraint(fields=("hours", "start", "scope"), name="one_kept_span"),
        ),
        # on the way back first: without scopes there is one span of an hour or day
        migrations.RunSQL(
            migrations.RunSQL.noop,
            "DELETE FROM kept_tallies USING kept_spans WHERE span_id = kept_spans.id AND scope <> '';"
            "DELETE FROM kept_spans WHERE scope <> ''; SET CONSTRAINTS ALL IMMEDIATE",
        ),
    ]
