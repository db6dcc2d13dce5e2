"""What operators do with periodic entries at run time: schedule, pause, resume, run now, list.

Each is one transaction (the caller's, if there is one), and every node sees it as soon as that has
committed: a pause at once, an earlier due time within two seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from django.tasks.base import Task as DjangoTask
from django.tasks.base import TaskResult

from ..engines import NewOccurrence, PeriodicRow
from ..fields import as_utc, load_json, localized
from ..ids import dashed
from ..models import NAME_MAX_LENGTH
from ..options import bound_periodic
from .calls import new_row, periodic_task
from .definition import (
    MAX_TEXT,
    MOMENT,
    BoundPeriodic,
    Periodic,
    ScheduleLike,
    schedule_text,
    zone_name,
)
from .stored import entry_of_row, row_of_entry

if TYPE_CHECKING:
    from ..backend import DatabaseBackend

UNFINISHED = ("READY", "RUNNING")


class PeriodicError(ValueError):
    """What is asked for cannot be done with that entry; the message says what can."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A periodic entry as it is now; times as the project sees datetimes, durations in seconds.

    `origin`: "settings" or "database". `schedule`: as it was written, or what a Schedule of the
    project's own calls itself. `next_due` is None while nothing will be enqueued. `last_due`,
    `last_node` and `last_status` tell of the last occurrence and of the last task.
    """

    name: str
    task_path: str
    origin: str
    schedule: str
    timezone: str
    catch_up: str
    catch_up_window: float
    overlap: str
    args: list[Any] | None
    kwargs: dict[str, Any] | None
    retain: float | None
    queue: str | None
    priority: int | None
    paused: bool
    next_due: datetime.datetime | None
    last_due: datetime.datetime | None
    last_task: str | None
    last_status: str | None
    last_node: str
    bound: BoundPeriodic | None = dataclasses.field(repr=False, compare=False)

    def coming(self, count: int = 10) -> Iterator[datetime.datetime]:
        """The next `count` due times, beginning with `next_due`. Raises PeriodicError."""
        if self.bound is None:
            raise PeriodicError(
                f"periodic entry {self.name!r} has a schedule that only the settings which define "
                "it know; ask where these settings are in use"
            )
        due = self.next_due and as_utc(self.next_due)
        for _ in range(count):
            if due is None:
                return
            yield localized(due)
            due = self.bound.next_or_none(due)


def entries(backend: str = "default") -> list[Entry]:
    """Every periodic entry of the backend, from settings and from the database, by name.

    Entries from settings are there once a scheduler has started with them.
    """
    chosen = _backend(backend)
    rows = [row for row in chosen.engine.periodic_entries() if not row.retired]
    statuses = chosen.engine.task_statuses(row.last_task for row in rows if row.last_task)
    return [_entry(chosen, row, statuses.get(row.last_task or "")) for row in rows]


def schedule(
    name: str,
    task: DjangoTask | str,
    schedule: ScheduleLike,
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    timezone: str | datetime.tzinfo | None = None,
    catch_up: str | None = None,
    catch_up_window: Any = None,
    overlap: str | None = None,
    retain: Any = None,
    queue: str | None = None,
    priority: int | None = None,
    backend: str = "default",
) -> Entry:
    """Creates the entry `name` in the database, or changes it; all nodes follow within two seconds.

    `task`: a task or its dotted path; `schedule`: a crontab, an alias or a Duration; the rest as
    for `Periodic`. With the same schedule as before it goes on where it was; a new one runs for no
    time in the past. Raises ScheduleError, ValueError or PeriodicError, and then changes nothing.
    """
    chosen = _backend(backend)
    path = task if isinstance(task, str) else task.module_path
    definition = Periodic(
        schedule,
        args=args,
        kwargs=kwargs,
        retain=retain,
        name=name,
        timezone=timezone,
        catch_up=catch_up,
        catch_up_window=catch_up_window,
        overlap=overlap,
        queue=queue,
        priority=priority,
    )
    entry = _checked(chosen, path, definition)
    with chosen.engine.changing_entry(entry.name) as before:
        if before is not None and before.origin == "settings" and not before.retired:
            raise _from_settings(before, "changed")
        now = chosen.engine.now()
        chosen.engine.save_entry(row_of_entry(entry, "database", before, now, now))
        return _stored(chosen, entry.name)


def unschedule(name: str, *, backend: str = "default") -> None:
    """Deletes an entry that was made by `schedule`; its occurrences and tasks stay.

    Raises PeriodicError for one that does not exist or is from settings.
    """
    with _changing(backend, name) as (chosen, row):
        if row.origin == "settings":
            raise _from_settings(row, "unscheduled")
        chosen.engine.forget_entry(name)


def pause(name: str, *, backend: str = "default") -> Entry:
    """Enqueues nothing for the entry until `resume`. Raises PeriodicError if there is none."""
    with _changing(backend, name) as (chosen, row):
        if not row.paused:
            chosen.engine.save_entry(row._replace(paused=True, next_due=None))
        return _stored(chosen, name)


def resume(name: str, *, backend: str = "default") -> Entry:
    """Goes on with a paused entry, from now: nothing runs for the time of the pause.

    Raises PeriodicError if there is no such entry, or its schedule is not known here.
    """
    with _changing(backend, name) as (chosen, row):
        if row.paused:
            now = chosen.engine.now()
            next_due = _known(chosen, row).next_or_none(now)
            chosen.engine.save_entry(row._replace(paused=False, since=now, next_due=next_due))
        return _stored(chosen, name)


def run_now(name: str, *, backend: str = "default") -> TaskResult:
    """Enqueues the entry's task once, now, paused or not; its due times stay as they are.

    Raises PeriodicError if there is no such entry, or if it is not to overlap and its last run has
    not ended; and what the task or its arguments raise.
    """
    with _changing(backend, name) as (chosen, row):
        engine = chosen.engine
        entry = _known(chosen, row)
        if row.overlap == "skip" and row.last_task:
            status = engine.task_statuses([row.last_task]).get(row.last_task)
            if status in UNFINISHED:
                raise PeriodicError(
                    f"periodic entry {name!r} is not to overlap, and its last run "
                    f"{dashed(row.last_task)} is still {status}; wait for its end"
                )
        task = periodic_task(chosen, entry)
        args, kwargs = entry.arguments()
        if chosen.settings.immediate:
            return chosen.enqueue(task, args, kwargs)
        new = new_row(chosen, entry, task, args, kwargs)
        host = socket.gethostname()[:64]
        at = beside_due_times(engine.now())
        while not engine.enqueue_occurrences([NewOccurrence(name, at, new)], host):
            at += MOMENT
        engine.note_run(name, new.id, host)
        return chosen.get_result(new.id)


def beside_due_times(now: datetime.datetime) -> datetime.datetime:
    """Schedules are due at whole seconds: a run in between takes no due time's place."""
    return now if now.microsecond else now + MOMENT


@contextlib.contextmanager
def _changing(backend: str, name: str) -> Iterator[tuple[DatabaseBackend, PeriodicRow]]:
    """The entry, locked until the end of the block. Raises PeriodicError if there is none."""
    chosen = _backend(backend)
    with chosen.engine.changing_entry(name) as row:
        if row is None or row.retired:
            known = ", ".join(repr(entry.name) for entry in entries(backend)) or "none"
            raise PeriodicError(f"there is no periodic entry {name!r}; there are: {known}")
        yield chosen, row


def _backend(alias: str) -> DatabaseBackend:
    from ..runner import database_backend

    return database_backend(alias)


def _checked(chosen: DatabaseBackend, path: str, definition: Periodic) -> BoundPeriodic:
    """The entry, under the rules of settings and those of a text. Raises ValueError."""
    from ..checks import periodic_problem

    options = chosen.settings
    if not isinstance(definition.name, str) or not 0 < len(definition.name) <= NAME_MAX_LENGTH:
        raise ValueError(
            f"name must be a text of 1 to {NAME_MAX_LENGTH} characters, not {definition.name!r}"
        )
    entry = bound_periodic(path, definition, options)
    if callable(definition.args) or callable(definition.kwargs):
        raise ValueError("args and kwargs must be values: callables can only stand in settings")
    if zone_name(entry.zone) is None:
        raise ValueError(
            f'timezone must be a name such as "Europe/Berlin", not {definition.timezone!r}'
        )
    text = schedule_text(definition.schedule)
    if text is None or len(text) > MAX_TEXT:
        raise ValueError(
            f"schedule must be a crontab or a Duration of at most {MAX_TEXT} characters, not "
            f"{definition.schedule!r}: a Schedule of your own can only stand in settings"
        )
    if problem := periodic_problem(chosen, entry):
        raise PeriodicError(f"task {path!r}: {problem}")
    task = periodic_task(chosen, entry)
    new_row(chosen, entry, task, *entry.arguments())  # names the argument that is no JSON
    return entry


def _from_settings(row: PeriodicRow, what: str) -> PeriodicError:
    return PeriodicError(
        f"periodic entry {row.name!r} is from OPTIONS['periodic'] and cannot be {what} at run "
        "time; pause it, or change the settings"
    )


def _local(chosen: DatabaseBackend, row: PeriodicRow) -> BoundPeriodic | None:
    """The entry as our settings have it, if they mean the same, or as the row says it."""
    if row.origin == "settings":
        for entry in chosen.parsed.periodic:
            if entry.name == row.name and entry.fingerprint == row.fingerprint:
                return entry
    with contextlib.suppress(ValueError):
        return entry_of_row(row)
    return None


def _known(chosen: DatabaseBackend, row: PeriodicRow) -> BoundPeriodic:
    entry = _local(chosen, row)
    if entry is None:
        raise PeriodicError(
            f"periodic entry {row.name!r} can only be understood with the settings that define it; "
            "do this where these settings are in use"
        )
    return entry


def _stored(chosen: DatabaseBackend, name: str) -> Entry:
    row = chosen.engine.periodic_entry(name)
    if row is None:
        raise PeriodicError(f"there is no periodic entry {name!r} any more")
    ids = [row.last_task] if row.last_task else []
    return _entry(chosen, row, next(iter(chosen.engine.task_statuses(ids).values()), None))


def _entry(chosen: DatabaseBackend, row: PeriodicRow, last_status: str | None) -> Entry:
    return Entry(
        name=row.name,
        task_path=row.task_path,
        origin=row.origin,
        schedule=row.schedule or row.spec,
        timezone=row.timezone,
        catch_up=row.catch_up,
        catch_up_window=row.catch_up_window,
        overlap=row.overlap,
        args=_read(row.args),
        kwargs=_read(row.kwargs),
        retain=row.retain,
        queue=row.queue,
        priority=row.priority,
        paused=row.paused,
        next_due=row.next_due and localized(row.next_due),
        last_due=row.last_due and localized(row.last_due),
        last_task=row.last_task and dashed(row.last_task),
        last_status=last_status,
        last_node=row.last_node,
        bound=_local(chosen, row),
    )


def _read(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return load_json(text)
    except ValueError:  # written by hand: show it, so that it can be found
        return text
