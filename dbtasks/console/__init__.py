"""`manage.py dbtasks SUBCOMMAND`: a module per subcommand.

Each has HELP, `add_arguments(parser)` and `run(options, out)`, which returns the exit code: 0 done,
1 nothing done or trouble found, 2 wrong usage. `import_.py` is the subcommand `import`.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from typing import Protocol, cast

from .output import Output

DONE, NOTHING_DONE, USAGE = 0, 1, 2


class Subcommand(Protocol):
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """What it takes besides --backend and --json."""

    def run(self, options: argparse.Namespace, out: Output) -> int:
        """Does it; returns the exit code. Raises ValueError for wrong usage."""


def subcommands() -> dict[str, Subcommand]:
    """The modules of this package that have HELP, by their name on the command line."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        loaded = importlib.import_module(f"{__name__}.{module.name}")
        if hasattr(loaded, "HELP"):
            found[module.name.rstrip("_").replace("_", "-")] = cast(Subcommand, loaded)
    return found
