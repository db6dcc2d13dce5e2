"""Durations, crontabs and intervals: what users may type, and when it is due."""

import copy
import pickle
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter

from dbtasks.schedule import Crontab, Duration, Every, Schedule, ScheduleError, parse_schedule

pytestmark = pytest.mark.once

NEW_YORK = ZoneInfo("America/New_York")
LONDON = ZoneInfo("Europe/London")
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")
TOKYO = ZoneInfo("Asia/Tokyo")


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def due(schedule: Schedule, after: str, count: int, zone: ZoneInfo | None = None) -> list[str]:
    """The next due times after `after` (UTC), as local or UTC wall-clock text with the offset."""
    moment, times = utc(after), []
    for _ in range(count):
        following = schedule.next_after(moment)
        assert following > moment
        assert following.tzinfo is UTC
        moment = following
        times.append(moment.astimezone(zone or UTC).isoformat(" ", "minutes"))
    return times


def days(expression: str, after: str, count: int) -> list[str]:
    return [time[:10] for time in due(Crontab(expression), after, count)]


class TestDuration:
    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            ("1w2d3h4m5s", 788645),
            ("15m", 900),
            ("1.5h", 5400),
            ("0.25s", 0.25),
            (" 10s\n", 10),
            ("0s", 0),
            (900, 900),
            (0, 0),
            (0.5, 0.5),
            (timedelta(minutes=15), 900),
            (Duration("15m"), 900),
        ],
    )
    def test_reads_text_seconds_and_timedeltas(self, value: object, seconds: float) -> None:
        duration = Duration(value)  # type: ignore[arg-type]
        assert type(duration) is Duration
        assert duration == timedelta(seconds=seconds)

    @pytest.mark.parametrize(
        "value",
        [
            *("", " ", "m", "15", "15 m", "1h 30m", "30m1h", "1m1m", "-5m", "1e3s", "15M", "٣m"),
            *(float("nan"), float("inf"), True, False, None, b"15m", [900], {}, 3j),
        ],
        ids=repr,
    )
    def test_refuses_anything_else_showing_it_and_an_example(self, value: object) -> None:
        with pytest.raises(ScheduleError) as caught:
            Duration(value)  # type: ignore[arg-type]
        assert repr(value) in str(caught.value)
        assert '"15m"' in str(caught.value)

    @pytest.mark.parametrize("value", [-1, -0.001, timedelta(days=-1)], ids=repr)
    def test_refuses_a_negative_length(self, value: float | timedelta) -> None:
        with pytest.raises(ScheduleError, match="negative"):
            Duration(value)

    @pytest.mark.parametrize("value", [1e300, 10**400, "999999999999999w"], ids=["e", "i", "t"])
    def test_refuses_a_length_beyond_timedelta(self, value: float | str) -> None:
        with pytest.raises(ScheduleError, match="too long; write at most 999999999 days"):
            Duration(value)

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (900, "15m"),
            ("90m", "1h30m"),
            ("14d", "2w"),
            (0, "0s"),
            (0.5, "0.5s"),
            (60.000001, "1m0.000001s"),
            ("1w2d3h4m5s", "1w2d3h4m5s"),
        ],
    )
    def test_str_is_the_shortest_text_and_makes_the_same_duration(
        self, value: str | float, text: str
    ) -> None:
        assert str(Duration(value)) == text
        assert Duration(text) == Duration(value)
        assert repr(Duration(value)) == f"Duration('{text}')"

    @pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
    def test_survives_copying(self, clone) -> None:
        duration = clone(Duration("1w0.5s"))
        assert (type(duration), duration) == (Duration, timedelta(weeks=1, seconds=0.5))

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_survives_pickling(self, protocol: int) -> None:
        duration = pickle.loads(pickle.dumps(Duration("1w0.5s"), protocol))
        assert (type(duration), duration) == (Duration, timedelta(weeks=1, seconds=0.5))

    def test_is_a_timedelta_in_arithmetic_and_as_a_key(self) -> None:
        assert utc("2025-01-01") + Duration("1d") == utc("2025-01-02")
        assert {Duration("1h"): 1}[timedelta(hours=1)] == 1
        assert Duration("1h") - Duration("2h") == timedelta(hours=-1)


class TestEvery:
    def test_is_aligned_to_the_epoch_so_that_nodes_agree(self) -> None:
        assert due(Every("15m"), "2025-03-01 10:07:03", 2) == [
            "2025-03-01 10:15+00:00",
            "2025-03-01 10:30+00:00",
        ]
        assert due(Every("1w"), "2025-03-01", 1) == ["2025-03-06 00:00+00:00"]  # a Thursday

    def test_is_strictly_later_at_a_due_time_and_just_before_it(self) -> None:
        on_time = utc("2025-03-01 10:15")
        assert Every(900).next_after(on_time) == on_time + timedelta(minutes=15)
        assert Every(900).next_after(on_time - timedelta(microseconds=1)) == on_time

    def test_reckons_before_the_epoch_too(self) -> None:
        assert Every("1h").next_after(utc("1969-12-31 23:30")) == utc("1970-01-01")

    def test_follows_neither_name_nor_zone(self) -> None:
        assert Every("1h").bind("a", TOKYO) == Every(3600) == Every(timedelta(hours=1))
        assert Every("1h").bind("a", TOKYO).spec == "every 1h"

    @pytest.mark.parametrize("value", [0, 0.5, "0s", "0.999999s"])
    def test_refuses_less_than_a_second(self, value: str | float) -> None:
        with pytest.raises(ScheduleError, match="at least 1 second"):
            Every(value)

    def test_says_so_when_the_calendar_ends_first(self) -> None:
        with pytest.raises(ScheduleError, match="9999"):
            Every("500000w").next_after(utc("2025-01-01"))


class TestCrontabFields:
    @pytest.mark.parametrize(
        ("expression", "expected"),
        [
            ("30 3 * * 1-5", ["2025-03-03 03:30", "2025-03-04 03:30", "2025-03-05 03:30"]),
            ("30 3 * * MON,wed", ["2025-03-03 03:30", "2025-03-05 03:30", "2025-03-10 03:30"]),
            ("0 9-17/4 * * *", ["2025-03-01 13:00", "2025-03-01 17:00", "2025-03-02 09:00"]),
            ("5,10 12 * jun-aug *", ["2025-06-01 12:05", "2025-06-01 12:10", "2025-06-02 12:05"]),
            ("0 22-1 * * *", ["2025-03-01 22:00", "2025-03-01 23:00", "2025-03-02 00:00"]),
            ("50/5 12 * * *", ["2025-03-01 12:50", "2025-03-01 12:55", "2025-03-02 12:50"]),
            ("59/15 12 * * *", ["2025-03-01 12:59", "2025-03-02 12:59", "2025-03-03 12:59"]),
            ("0 0 * * 7", ["2025-03-02 00:00", "2025-03-09 00:00", "2025-03-16 00:00"]),
            ("0 0 * * 6-7", ["2025-03-02 00:00", "2025-03-08 00:00", "2025-03-09 00:00"]),
            ("0 0 ? * fri-sun/2", ["2025-03-02 00:00", "2025-03-07 00:00", "2025-03-09 00:00"]),
            ("  0\t0  1 * *\n", ["2025-04-01 00:00", "2025-05-01 00:00", "2025-06-01 00:00"]),
            ("@hourly", ["2025-03-01 11:00", "2025-03-01 12:00", "2025-03-01 13:00"]),
            ("@daily", ["2025-03-02 00:00", "2025-03-03 00:00", "2025-03-04 00:00"]),
            ("@midnight", ["2025-03-02 00:00", "2025-03-03 00:00", "2025-03-04 00:00"]),
            ("@Weekly", ["2025-03-02 00:00", "2025-03-09 00:00", "2025-03-16 00:00"]),
            ("@monthly", ["2025-04-01 00:00", "2025-05-01 00:00", "2025-06-01 00:00"]),
            ("@yearly", ["2026-01-01 00:00", "2027-01-01 00:00", "2028-01-01 00:00"]),
            ("@annually", ["2026-01-01 00:00", "2027-01-01 00:00", "2028-01-01 00:00"]),
        ],
    )
    def test_is_due_when_the_fields_say(self, expression: str, expected: list[str]) -> None:
        times = due(Crontab(expression), "2025-03-01 10:02", 3)
        assert times == [f"{time}+00:00" for time in expected]

    @pytest.mark.parametrize(
        ("expression", "expected"),
        [
            ("0 0 L * *", ["2024-01-31", "2024-02-29", "2024-03-31", "2024-04-30"]),
            ("0 0 15,L 2 *", ["2024-02-15", "2024-02-29", "2025-02-15", "2025-02-28"]),
            ("0 0 * * 5#2", ["2024-01-12", "2024-02-09", "2024-03-08", "2024-04-12"]),
            ("0 0 * * fri#5", ["2024-03-29", "2024-05-31", "2024-08-30", "2024-11-29"]),
            ("0 0 * * L5", ["2024-01-26", "2024-02-23", "2024-03-29", "2024-04-26"]),
            ("0 0 * * L7,1#1", ["2024-01-28", "2024-02-05", "2024-02-25", "2024-03-04"]),
            ("0 0 31 * *", ["2024-01-31", "2024-03-31", "2024-05-31", "2024-07-31"]),
            ("0 0 29 2 *", ["2024-02-29", "2028-02-29", "2032-02-29", "2036-02-29"]),
        ],
    )
    def test_is_due_on_the_right_days(self, expression: str, expected: list[str]) -> None:
        assert days(expression, "2024-01-10", 4) == expected

    def test_29_february_skips_a_century(self) -> None:
        assert days("0 0 29 2 *", "2096-02-28 12:00", 2) == ["2096-02-29", "2104-02-29"]

    @pytest.mark.parametrize(
        ("expression", "expected"),
        [
            ("0 0 13 * 5", ["2025-01-03", "2025-01-10", "2025-01-13", "2025-01-17"]),
            ("0 0 L * mon", ["2025-01-06", "2025-01-13", "2025-01-20", "2025-01-27"]),
            ("0 0 1 * 5#2", ["2025-01-10", "2025-02-01", "2025-02-14", "2025-03-01"]),
            ("0 0 31 2 1", ["2025-02-03", "2025-02-10", "2025-02-17", "2025-02-24"]),
            # croniter's reading, not Vixie cron's: "*/10" restricts, and so the two are a union.
            ("0 0 */10 * 1", ["2025-01-06", "2025-01-11", "2025-01-13", "2025-01-20"]),
            ("0 0 1 * */3", ["2025-01-04", "2025-01-05", "2025-01-08", "2025-01-11"]),
        ],
    )
    def test_either_day_field_matches_when_both_are_restricted(
        self, expression: str, expected: list[str]
    ) -> None:
        assert days(expression, "2025-01-01 12:00", 4) == expected

    @pytest.mark.parametrize(
        ("expression", "message"),
        [
            ("60 * * * *", r'the minute field "60" is not valid; write 0-59'),
            ("* 24 * * *", r'the hour field "24" is not valid; write 0-23'),
            ("* * 0 * *", r'the day-of-month field "0" is not valid; write 1-31 or L'),
            ("* * 32 * *", r'the day-of-month field "32"'),
            ("* * * 13 *", r'the month field "13" is not valid; write 1-12 or jan-dec'),
            ("* * * foo *", r'the month field "foo"'),
            ("* * * * 8", r'the day-of-week field "8" is not valid; write 0-7'),
            ("* * * * 5#6", r'the day-of-week field "5#6"'),
            ("* * * * L8", r'the day-of-week field "l8"'),
            ("* * * * jan", r'the day-of-week field "jan"'),
            ("mon * * * *", r'the minute field "mon"'),
            ("*/0 * * * *", r'the minute field "\*/0"'),
            ("-5 * * * *", r'the minute field "-5"'),
            ("1,,2 * * * *", r'the minute field "1,,2"'),
            ("L * * * *", r'the minute field "l"'),
            ("H * * * *", r'the minute field "h"'),
            ("R(0-9) * * * *", r'the minute field "r\(0-9\)"'),
            ("* h/2 * * *", r'the hour field "h/2"'),
            ("* * 15W * *", r'the day-of-month field "15w"'),
            ("? * * * *", r'the minute field "\?"'),
            ("٣ * * * *", r'the minute field "٣"'),
            ("5-5 * * * *", r'the minute field has the range "5-5" of one value; write "5"'),
            ("* * * * 7-0", r'the day-of-week field has the range "7-0"'),
            ("* * * * fri-wed/2", r'the day-of-week field has the backward range "fri-wed/2"'),
            ("50-10/7 * * * *", r'the minute field has the backward range "50-10/7" with a step'),
            ("* * * * 1,5#2", r'the day-of-week field "1,5#2" mixes weekdays with # or L'),
            ("5~2 * * * *", r'the minute field "5~2"'),
            ("0~60 * * * *", r'the minute field "0~60"'),
            ("~/5 * * * *", r'the minute field "~/5"'),
            ("0 0 31 2 *", r'the day-of-month field "31" cannot occur in the month field "2"'),
            ("0 0 30 feb *", r'the day-of-month field "30" cannot occur in the month field "feb"'),
            ("0 0 31 4,6,9,11 *", r'the day-of-month field "31" cannot occur'),
            ("0 0 29~31 2 *", r'the day-of-month field "29~31" cannot occur'),
            ("0 0 31 ~ *", r'the day-of-month field "31" cannot occur in the month field "~"'),
            ("", r"has 0 fields; write five"),
            ("* * * *", r"has 4 fields; write five"),
            ("* * * * * *", r"has 6 fields; write five, without seconds or years"),
            ("* * * * * * *", r"has 7 fields; write five"),
            ("@reboot", r"@reboot is no time"),
            ("@fortnightly", r"no such alias; write @hourly, @daily"),
        ],
    )
    def test_refusal_names_the_field_and_what_to_write(self, expression: str, message: str) -> None:
        with pytest.raises(ScheduleError, match=message) as caught:
            Crontab(expression)
        assert repr(expression) in str(caught.value)

    @pytest.mark.parametrize("value", [None, 5, b"* * * * *", ["* * * * *"]], ids=repr)
    def test_refuses_what_is_no_string(self, value: object) -> None:
        with pytest.raises(ScheduleError, match="a crontab is a string"):
            Crontab(value)  # type: ignore[arg-type]


class TestChoices:
    def minutes(self, expression: str, names: range) -> list[int]:
        schedules = [Crontab(expression).bind(f"app.tasks.t{n}", UTC) for n in names]
        return [schedule.next_after(utc("2025-01-01")).minute for schedule in schedules]

    def test_the_choice_never_changes_for_a_name(self) -> None:
        schedule = Crontab("~ ~ ~ ~ *").bind("dbtasks.runner.cleanup", UTC)
        assert schedule.spec == "57 13 14 12 * UTC"

    def test_choices_spread_over_the_names(self) -> None:
        assert len(set(self.minutes("~ * * * *", range(600)))) == 60

    def test_a_range_bounds_the_choice(self) -> None:
        assert set(self.minutes("10~14 * * * *", range(200))) == {10, 11, 12, 13, 14}
        assert set(self.minutes("57~ * * * *", range(200))) == {57, 58, 59}
        assert set(self.minutes("~2 * * * *", range(200))) == {0, 1, 2}
        assert set(self.minutes("7~7 * * * *", range(20))) == {7}

    def test_a_day_of_month_is_one_that_every_month_has(self) -> None:
        for n in range(100):
            schedule = Crontab("0 0 ~ * *").bind(f"t{n}", UTC)
            months = [time[:7] for time in due(schedule, "2024-12-31 12:00", 12)]
            assert months == [f"2025-{month:02}" for month in range(1, 13)]

    def test_names_bound_a_choice_too(self) -> None:
        chosen = {Crontab("0 0 * * mon~fri").bind(f"t{n}", UTC).spec for n in range(100)}
        assert chosen == {f"0 0 * * {weekday} UTC" for weekday in range(1, 6)}

    def test_a_list_may_hold_several(self) -> None:
        schedule = Crontab("0~29,30~59 * * * *").bind("a", UTC)
        first, second, third = (int(time[14:16]) for time in due(schedule, "2025-01-01", 3))
        assert first == third < 30 <= second

    def test_unbound_it_refuses_to_choose(self) -> None:
        with pytest.raises(ScheduleError, match=r"call bind\(name, timezone\) first"):
            Crontab("~ * * * *").next_after(utc("2025-01-01"))

    def test_what_needs_no_name_runs_unbound_in_utc(self) -> None:
        assert due(Crontab("30 3 * * *"), "2025-07-01", 1) == ["2025-07-01 03:30+00:00"]


class TestOffsetChanges:
    """The table in Crontab's docstring."""

    @pytest.mark.parametrize(
        ("zone", "expression", "after", "expected"),
        [
            # The clock skips 02:00-03:00 on 9 March.
            (NEW_YORK, "30 2 * * *", "2025-03-08 12:00", ["03-09 03:30-04", "03-10 02:30-04"]),
            (NEW_YORK, "30 2,3 * * *", "2025-03-09 00:00", ["03-09 03:30-04", "03-10 02:30-04"]),
            (
                NEW_YORK,
                "15,45 2-3 9 3 *",
                "2025-03-09 00:00",
                ["03-09 03:15-04", "03-09 03:45-04"],
            ),
            (NEW_YORK, "0 3 * * *", "2025-03-09 00:00", ["03-09 03:00-04", "03-10 03:00-04"]),
            (NEW_YORK, "30 * * * *", "2025-03-09 06:00", ["03-09 01:30-05", "03-09 03:30-04"]),
            (NEW_YORK, "30 */2 * * *", "2025-03-09 05:00", ["03-09 00:30-05", "03-09 04:30-04"]),
            # It shows 01:00-02:00 twice on 2 November.
            (NEW_YORK, "30 1 * * *", "2025-11-02 04:00", ["11-02 01:30-04", "11-03 01:30-05"]),
            (NEW_YORK, "30 1 * * *", "2025-11-02 06:10", ["11-03 01:30-05", "11-04 01:30-05"]),
            (NEW_YORK, "30 * * * *", "2025-11-02 05:00", ["11-02 01:30-04", "11-02 01:30-05"]),
            (NEW_YORK, "30 0-23 * * *", "2025-11-02 05:00", ["11-02 01:30-04", "11-02 02:30-05"]),
            # 01:00-02:00 is skipped on 30 March, shown twice on 26 October.
            (LONDON, "30 1 * * *", "2025-03-29 12:00", ["03-30 02:30+01", "03-31 01:30+01"]),
            (LONDON, "30 1 * * *", "2025-10-25 12:00", ["10-26 01:30+01", "10-27 01:30+00"]),
            (LONDON, "0 * * * *", "2025-03-30 00:30", ["03-30 02:00+01", "03-30 03:00+01"]),
            (LONDON, "0 * * * *", "2025-10-25 23:30", ["10-26 01:00+01", "10-26 01:00+00"]),
        ],
    )
    def test_where_the_clock_changes_by_an_hour(
        self, zone: ZoneInfo, expression: str, after: str, expected: list[str]
    ) -> None:
        times = due(Crontab(expression).bind("t", zone), after, 2, zone)
        assert times == [f"{after[:4]}-{time}:00" for time in expected]

    @pytest.mark.parametrize(
        ("expression", "after", "expected"),
        [
            # 02:00-02:30 is skipped on 5 October, 01:30-02:00 is shown twice on 6 April.
            ("15 2 * * *", "2025-10-04 12:00", ["10-05 02:45+11:00", "10-06 02:15+11:00"]),
            ("45 1 * * *", "2025-04-05 12:00", ["04-06 01:45+11:00", "04-07 01:45+10:30"]),
            ("45 * * * *", "2025-04-05 14:40", ["04-06 01:45+11:00", "04-06 01:45+10:30"]),
            ("*/15 * * * *", "2025-10-04 15:15", ["10-05 02:30+11:00", "10-05 02:45+11:00"]),
        ],
    )
    def test_where_the_clock_changes_by_half_an_hour(
        self, expression: str, after: str, expected: list[str]
    ) -> None:
        times = due(Crontab(expression).bind("t", LORD_HOWE), after, 2, LORD_HOWE)
        assert times == [f"2025-{time}" for time in expected]

    def test_where_the_clock_never_changes(self) -> None:
        schedule = Crontab("30 2 * * *").bind("t", TOKYO)
        times = [datetime.fromisoformat(time) for time in due(schedule, "2024-12-31", 365, TOKYO)]
        assert all(later - time == timedelta(days=1) for time, later in pairwise(times))
        assert times[0].isoformat() == "2025-01-01T02:30:00+09:00"

    @pytest.mark.parametrize("zone", [NEW_YORK, LONDON, LORD_HOWE, TOKYO], ids=str)
    @pytest.mark.parametrize("expression", ["*/15 * * * *", "*/30 * * * *"])
    def test_quarters_and_halves_of_an_hour_are_kept_all_year(
        self, zone: ZoneInfo, expression: str
    ) -> None:
        schedule, after = Crontab(expression).bind("t", zone), utc("2025-01-01")
        step = timedelta(minutes=int(expression[2:4]))
        while after < utc("2026-01-01"):
            assert schedule.next_after(after) == after + step
            after += step

    @pytest.mark.parametrize("zone", [NEW_YORK, LONDON, LORD_HOWE, TOKYO], ids=str)
    @pytest.mark.parametrize("hour", range(24))
    def test_a_daily_time_is_due_once_a_day_all_year(self, zone: ZoneInfo, hour: int) -> None:
        schedule = Crontab(f"30 {hour} * * *").bind("t", zone)
        local_days = [time[:10] for time in due(schedule, "2024-12-31 12:00", 366, zone)]
        assert len(set(local_days)) == 366

    def test_a_gap_across_midnight_keeps_the_times_in_order(self) -> None:
        toronto = ZoneInfo("America/Toronto")  # 23:30 on 30 March 1919 became 00:30
        schedule = Crontab("35,45 23,0 * * *").bind("t", toronto)
        assert due(schedule, "1919-03-31 03:00", 3, toronto) == [
            "1919-03-31 00:35-04:00",
            "1919-03-31 00:45-04:00",
            "1919-03-31 23:35-04:00",
        ]

    def test_a_repeat_across_midnight_keeps_the_times_in_order(self) -> None:
        newfoundland = ZoneInfo("America/St_Johns")  # 00:01 on 29 October 2006 became 23:01
        schedule = Crontab("0,30 * * * *").bind("t", newfoundland)
        assert due(schedule, "2006-10-29 01:59", 5, newfoundland) == [
            "2006-10-28 23:30-02:30",
            "2006-10-29 00:00-02:30",
            "2006-10-28 23:30-03:30",
            "2006-10-29 00:00-03:30",
            "2006-10-29 00:30-03:30",
        ]

    def test_a_day_that_a_country_skipped_is_made_up_for(self) -> None:
        samoa = ZoneInfo("Pacific/Apia")  # had no 30 December 2011
        assert due(Crontab("0 10 30 * *").bind("t", samoa), "2011-12-25", 2, samoa) == [
            "2011-12-31 10:00+14:00",
            "2012-01-30 10:00+14:00",
        ]


class TestSchedules:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("30 3 * * 1-5", Crontab("30 3 * * 1-5")),
            ("@daily", Crontab("0 0 * * *")),
            ("15m", Every("15m")),
            (900, Every("15m")),
            (90.5, Every(90.5)),
            (timedelta(minutes=15), Every("15m")),
            (Duration("15m"), Every("15m")),
            (Every("15m"), Every("15m")),
        ],
    )
    def test_parse_reads_everything_users_may_type(
        self, value: str | float, expected: Schedule
    ) -> None:
        assert parse_schedule(value) == expected

    @pytest.mark.parametrize("value", [None, True, "", "hourly", "*/5", -5, [], b"15m"], ids=repr)
    def test_parse_lists_what_is_accepted(self, value: object) -> None:
        with pytest.raises(ScheduleError) as caught:
            parse_schedule(value)  # type: ignore[arg-type]
        assert repr(value) in str(caught.value)
        for accepted in ('"30 3 * * 1-5"', '"@daily"', '"15m"', "timedelta", "Schedule"):
            assert accepted in str(caught.value)

    @pytest.mark.parametrize("value", [0, "0.5s"])
    def test_parse_refuses_intervals_below_a_second(self, value: str | float) -> None:
        with pytest.raises(ScheduleError, match="at least 1 second"):
            parse_schedule(value)

    @pytest.mark.parametrize("schedule", [Every("1h"), Crontab("0 * * * *")], ids=repr)
    def test_a_naive_time_is_refused(self, schedule: Schedule) -> None:
        with pytest.raises(ScheduleError, match="needs an aware datetime"):
            schedule.next_after(datetime(2025, 1, 1))

    @pytest.mark.parametrize("schedule", [Every("1h"), Crontab("0 * * * *")], ids=repr)
    def test_the_ends_of_the_calendar_are_refused(self, schedule: Schedule) -> None:
        for moment in (datetime.min, datetime.max):
            with pytest.raises(ScheduleError, match="from 2 to 9998"):
                schedule.next_after(moment.replace(tzinfo=UTC))

    def test_a_crontab_says_so_when_the_calendar_ends_first(self) -> None:
        with pytest.raises(ScheduleError, match="9999"):
            Crontab("0 0 29 2 *").next_after(utc("9997-01-01"))

    def test_any_aware_time_is_understood(self) -> None:
        tokyo, west = utc("2025-01-01 12:00").astimezone(TOKYO), timezone(timedelta(hours=-9))
        for moment in (tokyo, tokyo.astimezone(west)):
            assert Crontab("0 * * * *").next_after(moment) == utc("2025-01-01 13:00")
            assert Every("1h").next_after(moment) == utc("2025-01-01 13:00")

    def test_an_expression_is_read_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        schedule = Crontab("~ */2 L * mon").bind("t", NEW_YORK)
        monkeypatch.setattr(croniter, "expand", None)
        monkeypatch.setattr(croniter, "__init__", None)
        assert len(due(schedule, "2025-01-01", 50)) == 50

    def test_a_zone_that_is_only_a_name_is_refused(self) -> None:
        with pytest.raises(ScheduleError, match="ZoneInfo"):
            Crontab("0 * * * *").bind("t", "Europe/London")  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("0 0 * * 1-5", "0 0 * * MON-fri"),
            ("*/15 * * * *", "0,15,30,45 * * * *"),
            ("@daily", " 0  0 * * * "),
            ("0 0 ? * 7", "0 0 * * sun"),
            ("0 */6 * * *", "0 */6,12 * * *"),
            ("0 0 * * L5,1#1", "0 0 * * 1#1,l5"),
        ],
    )
    def test_two_spellings_of_a_schedule_are_equal(self, one: str, other: str) -> None:
        assert Crontab(one).spec == Crontab(other).spec
        assert Crontab(one) == Crontab(other)
        assert hash(Crontab(one)) == hash(Crontab(other))

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (Crontab("0 0 * * *"), Crontab("1 0 * * *")),
            (Crontab("0 * * * *"), Crontab("0 0-23 * * *")),
            (Crontab("0 */6 * * *"), Crontab("0 0,6,12,18 * * *")),
            (Crontab("0 0 * * 5"), Crontab("0 0 * * 5#1")),
            (Crontab("0 0 * * *"), Crontab("0 0 * * *").bind("t", LONDON)),
            (Crontab("~ * * * *").bind("a", UTC), Crontab("~ * * * *").bind("b", UTC)),
            (Every("1h"), Crontab("0 * * * *")),
            (Every("1h"), Every("2h")),
        ],
        ids=repr,
    )
    def test_an_edit_shows_in_the_spec(self, one: Schedule, other: Schedule) -> None:
        assert one.spec != other.spec
        assert one != other

    def test_a_new_name_is_no_edit_where_nothing_is_chosen(self) -> None:
        crontab = Crontab("0 3 * * *")
        assert crontab.bind("a", LONDON) == crontab.bind("b", LONDON)

    @pytest.mark.parametrize(
        ("expression", "spec"),
        [
            ("*/15 * * * *", "0-45/15 * * * * UTC"),
            ("0 */6 * * *", "0 */6 * * * UTC"),
            ("0 */24 * * *", "0 */24 * * * UTC"),
            ("0 */6,7 * * *", "0 */24,0,6-7,12,18 * * * UTC"),
            ("0 0-23 * * *", "0 0-23 * * * UTC"),
            ("0 0 1,2,3,9,L jan *", "0 0 1-3,9,L 1 * UTC"),
            ("0 0 * * L5,1#2,1#1", "0 0 * * 1#1,1#2,L5 UTC"),
        ],
    )
    def test_the_spec_of_a_crontab_is_a_crontab(self, expression: str, spec: str) -> None:
        assert Crontab(expression).spec == spec
        assert Crontab(spec.removesuffix(" UTC")).spec == spec

    @pytest.mark.parametrize(
        "schedule", [Every("1h"), Crontab("~ * L * 1").bind("t", NEW_YORK)], ids=repr
    )
    def test_schedules_are_immutable_and_survive_pickling(self, schedule: Schedule) -> None:
        for name in ("interval", "expression", "other"):
            with pytest.raises(AttributeError):
                setattr(schedule, name, "1 * * * *")
        restored = pickle.loads(pickle.dumps(schedule))
        assert restored == schedule == copy.deepcopy(schedule)
        assert due(restored, "2025-01-01", 3) == due(schedule, "2025-01-01", 3)

    def test_a_schedule_of_ones_own_needs_only_next_after(self) -> None:
        class Launch(Schedule):
            def __init__(self, minutes: int) -> None:
                self.minutes = minutes

            def next_after(self, after: datetime) -> datetime:
                return after + timedelta(minutes=self.minutes)

        schedule = parse_schedule(Launch(5)).bind("t", LONDON)
        assert due(schedule, "2025-01-01", 1) == ["2025-01-01 00:05+00:00"]
        assert schedule == Launch(5) != Launch(6)
        assert len({Launch(5), Launch(5), Launch(6)}) == 2
        assert "Launch" in schedule.spec
        assert "minutes=5" in schedule.spec

    def test_a_schedule_without_next_after_cannot_be_made(self) -> None:
        class Empty(Schedule):
            pass

        with pytest.raises(TypeError, match="next_after"):
            Empty()  # type: ignore[abstract]
