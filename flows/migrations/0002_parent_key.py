"""The self foreign key, by hand: immediate, so that an orphan fails in its own statement and not
at COMMIT, where it could no longer be told from the rest of its batch."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("flows", "0001_initial")]

    operations = [
        migrations.RunSQL(
            "ALTER TABLE interaction_flows ADD CONSTRAINT interaction_flows_parent_id_fkey "
            "FOREIGN KEY (parent_id) REFERENCES interaction_flows (flow_id) NOT DEFERRABLE",
            "ALTER TABLE interaction_flows DROP CONSTRAINT interaction_flows_parent_id_fkey",
        ),
    ]
