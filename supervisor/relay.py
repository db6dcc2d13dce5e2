"""What workers count, on its way to the scheduler: the parent only passes it on.

It touches no database and waits for nobody: while there is no scheduler, or its channel is full,
the parent adds up what comes in, which is bounded (see dbtasks.tally).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dbtasks.tally import Cells, as_message, from_message, in_batches, merge

from .channel import Channel, Message
from .child import Kind

if TYPE_CHECKING:
    from .nursery import Nursery

# A queue's name and a path have at most 628 characters, each at most 6 bytes long in JSON.
CELLS_PER_MESSAGE = 12


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

    def receive(self, message: Message) -> None:
        merge(self.cells, from_message(message["cells"]))
        self.pass_on()

    def pass_on(self) -> None:
        """To the youngest scheduler, if one is up; otherwise the next time."""
        schedulers = [child for child in self.nursery.of_kind(Kind.SCHEDULER) if child.ready]
        if self.cells and schedulers:
            self.cells = send_counts(schedulers[-1].channel, self.cells)
