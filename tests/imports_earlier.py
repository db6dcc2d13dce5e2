"""The side of the earlier django-dbtasks in `make test-import`: its tables, with work in them.

A process of its own, in which `dbtasks` is the earlier one; so nothing here may need ours.
"""

from __future__ import annotations

import datetime
import os
import sys
import types
from typing import Any

import django
from django.conf import settings
from django.tasks import task
from django.utils import timezone

from tests.settings import database_from_url


def add(a: int, b: int = 0) -> int:
    return a + b


def main() -> None:
    settings.configure(
        USE_TZ=True,
        DATABASES={"default": database_from_url(os.environ["DBTASKS_TEST_DATABASE_URL"])},
        INSTALLED_APPS=["dbtasks"],
        TASKS={"default": {"BACKEND": "dbtasks.backend.DatabaseBackend", "QUEUES": []}},
    )
    django.setup()
    from django.core.management import call_command

    import dbtasks.models

    assert hasattr(dbtasks.models.ScheduledTask, "traceback"), "this is not the earlier one"
    call_command("migrate", verbosity=0)
    # Under the name by which the other side finds it; the real module imports what is only ours.
    add.__module__ = "tests.app.tasks"
    namesake: Any = types.ModuleType(add.__module__)
    namesake.add = task(add)
    sys.modules[add.__module__] = namesake
    call = namesake.add.using(queue_name="earlier")
    for number in range(3):
        call.using(priority=number).enqueue(number, b=1)
    later = timezone.now() + datetime.timedelta(days=1)
    call.using(priority=3, run_after=later).enqueue(3, b=1)


if __name__ == "__main__":
    main()
