"""docs/guides/periodic.md: its table of clock changes is what happens, with USE_TZ on and off."""

from __future__ import annotations

import datetime
import itertools
import re
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from django.test import override_settings

from dbtasks import Periodic
from dbtasks.options import bound_periodic, parse_options

pytestmark = pytest.mark.once
GUIDE = Path(__file__).resolve().parent.parent / "docs" / "guides" / "periodic.md"
ROW = re.compile(r"^\| (\S+/\S+) \| `(.+)` \| (\d{4}-\d\d-\d\d) \| .+ \| (\d\d:\d\d|\d+ times) \|$")
ROWS = [match.groups() for line in GUIDE.read_text().splitlines() if (match := ROW.match(line))]


def due_on(zone: str, schedule: str, day: str) -> list[datetime.datetime]:
    """Every due time of that day in the zone."""
    entry = bound_periodic("a.task", Periodic(schedule, timezone=zone), parse_options("x", {})[0])
    first = datetime.datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone))
    after = first - datetime.timedelta(microseconds=1)
    found = []
    while (after := entry.next_after(after)).astimezone(ZoneInfo(zone)).date() == first.date():
        found.append(after)
    return found


def test_the_table_is_read() -> None:
    assert len(ROWS) == 12
    assert {row[0] for row in ROWS} == {
        "America/New_York",
        "Asia/Tokyo",
        "Australia/Lord_Howe",
        "Europe/London",
    }


@pytest.mark.parametrize("use_tz", [True, False])
@pytest.mark.parametrize(("zone", "schedule", "day", "told"), ROWS)
def test_what_the_table_says_happens(
    zone: str, schedule: str, day: str, told: str, use_tz: bool
) -> None:
    with override_settings(USE_TZ=use_tz, TIME_ZONE="America/New_York"):
        due = due_on(zone, schedule, day)
    if told.endswith(" times"):
        assert len(due) == int(told.removesuffix(" times"))
        assert {b - a for a, b in itertools.pairwise(due)} == {datetime.timedelta(minutes=15)}
    else:
        assert [moment.strftime("%H:%M") for moment in due] == [told]
