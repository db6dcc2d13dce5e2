"""Takes what waits behind a slow task from its worker, and has it settled by the scheduler."""

from __future__ import annotations

from dbtasks.engines import Claimant
from dbtasks.hand import OVERRUN, OVERRUN_LOOK

from .child import Child, Kind, Life
from .errands import Errands
from .hand import told
from .janitor import Settle
from .nursery import Nursery

SILENT = 1.0  # seconds without a sign of life between two tasks: the worker may be stopped


class Overruns:
    """The workers that hold more than the task that they run."""

    def __init__(self, nursery: Nursery, errands: Errands) -> None:
        self.nursery = nursery
        self.errands = errands
        self.watched: set[Child] = set()
        self.look_at = 0.0

    @property
    def wake_at(self) -> float | None:
        """When to look again, monotonic; None while nobody holds anything."""
        return self.look_at if self.watched else None

    def watch(self, child: Child) -> None:
        if child.hand is not None:
            self.watched.add(child)

    def forget(self, child: Child) -> None:
        self.watched.discard(child)

    def look(self, now: float) -> None:
        if not self.watched or now < self.look_at:
            return
        self.look_at = now + OVERRUN_LOOK
        for child in list(self.watched):
            if child.hand is None or child.hand.is_empty():
                self.watched.discard(child)
            elif self.is_late(child, now):
                self.relieve(child)

    def is_late(self, child: Child, now: float) -> bool:
        if child.board is None or child.life is Life.KILLED:
            return False
        view = child.board.read()
        if view.executing:
            return now - view.started >= OVERRUN
        return now - view.ticked >= SILENT

    def relieve(self, child: Child) -> None:
        """What cannot be told to the scheduler is done by a janitor."""
        assert child.hand is not None
        handover = child.hand.take_over(Claimant(child.node, child.identity))
        if handover is None:
            return
        for scheduler in self.nursery.of_kind(Kind.SCHEDULER):
            listens = scheduler.ready and scheduler.stopped_since is None
            if listens and scheduler.channel.send("settle", **told(handover)):
                return
        self.errands.add(Settle(handover))

    def suspend(self) -> None:
        """Before the parent becomes another image, which does not know what the workers hold."""
        for child in self.nursery.workers:
            if child.hand is not None:
                child.hand.leave_alone()
                self.relieve(child)

    def resume(self) -> None:
        """The parent is still the same."""
        for child in self.nursery.workers:
            if child.hand is not None:
                child.hand.leave_alone(False)
