"""How turns ended, by kept hours and days: found without a look at the many other rows of each."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("flows", "0011_prunings")]

    operations = [
        migrations.AddIndex(
            model_name="kepttally",
            index=models.Index(
                condition=models.Q(("figure", "end")),
                fields=["span"],
                include=("key2", "count"),
                name="idx_kept_tallies_end",
            ),
        ),
    ]
