"""The Task class that carries our options, and the decorator that takes them.

On Django 6.1 the options go into `django.tasks.task`; Django 6.0's decorator takes no options of a
backend, so there (and wherever types matter) `dbtasks.task` is used, which works on both.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar, overload

from django.tasks import DEFAULT_TASK_BACKEND_ALIAS, DEFAULT_TASK_QUEUE_NAME, task_backends
from django.tasks.base import DEFAULT_TASK_PRIORITY
from django.tasks.base import Task as DjangoTask

from .policy import DurationLike

P = ParamSpec("P")
T = TypeVar("T")

ExceptionTypes = type[BaseException] | tuple[type[BaseException], ...]
OWN_OPTIONS = (
    "max_attempts",
    "backoff",
    "retry_for",
    "timeout",
    "max_crashes",
    "retain",
    "ack",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(DjangoTask):
    """A Django task with the options of this backend; `None` means: as OPTIONS says.

    max_attempts: how often it may raise before it is FAILED (>= 1).
    backoff: "exponential", a Duration, or a list of them, the last of which repeats.
    retry_for: the exceptions that are worth another attempt (default: all).
    timeout: a Duration after which TaskTimeout is raised in it.
    max_crashes: how often it runs again after its worker died (0: never).
    retain: a Duration after which its finished rows are deleted.
    ack: "batched" or "immediate": write its outcome with others', or as soon as it ends.
    """

    max_attempts: int | None = None
    backoff: str | DurationLike | list[DurationLike] | tuple[DurationLike, ...] | None = None
    retry_for: ExceptionTypes | list[type[BaseException]] | None = None
    timeout: DurationLike | None = None
    max_crashes: int | None = None
    retain: DurationLike | None = None
    ack: str | None = None

    def using(
        self,
        *,
        priority: int | None = None,
        queue_name: str | None = None,
        run_after: datetime.datetime | None = None,
        backend: str | None = None,
        **options: Any,
    ) -> Task:
        """A new Task with modified defaults; takes our options as well as Django's."""
        unknown = options.keys() - set(OWN_OPTIONS)
        if unknown:
            raise TypeError(
                f"using() got unknown options: {', '.join(sorted(unknown))}. "
                f"There are: priority, queue_name, run_after, backend, {', '.join(OWN_OPTIONS)}."
            )
        changes: dict[str, Any] = {
            "priority": priority,
            "queue_name": queue_name,
            "run_after": run_after,
            "backend": backend,
            **options,
        }
        return replace(self, **{key: v for key, v in changes.items() if v is not None})


@overload
def task[**P, T](function: Callable[P, T], /) -> Task: ...


@overload
def task(
    *,
    priority: int = ...,
    queue_name: str = ...,
    backend: str = ...,
    takes_context: bool = ...,
    max_attempts: int | None = ...,
    backoff: str | DurationLike | list[DurationLike] | None = ...,
    retry_for: ExceptionTypes | list[type[BaseException]] | None = ...,
    timeout: DurationLike | None = ...,
    max_crashes: int | None = ...,
    retain: DurationLike | None = ...,
    ack: str | None = ...,
) -> Callable[[Callable[P, T]], Task]: ...


def task(
    function: Callable[..., Any] | None = None,
    /,
    *,
    priority: int = DEFAULT_TASK_PRIORITY,
    queue_name: str = DEFAULT_TASK_QUEUE_NAME,
    backend: str = DEFAULT_TASK_BACKEND_ALIAS,
    takes_context: bool = False,
    **options: Any,
) -> Any:
    """Makes a module-level function a task, with Django's options and ours (see Task).

    Raises TypeError for an unknown option and InvalidTask for a wrong value.
    """
    unknown = options.keys() - set(OWN_OPTIONS)
    if unknown:
        raise TypeError(
            f"task() got unknown options: {', '.join(sorted(unknown))}. "
            f"There are: {', '.join(OWN_OPTIONS)}."
        )

    def wrapper(func: Callable[..., Any]) -> DjangoTask:
        task_class = task_backends[backend].task_class
        own = options if issubclass(task_class, Task) else {}
        return task_class(
            func=func,
            priority=priority,
            queue_name=queue_name,
            backend=backend,
            takes_context=takes_context,
            run_after=None,
            **own,
        )

    return wrapper if function is None else wrapper(function)
