"""The index by which failed tasks are found; it holds nothing else. MySQL and MariaDB have none."""

from django.db import migrations, models

import dbtasks.fields
from dbtasks.schema import AddIndex


class Migration(migrations.Migration):
    atomic = False

    dependencies = [("dbtasks", "0005_permissions")]

    operations = [
        AddIndex(
            model_name="scheduledtask",
            index=dbtasks.fields.OnlyPartialIndex(
                condition=models.Q(("status", "FAILED")),
                fields=["backend", "id"],
                name="dbtasks_failed",
            ),
        ),
    ]
