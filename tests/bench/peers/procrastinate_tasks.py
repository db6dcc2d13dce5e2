"""The tasks of tests/bench/tasks.py, as procrastinate has them."""

import time
from typing import Any

from procrastinate.contrib.django import app

from tests.bench.tasks import append


@app.task(name="noop")
def noop() -> None:
    pass


@app.task(name="pause")
def pause(seconds: float) -> None:
    time.sleep(seconds)


@app.task(name="stamp")
def stamp(path: str, number: int) -> None:
    append(path, number)


NAMES = {"noop": (), "pause": ("seconds",), "stamp": ("path", "number")}


def enqueue(name: str, *arguments: Any) -> None:
    app.tasks[name].defer(**named(name, arguments))


def enqueue_many(name: str, count: int, *arguments: Any) -> None:
    app.tasks[name].batch_defer(*[named(name, arguments)] * count)


def named(name: str, arguments: tuple[Any, ...]) -> dict[str, Any]:
    """procrastinate passes keyword arguments only."""
    return dict(zip(NAMES[name], arguments, strict=True))
