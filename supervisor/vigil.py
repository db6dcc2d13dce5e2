"""Looks after the living: hard limits, stuck and stopped workers, memory, recycling, health."""

from __future__ import annotations

import logging
import time

from .board import BoardView
from .child import Child, Kind, Life
from .nursery import Nursery
from .outage import PATIENCE, UNLADEN_PATIENCE, unanswered
from .process import unique_memory

logger = logging.getLogger("dbtasks")

SILENCE = 60.0  # seconds without a sign of life after which a child that runs no task is stuck
STOPPED = 10.0  # seconds that a child may be stopped (SIGSTOP)
LONG_TASK = 10.0  # seconds; who recycles after such a task lets others recycle meanwhile
HEALTHY_AGE = 5.0  # seconds that a worker must live to count as healthy
LAST_CHANCE = 2 / 3  # of the lease: so late can the next scheduler still renew it
FAR_BEYOND = 1.5  # times --max-memory at which a worker is killed in the middle of its task


class Vigil:
    """`healthy_at`: when a healthy worker was last seen (monotonic)."""

    def __init__(self, nursery: Nursery, max_memory: int | None) -> None:
        self.nursery = nursery
        self.max_memory = max_memory
        self.healthy_at = time.monotonic()

    def keep_deadlines(self, now: float) -> None:
        """SIGKILL where the last second after a stack dump is over; hard limits of tasks."""
        for child in self.nursery:
            if child.kill_at is not None and now >= child.kill_at:
                child.carry_out()
            if child.deadline is not None and now >= child.deadline:
                child.deadline = None
                self.enforce_limit(child, now)

    def enforce_limit(self, child: Child, now: float) -> None:
        """Ends the worker, unless the task that had this deadline is over."""
        if child.kill_at is not None or child.life is Life.KILLED:
            return
        view = child.board.read() if child.board is not None else None
        if view is not None and view.executing and view.deadline and now >= view.deadline:
            seconds = now - view.started
            logger.error(
                "%s exceeded its hard time limit; ending %s", view.task_path, child.identity
            )
            child.condemn(
                f"hard time limit: the task ran for {seconds:.1f} s and did not obey its timeout",
                counted=True,
            )

    def look(self, now: float) -> None:
        """Once a second."""
        for child in self.nursery.of_kind(Kind.WORKER, Kind.SCHEDULER, Kind.JANITOR):
            if child.life is not Life.KILLED:
                self.look_for_stuck(child, now)
        workers = self.nursery.workers
        for child in workers:
            self.look_at_memory(child)
            if child.deadline is None:
                self.enforce_limit(child, now)  # its message about the limit may have been lost
        if any(
            child.ready and child.age >= HEALTHY_AGE and child.stopped_since is None
            for child in workers
        ):
            self.healthy_at = now

    def look_for_stuck(self, child: Child, now: float) -> None:
        if child.is_stopped():
            child.stopped_since = child.stopped_since or now
            if now - child.stopped_since >= STOPPED:
                child.condemn("it was stopped (SIGSTOP) for too long", counted=True)
            return
        child.stopped_since = None
        if child.board is None:
            return
        view = child.board.read()
        silence = now - view.ticked
        if view.asking:
            if silence > (patience := self.patience(child, view)):
                told = f"the database did not answer for {patience:g} s"
                if view.running:
                    told += "; what came of the task could not be written"
                # The task did run, so it is counted. Where we hang is known: no stack dump.
                child.condemn(told, counted=view.running, dump=False)
        elif not view.executing and silence > SILENCE:
            child.condemn(f"it gave no sign of life for {SILENCE:g} s", counted=False)

    def patience(self, child: Child, view: BoardView) -> float:
        """Seconds for which a child may wait for the database."""
        lease = self.nursery.node.lease
        if child.kind is Kind.SCHEDULER:
            return max(unanswered(lease), lease * LAST_CHANCE)
        if child.kind is Kind.JANITOR:
            return SILENCE
        if view.running:
            return PATIENCE
        nothing_to_lose = child.hand is None or not child.hand.holds_outcomes
        if child.life is Life.DRAINING and nothing_to_lose:
            return unanswered(lease)
        return UNLADEN_PATIENCE

    def look_at_memory(self, child: Child) -> None:
        limit = self.max_memory
        if limit is None or child.life in (Life.STARTING, Life.KILLED):
            return
        used = unique_memory(child.pid)
        if used > limit:
            child.wants_recycling = True
        if used > limit * FAR_BEYOND:
            told = f"it used {used >> 20} MiB of memory, far more than --max-memory allows"
            child.condemn(told, counted=True)

    def recycle_one(self) -> None:
        """One worker at a time and between two tasks, so that the others go on."""
        workers = self.nursery.workers
        if any(self.is_leaving(child) for child in workers):
            return
        for child in workers:
            if child.wants_recycling and child.life is Life.RUNNING:
                logger.info("recycling worker %s", child.identity)
                child.drain()
                return

    def is_leaving(self, child: Child) -> bool:
        """Whether the next one has to wait for its successor; not if its last task takes long."""
        if child.life is not Life.DRAINING:
            return False
        view = child.board.read() if child.board is not None else None
        return not (view and view.executing and time.monotonic() - view.started > LONG_TASK)
