"""Between a periodic entry and its row: what of it text can say."""

from __future__ import annotations

import datetime

from ..engines import PeriodicRow
from ..fields import load_json
from .definition import BoundPeriodic, Periodic, zone_name

TEXTS = ("name", "task_path", "schedule", "timezone", "catch_up", "overlap", "queue")
NEVER = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def entry_of_row(row: PeriodicRow) -> BoundPeriodic | None:
    """The entry that the row describes; None if only the settings that made it can say it.

    Raises ValueError for a row that says nothing sensible, or names a zone that is not known here.
    """
    if not row.schedule or row.args is None or row.kwargs is None:
        return None
    if wrong := [name for name in TEXTS if not isinstance(getattr(row, name) or "", str)]:
        raise ValueError(f"{', '.join(wrong)} must be text")  # SQLite stores anything
    periodic = Periodic(
        row.schedule,
        args=load_json(row.args),
        kwargs=load_json(row.kwargs),
        retain=row.retain,
        name=row.name,
        timezone=row.timezone or "UTC",
        catch_up=row.catch_up,
        catch_up_window=row.catch_up_window,
        overlap=row.overlap,
        queue=row.queue,
        priority=row.priority,
    )
    return periodic.bind(row.task_path, datetime.UTC, row.catch_up)


def row_of_entry(
    entry: BoundPeriodic,
    origin: str,
    before: PeriodicRow | None,
    now: datetime.datetime,
    deployed_at: datetime.datetime,
) -> PeriodicRow:
    """The row as the entry wants it.

    It goes on where it was if the schedule is the same as `before`; a new or an edited one starts
    `now`, so that it runs for no time in the past.
    """
    goes_on = before is not None and before.spec == entry.spec and not before.retired
    since = before.since if before and goes_on else now
    paused = before is not None and before.paused
    next_due = None
    if not paused:
        next_due = before.next_due if before and goes_on else None
        next_due = next_due or entry.next_or_none(settled_until(before, since) if goes_on else now)
    return PeriodicRow(
        id=before.id if before else 0,
        name=entry.name,
        task_path=entry.task_path,
        origin=origin,
        spec=entry.spec,
        schedule=entry.schedule_text or "",
        timezone=zone_name(entry.zone) or "",
        catch_up=entry.catch_up,
        catch_up_window=entry.catch_up_window.total_seconds(),
        overlap=entry.overlap,
        args=entry.args_text,
        kwargs=entry.kwargs_text,
        retain=entry.retain,
        queue=entry.definition.queue,
        priority=entry.definition.priority,
        fingerprint=entry.fingerprint,
        paused=paused,
        retired=False,
        since=since,
        next_due=next_due,
        last_due=before.last_due if before else None,
        last_task=before.last_task if before else None,
        last_node=before.last_node if before else "",
        edition=before.edition if before else 0,
        deployed_at=deployed_at,
    )


def settled_until(row: PeriodicRow | None, since: datetime.datetime) -> datetime.datetime:
    """Due times up to here are dealt with, or were never wanted."""
    return max(since, (row and row.last_due) or NEVER)
