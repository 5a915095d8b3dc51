"""The third setting: how long turns are kept. The value as the contract names it, not as the code may one day."""

from django.db import migrations

VALUE = {"days": 90}
DESCRIPTION = "How many days turns are kept after they ended; older ones are deleted for good."


def add_retention(apps, schema_editor):
    settings = apps.get_model("monitoring", "Omni2Config").objects.using(schema_editor.connection.alias)
    settings.get_or_create(config_key="retention", defaults={"config_value": VALUE, "description": DESCRIPTION})


class Migration(migrations.Migration):
    dependencies = [
        ("monitoring", "0004_operators_operate"),
        ("flows", "0011_prunings"),
    ]

    # Undone, the row goes with its table.
    operations = [migrations.RunPython(add_retention, migrations.RunPython.noop)]
