"""Whether the node's database is away: as its children say, or as their silence does.

A database that refuses is noticed by whoever asks it. One that does not answer is not: the children
wait, in C code that nothing interrupts, so the parent looks at their boards. What bounds a wait:

* a third of the lease, 2 to 10 s: the node says that it is degraded, in one line. A worker that
  drains and has nothing to write is ended;
* a third of the lease (the scheduler), 60 s (all others): if packets are dropped, the kernel gives
  up the connection (dbtasks.engines.network). The child connects again and has lost nothing;
* two thirds of the lease (the scheduler), 90 s (workers): something answers TCP but not the child.
  It is replaced, for the sake of a new connection; what its hand keeps is written in its place. A
  worker with an outcome that is not in its hand has 150 s, and the task counts as crashed then.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from .board import State
from .child import Child, Kind

if TYPE_CHECKING:
    from .nursery import Nursery

logger = logging.getLogger("dbtasks")

# Seconds. Longer than PgBouncer keeps a query while its server is away (query_wait_timeout, 120 s):
# when that is over, the worker is told and goes on by itself.
PATIENCE = 150.0
UNLADEN_PATIENCE = 90.0  # so that the kernel gives up first, and a new connection can be tried


def unanswered(lease: float) -> float:
    """Seconds without an answer after which a database counts as away."""
    return min(max(2.0, lease / 3), 10.0)


class Outage:
    """One line when it begins and one when it is over, however many children notice.

    `since`: when it began (monotonic), None while all is well.
    """

    def __init__(self, nursery: Nursery) -> None:
        self.nursery = nursery
        self.since: float | None = None
        self.why = ""
        self.unanswered = unanswered(nursery.node.lease)
        self._doubtful_at = 0.0  # when a child was last told to be without its database

    def lost(self, child: Child, why: str, unanswered: bool = False) -> None:
        child.database_down = why
        child.unanswered = unanswered
        self._doubtful_at = time.monotonic()
        if self.since is None:
            self.since, self.why = self._doubtful_at, why
            logger.error("degraded: %s; trying again until it works", why)

    def found(self, child: Child) -> None:
        child.database_down = ""
        child.unanswered = False
        self.end_if_over()

    def ended(self, child: Child) -> None:
        """That its last complainant is dead does not bring the database back."""
        if child.database_down:
            self._doubtful_at = time.monotonic()

    def end_if_over(self) -> None:
        if self.since is not None and not any(child.database_down for child in self.nursery):
            seconds = time.monotonic() - self.since
            self.since, self.why = None, ""
            logger.info("recovered: the database is back after %.1f s", seconds)

    def look(self, now: float) -> None:
        """Once a second."""
        answered = False
        for child in self.nursery.of_kind(Kind.WORKER, Kind.SCHEDULER):
            if child.board is None:
                continue
            view = child.board.read()
            if view.asking and now - view.ticked > self.unanswered:
                if not child.database_down:
                    alias = self.nursery.application.backend.engine.alias
                    why = f"database {alias!r} has not answered for {self.unanswered:g} s"
                    self.lost(child, why, unanswered=True)
            elif view.state is not State.WAITING:  # the answer may have been an error
                answered |= view.state is not State.LOOKING and view.ticked > self._doubtful_at
                if child.unanswered:
                    self.found(child)
        if answered:
            self.end_if_over()
