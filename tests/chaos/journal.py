"""What was executed, outside of the database: one line, one write, for each start and each end."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

VARIABLE = "DBTASKS_CHAOS_JOURNAL"  # the path of the file
START, END, RAISED = "START", "END", "RAISED"


class Line(NamedTuple):
    """`at` is monotonic, which is one clock for all processes of a machine (clock_gettime(2))."""

    event: str
    task_id: str
    nonce: str  # names this execution and no other
    worker: str
    at: float
    detail: str = ""


def write(line: Line) -> None:
    """One write(2) on O_APPEND, so that the lines of several processes never mix."""
    descriptor = os.open(os.environ[VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, f"{' '.join(map(str, line)).rstrip()}\n".encode())
    finally:
        os.close(descriptor)


def read(path: Path) -> list[Line]:
    """All lines in the order in which they were written."""
    if not path.exists():
        return []
    return [parse(line) for line in path.read_text().splitlines()]


def parse(text: str) -> Line:
    event, task_id, nonce, worker, at, *rest = text.split(" ", 5)
    return Line(event, task_id, nonce, worker, float(at), *rest)


@contextlib.contextmanager
def journalled(context: Any) -> Iterator[str]:
    """Notes the execution of the task in whose `context` we are; gives its nonce."""
    result = context.task_result
    task_id = result.id.replace("-", "")
    nonce, worker = f"{os.getpid()}-{time.monotonic_ns()}", result.worker_ids[-1]
    write(Line(START, task_id, nonce, worker, time.monotonic(), f"attempt={context.attempt}"))
    try:
        yield nonce
    except BaseException as error:
        write(Line(RAISED, task_id, nonce, worker, time.monotonic(), type(error).__name__))
        raise
    write(Line(END, task_id, nonce, worker, time.monotonic()))
