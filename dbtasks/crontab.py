"""Reads a crontab expression, once, into the minutes, days and months that it names.

croniter decides which values a field stands for. What it would guess at is refused here, since a
schedule that runs at an unexpected time is worse than one that does not start: a range of one value
("5-5", every value to croniter), a backward range with a step, "1,5#2" and random fields.

`~` is not croniter's. It is OpenBSD's, crontab(5): a value within a range, chosen once. Here the
choice follows from the periodic task's name, so that every host makes the same one.
"""

import hashlib
import re
from bisect import bisect_left
from calendar import monthrange
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import MAXYEAR, date, datetime
from functools import partial
from itertools import pairwise, product

from croniter import croniter

ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")

VALUE = r"(?:[0-9]{1,4}|[a-z]{3})"
STEPPED = re.compile(rf"(?:\*|(?P<low>{VALUE})(?:-(?P<high>{VALUE}))?)(?:/(?P<step>[0-9]{{1,4}}))?")
CHOICE = re.compile(rf"(?P<low>{VALUE})?~(?P<high>{VALUE})?")

type Shape = tuple[
    int, int
]  # a month's first weekday (Monday is 0) and its length, as monthrange()
type Values = list[int | str]  # of one field, as croniter has them: numbers, "*" and "l"
type Nth = Mapping[int, set[int | str]]  # by weekday: 2 for the second one of a month, "l"
type Chooser = Callable[["Field", int, int], int]


class ScheduleError(ValueError):
    """A schedule or a duration that cannot be meant; the message says what to write instead."""


@dataclass(frozen=True)
class Field:
    """One of the five columns: its bounds, its names, and what a user may write in it."""

    position: int
    name: str
    low: int
    high: int
    allowed: str
    names: Mapping[str, int] = field(default_factory=dict)
    special: re.Pattern[str] | None = None
    last_choice: int | None = None

    def number(self, text: str) -> int | None:
        """The value of "5" or "fri"; None when this field has no such value."""
        value = int(text) if text.isdigit() else self.names.get(text)
        return value if value is not None and self.low <= value <= self.high else None


MINUTE = Field(0, "minute", 0, 59, "0-59")
HOUR = Field(1, "hour", 0, 23, "0-23")
DAY_OF_MONTH = Field(
    2,
    "day-of-month",
    1,
    31,
    "1-31 or L (the last day)",
    special=re.compile("l"),
    last_choice=28,  # every month has it
)
MONTH = Field(
    3, "month", 1, 12, "1-12 or jan-dec", {name: n for n, name in enumerate(MONTHS, start=1)}
)
DAY_OF_WEEK = Field(
    4,
    "day-of-week",
    0,
    7,
    "0-7 (0 and 7 are Sunday), sun-sat, 5#2 (the second Friday) or L5 (the last Friday)",
    {name: n for n, name in enumerate(WEEKDAYS)},
    special=re.compile(rf"l[0-7]|{VALUE}#[1-5]"),
    last_choice=6,
)
FIELDS = (MINUTE, HOUR, DAY_OF_MONTH, MONTH, DAY_OF_WEEK)


@dataclass(frozen=True, slots=True)
class Pattern:
    """The wall-clock minutes that an expression names, ready to be walked through."""

    text: str  # canonical: equal for two spellings of one pattern
    times: tuple[int, ...]  # minutes since midnight
    months: frozenset[int]
    days: Mapping[Shape, tuple[int, ...]]
    every_hour: bool  # the hour field starts with "*"

    def midnights(self, first: date) -> Iterator[datetime]:
        """Every matching day from `first` to the year 9998, as a naive midnight."""
        year, month, day = first.year, first.month, first.day
        while year < MAXYEAR:
            if month in self.months:
                days = self.days[monthrange(year, month)]
                for matching in days[bisect_left(days, day) :]:
                    yield datetime(year, month, matching)
            year, month, day = (year, month + 1, 1) if month < 12 else (year + 1, 1, 1)


def read(expression: object, name: str | None) -> tuple[str, Pattern | None]:
    """The canonical text of `expression` and its pattern.

    The pattern is None while a `~` waits for the name of its periodic task. Raises ScheduleError.
    """
    columns = _columns(expression)
    try:
        for column, text in zip(FIELDS, columns, strict=True):
            _check(column, text)
        if any("~" in text for text in columns):
            _check_every_choice(columns)
            if name is None:
                return " ".join(columns), None
        pattern = _pattern(columns, _chooser(name or ""))
    except ScheduleError as error:
        raise ScheduleError(f"crontab {expression!r}: {error}") from None
    return pattern.text, pattern


def _columns(expression: object) -> list[str]:
    """The five columns in lower case, aliases written out."""
    if not isinstance(expression, str):
        raise ScheduleError(
            f'a crontab is a string such as "30 3 * * 1-5", not {type(expression).__name__} '
            f"({expression!r})"
        )
    text = expression.strip().lower()
    if text == "@reboot":
        raise ScheduleError(
            f"crontab {expression!r}: @reboot is no time, and each host boots at another one; "
            f"write a time such as @daily, or enqueue the task when you deploy"
        )
    if text.startswith("@") and text not in ALIASES:
        raise ScheduleError(f"crontab {expression!r}: no such alias; write {', '.join(ALIASES)}")
    columns = ALIASES.get(text, text).split()
    if len(columns) != len(FIELDS):
        raise ScheduleError(
            f"crontab {expression!r} has {len(columns)} fields; write five, without seconds or "
            f'years: "minute hour day-of-month month day-of-week", such as "30 3 * * 1-5"'
        )
    for position in (DAY_OF_MONTH.position, DAY_OF_WEEK.position):
        if columns[position] == "?":
            columns[position] = "*"
    return columns


def _check(column: Field, text: str) -> None:
    """Refuse what `column` cannot hold. Raises ScheduleError."""
    items = text.split(",")
    if "" in items:
        raise _refusal(column, text)
    for item in items:
        if "~" in item:
            _bounds(column, item)
        elif not (column.special and column.special.fullmatch(item)):
            _check_range(column, item)
    if column is DAY_OF_WEEK and 0 < sum("#" in item or "l" in item for item in items) < len(items):
        raise ScheduleError(
            f'the day-of-week field "{text}" mixes weekdays with # or L; write # or L throughout, '
            f'as in "5#2,5#4", or make it two schedules'
        )
    alone = ["*"] * len(FIELDS)
    alone[column.position] = ",".join(item for item in items if "~" not in item) or "*"
    try:
        croniter.expand(" ".join(alone))
    except ValueError:
        raise _refusal(column, text) from None


def _check_range(column: Field, item: str) -> None:
    """Refuse an item croniter would not read, or would read as something else."""
    match = STEPPED.fullmatch(item)
    if not match:
        raise _refusal(column, item)
    low_text, high_text, step = match["low"], match["high"], match["step"]
    ends = [column.number(text) for text in (low_text, high_text) if text]
    if None in ends or (step and int(step) == 0):
        raise _refusal(column, item)
    if not high_text:
        return
    low, high = ends[0] or 0, ends[1] or 0
    if column is DAY_OF_WEEK and low > high == 0:
        high = 7  # fri-sun
    if low == high:
        raise ScheduleError(
            f'the {column.name} field has the range "{item}" of one value; write "{low_text}" '
            f'for that value or "*" for all'
        )
    if step and low > high:
        raise ScheduleError(
            f'the {column.name} field has the backward range "{item}" with a step; write it as '
            f'two ranges, as in "22-23/2,0-4/2"'
        )


def _refusal(column: Field, text: str) -> ScheduleError:
    return ScheduleError(
        f'the {column.name} field "{text}" is not valid; write {column.allowed}, with * for all, '
        f"a-b for a range, */n or a-b/n for steps, commas for a list, or ~ for a value that is "
        f"chosen by the name of the task (a~b: between a and b)"
    )


def _bounds(column: Field, item: str) -> tuple[int, int]:
    """The least and the greatest value that a `~` item may become."""
    match = CHOICE.fullmatch(item)
    if not match:
        raise _refusal(column, item)
    greatest = column.high if column.last_choice is None else column.last_choice
    low = column.number(match["low"]) if match["low"] else column.low
    high = column.number(match["high"]) if match["high"] else greatest
    if low is None or high is None or low > high:
        raise _refusal(column, item)
    return low, high


def _chooser(name: str) -> Chooser:
    """Choices that only depend on the task's name and the field: not on the host, nor on when."""

    def choose(column: Field, low: int, high: int) -> int:
        digest = hashlib.sha256(f"{column.position}:{name}".encode()).digest()
        return low + int.from_bytes(digest[:8]) % (high - low + 1)

    return choose


def _resolve(column: Field, text: str, choose: Chooser) -> str:
    """`text` with every `~` replaced by the value chosen for it."""
    items = text.split(",")
    for index, item in enumerate(items):
        if "~" in item:
            items[index] = str(choose(column, *_bounds(column, item)))
        elif (match := STEPPED.fullmatch(item)) and match["step"] and not match["high"]:
            items[index] = _first_step(column, item, match)
    return ",".join(items)


def _first_step(column: Field, item: str, match: re.Match[str]) -> str:
    """The step form `item`, but "59" for "59/15", which older croniters read as "*/15"."""
    first = column.number(match["low"]) if match["low"] else column.low
    beyond = (first or 0) + int(match["step"]) > croniter.RANGES[column.position][1]
    return str(first) if beyond and match["low"] else item


def _pattern(columns: list[str], choose: Chooser) -> Pattern:
    """What five checked columns mean. Raises ScheduleError when they name no date at all."""
    resolved, expanded, nth = _expand(columns, choose)
    minutes, hours = (_numbers(expanded[column.position], column) for column in (MINUTE, HOUR))
    every_hour = resolved[HOUR.position].startswith("*")
    return Pattern(
        text=_canonical(expanded, nth, every_hour),
        times=tuple(60 * hour + minute for hour, minute in product(hours, minutes)),
        months=frozenset(_numbers(expanded[MONTH.position], MONTH)),
        days={
            (first, length): _matching_days(expanded, nth, first, length)
            for first, length in product(range(7), range(28, 32))
        },
        every_hour=every_hour,
    )


def _expand(columns: list[str], choose: Chooser) -> tuple[list[str], list[Values], Nth]:
    """The columns without `~`, and croniter's reading of them. Raises ScheduleError."""
    resolved = [_resolve(*pair, choose) for pair in zip(FIELDS, columns, strict=True)]
    expanded, nth = croniter.expand(" ".join(resolved))
    months = _numbers(expanded[MONTH.position], MONTH)
    longest = max(29 if month == 2 else monthrange(2024, month)[1] for month in months)
    if not any(_matching_days(expanded, nth, first, longest) for first in range(7)):
        raise ScheduleError(
            f'the day-of-month field "{columns[DAY_OF_MONTH.position]}" cannot occur in the month '
            f'field "{columns[MONTH.position]}"; write a day those months have, or L for the last'
        )
    return resolved, expanded, nth


def _check_every_choice(columns: list[str]) -> None:
    """Raise ScheduleError if some name could be given a date that never occurs."""
    months = range(MONTH.low, MONTH.high + 1) if "~" in columns[MONTH.position] else [MONTH.high]
    for month in months:
        _expand(columns, partial(_latest, month))


def _latest(month: int, column: Field, low: int, high: int) -> int:
    return min(max(low, month), high) if column is MONTH else high


def _numbers(values: Values, column: Field) -> list[int]:
    if "*" in values:
        return list(range(column.low, column.high + 1))
    return [value for value in values if isinstance(value, int)]


def _matching_days(expanded: list[Values], nth: Nth, first: int, length: int) -> tuple[int, ...]:
    """The days that match in a month of `length` days whose first one is the weekday `first`."""
    in_month, in_week = expanded[DAY_OF_MONTH.position], expanded[DAY_OF_WEEK.position]

    def by_month(day: int) -> bool:
        return day in in_month or (day == length and "l" in in_month)

    def by_week(day: int) -> bool:
        weekday = (first + day) % 7
        if not nth:
            return weekday in in_week
        wanted = nth.get(weekday, set())
        return (day + 6) // 7 in wanted or (day + 7 > length and "l" in wanted)

    # crontab(5): where both are restricted, a day matches when either field does.
    restrictions = [by_month] if "*" not in in_month else []
    if nth or "*" not in in_week:
        restrictions.append(by_week)
    return tuple(
        day
        for day in range(1, length + 1)
        if not restrictions or any(matches(day) for matches in restrictions)
    )


def _canonical(expanded: list[Values], nth: Nth, every_hour: bool) -> str:
    """The expression in one spelling of its own, itself a valid crontab."""
    columns = [_column(values) for values in expanded]
    hours = expanded[HOUR.position]
    if every_hour and "*" not in hours:
        step = 24 if len(hours) == 1 else int(hours[1]) - int(hours[0])
        regular = list(range(0, 24, step)) == hours
        columns[HOUR.position] = f"*/{step}" if regular else f"*/24,{columns[HOUR.position]}"
    elif not every_hour and "*" in hours:
        columns[HOUR.position] = "0-23"  # all hours, yet by the wall clock
    if nth:
        columns[DAY_OF_WEEK.position] = ",".join(
            f"L{weekday}" if which == "l" else f"{weekday}#{which}"
            for weekday in sorted(nth)
            for which in sorted(nth[weekday], key=str)
        )
    return " ".join(columns)


def _column(values: Values) -> str:
    """[0, 15, 30, 45] as "0-45/15", [1, 2, 3, 9] as "1-3,9"."""
    if "*" in values:
        return "*"
    numbers = [value for value in values if isinstance(value, int)]
    last_day = ["L"] if "l" in values else []
    steps = {after - before for before, after in pairwise(numbers)}
    if len(numbers) > 2 and len(steps) == 1 and steps != {1}:
        return ",".join([f"{numbers[0]}-{numbers[-1]}/{steps.pop()}", *last_day])
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    ranges = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ",".join(ranges + last_day)
