"""Schedules of other products as entries of OPTIONS["periodic"], to be put into the settings.

They are printed and not stored: a schedule belongs beside the code that it calls, under review.
What has no exact counterpart is refused with the reason.
"""

from __future__ import annotations

import ast
import dataclasses
import datetime
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from django.conf import settings
from django.db import connections

from ..fields import utc_value
from ..options import default_zone
from ..periodic import Periodic

CELERY_BEAT = """
SELECT p.name, p.task, p.args, p.kwargs, p.queue, p.priority, p.enabled, p.one_off,
    c.minute, c.hour, c.day_of_month, c.month_of_year, c.day_of_week, c.timezone,
    i.every, i.period
FROM django_celery_beat_periodictask p
LEFT JOIN django_celery_beat_crontabschedule c ON c.id = p.crontab_id
LEFT JOIN django_celery_beat_intervalschedule i ON i.id = p.interval_id
ORDER BY p.name"""
DJANGO_Q2 = """
SELECT id, name, func, args, kwargs, schedule_type, minutes, repeats, cron, next_run
FROM django_q_schedule ORDER BY id"""

UNITS = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One periodic entry, or why there is none (`problem`)."""

    name: str
    task_path: str
    schedule: str = ""
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    timezone: str | None = None
    queue: str | None = None
    priority: int | None = None
    problem: str = ""

    def checked(self) -> Entry:
        """Itself, or with the problem that dbtasks would have with it."""
        if self.problem:
            return self
        try:
            periodic = Periodic(
                self.schedule,
                args=list(self.args),
                kwargs=dict(self.kwargs),
                name=self.name,
                timezone=self.timezone,
            )
            periodic.bind(self.task_path, default_zone(), "latest")
        except ValueError as error:
            return dataclasses.replace(self, problem=str(error))
        return self

    def source(self) -> str:
        """As it is written in the settings."""
        words = [repr(self.schedule)]
        for field in ("args", "kwargs", "name", "timezone", "queue", "priority"):
            value = getattr(self, field)
            if value not in (None, (), {}):
                words.append(f"{field}={list(value) if field == 'args' else value!r}")
        return f"Periodic({', '.join(words)})"


def settings_text(entries: list[Entry]) -> str:
    """Python that can be pasted into the settings."""
    by_path: dict[str, list[Entry]] = {}
    for entry in entries:
        by_path.setdefault(entry.task_path, []).append(entry)
    lines = ["from dbtasks import Periodic", "", 'PERIODIC = {  # TASKS[…]["OPTIONS"]["periodic"]']
    for path, several in by_path.items():
        lines.append(f"    {path!r}: [")
        lines += [f"        {entry.source()}," for entry in several]
        lines.append("    ],")
    return "\n".join([*lines, "}"])


# django-celery-beat


def celery_beat(alias: str) -> Iterator[Entry]:
    for row in rows_of(alias, "django_celery_beat_periodictask", CELERY_BEAT):
        name, path, args, kwargs, queue, _, enabled, one_off, *times = row
        entry = Entry(name, path)
        try:
            entry = dataclasses.replace(
                entry,
                args=tuple(json.loads(args or "[]")),
                kwargs=dict(json.loads(kwargs or "{}")),
                queue=queue or None,
            )
        except (ValueError, TypeError) as error:
            problem = f"its arguments are no list and object in JSON: {error}"
            yield dataclasses.replace(entry, problem=problem)
            continue
        if not enabled:
            problem = "it is not enabled"
        elif one_off:
            problem = "it runs once only; enqueue it with run_after"
        else:
            yield dataclasses.replace(entry, **celery_times(*times)).checked()
            continue
        yield dataclasses.replace(entry, problem=problem)


def celery_times(
    minute: Any, hour: Any, day: Any, month: Any, weekday: Any, zone: Any, every: Any, period: Any
) -> dict[str, Any]:
    """The changes to an entry that its schedule makes."""
    if every is not None:
        if period not in UNITS:
            return {"problem": f"an interval of {every} {period} is too short"}
        return {"schedule": f"{every * UNITS[period]}s"}
    if minute is None:
        return {"problem": "its schedule is neither a crontab nor an interval"}
    zone_name = str(zone) if zone else None
    return celery_crontab(minute, hour, day, month, weekday) | {"timezone": zone_name}


def celery_crontab(minute: Any, hour: Any, day: Any, month: Any, weekday: Any) -> dict[str, Any]:
    fields = [str(field).replace(" ", "") for field in (minute, hour, day, month, weekday)]
    if fields[2] != "*" and fields[4] != "*":
        return {
            "problem": "Celery wants both, day of month and day of week; a crontab is content "
            "with either of them. Test the weekday inside the task"
        }
    return {"schedule": " ".join(fields)}


# CELERY_BEAT_SCHEDULE


def celery_settings(alias: str) -> Iterator[Entry]:
    """From the project's settings; no database is asked."""
    table = getattr(settings, "CELERY_BEAT_SCHEDULE", None)
    if not isinstance(table, Mapping):
        raise ValueError(
            "the settings have no CELERY_BEAT_SCHEDULE. If it is set on the Celery app, assign the "
            "same dictionary to CELERY_BEAT_SCHEDULE in the settings for this command."
        )
    for name, entry in table.items():
        options = entry.get("options") or {}
        yield dataclasses.replace(
            Entry(str(name), str(entry.get("task", ""))),
            args=tuple(entry.get("args") or ()),
            kwargs=dict(entry.get("kwargs") or {}),
            queue=options.get("queue"),
            **celery_object(entry.get("schedule")),
        ).checked()


def celery_object(value: Any) -> dict[str, Any]:
    """A number of seconds, a timedelta, or an object of celery.schedules."""
    value = getattr(value, "run_every", value) if not hasattr(value, "_orig_minute") else value
    match value:
        case datetime.timedelta():
            return {"schedule": f"{value.total_seconds():g}s"}
        case bool():
            return {"problem": f"its schedule is {value!r}"}
        case int() | float():
            return {"schedule": f"{value:g}s"}
    names = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
    fields = [getattr(value, f"_orig_{name}", None) for name in names]
    if None in fields:
        return {"problem": f"its schedule is a {type(value).__name__}"}
    return celery_crontab(*fields)


# django-q2


def django_q2(alias: str) -> Iterator[Entry]:
    connection = connections[alias]
    for row in rows_of(alias, "django_q_schedule", DJANGO_Q2):
        id, name, func, args, kwargs, kind, minutes, repeats, cron, next_run = row
        entry = Entry(name or f"{func}-{id}", func)
        try:
            entry = dataclasses.replace(entry, args=positional(args), kwargs=named(kwargs))
        except (ValueError, SyntaxError):
            yield dataclasses.replace(entry, problem="its arguments are no literals of Python")
            continue
        if repeats is not None and repeats >= 0:
            yield dataclasses.replace(entry, problem=f"it runs {repeats} times more and then ends")
            continue
        due = None if next_run is None else utc_value(next_run, connection)
        yield dataclasses.replace(entry, **q2_times(kind, minutes, cron, due)).checked()


def q2_times(
    kind: str, minutes: int | None, cron: str | None, due: datetime.datetime | None
) -> dict[str, Any]:
    """The types of django_q.models.Schedule; calendars are those of its next run, in UTC."""
    if kind == "I":
        return {"schedule": f"{minutes}m"}
    if kind == "C":
        return {"schedule": str(cron)}
    if kind == "O":
        return {"problem": "it runs once only; enqueue it with run_after"}
    if due is None:
        return {"problem": "it has no next run, which says at what time it is due"}
    clock = f"{due.minute} {due.hour}"
    weekday = due.isoweekday() % 7
    made: dict[str, Callable[[], str]] = {
        "H": lambda: f"{due.minute} * * * *",
        "D": lambda: f"{clock} * * *",
        "W": lambda: f"{clock} * * {weekday}",
        "BW": lambda: "2w",
        "M": lambda: f"{clock} {due.day} * *",
        "BM": lambda: f"{clock} {due.day} {months(due.month, 2)} *",
        "Q": lambda: f"{clock} {due.day} {months(due.month, 3)} *",
        "Y": lambda: f"{clock} {due.day} {due.month} *",
    }
    if kind not in made:
        return {"problem": f"its type {kind!r} is not known"}
    if kind in ("M", "BM", "Q") and due.day > 28:
        return {"problem": f"not every month has a day {due.day}; write L for the last day"}
    return {"schedule": made[kind](), "timezone": "UTC"}


def months(first: int, step: int) -> str:
    return ",".join(
        map(str, sorted({(first - 1 + ahead) % 12 + 1 for ahead in range(0, 12, step)}))
    )


def positional(text: str | None) -> tuple[Any, ...]:
    """django-q2 stores "1, 2, 'John'"."""
    return tuple(ast.literal_eval(f"({text},)")) if text and text.strip() else ()


def named(text: str | None) -> dict[str, Any]:
    """django-q2 stores "x=1, y=2", or a dictionary."""
    if not text or not text.strip():
        return {}
    if text.strip().startswith("{"):
        return dict(ast.literal_eval(text.strip()))
    call = ast.parse(f"f({text})", mode="eval").body
    if not isinstance(call, ast.Call) or call.args or None in [word.arg for word in call.keywords]:
        raise ValueError(text)
    return {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}


def rows_of(alias: str, table: str, text: str) -> list[tuple[Any, ...]]:
    """Raises ValueError where there is no such table."""
    connection = connections[alias]
    if table not in connection.introspection.table_names():
        raise ValueError(
            f"there is no table {table!r} in DATABASES[{alias!r}]; name the database with "
            "--database."
        )
    with connection.cursor() as cursor:
        cursor.execute(text)
        return list(cursor.fetchall())


SOURCES: dict[str, Callable[[str], Iterator[Entry]]] = {
    "celery-beat": celery_beat,
    "celery-settings": celery_settings,
    "django-q2": django_q2,
}
