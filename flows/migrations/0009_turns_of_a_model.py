"""The turns of one model, a rare one above all, by an index that also counts how they ended."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("flows", "0008_quicker_trigger")]

    operations = [
        migrations.AddIndex(
            model_name="turn",
            index=models.Index(
                fields=["model", "-started_at"],
                include=["outcome"],
                condition=models.Q(("model__isnull", False)),
                name="idx_turns_model",
            ),
        ),
    ]
