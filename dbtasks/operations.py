"""What operators do to the queue: to single rows, to whole queues and tasks, and to its history.

Each function asks the engine, which decides by what a row is at that moment, also beside workers
that claim and finish. So nothing here can be done twice or undo what a worker has written; what
could not be done is in the answer, with the reason in words.
"""

from __future__ import annotations

import dataclasses
import datetime
import time
import uuid
from collections.abc import Callable, Iterable, Mapping

from django.tasks.base import TASK_MAX_PRIORITY, TASK_MIN_PRIORITY

from . import retention
from .backend import DatabaseBackend
from .engines import Engine
from .ids import parse_id
from .models import PATH_MAX_LENGTH, QUEUE_MAX_LENGTH
from .policy import DurationLike, seconds
from .runner import database_backend

GRACE = 5.0  # seconds that a cancelled task has for its clean-up before its worker is killed
FINISHED = ("SUCCESSFUL", "FAILED")
FIRST_ID = "0" * 32

Ids = Iterable[uuid.UUID | str]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of each id.

    `refused` gives the reason in words ("is running"). `asked`: those of `done` that run, and whose
    worker has been asked to end them.
    """

    done: list[uuid.UUID]
    refused: dict[uuid.UUID, str]
    asked: list[uuid.UUID] = dataclasses.field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.done)


@dataclasses.dataclass(frozen=True)
class Pause:
    """`kind` is "queue" or "task", `name` the queue's name or the task's path, the time aware."""

    kind: str
    name: str
    paused_at: datetime.datetime
    by: str
    reason: str


# Rows


def retry(ids: Ids, *, backend: str = "default") -> Outcome:
    """Runs finished tasks again, FAILED and SUCCESSFUL ones, from READY on.

    Their errors, workers and attempts stay on record; attempts and crashes are counted anew, so
    that they have as many as a new task. Raises ValueError for what is no id.
    """
    return _outcome(ids, _engine(backend).retry)


def run_now(ids: Ids, *, backend: str = "default") -> Outcome:
    """Makes deferred tasks (`run_after`, or waiting for their next attempt) ready at once."""
    return _outcome(ids, _engine(backend).run_now)


def cancel(ids: Ids, grace: DurationLike | None = None, *, backend: str = "default") -> Outcome:
    """Ends tasks as FAILED with TaskCancelled: ready and deferred ones at once, without a run.

    In a running one TaskCancelled is raised within some two seconds. A worker whose task goes on
    after `grace` (a Duration, default 5 seconds) is killed; a worker thread never. One that ends
    meanwhile keeps its result. Raises ValueError for a grace that is none.
    """
    patience = parse_grace(grace)
    asked: set[str] = set()

    def ask(hexes: list[str]) -> Mapping[str, str]:
        nonlocal asked
        refused, asked = _engine(backend).cancel(hexes, patience)
        return refused

    outcome = _outcome(ids, ask)
    return dataclasses.replace(outcome, asked=[id for id in outcome.done if id.hex in asked])


def delete(ids: Ids, *, backend: str = "default") -> Outcome:
    """Deletes tasks that do not run, whatever became of them."""
    return _outcome(ids, _engine(backend).delete)


def set_priority(ids: Ids, priority: int, *, backend: str = "default") -> Outcome:
    """Gives tasks that were not started another priority, from -100 to 100."""
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise ValueError(f"priority must be a whole number, not {priority!r}")
    if not TASK_MIN_PRIORITY <= priority <= TASK_MAX_PRIORITY:
        raise ValueError(
            f"priority must be from {TASK_MIN_PRIORITY} to {TASK_MAX_PRIORITY}, not {priority}"
        )
    engine = _engine(backend)
    return _outcome(ids, lambda hexes: engine.set_priority(hexes, priority))


def set_queue(ids: Ids, queue: str, *, backend: str = "default") -> Outcome:
    """Moves tasks that were not started into another queue, one that QUEUES allows."""
    check_queue(database_backend(backend), queue)
    engine = _engine(backend)
    return _outcome(ids, lambda hexes: engine.set_queue(hexes, queue))


# Pauses


def pause(
    *,
    queue: str | None = None,
    task: str | None = None,
    backend: str = "default",
    by: str = "",
    reason: str = "",
) -> bool:
    """Keeps all nodes from starting tasks of a queue, or of one task path, from now on.

    What runs goes on, and enqueuing goes on. False if it is paused already. The `immediate` mode
    knows no pauses. Raises ValueError unless exactly one of `queue` and `task` is given.
    """
    kind, name = _target(queue, task)
    return _engine(backend).pause(kind, name, by[:255], reason)


def resume(*, queue: str | None = None, task: str | None = None, backend: str = "default") -> bool:
    """Ends a pause; False if there is none."""
    kind, name = _target(queue, task)
    return _engine(backend).resume(kind, name)


def pauses(backend: str = "default") -> list[Pause]:
    """What is paused now, the oldest pause first."""
    return [
        Pause(row.kind, row.name, row.paused_at, row.by, row.reason)
        for row in _engine(backend).pauses()
    ]


# History


def prune(
    *,
    older_than: DurationLike | None = None,
    status: str | None = None,
    queue: str | None = None,
    dry_run: bool = False,
    backend: str = "default",
    stop: Callable[[], bool] | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> int:
    """Deletes finished tasks; returns how many (`dry_run`: how many it would delete).

    `older_than`: a Duration since they finished; `status`: "SUCCESSFUL" or "FAILED" only. Without
    any of the three conditions: what is past its retention. In short transactions; between two of
    them `stop` is asked and `progress` is told the number so far. Raises ValueError.
    """
    engine = _engine(backend)
    if status is not None and status not in FINISHED:
        raise ValueError(f"status must be SUCCESSFUL or FAILED, not {status!r}")
    if (older_than, status, queue) == (None, None, None) and not dry_run:
        return retention.prune(engine, stop)
    before = None
    if older_than is not None:
        age = seconds("older_than", older_than) or 0.0
        try:
            before = engine.now() - datetime.timedelta(seconds=age)
        except OverflowError:
            raise ValueError(f"older_than is too long: {older_than!r}") from None
    expired = (older_than, status, queue) == (None, None, None)
    statuses = [] if status is None else [status]
    count, after = 0, FIRST_ID
    while not (stop and stop()) and (last := engine.prune_window(after)) is not None:
        began = time.monotonic()
        count += engine.prune_finished(after, last, before, statuses, queue, dry_run, expired)
        after = last
        progress(count)
        if not dry_run:
            time.sleep(min(0.05, time.monotonic() - began))
    return count


# Inside


def check_queue(backend: DatabaseBackend, queue: str) -> None:
    """Raises ValueError for a queue that no task of the backend can have."""
    if backend.queues and queue not in backend.queues:
        known = ", ".join(sorted(backend.queues))
        raise ValueError(f"queue {queue!r} is not in QUEUES of the backend; there are: {known}")
    if not queue.strip() or queue != queue.strip() or queue.endswith("*") or "," in queue:
        raise ValueError(f"queue {queue!r} is not possible: no blanks at its ends, no comma, no *")
    if len(queue) > QUEUE_MAX_LENGTH:
        raise ValueError(f"queue can have at most {QUEUE_MAX_LENGTH} characters")


def parse_grace(grace: DurationLike | None) -> float:
    """Seconds. Raises ValueError for what is no Duration."""
    return GRACE if grace is None else seconds("grace", grace) or 0.0


def _engine(backend: str) -> Engine:
    return database_backend(backend).engine


def _outcome(ids: Ids, operate: Callable[[list[str]], Mapping[str, str]]) -> Outcome:
    wanted = list(dict.fromkeys(_parsed(id) for id in ids))
    refused = operate([id.hex for id in wanted])
    return Outcome(
        done=[id for id in wanted if id.hex not in refused],
        refused={id: refused[id.hex] for id in wanted if id.hex in refused},
    )


def _parsed(value: uuid.UUID | str) -> uuid.UUID:
    id = parse_id(value)
    if id is None:
        raise ValueError(f"{str(value)[:100]!r} is no id of a task; an id is a UUID")
    return id


def _target(queue: str | None, task: str | None) -> tuple[str, str]:
    if (queue is None) == (task is None):
        raise ValueError("name either a queue or a task")
    kind, name = ("queue", queue) if queue is not None else ("task", task)
    limit = QUEUE_MAX_LENGTH if kind == "queue" else PATH_MAX_LENGTH
    if not name or not name.strip() or len(name) > limit:
        raise ValueError(f"the name of a {kind} has from 1 to {limit} characters, not {name!r}")
    return kind, name
