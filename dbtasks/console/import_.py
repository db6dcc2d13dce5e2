"""`import --from SOURCE`: pending work and schedules of other products."""

from __future__ import annotations

import argparse

from ..importing import rows, schedules
from ..runner import database_backend
from .output import Output

HELP = "Takes over the pending work, or prints the schedules, of another product."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        choices=[*rows.TABLES, *schedules.SOURCES],
        help="rows of a table are added to the queue; schedules are printed as settings",
    )
    parser.add_argument(
        "--database", metavar="ALIAS", help="where its tables are (default: the queue's database)"
    )
    parser.add_argument("--table", metavar="NAME", help="its table, if that has another name")
    parser.add_argument(
        "--running", action="store_true", help="also what its workers had begun; stop them first"
    )
    parser.add_argument("--dry-run", action="store_true", help="count, and change nothing")


def run(options: argparse.Namespace, out: Output) -> int:
    backend = database_backend(options.backend)
    alias = options.database or backend.parsed.database
    if alias not in known_databases():
        raise ValueError(f"--database {alias!r} is no alias in DATABASES")
    if options.source in schedules.SOURCES:
        return print_schedules(options.source, alias, out)
    found = rows.read(options.source, alias, table=options.table, running=options.running)
    counts = rows.add(backend, found, dry_run=options.dry_run)
    out.record(
        {
            "would be imported" if options.dry_run else "imported": counts.imported,
            "there already": counts.known,
            "refused": len(counts.refused),
        }
    )
    for id, reason in counts.refused.items():
        out.note(f"{id} refused: {reason}")
    return 1 if counts.refused else 0


def print_schedules(source: str, alias: str, out: Output) -> int:
    entries = list(schedules.SOURCES[source](alias))
    good = [entry for entry in entries if not entry.problem]
    if out.as_json:
        out.document([{"name": e.name, "task": e.task_path, "schedule": e.schedule} for e in good])
    else:
        for line in schedules.settings_text(good).splitlines():
            out.line(line)
    for entry in entries:
        if entry.problem:
            out.note(f"{entry.name!r} refused: {entry.problem}")
    return 0 if len(good) == len(entries) else 1


def known_databases() -> list[str]:
    from django.db import connections

    return list(connections)
