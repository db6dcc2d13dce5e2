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


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def place(point: str, planner: Any, action: Callable[[], object]) -> tuple[Any, str, Any]:
    """What is to be replaced, by which name and by what, so that `action` happens there."""
    engine = planner.engine

    def before(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: (action(), original(*args))[1]

    def after(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: (original(*args), action())[0]

    match point:
        case "before the lock":
            return engine, "locked", before(engine.locked)
        case "after the insert":
            return engine, "enqueue_occurrences", after(engine.enqueue_occurrences)
        case "before the commit":
            return engine, "move_entries", after(engine.move_entries)
        case "after the commit":
            return planner, "work", before(planner.work)
        case "while it waits for the due time":
            return planner.foresight, "wait", before(planner.foresight.wait)
    raise ValueError(point)


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
    setattr(*place(point, planner, die))
    engine: Any = backend.engine
    if point == WAITING:
        planner._crowded = True
        planner.enqueue = lambda *args: True  # type: ignore[method-assign]
    while True:
        if point == WAITING and engine.glance().periodic_in < 0:
            soon = (engine.now() + datetime.timedelta(seconds=2)).replace(microsecond=0)
            PeriodicTask.objects.update(next_due=soon)
        planner.wake_at(engine.glance())
        planner.tick()


if __name__ == "__main__":
    main(sys.argv[1])
