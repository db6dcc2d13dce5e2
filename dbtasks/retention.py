"""Deletes rows that are past their retention: in batches, each a short transaction."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from .engines import Engine

BATCH = 1000
OCCURRENCE_DAYS = 400  # occurrences outlive the tasks; more than a year, for yearly schedules
_local = threading.local()


def stop_when(stopping: Callable[[], bool]) -> None:
    """Tells the cleanup that runs in this thread when it is to stop."""
    _local.stopping = stopping


def prune(engine: Engine, stopping: Callable[[], bool] | None = None, batch: int = BATCH) -> int:
    """Deletes all that is past its retention; returns how many rows. Stops when told to.

    Between two batches others get some times as long as the batch took, so that claims stay quick.
    """
    stopping = stopping or getattr(_local, "stopping", None) or (lambda: False)
    deleted = 0
    while not stopping():
        began = time.monotonic()
        count = engine.prune(batch)
        deleted += count
        if count < batch:
            engine.prune_occurrences(OCCURRENCE_DAYS)
            break
        time.sleep(min(0.1, engine.prune_pause * (time.monotonic() - began)))
    return deleted
