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


def run_reloader(channel: Channel, board: Board) -> int:
    """Compares modification times of every imported module's file, as runserver does."""
    watcher = StatReloader()
    seen: dict[Path, float] = dict(watcher.snapshot_files())
    channel.send("ready")
    changed = saved_since(STARTED, seen)
    while True:
        if changed:
            channel.send("changed", path=str(changed[0]))
        select.select([channel], [], [], LOOK)
        channel.receive()
        if channel.closed:
            return EXIT_OK
        now = dict(watcher.snapshot_files())
        changed = [path for path, modified in now.items() if seen.get(path, modified) != modified]
        seen = now
        board.tick()


def saved_since(start: float, files: Mapping[Path, float]) -> list[Path]:
    """What was saved between `start` (Unix time) and now, while the code was being loaded.

    A time in the future is that of another machine's clock, and would be "later" for ever.
    """
    return [path for path, modified in files.items() if start < modified <= time.time()]
