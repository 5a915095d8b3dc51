"""The two settings of a new database. Values as the contract names them, not as the code may one day."""

from django.db import migrations

ROWS = {
    "flow_monitoring": (
        {"default_ttl_hours": 24, "max_ttl_hours": 720},
        "How long a user is monitored, in hours.",
    ),
    "usage_limits": (
        {"requests_per_day": 500, "tokens_per_day": 500000, "cost_usd_per_day": None, "turns_at_once": 8},
        "What each user may use in a day and at once, unless a user has limits of his own.",
    ),
}


def add_settings(apps, schema_editor):
    settings = apps.get_model("monitoring", "Omni2Config").objects.using(schema_editor.connection.alias)
    for key, (value, description) in ROWS.items():
        settings.get_or_create(config_key=key, defaults={"config_value": value, "description": description})


class Migration(migrations.Migration):
    dependencies = [("monitoring", "0001_initial")]

    # Undone, the rows go with their table.
    operations = [migrations.RunPython(add_settings, migrations.RunPython.noop)]
