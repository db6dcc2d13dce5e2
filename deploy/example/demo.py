#!/usr/bin/env python
"""The example at work: an index of Python's standard library, made by four worker processes.

    python deploy/example/demo.py             make demo: one index, the report, a drain, exit code 0
    python deploy/example/demo.py --forever   make run: one index after the other until Ctrl-C

The database is an SQLite file in a temporary folder, removed at the end, or the one that
EXAMPLE_DATABASE_URL names (postgresql://…, mysql://…), which is left as it is then.
"""

import argparse
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import django
from showcase.screen import Screen
from showcase.service import ENDING_SIGNALS

INTERRUPTED = 128 + signal.SIGINT


@contextlib.contextmanager
def django_in(folder: Path) -> Iterator[None]:
    """Django, set up for the example. Processes that are started find the same settings."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "example.settings"
    os.environ["EXAMPLE_DEBUG"] = "0"
    if not os.environ.get("EXAMPLE_DATABASE_URL"):
        os.environ["EXAMPLE_DATABASE_URL"] = f"sqlite:///{folder / 'demo.sqlite3'}"
    django.setup()
    try:
        yield
    finally:
        from django.db import connections

        connections.close_all()


def demonstrate(options: argparse.Namespace) -> None:
    """Raises DemoFailed if anything went wrong, and KeyboardInterrupt."""
    with (
        tempfile.TemporaryDirectory(prefix="dbtasks-demo-") as name,
        django_in(Path(name)),
    ):
        # Models can be imported from here on.
        from showcase.story import tell

        tell(
            Screen(sys.stdout),
            Path(name),
            workers=options.workers,
            modules=options.modules,
            forever=options.forever,
        )


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Index Python's standard library with dbtasks.")
    parser.add_argument("--forever", action="store_true", help="stay up until Ctrl-C")
    parser.add_argument("--workers", type=positive, default=4, help="worker processes (default 4)")
    parser.add_argument(
        "--modules", type=positive, default=500, help="index at most so many (default 500)"
    )
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    """The number. Raises argparse.ArgumentTypeError unless it is 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; use a whole number from 1")
    return int(text)


def main(arguments: list[str]) -> int:
    """Exit code 0: all went well; 1: something did not, and what; 130: Ctrl-C before the end."""
    options = parse(arguments)
    # An orderly end also when the demo is terminated, or its terminal closed.
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    try:
        demonstrate(options)
    except KeyboardInterrupt:
        print("Stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Nobody reads any more. Python would complain once again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
