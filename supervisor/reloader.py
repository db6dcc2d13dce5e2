"""The reloader: a child that watches the code in development and tells the parent of changes."""

from __future__ import annotations

import logging
import select
from pathlib import Path

from django.utils.autoreload import StatReloader

from .board import Board
from .channel import Channel
from .newborn import EXIT_OK

logger = logging.getLogger("dbtasks")

LOOK = 1.0  # seconds between two looks at the files


def run_reloader(channel: Channel, board: Board) -> int:
    """Compares modification times of every imported module's file, as runserver does."""
    watcher = StatReloader()
    seen: dict[Path, float] = dict(watcher.snapshot_files())
    channel.send("ready")
    while True:
        select.select([channel], [], [], LOOK)
        channel.receive()
        if channel.closed:
            return EXIT_OK
        now = dict(watcher.snapshot_files())
        changed = [path for path, modified in now.items() if seen.get(path, modified) != modified]
        if changed:
            channel.send("changed", path=str(changed[0]))
        seen = now
        board.tick()
