"""Takes what waits behind slow tasks from a Runner's threads, and settles it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from django.db import Error as DatabaseError

from .hand import OVERRUN_LOOK, Handover

if TYPE_CHECKING:
    from .runner import Runner
    from .threads import ThreadControl

SETTLE_AGAIN = 0.5  # seconds until what could not be settled is tried again


class Relief:
    """Used by the runner's own thread alone, but for `watch`."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.controls: Iterable[ThreadControl] = ()
        self._watching = False
        self._looked_at = 0.0  # monotonic
        self._unsettled: deque[Handover] = deque()
        self._settle_at = 0.0  # after a failure, monotonic

    def watch(self) -> None:
        """A worker has more in its hand than the task that it runs."""
        if not self._watching:
            self._watching = True
            self.runner.nudge()

    @property
    def is_due(self) -> bool:
        """Whether nothing that takes its time may go on before the next look."""
        return time.monotonic() >= self._looked_at + OVERRUN_LOOK and not self.is_idle

    @property
    def is_idle(self) -> bool:
        """Whether no worker holds more; from then on `watch` is called when one does."""
        return all(control.hand.is_empty() for control in self.controls)

    def look(self) -> float:
        """Takes what waits for too long; returns the seconds until the next look."""
        self._watching = False
        self._looked_at = time.monotonic()
        for control in self.controls:
            self.take(control.overrun(self._looked_at))
        self.settle()
        if not self.is_idle:
            return OVERRUN_LOOK
        return SETTLE_AGAIN if self._unsettled else float("inf")

    def take(self, handover: Handover | None) -> None:
        if handover is not None:
            self._unsettled.append(handover)
            self.settle()

    @property
    def may_settle(self) -> bool:
        well = not self.runner.degraded and time.monotonic() >= self._settle_at
        return well and bool(self._unsettled)

    def settle(self) -> None:
        """What was taken; what an outage prevents is tried again after it."""
        engine = self.runner.engine
        while self.may_settle:
            try:
                ready = self._unsettled[0].settle(engine)
            except DatabaseError:  # it is away, which the scheduler will notice
                engine.close()
                self._settle_at = time.monotonic() + SETTLE_AGAIN
                self._unsettled.rotate(-1)  # or it is about this one
            else:
                del self._unsettled[0]
                self.runner.wake(ready)
