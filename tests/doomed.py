"""A scheduler that is killed at one point of its tick: python -m tests.doomed POINT"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import django

POINTS = ("before the lock", "after the insert", "before the commit", "after the commit")
WAITING = "while it waits for the due time"


def die(*args: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def then_die(action: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> None:
        action(*args)
        die()

    return run


def main(point: str) -> None:
    django.setup()
    from django.tasks import task_backends

    from dbtasks.engines import NodeInfo
    from dbtasks.ids import random_suffix
    from dbtasks.models import PeriodicTask
    from dbtasks.periodic.planner import Planner

    backend: Any = task_backends["default"]
    node = NodeInfo(random_suffix(), "doomed", "host", os.getpid(), "test", 30.0)
    backend.engine.renew_lease(node)
    planner = Planner(backend, node, (), contextlib.nullcontext, lambda count: None)
    while not planner.review():
        pass
    engine: Any = backend.engine
    match point:
        case "before the lock":
            engine.locked = die
        case "after the insert":
            engine.enqueue_occurrences = then_die(engine.enqueue_occurrences)
        case "before the commit":
            engine.move_entries = then_die(engine.move_entries)
        case "after the commit":
            planner.work = die
        case "while it waits for the due time":
            planner._crowded = True
            planner.foresight.wait = die  # type: ignore[method-assign]
            planner.enqueue = lambda *args: True  # type: ignore[method-assign]
    while True:
        if point == WAITING and engine.glance().periodic_in < 0:
            soon = (engine.now() + datetime.timedelta(seconds=2)).replace(microsecond=0)
            PeriodicTask.objects.update(next_due=soon)
        planner.wake_at(engine.glance())
        planner.tick()


if __name__ == "__main__":
    main(sys.argv[1])
