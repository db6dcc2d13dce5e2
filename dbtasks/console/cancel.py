"""`cancel`: waiting tasks never run; running ones are asked to end, and then made to."""

from __future__ import annotations

import argparse

from .. import operations
from .choose import add_choice, chosen, tell_outcomes
from .output import Output

HELP = "Cancels tasks: waiting ones never run, running ones get TaskCancelled and then an end."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_choice(parser, ("ready", "deferred", "paused", "running"))
    parser.add_argument(
        "--grace",
        metavar="DURATION",
        help=f"for a running task's clean-up, then its worker is killed (default: "
        f"{operations.GRACE:g} s)",
    )


def run(options: argparse.Namespace, out: Output) -> int:
    grace = operations.parse_grace(options.grace)
    outcomes = (operations.cancel(ids, grace, backend=options.backend) for ids in chosen(options))
    return tell_outcomes(outcomes, "cancelled", out)
