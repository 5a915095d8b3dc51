"""What turns are sorted by gets an index: a page costs what it shows, in every order."""

import django.db.models.expressions
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('flows', '0005_kept_tallies'),
    ]

    operations = [
        migrations.AddIndex(
            model_name='turn',
            index=models.Index(models.OrderBy(models.F('ttft_ms'), descending=True), models.OrderBy(models.F('turn_id'), descending=True), condition=models.Q(('outcome__isnull', False), ('ttft_ms__isnull', False)), name='idx_turns_first_token'),
        ),
        migrations.AddIndex(
            model_name='turn',
            index=models.Index(models.OrderBy(django.db.models.expressions.CombinedExpression(models.F('input_tokens'), '+', models.F('output_tokens')), descending=True), models.OrderBy(models.F('turn_id'), descending=True), condition=models.Q(('outcome__isnull', False)), name='idx_turns_tokens'),
        ),
        migrations.AddIndex(
            model_name='turn',
            index=models.Index(models.OrderBy(models.F('cost_usd'), descending=True), models.OrderBy(models.F('turn_id'), descending=True), condition=models.Q(('cost_usd__isnull', False), ('outcome__isnull', False)), name='idx_turns_cost'),
        ),
        migrations.AddIndex(
            model_name='turn',
            index=models.Index(models.OrderBy(models.F('tool_calls'), descending=True), models.OrderBy(models.F('turn_id'), descending=True), condition=models.Q(('outcome__isnull', False)), name='idx_turns_tools'),
        ),
    ]
