"""`show ID`: all that is known of scheduled tasks."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..browse import state_of
from ..models import ScheduledTask
from ..runner import database_backend
from .list import given_id
from .output import Output, cell, one_line, printable

HELP = "Shows all that is known of a task: arguments, attempts, errors, result."
SHOWN = 2000  # characters of arguments and results on a terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="+", metavar="ID")


def run(options: argparse.Namespace, out: Output) -> int:
    backend = database_backend(options.backend)
    ids = [given_id(text) for text in options.ids]
    rows = ScheduledTask.objects.using(backend.parsed.database).filter(backend=backend.alias)
    found = {row.id: row for row in rows.filter(id__in=ids)}
    if out.as_json:
        out.document([described(found[id]) for id in ids if id in found])
    else:
        for number, id in enumerate(id for id in ids if id in found):
            if number:
                out.line()
            tell(described(found[id]), out)
    for id in ids:
        if id not in found:
            out.note(f"{id} does not exist in backend {backend.alias!r}")
    return 0 if len(found) == len(set(ids)) else 1


def described(row: ScheduledTask) -> dict[str, Any]:
    """What is in the row; the policy as an object."""
    workers = row.worker_ids if isinstance(row.worker_ids, list) else []
    try:
        policy = json.loads(row.policy)
    except ValueError:
        policy = row.policy
    if isinstance(policy, dict):
        policy.pop("code", None)
    return {
        "id": row.id,
        "task": row.task_path,
        "status": state_of(row),
        "queue": row.queue,
        "priority": row.priority,
        "args": row.args,
        "kwargs": row.kwargs,
        "return_value": row.return_value,
        "enqueued_at": row.enqueued_at,
        "run_after": row.run_after,
        "started_at": row.started_at,
        "last_attempted_at": row.last_attempted_at,
        "finished_at": row.finished_at,
        "delete_after": row.delete_after,
        "attempts": row.attempt,
        "failures": row.failures,
        "crashes": row.crashes,
        "periodic": row.periodic or None,
        "options": policy,
        "workers": [*workers, row.claimed_by] if row.claimed_by else workers,
        "errors": row.errors,
    }


def tell(values: dict[str, Any], out: Output) -> None:
    errors = values.pop("errors")
    if out.is_terminal:
        for name in ("args", "kwargs", "return_value"):
            told = cell(values[name])
            if len(told) > SHOWN:
                values[name] = f"{told[:SHOWN]} … ({len(told)} characters; --json shows all)"
    out.record(values)
    for number, error in enumerate(errors if isinstance(errors, list) else [errors], 1):
        known = isinstance(error, dict)
        path = one_line(str(error.get("exception_class_path", ""))) if known else ""
        out.line(f"\nerror {number}: {path}")
        out.line(printable(str(error.get("traceback", "") if known else error)))
