"""What happened to a task, and when."""

from __future__ import annotations

import dataclasses
import datetime

from ..models import ScheduledTask
from .lines import PARKED_YEAR
from .words import aware, distance, duration


@dataclasses.dataclass(frozen=True)
class Event:
    """`after`: how long after the event before it."""

    what: str
    at: datetime.datetime
    after: str
    ahead: bool


def timeline_of(row: ScheduledTask, now: datetime.datetime) -> list[Event]:
    """Events in order; those that are still to come are `ahead`."""
    ended = "Failed" if row.status == "FAILED" else "Successful"
    due = row.due_at if row.due_at is None or row.due_at.year < PARKED_YEAR else None
    moments = [
        ("Enqueued", row.enqueued_at),
        ("Not to run before", row.run_after),
        ("First started", row.started_at),
        (f"Attempt {row.attempt} started", again(row)),
        (
            "Due for its next attempt" if row.attempt else "Due",
            due if due != row.run_after else None,
        ),
        (ended, row.finished_at),
        ("Deleted by retention", row.delete_after),
    ]
    known = [(what, moment) for what, moment in moments if moment is not None]
    # To the millisecond, as SQLite's clock has it: what is equal then stays in its logical order.
    known.sort(key=lambda pair: int(aware(pair[1]).timestamp() * 1000))
    events: list[Event] = []
    for what, moment in known:
        gap = "" if not events else duration(distance(moment, events[-1].at))
        events.append(Event(what, moment, gap, distance(moment, now) > 0))
    return events


def again(row: ScheduledTask) -> datetime.datetime | None:
    """When the last attempt started, if it was not the first."""
    return row.last_attempted_at if row.last_attempted_at != row.started_at else None
