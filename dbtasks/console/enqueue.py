"""`enqueue`: one call of a task, with arguments in JSON."""

from __future__ import annotations

import argparse
import inspect
import json
from typing import Any

from django.tasks.base import Task as DjangoTask
from django.tasks.exceptions import InvalidTask
from django.utils.dateparse import parse_datetime

from ..fields import as_utc, localized
from ..results import resolve_task
from ..runner import database_backend
from ..schedule import Duration, ScheduleError
from .output import Output

HELP = "Enqueues a task by its dotted path; arguments are JSON."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="the task's dotted path: myproject.tasks.add")
    parser.add_argument("arguments", nargs="*", metavar="JSON", help="its positional arguments")
    parser.add_argument(
        "-k",
        "--keyword",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="a keyword argument; may be repeated",
    )
    parser.add_argument("--queue", metavar="NAME", help="instead of the task's own queue")
    parser.add_argument("--priority", type=int, metavar="N", help="from -100 to 100")
    parser.add_argument("--run-after", metavar="WHEN", help="in 10m, or at 2030-01-31T08:00")


def run(options: argparse.Namespace, out: Output) -> int:
    backend = database_backend(options.backend)
    task = the_task(options.path)
    args = [parsed(f"argument {at}", text) for at, text in enumerate(options.arguments, 1)]
    kwargs = dict(map(keyword, options.keyword))
    check_arguments(task, args, kwargs)
    changes: dict[str, Any] = {"backend": backend.alias}
    if options.queue is not None:
        changes["queue_name"] = options.queue
    if options.priority is not None:
        changes["priority"] = options.priority
    if options.run_after is not None:
        changes["run_after"] = later(options.run_after)
    try:
        result = task.using(**changes).enqueue(*args, **kwargs)
    except (TypeError, InvalidTask) as error:
        raise ValueError(str(error)) from error
    out.rows(("id", "status"), [(result.id, str(result.status).lower())])
    return 0


def the_task(path: str) -> DjangoTask:
    """Raises ValueError where there is none."""
    try:
        return resolve_task(path)
    except ImportError as error:
        raise ValueError(f"there is no task {path!r}: {error}") from error


def parsed(where: str, text: str) -> Any:
    """Raises ValueError for what is no JSON."""
    try:
        return json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        quoted = json.dumps(text)
        raise ValueError(
            f"{where} is no JSON: {text!r} ({error}). A text is written with double quotes, and "
            f"those in single ones for the shell: '{quoted}'"
        ) from error


def refuse_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


def keyword(text: str) -> tuple[str, Any]:
    """Raises ValueError for what is not NAME=JSON."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"--keyword {text!r}: write NAME=JSON")
    return name, parsed(f"--keyword {name}", value)


def check_arguments(task: DjangoTask, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Raises ValueError for arguments that the function does not take."""
    try:
        signature = inspect.signature(task.func)
    except (TypeError, ValueError):
        return
    context = [None] if task.takes_context else []
    try:
        signature.bind(*context, *args, **kwargs)
    except TypeError as error:
        raise ValueError(f"{task.module_path}{signature}: {error}") from error


def later(text: str) -> Any:
    """A moment as the project sees datetimes. Raises ValueError."""
    from django.utils import timezone

    try:
        if (moment := parse_datetime(text)) is not None:
            return localized(as_utc(moment))
        return localized(as_utc(timezone.now()) + Duration(text))
    except (ValueError, ScheduleError, OverflowError) as error:
        raise ValueError(
            f"--run-after {text!r}: write a Duration (10m, 2h) or a time (2030-01-31T08:00)"
        ) from error
