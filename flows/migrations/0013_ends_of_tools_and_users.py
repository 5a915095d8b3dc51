"""How turns ended, of each tool by kept hours, and of each user by an index. What was kept without the former is
made anew by the persister."""

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
        migrations.RemoveIndex(model_name="turn", name="idx_turns_user"),
        migrations.AddIndex(
            model_name="turn",
            index=models.Index(
                fields=["user_id", "-started_at", "-turn_id"], include=("outcome",), name="idx_turns_user"
            ),
        ),
    ]
