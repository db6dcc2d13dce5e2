"""Signals for what `django.tasks.signals` lacks. The guide is docs/guides/signals.md.

Receivers are user code, so the supervisor's parent calls none. The worker that runs a task tells
of its retry, and of its own start and clean end; all else is told by a short-lived child (in a
`Runner`: a thread). What a receiver raises is logged and harms nothing.

`sender` is always the backend's class, and `backend` its alias in TASKS.

* `task_retried`: an attempt is over and the task runs again. `task_id`, `task_path`, `queue`,
  `worker_id`, `attempt` (from 1), `error` (the exception), `retry_in` (seconds).
* `task_rescued`: the worker or the node of a task died. `task_id`, `task_path`, `queue`,
  `worker_id` (or the node's name), `reason`, `failed` (True: it may not run again).
* `worker_started`: before the worker's first claim. `worker_id`, `node`.
* `worker_stopped`: `worker_id`, `node`, `crashed`, `reason` (empty after a clean end).
* `node_degraded`: the database is away, or a worker crashes again and again. `node`, `reason`.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from django.dispatch import Signal

if TYPE_CHECKING:
    from .backend import DatabaseBackend
    from .engines import Rescued

logger = logging.getLogger("dbtasks")

task_retried = Signal()
task_rescued = Signal()
worker_started = Signal()
worker_stopped = Signal()
node_degraded = Signal()

BY_NAME = {
    "task_retried": task_retried,
    "task_rescued": task_rescued,
    "worker_started": worker_started,
    "worker_stopped": worker_stopped,
    "node_degraded": node_degraded,
}
PATIENCE = 10.0  # seconds that the receivers of one announcement have, in the child that tells it


def is_wanted(name: str) -> bool:
    """Whether anybody is connected; asks no receiver anything."""
    return bool(BY_NAME[name].receivers)


def send(name: str, backend: DatabaseBackend, **details: Any) -> None:
    """Calls the receivers here and now. Never raises, not even SystemExit."""
    if not is_wanted(name) or not backend.parsed.signals:
        return
    try:
        BY_NAME[name].send_robust(type(backend), backend=backend.alias, **details)
    except BaseException as error:  # send_robust logs and passes over exceptions, but not these
        logger.error("a receiver of %s raised %s", name, type(error).__name__, exc_info=error)


def send_aside(name: str, backend: DatabaseBackend, **details: Any) -> None:
    """Calls the receivers in a thread of their own, for a caller that must not wait."""
    if not is_wanted(name):
        return

    def tell() -> None:
        from django.db import connections

        try:
            send(name, backend, **details)
        finally:
            connections.close_all()

    threading.Thread(target=tell, name=f"dbtasks-{name}", daemon=True).start()


def rescued_details(rescued: Rescued, worker: str, reason: str) -> list[dict[str, Any]]:
    """What `task_rescued` tells, per task; of cancelled tasks nothing."""
    from .ids import dashed

    failed, cancelled = set(rescued.failed), set(rescued.cancelled)
    return [
        {
            "task_id": dashed(id),
            "task_path": path,
            "queue": queue,
            "worker_id": worker,
            "reason": reason,
            "failed": id in failed,
        }
        for id, queue, path in rescued.tasks
        if id not in cancelled
    ]
