"""`retry`: runs finished tasks again."""

from __future__ import annotations

import argparse

from .. import operations
from .choose import add_choice, chosen, tell_outcomes
from .output import Output

HELP = "Runs failed or successful tasks again; their history stays."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_choice(parser, ("failed", "successful"))


def run(options: argparse.Namespace, out: Output) -> int:
    outcomes = (operations.retry(ids, backend=options.backend) for ids in chosen(options))
    return tell_outcomes(outcomes, "ready again", out)
