"""What the parent has janitors do, since it has no database connection itself."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Any

from dbtasks import signals

from .child import Child, Kind
from .janitor import Announce, Cleanup, Farewell, Job, Rescue, Settle
from .nursery import Nursery

logger = logging.getLogger("dbtasks")

MOST_ANNOUNCEMENTS = 100  # that wait to be told
LONGEST_WAIT = 10.0  # seconds until a janitor that died is replaced, at most


class Errands:
    """Rescues that are to be done at once, and retention that is to be done some time."""

    def __init__(self, nursery: Nursery) -> None:
        self.nursery = nursery
        self.rescues: list[Job] = []
        self.announcements: list[Announce] = []
        self.cleanup_wanted = False
        self.crashes = 0
        self.next_at = 0.0

    @property
    def pending(self) -> bool:
        """Whether anything is still to be done or being done."""
        return bool(self.rescues or self.announcements or self.nursery.of_kind(Kind.JANITOR))

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

    def announce(self, name: str, **details: Any) -> None:
        """Has the receivers of a signal called, if there are any; of a flood, not all are told."""
        if signals.is_wanted(name) and len(self.announcements) < MOST_ANNOUNCEMENTS:
            self.announcements.append(Announce(name, details))

    def start(self, now: float, cleanup: bool) -> None:
        """One janitor for rescues, one for retention, one for signals: none waits for another."""
        try:
            if self.rescues and not self.is_rescuing and now >= self.next_at:
                self.nursery.fork_janitor(self.rescues)
                self.rescues = []
            if cleanup and self.cleanup_wanted and not self.is_cleaning:
                self.nursery.fork_janitor([Cleanup()])
                self.cleanup_wanted = False
            if self.announcements and not self.is_doing(Announce):
                self.nursery.fork_janitor(self.announcements)
                self.announcements = []
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
        if any(isinstance(job, Announce) for job in janitor.jobs):
            logger.error("the receivers of a signal did not return, or ended their process")
            return
        logger.error("the janitor died; its work is tried again")
        self.rescues += [job for job in janitor.jobs if not isinstance(job, Cleanup)]

    @property
    def is_cleaning(self) -> bool:
        return self.is_doing(Cleanup)

    @property
    def is_rescuing(self) -> bool:
        return self.is_doing(Rescue, Settle, Farewell)

    def is_doing(self, *kinds: type[Job]) -> bool:
        return any(
            isinstance(job, kinds)
            for child in self.nursery.of_kind(Kind.JANITOR)
            for job in child.jobs
        )
