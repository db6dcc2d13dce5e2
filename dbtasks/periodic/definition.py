"""`Periodic`: a task, its schedule and its arguments; and which of its occurrences are due."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import itertools
import zoneinfo
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..fields import dump_json
from ..policy import seconds
from ..schedule import Crontab, Duration, Every, Schedule, ScheduleError, parse_schedule

CATCH_UP = ("latest", "all", "skip")
CATCH_UP_WINDOW = datetime.timedelta(days=1)  # how far back catch_up="all" reaches
LONGEST_WINDOW = datetime.timedelta(days=366)
OVERLAP = ("allow", "skip")
MOMENT = datetime.timedelta(microseconds=1)  # the least by which two times differ
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
    `catch_up`: "latest", "all" or "skip", for the time when nothing ran; `catch_up_window`: how
    far back "all" reaches, a Duration (default OPTIONS["catch_up_window"], else a day).
    `overlap`: "skip" starts no run while the one before is ready or running; default "allow".
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
    catch_up_window: Duration | datetime.timedelta | str | int | float | None = None
    overlap: str | None = None

    def bind(
        self,
        task_path: str,
        default_zone: datetime.tzinfo,
        default_catch_up: str,
        default_window: datetime.timedelta = CATCH_UP_WINDOW,
    ) -> BoundPeriodic:
        """This entry for one task, checked. Raises ScheduleError or ValueError."""
        name = self.name or task_path
        zone = zone_of(self.timezone or None) or default_zone
        catch_up = self.catch_up or default_catch_up
        if catch_up not in CATCH_UP:
            raise ValueError(f"catch_up must be one of {', '.join(CATCH_UP)}, not {catch_up!r}")
        overlap = "allow" if self.overlap is None else self.overlap
        if overlap not in OVERLAP:
            raise ValueError(f"overlap must be one of {', '.join(OVERLAP)}, not {overlap!r}")
        if not isinstance(name, str) or not name.strip() or name != name.strip():
            raise ValueError(f"name must be a text without blanks at its ends, not {name!r}")
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
            catch_up_window=as_window(self.catch_up_window) or default_window,
            overlap=overlap,
            zone=zone,
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
    catch_up_window: datetime.timedelta
    overlap: str
    zone: datetime.tzinfo

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

    def next_or_none(self, after: datetime.datetime) -> datetime.datetime | None:
        """As next_after; None where a calendar of the project's own has come to its end."""
        try:
            return self.next_after(after)
        except ScheduleError:
            return None

    def owed(
        self, next_due: datetime.datetime, now: datetime.datetime, limit: int
    ) -> tuple[list[datetime.datetime], datetime.datetime | None]:
        """Up to `limit` due times from `next_due` to `now` to be enqueued, and the one after them.

        In a running system that is one; after an outage `catch_up` decides.
        """
        following = self.next_or_none(next_due)
        if following is None or following > now:
            reach = {"all": self.catch_up_window, "skip": SKIP_TOLERANCE}.get(self.catch_up)
            is_missed = reach is not None and next_due <= now - reach
            return ([] if is_missed else [next_due]), following
        if self.catch_up != "all":
            return self.due(next_due - MOMENT, now), self.next_or_none(now)
        start = max(next_due - MOMENT, now - self.catch_up_window)
        due = list(itertools.islice(self._between(start, now), limit))
        return due, self.next_or_none(due[-1] if due else now)

    def due(self, since: datetime.datetime, now: datetime.datetime) -> list[datetime.datetime]:
        """The occurrences later than `since` and not later than `now` that are to be enqueued."""
        match self.catch_up:
            case "all":
                return list(self._between(max(since, now - self.catch_up_window), now))
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

    # In the database

    @functools.cached_property
    def schedule_text(self) -> str | None:
        """The schedule as `Periodic` takes it; None where no text says the same."""
        zone = zone_name(self.zone)
        text = schedule_text(self.definition.schedule)
        return None if zone is None or text is None or len(text) > MAX_TEXT else text

    @functools.cached_property
    def args_text(self) -> str | None:
        return None if callable(self.definition.args) else _json(list(self.definition.args))

    @functools.cached_property
    def kwargs_text(self) -> str | None:
        kwargs = self.definition.kwargs
        return None if callable(kwargs) else _json(dict(kwargs or {}))

    @property
    def is_text(self) -> bool:
        """Whether a node that only has what is stored can enqueue it."""
        return None not in (self.schedule_text, self.args_text, self.kwargs_text)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Equal for two entries that mean the same, in any process."""
        definition = self.definition
        said = [
            self.name,
            self.task_path,
            self.spec,
            self.catch_up,
            self.catch_up_window.total_seconds(),
            self.overlap,
            self.retain,
            definition.queue,
            definition.priority,
            self.args_text or _told(definition.args),
            self.kwargs_text or _told(definition.kwargs),
        ]
        return hashlib.sha256(dump_json(said).encode()).hexdigest()


MAX_TEXT = 500  # of a schedule; models.PeriodicTask


def deployment_fingerprint(entries: Sequence[BoundPeriodic]) -> str:
    """Of all entries of one node's settings, whatever their order."""
    prints = sorted(entry.fingerprint for entry in entries)
    return hashlib.sha256("".join(prints).encode()).hexdigest()


def schedule_text(schedule: ScheduleLike) -> str | None:
    """The schedule as a text that makes the same again, or None: it is one of the project's own."""
    if isinstance(schedule, Schedule):
        if type(schedule) is Crontab:
            return schedule.expression.strip()
        return str(schedule.interval) if type(schedule) is Every else None
    return schedule.strip() if isinstance(schedule, str) else str(Duration(schedule))


def zone_name(zone: datetime.tzinfo) -> str | None:
    """The name under which every host finds the zone."""
    if zone is datetime.UTC:
        return "UTC"
    return zone.key if isinstance(zone, zoneinfo.ZoneInfo) else None


def as_window(value: object) -> datetime.timedelta | None:
    """How far back catch_up="all" reaches. Raises ValueError."""
    length = seconds("catch_up_window", value, minimum=1.0)
    if length is None:
        return None
    if length > LONGEST_WINDOW.total_seconds():
        raise ValueError(
            f"catch_up_window must be at most {LONGEST_WINDOW.days} days, not {value!r}"
        )
    return datetime.timedelta(seconds=length)


def _json(value: object) -> str | None:
    try:
        return dump_json(value)
    except (TypeError, ValueError, RecursionError):
        return None


def _told(value: object) -> str:
    """What can be compared over processes of a callable, or of arguments that are no JSON."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


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


def zone_of(value: str | datetime.tzinfo | None) -> datetime.tzinfo | None:
    if value is None or isinstance(value, datetime.tzinfo):
        return value
    try:
        return zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError, TypeError):
        raise ValueError(
            f'timezone {value!r} is not known; write a name like "Europe/Berlin" '
            "(on a system without zone data: pip install tzdata)"
        ) from None
