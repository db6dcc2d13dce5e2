"""OPTIONS["immediate"]: the task runs inside enqueue() and only its outcome is stored."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from django.db import connections, transaction
from django.tasks.base import TaskResult, TaskResultStatus
from django.tasks.signals import task_finished
from django.utils import timezone

from .engines import Claimed, NewTask
from .execution import Execution, execute
from .ids import parse_id
from .models import ScheduledTask
from .results import json_list, task_errors, update_result

if TYPE_CHECKING:
    from .backend import DatabaseBackend

WORKER = "immediate"


def run_immediately(backend: DatabaseBackend, row: NewTask, result: TaskResult) -> None:
    """Runs the call, stores its row as it ended, and completes `result`.

    What fails with attempts left waits in the queue for a runner, as it would after any runner.
    Raises KeyboardInterrupt if that ended the task: it was meant for the caller's process.
    """
    started = timezone.now()
    claimed = Claimed(
        id=row.id,
        attempt=1,
        task_path=row.task_path,
        args=row.args,
        kwargs=row.kwargs,
        queue=row.queue,
        priority=row.priority,
        run_after=None,
        enqueued_at=_raw(backend, row.enqueued_at),
        started_at=_raw(backend, started),
        last_attempted_at=_raw(backend, started),
        worker_ids="[]",
        errors="[]",
        failures=0,
        policy_text=row.policy,
        periodic=row.periodic,
    )
    with _savepoints() as undo:
        execution = execute(backend, claimed, WORKER)
        if execution.error is not None:
            undo()
    stored = _store(backend, row, execution, started)
    update_result(
        result,
        status=TaskResultStatus(stored.status),
        started_at=started,
        last_attempted_at=started,
        finished_at=stored.finished_at,
        errors=task_errors(stored.errors),
        worker_ids=stored.worker_ids,
        _return_value=stored.return_value,
    )
    if backend.parsed.signals and execution.finished:
        task_finished.send_robust(type(backend), task_result=result)
    if isinstance(execution.error, KeyboardInterrupt):
        raise execution.error


@contextlib.contextmanager
def _savepoints() -> Iterator[Callable[[], None]]:
    """Inside the caller's transactions a failing task must not break them, nor leave half its work.

    Gives a function that undoes what was written since.
    """
    opened = connections.all(initialized_only=True)
    aliases = [connection.alias for connection in opened if connection.in_atomic_block]

    def undo() -> None:
        for alias in aliases:
            transaction.set_rollback(True, using=alias)

    with contextlib.ExitStack() as stack:
        for alias in aliases:
            stack.enter_context(transaction.atomic(using=alias))
        yield undo


def _store(
    backend: DatabaseBackend, row: NewTask, execution: Execution, started: datetime.datetime
) -> ScheduledTask:
    outcome = execution.outcome
    now = timezone.now()
    again = outcome.retry_in is not None
    delay = datetime.timedelta(seconds=outcome.retry_in or 0.0)
    stored = ScheduledTask(
        id=parse_id(row.id),
        task_path=row.task_path,
        args=json_value(row.args),
        kwargs=json_value(row.kwargs),
        backend=backend.alias,
        queue=row.queue,
        priority=row.priority,
        status=outcome.status,
        run_after=row.run_after,
        enqueued_at=row.enqueued_at,
        started_at=started,
        last_attempted_at=started,
        finished_at=None if again else now,
        worker_ids=json_list(outcome.worker_ids),
        errors=json_list(outcome.errors),
        return_value=None if outcome.return_value is None else json_value(outcome.return_value),
        periodic=row.periodic,
        policy=row.policy,
        ready_queue=row.queue if again and not delay else None,
        due_at=now + delay if again and delay else None,
        attempt=1,
        failures=outcome.failures,
        delete_after=None
        if again or outcome.retain is None
        else now + datetime.timedelta(seconds=outcome.retain),
    )
    stored.save(using=backend.parsed.database, force_insert=True)
    return stored


def json_value(text: str) -> Any:
    return json.loads(text)


def _raw(backend: DatabaseBackend, value: datetime.datetime) -> object:
    """A time as the queue's driver would have returned it."""
    from .fields import utc_parameter

    return utc_parameter(value, connections[backend.parsed.database].vendor)
