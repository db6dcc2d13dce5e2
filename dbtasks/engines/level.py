"""Which queues have tasks of the same urgency, as a busy worker knows it for a moment.

To ask every queue for its head costs as much as a small claim. A worker that has just been told
goes by it for a little while, and takes of each of these queues the same share: what was enqueued
together lies together in the table, so that a claim writes few of its pages.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ..queues import QueueSelection
from .base import Claimed

# So long (seconds) may a queue that was empty, or a higher priority in another queue, go unseen.
KNOWN_FOR = 0.03
MOST_SHARERS = 100  # queues in one statement


class Level(NamedTuple):
    """All queues of a selection that have tasks, the one that waited longest first."""

    queues: QueueSelection
    names: tuple[str, ...]
    precedence: int | None  # of the tasks to take; None: whatever it is, of the only queue
    since: float

    @property
    def is_one(self) -> bool:
        return self.precedence is None

    def share(self, limit: int) -> int:
        """How many rows of each queue make `limit` rows."""
        return math.ceil(limit / len(self.names))

    def shared_evenly(self, claimed: Sequence[Claimed], limit: int) -> bool:
        """Whether these are `limit` rows of equal urgency, from each queue no more than a share."""
        if len(claimed) < limit or len({row.priority for row in claimed}) > 1:
            return False
        if len({self.queues.preference(name) for name in self.names}) > 1:
            return False
        return max(Counter(row.queue for row in claimed).values()) <= self.share(limit)


class Levels:
    """What an engine remembers. Threads share it, so it is replaced whole."""

    def __init__(self) -> None:
        self._level: Level | None = None

    def recall(self, queues: QueueSelection) -> Level | None:
        level = self._level
        if level is None or level.queues is not queues:
            return None
        return level if time.monotonic() - level.since < KNOWN_FOR else None

    def remember(self, level: Level) -> None:
        self._level = level

    def forget(self) -> None:
        self._level = None
