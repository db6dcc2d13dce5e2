"""dbtasks: run Django's tasks in production from the database that a project already has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .exceptions import Discard, Retry, TaskCancelled, TaskInterrupted, TaskTimeout, WorkerDied
from .periodic import Periodic
from .schedule import Crontab, Duration, Every, Schedule

if TYPE_CHECKING:
    from .tasks import Task, task

__all__ = [
    "Crontab",
    "Discard",
    "Duration",
    "Every",
    "Periodic",
    "Retry",
    "Schedule",
    "Task",
    "TaskCancelled",
    "TaskInterrupted",
    "TaskTimeout",
    "WorkerDied",
    "task",
]


def __getattr__(name: str) -> Any:
    # django.tasks needs settings, and settings name Periodic: the task names load when asked for.
    if name in ("Task", "task"):
        from . import tasks

        return getattr(tasks, name)
    if name == "__version__":
        return _version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _version() -> str:
    # Every process would carry what this imports, and hardly any asks.
    from importlib import metadata

    try:
        return metadata.version("django-dbtasks")
    except metadata.PackageNotFoundError:  # a checkout on the path
        return "0"
