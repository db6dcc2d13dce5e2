"""`make test-import`: what the real products stored, in their real tables, is taken over.

Runs in an environment of its own, which has them, on every database that can be had here. What of
their tables we read, they may change with any release; tests/test_importing.py has copies.
"""

from __future__ import annotations

import datetime
import io
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import version
from pathlib import Path

import django
from django.conf import settings

from tests.conftest import own_database_url
from tests.servers import SERVERS
from tests.settings import database_from_url

ROOT = Path(__file__).resolve().parent.parent
URL = "DBTASKS_TEST_DATABASE_URL"
# The earlier django-dbtasks, beside the environment: its packages have the names of ours.
EARLIER = Path(sys.prefix) / "earlier"
GUIDE = ROOT / "docs" / "coming-from" / "django-dbtasks.md"
APPS = {
    "django-tasks-db": "django_tasks_db",
    "dj-queue": "dj_queue",
    "django-q2": "django_q",
    "django-celery-beat": "django_celery_beat",
}
BACKENDS = {
    "django-tasks-db": "django_tasks_db.DatabaseBackend",
    "dj-queue": "dj_queue.backend.DjQueueBackend",
}
ADD = "tests.app.tasks.add"


def main() -> int:
    """Exit code 0: all was taken over, on every database that is there."""
    print(", ".join(f"{name} {version(name)}" for name in ("Django", *APPS)))
    codes = set()
    for name, kind in SERVERS.items():
        server = kind()
        if reason := server.available():
            print(f"{name}: SKIPPED, {reason}")
            continue
        with server:
            print(f"{name} {server.version}", flush=True)
            command = [sys.executable, "-W", "ignore", "-m", "tests.imports", "here"]
            environ = os.environ | {URL: server.url}
            codes.add(subprocess.run(command, cwd=ROOT, env=environ).returncode)
    return 0 if codes == {0} else 1


def here() -> None:
    """On the server that the environment names."""
    with tempfile.TemporaryDirectory(prefix="dbtasks-imports-") as folder:
        os.environ[URL] = own_database_url(folder)
        take_over()


def take_over() -> None:
    configure(os.environ[URL])
    from django.core.management import call_command

    from tests.conftest import on_server

    on_server("CREATE DATABASE {}")
    earlier()
    call_command("migrate", verbosity=0)
    earlier_tasks()
    tasks()
    schedules()


def configure(url: str) -> None:
    from celery.schedules import crontab

    backends = {name: {"BACKEND": path, "QUEUES": []} for name, path in BACKENDS.items()}
    settings.configure(
        SECRET_KEY="only for tests",
        USE_TZ=True,
        DATABASES={"default": database_from_url(url)},
        INSTALLED_APPS=["django.contrib.contenttypes", "dbtasks", "tests.app", *APPS.values()],
        TASKS={"default": {"BACKEND": "dbtasks.backend.DatabaseBackend", "QUEUES": []}, **backends},
        Q_CLUSTER={"orm": "default"},
        CELERY_BEAT_SCHEDULE={
            "nightly": {"task": ADD, "schedule": crontab(hour="3", minute="30"), "args": (1, 2)},
            "often": {"task": ADD, "schedule": datetime.timedelta(minutes=5), "args": (1,)},
        },
    )
    django.setup()


# The earlier django-dbtasks


def earlier() -> None:
    """Its tables with work in them, and what the guide says is to be done with them."""
    from django.db import connection

    # Without `site`, which would find our packages for what the earlier ones do not have.
    paths = [str(EARLIER), sysconfig.get_path("purelib"), str(ROOT)]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-S", "-P", "-m", "tests.imports_earlier"]
    subprocess.run(command, env=environ, check=True)
    blocks = re.findall(r"```sql\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    everywhere, on_postgresql = blocks
    told = everywhere + (on_postgresql if connection.vendor == "postgresql" else "")
    with connection.cursor() as cursor:
        for statement in told.split(";"):
            if statement.strip():
                cursor.execute(statement)


def earlier_tasks() -> None:
    from dbtasks.models import ScheduledTask

    told = imported("django-dbtasks")
    found = ScheduledTask.objects.order_by("priority")
    assert [(row.args, row.kwargs, row.queue, row.priority) for row in found] == [
        ([number], {"b": 1}, "earlier", number) for number in range(4)
    ], told
    assert [row.due_at is not None for row in found] == [False, False, False, True]
    assert "there already\t4" in imported("django-dbtasks")
    print("  django-dbtasks 0.5.0: 4 tasks taken over")


# The others


def tasks() -> None:
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
        print(f"  {source}: 3 tasks taken over")


def schedules() -> None:
    from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask
    from django_q.models import Schedule

    Schedule.objects.create(name="sum", func=ADD, args="1", kwargs="b=2", schedule_type="H")
    assert_printed("django-q2", ADD, "args=[1]", "kwargs={'b': 2}")

    nightly = CrontabSchedule.objects.create(minute="30", hour="3", timezone="Europe/Berlin")
    often = IntervalSchedule.objects.create(every=5, period=IntervalSchedule.MINUTES)
    PeriodicTask.objects.create(name="nightly", task=ADD, crontab=nightly, args="[1]")
    PeriodicTask.objects.create(name="often", task=ADD, interval=often, kwargs='{"a": 1}')
    assert_printed("celery-beat", "'30 3 * * *'", "timezone='Europe/Berlin'", "'300s'")

    assert_printed("celery-settings", "'30 3 * * *'", "'300s'", "args=[1, 2]")


def assert_printed(source: str, *words: str) -> None:
    told = imported(source)
    assert all(word in told for word in words), told
    print(f"  {source}: its schedules printed")


def imported(source: str) -> str:
    from django.core.management import call_command

    out = io.StringIO()
    call_command("dbtasks", "import", "--from", source, stdout=out, stderr=out)
    return out.getvalue()


if __name__ == "__main__":
    if sys.argv[1:] == ["here"]:
        here()
    else:
        sys.exit(main())
