"""The ledger: what each web process says of its turns by the hour, and the right to see it compared with what is
stored. Nothing is filled in for the time before: hours without a process's word are shown as such."""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('flows', '0009_turns_of_a_model'),
    ]

    operations = [
        migrations.AlterModelOptions(
            name='interactionflow',
            options={'default_permissions': (), 'permissions': [('view', "Can read everybody's flows and their analytics"), ('watch', 'Can watch monitored users live'), ('operate', 'Can see the ledger: whether all that was started is stored')]},
        ),
        migrations.AddField(
            model_name='servingprocess',
            name='reported_at',
            field=models.DateTimeField(help_text='by its own clock: when it last said all it had counted; null: it keeps no ledger', null=True),
        ),
        migrations.CreateModel(
            name='LedgerEntry',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('process_id', models.UUIDField(editable=False)),
                ('hour', models.DateTimeField()),
                ('turns', models.IntegerField(default=0)),
                ('turns_ended', models.IntegerField(default=0)),
                ('turns_given_up', models.IntegerField(default=0, help_text='of which nothing can ever be stored')),
                ('checkpoints', models.BigIntegerField(default=0, help_text='made, those that were given up included')),
                ('durable', models.BigIntegerField(default=0, help_text='acknowledged by Redis, or by PostgreSQL without it')),
                ('given_up', models.JSONField(default=dict, help_text='how many checkpoints for which reason')),
                ('late', models.IntegerField(default=0, help_text="recorded after the turn's end, and not kept")),
                ('reported_at', models.DateTimeField(help_text='by the clock of the process: it has counted all until then')),
            ],
            options={
                'db_table': 'ledger_entries',
                'default_permissions': (),
                'indexes': [models.Index(fields=['hour'], name='idx_ledger_entries_hour')],
                'constraints': [models.UniqueConstraint(fields=('process_id', 'hour'), name='one_ledger_entry')],
            },
        ),
    ]
