"""Ends running tasks that somebody has cancelled: TaskCancelled first, after its grace by force."""

from __future__ import annotations

import logging
from typing import NamedTuple

from .channel import Message
from .child import Child, Life
from .nursery import Nursery
from .overrun import Overruns

logger = logging.getLogger("dbtasks")


class Asked(NamedTuple):
    """`began`: which run of its worker it is; `kill_at`: when the grace is over; both monotonic."""

    began: float
    kill_at: float


class Cancels:
    """The workers whose tasks are to end."""

    def __init__(self, nursery: Nursery, overruns: Overruns) -> None:
        self.nursery = nursery
        self.overruns = overruns
        self.asked: dict[Child, Asked] = {}

    @property
    def wake_at(self) -> float | None:
        """When the first grace is over, monotonic."""
        return min((asked.kill_at for asked in self.asked.values()), default=None)

    def ask(self, message: Message, now: float) -> None:
        """What the scheduler says, again and again until the row does not run any more."""
        for child in self.nursery.workers:
            if child.identity == message["worker"] and child.life is not Life.KILLED:
                self.ask_worker(child, message, now)

    def ask_worker(self, child: Child, message: Message, now: float) -> None:
        if child.board is None:
            self.ask_old_worker(child, now + float(message["grace"]))
            return
        view = child.board.read()
        if (view.task_id, view.attempt) != (message["id"], message["attempt"]):
            # Not begun: among the rows that go back it is the scheduler's to cancel.
            if child.hand is not None and not child.hand.is_empty():
                self.overruns.relieve(child, now)
        elif view.executing and not self.is_asked(child, view.started):
            self.asked[child] = Asked(view.started, now + float(message["grace"]))
            child.cancel(view.started)

    def ask_old_worker(self, child: Child, kill_at: float) -> None:
        """One from before a reload runs its last task. Interrupted, the row goes back and ends."""
        if child not in self.asked:
            self.asked[child] = Asked(0.0, kill_at)
            child.interrupt()

    def is_asked(self, child: Child, began: float) -> bool:
        return child in self.asked and self.asked[child].began == began

    def look(self, now: float) -> None:
        """Kills the worker of a task that goes on after its grace."""
        for child, asked in list(self.asked.items()):
            if child.board is not None:
                view = child.board.read()
                if not view.executing or view.started != asked.began:
                    del self.asked[child]
                    continue
            if now >= asked.kill_at:
                del self.asked[child]
                logger.warning("a task goes on after it was cancelled; ending %s", child.identity)
                child.cancelled = True
                child.kill("its task was cancelled and did not end in time", counted=False)

    def forget(self, child: Child) -> None:
        self.asked.pop(child, None)
