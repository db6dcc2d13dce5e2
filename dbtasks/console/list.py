"""`list`: scheduled tasks, the newest first."""

from __future__ import annotations

import argparse
import datetime
import uuid

from django.utils.dateparse import parse_date, parse_datetime

from ..browse import STATES, find, state_of
from ..fields import as_utc, localized
from ..ids import parse_id
from ..runner import database_backend
from ..schedule import Duration, ScheduleError
from .output import Output

HELP = "Lists scheduled tasks, the newest first."
COLUMNS = ("id", "status", "queue", "priority", "task", "enqueued", "finished", "attempts")
PAGE = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--status", choices=list(STATES), help="only those that are this now")
    parser.add_argument("--queue", metavar="NAME", help="only of this queue")
    parser.add_argument("--task", metavar="PATH", help="only this task; PREFIX* for several")
    parser.add_argument("--node", metavar="NAME", help="only what this node runs or ran")
    parser.add_argument(
        "--since", metavar="WHEN", help="enqueued since: 15m, 2h, 1d, 2030-01-31 or with a time"
    )
    parser.add_argument("--limit", type=int, default=PAGE, metavar="N", help="default: 50")
    parser.add_argument("--before", metavar="ID", help="the next page: the last id of this one")


def run(options: argparse.Namespace, out: Output) -> int:
    if options.limit < 1:
        raise ValueError(f"--limit must be at least 1, not {options.limit}")
    backend = database_backend(options.backend)
    found = find(
        backend,
        state=options.status,
        queue=options.queue,
        task=options.task,
        node=options.node,
        since=None if options.since is None else moment(options.since, backend.engine.now()),
        before=None if options.before is None else given_id(options.before),
    ).defer("args", "kwargs", "return_value", "errors", "policy")
    rows = list(found[: options.limit + 1])
    page = rows[: options.limit]
    out.rows(
        COLUMNS,
        [
            (
                row.id,
                state_of(row),
                row.queue,
                row.priority,
                row.task_path,
                row.enqueued_at,
                row.finished_at,
                row.attempt,
            )
            for row in page
        ],
    )
    if len(rows) > len(page) and not out.as_json and out.is_terminal:
        out.note(f"There are more: --before {page[-1].id}")
    return 0 if page else 1


def given_id(text: str) -> uuid.UUID:
    """Raises ValueError for what is no id."""
    id = parse_id(text)
    if id is None:
        raise ValueError(f"{text!r} is no id of a task; an id is a UUID")
    return id


def moment(text: str, now: datetime.datetime) -> datetime.datetime:
    """A point in time as the project sees datetimes: so long before `now`, or a date and time."""
    try:
        if (day := parse_date(text)) is not None:
            return localized(as_utc(datetime.datetime.combine(day, datetime.time())))
        if (parsed := parse_datetime(text)) is not None:
            return localized(as_utc(parsed))
        return localized(now - Duration(text))
    except (ValueError, ScheduleError, OverflowError) as error:
        raise ValueError(
            f"--since {text!r}: write how long ago (15m, 2h, 1d) or a date (2030-01-31)"
        ) from error
