"""Pending work in the table of another product becomes scheduled tasks of ours.

The source is only read. A row gets an id of ours that grows with its age and is always the same
for the same row, so that an import can be run again, and old work comes before new.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from django.conf import settings
from django.db import connections
from django.tasks.base import TASK_MAX_PRIORITY, TASK_MIN_PRIORITY
from django.utils import timezone

from ..backend import DatabaseBackend
from ..engines import NewTask
from ..fields import as_utc, utc_value
from ..models import ScheduledTask
from ..results import resolve_task

BATCH = 500
NEVER = 9999  # the year by which django-tasks-db says that a task need not wait

# Each gives id, task path, args, kwargs or both in one, queue, priority, run_after, enqueued_at.
DJANGO_TASKS_DB = """
SELECT id, task_path, args_kwargs, NULL, queue_name, priority, run_after, enqueued_at
FROM {table} WHERE status IN ({states}) ORDER BY enqueued_at, id"""
# What failed there has finished_at NULL as well; what a worker has claimed is running.
DJ_QUEUE = """
SELECT j.id, j.task_path, j.payload, NULL, j.queue_name, j.priority, j.scheduled_at, j.created_at
FROM {table} j
WHERE j.finished_at IS NULL
    AND NOT EXISTS (SELECT 1 FROM dj_queue_failed_executions f WHERE f.job_id = j.id){unclaimed}
ORDER BY j.created_at, j.id"""
DJ_QUEUE_UNCLAIMED = """
    AND NOT EXISTS (SELECT 1 FROM dj_queue_claimed_executions c WHERE c.job_id = j.id)"""
DJANGO_DBTASKS = """
SELECT id, task_path, args, kwargs, queue, priority, run_after, enqueued_at
FROM {table} WHERE status IN ({states}) ORDER BY enqueued_at, id"""

TABLES = {
    "django-tasks-db": "django_tasks_database_dbtaskresult",
    "dj-queue": "dj_queue_jobs",
    "django-dbtasks": "old_dbtasks_scheduledtask",
}


@dataclasses.dataclass(frozen=True)
class Pending:
    """One row of the source. `enqueued_at` and `run_after` are aware and in UTC."""

    id: uuid.UUID
    task_path: str
    args: list[Any]
    kwargs: dict[str, Any]
    queue: str
    priority: int
    run_after: datetime.datetime | None
    enqueued_at: datetime.datetime

    @property
    def new_id(self) -> uuid.UUID:
        """A UUIDv7 of the time at which it was enqueued, and of the row's own id."""
        milliseconds = int(self.enqueued_at.timestamp() * 1000)
        value = (milliseconds & 0xFFFF_FFFF_FFFF) << 80 | 0x7 << 76 | 0b10 << 62
        return uuid.UUID(int=value | self.id.int & (0xFFF << 64 | 0x3FFF_FFFF_FFFF_FFFF))


@dataclasses.dataclass
class Counts:
    """`refused`: the reason in words, by the id in the source."""

    imported: int = 0
    known: int = 0
    refused: dict[str, str] = dataclasses.field(default_factory=dict)


def read(
    source: str, alias: str, *, table: str | None = None, running: bool = False
) -> Iterator[Pending | tuple[str, str]]:
    """The pending rows, oldest first; of one that cannot be understood its id and why.

    `alias`: the database; `running`: also those that its workers had begun. Raises ValueError
    where there is no such table.
    """
    connection = connections[alias]
    table = table or TABLES[source]
    if table not in connection.introspection.table_names():
        raise ValueError(
            f"there is no table {table!r} in DATABASES[{alias!r}]. Name the database of "
            f"{source} with --database, and its table with --table."
        )
    text = statement(source, connection.ops.quote_name(table), running)
    with connection.cursor() as cursor:
        cursor.execute(text)
        rows = cursor.fetchall()
    for row in rows:
        try:
            yield pending(row, connection)
        except (ValueError, TypeError, KeyError) as error:
            yield str(row[0]), f"cannot be read: {error}"


def statement(source: str, table: str, running: bool) -> str:
    if source == "dj-queue":
        return DJ_QUEUE.format(table=table, unclaimed="" if running else DJ_QUEUE_UNCLAIMED)
    states = "'READY', 'RUNNING'" if running else "'READY'"
    text = DJANGO_TASKS_DB if source == "django-tasks-db" else DJANGO_DBTASKS
    return text.format(table=table, states=states)


def pending(row: tuple[Any, ...], connection: Any) -> Pending:
    id, path, first, second, queue, priority, run_after, enqueued_at = row
    args, kwargs = document(first), document(second)
    if isinstance(args, Mapping):  # both in one
        args, kwargs = args.get("args", []), args.get("kwargs", {})
    if not isinstance(args, list) or not isinstance(kwargs or {}, Mapping):
        raise ValueError("its arguments are no list and no object")
    due = None if run_after is None else moment(run_after, connection)
    return Pending(
        id=uuid.UUID(str(id)),
        task_path=str(path),
        args=args,
        kwargs=dict(kwargs or {}),
        queue=str(queue),
        priority=max(TASK_MIN_PRIORITY, min(int(priority), TASK_MAX_PRIORITY)),
        run_after=None if due is None or due.year >= NEVER else due,
        enqueued_at=moment(enqueued_at, connection),
    )


def document(value: Any) -> Any:
    """JSON as the driver gives it: text, or read already."""
    return json.loads(value) if isinstance(value, (str, bytes)) else value


def moment(value: Any, connection: Any) -> datetime.datetime:
    """A time that Django's own DateTimeField stored: in UTC, or local without USE_TZ."""
    if settings.USE_TZ or connection.vendor == "postgresql":
        return utc_value(value, connection)
    return as_utc(datetime.datetime.fromisoformat(str(value)))


def add(
    backend: DatabaseBackend, rows: Iterable[Pending | tuple[str, str]], *, dry_run: bool = False
) -> Counts:
    """Adds the rows that are not there yet, in batches. Nothing is written with `dry_run`."""
    counts = Counts()
    for batch in itertools.batched(rows, BATCH):
        found: dict[uuid.UUID, NewTask] = {}
        for item in batch:
            if isinstance(item, tuple):
                counts.refused[item[0]] = item[1]
                continue
            try:
                found[item.new_id] = new_row(backend, item)
            except Exception as error:  # what an import of user code raises is not for us to choose
                counts.refused[str(item.id)] = f"{item.task_path}: {error}"
        known = known_ids(backend, found)
        new = [row for id, row in found.items() if id not in known]
        counts.known += len(known)
        counts.imported += len(new)
        if new and not dry_run:
            backend.insert(new, notify=backend.parsed.notify)
    return counts


def new_row(backend: DatabaseBackend, item: Pending) -> NewTask:
    """Under the rules of enqueue(). Raises ImportError, InvalidTask, TypeError or ValueError."""
    run_after = item.run_after
    if run_after is not None and not settings.USE_TZ:
        run_after = timezone.make_naive(run_after, timezone.get_default_timezone())
    task = resolve_task(item.task_path).using(
        backend=backend.alias,
        queue_name=item.queue,
        priority=item.priority,
        run_after=run_after,
    )
    backend.validate_task(task)
    shape = backend.new_shape(task)
    row = backend.row_of(shape, list(item.args), dict(item.kwargs), timezone.now())
    return row._replace(id=item.new_id.hex, enqueued_at=item.enqueued_at)


def known_ids(backend: DatabaseBackend, ids: Iterable[uuid.UUID]) -> set[uuid.UUID]:
    rows = ScheduledTask.objects.using(backend.parsed.database)
    return set(rows.filter(pk__in=list(ids)).values_list("pk", flat=True))
