"""`doctor`: examines settings, database and queue, and says what to do."""

from __future__ import annotations

import argparse

from ..doctor import examine
from ..runner import database_backend
from .output import Output

HELP = "Examines settings, database and queue, and says what to do; exit code 1 if anything is."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(options: argparse.Namespace, out: Output) -> int:
    backend = database_backend(options.backend)
    examined = []
    for name, found in examine(backend):
        examined.append((name, found))
        if out.is_terminal and not out.as_json:
            if not found:
                out.line(f"ok       {name}")
            for trouble in found:
                out.line(f"{trouble.severity:<7}  {name}: {trouble.what}")
                out.line(f"         {trouble.advice}")
    rows = [(name, *trouble) for name, found in examined for trouble in found]
    if out.as_json:
        out.document(
            {
                "examined": [name for name, _ in examined],
                "troubles": [
                    {"examination": name, **trouble._asdict()}
                    for name, found in examined
                    for trouble in found
                ],
            }
        )
    elif not out.is_terminal:
        out.rows((), rows)
    return 1 if rows else 0
