"""Where there are many periodic entries, they are prepared and written ahead of their due time."""

import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from django.db import DataError

from dbtasks import Periodic, periodic
from dbtasks.engines import NewOccurrence, PeriodicRow
from dbtasks.models import Occurrence, ScheduledTask
from dbtasks.periodic import foresight as foresight_module
from dbtasks.periodic import planner
from dbtasks.periodic.foresight import Foresight, Prepared
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
    begin(node, clock)
    assert node._periodic_at <= time.monotonic()
    node.tick()
    assert prepared(node) == ["report"]
    assert enqueued() == 0
    return node


def begin(node: Timekeeper, clock: VirtualClock) -> None:
    """It starts, and then it is half a second before one o'clock."""
    node.tick()
    clock.set(clock.at.replace(hour=12, minute=59, second=59, microsecond=500_000))
    node.look()


def look_ahead(node: Timekeeper, clock: VirtualClock) -> None:
    begin(node, clock)
    node.tick()


def foresight(node: Timekeeper) -> Foresight:
    assert node.planner is not None
    return node.planner.foresight


def prepared(node: Timekeeper) -> list[str]:
    return [each.row.name for each in foresight(node).prepared]


def write_ahead(node: Timekeeper, clock: VirtualClock, sleep: Callable[[float], None]) -> None:
    """A tick a millisecond before one o'clock; `sleep` is the wait for it."""
    clock.set(clock.at.replace(hour=12, minute=59, second=59, microsecond=999_000))
    foresight(node).sleep = sleep
    node.look()
    tick(node)


def strike_one(node: Timekeeper, clock: VirtualClock) -> None:
    clock.set(clock.at.replace(hour=13, minute=0, second=0, microsecond=1000))
    node.look()
    tick(node)


def test_what_was_prepared_is_enqueued_when_it_is_due(
    node: Timekeeper, clock: VirtualClock
) -> None:
    (ready,) = foresight(node).prepared
    node.look()
    assert node._periodic_at > time.monotonic()  # it does not prepare it twice
    strike_one(node, clock)
    row, occurrence = ScheduledTask.objects.get(), Occurrence.objects.get()
    assert row.id.hex == ready.occurrences[0].row.id
    assert row.enqueued_at == occurrence.enqueued_at == clock.at
    assert occurrence.due_at == clock.at.replace(microsecond=0)


def test_what_is_written_ahead_waits_for_its_time(node: Timekeeper, clock: VirtualClock) -> None:
    one = clock.at.replace(hour=13, minute=0, second=0, microsecond=0)
    waits: list[float] = []

    def wake_early_once(seconds: float) -> None:
        waits.append(seconds)
        clock.set(one if len(waits) > 1 else clock.at + (one - clock.at) / 2)

    write_ahead(node, clock, wake_early_once)
    assert waits == [0.001, 0.0005]
    row, occurrence = ScheduledTask.objects.get(), Occurrence.objects.get()
    assert row.enqueued_at == occurrence.enqueued_at == occurrence.due_at == one
    strike_one(node, clock)
    assert enqueued() == 1


def test_what_is_written_ahead_is_undone_if_the_clock_is_set_back(
    node: Timekeeper, clock: VirtualClock
) -> None:
    write_ahead(node, clock, lambda seconds: clock.advance(-HOUR))
    assert (enqueued(), Occurrence.objects.count()) == (0, 0)
    strike_one(node, clock)
    assert enqueued() == Occurrence.objects.count() == 1


def test_what_is_written_ahead_is_undone_if_the_clock_jumps_past_the_next(
    node: Timekeeper, clock: VirtualClock
) -> None:
    write_ahead(node, clock, lambda seconds: clock.advance(3 * HOUR))
    clock.set(clock.at)  # what the transaction did to the clock was undone with it
    tick(node)  # it makes up for what the jump has missed: the latest only
    assert enqueued() == Occurrence.objects.count() == 1


def test_a_clock_that_stands_is_not_waited_for(node: Timekeeper, clock: VirtualClock) -> None:
    waits: list[float] = []
    write_ahead(node, clock, waits.append)
    assert len(waits) == foresight_module.QUESTIONS
    assert (enqueued(), Occurrence.objects.count()) == (0, 0)


def test_an_entry_that_must_not_overlap_is_judged_when_it_is_due(
    clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "CROWD", 0)
    periodic.schedule("report", NOOP, "1h", overlap="skip")
    node = keeper()
    look_ahead(node, clock)
    assert prepared(node) == []
    strike_one(node, clock)
    assert enqueued() == 1


def test_two_nodes_that_write_ahead_enqueue_once(node: Timekeeper, clock: VirtualClock) -> None:
    other = keeper("other")
    other.tick()
    other.look()
    other.tick()
    assert prepared(other) == ["report"]
    write_ahead(node, clock, lambda seconds: clock.advance(HOUR / 3600))
    tick(other)
    assert enqueued() == Occurrence.objects.count() == 1


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
        look_ahead(node, clock)
        assert prepared(node) == []
        strike_one(node, clock)
    assert ScheduledTask.objects.get().args == [13]


def test_an_entry_that_the_database_refuses_keeps_back_no_other(
    clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "CROWD", 0)
    for name in ("bad", "good"):
        periodic.schedule(name, NOOP, "1h")
    node = keeper()
    look_ahead(node, clock)
    insert = node.engine.enqueue_occurrences

    def refuses_one(new: Sequence[NewOccurrence], name: str) -> list[NewOccurrence]:
        if any(each.name == "bad" for each in new):
            raise DataError("smallint out of range")
        return insert(new, name)

    monkeypatch.setattr(node.engine, "enqueue_occurrences", refuses_one)
    write_ahead(node, clock, lambda seconds: clock.advance(HOUR / 3600))
    assert enqueued() == 0
    strike_one(node, clock)
    assert ScheduledTask.objects.get().periodic == "good"


def test_an_entry_that_cannot_be_prepared_keeps_back_no_other(
    clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "CROWD", 0)
    for name in ("bad", "good"):
        periodic.schedule(name, NOOP, "1h")
    node = keeper()
    prepare = node.planner.prepare_ahead  # type: ignore[union-attr]

    def fails_for_one(row: PeriodicRow) -> Prepared | None:
        if row.name == "bad":
            raise OverflowError("date value out of range")
        return prepare(row)

    monkeypatch.setattr(node.planner, "prepare_ahead", fails_for_one)
    look_ahead(node, clock)
    assert prepared(node) == ["good"]
    strike_one(node, clock)
    assert enqueued() == 2
