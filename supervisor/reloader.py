"""The reloader: a child that watches the code in development and tells the parent of changes."""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Mapping
from pathlib import Path

from django.utils.autoreload import StatReloader

from .board import Board
from .channel import Channel
from .config import STARTED
from .newborn import EXIT_OK

logger = logging.getLogger("dbtasks")

LOOK = 1.0  # seconds between two looks at the files


class Changes:
    """Compares modification times of every imported module's file, as runserver does."""

    def __init__(self) -> None:
        self._watcher = StatReloader()
        self._seen: dict[Path, float] = dict(self._watcher.snapshot_files())
        self._early = saved_since(STARTED, self._seen)

    def look(self) -> Path | None:
        """One of the files that changed since the last look."""
        changed, self._early = self._early, []
        now = dict(self._watcher.snapshot_files())
        changed += [path for path, time_ in now.items() if self._seen.get(path, time_) != time_]
        self._seen = now
        return changed[0] if changed else None


def run_reloader(channel: Channel, board: Board) -> int:
    """The main function of the reloader; returns its exit code."""
    changes = Changes()
    channel.send("ready")
    while True:
        if path := changes.look():
            channel.send("changed", path=str(path))
        board.tick()
        select.select([channel], [], [], LOOK)
        channel.receive()
        if channel.closed:
            return EXIT_OK


def saved_since(start: float, files: Mapping[Path, float]) -> list[Path]:
    """What was saved between `start` (Unix time) and now, while the code was being loaded.

    A time in the future is that of another machine's clock, and would be "later" for ever.
    """
    return [path for path, modified in files.items() if start < modified <= time.time()]
