"""`pause`: no node starts tasks of a queue, or of one task path."""

from __future__ import annotations

import argparse
import getpass

from .. import operations
from .output import Output

HELP = "Pauses a queue or a task on all nodes; without either, lists what is paused."
COLUMNS = ("kind", "name", "since", "by", "reason")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--queue", metavar="NAME")
    target.add_argument("--task", metavar="PATH")
    parser.add_argument("--reason", default="", metavar="TEXT", help="for whoever sees the pause")
    parser.add_argument("--by", metavar="NAME", help="who pauses (default: your login name)")


def run(options: argparse.Namespace, out: Output) -> int:
    if options.queue is None and options.task is None:
        return list_pauses(options.backend, out)
    paused = operations.pause(
        queue=options.queue,
        task=options.task,
        backend=options.backend,
        by=login_name() if options.by is None else options.by,
        reason=options.reason,
    )
    return tell(options, "paused" if paused else "was paused already", paused, out)


def list_pauses(backend: str, out: Output) -> int:
    found = operations.pauses(backend)
    out.rows(COLUMNS, [(row.kind, row.name, row.paused_at, row.by, row.reason) for row in found])
    return 0 if found else 1


def tell(options: argparse.Namespace, what: str, done: bool, out: Output) -> int:
    kind, name = ("queue", options.queue) if options.queue is not None else ("task", options.task)
    out.rows(("kind", "name", "outcome"), [(kind, name, what)])
    return 0 if done else 1


def login_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container has users without a name
        return ""
