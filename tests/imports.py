"""`make test-import`: work that the real products enqueued, in their real tables, is taken over.

Runs in an environment of its own, which has them. What of their tables we read, they may change
with any release; tests/test_importing.py has copies.
"""

import io
import sys
import tempfile
from pathlib import Path

import django
from django.conf import settings

APPS = {
    "django-tasks-db": "django_tasks_db",
    "dj-queue": "dj_queue",
    "django-q2": "django_q",
}
BACKENDS = {
    "django-tasks-db": "django_tasks_db.DatabaseBackend",
    "dj-queue": "dj_queue.backend.DjQueueBackend",
}


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="dbtasks-imports-") as folder:
        configure(Path(folder, "database.sqlite3"))
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        rows()
        schedules()
    return 0


def configure(database: Path) -> None:
    tasks = {name: {"BACKEND": path, "QUEUES": []} for name, path in BACKENDS.items()}
    settings.configure(
        SECRET_KEY="only for tests",
        USE_TZ=True,
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(database)}},
        INSTALLED_APPS=["django.contrib.contenttypes", "dbtasks", "tests.app", *APPS.values()],
        TASKS={"default": {"BACKEND": "dbtasks.backend.DatabaseBackend", "QUEUES": []}, **tasks},
        Q_CLUSTER={"orm": "default"},
    )
    django.setup()


def rows() -> None:
    from dbtasks.models import ScheduledTask
    from tests.app.tasks import add

    for source in BACKENDS:
        for number in range(3):
            # Their own Task class, for their backend, with the path of ours.
            add.using(backend=source, queue_name=source, priority=number).enqueue(number, b=1)
        told = imported(source)
        found = ScheduledTask.objects.filter(queue=source).order_by("priority")
        assert [(row.args, row.kwargs, row.priority) for row in found] == [
            ([number], {"b": 1}, number) for number in range(3)
        ], told
        assert "there already\t3" in imported(source)
        print(f"{source}: 3 tasks taken over")


def schedules() -> None:
    from django_q.models import Schedule

    Schedule.objects.create(
        name="sum", func="tests.app.tasks.add", args="1", kwargs="b=2", schedule_type="H"
    )
    told = imported("django-q2")
    assert "tests.app.tasks.add" in told, told
    print("django-q2: a schedule printed")


def imported(source: str) -> str:
    from django.core.management import call_command

    out = io.StringIO()
    call_command("dbtasks", "import", "--from", source, stdout=out, stderr=out)
    return out.getvalue()


if __name__ == "__main__":
    sys.exit(main())
