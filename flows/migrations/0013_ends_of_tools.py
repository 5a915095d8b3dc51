"""Kept figures say of each tool how the turns that called it ended. What was kept without is made anew by the persister."""

from django.db import migrations, models

ANEW = "UPDATE kept_spans SET state = 0"


class Migration(migrations.Migration):
    dependencies = [("flows", "0012_ends_by_hour")]

    operations = [
        migrations.AddIndex(
            model_name="kepttally",
            index=models.Index(
                condition=models.Q(("figure", "tool")),
                fields=["span", "key"],
                include=("key2", "count"),
                name="idx_kept_tallies_tool",
            ),
        ),
        migrations.RunSQL(ANEW, ANEW),
    ]
