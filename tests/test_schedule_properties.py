"""Schedules against oracles of their own: every minute looked at, and croniter itself.

The oracle shares no code with the product: each column is generated together with the values that
it means, and a window of time is walked through minute by minute.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dbtasks.schedule import Crontab, Duration, Every, ScheduleError

pytestmark = pytest.mark.once

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LONGEST = 150  # due times compared in one window

# Each zone with moments (UTC) near which its clock does something unusual, or nothing at all.
ZONES = {
    "America/New_York": ("2025-03-09 07:00", "2025-11-02 06:00"),
    "Europe/London": ("2025-03-30 01:00", "2025-10-26 01:00"),
    "Australia/Lord_Howe": ("2025-04-05 15:00", "2025-10-04 15:30"),
    "Asia/Tokyo": ("2024-02-28 12:00", "2025-01-31 12:00"),
    "America/St_Johns": ("2006-04-02 03:31", "2006-10-29 02:31"),  # at a minute past midnight
    "America/Toronto": ("1919-03-31 04:30",),  # across midnight
    "Asia/Beirut": ("2025-03-29 22:00", "2025-10-25 21:00"),  # at midnight
    "America/Nuuk": ("2024-03-31 01:00", "2024-10-27 01:00"),
    "Pacific/Apia": ("2011-12-30 10:00",),  # a day was left out
}


def repeatable(max_examples: int) -> Callable[[Any], Any]:
    """The same examples in every run, without limits on the time that one takes."""
    return settings(
        derandomize=True,
        deadline=None,
        database=None,
        max_examples=max_examples,
        suppress_health_check=[HealthCheck.too_slow],
    )


@dataclass(frozen=True)
class Column:
    text: str
    values: frozenset[int]

    @property
    def restricted(self) -> bool:
        return self.text != "*"


def stepped(low: int, high: int) -> st.SearchStrategy[Column]:
    return st.integers(2, high).map(
        lambda step: Column(f"*/{step}", frozenset(range(low, high + 1, step)))
    )


@st.composite
def listed(draw: st.DrawFn, low: int, high: int) -> Column:
    """A list of values, ranges and stepped ranges, short of the whole field."""
    texts, values = [], set[int]()
    for _ in range(draw(st.integers(1, 3))):
        first = draw(st.integers(low, high))
        last = draw(st.integers(first, high))
        step = draw(st.integers(1, 5))
        if first == last:
            texts.append(str(first))
        elif step == 1:
            texts.append(f"{first}-{last}")
        else:
            texts.append(f"{first}-{last}/{step}")
        values |= set(range(first, last + 1, step))
    if len(values) > high - low:
        return Column(str(low), frozenset([low]))
    return Column(",".join(texts), frozenset(values))


def columns(low: int, high: int) -> st.SearchStrategy[Column]:
    every = st.just(Column("*", frozenset(range(low, high + 1))))
    return st.one_of(every, listed(low, high), stepped(low, high))


@dataclass(frozen=True)
class Expression:
    """A crontab with what it means. `nth` has pairs of weekday and week, 0 for the last."""

    minute: Column
    hour: Column
    day: Column
    month: Column
    weekday: Column
    last_day: bool = False
    nth: frozenset[tuple[int, int]] = frozenset()

    @property
    def text(self) -> str:
        day = f"{self.day.text},L" if self.last_day else self.day.text
        nth = ",".join(f"{day}#{week}" if week else f"L{day}" for day, week in sorted(self.nth))
        clock = f"{self.minute.text} {self.hour.text}"
        return f"{clock} {day} {self.month.text} {nth or self.weekday.text}"

    def names(self, wall: datetime) -> bool:
        """Whether the expression matches this wall-clock minute."""
        return (
            wall.minute in self.minute.values
            and wall.hour in self.hour.values
            and wall.month in self.month.values
            and self.names_day(wall)
        )

    def names_day(self, wall: datetime) -> bool:
        is_last_day = (wall + DAY).month != wall.month
        by_month = wall.day in self.day.values or (self.last_day and is_last_day)
        weekday = wall.isoweekday() % 7
        by_week = weekday in self.weekday.values
        if self.nth:
            is_last_week = (wall + 7 * DAY).month != wall.month
            week = -(-wall.day // 7)
            by_week = (weekday, week) in self.nth or (is_last_week and (weekday, 0) in self.nth)
        if self.day.restricted and (self.weekday.restricted or self.nth):
            return by_month or by_week
        return by_month and by_week

    def due_within(self, zone: ZoneInfo, start: datetime, end: datetime) -> list[datetime]:
        """All due times after `start` until `end`, by looking at each minute."""
        if self.hour.text.startswith("*"):
            minutes = (start + n * MINUTE for n in range(1, (end - start) // MINUTE + 1))
            return [time for time in minutes if self.names(time.astimezone(zone))]
        first = start.replace(tzinfo=None) - 2 * DAY
        walls = (first + n * MINUTE for n in range((end - start + 4 * DAY) // MINUTE))
        instants = {wall.replace(tzinfo=zone).astimezone(UTC) for wall in walls if self.names(wall)}
        return sorted(time for time in instants if start < time <= end)


@st.composite
def expressions(draw: st.DrawFn, plain: bool = False) -> Expression:
    day = draw(columns(1, 31))
    weekday = draw(columns(0, 6))
    nth, last_day = frozenset[tuple[int, int]](), False
    if not plain:
        last_day = day.restricted and draw(st.booleans())
        if weekday.text == "*" and draw(st.booleans()):
            pairs = st.tuples(st.integers(0, 6), st.integers(0, 5))
            nth = draw(st.frozensets(pairs, min_size=1, max_size=3))
    return Expression(
        minute=draw(columns(0, 59)),
        hour=draw(columns(0, 23)),
        day=day,
        month=draw(st.one_of(st.just(Column("*", frozenset(range(1, 13)))), columns(1, 12))),
        weekday=weekday,
        last_day=last_day,
        nth=nth,
    )


@st.composite
def unusual_moments(draw: st.DrawFn) -> tuple[ZoneInfo, datetime]:
    name = draw(st.sampled_from(sorted(ZONES)))
    moment = datetime.fromisoformat(draw(st.sampled_from(ZONES[name]))).replace(tzinfo=UTC)
    return ZoneInfo(name), moment - draw(st.integers(0, 30 * 60)) * MINUTE


@st.composite
def ordinary_moments(draw: st.DrawFn) -> tuple[ZoneInfo, datetime]:
    zone = ZoneInfo(draw(st.sampled_from(sorted(ZONES))))
    minutes = draw(st.integers(0, 40 * 366 * 24 * 60))
    return zone, datetime(2020, 1, 1, tzinfo=UTC) + minutes * MINUTE


def crontab(expression: Expression, zone: ZoneInfo) -> Crontab | None:
    """The schedule, or None for one of the few that name no date, such as 31 February."""
    try:
        return Crontab(expression.text).bind("t", zone)
    except ScheduleError as error:
        if "cannot occur" not in str(error):
            raise
        return None


def assert_due_as_expected(
    expression: Expression, zone: ZoneInfo, start: datetime, end: datetime
) -> None:
    schedule = crontab(expression, zone)
    expected = expression.due_within(zone, start, end)[:LONGEST]
    if schedule is None:
        assert not expected
        return
    after = start
    for time in expected:
        assert schedule.next_after(after) == time
        after = time
    if len(expected) < LONGEST:
        assert schedule.next_after(after) > end


@repeatable(100)
@given(expressions(), unusual_moments())
def test_agrees_with_every_minute_around_offset_changes(
    expression: Expression, at: tuple[ZoneInfo, datetime]
) -> None:
    zone, start = at
    assert_due_as_expected(expression, zone, start, start + 3 * DAY)


@repeatable(80)
@given(expressions(), ordinary_moments())
def test_agrees_with_every_minute_of_some_weeks(
    expression: Expression, at: tuple[ZoneInfo, datetime]
) -> None:
    zone, start = at
    assert_due_as_expected(expression, zone, start, start + 21 * DAY)


@repeatable(100)
@given(expressions(plain=True), ordinary_moments())
def test_agrees_with_croniter_where_no_clock_changes(
    expression: Expression, at: tuple[ZoneInfo, datetime]
) -> None:
    schedule, after = crontab(expression, ZoneInfo("UTC")), at[1]
    if schedule is None:
        return
    reference = croniter(expression.text, after, ret_type=datetime)
    for _ in range(5):
        after = schedule.next_after(after)
        assert after == reference.get_next()


@repeatable(200)
@given(
    expressions(),
    st.sampled_from(sorted(ZONES)),
    st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),
)
def test_due_times_only_ever_grow(expression: Expression, zone: str, after: datetime) -> None:
    schedule = crontab(expression, ZoneInfo(zone))
    if schedule is None:
        return
    times = [after]
    for _ in range(20):
        times.append(schedule.next_after(times[-1]))
    assert all(earlier < later for earlier, later in pairwise(times))
    assert all(time.tzinfo is UTC for time in times[1:])


@repeatable(100)
@given(expressions(), unusual_moments(), st.floats(0, 0.99))
def test_nothing_is_due_between_a_time_and_the_next(
    expression: Expression, at: tuple[ZoneInfo, datetime], part: float
) -> None:
    zone, start = at
    schedule = crontab(expression, zone)
    if schedule is None:
        return
    following = schedule.next_after(start)
    assert schedule.next_after(start + part * (following - start)) == following


@repeatable(100)
@given(expressions(), st.sampled_from(sorted(ZONES)))
def test_the_spec_reads_as_the_same_schedule(expression: Expression, zone: str) -> None:
    schedule = crontab(expression, ZoneInfo(zone))
    if schedule is not None:
        columns_of_spec = schedule.spec.removesuffix(f" {zone}")
        assert Crontab(columns_of_spec).bind("other", ZoneInfo(zone)) == schedule


@repeatable(200)
@given(st.text(max_size=40), st.integers(0, 59), st.integers(0, 59))
def test_a_choice_is_within_its_range_and_fixed_per_name(name: str, one: int, other: int) -> None:
    low, high = sorted((one, other))
    text = f"{low}~{high} ~ ~ ~ ~"
    spec = Crontab(text).bind(name, UTC).spec
    minute, hour, day, month, weekday = (int(value) for value in spec.split()[:5])
    assert low <= minute <= high
    assert hour in range(24)
    assert day in range(1, 29)
    assert month in range(1, 13)
    assert weekday in range(7)
    assert Crontab(text).bind(name, UTC).spec == spec


@repeatable(30)
@given(st.text(max_size=10))
def test_choices_spread_over_names_that_only_differ_a_little(prefix: str) -> None:
    specs = [Crontab("~ ~ * * *").bind(f"{prefix}{n}", UTC).spec for n in range(40)]
    assert len(set(specs)) >= 36  # of 1440 values: two of 40 names meet once in two tries
    assert len({spec.split()[0] for spec in specs}) >= 20


@repeatable(300)
@given(
    st.timedeltas(timedelta(seconds=1), timedelta(days=4000)),
    st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),
)
def test_intervals_are_the_next_multiple_since_the_epoch(
    interval: timedelta, after: datetime
) -> None:
    following = Every(interval).next_after(after)
    assert after < following <= after + interval
    assert (following - EPOCH) % interval == timedelta()


@repeatable(300)
@given(st.timedeltas(timedelta(), timedelta.max))
def test_the_text_of_a_duration_is_that_duration(length: timedelta) -> None:
    assert Duration(str(Duration(length))) == Duration(length) == length


def assert_refused_or_runs(text: str) -> None:
    try:
        schedule = Crontab(text).bind("t", UTC)
    except ScheduleError:
        return
    assert schedule.next_after(EPOCH) > EPOCH


@repeatable(300)
@given(st.text(alphabet="0123456789*/-,~#LlHR@ ?monjan", max_size=24))
def test_garbage_is_refused_or_runs(text: str) -> None:
    assert_refused_or_runs(text)


@repeatable(400)
@given(st.lists(st.text("0123456789*/-,~#l", min_size=1, max_size=5), min_size=5, max_size=5))
def test_five_columns_of_garbage_are_refused_or_run(columns: list[str]) -> None:
    assert_refused_or_runs(" ".join(columns))


@repeatable(400)
@given(st.sampled_from(range(5)), st.text("0123457*/-,~#l", min_size=1, max_size=6))
def test_a_column_of_garbage_is_refused_or_runs(position: int, text: str) -> None:
    columns = ["*"] * 5
    columns[position] = text
    assert_refused_or_runs(" ".join(columns))
