"""`prune`: deletes finished tasks."""

from __future__ import annotations

import argparse

from .. import operations
from .output import Output

HELP = "Deletes finished tasks, in short transactions; by default those past their retention."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--older-than", metavar="DURATION", help="finished so long ago: 7d, 12h")
    parser.add_argument("--status", choices=("successful", "failed"), help="only these")
    parser.add_argument("--queue", metavar="NAME", help="only of this queue")
    parser.add_argument("--dry-run", action="store_true", help="count, and delete nothing")


def run(options: argparse.Namespace, out: Output) -> int:
    watched = out.is_terminal and not out.as_json

    def progress(count: int) -> None:
        if watched:
            out.errors.write(f"\r{count} …")
            out.errors.flush()

    count = operations.prune(
        older_than=options.older_than,
        status=options.status.upper() if options.status else None,
        queue=options.queue,
        dry_run=options.dry_run,
        backend=options.backend,
        progress=progress,
    )
    if watched:
        out.errors.write("\r")
        verb = "would be deleted" if options.dry_run else "deleted"
        out.line(f"{count} {verb}")
    else:
        out.record({"would_delete" if options.dry_run else "deleted": count})
    return 0 if count else 1
