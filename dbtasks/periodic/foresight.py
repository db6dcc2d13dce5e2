"""What is due next, prepared a second ahead and written in a transaction that ends at the due time.

A thousand entries that are due together take a database 50 to 100 ms to write. So that they are
not late by that, the transaction begins so long before, and waits for the due time before it
commits: nobody sees any of it earlier, and a node that is killed meanwhile has done nothing.
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..engines import NewOccurrence, PeriodicRow
from ..engines.base import Glance
from .definition import SKIP_TOLERANCE

if TYPE_CHECKING:
    from ..engines import Engine

# Where there are more than CROWD entries, those that are due together are prepared so many seconds
# ahead: when their time comes, they are only written.
CROWD, FORESIGHT = 50, 1.0
MOST = 1000  # entries that are written ahead
# Seconds by which a transaction may begin before the due time: others wait for its locks. How long
# it takes to write, only writing shows; the first guess is by the entry.
LONGEST_LEAD, GUESS = 0.5, 0.0001
MARGIN = 0.005
TOO_EARLY = LONGEST_LEAD + 0.1  # a transaction that would have to wait so long does not
QUESTIONS = 5  # to a clock that is said to reach the due time any moment


class Prepared(NamedTuple):
    """An entry that is due, what there is to enqueue of it, and when it is due next."""

    row: PeriodicRow
    occurrences: Sequence[NewOccurrence]
    next_due: datetime.datetime | None


class ClockStands(Exception):
    """The database's clock does not come to the due time for which a transaction waits."""


class Foresight:
    """`prepare` makes what is due of a row, or None if that is to wait until it is."""

    def __init__(self, engine: Engine, prepare: Callable[[PeriodicRow], Prepared | None]) -> None:
        self.engine = engine
        self.prepare = prepare
        self.sleep = time.sleep
        self.prepared: list[Prepared] = []
        self._due: datetime.datetime | None = None  # of all that is prepared
        self._looks = False
        self._begin_at = math.inf  # monotonic
        self._pace: float | None = None  # seconds that the last transaction took to write

    def call_at(self, glance: Glance) -> float:
        """When there is something to do (monotonic), if an entry is due as the glance says."""
        due_in = max(0.0, glance.periodic_in or 0.0)
        self._looks = not self.has_seen(glance)
        lead = FORESIGHT if self._looks else self.lead if self.prepared else 0.0
        self._begin_at = time.monotonic() + max(0.0, due_in - lead)
        return self._begin_at

    def has_seen(self, glance: Glance) -> bool:
        """Whether what is due next was looked at."""
        if self._due is None or glance.periodic_in is None:
            return False
        ahead = (self._due - glance.now).total_seconds()
        return glance.periodic_in <= 0 or abs(ahead - glance.periodic_in) < 0.001

    @property
    def lead(self) -> float:
        """Seconds before the due time at which the transaction begins."""
        pace = GUESS * len(self.prepared) if self._pace is None else self._pace
        return min(1.5 * pace + MARGIN, LONGEST_LEAD)

    def look(self) -> None:
        """Prepares what is due next, if that is soon."""
        if not self._looks:
            return
        self.prepared, self._looks = [], False
        rows = self.engine.periodic_soon(FORESIGHT + 0.1)
        self._due = rows[0].next_due if rows else None
        together = [row for row in rows[:MOST] if row.next_due == self._due]
        self.prepared = [ready for row in together if (ready := self.prepare(row)) is not None]

    def take(self) -> list[Prepared]:
        """What is to be written now, once."""
        if not self.prepared or time.monotonic() < self._begin_at:
            return []
        taken, self.prepared = self.prepared, []
        return taken

    # Under the lock

    def still_right(self, prepared: Iterable[Prepared], now: datetime.datetime) -> list[Prepared]:
        """What was prepared for one run in time, as it is enqueued at `now` or when it is due."""
        return [
            each._replace(occurrences=[at_time(occurrence, now) for occurrence in each.occurrences])
            for each in prepared
            if is_in_time(each, now)
        ]

    def wait(self, prepared: Sequence[Prepared], began: float) -> None:
        """Until what is written is due. `began`: when writing did (monotonic). Raises ClockStands.

        The database's clock can be set meanwhile.
        """
        took = time.monotonic() - began
        self._pace = took if self._pace is None else max(took, 0.7 * self._pace)
        for _ in range(QUESTIONS):
            now = self.engine.now()
            ahead = max(((each.row.next_due or now) - now).total_seconds() for each in prepared)
            if ahead > TOO_EARLY:
                break
            if ahead <= 0:
                if not all(is_in_time(each, now) for each in prepared):
                    break
                return
            self.sleep(ahead)
        raise ClockStands


def is_in_time(prepared: Prepared, now: datetime.datetime) -> bool:
    """Whether one run is due, soon or since a moment, and not already the next."""
    due, following = prepared.row.next_due, prepared.next_due
    if due is None or (due - now).total_seconds() > TOO_EARLY:
        return False
    return now - due < SKIP_TOLERANCE and (following is None or following > now)


def at_time(occurrence: NewOccurrence, now: datetime.datetime) -> NewOccurrence:
    at = max(now, occurrence.due_at)
    return occurrence._replace(row=occurrence.row._replace(enqueued_at=at))
