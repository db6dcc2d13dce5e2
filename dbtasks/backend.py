"""DatabaseBackend: the contract of django.tasks on the queue's table."""

from __future__ import annotations

import datetime
import functools
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from asgiref.sync import sync_to_async
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.base import Task as DjangoTask
from django.tasks.base import TaskResult, TaskResultStatus
from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist
from django.tasks.signals import task_enqueued
from django.utils import timezone

from . import policy as policies
from .arguments import json_argument
from .engines import Engine, NewTask, get_engine
from .engines.portable import INSERT_BATCH
from .fields import as_utc
from .ids import dashed, new_id, parse_id
from .listeners import anybody_hears_enqueues
from .models import BACKEND_MAX_LENGTH, PATH_MAX_LENGTH, QUEUE_MAX_LENGTH, ScheduledTask
from .options import Options, Problem, import_exceptions, parse_options
from .policy import Policy, class_path
from .results import result_of_row, unchecked
from .tasks import Task
from .tracing import with_trace

# When this process loaded its code: tasks that it does not know but that a younger process
# enqueued are from a newer deployment.
CODE_SINCE = int(time.time())
MOST_SHAPES = 1000


class Shape(NamedTuple):
    """What all calls of one task object have in common, worked out and validated once.

    `task` is that object: it lives as long as this does, so that its id() stays its own.
    `shown` is the one that results carry.
    """

    task: DjangoTask
    shown: DjangoTask
    path: str
    queue: str
    priority: int
    run_after: datetime.datetime | None
    policy: str


class DatabaseBackend(BaseTaskBackend):
    """Keeps tasks in the database `OPTIONS["database"]`; dbtasks' runners execute them."""

    task_class = Task
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self.parsed, self.problems = parse_options(alias, self.options)
        if len(alias) > BACKEND_MAX_LENGTH:
            message = f"TASKS[{alias!r}]: an alias can have at most {BACKEND_MAX_LENGTH} characters"
            self.problems.append(Problem("BACKEND", message))
        self._shapes: dict[int, Shape] = {}

    @property
    def settings(self) -> Options:
        """The checked OPTIONS. Raises ImproperlyConfigured that names every wrong key."""
        if problems := self.all_problems():
            raise ImproperlyConfigured(" ".join(map(str, problems)))
        return self.parsed

    def all_problems(self) -> list[Problem]:
        """`problems`, and what shows only now that other modules can be imported."""
        found = self._retry_for
        return [*self.problems, found] if isinstance(found, Problem) else self.problems

    @functools.cached_property
    def _retry_for(self) -> tuple[type[BaseException], ...] | Problem:
        try:
            return import_exceptions(self.parsed.retry_for)
        except ValueError as error:
            where = f"TASKS[{self.alias!r}]['OPTIONS']['retry_for']"
            return Problem("retry_for", f"{where}: {error}.")

    @property
    def engine(self) -> Engine:
        return get_engine(self.parsed.database, self.alias)

    # Tasks

    def validate_task(self, task: DjangoTask) -> None:
        super().validate_task(task)
        if len(task.queue_name) > QUEUE_MAX_LENGTH:
            raise InvalidTask(f"queue_name can have at most {QUEUE_MAX_LENGTH} characters.")
        if not task.queue_name.strip() or task.queue_name.endswith("*"):
            raise InvalidTask(
                f"queue_name {task.queue_name!r} is not possible: a queue has a name, and one "
                "that ends with * would be a pattern for --queues."
            )
        if task.queue_name != task.queue_name.strip() or "," in task.queue_name:
            raise InvalidTask(
                f"queue_name {task.queue_name!r} is not possible: blanks at its ends do not count "
                "on MariaDB, and a comma separates the names in --queues."
            )
        if len(task.module_path) > PATH_MAX_LENGTH:
            raise InvalidTask(f"the task's path is longer than {PATH_MAX_LENGTH} characters.")
        try:
            self.policy_of(task)
        except ValueError as error:
            raise InvalidTask(f"{task.module_path}: {error}.") from None

    def policy_of(self, task: DjangoTask, retain: float | None = None) -> Policy:
        """What holds for this task: its own options, then OPTIONS. Raises ValueError.

        `retain`: seconds, from a periodic entry; wins over both.
        """
        default = self.parsed.policy
        path = task.module_path
        own = {
            name: value
            for name in ("max_attempts", "backoff", "timeout", "max_crashes", "retain", "ack")
            if (value := getattr(task, name, None)) is not None
        }
        changes = policies.parse_policy(own) if own else {}
        if (retry_for := getattr(task, "retry_for", None)) is not None:
            changes["retry_for"] = _class_paths(retry_for)
        if "retain" not in changes and path in self.parsed.retain_by_path:
            changes["retain"] = self.parsed.retain_by_path[path]
        if retain is not None:
            changes["retain"] = retain
        return _replaced(default, tuple(changes.items())) if changes else default

    def shape_of(self, task: DjangoTask) -> Shape:
        """The shape of a valid task. Raises InvalidTask."""
        known = self._shapes.get(id(task))
        if known is not None:
            return known
        self.validate_task(task)
        if len(self._shapes) >= MOST_SHAPES:  # each .using() makes a task object
            self._shapes.clear()
        shape = self._shapes[id(task)] = self.new_shape(task)
        return shape

    def new_shape(self, task: DjangoTask, retain: float | None = None) -> Shape:
        """`retain`: as for `policy_of`."""
        return Shape(
            task=task,
            shown=task if task.backend == self.alias else unchecked(task, backend=self.alias),
            path=task.module_path,
            queue=task.queue_name,
            priority=int(task.priority),
            run_after=None if task.run_after is None else as_utc(task.run_after),
            policy=_with_code(self.policy_of(task, retain).to_text()),
        )

    def may_retry(self, error: BaseException, policy: Policy) -> bool:
        """Whether `error` is one of those after which a task may run again."""
        if policy.retry_for is not None:
            return policy.names(error)
        default = self._retry_for
        return isinstance(error, BaseException if isinstance(default, Problem) else default)

    # Producing

    def enqueue(
        self, task: DjangoTask, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> TaskResult:
        """Adds one call of `task` in the caller's transaction.

        Raises TypeError or ValueError that names the argument which JSON cannot hold, InvalidTask,
        and ImproperlyConfigured where OPTIONS are wrong.
        """
        settings = self.settings
        if settings.immediate:
            return self.enqueue_all([(task, args, kwargs)])[0]
        # Else as enqueue_all does it, without its lists: what is done here is done for each call.
        shape, args, kwargs = self.shape_of(task), list(args), dict(kwargs)
        row = self.row_of(shape, args, kwargs, timezone.now())
        result = self.new_result(shape, args, kwargs, row)
        self.engine.insert((row,), settings.notify)
        self.announce((result,))
        return result

    def enqueue_all(
        self, calls: Iterable[tuple[DjangoTask, Sequence[Any], Mapping[str, Any]]]
    ) -> list[TaskResult]:
        """Adds many calls, (task, args, kwargs) each, in bulk and in the caller's transaction.

        Nothing is added if one of them is refused; errors are those of `enqueue`.
        """
        settings = self.settings
        now = timezone.now()
        rows, results = [], []
        for task, args, kwargs in calls:
            shape, args, kwargs = self.shape_of(task), list(args), dict(kwargs)
            row = self.row_of(shape, args, kwargs, now)
            rows.append(row)
            results.append(self.new_result(shape, args, kwargs, row))
        if settings.immediate:
            from .immediate import run_immediately

            now_rows = [pair for pair in zip(rows, results, strict=True) if pair[0].due_at is None]
            self.insert([row for row in rows if row.due_at is not None], notify=False)
            self.announce(results)
            for row, result in now_rows:
                run_immediately(self, row, result)
        else:
            self.insert(rows, notify=settings.notify)
            self.announce(results)
        return results

    def insert(self, rows: Sequence[NewTask], notify: bool) -> None:
        """All rows or none of them, also where they are too many for one statement."""
        if len(rows) <= INSERT_BATCH:
            self.engine.insert(rows, notify)
            return
        with transaction.atomic(using=self.parsed.database):
            self.engine.insert(rows, notify)

    async def aenqueue_all(
        self, calls: Iterable[tuple[DjangoTask, Sequence[Any], Mapping[str, Any]]]
    ) -> list[TaskResult]:
        return await sync_to_async(self.enqueue_all, thread_sensitive=True)(calls)

    def announce(self, results: Iterable[TaskResult]) -> None:
        """task_enqueued for each; a broken receiver must not make the caller enqueue again."""
        if self.parsed.signals and anybody_hears_enqueues():
            for result in results:
                task_enqueued.send_robust(type(self), task_result=result)

    def row_of(
        self, shape: Shape, args: list[Any], kwargs: dict[str, Any], now: datetime.datetime
    ) -> NewTask:
        """The row of one call. Raises TypeError or ValueError for what is not JSON."""
        run_after = shape.run_after
        return NewTask(
            id=new_id(),
            task_path=shape.path,
            args=json_argument(shape.task, "args", args),
            kwargs=json_argument(shape.task, "kwargs", kwargs),
            queue=shape.queue,
            priority=shape.priority,
            run_after=run_after,
            due_at=run_after if run_after is not None and run_after > as_utc(now) else None,
            enqueued_at=now,
            policy=with_trace(shape.policy),
        )

    def new_row(
        self,
        task: DjangoTask,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        now: datetime.datetime,
        *,
        periodic: str,
        retain: float | None,
    ) -> NewTask:
        """The row of a periodic entry, which may have a retention (seconds) of its own."""
        row = self.row_of(self.new_shape(task, retain), list(args), dict(kwargs), now)
        return row._replace(periodic=periodic)

    def new_result(
        self, shape: Shape, args: list[Any], kwargs: dict[str, Any], row: NewTask
    ) -> TaskResult:
        return TaskResult(
            task=shape.shown,
            id=dashed(row.id),
            status=TaskResultStatus.READY,
            enqueued_at=row.enqueued_at,
            started_at=None,
            finished_at=None,
            last_attempted_at=None,
            args=args,
            kwargs=kwargs,
            backend=self.alias,
            errors=[],
            worker_ids=[],
        )

    # Results

    def get_result(self, result_id: str) -> TaskResult:
        """The result with that id. Raises TaskResultDoesNotExist; retention deletes results."""
        id = parse_id(result_id)
        rows = ScheduledTask.objects.using(self.parsed.database)
        row = rows.filter(pk=id, backend=self.alias).first() if id else None
        if row is None:
            raise TaskResultDoesNotExist(result_id)
        return result_of_row(row)

    def check(self, **kwargs: Any) -> list[checks.CheckMessage]:
        from .checks import check_backend

        return list(check_backend(self))


@functools.lru_cache(maxsize=1024)
def _replaced(policy: Policy, changes: tuple[tuple[str, Any], ...]) -> Policy:
    import dataclasses

    return dataclasses.replace(policy, **dict(changes))


def _class_paths(retry_for: Any) -> tuple[str, ...]:
    try:
        return tuple(map(class_path, import_exceptions(retry_for)))
    except ValueError as error:
        raise ValueError(f"retry_for: {error}") from None


@functools.lru_cache(maxsize=1024)
def _with_code(policy_text: str) -> str:
    """Notes since when the enqueuing process has its code (seconds since 1970)."""
    rest = policy_text[1:-1]
    return f'{{"code":{CODE_SINCE}{"," if rest else ""}{rest}}}'
