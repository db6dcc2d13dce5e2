"""Periodic entries at run time: dbtasks.periodic.schedule and its siblings, as nodes see it."""

import datetime
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import transaction
from django.tasks import TaskResultStatus, task_backends

from dbtasks import Crontab, Every, Periodic, periodic
from dbtasks.engines import Claimant
from dbtasks.models import Occurrence, PeriodicTask, ScheduledTask
from dbtasks.periodic import PeriodicError
from dbtasks.queues import select_queues
from tests.app import tasks
from tests.clock import VirtualClock, virtual_clock
from tests.engines import outcome_of
from tests.test_options import configured
from tests.test_periodic import (
    ADD,
    DAY,
    HOUR,
    MINUTE,
    NOOP,
    enqueued,
    keeper,
    now,
    owe,
    tick,
    tick_on,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("db", "clock")
DAILY = {NOOP: Periodic("0 4 * * *", name="nightly")}


@pytest.fixture
def clock(db: None) -> Iterator[VirtualClock]:
    with virtual_clock() as clock:
        yield clock


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    with configured(periodic=DAILY):
        yield


def entry(name: str = "report") -> periodic.Entry:
    (found,) = [each for each in periodic.entries() if each.name == name]
    return found


def names() -> list[str]:
    return [each.name for each in periodic.entries()]


def overdue(name: str, missed: datetime.timedelta = HOUR) -> None:
    """As if no scheduler had run for so long."""
    since = now() - missed
    bound = entry(name).bound
    assert bound is not None
    due = bound.next_after(since)
    PeriodicTask.objects.filter(name=name).update(since=since, next_due=due)


def finish_all() -> None:
    engine, who = task_backends["default"].engine, Claimant("node", "worker")
    engine.finish([outcome_of(row, who) for row in engine.claim(who, select_queues(), 100)])


class TestSchedule:
    def test_an_entry_is_made_and_runs(self) -> None:
        made = periodic.schedule("report", tasks.add, "1h", args=[1], kwargs={"b": 2}, queue="slow")
        assert (made.task_path, made.origin, made.schedule) == (ADD, "database", "1h")
        assert (made.args, made.kwargs, made.queue) == ([1], {"b": 2}, "slow")
        assert made.next_due is not None
        assert now() < made.next_due <= now() + HOUR
        assert made == entry()
        overdue("report")
        tick(keeper())
        row = ScheduledTask.objects.get()
        assert (row.periodic, row.args, row.kwargs, row.queue) == ("report", [1], {"b": 2}, "slow")
        assert (entry().last_status, entry().last_node) == (TaskResultStatus.READY, "node")

    @pytest.mark.parametrize(
        ("schedule", "text"),
        [
            (" 5 4 * * mon ", "5 4 * * mon"),
            ("@daily", "@daily"),
            (90, "1m30s"),
            (Every("2h"), "2h"),
            (Crontab("~ 3 * * *"), "~ 3 * * *"),
        ],
        ids=str,
    )
    def test_what_settings_take_is_taken_but_as_text(self, schedule: Any, text: str) -> None:
        made = periodic.schedule("report", NOOP, schedule, timezone="Europe/Berlin")
        assert (made.schedule, made.timezone) == (text, "Europe/Berlin")
        coming = list(made.coming(3))
        assert coming[0] == made.next_due
        assert coming == sorted(set(coming))

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"schedule": "61 * * * *"}, "61"),
            ({"schedule": "0 0 30 2 *"}, "cannot occur"),
            ({"schedule": ""}, "is not a schedule"),
            ({"schedule": type("Own", (Every,), {})("1h")}, "can only stand in settings"),
            ({"task": "tests.app.tasks.missing"}, "cannot be imported"),
            ({"task": "os.getcwd"}, "not a task"),
            ({"name": ""}, "name must be"),
            ({"name": "x" * 256}, "255"),
            ({"args": [object()]}, "JSON"),
            ({"args": "ab"}, "args must be a list"),
            ({"args": list}, "callables can only stand in settings"),
            ({"kwargs": [1]}, "kwargs must be a mapping"),
            ({"timezone": "Mars/Olympus"}, "timezone"),
            ({"timezone": datetime.timezone(HOUR)}, "timezone must be a name"),
            ({"catch_up": "some"}, "catch_up must be one of"),
            ({"catch_up_window": "0s"}, "catch_up_window"),
            ({"catch_up_window": "9999d"}, "at most 366 days"),
            ({"overlap": "maybe"}, "overlap must be one of"),
            ({"retain": "soon"}, "retain"),
            ({"priority": 101}, "priority"),
            ({"queue": "a*"}, "queue_name"),
        ],
        ids=str,
    )
    def test_what_cannot_be_meant_is_refused_and_changes_nothing(
        self, change: dict[str, Any], told: str
    ) -> None:
        periodic.schedule("report", NOOP, "1h")
        before = list(PeriodicTask.objects.values())
        with pytest.raises((ValueError, TypeError), match=re.escape(told)):
            periodic.schedule(**{"name": "report", "task": NOOP, "schedule": "1d"} | change)
        assert list(PeriodicTask.objects.values()) == before

    def test_an_edit_runs_for_no_time_in_the_past(self) -> None:
        periodic.schedule("report", NOOP, "1h", catch_up="all")
        overdue("report", DAY)
        periodic.schedule("report", NOOP, "30m", catch_up="all")
        tick(keeper())
        assert enqueued() == 0

    def test_the_same_schedule_again_goes_on_where_it_was(self) -> None:
        periodic.schedule("report", NOOP, "1h", catch_up="all")
        overdue("report", 3 * HOUR)
        periodic.schedule("report", NOOP, "1h", catch_up="all", priority=5)
        assert tick_on(keeper()) == 3
        assert set(ScheduledTask.objects.values_list("priority", flat=True)) == {5}

    def test_it_is_part_of_the_callers_transaction(self) -> None:
        with transaction.atomic():
            periodic.schedule("report", NOOP, "1h")
            assert names() == ["report"]
            transaction.set_rollback(True)
        assert names() == []

    def test_other_nodes_follow_within_two_seconds_without_being_told(
        self, clock: VirtualClock
    ) -> None:
        other = keeper()
        other.tick()
        assert other._periodic_at - time.monotonic() > 10
        assert other._look_at - time.monotonic() < 2
        periodic.schedule("report", NOOP, "1s")
        clock.advance(MINUTE)
        wait_until(lambda: other.tick() >= 0 and enqueued("report"), 30)


class TestUnschedule:
    def test_it_stops_at_once_and_its_history_stays(self) -> None:
        periodic.schedule("report", NOOP, "1h")
        overdue("report")
        node = keeper()
        tick(node)
        overdue("report")
        periodic.unschedule("report")
        tick(node)
        assert names() == ["nightly"]
        assert Occurrence.objects.count() == enqueued() == 1

    def test_an_entry_from_settings_can_only_be_paused(self) -> None:
        tick(keeper())
        for refused in (
            lambda: periodic.unschedule("nightly"),
            lambda: periodic.schedule("nightly", NOOP, "1h"),
        ):
            with pytest.raises(PeriodicError, match=r"is from OPTIONS\['periodic'\]"):
                refused()
        assert entry("nightly").schedule == "0 4 * * *"

    @pytest.mark.parametrize(
        "action",
        [periodic.unschedule, periodic.pause, periodic.resume, periodic.run_now],
        ids=lambda action: action.__name__,
    )
    def test_a_name_that_does_not_exist_is_told_with_those_that_do(
        self, action: Callable[[str], Any]
    ) -> None:
        periodic.schedule("report", NOOP, "1h")
        with pytest.raises(PeriodicError, match="no periodic entry 'rapport'; there are: 'report'"):
            action("rapport")


class TestPause:
    @pytest.mark.parametrize("name", ["report", "nightly"])
    def test_nothing_runs_during_a_pause_and_nothing_for_it_afterwards(self, name: str) -> None:
        node = keeper()
        tick(node)
        periodic.schedule("report", NOOP, "1h", catch_up="all")
        overdue(name, 2 * DAY)
        paused = periodic.pause(name)
        assert (paused.paused, paused.next_due) == (True, None)
        assert periodic.pause(name) == paused
        tick(node)
        resumed = periodic.resume(name)
        assert (resumed.paused, resumed.next_due is None) == (False, False)
        assert periodic.resume(name) == resumed
        tick(node)
        assert enqueued(name) == 0

    def test_a_pause_outlives_a_restart_and_an_edit(self) -> None:
        tick(keeper())
        periodic.pause("nightly")
        with configured(periodic={NOOP: Periodic("0 5 * * *", name="nightly")}):
            tick(keeper())
            found = entry("nightly")
            assert (found.schedule, found.paused, found.next_due) == ("0 5 * * *", True, None)
            assert periodic.resume("nightly").next_due is not None

    def test_a_tick_that_has_prepared_notices_a_pause(self) -> None:
        """The pause comes between its look and its lock."""
        periodic.schedule("report", NOOP, "1h")
        overdue("report")
        node = keeper()
        ours = node.planner
        assert ours is not None
        ours.review()
        clock, rows = node.engine.periodic_due()
        assert clock is not None
        prepared, _ = ours.prepare_all(rows, clock)
        periodic.pause("report")
        assert ours.enqueue(prepared, clock)
        assert enqueued() == 0


class TestRunNow:
    def test_it_runs_once_beside_its_due_times(self) -> None:
        tick(keeper())
        due = entry("nightly").next_due
        periodic.pause("nightly")
        result = periodic.run_now("nightly")
        assert result.status == TaskResultStatus.READY
        assert (entry("nightly").last_task, entry("nightly").last_due) == (result.id, None)
        periodic.resume("nightly")
        assert entry("nightly").next_due == due
        assert str(Occurrence.objects.get().task_id) == result.id

    def test_arguments_are_those_of_the_entry(self) -> None:
        with configured(periodic={ADD: Periodic("@daily", args=lambda: [7])}):
            tick(keeper())
            periodic.run_now(ADD)
        assert ScheduledTask.objects.get().args == [7]

    def test_it_does_not_overlap_either(self) -> None:
        periodic.schedule("report", NOOP, "1h", overlap="skip")
        first = periodic.run_now("report")
        with pytest.raises(PeriodicError, match=rf"its last run {first.id} is still READY"):
            periodic.run_now("report")
        finish_all()
        periodic.run_now("report")
        assert enqueued() == 2


class TestOverlap:
    def test_no_new_run_while_the_one_before_is_not_finished(self) -> None:
        periodic.schedule("report", NOOP, "1h", overlap="skip")
        node = keeper()
        overdue("report", HOUR)
        tick(node)
        (first,) = Occurrence.objects.all()
        assert first.skipped == ""
        # Two hours later it still waits, and then it runs.
        Occurrence.objects.update(due_at=now() - 2 * DAY)
        overdue("report", HOUR)
        tick(node)
        (second,) = Occurrence.objects.exclude(skipped="")
        assert (second.skipped, second.task_id) == ("the run before is still READY", first.task_id)
        Occurrence.objects.filter(pk=second.pk).update(due_at=now() - DAY)
        task_backends["default"].engine.claim(Claimant("n", "w"), select_queues())
        overdue("report", HOUR)
        tick(node)
        assert Occurrence.objects.filter(skipped="the run before is still RUNNING").count() == 1
        assert enqueued() == 1
        assert entry().last_task == str(first.task_id)

    def test_the_next_one_runs_when_it_has_ended(self) -> None:
        periodic.schedule("report", NOOP, "1h", overlap="skip", catch_up="all")
        node = keeper()
        overdue("report", 3 * HOUR)
        tick(node)
        assert Occurrence.objects.filter(skipped="").count() == enqueued() == 1
        assert Occurrence.objects.exclude(skipped="").count() == 2
        finish_all()
        Occurrence.objects.all().delete()
        overdue("report", HOUR)
        tick(node)
        assert enqueued() == 2

    def test_settings_say_it_too_and_the_default_is_to_overlap(self) -> None:
        entries = {NOOP: [Periodic(Every("1h"), overlap="skip"), Periodic(Every("1h"), name="b")]}
        with configured(periodic=entries, catch_up="all"):
            node = keeper()
            tick(node)
            owe(node, 3 * HOUR)
            tick(node)
        assert (enqueued(NOOP), enqueued("b")) == (1, 3)


class TestEntries:
    def test_both_origins_are_listed_by_name_with_what_they_say(self) -> None:
        periodic.schedule("Report", NOOP, "1h", catch_up="all", catch_up_window="2d", retain="1h")
        tick(keeper())
        assert names() == ["Report", "nightly"]
        found = entry("Report")
        assert (found.catch_up, found.catch_up_window, found.retain) == ("all", 172800.0, 3600.0)
        assert (found.last_due, found.last_status, found.last_node) == (None, None, "")
        assert (entry("nightly").origin, entry("nightly").timezone) == ("settings", "UTC")

    def test_what_only_settings_can_say_is_listed_by_its_own_name(self) -> None:
        class Tides(Every):
            @property
            def spec(self) -> str:
                return "tides"

        with configured(periodic={NOOP: Tides("1h")}):
            tick(keeper())
            assert entry(NOOP).schedule == "tides"
            assert len(list(entry(NOOP).coming(2))) == 2
        with pytest.raises(PeriodicError, match="only the settings which define it know"):
            list(entry(NOOP).coming(2))
        periodic.pause(NOOP)
        with pytest.raises(PeriodicError, match="where these settings are in use"):
            periodic.resume(NOOP)

    def test_a_row_that_makes_no_sense_harms_no_other(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        for name in ("bad", "good"):
            periodic.schedule(name, NOOP, "1h")
            overdue(name)
        PeriodicTask.objects.filter(name="bad").update(schedule="nonsense", timezone="No/Where")
        node = keeper()
        tick(node)
        tick(node)
        assert (enqueued("bad"), enqueued("good")) == (0, 1)
        told = [each for each in caplog.records if "bad cannot be scheduled" in each.message]
        assert len(told) == 1
        assert node._periodic_at > node._renew_at - 11  # it does not spin

    def test_an_unknown_attribute_is_named(self) -> None:
        with pytest.raises(AttributeError, match="no attribute 'reschedule'"):
            periodic.reschedule  # noqa: B018
