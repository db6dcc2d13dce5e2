"""Which tasks a subcommand is about: named by their ids, or all that match."""

from __future__ import annotations

import argparse
import itertools
import uuid
from collections.abc import Iterable, Iterator

from ..browse import find
from ..operations import Outcome
from ..runner import database_backend
from .list import given_id, moment
from .output import Output

PAGE = 500
ASKED = "asked to end"


def add_choice(parser: argparse.ArgumentParser, states: Iterable[str]) -> None:
    """IDs, or --status with what narrows it down."""
    parser.add_argument("ids", nargs="*", metavar="ID", help="which tasks; or --status")
    parser.add_argument(
        "--status", choices=list(states), help="instead of ids: all that are this now"
    )
    parser.add_argument("--queue", metavar="NAME", help="with --status: only of this queue")
    parser.add_argument("--task", metavar="PATH", help="with --status: only this task; PREFIX*")
    parser.add_argument("--node", metavar="NAME", help="with --status: only of this node")
    parser.add_argument("--since", metavar="WHEN", help="with --status: enqueued since (2h, 1d)")


def chosen(options: argparse.Namespace) -> Iterator[list[uuid.UUID]]:
    """The ids, some at a time. Raises ValueError where none are named, or both ways are used."""
    narrowed = (options.queue, options.task, options.node, options.since)
    if bool(options.ids) == (options.status is not None):
        raise ValueError("name the tasks: either their ids, or --status")
    if options.ids and any(value is not None for value in narrowed):
        raise ValueError("--queue, --task, --node and --since go with --status, not with ids")
    if options.ids:
        given = [given_id(text) for text in options.ids]
        return (list(batch) for batch in itertools.batched(given, PAGE))
    return matching(options)


def matching(options: argparse.Namespace) -> Iterator[list[uuid.UUID]]:
    """Page by page, the newest first: each row is met once, whatever becomes of it."""
    backend = database_backend(options.backend)
    since = None if options.since is None else moment(options.since, backend.engine.now())
    before: uuid.UUID | None = None
    while True:
        rows = find(
            backend,
            state=options.status,
            queue=options.queue,
            task=options.task,
            node=options.node,
            since=since,
            before=before,
        )
        page = list(rows.values_list("id", flat=True)[:PAGE])
        if not page:
            return
        yield page
        before = page[-1]


def tell_outcomes(outcomes: Iterable[Outcome], done: str, out: Output) -> int:
    """A line per task: what was done, or why not. The exit code: 1 if nothing was done."""
    lines: list[tuple[uuid.UUID, str]] = []
    count = 0
    for outcome in outcomes:
        count += len(outcome.done)
        asked = set(outcome.asked)
        lines += [(id, ASKED if id in asked else done) for id in outcome.done]
        lines += [(id, f"refused: {why}") for id, why in outcome.refused.items()]
    out.rows(("id", "outcome"), lines)
    if not lines:
        out.note("there is no such task")
    return 0 if count else 1
