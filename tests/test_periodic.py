"""Periodic tasks: which occurrences a Timekeeper enqueues, and that it is each of them once."""

import contextlib
import datetime
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections
from django.tasks import TaskResultStatus, task_backends

from dbtasks import Every, Periodic, Schedule
from dbtasks.engines import NodeInfo
from dbtasks.ids import random_suffix
from dbtasks.models import Occurrence, PeriodicTask, ScheduledTask
from dbtasks.options import CLEANUP_PATH
from dbtasks.periodic.planner import Planner
from dbtasks.queues import select_queues
from dbtasks.runner import Runner
from dbtasks.schedule import ScheduleError
from dbtasks.timekeeper import Hooks, Timekeeper
from tests.test_backend import work_off
from tests.test_options import configured
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("db")
NOOP, ADD = "tests.app.tasks.noop", "tests.app.tasks.add"
MINUTE, HOUR, DAY = (datetime.timedelta(minutes=n) for n in (1, 60, 1440))
counter = itertools.count(1)


def broken_arguments() -> list[Any]:
    raise LookupError("no arguments today")


def next_number() -> list[int]:
    return [next(counter)]


def keeper(name: str = "node") -> Timekeeper:
    """The scheduler of a node that has just started, with the entries of the settings."""
    node = NodeInfo(random_suffix(), name, "host", 1, "test", 30.0)
    hooks = Hooks(work=lambda count: None, cleanup=lambda: None, workers=list)
    backend = task_backends["default"]
    entries = backend.parsed.periodic
    return Timekeeper(backend, node, select_queues(), hooks, capacity=1, periodic=entries)


def tick(keeper: Timekeeper) -> None:
    """A tick that looks at the entries, whenever it thinks that the next is due."""
    keeper._periodic_at = 0.0
    keeper.tick()


def tick_on(keeper: Timekeeper) -> int:
    """Ticks until nothing is enqueued any more; returns how many were."""
    before = -1
    while before < enqueued():
        before = enqueued()
        tick(keeper)
    return before


def review(keeper: Timekeeper) -> None:
    """A tick that looks at whose entries hold as well."""
    planner(keeper).deployment.review_at = float("-inf")
    tick(keeper)


def planner(keeper: Timekeeper) -> Planner:
    assert keeper.planner is not None
    return keeper.planner


def owe(keeper: Timekeeper, missed: datetime.timedelta) -> None:
    """As if no scheduler had run for so long."""
    since = now() - missed
    for name, entry in planner(keeper).entries.items():
        due = entry.next_or_none(since)
        PeriodicTask.objects.filter(name=name).update(since=since, next_due=due)


def deploy() -> Timekeeper:
    """A keeper whose entries the database knows."""
    first = keeper()
    tick(first)
    return first


def now() -> datetime.datetime:
    return task_backends["default"].engine.now()


def enqueued(name: str | None = None) -> int:
    rows = ScheduledTask.objects.exclude(periodic="")
    return (rows if name is None else rows.filter(periodic=name)).count()


class LastYear(Schedule):
    """A calendar without a future."""

    def next_after(self, after: datetime.datetime) -> datetime.datetime:
        raise ScheduleError("nothing is due any more")


class TestDue:
    def test_nothing_is_due_at_the_first_deploy(self) -> None:
        with configured(periodic={NOOP: Periodic("* * * * *", catch_up="all")}):
            tick(deploy())
        assert enqueued() == 0
        assert abs(PeriodicTask.objects.get().since - now()) < MINUTE

    def test_an_occurrence_is_enqueued_when_its_time_has_come(self) -> None:
        with configured(periodic={NOOP: Every("1s")}):
            first = deploy()
            assert enqueued() == 0
            wait_until(lambda: first.tick() >= 0 and enqueued())
        occurrence, row = Occurrence.objects.get(), ScheduledTask.objects.get()
        assert occurrence.name == row.periodic == NOOP
        assert occurrence.task_id == row.id
        assert occurrence.enqueued_by == "node"
        assert occurrence.due_at.microsecond == 0
        assert PeriodicTask.objects.get().last_due == occurrence.due_at

    def test_it_sleeps_until_the_next_is_due(self) -> None:
        with configured(periodic={NOOP: "0 0 1 1 *"}):
            first = deploy()
            assert first._periodic_at - first._look_at > 10

    def test_an_edit_enqueues_nothing_for_the_past(self) -> None:
        with configured(periodic={NOOP: "* * * * *"}):
            owe(deploy(), DAY)
        with configured(periodic={NOOP: "*/2 * * * *"}):
            tick(deploy())
            spec = task_backends["default"].parsed.periodic[0].spec
        assert enqueued() == 0
        state = PeriodicTask.objects.get()
        assert state.spec == spec
        assert abs(state.since - now()) < MINUTE

    def test_a_restart_with_the_same_schedule_goes_on_where_it_was(self) -> None:
        with configured(periodic={NOOP: Every("1h")}):
            owe(deploy(), 2 * HOUR)
            tick(keeper("another"))
        assert enqueued() == 1

    def test_a_keeper_that_drains_enqueues_nothing(self) -> None:
        with configured(periodic={NOOP: Every("1h")}):
            first = deploy()
            owe(first, 2 * HOUR)
            first.draining = True
            tick(first)
        assert enqueued() == 0


class TestCatchUp:
    def catch_up(self, how: str | None, missed: datetime.timedelta, **options: Any) -> int:
        entry = Periodic(Every("1m"), catch_up=how)
        with configured(periodic={NOOP: entry}, **options):
            first = deploy()
            owe(first, missed)
            return tick_on(first)

    def test_latest_runs_once_for_all_that_were_missed(self) -> None:
        assert self.catch_up(None, 10 * DAY) == 1
        assert now() - Occurrence.objects.get().due_at < 2 * MINUTE

    def test_all_runs_for_each(self) -> None:
        missed = self.catch_up("all", 5 * MINUTE)
        assert missed in (5, 6)
        due = list(Occurrence.objects.order_by("due_at").values_list("due_at", flat=True))
        assert {b - a for a, b in itertools.pairwise(due)} == {MINUTE}

    def test_all_reaches_back_a_day_at_most(self) -> None:
        assert self.catch_up("all", 3 * DAY) in (1440, 1441)
        assert Occurrence.objects.order_by("due_at")[0].due_at > now() - DAY - 2 * MINUTE

    def test_skip_runs_for_none_of_them(self) -> None:
        entry = Periodic(Every("1w"), catch_up="skip")
        with configured(periodic={NOOP: entry}):
            first = deploy()
            owe(first, 30 * DAY)
            tick(first)
            due = Occurrence.objects.values_list("due_at", flat=True)
            # This week's may be due right now.
            assert all(now() - moment < 2 * MINUTE for moment in due)

    def test_skip_takes_one_that_is_due_now(self) -> None:
        assert self.catch_up("skip", HOUR) == 1

    def test_the_default_comes_from_the_options(self) -> None:
        assert self.catch_up(None, 5 * MINUTE, catch_up="all") >= 5


class TestNodes:
    def test_two_nodes_that_race_enqueue_each_occurrence_once(self) -> None:
        with configured(periodic={NOOP: Periodic(Every("1s"), catch_up="all")}):
            owe(deploy(), datetime.timedelta(seconds=5))
            errors: list[BaseException] = []
            go = threading.Barrier(2)

            def race(name: str) -> None:
                try:
                    mine = keeper(name)
                    go.wait(10)
                    for _ in range(20):
                        tick(mine)
                except BaseException as error:
                    errors.append(error)
                finally:
                    connections.close_all()

            threads = [threading.Thread(target=race, args=(name,)) for name in ("a", "b")]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
        assert errors == []
        due = list(Occurrence.objects.order_by("due_at").values_list("due_at", flat=True))
        assert len(due) == len(set(due)) == enqueued() >= 5
        assert {b - a for a, b in itertools.pairwise(due)} == {datetime.timedelta(seconds=1)}

    def test_an_occurrence_that_exists_is_never_enqueued_again(self) -> None:
        with configured(periodic={NOOP: Every("1h")}):
            first = deploy()
            for _ in range(2):
                owe(first, 2 * HOUR)
                tick(first)
        assert enqueued() == Occurrence.objects.count() == 1


class TestEntries:
    def due_now(self, periodic: dict[str, Any], **options: Any) -> Timekeeper:
        """Each entry is due, once."""
        with configured(periodic=periodic, **options):
            first = deploy()
            owe(first, 2 * DAY)
            tick(first)
        return first

    def test_arguments_are_handed_on(self) -> None:
        self.due_now({ADD: Periodic(Every("1d"), args=[1], kwargs={"b": 2})})
        row = ScheduledTask.objects.get()
        assert (row.args, row.kwargs) == ([1], {"b": 2})
        work_off()
        row.refresh_from_db()
        assert row.return_value == 3

    def test_callables_are_called_at_each_enqueue(self) -> None:
        entry = Periodic(Every("1h"), args=next_number, kwargs=lambda: {"b": 1}, catch_up="all")
        with configured(periodic={ADD: entry}):
            first = deploy()
            owe(first, 3 * HOUR)
            tick(first)
        numbers = sorted(row.args[0] for row in ScheduledTask.objects.all())
        assert len(numbers) >= 3
        assert len(set(numbers)) == len(numbers)

    @pytest.mark.parametrize(
        ("entry", "told"),
        [
            (Periodic(Every("1d"), args=broken_arguments), "LookupError: no arguments today"),
            (Periodic(Every("1d"), args=lambda: [object()]), "builtins.object"),
            (Periodic(Every("1d"), kwargs=lambda: 3), "TypeError"),
        ],
        ids=["raises", "is no JSON", "is no mapping"],
    )
    def test_arguments_that_cannot_be_had_leave_a_failed_row(
        self, entry: Periodic, told: str
    ) -> None:
        self.due_now({ADD: entry, NOOP: Every("1d")}, retain_failed="1h")
        failed = ScheduledTask.objects.get(periodic=ADD)
        assert failed.status == TaskResultStatus.FAILED
        assert told in failed.errors[0]["traceback"]
        assert failed.delete_after is not None
        assert ScheduledTask.objects.get(periodic=NOOP).status == TaskResultStatus.READY
        assert Occurrence.objects.count() >= 2

    @pytest.mark.parametrize("path", ["no.such.module.task", "tests.app.broken.task", "os.getcwd"])
    def test_an_entry_whose_task_is_gone_fails_alone(self, path: str) -> None:
        self.due_now({path: Every("1d"), NOOP: Every("1d")})
        failed = ScheduledTask.objects.get(periodic=path)
        assert failed.status == TaskResultStatus.FAILED
        assert failed.task_path == path
        assert failed.errors
        assert ScheduledTask.objects.get(periodic=NOOP).status == TaskResultStatus.READY

    def test_a_schedule_that_has_come_to_its_end_harms_no_other(self) -> None:
        self.due_now({NOOP: LastYear(), ADD: Every("1d")})
        assert enqueued(NOOP) == 0
        assert enqueued(ADD) == 1

    def test_an_entry_has_its_own_retention(self) -> None:
        entries = [Periodic(Every("1d"), name="own", retain="1h"), Periodic(Every("1d"))]
        self.due_now({NOOP: entries, CLEANUP_PATH: "@yearly"}, retain="2h")
        work_off()
        kept = {
            row.periodic: row.delete_after - row.finished_at
            for row in ScheduledTask.objects.exclude(periodic=CLEANUP_PATH)
            if row.delete_after and row.finished_at
        }
        assert {name: round(k.total_seconds()) for name, k in kept.items()} == {
            "own": 3600,
            NOOP: 7200,
        }

    def test_an_entry_has_its_own_queue_and_priority(self) -> None:
        self.due_now({NOOP: Periodic(Every("1d"), queue="nightly", priority=-7)})
        row = ScheduledTask.objects.get()
        assert (row.queue, row.ready_queue, row.priority) == ("nightly", "nightly", -7)

    def test_two_schedules_of_one_task_are_two_entries(self) -> None:
        self.due_now({NOOP: [Every("1d"), Periodic(Every("6h"), name="often")]})
        assert enqueued(NOOP) == enqueued("often") == 1


class TestCleanup:
    def entries(self, **options: Any) -> dict[str, Periodic]:
        with configured(**options):
            return Runner().periodic

    @pytest.mark.parametrize(
        "options", [{"retain": "1d"}, {"retain": {NOOP: "1d"}}, {"retain_failed": "1d"}], ids=str
    )
    def test_it_is_there_when_anything_is_deleted_some_day(self, options: dict[str, Any]) -> None:
        assert self.entries(**options) == {CLEANUP_PATH: Periodic("~ * * * *")}

    @pytest.mark.parametrize("options", [{}, {"retain": None}, {"retain": {NOOP: None}}], ids=str)
    def test_it_is_not_there_when_nothing_is(self, options: dict[str, Any]) -> None:
        assert self.entries(**options) == {}

    def test_a_schedule_of_the_projects_own_takes_its_place(self) -> None:
        own = {CLEANUP_PATH: "0 4 * * *"}
        assert self.entries(retain="1d", periodic=own) == {CLEANUP_PATH: Periodic("0 4 * * *")}

    def test_its_minute_is_the_same_on_every_node(self) -> None:
        specs = set()
        for _ in range(2):
            with configured(retain="1d"):
                specs.add(task_backends["default"].parsed.periodic[0].spec)
        assert len(specs) == 1
        assert "~" not in specs.pop()

    def test_it_runs_on_a_backend_without_a_default_queue(self) -> None:
        with configured(queues=("email", "sms"), retain="1d"):
            first = deploy()
            owe(first, DAY)
            tick(first)
            assert ScheduledTask.objects.get().queue == "email"
            work_off()
        assert ScheduledTask.objects.get().return_value == {"deleted": 0}


def test_a_node_that_finds_the_lock_taken_looks_again_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @contextlib.contextmanager
    def taken(self: Any, name: str) -> Iterator[bool]:
        yield False

    with configured(periodic={NOOP: Every("1h")}):
        first = deploy()
        owe(first, 2 * HOUR)
        with monkeypatch.context() as patched:
            patched.setattr(type(first.engine), "locked", taken)
            tick(first)
        assert enqueued() == 0
        wait_until(lambda: first.tick() >= 0 and enqueued() == 1)


def test_a_scheduler_that_drains_does_not_wait_for_what_it_does_not_read() -> None:
    """Else each write by others would wake it, again and again, until the drain is over."""
    mine = keeper()
    mine.tick()
    assert mine.fileno() == mine.watcher.fileno()
    mine.draining = True
    mine.tick()
    assert mine.fileno() is None
