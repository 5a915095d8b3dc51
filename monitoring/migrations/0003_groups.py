"""The two groups: operators, who watch, and auditors, who read.

Django makes permissions only after the last migration; on an empty database they are made here,
and found there by their content type and codename.
"""

from django.db import migrations

RIGHTS = {
    ("monitoring", "monitoreduser", "manage"): "Can enable, extend and end the monitoring of users",
    ("flows", "interactionflow", "view"): "Can read everybody's flows and their analytics",
    ("flows", "interactionflow", "watch"): "Can watch monitored users live",
}
GROUPS = {
    "operators": list(RIGHTS),
    "auditors": [("flows", "interactionflow", "view")],
}


def add_groups(apps, schema_editor):
    alias = schema_editor.connection.alias
    content_types = apps.get_model("contenttypes", "ContentType").objects.using(alias)
    permissions = apps.get_model("auth", "Permission").objects.using(alias)
    groups = apps.get_model("auth", "Group").objects.using(alias)
    made = {}
    for (app, model, codename), name in RIGHTS.items():
        content_type, _ = content_types.get_or_create(app_label=app, model=model)
        made[app, model, codename], _ = permissions.get_or_create(
            content_type=content_type, codename=codename, defaults={"name": name}
        )
    for group_name, rights in GROUPS.items():
        group, _ = groups.get_or_create(name=group_name)
        group.permissions.add(*(made[right] for right in rights))


class Migration(migrations.Migration):
    dependencies = [
        ("monitoring", "0002_settings"),
        ("flows", "0002_parent_key"),
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
    ]

    # Undone, the groups stay: people are in them.
    operations = [migrations.RunPython(add_groups, migrations.RunPython.noop)]
