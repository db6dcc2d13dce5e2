"""When periodic tasks are due: durations, crontabs and intervals, as users type them.

A schedule is read once, in its constructor, and holds no state: the next due time follows from the
one before. So all nodes agree on due times without talking to each other.
"""

import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import MAXYEAR, MINYEAR, UTC, datetime, timedelta, tzinfo
from itertools import islice
from math import isfinite
from typing import Self

from . import crontab
from .crontab import Pattern, ScheduleError

__all__ = ["Crontab", "Duration", "DurationLike", "Every", "Schedule", "ScheduleError"]
__all__ += ["ScheduleLike", "parse_schedule"]

type DurationLike = str | int | float | timedelta
type ScheduleLike = DurationLike | Schedule

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)

NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,15})?"
UNITS = {
    "w": timedelta(weeks=1),
    "d": DAY,
    "h": timedelta(hours=1),
    "m": MINUTE,
    "s": SECOND,
}
TEXT = re.compile("".join(rf"(?:(?P<{unit}>{NUMBER}){unit})?" for unit in UNITS))


class Duration(timedelta):
    """A length of time, zero or more: "1w2d3h4m5s" (also "1.5h"), a number of seconds, a timedelta.

    Units come once each and from the greatest to the smallest. `str()` gives the shortest such
    text, which makes the same Duration again. Raises ScheduleError for anything else.
    """

    def __new__(cls, value: DurationLike) -> Self:
        try:
            length = _length(value)
        except OverflowError:
            raise ScheduleError(
                f"the duration {value!r} is too long; write at most {timedelta.max.days} days"
            ) from None
        if length is None:
            raise ScheduleError(
                f'{value!r} is not a duration; write "15m", "1w2d3h4m5s", a number of seconds '
                f"such as 900, or a timedelta"
            )
        if length < timedelta():
            raise ScheduleError(
                f'the duration {value!r} is negative; write zero or more, such as "15m" or 900'
            )
        return super().__new__(cls, length.days, length.seconds, length.microseconds)

    def __reduce__(self) -> tuple[type[Self], tuple[timedelta]]:
        return type(self), (timedelta(self.days, self.seconds, self.microseconds),)

    def __str__(self) -> str:
        rest = timedelta(self.days, self.seconds, self.microseconds)
        text = ""
        for unit, length in UNITS.items():
            count, rest = divmod(rest, length)
            if unit == "s" and rest:
                text += f"{count}.{rest.microseconds:06}".rstrip("0") + unit
            elif count:
                text += f"{count}{unit}"
        return text or "0s"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


def _length(value: object) -> timedelta | None:
    """The timedelta that `value` stands for, or None. Raises OverflowError."""
    if isinstance(value, timedelta):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return timedelta(seconds=value) if isfinite(value) else None
    match = TEXT.fullmatch(value.strip()) if isinstance(value, str) else None
    if not match or not match[0]:
        return None
    counts = ((UNITS[unit], count) for unit, count in match.groupdict().items() if count)
    return sum((_times(unit, count) for unit, count in counts), timedelta())


def _times(unit: timedelta, count: str) -> timedelta:
    return unit * int(count) if count.isdecimal() else unit * float(count)


class Schedule(ABC):
    """Due times, each following from the one before. Subclass it for a calendar of your own.

    Instances are immutable; two of one class are equal when their `spec` is.
    """

    @abstractmethod
    def next_after(self, after: datetime) -> datetime:
        """The first due time strictly later than `after` (aware), in UTC.

        Raises ScheduleError for a naive `after`, and where there is no due time left.
        """

    def bind(self, name: str, timezone: tzinfo) -> "Schedule":
        """This schedule as the periodic task `name` runs it, in `timezone`.

        A schedule that depends on neither is returned as it is.
        """
        return self

    @property
    def spec(self) -> str:
        """Text that is equal for equal schedules and differs after an edit.

        The default shows the class and its attributes: override it where an attribute's repr
        changes from one process to the next.
        """
        kind = type(self)
        attributes = ", ".join(f"{key}={value!r}" for key, value in sorted(vars(self).items()))
        return f"{kind.__module__}.{kind.__qualname__}({attributes})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schedule):
            return NotImplemented
        return type(self) is type(other) and self.spec == other.spec

    def __hash__(self) -> int:
        return hash((type(self), self.spec))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.spec}>"


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Every(Schedule):
    """Every `interval` of real time, at least one second; neither zone nor daylight saving matter.

    Due times are whole multiples of the interval since the Unix epoch, 1970-01-01 00:00 UTC, so
    that every node has the same ones: "15m" is due on the quarter hours, "1d" at midnight UTC,
    "1w" on Thursdays at midnight UTC. Raises ScheduleError.
    """

    interval: Duration

    def __init__(self, interval: DurationLike) -> None:
        duration = Duration(interval)
        if duration < SECOND:
            raise ScheduleError(
                f'a schedule of every {duration} is too frequent; write at least 1 second ("1s")'
            )
        object.__setattr__(self, "interval", duration)

    @property
    def spec(self) -> str:
        return f"every {self.interval}"

    def next_after(self, after: datetime) -> datetime:
        now = _in_utc(after)
        try:
            return EPOCH + self.interval * ((now - EPOCH) // self.interval + 1)
        except OverflowError:
            raise _nothing_left(self, after) from None


@dataclass(frozen=True, eq=False, repr=False)
class Crontab(Schedule):
    """Five crontab fields, or an alias such as @daily, by the wall clock of `timezone`.

    Fields take numbers, names (mon, jan), ranges, steps and lists; day-of-month also L, the last
    day; day-of-week also 5#2, the second Friday, and L5, the last. `~` and `a~b` stand for one
    value within the range, chosen by the name of the periodic task: the same on every host. Where
    day-of-month and day-of-week are both restricted, a day matches when either does. "*" is no
    restriction but "*/2" is one, as croniter has it; Vixie cron would then ask for both.

    Where the zone's offset changes:

    =====================  ===============================  ====================================
    hour field             the clock skips a time           the clock shows a time twice
    =====================  ===============================  ====================================
    starts with "*"        not due: it never was            due both times
    any other, such as 2   due once, later by what was      due once, the first time
                           skipped: 02:30 becomes 03:30
    =====================  ===============================  ====================================

    The second row reads local times as PEP 495 does with fold=0; the first is what keeps
    "*/15 * * * *" at a quarter of an hour. Raises ScheduleError.
    """

    expression: str
    name: str | None = None
    timezone: tzinfo = UTC
    _text: str = field(init=False)
    _pattern: Pattern | None = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.timezone, tzinfo):
            raise ScheduleError(
                f"timezone must be a tzinfo, not {self.timezone!r}; "
                f'write zoneinfo.ZoneInfo("Europe/London")'
            )
        text, pattern = crontab.read(self.expression, self.name)
        object.__setattr__(self, "_text", text)
        object.__setattr__(self, "_pattern", pattern)

    def bind(self, name: str, timezone: tzinfo) -> "Crontab":
        return replace(self, name=name, timezone=timezone)

    @property
    def spec(self) -> str:
        return f"{self._text} {self.timezone}"

    def next_after(self, after: datetime) -> datetime:
        pattern = self._pattern
        if pattern is None:
            raise ScheduleError(
                f"crontab {self.expression!r}: ~ is chosen by the name of the periodic task; "
                f"call bind(name, timezone) first, or write a number"
            )
        now = _in_utc(after).replace(tzinfo=None)
        due = self._first_due(pattern, now)
        if due is None:
            raise _nothing_left(self, after)
        return due.replace(tzinfo=UTC)

    def _first_due(self, pattern: Pattern, now: datetime) -> datetime | None:
        """The first due time after `now`, both in naive UTC."""
        today = now + _offset(now.replace(tzinfo=UTC).astimezone(self.timezone))
        found: datetime | None = None
        # A change of offset around midnight can put one day's times among those of the next.
        for midnight in pattern.midnights(today.date() - DAY):
            before = _offset(midnight.replace(tzinfo=self.timezone))
            behind = _offset((midnight + DAY).replace(tzinfo=self.timezone, fold=1))
            if before == behind:
                due = next(_due_at_offset(pattern, midnight, before, now), None)
            else:
                due = self._due_on_change(pattern, midnight, (before, behind), now)
            if found:
                return min(found, due or found)
            if due and before == behind:
                return due
            found = due
        return found

    def _due_on_change(
        self,
        pattern: Pattern,
        midnight: datetime,
        offsets: tuple[timedelta, timedelta],
        now: datetime,
    ) -> datetime | None:
        """The first due time after `now` of a day that the zone's offset changes on."""
        happens = self._shows if pattern.every_hour else self._means
        leaving, arriving = (_due_at_offset(pattern, midnight, offset, now) for offset in offsets)
        # Once the old offset is over it stays over, so its first time decides for the others.
        old = [due for due in islice(leaving, 1) if happens(due, offsets[0])]
        new = islice((due for due in arriving if happens(due, offsets[1])), 1)
        return min([*old, *new], default=None)

    def _shows(self, due: datetime, offset: timedelta) -> bool:
        """Whether clocks are at this offset then: never at a skipped time, twice at a repeat."""
        return _offset(due.replace(tzinfo=UTC).astimezone(self.timezone)) == offset

    def _means(self, due: datetime, offset: timedelta) -> bool:
        """Whether PEP 495 gives the local time this offset: one, be it skipped or repeated."""
        return _offset((due + offset).replace(tzinfo=self.timezone)) == offset


def _due_at_offset(
    pattern: Pattern, midnight: datetime, offset: timedelta, now: datetime
) -> Iterator[datetime]:
    """The times of one day after `now`, in naive UTC, as if `offset` held all day."""
    start = midnight - offset
    first = bisect_right(pattern.times, (now - start) // MINUTE)
    for index in range(first, len(pattern.times)):
        yield start + pattern.times[index] * MINUTE


def _offset(time: datetime) -> timedelta:
    return time.utcoffset() or timedelta()


def _in_utc(after: datetime) -> datetime:
    """`after` in UTC. Raises ScheduleError when it is naive or at the very ends of the calendar."""
    if after.utcoffset() is None:
        raise ScheduleError(
            f"next_after() needs an aware datetime, not {after!r}; write datetime.now(UTC)"
        )
    if not MINYEAR < after.year < MAXYEAR:
        raise ScheduleError(f"{after!r} is no time for a schedule; write a year from 2 to 9998")
    return after.astimezone(UTC)


def _nothing_left(schedule: Schedule, after: datetime) -> ScheduleError:
    return ScheduleError(
        f"{schedule!r} is not due between {after} and the year 9999, where calendars end; "
        f"write an earlier time"
    )


def parse_schedule(value: ScheduleLike) -> Schedule:
    """The schedule that `value` stands for: a crontab, a Duration, or a Schedule as it is.

    Raises ScheduleError, which lists what is accepted.
    """
    if isinstance(value, Schedule):
        return value
    if isinstance(value, str) and (value.lstrip().startswith("@") or len(value.split()) > 1):
        return Crontab(value)
    try:
        duration = Duration(value)
    except ScheduleError:
        raise ScheduleError(
            f'{value!r} is not a schedule; write a crontab such as "30 3 * * 1-5" or "@daily", '
            f'a Duration such as "15m", 900 (seconds) or a timedelta, or a dbtasks.Schedule'
        ) from None
    return Every(duration)
