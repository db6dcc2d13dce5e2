"""`periodic`: the periodic entries, their coming due times, and what operators do with them."""

from __future__ import annotations

import argparse

from .. import periodic
from ..fields import as_utc
from ..periodic.definition import zone_of
from .output import Output, one_line

HELP = "Lists periodic tasks; shows coming due times; pauses, resumes or runs one."
COLUMNS = (
    "name",
    "schedule",
    "zone",
    "next",
    "last",
    "result",
    "node",
    "catch-up",
    "overlap",
    "origin",
    "task",
)
ACTIONS = {"pause": "paused", "resume": "due next at", "run-now": "enqueued as"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [NAME] [--next N] | pause NAME | resume NAME | run-now NAME"
    parser.add_argument(
        "words",
        nargs="*",
        metavar="NAME",
        help="an entry (default: all), after pause, resume or run-now what to do it with",
    )
    parser.add_argument(
        "--next", type=int, metavar="N", help="the N coming due times of NAME, in its own zone"
    )


def run(options: argparse.Namespace, out: Output) -> int:
    action = options.words[0] if options.words and options.words[0] in ACTIONS else None
    names = options.words[1:] if action else options.words
    if len(names) > 1:
        raise ValueError(f"one NAME at a time, not {' '.join(names)}; quote a name with blanks")
    name = names[0] if names else None
    if action:
        return act(action, name, options.backend, out)
    found = [each for each in periodic.entries(options.backend) if name in (None, each.name)]
    if name is not None and not found:
        raise ValueError(f"there is no periodic entry {name!r}")
    if options.next is not None:
        if name is None:
            raise ValueError("--next needs the NAME of an entry")
        return coming(found[0], options.next, out)
    out.rows(COLUMNS, [row(entry) for entry in found])
    return 0 if found else 1


def row(entry: periodic.Entry) -> tuple[object, ...]:
    return (
        entry.name,
        entry.schedule,
        entry.timezone or None,
        "paused" if entry.paused else entry.next_due,
        entry.last_due,
        entry.last_status,
        entry.last_node or None,
        entry.catch_up,
        entry.overlap,
        entry.origin,
        entry.task_path,
    )


def coming(entry: periodic.Entry, count: int, out: Output) -> int:
    """Raises ValueError for wrong usage."""
    if count < 1:
        raise ValueError(f"--next must be at least 1, not {count}")
    zone = zone_of(entry.timezone or "UTC")
    moments = [as_utc(moment) for moment in entry.coming(count)]
    shown = [(each.astimezone(zone).isoformat(), each.isoformat()) for each in moments]
    out.rows(("due", "utc"), shown)
    return 0 if moments else 1


def act(action: str, name: str | None, backend: str, out: Output) -> int:
    """Raises ValueError for an entry that does not exist, or with which that cannot be done."""
    if name is None:
        raise ValueError(f"{action} needs the NAME of an entry")
    result: object = None
    match action:
        case "pause":
            periodic.pause(name, backend=backend)
        case "resume":
            result = periodic.resume(name, backend=backend).next_due
        case "run-now":
            result = periodic.run_now(name, backend=backend).id
    if out.as_json:
        out.document({"name": name, "done": action, "result": result})
    elif out.is_terminal:
        out.line(f"{one_line(name)} is {ACTIONS[action]}" + (f" {result}" if result else ""))
    else:
        out.tabbed(name, action, result)
    return 0
