"""Operators may stop running turns.

Django makes permissions only after the last migration; it finds this one by its content type and codename.
"""

from django.db import migrations

NAME = "Can stop running turns"


def let_operators(apps, schema_editor):
    alias = schema_editor.connection.alias
    content_types = apps.get_model("contenttypes", "ContentType").objects.using(alias)
    permissions = apps.get_model("auth", "Permission").objects.using(alias)
    groups = apps.get_model("auth", "Group").objects.using(alias)
    content_type, _ = content_types.get_or_create(app_label="chat", model="turnstop")
    right, _ = permissions.get_or_create(content_type=content_type, codename="stop", defaults={"name": NAME})
    for group in groups.filter(name="operators"):
        group.permissions.add(right)


class Migration(migrations.Migration):
    dependencies = [
        ("chat", "0002_gateway"),
        ("monitoring", "0003_groups"),
    ]

    operations = [migrations.RunPython(let_operators, migrations.RunPython.noop)]
