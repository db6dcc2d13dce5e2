"""`manage.py dbtasks import`: work and schedules of other products, from tables as theirs."""

from __future__ import annotations

import datetime
import io
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.apps.registry import Apps
from django.core.management import CommandError, call_command
from django.db import connection, models
from django.test import override_settings

from dbtasks.importing import rows, schedules
from dbtasks.models import ScheduledTask
from dbtasks.options import parse_options
from tests.app.tasks import add

NOW = datetime.datetime(2030, 1, 31, 12, 30, tzinfo=datetime.UTC)
HOUR = datetime.timedelta(hours=1)
NEVER = datetime.datetime(9999, 1, 1, tzinfo=datetime.UTC)
ADD, NOOP = "tests.app.tasks.add", "tests.app.tasks.noop"


def model(name: str, db_table: str, /, **fields: models.Field) -> Any:
    """As the other product declares it."""
    meta = type("Meta", (), {"app_label": "imports", "db_table": db_table, "apps": Apps()})
    members = {"__module__": __name__, "Meta": meta, **fields}
    return type(name, (models.Model,), members)


@contextmanager
def tables(*made: Any) -> Iterator[None]:
    with connection.schema_editor() as editor:
        for each in made:
            editor.create_model(each)
    try:
        yield
    finally:
        with connection.schema_editor() as editor:
            for each in made:
                editor.delete_model(each)


def tasks_db() -> Any:
    return model(
        "Result",
        "django_tasks_database_dbtaskresult",
        id=models.UUIDField(primary_key=True, default=uuid.uuid4),
        status=models.CharField(max_length=10, default="READY"),
        enqueued_at=models.DateTimeField(default=NOW),
        args_kwargs=models.JSONField(),
        priority=models.IntegerField(default=0),
        task_path=models.TextField(),
        queue_name=models.CharField(max_length=32, default="default"),
        run_after=models.DateTimeField(default=NEVER),
    )


def imported(*words: str) -> str:
    """What the command prints."""
    out = io.StringIO()
    call_command("dbtasks", "import", *words, stdout=out, stderr=out)
    return out.getvalue()


def refused(*words: str) -> str:
    """What it prints, when it ends with exit code 1."""
    out = io.StringIO()
    with pytest.raises(SystemExit) as ended:
        call_command("dbtasks", "import", *words, stdout=out, stderr=out)
    assert ended.value.code == 1
    return out.getvalue()


def stored() -> list[tuple[Any, ...]]:
    found = ScheduledTask.objects.order_by("id")
    return [(row.task_path, row.args, row.kwargs, row.queue, row.priority) for row in found]


# Rows


def test_pending_rows_of_django_tasks_db_are_taken_over_once(db: None) -> None:
    source = tasks_db()
    with tables(source):
        call = {"task_path": ADD, "args_kwargs": {"args": [2], "kwargs": {"b": 3}}}
        source.objects.create(**call, enqueued_at=NOW + HOUR, priority=7, queue_name="email")
        source.objects.create(**call | {"task_path": NOOP, "args_kwargs": {"args": []}})
        source.objects.create(**call, status="SUCCESSFUL")
        source.objects.create(**call, status="RUNNING")
        assert "would be imported\t2" in imported("--from", "django-tasks-db", "--dry-run")
        assert stored() == []
        assert imported("--from", "django-tasks-db").splitlines() == [
            "imported\t2",
            "there already\t0",
            "refused\t0",
        ]
        # The older one first, whatever its id was there.
        assert stored() == [(NOOP, [], {}, "default", 0), (ADD, [2], {"b": 3}, "email", 7)]
        assert "there already\t2" in imported("--from", "django-tasks-db")
        assert len(stored()) == 2
        assert "imported\t1" in imported("--from", "django-tasks-db", "--running")
    row = ScheduledTask.objects.get(queue="email")
    assert (row.enqueued_at, row.ready_queue) == (NOW + HOUR, "email")


def test_work_that_waits_for_its_time_goes_on_waiting(db: None) -> None:
    source = tasks_db()
    later = datetime.datetime(2999, 1, 1, tzinfo=datetime.UTC)
    with tables(source):
        source.objects.create(task_path=NOOP, args_kwargs={"args": []}, run_after=later)
        imported("--from", "django-tasks-db")
    row = ScheduledTask.objects.get()
    assert (row.run_after, row.due_at, row.ready_queue) == (later, later, None)


def test_what_is_no_task_is_refused_and_the_rest_comes(db: None) -> None:
    source = tasks_db()
    with tables(source):
        for path in (NOOP, "os.system", "nowhere.tasks.gone"):
            source.objects.create(task_path=path, args_kwargs={"args": []})
        source.objects.create(task_path=NOOP, args_kwargs=["no object"], queue_name="ok")
        source.objects.create(task_path=NOOP, args_kwargs={"args": "text"})
        told = refused("--from", "django-tasks-db")
    assert "refused\t3" in told
    assert "os.system" in told
    assert "nowhere" in told
    assert "its arguments are no list" in told
    assert ScheduledTask.objects.count() == 2


def test_pending_jobs_of_dj_queue(db: None) -> None:
    identity = {"primary_key": True, "default": uuid.uuid4}
    job = model(
        "Job",
        "dj_queue_jobs",
        id=models.UUIDField(**identity),
        task_path=models.TextField(),
        queue_name=models.CharField(max_length=64, default="default"),
        priority=models.SmallIntegerField(default=0),
        payload=models.JSONField(default=dict),
        scheduled_at=models.DateTimeField(null=True),
        finished_at=models.DateTimeField(null=True),
        created_at=models.DateTimeField(default=NOW),
    )
    others = [
        model(name, table, job_id=models.UUIDField())
        for name, table in (
            ("Failed", "dj_queue_failed_executions"),
            ("Claimed", "dj_queue_claimed_executions"),
        )
    ]
    with tables(job, *others):
        payload = {"args": [1], "kwargs": {}}
        first, failed, claimed, done = (
            job.objects.create(task_path=ADD, payload=payload, priority=priority)
            for priority in (3000, 1, 2, 3)
        )
        job.objects.filter(pk=done.pk).update(finished_at=NOW)
        others[0].objects.create(job_id=failed.pk)
        others[1].objects.create(job_id=claimed.pk)
        imported("--from", "dj-queue")
        assert stored() == [(ADD, [1], {}, "default", 100)]  # as high as Django has it
        imported("--from", "dj-queue", "--running")
        assert sorted(row[4] for row in stored()) == [2, 100]
    assert first.pk


def test_the_earlier_django_dbtasks(db: None) -> None:
    source = model(
        "Old",
        "old_dbtasks_scheduledtask",
        id=models.UUIDField(primary_key=True, default=uuid.uuid4),
        status=models.CharField(max_length=10, default="READY"),
        enqueued_at=models.DateTimeField(default=NOW),
        args=models.JSONField(default=list),
        kwargs=models.JSONField(default=dict),
        task_path=models.TextField(),
        priority=models.IntegerField(default=0),
        queue=models.CharField(max_length=32, default="default"),
        run_after=models.DateTimeField(null=True),
    )
    with tables(source):
        source.objects.create(task_path=ADD, args=[4], kwargs={"b": 5})
        imported("--from", "django-dbtasks")
    assert stored() == [(ADD, [4], {"b": 5}, "default", 0)]


def test_a_table_that_is_not_there_is_named(db: None) -> None:
    with pytest.raises(CommandError, match="there is no table 'dj_queue_jobs' in DATABASES"):
        imported("--from", "dj-queue")
    with pytest.raises(CommandError, match="--database 'nowhere' is no alias in DATABASES"):
        imported("--from", "dj-queue", "--database", "nowhere")


@pytest.mark.once
def test_ids_grow_with_age_and_are_the_same_each_time() -> None:
    def pending(minutes: int, id: uuid.UUID) -> rows.Pending:
        enqueued = NOW + datetime.timedelta(minutes=minutes)
        return rows.Pending(id, add.module_path, [], {}, "default", 0, None, enqueued)

    ids = [uuid.uuid4() for _ in range(50)]
    made = [pending(minutes, id).new_id for minutes, id in enumerate(ids)]
    assert made == sorted(set(made))
    assert {id.version for id in made} == {7}
    assert made == [pending(minutes, id).new_id for minutes, id in enumerate(ids)]


# Schedules


def settings_of(text: str) -> Any:
    """The printed Python, executed; it must be free of problems."""
    namespace: dict[str, Any] = {}
    exec(text, namespace)
    _, problems = parse_options("default", {"periodic": namespace["PERIODIC"]})
    assert problems == []
    return namespace["PERIODIC"]


def test_schedules_of_celery_beat(db: None) -> None:
    crontab = model(
        "Crontab",
        "django_celery_beat_crontabschedule",
        timezone=models.CharField(max_length=63, default="Europe/Berlin"),
        **{
            name: models.CharField(max_length=240, default="*")
            for name in ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
        },
    )
    interval = model(
        "Interval",
        "django_celery_beat_intervalschedule",
        every=models.IntegerField(),
        period=models.CharField(max_length=24),
    )
    periodic = model(
        "Periodic",
        "django_celery_beat_periodictask",
        name=models.CharField(max_length=200),
        task=models.CharField(max_length=200, default=NOOP),
        args=models.TextField(default="[]"),
        kwargs=models.TextField(default="{}"),
        queue=models.CharField(max_length=200, null=True),
        priority=models.IntegerField(null=True),
        enabled=models.BooleanField(default=True),
        one_off=models.BooleanField(default=False),
        crontab_id=models.IntegerField(null=True),
        interval_id=models.IntegerField(null=True),
    )
    with tables(crontab, interval, periodic):
        nightly = crontab.objects.create(minute="30", hour="3", day_of_week="1-5")
        both = crontab.objects.create(day_of_month="1", day_of_week="1")
        often = interval.objects.create(every=15, period="minutes")
        tiny = interval.objects.create(every=15, period="microseconds")
        periodic.objects.create(name="a", crontab_id=nightly.pk, args="[1]", queue="email")
        periodic.objects.create(name="b", interval_id=often.pk, task=ADD, kwargs='{"b": 2}')
        for name, more in {
            "off": {"enabled": False, "interval_id": often.pk},
            "once": {"one_off": True, "interval_id": often.pk},
            "both": {"crontab_id": both.pk},
            "tiny": {"interval_id": tiny.pk},
            "sun": {},
            "odd": {"interval_id": often.pk, "args": "[1"},
            "number": {"interval_id": often.pk, "args": "5"},
        }.items():
            periodic.objects.create(name=name, **more)
        told = refused("--from", "celery-beat")
    entries = settings_of(told[: told.index("\n}") + 2])
    (nightly_entry,) = entries[NOOP]
    assert (nightly_entry.schedule, nightly_entry.timezone) == ("30 3 * * 1-5", "Europe/Berlin")
    assert (nightly_entry.queue, list(nightly_entry.args)) == ("email", [1])
    (often_entry,) = entries[ADD]
    assert (often_entry.schedule, often_entry.kwargs) == ("900s", {"b": 2})
    for name in ("off", "once", "both", "tiny", "sun", "odd", "number"):
        assert f"'{name}' refused: " in told


class Crontab:
    """As celery.schedules.crontab keeps what it was made of."""

    def __init__(self, **fields: str) -> None:
        for name in ("minute", "hour", "day_of_month", "month_of_year", "day_of_week"):
            setattr(self, f"_orig_{name}", fields.get(name, "*"))


BEAT = {
    "nightly": {"task": NOOP, "schedule": Crontab(minute="0", hour="4"), "args": (1,)},
    "often": {"task": ADD, "schedule": 30.0, "options": {"queue": "email"}},
    "hourly": {"task": ADD, "schedule": HOUR},
    "sun": {"task": ADD, "schedule": object()},
}


@pytest.mark.once
@override_settings(CELERY_BEAT_SCHEDULE=BEAT)
def test_schedules_in_celerys_settings() -> None:
    told = refused("--from", "celery-settings")
    entries = settings_of(told[: told.index("\n}") + 2])
    assert [entry.schedule for entry in entries[NOOP]] == ["0 4 * * *"]
    assert [entry.schedule for entry in entries[ADD]] == ["30s", "3600s"]
    assert "'sun' refused: its schedule is a object" in told


@pytest.mark.once
def test_without_a_beat_schedule_it_says_what_to_write() -> None:
    with pytest.raises(CommandError, match="the settings have no CELERY_BEAT_SCHEDULE"):
        imported("--from", "celery-settings")


@pytest.mark.once
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("I", "15m"),
        ("C", "5 4 * * *"),
        ("H", "30 * * * *"),
        ("D", "30 12 * * *"),
        ("W", "30 12 * * 4"),
        ("BW", "2w"),
        ("Y", "30 12 31 1 *"),
    ],
)
def test_types_of_django_q2(kind: str, expected: str) -> None:
    assert schedules.q2_times(kind, 15, "5 4 * * *", NOW)["schedule"] == expected


@pytest.mark.once
def test_types_of_django_q2_by_month() -> None:
    tenth = NOW.replace(day=10)
    assert schedules.q2_times("M", None, None, tenth)["schedule"] == "30 12 10 * *"
    assert schedules.q2_times("Q", None, None, tenth)["schedule"] == "30 12 10 1,4,7,10 *"
    assert schedules.q2_times("BM", None, None, tenth)["schedule"] == "30 12 10 1,3,5,7,9,11 *"
    for kind, due in (("M", NOW), ("O", NOW), ("D", None), ("?", NOW)):
        assert "problem" in schedules.q2_times(kind, None, None, due)


def test_schedules_of_django_q2(db: None) -> None:
    source = model(
        "Schedule",
        "django_q_schedule",
        name=models.CharField(max_length=100, null=True),
        func=models.CharField(max_length=256, default=ADD),
        args=models.TextField(null=True),
        kwargs=models.TextField(null=True),
        schedule_type=models.CharField(max_length=2, default="D"),
        minutes=models.IntegerField(null=True),
        repeats=models.IntegerField(default=-1),
        cron=models.CharField(max_length=100, null=True),
        next_run=models.DateTimeField(null=True, default=NOW),
    )
    with tables(source):
        source.objects.create(name="sum", args="1, 'two'", kwargs="b=3")
        source.objects.create(name="few", repeats=2)
        source.objects.create(name="evil", args="__import__('os').system('true')")
        told = refused("--from", "django-q2")
    entries = settings_of(told[: told.index("\n}") + 2])
    (entry,) = entries[ADD]
    assert (entry.schedule, entry.timezone) == ("30 12 * * *", "UTC")
    assert (list(entry.args), entry.kwargs) == ([1, "two"], {"b": 3})
    assert "'few' refused: it runs 2 times more" in told
    assert "'evil' refused: its arguments are no literals" in told
