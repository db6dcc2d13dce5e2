"""`manage.py taskrunner`: the supervisor, as a management command."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from dbtasks_supervisor import cli
from dbtasks_supervisor.config import add_arguments


class Command(BaseCommand):
    help = "Runs the project's tasks until it is told to stop (see `dbtasks-supervisor`)."
    # The supervisor runs the checks itself, so that its exit codes say what is wrong.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        namespace = argparse.Namespace(**options)
        code = cli.early(namespace) or cli.run(namespace, setup=False)
        if code:
            sys.exit(code)
