"""The janitor: a short-lived child that does the parent's database work, then leaves.

The parent has no database connection, so that nothing can ever block it.
"""

from __future__ import annotations

import logging
import random
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from django.db import Error as DatabaseError

from dbtasks import signals
from dbtasks.engines import Death, Engine, Outcome, Rescued
from dbtasks.engines.network import CONNECTION_PATIENCE
from dbtasks.hand import Handover
from dbtasks.ids import dashed
from dbtasks.outcomes import finish_alone
from dbtasks.retention import prune
from dbtasks.runner import database_backend
from dbtasks.tally import Cells, merge, rescued_counts

from .board import Board, State
from .channel import Channel
from .newborn import EXIT_OK, use_one_connection
from .relay import send_counts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dbtasks.backend import DatabaseBackend

logger = logging.getLogger("dbtasks")

RETRY_FIRST, RETRY_MOST = 0.1, 5.0  # seconds between two tries to reach the database
ORPHAN_PATIENCE = 30.0  # seconds that a janitor tries on after its parent died


@dataclass(frozen=True)
class Rescue:
    """Give back, or fail, the rows of one dead worker."""

    node: str
    worker: str
    death: Death
    outcomes: tuple[Outcome, ...] = ()  # of what it had done, and had not written yet
    # What came of it: for the statistics, and for the receivers of task_rescued.
    counts: Cells = field(default_factory=dict, compare=False)
    told: list[dict[str, Any]] = field(default_factory=list, compare=False)

    def do(self, engine: Engine, stopping: Callable[[], bool]) -> int:
        if self.outcomes:
            write(engine, self.outcomes)
        rescued = engine.rescue(self.node, self.worker, self.death)
        tell(self.worker, rescued, self.death)
        merge(self.counts, rescued_counts(rescued))
        if signals.is_wanted("task_rescued"):
            self.told.extend(signals.rescued_details(rescued, self.worker, self.death.reason))
        return len(rescued.retried) + len(rescued.released)


def write(engine: Engine, outcomes: Sequence[Outcome]) -> None:
    """What the database refuses fails its task, as its worker would have done it."""

    def is_away(error: DatabaseError) -> bool:
        return engine.unavailable(error) is not None

    try:
        engine.finish(outcomes)
    except DatabaseError as error:
        if is_away(error):
            raise
        for outcome in outcomes:
            finish_alone(engine, outcome, is_away)


@dataclass(frozen=True)
class Settle:
    """What a worker has no time for."""

    handover: Handover

    def do(self, engine: Engine, stopping: Callable[[], bool]) -> int:
        return self.handover.settle(engine)


@dataclass(frozen=True)
class Cleanup:
    """Delete what is past its retention."""

    def do(self, engine: Engine, stopping: Callable[[], bool]) -> int:
        if deleted := prune(engine, stopping):
            logger.info("deleted %d finished tasks that were past their retention", deleted)
        return 0


@dataclass(frozen=True)
class Farewell:
    """End the lease of a node whose scheduler cannot do it any more."""

    node: str

    def do(self, engine: Engine, stopping: Callable[[], bool]) -> int:
        engine.end_lease(self.node)
        return 0


@dataclass(frozen=True)
class Announce:
    """Call the receivers of one of our signals; they are user code, which the parent never runs."""

    name: str
    details: dict[str, Any] = field(hash=False)

    def do(self, engine: Engine, stopping: Callable[[], bool]) -> int:
        """The kernel ends us if the receivers do not come back (SIGALRM)."""
        signal.setitimer(signal.ITIMER_REAL, signals.PATIENCE)
        signals.send(self.name, database_backend(engine.backend), **self.details)
        signal.setitimer(signal.ITIMER_REAL, 0)
        return 0


# What `do` returns: how many rows are ready again because of it.
Job = Rescue | Settle | Cleanup | Farewell | Announce


def tell(worker: str, rescued: Rescued, death: Death) -> None:
    """One line per rescue."""
    if rescued.failed:
        logger.error(
            "task %s of dead worker %s failed: it may not run again (%s)",
            ", ".join(map(dashed, rescued.failed)),
            worker,
            death.reason,
            extra={"worker_id": worker, "task_id": dashed(rescued.failed[0])},
        )
    if rescued.retried:
        logger.warning(
            "task %s of dead worker %s is ready again",
            ", ".join(map(dashed, rescued.retried)),
            worker,
            extra={"worker_id": worker, "task_id": dashed(rescued.retried[0])},
        )
    if rescued.cancelled:
        logger.warning(
            "task %s of worker %s was cancelled",
            ", ".join(map(dashed, rescued.cancelled)),
            worker,
            extra={"worker_id": worker, "task_id": dashed(rescued.cancelled[0])},
        )
    if rescued.released:
        logger.info("%d tasks of worker %s went back to the queue", len(rescued.released), worker)


def run_janitor(
    backend: DatabaseBackend, jobs: Sequence[Job], channel: Channel, board: Board
) -> int:
    """The main function of a janitor: does its jobs, however long the database is away."""
    use_one_connection()
    engine = backend.engine
    engine.prepare_connections(CONNECTION_PATIENCE)
    draining = False
    orphaned_at: float | None = None

    def look() -> None:
        nonlocal draining, orphaned_at
        draining |= any(message["kind"] == "drain" for message in channel.receive())
        if channel.closed and orphaned_at is None:
            orphaned_at = time.monotonic()

    def stopping() -> bool:
        look()
        board.tick()
        return draining or channel.closed

    channel.send("ready")
    delay, lost = RETRY_FIRST, False
    todo = list(jobs)
    while todo:
        try:
            if ready := todo[0].do(engine, stopping):
                channel.send("work", count=ready)
            done = todo.pop(0)
            if isinstance(done, Rescue):
                send_counts(channel, done.counts)
                for details in done.told:
                    channel.send("announce", signal="task_rescued", details=details)
            continue
        except DatabaseError as error:
            why = engine.unavailable(error)
            if why is None:
                raise
            engine.close()
            if not lost:
                lost = True
                channel.send("database_lost", why=why)
        look()
        board.tick(State.WAITING)
        if orphaned_at is not None and time.monotonic() - orphaned_at > ORPHAN_PATIENCE:
            break
        time.sleep(delay * random.uniform(0.5, 1.0))
        delay = min(delay * 2, RETRY_MOST)
    engine.close()
    return EXIT_OK
