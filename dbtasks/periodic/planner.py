"""The tick: enqueues what is due, exactly once over all nodes, and finds the next due time.

Everything that decides is in the database: its clock, and each entry's `next_due`. The user's code
(arguments that are callables) runs before the lock is taken; then one transaction looks whether
what was prepared is still what is due, inserts occurrences and tasks, and moves the entries on. A
node that is killed anywhere on the way has done all of it or nothing. Where many are due together,
foresight.py lets the transaction begin early and end in time.
"""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from django.db import DataError, IntegrityError
from django.tasks.base import Task as DjangoTask

from ..engines import NewOccurrence, NewTask, NodeInfo, PeriodicRow, Settled
from ..engines.base import Glance, StillDue
from ..execution import described
from ..ids import dashed
from .calls import new_row, periodic_task, stand_in
from .definition import BoundPeriodic
from .deployment import Deployment
from .foresight import CROWD, ClockStands, Foresight, Prepared
from .stored import entry_of_row

if TYPE_CHECKING:
    from ..backend import DatabaseBackend

logger = logging.getLogger("dbtasks")

PERIODIC_LOCK = "periodic"
LOCK_RETRY = 0.25  # seconds until we look again whether another node has done the tick
MOST, MOST_OF_ONE = 1000, 100  # occurrences in one tick, of all entries and of one
# Seconds between two looks at entries that are due but only newer nodes can enqueue; after so many
# seconds it is said that none could.
ELSEWHERE_LOOK, ELSEWHERE = 1.0, 60.0
SET_BACK = datetime.timedelta(seconds=1)  # a clock that goes back further was set
UNFINISHED = ("READY", "RUNNING")
BROKEN = (ArithmeticError, ValueError, TypeError)  # what a row written by hand can raise
REFUSED = (DataError, IntegrityError, OverflowError)


class Planner:
    """Enqueues the periodic entries of one node's settings and of the database."""

    def __init__(
        self,
        backend: DatabaseBackend,
        node: NodeInfo,
        entries: Iterable[BoundPeriodic],
        foreign: Callable[[], AbstractContextManager[None]],
        work: Callable[[int], None],
    ) -> None:
        self.backend = backend
        self.engine = backend.engine
        self.node = node
        self.entries = {entry.name: entry for entry in entries}
        self.deployment = Deployment(self.engine, node, self.entries)
        self.foreign = foreign
        self.work = work
        self._stored: dict[int, tuple[int, BoundPeriodic | None]] = {}
        self._told: set[tuple[str, str]] = set()
        self._not_before = float("-inf")  # monotonic
        self._clock: datetime.datetime | None = None
        self._crowded = False
        self.foresight = Foresight(self.engine, self.foreseen)

    def wake_at(self, glance: Glance) -> float:
        """When `tick` is to be called (monotonic)."""
        if self._clock is None or glance.now >= self._clock - SET_BACK or self.set_back(glance.now):
            self._clock = glance.now
        at = self.deployment.review_at
        if glance.periodic_in is not None:
            due_at = time.monotonic() + max(0.0, glance.periodic_in)
            at = min(at, self.foresight.call_at(glance) if self._crowded else due_at)
        return max(at, self._not_before)

    def tick(self) -> None:
        """Enqueues what is due, if anything is. Raises DatabaseError."""
        self._not_before = float("-inf")
        if time.monotonic() >= self.deployment.review_at and not self.review():
            self._not_before = time.monotonic() + LOCK_RETRY
            return
        if foreseen := self.foresight.take():
            self.enqueue_in_time(foreseen)
        now, rows = self.engine.periodic_due()
        if now is None:
            self.foresight.look()
            return
        self._crowded |= len(rows) > CROWD
        self._clock = max(now, self._clock or now)
        prepared, left = self.prepare_all(rows, now)
        if prepared and not self.enqueue_all(prepared, now):
            self._not_before = time.monotonic() + LOCK_RETRY
        elif left and not prepared:
            ahead = self.engine.periodic_ahead_in()
            wait = ELSEWHERE_LOOK if ahead is None else min(ahead, ELSEWHERE_LOOK)
            self._not_before = time.monotonic() + wait

    def review(self) -> bool:
        """Whose entries hold; False if another node has the lock."""
        if self.deployment.is_in_order():
            return True
        with self.engine.locked(PERIODIC_LOCK) as got:
            if got:
                self.deployment.review()
                rows = self.engine.periodic_entries()
                self._crowded = len(rows) > CROWD
                if self._clock is None:
                    self._clock = max((row.last_due for row in rows if row.last_due), default=None)
        if got:
            self.deployment.reviewed()
        return got

    def set_back(self, now: datetime.datetime) -> bool:
        """The database's clock was set back: entries are due by it again.

        What has run for a due time does not run again: its occurrence exists. False if another
        node has the lock.
        """
        with self.engine.locked(PERIODIC_LOCK) as got:
            if not got:
                return False
            logger.warning("the database's clock was set back to %s", now.isoformat())
            earlier = []
            for row in self.engine.periodic_entries():
                entry = self.entry_of(row) if row.next_due else None
                next_due = entry.next_or_none(now) if entry else None
                if next_due and row.next_due and next_due < row.next_due:
                    earlier.append(Settled(row.id, next_due, None, None))
            self.engine.move_entries(earlier, self.node.name)
        return True

    # Before the due time

    def foreseen(self, row: PeriodicRow) -> Prepared | None:
        """As `prepare_ahead`; what is wrong with a row is told when it is due."""
        try:
            return self.prepare_ahead(row)
        except BROKEN:
            return None

    def prepare_ahead(self, row: PeriodicRow) -> Prepared | None:
        """One run of the row; None where what it needs is not known before it is due."""
        entry = self.entry_of(row)
        if entry is None or row.next_due is None or row.overlap == "skip":
            return None
        if entry.args_text is None or entry.kwargs_text is None:
            return None
        task, error = self.task_of(entry)
        if error is not None:
            return None
        occurrence = NewOccurrence(row.name, row.next_due, *self.call(entry, task, None))
        return Prepared(row, [occurrence], entry.next_or_none(row.next_due))

    def enqueue_in_time(self, foreseen: Sequence[Prepared]) -> None:
        """Writes what will be due in a moment and commits when it is."""
        began = time.monotonic()
        try:
            with self.engine.locked(PERIODIC_LOCK) as got:
                if not got:
                    return
                prepared = self.foresight.still_right(foreseen, self.engine.now())
                if not prepared:
                    return
                new = self.write(prepared, max(each.occurrences[0].due_at for each in prepared))
                self.foresight.wait(prepared, began)
        except (ClockStands, *REFUSED):
            return  # when they are due each is looked at again, and one by one if need be
        self.tell(new)

    # Before the lock

    def prepare_all(
        self, rows: Iterable[PeriodicRow], now: datetime.datetime
    ) -> tuple[list[Prepared], int]:
        """What this node can enqueue, and how many entries it leaves to others."""
        prepared: list[Prepared] = []
        left, count = 0, 0
        for row in rows:
            ready = self.prepared(row, now)
            if ready is None:
                left += 1
                continue
            prepared.append(ready)
            count += len(ready.occurrences)
            if count >= MOST:
                break
        return prepared, left

    def prepared(self, row: PeriodicRow, now: datetime.datetime) -> Prepared | None:
        """As `prepare`; what goes wrong with one row, written by hand, is not the others' loss."""
        try:
            return self.prepare(row, now)
        except BROKEN as error:
            self.give_up(row, error)
            return None

    def give_up(self, row: PeriodicRow, error: Exception) -> None:
        """Until the entry is changed."""
        self._stored[row.id] = row.edition, None
        logger.error("periodic task %s cannot be scheduled: %s", row.name, error)

    def prepare(self, row: PeriodicRow, now: datetime.datetime) -> Prepared | None:
        entry = self.entry_of(row)
        if entry is None or row.next_due is None:
            return None
        task, error = self.task_of(entry)
        if isinstance(error, ImportError) and self.is_left_to_others(row, now):
            return None
        due, following = entry.owed(row.next_due, now, MOST_OF_ONE)
        occurrences = [
            NewOccurrence(row.name, moment, *self.call(entry, task, error)) for moment in due
        ]
        return Prepared(row, occurrences, following)

    def entry_of(self, row: PeriodicRow) -> BoundPeriodic | None:
        """What the row says, by our settings if they say the same; None if we cannot tell."""
        if row.origin == "settings":
            ours = self.entries.get(row.name)
            if ours is not None and ours.fingerprint == row.fingerprint:
                return ours
            if ours is not None:
                self.tell_difference(row, ours)
        edition, entry = self._stored.get(row.id, (None, None))
        if edition != row.edition:
            try:
                entry = entry_of_row(row)
            except ValueError as error:
                entry = None
                logger.error("periodic task %s cannot be scheduled: %.500s", row.name, error)
            self._stored[row.id] = row.edition, entry
        return entry

    def tell_difference(self, row: PeriodicRow, ours: BoundPeriodic) -> None:
        if (row.name, row.fingerprint) in self._told:
            return
        self._told.add((row.name, row.fingerprint))
        logger.warning(
            "periodic task %s is %r in the settings of this node but %r in those of a newer "
            "deployment; the newer one's holds",
            row.name,
            ours.spec,
            row.spec,
        )

    def is_left_to_others(self, row: PeriodicRow, now: datetime.datetime) -> bool:
        """Whether a newer node may know the task that we cannot import."""
        ours = self.entries.get(row.name)
        if row.origin == "settings" and ours and ours.fingerprint == row.fingerprint:
            return False
        return row.next_due is not None and (now - row.next_due).total_seconds() < ELSEWHERE

    def task_of(self, entry: BoundPeriodic) -> tuple[DjangoTask, BaseException | None]:
        try:
            with self.foreign():
                return periodic_task(self.backend, entry), None
        except (Exception, SystemExit) as error:
            return stand_in(self.backend, entry), error

    def call(
        self, entry: BoundPeriodic, task: DjangoTask, error: BaseException | None
    ) -> tuple[NewTask, dict[str, str] | None]:
        """A row of the entry. A task or arguments that cannot be had fail this run visibly."""
        if error is None:
            try:
                with self.foreign():
                    args, kwargs = entry.arguments()
                return new_row(self.backend, entry, task, args, kwargs), None
            except (Exception, SystemExit) as problem:
                error = problem
        logger.error("periodic task %s cannot run", entry.name, exc_info=error)
        return new_row(self.backend, entry, task, [], {}), described(error)

    # Under the lock

    def enqueue_all(self, prepared: Sequence[Prepared], now: datetime.datetime) -> bool:
        """As `enqueue`; what the database refuses, written by hand, keeps back nothing else."""
        try:
            return self.enqueue(prepared, now)
        except REFUSED as error:
            if len(prepared) == 1:
                self.give_up(prepared[0].row, error)
                return True
        done = [self.enqueue_all([each], now) for each in prepared]
        return all(done)

    def enqueue(self, prepared: Sequence[Prepared], now: datetime.datetime) -> bool:
        """Enqueues what is still due as it was prepared; False if another node has the lock."""
        with self.engine.locked(PERIODIC_LOCK) as got:
            if not got:
                return False
            new = self.write(prepared, now)
        self.tell(new)
        return True

    def write(self, prepared: Iterable[Prepared], now: datetime.datetime) -> list[NewOccurrence]:
        """Of what was prepared, what is due by `now` and unchanged; returns what is new."""
        still = self.engine.periodic_still_due(now)
        ready = [each for each in prepared if is_unchanged(each.row, still.get(each.row.id))]
        wanted = self.without_overlaps(ready, still)
        new = self.engine.enqueue_occurrences(wanted, self.node.name)
        last = {each.name: each.task_id for each in new if not each.skipped}
        self.engine.move_entries(
            [settled(each, last.get(each.row.name)) for each in ready], self.node.name
        )
        return new

    def without_overlaps(
        self, ready: Iterable[Prepared], still: dict[int, StillDue]
    ) -> list[NewOccurrence]:
        """The occurrences, marked as skipped where the run before is to end first."""
        last = {
            each.row.id: str(still[each.row.id].last_task)
            for each in ready
            if each.row.overlap == "skip" and still[each.row.id].last_task
        }
        statuses = self.engine.task_statuses(last.values()) if last else {}
        wanted: list[NewOccurrence] = []
        for row, occurrences, _ in ready:
            if row.overlap != "skip":
                wanted += occurrences
                continue
            before = last.get(row.id, "")
            status = statuses.get(before, "")
            for occurrence in occurrences:
                if status in UNFINISHED:
                    why = f"the run before is still {status}"
                    occurrence = occurrence._replace(skipped=why, blocked_by=before)
                elif occurrence.error is None:
                    before, status = occurrence.row.id, "READY"
                wanted.append(occurrence)
        return wanted

    def tell(self, new: Sequence[NewOccurrence]) -> None:
        """After the commit: to the workers, and to the log."""
        if count := sum(each.error is None and not each.skipped for each in new):
            self.work(count)
        for each in new:
            if each.skipped:
                logger.info(
                    "periodic task %s is skipped, due %s: %s",
                    each.name,
                    each.due_at.isoformat(),
                    each.skipped,
                    extra={"task_id": dashed(each.task_id), "task_path": each.row.task_path},
                )
            else:
                logger.info(
                    "periodic task %s is enqueued, due %s",
                    each.name,
                    each.due_at.isoformat(),
                    extra={
                        "task_id": dashed(each.row.id),
                        "task_path": each.row.task_path,
                        "queue": each.row.queue,
                    },
                )


def is_unchanged(row: PeriodicRow, still: StillDue | None) -> bool:
    return still is not None and (row.edition, row.next_due) == (still.edition, still.next_due)


def settled(prepared: Prepared, last_task: str | None) -> Settled:
    last_due = prepared.occurrences[-1].due_at if prepared.occurrences else None
    return Settled(prepared.row.id, prepared.next_due, last_due, last_task)
