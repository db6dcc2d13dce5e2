"""A worker thread of the Runner, as the Consumer sees it."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING

from .engines import Claimant, Claimed
from .execution import Execution
from .hand import OVERRUN, Handover, LocalHand
from .interruption import ThreadLimit
from .tally import Tally

if TYPE_CHECKING:
    from .runner import Runner

# Seconds after which one of a node's idle workers looks without having been woken.
SELF_LOOK = (20.0, 40.0)


class ThreadControl:
    """A worker thread's Control."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.hand = LocalHand(runner.relief.watch)
        self.who: Claimant | None = None
        self.began_at = 0.0
        self.limit = ThreadLimit()
        self.waiting = False
        self.running: Claimed | None = None
        self.failed = 0
        self.born = time.monotonic()
        self.resting = False
        self.tally = Tally()
        self._woken = threading.Event()

    def stopping(self) -> bool:
        return self.runner.stopping

    def idle(self) -> None:
        self._woken.clear()
        self.waiting = True
        self.runner.note_progress()

    def wait(self) -> None:
        self.hand_on_counts()
        self.runner.worker_rests(self)
        if not self.stopping():
            self._woken.wait(random.uniform(*SELF_LOOK) * self.runner.workers)
        self.waiting = False

    def wake(self) -> None:
        self.waiting = False
        self._woken.set()

    def pause(self, seconds: float) -> None:
        if self.stopping():
            time.sleep(min(seconds, 0.1))
        else:
            self.runner.stop_event.wait(seconds)

    def began(self, claimed: Claimed) -> None:
        self.began_at = time.monotonic()
        self.limit.attempt = (claimed.id, claimed.attempt)
        self.waiting, self.running = False, claimed
        self.runner.worker_begins(self)

    def ended(self, execution: Execution) -> bool:
        self.limit.release()
        self.running = None
        self.failed += execution.failed
        return self.hand.keep(execution.outcome)

    def gave_back(self, count: int) -> None:
        self.runner.wake(count)

    def allowance(self) -> int | None:
        return None

    def overrun(self, now: float) -> Handover | None:
        """What waits behind a task that has been running for too long."""
        if self.who is None or self.running is None or now - self.began_at < OVERRUN:
            return None
        return self.hand.take_over(self.who)

    def settled(self) -> None:
        self.runner.note_progress()
        if self.tally.due_in == 0.0:
            self.hand_on_counts()

    def counting(self, tally: Tally) -> None:
        self.tally = tally

    def hand_on_counts(self) -> None:
        """To the thread that writes them."""
        self.runner.keeper.ledger.add(self.tally.take().items())

    def database_lost(self, why: str) -> None:
        self.runner.database_lost(self, why)

    def database_found(self) -> None:
        self.runner.database_found(self)
