"""Where there are many periodic entries, they are prepared a second ahead of their due time."""

import time
from collections.abc import Iterator

import pytest

from dbtasks import Periodic, periodic
from dbtasks.models import Occurrence, ScheduledTask
from dbtasks.periodic import planner
from dbtasks.timekeeper import Timekeeper
from tests.clock import VirtualClock, virtual_clock
from tests.test_options import configured
from tests.test_periodic import ADD, HOUR, NOOP, enqueued, keeper, tick

pytestmark = pytest.mark.usefixtures("clock")


@pytest.fixture
def clock(db: None) -> Iterator[VirtualClock]:
    with virtual_clock() as clock:
        yield clock


@pytest.fixture
def node(clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> Timekeeper:
    """It is half a second before one o'clock, and the hourly entry is prepared."""
    monkeypatch.setattr(planner, "CROWD", 0)
    periodic.schedule("report", NOOP, "1h")
    node = keeper()
    node.tick()
    clock.set(clock.at.replace(hour=12, minute=59, second=59, microsecond=500_000))
    node.look()
    assert node._periodic_at <= time.monotonic()
    node.tick()
    assert prepared(node) == ["report"]
    assert enqueued() == 0
    return node


def prepared(node: Timekeeper) -> list[str]:
    assert node.planner is not None
    return [each.row.name for each in node.planner._foreseen.values()]


def strike_one(node: Timekeeper, clock: VirtualClock) -> None:
    clock.set(clock.at.replace(hour=13, minute=0, second=0, microsecond=1000))
    tick(node)


def test_what_was_prepared_is_enqueued_when_it_is_due(
    node: Timekeeper, clock: VirtualClock
) -> None:
    assert node.planner is not None
    (ready,) = node.planner._foreseen.values()
    node.look()
    assert node._periodic_at > time.monotonic()  # it does not prepare it twice
    strike_one(node, clock)
    row = ScheduledTask.objects.get()
    assert row.id.hex == ready.occurrences[0].row.id
    assert row.enqueued_at == clock.at
    assert Occurrence.objects.get().due_at == clock.at.replace(microsecond=0)


def test_an_edit_in_the_last_moment_counts(node: Timekeeper, clock: VirtualClock) -> None:
    periodic.schedule("report", ADD, "1h", args=[5])
    strike_one(node, clock)
    assert ScheduledTask.objects.get().args == [5]


def test_a_node_that_slept_catches_up_as_ever(node: Timekeeper, clock: VirtualClock) -> None:
    clock.advance(5 * HOUR)
    tick(node)
    assert Occurrence.objects.get().due_at == clock.at.replace(minute=0, second=0, microsecond=0)


def test_callables_are_not_called_before_the_time(
    clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "CROWD", 0)
    with configured(periodic={ADD: Periodic("1h", args=lambda: [clock.at.hour])}):
        node = keeper()
        node.tick()
        clock.set(clock.at.replace(hour=12, minute=59, second=59, microsecond=500_000))
        node.look()
        node.tick()
        assert prepared(node) == []
        strike_one(node, clock)
    assert ScheduledTask.objects.get().args == [13]
