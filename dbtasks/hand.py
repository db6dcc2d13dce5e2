"""What a worker holds besides the task that it runs: rows not started, outcomes not written.

They may not wait for a task that turns out to be slow. So whoever looks after the worker can take
them from it at any time, also in the middle of a task, and settle them in its place. Each row has
one taker: the worker, which takes it to start it, or the other, which takes all that is left.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from django.db import Error as DatabaseError

from .engines import Claimant, Claimed, Engine, Outcome
from .pace import MOST

logger = logging.getLogger("dbtasks")

Row = tuple[str, int]  # id and attempt

# Seconds that a task runs until what waits behind it is taken from its worker, and between two
# looks for such tasks.
OVERRUN = 0.03
OVERRUN_LOOK = 0.015
# Characters of an outcome that others may write. What a database may find too large is for its
# worker, which writes it at once and can tell that from an outage.
LARGEST = 24 * 1024


class Handover(NamedTuple):
    """What was taken from a worker, to be settled in its place."""

    who: Claimant
    rows: tuple[Row, ...]
    outcomes: tuple[Outcome, ...]

    def settle(self, engine: Engine) -> int:
        """Writes the outcomes and gives back the rows; returns how many may be ready again.

        Fenced like all that its worker writes, so it does no harm to come late, or twice.
        Raises DatabaseError while the database is away. What it refuses is its worker's to write,
        which finds out whose outcome that is.
        """
        try:
            if self.rows:
                engine.release(self.who, self.rows)
            if self.outcomes:
                engine.finish(self.outcomes)
        except DatabaseError as error:
            if engine.unavailable(error) is not None:
                raise
            logger.warning("what worker %s has done waits for it: %s", self.who.worker, error)
        return len(self.rows)


class Hand(Protocol):
    """The worker's side."""

    @property
    def room(self) -> int:
        """How many rows may be held at once; 1 while nobody could take them from us."""

    def deal(self, rows: Sequence[Claimed]) -> None:
        """Begins a batch. Its first row is the worker's; each other one must be taken."""

    def take(self) -> bool:
        """Whether the next row of the batch may be started; if not, no later one either."""

    def fold(self) -> None:
        """No further row of this batch will be started."""

    def keep(self, outcome: Outcome) -> bool:
        """Keeps it safe until `clear`, whatever becomes of us; False if there is no room."""

    def clear(self) -> None:
        """The outcomes kept are written."""

    def gave_away(self, position: int) -> bool:
        """Whether somebody else writes the outcome that was kept as the nth, from 0."""


class LocalHand:
    """The hand of a worker thread: another thread of the process can take what is in it.

    `watch` is called when there is something to take and nobody looks. An outcome alone is no
    reason: without a batch its worker writes it at once.
    """

    def __init__(self, watch: Callable[[], None] = lambda: None) -> None:
        self._watch = watch
        self._watched = False
        self._lock = threading.Lock()
        self._rows: list[Row] = []
        self._left = 0
        self._kept: list[Outcome] = []
        self._given = 0

    @property
    def room(self) -> int:
        return MOST

    def deal(self, rows: Sequence[Claimed]) -> None:
        with self._lock:
            self._rows = [(row.id, row.attempt) for row in rows]
            self._left = len(rows) - 1
        if self._left and not self._watched:
            self._watched = True
            self._watch()

    def take(self) -> bool:
        with self._lock:
            if not self._left:
                return False
            self._left -= 1
            return True

    def fold(self) -> None:
        with self._lock:
            self._left = 0

    def keep(self, outcome: Outcome) -> bool:
        if outcome.size > LARGEST:
            return False
        with self._lock:
            self._kept.append(outcome)
        return True

    def clear(self) -> None:
        with self._lock:
            self._kept, self._given = [], 0

    def gave_away(self, position: int) -> bool:
        return position < self._given

    # The other thread's side

    def is_empty(self) -> bool:
        """Whether there is nothing to take; from then on `watch` tells when that changes."""
        with self._lock:
            self._watched = bool(self._left or len(self._kept) > self._given)
            return not self._watched

    def take_over(self, who: Claimant) -> Handover | None:
        """All that is left, or None if that is nothing."""
        with self._lock:
            rows = self._rows[len(self._rows) - self._left :]
            outcomes = self._kept[self._given :]
            self._left, self._given = 0, len(self._kept)
        return Handover(who, tuple(rows), tuple(outcomes)) if rows or outcomes else None
