"""TaskResults from rows, and the tasks that rows name."""

from __future__ import annotations

import datetime
import functools
import sys
from collections.abc import Callable
from dataclasses import MISSING
from typing import Any

from django.tasks.base import Task as DjangoTask
from django.tasks.base import TaskError, TaskResult, TaskResultStatus
from django.utils.module_loading import import_string

from .engines import Claimed, Engine
from .fields import load_json
from .ids import dashed
from .models import PATH_MAX_LENGTH, ScheduledTask
from .tasks import Task


class NotATask(ImportError):
    """The path of a row names something that is not a task."""


def resolve_task(path: str) -> DjangoTask:
    """The task that `path` names. Raises ImportError if there is none.

    What is no Task is never called: rows can be written by others than enqueue().
    """
    task = _resolved.get(path)
    if task is None:
        refuse_odd_path(path)
        task = import_string(path)
        if not isinstance(task, DjangoTask):
            raise NotATask(f"{path!r} is a {type(task).__qualname__}, not a task")
        _resolved[path] = task
    return task


_resolved: dict[str, DjangoTask] = {}


def refuse_odd_path(path: str) -> None:
    """Raises ImportError for what cannot be a task's path, before anything is imported for it.

    An import runs the module. So what is imported already may be looked at; else it must be no
    part of Python itself, and no script (`package.__main__` does its work when it is imported).
    """
    module, _, name = path.rpartition(".")
    names = [*module.split("."), name]
    if len(path) > PATH_MAX_LENGTH or not all(map(str.isidentifier, names)):
        raise NotATask(f"{path[:PATH_MAX_LENGTH]!r} is not the dotted path of a task")
    if module in sys.modules:
        return
    if names[0] in sys.stdlib_module_names or any(map(_is_dunder, names)):
        raise NotATask(f"{path!r} is not imported to look for a task in it")


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def task_of_row(
    path: str,
    priority: int,
    queue: str,
    run_after: datetime.datetime | None,
    backend: str,
) -> DjangoTask:
    """The task as it was enqueued; one that is gone is replaced by a stand-in of the same name."""
    try:
        task = resolve_task(path)
    except (Exception, SystemExit):  # a script that was not meant to be imported
        return missing_task(path, priority, queue, run_after, backend)
    if (task.priority, task.queue_name, task.run_after, task.backend) == (
        priority,
        queue,
        run_after,
        backend,
    ):
        return task
    return unchecked(
        task, priority=priority, queue_name=queue, run_after=run_after, backend=backend
    )


def unchecked(task: DjangoTask, **changes: Any) -> DjangoTask:
    """A copy with `changes`, without validation: a stored row may be older than the settings."""
    copy = object.__new__(type(task))
    for field in type(task).__dataclass_fields__:
        object.__setattr__(copy, field, changes.get(field, getattr(task, field)))
    return copy


def missing_task(
    path: str,
    priority: int,
    queue: str,
    run_after: datetime.datetime | None,
    backend: str,
) -> DjangoTask:
    """A task that has the path of one that cannot be imported, and says so when it is called."""
    blank = object.__new__(Task)
    for name, field in Task.__dataclass_fields__.items():
        object.__setattr__(blank, name, None if field.default is MISSING else field.default)
    return unchecked(
        blank,
        func=_missing_function(path),
        priority=priority,
        queue_name=queue,
        run_after=run_after,
        backend=backend,
        takes_context=False,
    )


@functools.lru_cache(maxsize=256)
def _missing_function(path: str) -> Callable[..., Any]:
    def missing(*args: Any, **kwargs: Any) -> None:
        raise ImportError(f"the task {path!r} cannot be imported")

    module, _, name = path.rpartition(".")
    missing.__module__, missing.__qualname__, missing.__name__ = module, name, name
    return missing


def result_of_row(row: ScheduledTask) -> TaskResult:
    """The TaskResult of a stored row; the worker that has it now counts as its last one."""
    worker_ids = row.worker_ids if isinstance(row.worker_ids, list) else []
    result: TaskResult = TaskResult(
        task=task_of_row(row.task_path, row.priority, row.queue, row.run_after, row.backend),
        id=str(row.id),
        status=TaskResultStatus(row.status),
        enqueued_at=row.enqueued_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        last_attempted_at=row.last_attempted_at,
        args=row.args,
        kwargs=row.kwargs,
        backend=row.backend,
        errors=task_errors(row.errors),
        worker_ids=[*worker_ids, row.claimed_by] if row.claimed_by else worker_ids,
    )
    object.__setattr__(result, "_return_value", row.return_value)
    return result


def result_of_claim(
    engine: Engine, task: DjangoTask, claimed: Claimed, args: Any, kwargs: Any, worker: str
) -> TaskResult:
    """The TaskResult of a row that `worker` is running."""
    run_after, enqueued_at, started_at, last_attempted_at = engine.moments(
        claimed.run_after, claimed.enqueued_at, claimed.started_at, claimed.last_attempted_at
    )
    if (task.priority, task.queue_name, task.run_after, task.backend) != (
        claimed.priority,
        claimed.queue,
        run_after,
        engine.backend,
    ):
        task = unchecked(
            task,
            priority=claimed.priority,
            queue_name=claimed.queue,
            run_after=run_after,
            backend=engine.backend,
        )
    return TaskResult(
        task=task,
        id=dashed(claimed.id),
        status=TaskResultStatus.RUNNING,
        enqueued_at=enqueued_at,
        started_at=started_at,
        finished_at=None,
        last_attempted_at=last_attempted_at,
        args=args,
        kwargs=kwargs,
        backend=engine.backend,
        errors=task_errors(json_list(claimed.errors)),
        worker_ids=[*json_list(claimed.worker_ids), worker],
    )


def update_result(result: TaskResult, **changes: Any) -> None:
    """Sets fields of a frozen TaskResult, as Django's own backends do."""
    for name, value in changes.items():
        object.__setattr__(result, name, value)


def json_list(text: str) -> list[Any]:
    """The list in a JSON column; what is none (a row written by hand) counts as empty."""
    if text == "[]":
        return []
    try:
        value = load_json(text)
    except ValueError:
        return []
    return value if isinstance(value, list) else []


def task_errors(entries: Any) -> list[TaskError]:
    return [
        TaskError(
            exception_class_path=str(entry.get("exception_class_path", "")),
            traceback=str(entry.get("traceback", "")),
        )
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict)
    ]
