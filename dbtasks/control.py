"""What a Consumer asks of whoever runs it: a worker process or a worker thread."""

from __future__ import annotations

import contextlib
from typing import Protocol

from .engines import Claimed
from .execution import Execution
from .hand import Hand
from .tally import Tally


class Control(Protocol):
    """What a worker process and a worker thread do differently."""

    @property
    def hand(self) -> Hand:
        """What the worker holds besides the task that it runs."""

    def stopping(self) -> bool:
        """Whether no further task is to be claimed; also the sign of life of a busy worker."""

    def idle(self) -> None:
        """From now on a wake-up will be noticed; called before the last look at the queue."""

    def wait(self) -> None:
        """Returns on a wake-up, when it is time to look by ourselves, or when stopping."""

    def pause(self, seconds: float) -> None:
        """Waits for the database; returns early when stopping."""

    def began(self, claimed: Claimed) -> None:
        """A task starts."""

    def ended(self, execution: Execution) -> bool:
        """A task is over; its outcome is not written yet. Whether `hand` keeps it until it is."""

    def settled(self) -> None:
        """The outcomes of all tasks that ended are written."""

    def counting(self, tally: Tally) -> None:
        """Here the consumer counts what it has run; hand it on from time to time, and at last."""

    def gave_back(self, count: int) -> None:
        """So many rows that we had claimed are ready again, for others."""

    def allowance(self) -> int | None:
        """How many more tasks are to be begun here; None for any number."""

    def limit(self, seconds: float | None) -> contextlib.AbstractContextManager[None]:
        """Raises TaskTimeout, or TaskInterrupted on shutdown, in what runs inside."""

    def database_lost(self, why: str) -> None:
        """The database went away; tries go on."""

    def database_found(self) -> None:
        """It is back."""
