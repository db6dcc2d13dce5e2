"""Takes what waits behind a slow task from its worker, and has it settled by the scheduler."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from typing import NamedTuple

from dbtasks.engines import Claimant
from dbtasks.hand import OVERRUN, OVERRUN_LOOK, Handover

from .child import Child, Kind, Life
from .errands import Errands
from .hand import SharedHand, told
from .janitor import Settle
from .nursery import Nursery

SILENT = 1.0  # seconds without a sign of life between two tasks: the worker may be stopped
OVERDUE = 1.0  # seconds until a janitor settles what the scheduler does not say it has settled


class Entrusted(NamedTuple):
    """A handover on its way to the database."""

    handover: Handover
    scheduler: Child
    at: float  # monotonic


class Overruns:
    """The workers that hold more than the task that they run."""

    def __init__(self, nursery: Nursery, errands: Errands) -> None:
        self.nursery = nursery
        self.errands = errands
        self.watched: set[Child] = set()
        self.look_at = 0.0
        # From here on: another image of the parent may have given numbers to the same scheduler.
        self.numbers = itertools.count(time.monotonic_ns())
        self.entrusted: dict[int, Entrusted] = {}

    @property
    def wake_at(self) -> float | None:
        """When to look again, monotonic; None while nobody holds anything."""
        return self.look_at if self.watched else None

    def watch(self, child: Child) -> None:
        if child.hand is not None:
            self.watched.add(child)

    def forget(self, child: Child) -> None:
        """It has ended."""
        self.watched.discard(child)
        self.take_back(number for number, each in self.entrusted.items() if each.scheduler is child)

    def look(self, now: float) -> None:
        if not self.watched or now < self.look_at:
            return
        self.look_at = now + OVERRUN_LOOK
        for child in list(self.watched):
            if child.hand is None or child.hand.is_empty():
                self.watched.discard(child)
            elif self.is_late(child, now):
                self.relieve(child, now)

    def is_late(self, child: Child, now: float) -> bool:
        if child.board is None or child.life is Life.KILLED:
            return False
        view = child.board.read()
        if view.executing:
            return now - view.started >= OVERRUN
        return now - view.ticked >= SILENT

    def relieve(self, child: Child, now: float) -> None:
        """What cannot be told to the scheduler is done by a janitor."""
        assert child.hand is not None
        handover = child.hand.take_over(Claimant(child.node, child.identity))
        if handover is None:
            return
        for scheduler in reversed(self.nursery.of_kind(Kind.SCHEDULER)):  # the youngest first
            listens = scheduler.ready and scheduler.stopped_since is None
            number = next(self.numbers)
            if listens and scheduler.channel.send("settle", number=number, **told(handover)):
                self.entrusted[number] = Entrusted(handover, scheduler, now)
                return
        self.errands.add(Settle(handover))

    def settled(self, scheduler: Child, number: int) -> None:
        """It says so."""
        if number in self.entrusted and self.entrusted[number].scheduler is scheduler:
            del self.entrusted[number]

    def chase(self, now: float) -> None:
        """Once a second. A scheduler may be stopped, dead or without a database: rows that were not
        started wait for it, and would until their worker's slow task is over.
        """
        self.take_back(n for n, each in self.entrusted.items() if now - each.at > OVERDUE)

    def take_back(self, numbers: Iterable[int]) -> None:
        """For a janitor, who does not give up; that it may be done twice does no harm."""
        for number in list(numbers):
            self.errands.add(Settle(self.entrusted.pop(number).handover))

    def suspend(self, now: float) -> None:
        """The parent is to become another image: from now on each worker holds one row at a time.

        What it has done it keeps until its next claim writes it, as always: whoever took that from
        it again and again would never be done.
        """
        for child, hand in self.holders():
            hand.leave_alone()
            if self.is_late(child, now):
                self.relieve(child, now)

    def relieve_all(self, now: float) -> None:
        """The other image will not know what the workers hold."""
        for child, _ in self.holders():
            self.relieve(child, now)

    def resume(self) -> None:
        """The parent is still the same."""
        for _, hand in self.holders():
            hand.leave_alone(False)

    def holders(self) -> list[tuple[Child, SharedHand]]:
        """The workers whose hands we know."""
        return [(each, each.hand) for each in self.nursery.workers if each.hand is not None]
