"""What workers count, on its way to the scheduler: the parent only passes it on.

It touches no database and waits for nobody: while there is no scheduler, or its channel is full,
the parent adds up what comes in, which is bounded (see dbtasks.tally).
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from dbtasks.tally import Cells, as_message, from_message, in_batches, merge

from .channel import Channel, Message
from .child import Kind

if TYPE_CHECKING:
    from .nursery import Nursery

logger = logging.getLogger("dbtasks")

# A queue's name and a path have at most 628 characters, each at most 6 bytes long in JSON.
CELLS_PER_MESSAGE = 12
TELL_EVERY = 600.0  # seconds between two lines in the log


def send_counts(channel: Channel, cells: Cells) -> Cells:
    """Sends them without waiting; returns those that the other end does not take now."""
    left: Cells = {}
    for batch in in_batches(cells, CELLS_PER_MESSAGE):
        if left or not channel.send("counted", cells=as_message(batch.items())):
            left |= batch
    return left


class Relay:
    """The parent's part."""

    def __init__(self, nursery: Nursery) -> None:
        self.nursery = nursery
        self.cells: Cells = {}
        self.lately = [0, 0, 0, 0]  # succeeded, failed, retried, rescued since the last line
        self.tell_at = time.monotonic() + TELL_EVERY

    def receive(self, message: Message) -> None:
        cells = dict(from_message(message["cells"]))
        merge(self.cells, cells.items())
        for counts in cells.values():
            self.lately = [a + b for a, b in zip(self.lately, counts, strict=False)]
        self.pass_on()

    def tell_rates(self, now: float) -> None:
        """One line for what was done since the last one; none where nothing was."""
        if now < self.tell_at:
            return
        succeeded, failed, retried, rescued = self.lately
        if any(self.lately):
            logger.info(
                "in %.0f min: %d tasks succeeded, %d failed, %d attempts failed, %d were rescued",
                TELL_EVERY / 60,
                succeeded,
                failed,
                retried,
                rescued,
            )
        self.lately = [0, 0, 0, 0]
        self.tell_at = now + TELL_EVERY

    def pass_on(self) -> None:
        """To the youngest scheduler, if one is up; otherwise the next time."""
        schedulers = [child for child in self.nursery.of_kind(Kind.SCHEDULER) if child.ready]
        if self.cells and schedulers:
            self.cells = send_counts(schedulers[-1].channel, self.cells)
