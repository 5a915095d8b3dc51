"""Tokens, the counts behind the sign-in throttle, and the access log that only grows."""

import django.db.models.deletion
import django.db.models.functions.datetime
from django.conf import settings
from django.db import migrations, models


REFUSE_CHANGE = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER access_log_is_append_only BEFORE UPDATE OR DELETE ON access_log
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
"""
ALLOW_CHANGE = """
DROP TRIGGER access_log_is_append_only ON access_log;
DROP FUNCTION refuse_change();
"""

# The e-mail address is the key of everything that was ever recorded of a person.
KEEP_EMAIL = """
CREATE FUNCTION refuse_new_email() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the e-mail address of a person is not changed once made' USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER users_keep_their_email BEFORE UPDATE OF email ON users
    FOR EACH ROW WHEN (OLD.email IS DISTINCT FROM NEW.email) EXECUTE FUNCTION refuse_new_email();
"""
LET_EMAIL_CHANGE = """
DROP TRIGGER users_keep_their_email ON users;
DROP FUNCTION refuse_new_email();
"""


class Migration(migrations.Migration):

    dependencies = [
        ('accounts', '0001_initial'),
    ]

    operations = [
        migrations.CreateModel(
            name='SignInCount',
            fields=[
                ('key', models.CharField(max_length=64, primary_key=True, serialize=False)),
                ('started_at', models.DateTimeField(db_index=True)),
                ('count', models.IntegerField()),
            ],
            options={
                'db_table': 'sign_in_counts',
                'default_permissions': (),
            },
        ),
        migrations.CreateModel(
            name='AccessLog',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('actor', models.CharField(help_text='user_id of who did it', max_length=255)),
                ('action', models.CharField(max_length=50)),
                ('subject_user_id', models.CharField(help_text='whom it was about', max_length=255, null=True)),
                ('detail', models.JSONField(default=dict, help_text='filters, reason, until when')),
                ('created_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
            options={
                'verbose_name': 'access',
                'verbose_name_plural': 'access log',
                'db_table': 'access_log',
                'ordering': ['-created_at', '-id'],
                'default_permissions': (),
                'indexes': [models.Index(models.OrderBy(models.F('created_at'), descending=True), name='idx_access_log_time'), models.Index(models.F('subject_user_id'), models.OrderBy(models.F('created_at'), descending=True), name='idx_access_log_subject'), models.Index(models.F('actor'), models.OrderBy(models.F('created_at'), descending=True), name='idx_access_log_actor')],
            },
        ),
        migrations.CreateModel(
            name='ApiToken',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(blank=True, help_text='what it is for', max_length=100)),
                ('digest', models.CharField(editable=False, max_length=64, unique=True)),
                ('prefix', models.CharField(editable=False, help_text='how the token begins', max_length=10)),
                ('created_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False)),
                ('expires_at', models.DateTimeField(editable=False)),
                ('revoked_at', models.DateTimeField(editable=False, null=True)),
                ('last_used_at', models.DateTimeField(editable=False, help_text='noted once a minute at most', null=True)),
                ('user', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='tokens', to=settings.AUTH_USER_MODEL)),
            ],
            options={
                'verbose_name': 'token',
                'db_table': 'api_tokens',
                'ordering': ['-created_at', '-id'],
                'permissions': [('manage_tokens', "Can list and revoke everybody's tokens")],
                'default_permissions': (),
                'indexes': [models.Index(models.F('user'), models.OrderBy(models.F('created_at'), descending=True), name='idx_api_tokens_user')],
            },
        ),
        migrations.RunSQL(REFUSE_CHANGE, ALLOW_CHANGE),
        migrations.RunSQL(KEEP_EMAIL, LET_EMAIL_CHANGE),
    ]
