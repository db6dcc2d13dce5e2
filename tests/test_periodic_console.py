"""`manage.py dbtasks periodic`: the entries, their coming due times, and three actions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dbtasks import Periodic, periodic
from dbtasks.models import ScheduledTask
from tests.clock import VirtualClock, virtual_clock
from tests.test_console import dbtasks
from tests.test_options import configured
from tests.test_periodic import NOOP, keeper, tick

pytestmark = pytest.mark.usefixtures("clock")


@pytest.fixture
def clock(db: None) -> Iterator[VirtualClock]:
    """Two entries, one of each origin; it is a Wednesday in March 2031, 12:34:56 UTC."""
    nightly = Periodic("30 2 * * *", name="nightly", timezone="Europe/London", overlap="skip")
    with virtual_clock() as clock, configured(periodic={NOOP: nightly}):
        tick(keeper("east"))
        periodic.schedule("report", NOOP, "1h")
        yield clock


def test_entries_are_listed_with_their_next_and_last_runs(clock: VirtualClock) -> None:
    first, second = dbtasks("periodic").lines
    london = ["Europe/London", "2031-03-13T02:30:00+00:00", "", "", ""]
    assert first == ["nightly", "30 2 * * *", *london, "latest", "skip", "settings", NOOP]
    utc = ["UTC", "2031-03-12T13:00:00+00:00", "", "", ""]
    assert second == ["report", "1h", *utc, "latest", "allow", "database", NOOP]
    clock.set(clock.at.replace(hour=13))
    tick(keeper("east"))
    (third,) = dbtasks("periodic", "report").lines
    assert third[3:7] == [
        "2031-03-12T14:00:00+00:00",
        "2031-03-12T13:00:00+00:00",
        "READY",
        "east",
    ]
    shown = dbtasks("periodic", terminal=True).out
    assert shown.splitlines()[0].split()[:4] == ["NAME", "SCHEDULE", "ZONE", "NEXT"]
    assert dbtasks("periodic", "--json").json[0]["name"] == "nightly"


def test_coming_due_times_are_in_the_entrys_zone() -> None:
    said = dbtasks("periodic", "--next", 18, "nightly")
    assert len(said.lines) == 18
    # The clocks of London go forward on the 30th, at one o'clock.
    assert said.lines[-2:] == [
        ["2031-03-29T02:30:00+00:00", "2031-03-29T02:30:00+00:00"],
        ["2031-03-30T02:30:00+01:00", "2031-03-30T01:30:00+00:00"],
    ]


def test_an_entry_is_paused_resumed_and_run() -> None:
    assert dbtasks("periodic", "pause", "nightly").lines == [["nightly", "pause", ""]]
    assert dbtasks("periodic", "nightly").lines[0][3] == "paused"
    assert dbtasks("periodic", "--next", 3, "nightly").code == 1
    told = dbtasks("periodic", "resume", "nightly", terminal=True).out
    assert told == "nightly is due next at 2031-03-13 02:30:00+00:00\n"
    said = dbtasks("periodic", "run-now", "nightly", "--json").json
    row = ScheduledTask.objects.get()
    assert said == {"name": "nightly", "done": "run-now", "result": str(row.id)}
    refused = dbtasks("periodic", "run-now", "nightly")
    assert (refused.code, "is still READY" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nobody"], "there is no periodic entry 'nobody'"),
        (["pause", "nobody"], "there are: 'nightly', 'report'"),
        (["resume"], "resume needs the NAME"),
        (["--next", "3"], "--next needs the NAME"),
        (["--next", "0", "report"], "--next must be at least 1"),
        (["nightly", "report"], "one NAME at a time"),
    ],
    ids=str,
)
def test_wrong_usage_is_told(words: list[str], told: str) -> None:
    said = dbtasks("periodic", *words)
    assert said.code == 2
    assert told in said.err


def test_without_entries_it_lists_nothing() -> None:
    periodic.unschedule("report")
    with configured(periodic={}):
        tick(keeper())
    assert dbtasks("periodic")[:2] == (1, "")
