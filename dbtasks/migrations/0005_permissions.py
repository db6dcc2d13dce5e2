"""The permissions of what can be done in the admin; no table changes."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("dbtasks", "0004_statistics")]

    operations = [
        migrations.AlterModelOptions(
            name="scheduledtask",
            options={
                "permissions": [
                    ("retry_scheduledtask", "Can retry scheduled tasks"),
                    ("run_scheduledtask", "Can run deferred scheduled tasks now"),
                    ("cancel_scheduledtask", "Can cancel scheduled tasks"),
                    ("prioritize_scheduledtask", "Can change the priority of scheduled tasks"),
                    ("move_scheduledtask", "Can move scheduled tasks to another queue"),
                    ("pause_scheduledtask", "Can pause and resume queues and tasks"),
                ]
            },
        ),
        migrations.AlterModelOptions(
            name="periodictask",
            options={
                "permissions": [
                    ("run_periodictask", "Can run periodic tasks now"),
                    ("pause_periodictask", "Can pause and resume periodic tasks"),
                ]
            },
        ),
    ]
