"""What a question to a user needs besides: the call, its arguments, and until when it may be answered."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("chat", "0003_stop")]

    operations = [
        # nothing waits while a process that knows the old table is being replaced
        migrations.RunSQL("DELETE FROM tool_approvals", migrations.RunSQL.noop),
        migrations.AddField("toolapproval", "session_id", models.UUIDField(editable=False, default="00000000-0000-0000-0000-000000000000"), preserve_default=False),
        migrations.AddField("toolapproval", "server", models.CharField(max_length=40, default=""), preserve_default=False),
        migrations.AddField("toolapproval", "call_id", models.CharField(max_length=200, default="", help_text="what the model calls this call; once in a turn"), preserve_default=False),
        migrations.AddField("toolapproval", "arguments", models.TextField(blank=True, default="", help_text="as the model wrote them; empty once it is decided"), preserve_default=False),
        migrations.AddField("toolapproval", "expires_at", models.DateTimeField(default="2000-01-01T00:00:00Z"), preserve_default=False),
        migrations.AddConstraint("toolapproval", models.UniqueConstraint("turn_id", "call_id", name="one_approval_per_call")),
        migrations.AddIndex("toolapproval", models.Index("user", name="idx_tool_approvals_open", condition=models.Q(decided_at__isnull=True))),
    ]
