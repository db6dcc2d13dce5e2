"""The loop of every worker, process or thread: finish the last tasks, claim the next, run them.

A worker knows how to wait, when to stop and how to interrupt a task; it hands that in as a
`Control`. All else about a task's way through a worker is here, once.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import random
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from django.db import Error as DatabaseError
from django.tasks.signals import task_finished
from django.utils import timezone

from .control import Control
from .engines import Claimant, Claimed, Engine, Outcome
from .execution import Execution, execute, interrupts
from .hygiene import tidy_up, watch_for_transactions
from .ids import dashed
from .lease import Lease
from .outcomes import finish_alone, log_outcome
from .pace import WORTH, Pace
from .queues import QueueSelection
from .results import update_result
from .signals import send, task_retried
from .tally import Tally

if TYPE_CHECKING:
    from .backend import DatabaseBackend

logger = logging.getLogger("dbtasks")
T = TypeVar("T")

LARGE = 1024 * 1024  # characters of an outcome that may be more than a database takes at once
SEEN_WITHIN = 0.02  # seconds after its end in which the outcome of a task is written
RETRY_FIRST, RETRY_MOST = 0.1, 5.0  # seconds between two tries to reach the database
PARKING = 100  # rows to claim at once after those before were all of paused tasks
# Seconds after a failed statement during which it may still take effect: the server can be slow to
# notice that nobody waits for its answer.
LATE_EFFECT = 120.0


class Consumer:
    """One worker's way through the queue."""

    def __init__(
        self,
        backend: DatabaseBackend,
        who: Claimant,
        queues: QueueSelection,
        control: Control,
        lease: Lease | None = None,
    ) -> None:
        self.backend = backend
        self.engine: Engine = backend.engine
        self.who = who
        self.served = queues
        self.queues = queues  # without what is paused
        self.paused_tasks: frozenset[str] = frozenset()
        self.paused_queues: frozenset[str] = frozenset()
        self.control = control
        self.lease = lease
        self.hand = control.hand
        self.pace = Pace(backend.parsed.prefetch or self.engine.worth_claiming)
        self.processed = 0
        self.tally = Tally()
        control.counting(self.tally)
        self._unwritten: list[Execution] = []
        self._unwritten_since = 0.0
        self._hurry = False  # something unwritten may not wait
        self._outages = 0
        self._pauses_seen: int | None = None
        self._parked = False  # whether there may be more behind what the last claim gave
        self._strays_until: float | None = None

    def run(self) -> None:
        """Until the control says stop; then writes what is done and leaves nothing claimed."""
        waited = True
        while not self.control.stopping():
            if waited:
                self.control.idle()
            claimed = self.patiently(self.finish_and_claim)
            if claimed:
                waited = False
                self.run_batch(claimed)
            elif self._parked:
                waited = False
            elif not waited:
                waited = True  # look once more, now that a wake-up would be noticed
            elif claimed is not None:
                self.control.wait()
        while self._unwritten:
            self.patiently(self.finish)
        self.patiently(self.release_strays)

    def run_batch(self, rows: list[Claimed]) -> None:
        """Runs the rows in their order, as far as nothing unforeseen happens; gives back others."""
        self.hand.deal(rows)
        started, outages = time.monotonic(), self._outages
        ran = 0
        for row in rows:
            # The claim itself may have taken long: told to stop meanwhile, it starts nothing.
            if self._outages > outages or self.is_over() or (ran and not self.hand.take()):
                break
            foreseen = self.pace.foresees(row.task_path)
            if self.must_write_first(foreseen):
                self.patiently(self.finish)
            if foreseen > WORTH and ran + 1 < len(rows):  # nothing waits behind a long task
                self.give_back(rows[ran + 1 :])
                rows = rows[: ran + 1]
            self.run_task(row)
            ran += 1
        if ran < len(rows):
            self.give_back(rows[ran:])
        self.pace.over(len(rows), ran, time.monotonic() - started)

    def is_over(self) -> bool:
        """Whether the rows at hand are not to be started any more."""
        if self.control.stopping():
            return True
        return self.lease is not None and (self.lease.is_lapsed or self.pauses_changed)

    def must_write_first(self, foreseen: float) -> bool:
        """Whether what is unwritten cannot wait until a task that takes so long is over."""
        if not self._unwritten:
            return False
        return self._hurry or time.monotonic() + foreseen - self._unwritten_since > SEEN_WITHIN

    def give_back(self, rows: list[Claimed]) -> None:
        """Makes rows ready again that we have claimed and not started.

        Some of them may have been taken from us, and be given back by others at the same time.
        """
        self.hand.fold()
        claims = [(row.id, row.attempt) for row in rows]
        if count := self.patiently(lambda: self.engine.release(self.who, claims)):
            self.control.gave_back(count)

    def run_task(self, claimed: Claimed) -> None:
        """Runs one task; its outcome is written with the next claim, or soon."""
        if self.engine.watches_statements:
            watch_for_transactions(self.connection)
        self.control.began(claimed)
        execution = execute(self.backend, claimed, self.who.worker, self.control.limit)
        safe = self.control.ended(execution)
        tidy_up(self.engine, interrupted=interrupts(execution.error))
        self.processed += 1
        self.pace.ran(claimed.task_path, execution.seconds)
        if not self._unwritten:
            self._unwritten_since = time.monotonic()
        self._unwritten.append(execution)
        self._hurry |= not safe or claimed.policy.ack == "immediate"

    @property
    def connection(self) -> Any:
        from django.db import connections

        return connections[self.engine.alias]

    # The database

    def finish_and_claim(self) -> list[Claimed]:
        if self._strays_until is not None:
            self.finish()
            self.release_strays()
        if self.lease is not None and self.lease.is_doubtful:
            self.lease.renew(self.engine)
        if self.pauses_changed:
            self.heed_pauses()
        outcomes = [execution.outcome for execution in self._unwritten]
        try:
            written, claimed = self.engine.finish_and_claim(
                outcomes, self.who, self.queues, self.room()
            )
        except DatabaseError as error:
            if not outcomes or self.is_away(error, outcomes):
                raise
            self.finish_one_by_one(error)
            return []
        self.settle(written)
        if claimed and self.pauses_changed:  # a pause that was there before these rows
            self.heed_pauses()
        paused = self.paused_tasks or self.paused_queues
        return self.put_aside(claimed) if paused else claimed

    # Pauses

    @property
    def pauses_changed(self) -> bool:
        return self.lease is not None and self.lease.pauses != self._pauses_seen

    def heed_pauses(self) -> None:
        """Asks what is paused, and claims nothing of that from now on."""
        revision = self.lease.pauses if self.lease is not None else 0
        pauses = self.engine.pauses()
        self._pauses_seen, self._parked = revision, False
        self.paused_queues = frozenset(row.name for row in pauses if row.kind == "queue")
        self.paused_tasks = frozenset(row.name for row in pauses if row.kind == "task")
        self.queues = self.served.without(self.paused_queues)

    def put_aside(self, claimed: list[Claimed]) -> list[Claimed]:
        """Parks the rows of paused tasks where no claim meets them again; returns the others."""
        if stopped := [row for row in claimed if row.queue in self.paused_queues]:
            self.engine.release(self.who, [(row.id, row.attempt) for row in stopped])
            claimed = [row for row in claimed if row.queue not in self.paused_queues]
        paused = [row for row in claimed if row.task_path in self.paused_tasks]
        self._parked = bool(claimed) and len(paused) == len(claimed)
        if not paused:
            return claimed
        rows = [(row.id, row.attempt, row.task_path) for row in paused]
        if self.engine.park(self.who, rows) < len(rows):
            # Their pause has just ended.
            self.engine.release(self.who, [(row.id, row.attempt) for row in paused])
            self._pauses_seen = None
        return [row for row in claimed if row.task_path not in self.paused_tasks]

    def room(self) -> int:
        """How many rows to claim now."""
        wanted = min(PARKING if self._parked else self.pace.limit, self.hand.room)
        allowed = self.control.allowance()
        return wanted if allowed is None else max(1, min(wanted, allowed))

    def release_strays(self) -> None:
        """Gives back what is claimed under our name without our knowing.

        A claim can be committed though its answer never came: the row would be RUNNING for as long
        as we live. Nothing of ours runs or is unwritten now, so whatever we hold is such a row.
        """
        if strays := self.engine.release(self.who):
            logger.warning(
                "gave back %d tasks whose claim was interrupted", strays, extra=self.identity
            )
        if self._strays_until is not None and time.monotonic() > self._strays_until:
            self._strays_until = None

    def finish(self) -> None:
        if not self._unwritten:
            return
        outcomes = [execution.outcome for execution in self._unwritten]
        try:
            written = self.engine.finish(outcomes)
        except DatabaseError as error:
            if self.is_away(error, outcomes):
                raise
            self.finish_one_by_one(error)
            return
        self.settle(written)

    def finish_one_by_one(self, error: DatabaseError) -> None:
        """The database refuses what a task returned: that fails this task and no other."""
        written: set[str] = set()
        for position, execution in enumerate(self._unwritten):
            tidy_up(self.engine)
            is_away = functools.partial(self.is_away, outcomes=[execution.outcome])
            ids, outcome = finish_alone(self.engine, execution.outcome, is_away)
            written |= ids
            self._unwritten[position] = dataclasses.replace(execution, outcome=outcome)
        self.settle(written)

    def is_away(self, error: DatabaseError, outcomes: Iterable[Outcome]) -> bool:
        """Whether the database cannot be used for now, rather than refuses these outcomes.

        MySQL hangs up on what is larger than its max_allowed_packet, as if it had gone away; that
        it answers the next question tells the two apart.
        """
        if self.engine.unavailable(error) is None:
            return False
        if max(outcome.size for outcome in outcomes) < LARGE or "lock" in str(error):
            return True
        try:
            self.engine.close()
            self.engine.now()
        except DatabaseError:
            return True
        return False

    def settle(self, written: set[str]) -> None:
        """Tells the world about outcomes that are in the database now."""
        if self._strays_until is not None:  # an answer was lost
            written = written | self.written_before(written)
        for position, execution in enumerate(self._unwritten):
            if execution.outcome.id in written or self.hand.gave_away(position):
                self.tally.count(execution)
                self.announce(execution)
            else:
                logger.warning(
                    "task %s (%s): its claim was given to another worker meanwhile, "
                    "so this result is dropped",
                    dashed(execution.claimed.id),
                    execution.claimed.task_path,
                    extra=self.about(execution),
                )
        if self._unwritten:
            self.hand.clear()
            self.control.settled()
        self._unwritten.clear()
        self._hurry = False

    def written_before(self, written: set[str]) -> set[str]:
        """Of the others, those that an earlier try has written."""
        outcomes = [execution.outcome for execution in self._unwritten]
        others = [outcome for outcome in outcomes if outcome.id not in written]
        return self.engine.stored(others) if others else set()

    def announce(self, execution: Execution) -> None:
        if execution.failed or logger.isEnabledFor(logging.DEBUG):
            log_outcome(execution, self.about(execution))
        if not execution.finished and task_retried.receivers:
            self.tell_of_retry(execution)
        if execution.result is not None and execution.finished and self.backend.parsed.signals:
            update_result(execution.result, finished_at=timezone.now())
            task_finished.send_robust(type(self.backend), task_result=execution.result)

    def tell_of_retry(self, execution: Execution) -> None:
        """Not of an attempt that does not count: it was interrupted, or is for newer code."""
        if execution.outcome.worker_ids != execution.claimed.worker_ids:
            about = self.about(execution)
            del about["duration_ms"]
            send(
                "task_retried",
                self.backend,
                error=execution.error,
                retry_in=execution.outcome.retry_in,
                **about,
            )

    @property
    def identity(self) -> dict[str, Any]:
        return {"worker_id": self.who.worker}

    def about(self, execution: Execution) -> dict[str, Any]:
        """The extra fields of each record about a task."""
        claimed = execution.claimed
        return {
            "task_id": dashed(claimed.id),
            "task_path": claimed.task_path,
            "queue": claimed.queue,
            "worker_id": self.who.worker,
            "attempt": claimed.attempt,
            "duration_ms": round(execution.seconds * 1000, 3),
        }

    def patiently(self, action: Callable[[], T]) -> T | None:
        """`action`, again and again while the database is away; None if told to stop meanwhile.

        With outcomes to write it goes on even then: whoever wants the worker gone will kill it.
        """
        delay = RETRY_FIRST
        lost = failed = False
        while True:
            try:
                result = action()
            except DatabaseError as error:
                why = self.engine.unavailable(error)
                if why is None:
                    raise
                self.engine.close()
                self._outages += 1
                self._strays_until = time.monotonic() + LATE_EFFECT
                if not failed:
                    failed = True  # an outage of before may have broken it: first try a new one
                    continue
                if not lost:
                    self.control.database_lost(why)
                lost = True
                if self.control.stopping() and not self._unwritten:
                    return None
                self.control.pause(delay * random.uniform(0.5, 1.0))
                delay = min(delay * 2, RETRY_MOST)
            else:
                if lost:
                    self.control.database_found()
                return result
