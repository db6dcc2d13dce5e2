"""What the parent has janitors do, since it has no database connection itself."""

from __future__ import annotations

import contextlib
import logging
import time

from .child import Child, Kind
from .janitor import Cleanup, Farewell, Job, Rescue, Settle
from .nursery import Nursery

logger = logging.getLogger("dbtasks")

LONGEST_WAIT = 10.0  # seconds until a janitor that died is replaced, at most


class Errands:
    """Rescues that are to be done at once, and retention that is to be done some time."""

    def __init__(self, nursery: Nursery) -> None:
        self.nursery = nursery
        self.rescues: list[Job] = []
        self.cleanup_wanted = False
        self.crashes = 0
        self.next_at = 0.0

    @property
    def pending(self) -> bool:
        """Whether anything is still to be done or being done."""
        return bool(self.rescues or self.nursery.of_kind(Kind.JANITOR))

    @property
    def is_busy(self) -> bool:
        """Whether a rescue is still to be done or being done."""
        return bool(self.rescues) or self.is_rescuing

    @property
    def wake_at(self) -> float | None:
        """When a rescue can be begun that waits for nothing else, monotonic."""
        return self.next_at if self.rescues and not self.is_rescuing else None

    def add(self, job: Rescue | Settle) -> None:
        self.rescues.append(job)

    def start(self, now: float, cleanup: bool) -> None:
        """One janitor for rescues and one for retention: the first never waits for the second."""
        try:
            if self.rescues and not self.is_rescuing and now >= self.next_at:
                self.nursery.fork_janitor(self.rescues)
                self.rescues = []
            if cleanup and self.cleanup_wanted and not self.is_cleaning:
                self.nursery.fork_janitor([Cleanup()])
                self.cleanup_wanted = False
        except OSError as error:
            self.next_at = now + 1.0
            logger.error("cannot fork a janitor (%s); trying again", error)

    def start_all(self) -> None:
        """Begins every rescue, also beside others that do not end."""
        if self.rescues:
            with contextlib.suppress(OSError):
                self.nursery.fork_janitor(self.rescues)
                self.rescues = []

    def say_farewell(self, node: str) -> None:
        """Ends the lease where no scheduler can; if that fails, it ends by itself."""
        with contextlib.suppress(OSError):
            self.nursery.fork_janitor([Farewell(node)])

    def bury(self, janitor: Child, crashed: bool) -> None:
        """What a dead janitor left undone is done by the next one."""
        if not crashed:
            self.crashes = 0
            return
        self.crashes += 1
        self.next_at = time.monotonic() + min(0.1 * 2.0**self.crashes, LONGEST_WAIT)
        logger.error("the janitor died; its work is tried again")
        self.rescues += [job for job in janitor.jobs if not isinstance(job, Cleanup)]

    @property
    def is_cleaning(self) -> bool:
        return any(
            isinstance(job, Cleanup)
            for child in self.nursery.of_kind(Kind.JANITOR)
            for job in child.jobs
        )

    @property
    def is_rescuing(self) -> bool:
        return any(
            not isinstance(job, Cleanup)
            for child in self.nursery.of_kind(Kind.JANITOR)
            for job in child.jobs
        )
