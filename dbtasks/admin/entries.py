"""Periodic entries on the dashboard, and what can be done with them there."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

from .. import periodic
from .words import distance, duration

ENTRIES: Any = periodic  # what it can do loads when it is asked for


@dataclasses.dataclass(frozen=True)
class EntryLine:
    """One periodic entry in words; `last_state` is the status of its last task, lower case."""

    name: str
    task_path: str
    schedule: str
    origin: str
    paused: bool
    next_due: datetime.datetime | None
    next_words: str
    last_due: datetime.datetime | None
    last_words: str
    last_state: str
    last_task: str
    last_node: str


def entry_lines(backend: str, now: datetime.datetime) -> list[EntryLine]:
    return [line_of(entry, now) for entry in ENTRIES.entries(backend)]


def line_of(entry: Any, now: datetime.datetime) -> EntryLine:
    zone = f" {entry.timezone}" if entry.timezone else ""
    return EntryLine(
        name=entry.name,
        task_path=entry.task_path,
        schedule=f"{entry.schedule}{zone}",
        origin=entry.origin,
        paused=entry.paused,
        next_due=entry.next_due,
        next_words=next_words(entry, now),
        last_due=entry.last_due,
        last_words="never" if entry.last_due is None else f"{ago(entry.last_due, now)} ago",
        last_state=(entry.last_status or "").lower(),
        last_task=entry.last_task or "",
        last_node=entry.last_node,
    )


def next_words(entry: Any, now: datetime.datetime) -> str:
    if entry.paused:
        return "paused"
    if entry.next_due is None:
        return "never again"
    left = distance(entry.next_due, now)
    return f"in {duration(left)}" if left > 0 else f"due for {duration(-left)}"


def ago(moment: datetime.datetime, now: datetime.datetime) -> str:
    return duration(distance(now, moment))
