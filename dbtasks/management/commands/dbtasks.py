"""`manage.py dbtasks`: the queue in the terminal. The subcommands are in dbtasks/console/."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import Any, cast

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error as DatabaseError
from django.tasks.exceptions import InvalidTask

from dbtasks.console import NOTHING_DONE, USAGE, subcommands
from dbtasks.console.output import Output


class Command(BaseCommand):
    help = "Shows and changes the queue: status, list, show, retry, cancel, pause, doctor and more."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parsers = parser.add_subparsers(dest="subcommand", required=True, metavar="SUBCOMMAND")
        for name, subcommand in subcommands().items():
            own = parsers.add_parser(name, help=subcommand.HELP, description=subcommand.HELP)
            own.add_argument(
                "--backend",
                default="default",
                metavar="ALIAS",
                help="which backend of TASKS (default: default)",
            )
            own.add_argument("--json", action="store_true", help="print JSON")
            subcommand.add_arguments(own)

    def handle(self, *args: Any, **options: Any) -> None:
        out = Output(cast(Any, self.stdout._out), cast(Any, self.stderr._out), options["json"])
        namespace = argparse.Namespace(**options)
        try:
            code = subcommands()[options["subcommand"]].run(namespace, out)
            out.flush()
        except BrokenPipeError:  # `| head` has seen enough
            forget_output(out)
            return
        except OSError as error:
            forget_output(out)
            raise CommandError(f"cannot write: {error}", returncode=1) from error
        except (ValueError, ImproperlyConfigured, InvalidTask) as error:
            raise CommandError(str(error), returncode=USAGE) from error
        except DatabaseError as error:
            raise CommandError(unavailable(options["backend"], error), returncode=1) from error
        except KeyboardInterrupt:
            code = NOTHING_DONE
        if code:
            sys.exit(code)


def forget_output(out: Output) -> None:
    """What is still to be written, the interpreter would try again at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.stream.fileno())


def unavailable(alias: str, error: DatabaseError) -> str:
    """Why the database cannot be asked. Raises what is no trouble of the database but a bug."""
    from dbtasks.runner import database_backend

    why = database_backend(alias).engine.unavailable(error)
    if why is None:
        raise error
    return why
