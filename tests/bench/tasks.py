"""The tasks of the benchmark, the same for every backend of django.tasks."""

import os
import signal
import time
from typing import Any

from django.db import transaction
from django.tasks import Task, default_task_backend, task


@task
def noop() -> None:
    pass


@task
def pause(seconds: float) -> float:
    """Waits as a call to another service does: without using the CPU. How long it took."""
    began = time.perf_counter()
    time.sleep(seconds)
    return time.perf_counter() - began


@task
def stamp(path: str, number: int) -> None:
    """Appends when it started to a file."""
    append(path, number)


@task
def hold(path: str) -> None:
    """Appends who started it and when; the first one waits to be killed."""
    alone = not os.path.exists(path)
    append(path, os.getpid())
    while alone:
        signal.pause()


def append(path: str, number: int) -> None:
    """One write with the time, so that lines of several workers never mix."""
    line = f"{number} {time.time()!r}\n".encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, line)
    os.close(descriptor)


TASKS: dict[str, Task] = {"noop": noop, "pause": pause, "stamp": stamp, "hold": hold}


URGENT = 50  # a priority


def enqueue(name: str, *arguments: Any) -> None:
    """ "urgent" is a stamp of a high priority; not each product here has priorities."""
    task = stamp.using(priority=URGENT) if name == "urgent" else TASKS[name]
    task.enqueue(*arguments)


def enqueue_many(name: str, count: int, *arguments: Any) -> None:
    """In bulk where the backend can."""
    task = TASKS[name]
    if hasattr(default_task_backend, "enqueue_all"):
        default_task_backend.enqueue_all([(task, arguments, {})] * count)
        return
    with transaction.atomic():
        for _ in range(count):
            task.enqueue(*arguments)
