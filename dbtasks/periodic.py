"""`Periodic`: a task, its schedule and its arguments; and which of its occurrences are due."""

from __future__ import annotations

import dataclasses
import datetime
import zoneinfo
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .policy import seconds
from .schedule import Duration, Schedule, ScheduleError, parse_schedule

CATCH_UP = ("latest", "all", "skip")
CATCH_UP_WINDOW = datetime.timedelta(days=1)  # how far back catch_up="all" reaches
SKIP_TOLERANCE = datetime.timedelta(seconds=60)  # later than this counts as missed
_STEPS_BACK = tuple(datetime.timedelta(minutes=m) for m in (1, 15, 240, 2880, 46_080, 600_000))

ScheduleLike = str | int | float | datetime.timedelta | Schedule


@dataclasses.dataclass(frozen=True)
class Periodic:
    """One periodic entry of OPTIONS["periodic"].

    `schedule`: a crontab, "@daily", a Duration ("15m", seconds, a timedelta) or a Schedule.
    `args`, `kwargs`: values, or callables; those are called at each enqueue.
    `retain`: a Duration of its own. `name`: needed where one task has several schedules.
    `timezone`: a zone's name or a tzinfo; default settings.TIME_ZONE.
    `catch_up`: "latest", "all" (within a day) or "skip", for the time when nothing ran.
    """

    schedule: ScheduleLike
    args: Sequence[Any] | Callable[[], Sequence[Any]] = ()
    kwargs: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None
    retain: Duration | datetime.timedelta | str | int | float | None = None
    name: str | None = None
    timezone: str | datetime.tzinfo | None = None
    catch_up: str | None = None
    queue: str | None = None
    priority: int | None = None

    def bind(
        self, task_path: str, default_zone: datetime.tzinfo, default_catch_up: str
    ) -> BoundPeriodic:
        """This entry for one task, checked. Raises ScheduleError or ValueError."""
        name = self.name or task_path
        zone = _zone(self.timezone) or default_zone
        catch_up = self.catch_up or default_catch_up
        if catch_up not in CATCH_UP:
            raise ValueError(f"catch_up must be one of {', '.join(CATCH_UP)}, not {catch_up!r}")
        if len(name) > 255:
            raise ValueError("name must be at most 255 characters long")
        if not callable(self.args) and (
            isinstance(self.args, (str, bytes)) or not isinstance(self.args, Sequence)
        ):
            raise ValueError(f"args must be a list or a callable, not {self.args!r}")
        if not (self.kwargs is None or callable(self.kwargs) or isinstance(self.kwargs, Mapping)):
            raise ValueError(f"kwargs must be a mapping or a callable, not {self.kwargs!r}")
        return BoundPeriodic(
            name=name,
            task_path=task_path,
            schedule=parse_schedule(self.schedule).bind(name, zone),
            definition=self,
            retain=seconds("retain", self.retain),
            catch_up=catch_up,
        )


@dataclasses.dataclass(frozen=True)
class BoundPeriodic:
    """A periodic entry that is ready to be scheduled."""

    name: str
    task_path: str
    schedule: Schedule
    definition: Periodic
    retain: float | None
    catch_up: str

    @property
    def spec(self) -> str:
        """The schedule in its canonical form; an edit is a change of it."""
        return self.schedule.spec

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of one enqueue; callables are called now, and may raise anything."""
        args, kwargs = self.definition.args, self.definition.kwargs
        return (
            list(args() if callable(args) else args),
            dict((kwargs() if callable(kwargs) else kwargs) or {}),
        )

    def next_after(self, after: datetime.datetime) -> datetime.datetime:
        return self.schedule.next_after(after)

    def due(self, since: datetime.datetime, now: datetime.datetime) -> list[datetime.datetime]:
        """The occurrences later than `since` and not later than `now` that are to be enqueued.

        In a running system that is at most one; after an outage `catch_up` decides.
        """
        match self.catch_up:
            case "all":
                return list(self._between(max(since, now - CATCH_UP_WINDOW), now))
            case "skip":
                since = max(since, now - SKIP_TOLERANCE)
        latest = self._latest(since, now)
        return [] if latest is None else [latest]

    def _between(
        self, since: datetime.datetime, now: datetime.datetime
    ) -> Iterator[datetime.datetime]:
        try:
            while (since := self.next_after(since)) <= now:
                yield since
        except ScheduleError:
            return  # a calendar of the project's own can have an end

    def _latest(self, since: datetime.datetime, now: datetime.datetime) -> datetime.datetime | None:
        """The last due time in (since, now], looked for backwards: weeks of downtime are cheap."""
        latest = None
        for step in _STEPS_BACK:
            start = max(since, now - step)
            for latest in self._between(start, now):  # noqa: B007  the last one counts
                pass
            if latest is not None or start == since:
                return latest
        for latest in self._between(since, now):  # noqa: B007
            pass
        return latest


def as_periodics(value: object) -> list[Periodic]:
    """The entries of one key of OPTIONS["periodic"]. Raises ScheduleError."""
    if isinstance(value, Periodic):
        return [value]
    if isinstance(value, (list, tuple)):
        return [entry for item in value for entry in as_periodics(item)]
    if isinstance(value, (str, int, float, datetime.timedelta, Schedule)):
        return [Periodic(value)]
    raise ScheduleError(
        f"expected a crontab string, a Duration, a dbtasks.Periodic or a list of them, "
        f"not {value!r}"
    )


def _zone(value: str | datetime.tzinfo | None) -> datetime.tzinfo | None:
    if value is None or isinstance(value, datetime.tzinfo):
        return value
    try:
        return zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError, TypeError):
        raise ValueError(
            f'timezone {value!r} is not known; write a name like "Europe/Berlin" '
            "(on a system without zone data: pip install tzdata)"
        ) from None
