"""`resume`: ends a pause."""

from __future__ import annotations

import argparse

from .. import operations
from .output import Output
from .pause import tell

HELP = "Ends the pause of a queue or a task."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--queue", metavar="NAME")
    target.add_argument("--task", metavar="PATH")


def run(options: argparse.Namespace, out: Output) -> int:
    resumed = operations.resume(queue=options.queue, task=options.task, backend=options.backend)
    return tell(options, "resumed" if resumed else "was not paused", resumed, out)
