from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Module",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("path", models.CharField(max_length=255, unique=True)),
                (
                    "functions",
                    models.PositiveIntegerField(
                        help_text="Methods and nested functions count, too."
                    ),
                ),
                ("classes", models.PositiveIntegerField()),
                ("lines", models.PositiveIntegerField()),
                ("sha256", models.CharField(max_length=64)),
                ("indexed_at", models.DateTimeField(db_index=True)),
            ],
        ),
        migrations.CreateModel(
            name="Throughput",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("measured_at", models.DateTimeField()),
                (
                    "modules",
                    models.PositiveIntegerField(
                        help_text="Indexed in the time that was looked at."
                    ),
                ),
                ("per_second", models.FloatField()),
            ],
            options={
                "ordering": ["measured_at"],
            },
        ),
    ]
