"""Counting what becomes of tasks: in a worker's memory, and on the way to the table.

A worker adds a handful of integers per task to a list. About once a second it hands the lists on;
the node's scheduler adds them to the table every few seconds, in one statement (`Ledger`). So
statistics cost a task about a microsecond, and a worker that is killed takes with it what it
counted in its last second.
"""

from __future__ import annotations

import datetime
import itertools
import math
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from django.db import Error as DatabaseError

if TYPE_CHECKING:
    from .engines import Claimed, Engine, Rescued
    from .execution import Execution

Place = tuple[str, str]  # a queue and a task's path
Cells = dict[Place, list[int]]  # what was counted of each: a number per column

# Upper bounds of the run times' histogram in seconds; one column more is for what took longer.
BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
BUCKETS = tuple(f"bucket_{number:02d}" for number in range(len(BOUNDS) + 1))
COLUMNS = ("succeeded", "failed", "retried", "rescued", "waited", "wait_us", "run_us", *BUCKETS)
SUCCEEDED, FAILED, RETRIED, RESCUED, WAITED, WAIT, RUN, FIRST_BUCKET = range(8)

OTHER = "other"
MOST_PLACES = 200  # so many are told apart; all others are counted as OTHER
HAND_ON_EVERY = 1.0  # seconds
WRITE_EVERY = 3.0  # seconds
WRITE_AGAIN = 60.0  # seconds after which we look again whether the table exists
PRUNE_EVERY = 600.0  # seconds
MILLION = 1_000_000
LONGEST_WAIT = 366 * 86_400 * MILLION  # of one task; sums must fit into their column


class Tally:
    """What one worker has counted since it was last taken. Used by one thread."""

    def __init__(self) -> None:
        self.cells: Cells = {}
        self._hand_on_at = 0.0

    def count(self, execution: Execution) -> None:
        """One attempt whose outcome is in the database."""
        claimed, outcome, seconds = execution.claimed, execution.outcome, execution.seconds
        if outcome.retry_in is not None:
            if outcome.worker_ids == claimed.worker_ids:
                return  # interrupted by ourselves, or not known to our code: no attempt
            kind = RETRIED
        else:
            kind = SUCCEEDED if outcome.status == "SUCCESSFUL" else FAILED
        cell = self.cells.get((claimed.queue, claimed.task_path))
        if cell is None:
            cell = cell_of(self.cells, (claimed.queue, claimed.task_path))
        cell[kind] += 1
        cell[RUN] += int(seconds * MILLION)
        cell[FIRST_BUCKET + bisect_left(BOUNDS, seconds)] += 1
        if claimed.worker_ids == "[]":  # later attempts did not wait for a worker only
            cell[WAITED] += 1
            cell[WAIT] += waited(claimed)

    def take(self) -> Cells:
        """All of it; counting begins anew."""
        cells, self.cells = self.cells, {}
        self._hand_on_at = time.monotonic() + HAND_ON_EVERY
        return cells

    def put_back(self, cells: Cells) -> None:
        """What could not be handed on."""
        merge(self.cells, cells.items())

    @property
    def due_in(self) -> float | None:
        """Seconds until it is to be handed on (0: now), or None if there is nothing."""
        return max(0.0, self._hand_on_at - time.monotonic()) if self.cells else None


class Ledger:
    """What a node has counted and not written yet. Any thread may add."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.write_at = math.inf  # monotonic
        self._lock = threading.Lock()
        self._cells: Cells = {}
        self._places: set[Place] = set()  # some that the table has
        self._prune_at = 0.0

    def add(self, cells: Iterable[tuple[Place, Sequence[int]]]) -> None:
        with self._lock:
            merge(self._cells, cells)
            if self._cells:
                self.write_at = min(self.write_at, time.monotonic() + WRITE_EVERY)

    def write(self) -> None:
        """Adds all of it to the table. Raises DatabaseError; then it is tried again later.

        That the table does not exist yet, while new code waits for its migration, is no error.
        """
        from .engines.connection import is_missing_table

        with self._lock:
            cells, self._cells, self.write_at = self._cells, {}, math.inf
        try:
            if cells:
                self.engine.add_counts(self._known(cells))
            self._prune()
        except DatabaseError as error:
            self.add(cells.items())
            if not is_missing_table(error):
                raise
            self.write_at = time.monotonic() + WRITE_AGAIN

    def _known(self, cells: Cells) -> Cells:
        """The same, where the table would have too many places, as OTHER."""
        if cells.keys() <= self._places:
            return cells
        self._places = self.engine.counted_places(2 * MOST_PLACES)
        known: Cells = {}
        for place, counts in cells.items():
            if place not in self._places and len(self._places) >= MOST_PLACES:
                place = other(place, {queue for queue, _ in self._places})
            self._places.add(place)
            add_to(known.setdefault(place, [0] * len(COLUMNS)), counts)
        return known

    def _prune(self) -> None:
        if time.monotonic() >= self._prune_at:
            while self.engine.prune_counts() and self.write_at > time.monotonic():
                pass
            self._prune_at = time.monotonic() + PRUNE_EVERY


def waited(claimed: Claimed) -> int:
    """Microseconds from when the row could be claimed until it was; never negative.

    The producer's clock and the database's may differ, so the difference can be below zero.
    """
    try:
        begin, end = instant(claimed.enqueued_at), instant(claimed.last_attempted_at)
        if claimed.run_after is not None:
            begin = max(begin, instant(claimed.run_after))
        microseconds = int((end - begin).total_seconds() * MILLION)
    except (ValueError, TypeError, OverflowError):
        return 0  # written by hand: no time at all
    return min(max(0, microseconds), LONGEST_WAIT)


def instant(value: Any) -> datetime.datetime:
    """As the database returned it: text, or the driver's object. Raises ValueError, TypeError."""
    when: datetime.datetime = (
        datetime.datetime.fromisoformat(value) if isinstance(value, str) else value
    )
    return when


def rescued_counts(rescued: Rescued) -> Iterator[tuple[Place, list[int]]]:
    """What a rescue counts as: an attempt that was rescued; and a failed one if it was the last.

    A task that somebody had cancelled is a failed one only.
    """
    failed, cancelled = set(rescued.failed), set(rescued.cancelled)
    for id, queue, task_path in rescued.tasks:
        counts = [0] * len(COLUMNS)
        counts[RESCUED] = int(id not in cancelled)
        counts[FAILED] = int(id in failed or id in cancelled)
        yield (queue, task_path), counts


def cell_of(cells: Cells, place: Place) -> list[int]:
    """The place's cell, made if need be; where there are too many, that of OTHER."""
    if place not in cells and len(cells) >= MOST_PLACES:
        place = other(place, {queue for queue, _ in cells})
    return cells.setdefault(place, [0] * len(COLUMNS))


def other(place: Place, queues: set[str]) -> Place:
    """Where a place is counted that is one too many: under its queue, if that is known."""
    return (place[0] if place[0] in queues else OTHER, OTHER)


def merge(cells: Cells, more: Iterable[tuple[Place, Sequence[int]]]) -> None:
    for place, counts in more:
        add_to(cell_of(cells, place), counts)


def add_to(cell: list[int], counts: Sequence[int]) -> None:
    cell[:] = map(int.__add__, cell, counts)


def as_message(cells: Iterable[tuple[Place, Sequence[int]]]) -> list[list[Any]]:
    """Cells as JSON can tell them."""
    return [[queue, path, list(counts)] for (queue, path), counts in cells]


def from_message(told: Iterable[Sequence[Any]]) -> Iterator[tuple[Place, list[int]]]:
    """The cells in what another process tells; what is malformed is left out."""
    for queue, path, counts in told:
        if len(counts) == len(COLUMNS):
            yield (str(queue), str(path)), [int(count) for count in counts]


def in_batches(cells: Cells, size: int) -> Iterator[Cells]:
    for batch in itertools.batched(cells.items(), size):
        yield dict(batch)
