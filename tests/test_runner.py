"""`Runner`: workers as threads, from start to drain, and what a task cannot do to them."""

import datetime
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.tasks import TaskResultStatus, default_task_backend
from django.test import override_settings
from django.utils import timezone

from dbtasks import Periodic, TaskTimeout, task
from dbtasks.interruption import ThreadLimit
from dbtasks.models import Node, ScheduledTask, Worker
from dbtasks.runner import Runner
from dbtasks.testing import running
from tests.app import tasks
from tests.app.models import Note
from tests.test_options import BACKEND, configured
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("db")
DEADLINE = 20.0


@task
def spin(seconds: float) -> None:
    """Python code that takes its time, a bytecode after the other."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


@task
def swallow_timeouts(path: str) -> str:
    while not Path(path).exists():
        try:
            time.sleep(0.01)
        except TaskTimeout:
            Path(path).touch()
    return "I do not give in"


@pytest.fixture
def runner() -> Iterator[Runner]:
    with running(workers=2, init_periodic=False) as started:
        yield started


def finish(runner: Runner, *results: Any) -> None:
    for result in results:
        assert runner.wait_for(result, DEADLINE), result


def in_thread(function: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


class TestLife:
    def test_it_is_ready_and_then_finished(self) -> None:
        runner = Runner(workers=2, worker_id="in-process")
        assert not runner.ready.is_set()
        thread = in_thread(runner.run)
        assert runner.ready.wait(DEADLINE)
        assert not runner.finished.is_set()
        runner.stop()
        thread.join(DEADLINE)
        assert runner.finished.is_set()

    def test_nothing_of_it_is_left_after_stop(self) -> None:
        before = set(threading.enumerate())
        with running(workers=3) as runner:
            finish(runner, tasks.noop.enqueue())
            assert Node.objects.get().name == "test"
        assert set(threading.enumerate()) == before
        assert not Node.objects.exists()
        assert not Worker.objects.exists()
        assert not ScheduledTask.objects.filter(status="RUNNING").exists()
        assert not ScheduledTask.objects.exclude(claimed_by=None).exists()

    def test_it_closes_its_descriptors(self) -> None:
        before = len(list(Path("/dev/fd").iterdir()))
        for _ in range(3):
            Runner(workers=1, init_periodic=False, burst=True).run()
        connection.close()
        assert len(list(Path("/dev/fd").iterdir())) <= before

    def test_drain_finishes_the_running_task_and_takes_no_other(self, tmp_path: Path) -> None:
        go, started = tmp_path / "go", tmp_path / "started"
        with running(workers=1, init_periodic=False) as runner:
            running_one = tasks.wait_for_file.enqueue(str(go), str(started))
            wait_until(started.exists)
            waiting = tasks.noop.enqueue()
            runner.stop()
            assert not runner.finished.wait(0.1)
            go.touch()
            assert runner.finished.wait(DEADLINE)
        running_one.refresh()
        waiting.refresh()
        assert running_one.status == TaskResultStatus.SUCCESSFUL
        assert waiting.status == TaskResultStatus.READY

    def test_stop_works_from_any_thread_and_twice(self, runner: Runner) -> None:
        for _ in range(2):
            in_thread(runner.stop).join(DEADLINE)
        assert runner.finished.wait(DEADLINE)
        runner.stop()

    def test_a_task_can_stop_its_runner(self) -> None:
        runner = Runner(workers=1, init_periodic=False)
        stoppable["runner"] = runner
        stop_runner.enqueue()
        thread = in_thread(runner.run)
        thread.join(DEADLINE)
        assert runner.finished.is_set()

    def test_stop_before_run_runs_nothing(self) -> None:
        result = tasks.noop.enqueue()
        runner = Runner(workers=1)
        runner.stop()
        runner.run()
        result.refresh()
        assert result.status == TaskResultStatus.READY

    def test_burst_ends_when_nothing_is_ready(self) -> None:
        tasks.noop.using(run_after=timezone.now() + datetime.timedelta(hours=1)).enqueue()
        default_task_backend.enqueue_all([(tasks.noop, [], {})] * 50)
        runner = Runner(workers=2, init_periodic=False, burst=True)
        thread = in_thread(runner.run)
        thread.join(DEADLINE)
        assert runner.processed == 50
        assert ScheduledTask.objects.filter(status="READY").count() == 1

    def test_interrupt_gives_the_running_task_back(self, tmp_path: Path) -> None:
        started = tmp_path / "started"
        with running(workers=1, init_periodic=False) as runner:
            result = tasks.wait_for_file.enqueue(str(tmp_path / "never"), str(started))
            wait_until(started.exists)
            runner.stop()
            runner.interrupt()
            assert runner.finished.wait(DEADLINE)
        result.refresh()
        assert result.status == TaskResultStatus.READY
        assert (result.attempts, result.errors) == (0, [])

    @pytest.mark.parametrize("workers", [0, -1, 1.5, "2"])
    def test_a_wrong_number_of_workers_is_refused(self, workers: Any) -> None:
        with pytest.raises(ValueError, match="workers must be at least 1"):
            Runner(workers=workers)

    def test_wrong_options_are_refused_at_start(self) -> None:
        with configured(retain="x"), pytest.raises(ImproperlyConfigured, match="'retain'"):
            Runner()

    def test_a_backend_that_is_not_there_is_refused_by_name(self) -> None:
        with pytest.raises(ImproperlyConfigured, match=r"'other'.*There are: 'default'"):
            Runner(backend="other")

    def test_a_backend_of_another_kind_is_refused(self) -> None:
        dummy = {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}
        refused = pytest.raises(ImproperlyConfigured, match=r"must be 'dbtasks\.backend")
        with override_settings(TASKS={"default": dummy}), refused:
            Runner()

    def test_its_workers_are_shown_while_it_runs(self) -> None:
        with configured(heartbeat="0.1s"), running(workers=2, init_periodic=False):
            wait_until(lambda: Worker.objects.count() == 2)
            assert {worker.kind for worker in Worker.objects.all()} == {"thread"}


stoppable: dict[str, Runner] = {}


@task
def stop_runner() -> None:
    stoppable["runner"].stop()


class TestWaiting:
    def test_wait_for_refreshes_the_result(self, runner: Runner) -> None:
        result = tasks.add.enqueue(1, b=2)
        assert runner.wait_for(result, DEADLINE) is True
        assert result.return_value == 3

    def test_wait_for_gives_up_in_time(self, runner: Runner) -> None:
        result = tasks.noop.using(run_after=timezone.now() + datetime.timedelta(hours=1)).enqueue()
        started = time.monotonic()
        assert runner.wait_for(result, 0.2) is False
        assert 0.2 <= time.monotonic() - started < DEADLINE

    def test_wait_for_without_patience_looks_once(self, runner: Runner) -> None:
        result = tasks.add.enqueue(1)
        finish(runner, result)
        assert runner.wait_for(result, 0) is True

    def test_wait_blocks_until_nothing_is_ready_or_running(self, runner: Runner) -> None:
        default_task_backend.enqueue_all([(tasks.noop, [], {})] * 30)
        assert runner.wait(DEADLINE) is True
        assert not ScheduledTask.objects.exclude(status="SUCCESSFUL").exists()
        assert runner.empty.wait(DEADLINE)

    def test_wait_gives_up_in_time(self, runner: Runner, tmp_path: Path) -> None:
        go = tmp_path / "go"
        tasks.wait_for_file.enqueue(str(go))
        assert runner.wait(0.2) is False
        go.touch()
        assert runner.wait(DEADLINE) is True

    def test_waiting_ends_with_the_runner(self, tmp_path: Path) -> None:
        with running(workers=1, init_periodic=False) as runner:
            runner.stop()
            assert runner.finished.wait(DEADLINE)
            assert runner.wait_for(tasks.noop.enqueue()) is False

    def test_empty_follows_the_queue_without_being_asked(
        self, runner: Runner, tmp_path: Path
    ) -> None:
        assert runner.empty.wait(DEADLINE)
        go, started = tmp_path / "go", tmp_path / "started"
        tasks.wait_for_file.enqueue(str(go), str(started))
        wait_until(started.exists)
        assert not runner.empty.is_set()
        go.touch()
        assert runner.empty.wait(DEADLINE)

    def test_processed_counts_every_attempt(self, runner: Runner) -> None:
        finish(runner, tasks.noop.enqueue(), tasks.fail.using(max_attempts=3, backoff=0).enqueue())
        assert runner.processed == 4


class TestPeriodic:
    def test_periodic_maps_names_to_entries(self) -> None:
        entries = {"tests.app.tasks.noop": ["1h", Periodic("@daily", name="day")]}
        with configured(periodic=entries):
            periodic = Runner().periodic
            assert Runner(init_periodic=False).periodic == {}
        assert periodic == {
            "tests.app.tasks.noop": Periodic("1h"),
            "day": Periodic("@daily", name="day"),
        }

    def test_an_entry_runs_every_second(self) -> None:
        with configured(periodic={"tests.app.tasks.noop": "1s"}), running(workers=1):
            rows = ScheduledTask.objects.filter(periodic="tests.app.tasks.noop")
            wait_until(lambda: rows.filter(status="SUCCESSFUL").count() >= 2)

    def test_no_entry_runs_without_init_periodic(self) -> None:
        entries = {"tests.app.tasks.noop": "1s"}
        with configured(periodic=entries), running(workers=1, init_periodic=False) as runner:
            assert runner.keeper.planner is None


class TestWork:
    def test_a_deferred_task_starts_on_time(self, runner: Runner) -> None:
        due = timezone.now() + datetime.timedelta(seconds=1)
        result = tasks.noop.using(run_after=due).enqueue()
        finish(runner, result)
        assert result.started_at is not None
        assert due <= result.started_at < due + datetime.timedelta(seconds=1)

    def test_a_retry_comes_at_its_time(self, runner: Runner) -> None:
        result = tasks.fail.using(max_attempts=2, backoff=0.5).enqueue()
        finish(runner, result)
        assert result.last_attempted_at is not None
        assert result.started_at is not None
        pause = result.last_attempted_at - result.started_at
        assert 0.5 <= pause.total_seconds() < 1.5

    def test_a_higher_priority_overtakes(self, tmp_path: Path) -> None:
        go, started, journal = tmp_path / "go", tmp_path / "started", tmp_path / "journal"
        with running(workers=1, init_periodic=False) as runner:
            tasks.wait_for_file.enqueue(str(go), str(started))
            wait_until(started.exists)
            for text, priority in [("low", -1), ("high", 9), ("middle", 0)]:
                tasks.journal.using(priority=priority).enqueue(str(journal), text)
            go.touch()
            assert runner.wait(DEADLINE)
        order = [line.split()[0] for line in journal.read_text().splitlines()]
        assert order == ["high", "middle", "low"]

    def test_only_its_queues_are_served(self) -> None:
        wanted = tasks.noop.using(queue_name="email").enqueue()
        excluded = tasks.noop.using(queue_name="email-bulk").enqueue()
        other = tasks.noop.enqueue()
        queues: dict[str, Any] = {"queues": ["email*"], "exclude_queues": ["email-bulk"]}
        with running(workers=1, init_periodic=False, **queues) as runner:
            finish(runner, wanted)
            assert runner.empty.wait(DEADLINE)
        for result in (excluded, other):
            result.refresh()
            assert result.status == TaskResultStatus.READY

    def test_only_its_backend_is_served(self) -> None:
        both = {alias: {"BACKEND": BACKEND, "QUEUES": []} for alias in ("default", "other")}
        with override_settings(TASKS=both):
            other = tasks.noop.using(backend="other").enqueue()
            with running(workers=1, init_periodic=False) as runner:
                finish(runner, tasks.noop.enqueue())
            other.refresh()
            assert other.status == TaskResultStatus.READY
            with running(workers=1, init_periodic=False, backend="other") as runner:
                finish(runner, other)

    def test_two_runners_run_each_task_once(self, tmp_path: Path) -> None:
        journal = tmp_path / "journal"
        calls: list[Any] = [(tasks.journal, [str(journal), str(n)], {}) for n in range(300)]
        default_task_backend.enqueue_all(calls)
        with (
            running(workers=2, worker_id="a", init_periodic=False) as first,
            running(workers=2, worker_id="b", init_periodic=False) as second,
        ):
            assert first.wait(60)
            assert first.processed + second.processed == 300
        numbers = sorted(int(line.split()[0]) for line in journal.read_text().splitlines())
        assert numbers == list(range(300))
        assert ScheduledTask.objects.filter(status="SUCCESSFUL").count() == 300


class TestHygiene:
    """Whatever a task leaves behind, the next one on that worker starts clean."""

    @pytest.mark.parametrize(
        ("task", "status"),
        [
            (tasks.leave_transaction_open, TaskResultStatus.SUCCESSFUL),
            (tasks.leave_raw_transaction_open, TaskResultStatus.SUCCESSFUL),
            (tasks.close_connection, TaskResultStatus.SUCCESSFUL),
            (tasks.break_connection, TaskResultStatus.SUCCESSFUL),
            (tasks.sys_exit, TaskResultStatus.FAILED),
            (tasks.keyboard_interrupt, TaskResultStatus.FAILED),
            (tasks.not_json, TaskResultStatus.FAILED),
        ],
        ids=lambda value: getattr(value, "name", None),
    )
    def test_the_next_task_works(self, task: Any, status: TaskResultStatus) -> None:
        with running(workers=1, init_periodic=False) as runner:
            for _ in range(2):
                left, following = task.enqueue(), tasks.note.enqueue("the next task's")
                finish(runner, left, following)
                assert left.status == status
                assert following.status == TaskResultStatus.SUCCESSFUL
        assert set(Note.objects.values_list("text", flat=True)) == {"the next task's"}


class TestTimeLimits:
    def test_a_task_that_overruns_is_stopped(self, runner: Runner) -> None:
        result = spin.using(timeout="0.3s").enqueue(60)
        finish(runner, result)
        assert result.status == TaskResultStatus.FAILED
        assert result.errors[0].exception_class is TaskTimeout
        assert "in spin" in result.errors[0].traceback
        following = tasks.note.enqueue("it goes on")
        finish(runner, following)
        assert following.status == TaskResultStatus.SUCCESSFUL

    def test_a_task_that_stays_within_its_limit_is_left_alone(self, runner: Runner) -> None:
        result = spin.using(timeout="20s").enqueue(0.05)
        finish(runner, result)
        assert result.status == TaskResultStatus.SUCCESSFUL

    def test_a_task_can_swallow_it_and_no_other_gets_it(
        self, runner: Runner, tmp_path: Path
    ) -> None:
        result = swallow_timeouts.using(timeout="0.1s").enqueue(str(tmp_path / "timeout"))
        finish(runner, result)
        assert result.return_value == "I do not give in"
        results = [spin.enqueue(0.01) for _ in range(20)]
        finish(runner, *results)
        assert {result.status for result in results} == {TaskResultStatus.SUCCESSFUL}

    def test_a_limit_that_ends_together_with_its_task_hits_nothing_else(self) -> None:
        """The exception may be on its way when the task returns."""
        limit, escaped, over = ThreadLimit(), [], threading.Event()

        def run_tasks() -> None:
            while not over.is_set():
                try:
                    with limit(0.0002):
                        sum(range(2000))
                except TaskTimeout:
                    pass
                finally:
                    limit.release()
                try:
                    sum(range(500))
                except TaskTimeout as error:
                    escaped.append(error)

        thread = in_thread(run_tasks)
        end = time.monotonic() + 1
        while time.monotonic() < end:
            limit.enforce()
        over.set()
        thread.join(DEADLINE)
        assert not thread.is_alive()
        assert escaped == []
        assert limit.deadline is None
