"""Retention: which finished rows are deleted, when, and by whom."""

import datetime
import time
from typing import Any

import pytest
from django.tasks import TaskResultStatus, default_task_backend, task_backends
from django.utils import timezone

from dbtasks.models import Occurrence, ScheduledTask
from dbtasks.retention import OCCURRENCE_DAYS, prune, stop_when
from dbtasks.runner import cleanup
from dbtasks.testing import running
from tests.app import tasks
from tests.test_backend import work_off
from tests.test_options import configured
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("db")
HOUR = datetime.timedelta(hours=1)


def kept_for(path: str) -> float | None:
    """Seconds for which the finished row of that task is kept; None: forever."""
    row = ScheduledTask.objects.get(task_path=path)
    assert row.finished_at is not None
    return row.delete_after and round((row.delete_after - row.finished_at).total_seconds())


def expire() -> None:
    """The time of every row that has one is over."""
    rows = ScheduledTask.objects.filter(delete_after__isnull=False)
    rows.update(delete_after=timezone.now() - HOUR)


def expired_rows(count: int) -> None:
    default_task_backend.enqueue_all([(tasks.noop, [], {})] * count)
    ScheduledTask.objects.update(
        status="SUCCESSFUL", ready_queue=None, delete_after=timezone.now() - HOUR
    )


class TestHowLong:
    @pytest.mark.parametrize(
        ("options", "noop", "add", "fail"),
        [
            ({}, None, None, None),
            ({"retain": "1h"}, 3600, 3600, 3600),
            ({"retain": "1h", "retain_failed": "2h"}, 3600, 3600, 7200),
            ({"retain_failed": "2h"}, None, None, 7200),
            ({"retain": {"*": "1h", "tests.app.tasks.add": "5s"}}, 3600, 5, 3600),
            ({"retain": {"*": "1h", "tests.app.tasks.add": None}}, 3600, None, 3600),
            ({"retain": {"tests.app.tasks.add": 5}}, None, 5, None),
            ({"retain": 0}, 0, 0, 0),
        ],
        ids=str,
    )
    def test_options_say_how_long(
        self, options: dict[str, Any], noop: float | None, add: float | None, fail: float | None
    ) -> None:
        with configured(**options):
            default_task_backend.enqueue_all(
                [(tasks.noop, [], {}), (tasks.add, [1], {}), (tasks.fail, [], {})]
            )
            work_off()
        assert kept_for("tests.app.tasks.noop") == noop
        assert kept_for("tests.app.tasks.add") == add
        assert kept_for("tests.app.tasks.fail") == fail

    def test_a_task_says_it_for_itself_and_wins(self) -> None:
        with configured(retain={"*": "1h", "tests.app.tasks.noop": "2h"}):
            tasks.noop.using(retain="3h").enqueue()
            work_off()
        assert kept_for("tests.app.tasks.noop") == 3 * 3600

    def test_what_held_at_enqueue_holds(self) -> None:
        with configured(retain="1h"):
            tasks.noop.enqueue()
        work_off()
        assert kept_for("tests.app.tasks.noop") == 3600

    def test_an_unfinished_row_has_no_end(self) -> None:
        with configured(retain="1h"):
            result = tasks.noop.enqueue()
        assert ScheduledTask.objects.get(pk=result.id).delete_after is None


class TestCleanup:
    def test_the_task_returns_how_many_it_deleted(self) -> None:
        expired_rows(7)
        result = cleanup.enqueue()
        work_off()
        result.refresh()
        assert result.return_value == {"deleted": 7}
        assert ScheduledTask.objects.count() == 1

    def test_rows_without_an_end_or_before_it_stay(self) -> None:
        expired_rows(3)
        forever, later = ScheduledTask.objects.all()[:2]
        ScheduledTask.objects.filter(pk=forever.pk).update(delete_after=None)
        ScheduledTask.objects.filter(pk=later.pk).update(delete_after=timezone.now() + HOUR)
        assert prune(default_task_backend.engine) == 1
        assert set(ScheduledTask.objects.values_list("pk", flat=True)) == {forever.pk, later.pk}

    def test_it_deletes_in_batches_until_nothing_is_left(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expired_rows(25)
        batches: list[int] = []
        engine = type(default_task_backend.engine)
        one_batch = engine.prune

        def prune_and_tell(self: Any, limit: int = 1000) -> int:
            batches.append(one_batch(self, limit))
            return batches[-1]

        monkeypatch.setattr(engine, "prune", prune_and_tell)
        assert prune(default_task_backend.engine, batch=10) == 25
        assert batches == [10, 10, 5]

    def test_it_stops_between_two_batches_when_told_to(self) -> None:
        expired_rows(25)
        answers = iter([False, True])
        assert prune(default_task_backend.engine, lambda: next(answers), batch=10) == 10
        stop_when(lambda: True)
        try:
            assert prune(default_task_backend.engine, batch=10) == 0
        finally:
            stop_when(lambda: False)

    def test_occurrences_outlive_their_tasks_by_more_than_a_year(self) -> None:
        assert OCCURRENCE_DAYS > 366
        for days in (1, OCCURRENCE_DAYS - 1, OCCURRENCE_DAYS + 1):
            Occurrence.objects.create(
                backend="default",
                name="x",
                due_at=timezone.now() - datetime.timedelta(days=days),
                task_id="0" * 32,
                enqueued_at=timezone.now(),
            )
        prune(default_task_backend.engine)
        assert Occurrence.objects.count() == 2

    def test_it_leaves_the_rows_of_other_backends(self) -> None:
        expired_rows(2)
        ScheduledTask.objects.filter(pk=ScheduledTask.objects.all()[0].pk).update(backend="other")
        assert prune(default_task_backend.engine) == 1


class TestRunner:
    def test_a_runner_deletes_what_is_past_its_retention(self) -> None:
        with configured(retain=0, heartbeat="0.1s"):
            tasks.noop.enqueue()
            with running(workers=1):
                wait_until(lambda: not ScheduledTask.objects.exists())

    def test_a_runner_that_has_much_to_delete_keeps_its_lease(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Retention is done in the thread that renews it."""
        expired_rows(300)
        monkeypatch.setattr(prune, "__defaults__", (None, 1))  # batches of one row
        left_at_renewals: list[int] = []
        with configured(retain="1h", heartbeat="0.1s"):
            engine = task_backends["default"].engine
            delete, renew = engine.prune, engine.renew_lease

            def take_time(limit: int) -> int:
                """In all for longer than some heartbeats, however fast the database is."""
                time.sleep(0.003)
                return int(delete(limit))

            def note(*arguments: Any) -> None:
                left_at_renewals.append(ScheduledTask.objects.count())
                renew(*arguments)

            monkeypatch.setattr(engine, "prune", take_time)
            monkeypatch.setattr(engine, "renew_lease", note)
            with running(workers=1):
                wait_until(lambda: not ScheduledTask.objects.exists(), 30)
        assert any(0 < left < 300 for left in left_at_renewals)

    def test_a_project_with_an_hour_of_its_own_for_it_is_left_alone(self) -> None:
        own = {"dbtasks.runner.cleanup": "0 4 29 2 *"}
        with configured(retain=0, periodic=own, heartbeat="0.1s"), running(workers=1) as runner:
            result = tasks.noop.enqueue()
            assert runner.wait_for(result, 20)
            assert not runner.keeper.cleans_up
            runner.keeper.heartbeat()
            assert not runner._cleanup_wanted.is_set()
        result.refresh()
        assert result.status == TaskResultStatus.SUCCESSFUL


def test_the_plain_backend_keeps_everything() -> None:
    assert task_backends["default"].parsed.policy.retain is None
