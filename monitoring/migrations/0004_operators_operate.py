"""Operators may see the ledger.

Django makes permissions only after the last migration; it finds this one by its content type and codename.
"""

from django.db import migrations

NAME = "Can see the ledger: whether all that was started is stored"


def let_operators(apps, schema_editor):
    alias = schema_editor.connection.alias
    content_types = apps.get_model("contenttypes", "ContentType").objects.using(alias)
    permissions = apps.get_model("auth", "Permission").objects.using(alias)
    groups = apps.get_model("auth", "Group").objects.using(alias)
    content_type, _ = content_types.get_or_create(app_label="flows", model="interactionflow")
    right, _ = permissions.get_or_create(content_type=content_type, codename="operate", defaults={"name": NAME})
    for group in groups.filter(name="operators"):
        group.permissions.add(right)


class Migration(migrations.Migration):
    dependencies = [
        ("monitoring", "0003_groups"),
        ("flows", "0010_ledger"),
    ]

    operations = [migrations.RunPython(let_operators, migrations.RunPython.noop)]
