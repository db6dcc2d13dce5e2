from django.db import migrations, models

import dbtasks.fields
from dbtasks import schema


class Migration(migrations.Migration):
    atomic = False
    dependencies = [
        ("dbtasks", "0003_operations"),
    ]

    operations = [
        schema.AddColumn(
            model_name="worker",
            name="cpu_seconds",
            field=models.FloatField(help_text="CPU time of the process so far.", null=True),
        ),
        schema.AddColumn(
            model_name="worker",
            name="up_seconds",
            field=models.FloatField(help_text="How long the worker has been there.", null=True),
        ),
        schema.CreateTable(
            name="Statistic",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("backend", dbtasks.fields.ExactCharField(max_length=64)),
                (
                    "minute",
                    models.PositiveIntegerField(help_text="Since 1970, by the database's clock."),
                ),
                ("queue", dbtasks.fields.ExactCharField(max_length=128)),
                ("task_path", dbtasks.fields.ExactCharField(max_length=500)),
                ("succeeded", models.BigIntegerField(db_default=0, default=0)),
                ("failed", models.BigIntegerField(db_default=0, default=0)),
                ("retried", models.BigIntegerField(db_default=0, default=0)),
                ("rescued", models.BigIntegerField(db_default=0, default=0)),
                ("waited", models.BigIntegerField(db_default=0, default=0)),
                ("wait_us", models.BigIntegerField(db_default=0, default=0)),
                ("run_us", models.BigIntegerField(db_default=0, default=0)),
                ("bucket_00", models.BigIntegerField(db_default=0, default=0)),
                ("bucket_01", models.BigIntegerField(db_default=0, default=0)),
                ("bucket_02", models.BigIntegerField(db_default=0, default=0)),
                ("bucket_03", models.BigIntegerField(db_default=0, default=0)),
                ("bucket_04", models.BigIntegerField(db_default=0, default=0)),
                ("bucket_05", models.BigIntegerField(db_default=0, default=0)),
                ("bucket_06", models.BigIntegerField(db_default=0, default=0)),
                ("bucket_07", models.BigIntegerField(db_default=0, default=0)),
                ("bucket_08", models.BigIntegerField(db_default=0, default=0)),
                ("bucket_09", models.BigIntegerField(db_default=0, default=0)),
                ("bucket_10", models.BigIntegerField(db_default=0, default=0)),
                ("bucket_11", models.BigIntegerField(db_default=0, default=0)),
                ("bucket_12", models.BigIntegerField(db_default=0, default=0)),
                ("bucket_13", models.BigIntegerField(db_default=0, default=0)),
                ("bucket_14", models.BigIntegerField(db_default=0, default=0)),
                ("bucket_15", models.BigIntegerField(db_default=0, default=0)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("backend", "minute", "queue", "task_path"),
                        name="dbtasks_statistic_place",
                    )
                ],
            },
        ),
    ]
