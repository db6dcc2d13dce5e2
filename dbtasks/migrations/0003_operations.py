from django.db import migrations, models

import dbtasks.fields


class Migration(migrations.Migration):
    dependencies = [("dbtasks", "0002_periodic")]

    operations = [
        migrations.CreateModel(
            name="Cancellation",
            fields=[
                ("task_id", models.UUIDField(primary_key=True, serialize=False)),
                ("backend", dbtasks.fields.ExactCharField(max_length=64)),
                ("requested_at", dbtasks.fields.UTCDateTimeField()),
                (
                    "grace",
                    models.FloatField(
                        help_text="Seconds between TaskCancelled and the worker's end."
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Pause",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("backend", dbtasks.fields.ExactCharField(max_length=64)),
                (
                    "kind",
                    dbtasks.fields.ExactCharField(max_length=8, help_text='"queue" or "task".'),
                ),
                ("name", dbtasks.fields.ExactCharField(max_length=500)),
                ("paused_at", dbtasks.fields.UTCDateTimeField()),
                ("paused_by", models.CharField(blank=True, default="", max_length=255)),
                ("reason", models.TextField(blank=True, default="")),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("backend", "kind", "name"), name="dbtasks_pause_once"
                    )
                ],
            },
        ),
    ]
