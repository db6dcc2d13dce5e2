"""A scheduled task as pages show it."""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from collections.abc import Mapping
from typing import Any

from django.utils import timezone

from ..models import ScheduledTask
from .words import distance, duration, since

PARKED_YEAR = 9000  # rows of what is paused are due in that year or later


@dataclasses.dataclass(frozen=True)
class Line:
    """One row of a list. `note` says what matters most about it in its state."""

    id: uuid.UUID
    name: str
    path: str
    state: str
    queue: str
    priority: int
    attempt: int
    enqueued_at: datetime.datetime
    age: str
    took: str
    note: str


def line_of(row: ScheduledTask, exceptions: Mapping[uuid.UUID, str]) -> Line:
    now = timezone.now()
    state = state_of(row)
    return Line(
        id=row.id,
        name=short_path(row.task_path),
        path=row.task_path,
        state=state,
        queue=row.queue,
        priority=row.priority,
        attempt=row.attempt,
        enqueued_at=row.enqueued_at,
        age=since(row.enqueued_at, now),
        took=took(row, now),
        note=note(row, state, now, exceptions.get(row.id, "")),
    )


def state_of(row: ScheduledTask) -> str:
    """One of engines.looks.STATES."""
    if row.status == "READY":
        if row.due_at is None:
            return "ready"
        return "paused" if row.due_at.year >= PARKED_YEAR else "deferred"
    return str(row.status).lower()


def took(row: ScheduledTask, now: datetime.datetime) -> str:
    """How long its last attempt took, or takes until now."""
    begin = row.last_attempted_at
    if begin is None or row.status == "READY":
        return "—"
    return since(begin, row.finished_at or now)


def note(row: ScheduledTask, state: str, now: datetime.datetime, exception: str) -> str:
    match state:
        case "failed":
            return short_path(exception) if exception else ""
        case "deferred":
            left = -1.0 if row.due_at is None else distance(row.due_at, now)
            return f"due in {duration(left)}" if left > 0 else "due"
        case "running":
            return f"on {row.claimed_by}"
        case "paused":
            return "waits for the end of a pause"
    return ""


def short_path(path: str) -> str:
    """The last part, which people know it by; `builtins.ValueError` too."""
    return path.rpartition(".")[2] or path


def in_order(rows: Any, ids: list[uuid.UUID]) -> list[ScheduledTask]:
    by_id = {row.id: row for row in rows}
    return [by_id[id] for id in ids if id in by_id]
