"""What tasks raise and what ends up in a result's `errors`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .policy import DurationLike


class Retry(Exception):
    """Raised inside a task: run it again later, whatever `max_attempts` says.

    `after` is a Duration ("10m", 600 seconds, a timedelta); None means as the task's backoff says.
    """

    def __init__(self, message: str = "", *, after: DurationLike | None = None) -> None:
        super().__init__(message or "the task asked to run again")
        self.after = after


class Discard(Exception):
    """Raised inside a task: fail it for good, without further attempts."""


class TaskTimeout(BaseException):
    """The task ran longer than its `timeout`. A BaseException: `except Exception` lets it pass."""


class TaskInterrupted(BaseException):
    """The runner is shutting down and the grace period is over; the task will run again."""


class TaskCancelled(BaseException):
    """Somebody cancelled the task: raised in it while it runs, and the error of one that did not.

    A BaseException: `except Exception` lets it pass. The task ends FAILED and does not run again.
    """


class WorkerDied(Exception):
    """The worker process or its host died while it ran the task."""


class ResultNotStored(Exception):
    """The task returned, but its return value could not be stored."""


class BadRow(Exception):
    """The row was written by hand, and no worker could run it."""


class DatabaseUnavailable(Exception):
    """The queue's database cannot be used now; the message says why and what would help."""
