"""The scheduled task of one occurrence: its task, its arguments, and what if they cannot be had."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from django.tasks import DEFAULT_TASK_QUEUE_NAME
from django.tasks.base import Task as DjangoTask

from ..engines import NewTask
from ..options import CLEANUP_PATH
from ..results import missing_task, resolve_task, unchecked
from .definition import BoundPeriodic

if TYPE_CHECKING:
    from ..backend import DatabaseBackend


def periodic_task(backend: DatabaseBackend, entry: BoundPeriodic) -> DjangoTask:
    """The task of an entry with its queue and priority. Raises ImportError or InvalidTask."""
    task = resolve_task(entry.task_path)
    queue, priority = entry.definition.queue, entry.definition.priority
    if entry.task_path == CLEANUP_PATH:
        # Ours, so it must fit every backend: without a default queue it goes to another one.
        if queue is None and backend.queues and task.queue_name not in backend.queues:
            queue = min(backend.queues)
        return unchecked(
            task,
            backend=backend.alias,
            queue_name=queue or task.queue_name,
            priority=priority or task.priority,
        )
    if queue is None and priority is None:
        return task
    changes: dict[str, Any] = {}
    if queue is not None:
        changes["queue_name"] = queue
    if priority is not None:
        changes["priority"] = priority
    return task.using(**changes)


def stand_in(backend: DatabaseBackend, entry: BoundPeriodic) -> DjangoTask:
    """What a FAILED row names as its task where there is none that could be imported."""
    queue = entry.definition.queue or DEFAULT_TASK_QUEUE_NAME
    return missing_task(entry.task_path, entry.definition.priority or 0, queue, None, backend.alias)


def new_row(
    backend: DatabaseBackend,
    entry: BoundPeriodic,
    task: DjangoTask,
    args: list[Any],
    kwargs: Mapping[str, Any],
) -> NewTask:
    """Raises TypeError or ValueError for arguments that are no JSON."""
    now = datetime.datetime.now(datetime.UTC)
    return backend.new_row(task, args, kwargs, now, periodic=entry.name, retain=entry.retain)
