"""One attempt: every way in which a task can end, and what becomes of its row."""

import datetime
import json
import subprocess
import sys
import time
from typing import Any

import pytest
from django.tasks import TaskResult, TaskResultStatus, default_task_backend, task_backends
from django.utils import timezone

from dbtasks import Discard, Retry, TaskInterrupted, TaskTimeout, task
from dbtasks import backend as backend_module
from dbtasks.engines import Claimant, Claimed
from dbtasks.execution import MAX_TRACEBACK, NEWER_CODE_DELAY, Execution, execute
from dbtasks.models import ScheduledTask
from dbtasks.queues import select_queues
from tests.app import tasks
from tests.test_backend import work_off, write_raw
from tests.test_options import configured

pytestmark = pytest.mark.usefixtures("db")
WHO = Claimant("node", "worker-1")
JsonDict = dict[str, Any]


@task
def retry(after: Any = None, message: str = "") -> None:
    raise Retry(message, after=after)


@task
def discard() -> None:
    raise Discard("nobody wants it")


@task
def raise_unprintable(kind: str) -> None:
    raise {"error": Unprintable, "exit": ExitsWhenPrinted}[kind]("told you")


@task
def raise_named(name: str) -> None:
    raise {"TaskTimeout": TaskTimeout, "TaskInterrupted": TaskInterrupted, "OSError": OSError}[name]


@task
def fail_at_length() -> None:
    raise ValueError("x" * (3 * MAX_TRACEBACK))


@task
def many(size: int) -> str:
    return "x" * size


@task
def circle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@task
async def async_fail() -> None:
    raise ValueError("from a coroutine")


@task
def nested_failure() -> None:
    try:
        raise KeyError("first")
    except KeyError as error:
        raise ValueError("second \ud800\x00") from error


@task
def activate_a_time_zone() -> None:
    timezone.activate(datetime.timezone(HOUR))


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


class ExitsWhenPrinted(Exception):
    def __str__(self) -> str:
        sys.exit(3)


HOUR = datetime.timedelta(hours=1)
no_task = len


def claim() -> Claimed:
    (claimed,) = default_task_backend.engine.claim(WHO, select_queues())
    return claimed


def run(result: TaskResult) -> Execution:
    """Claims the only row, executes it and writes the outcome."""
    execution = execute(task_backends["default"], claim(), WHO.worker)
    assert default_task_backend.engine.finish([execution.outcome]) == {execution.claimed.id}
    result.refresh()
    return execution


def row() -> ScheduledTask:
    return ScheduledTask.objects.get()


def due_in() -> float:
    """Seconds until the only row runs again."""
    due_at = row().due_at
    assert due_at is not None
    return (due_at - timezone.now()).total_seconds()


class TestEndings:
    def test_a_return_value_is_stored(self) -> None:
        result = tasks.echo.enqueue({"a": [1, None]})
        run(result)
        assert result.return_value == {"a": [1, None]}

    @pytest.mark.parametrize(
        ("failing", "path", "last_line"),
        [
            (tasks.fail, "builtins.ValueError", "ValueError: no"),
            (tasks.sys_exit, "builtins.SystemExit", "SystemExit: 3"),
            (tasks.keyboard_interrupt, "builtins.KeyboardInterrupt", "KeyboardInterrupt"),
            (async_fail, "builtins.ValueError", "ValueError: from a coroutine"),
            (discard, "dbtasks.exceptions.Discard", "Discard: nobody wants it"),
        ],
        ids=lambda value: getattr(value, "name", None),
    )
    def test_an_exception_fails_the_task(self, failing: Any, path: str, last_line: str) -> None:
        result = failing.enqueue()
        run(result)
        assert result.status == TaskResultStatus.FAILED
        (error,) = result.errors
        assert error.exception_class_path == path
        lines = error.traceback.rstrip().splitlines()
        assert lines[1].endswith(f"in {failing.name}")
        assert lines[-1].endswith(last_line)

    def test_causes_are_told_and_no_character_is_impossible(self) -> None:
        result = nested_failure.enqueue()
        run(result)
        assert "KeyError: 'first'" in result.errors[0].traceback
        assert "second \ud800\x00" in result.errors[0].traceback

    @pytest.mark.parametrize("kind", ["error", "exit"])
    def test_an_exception_that_cannot_be_printed_is_an_exception_all_the_same(
        self, kind: str
    ) -> None:
        result = raise_unprintable.enqueue(kind)
        assert work_off().processed == 1
        result.refresh()
        assert result.status == TaskResultStatus.FAILED
        assert "str() failed" in result.errors[0].traceback

    def test_a_traceback_is_cut_in_its_middle(self) -> None:
        result = fail_at_length.enqueue()
        run(result)
        told = result.errors[0].traceback
        assert len(told) < MAX_TRACEBACK + 100
        assert "characters left out" in told
        assert told.startswith("Traceback")

    @pytest.mark.parametrize(
        ("ending", "told"),
        [
            (tasks.not_json, "the return value is a builtins.object"),
            (circle, "RecursionError"),
        ],
        ids=lambda value: getattr(value, "name", None),
    )
    def test_a_return_value_that_is_no_json_fails_the_task(self, ending: Any, told: str) -> None:
        result = ending.enqueue()
        run(result)
        assert result.status == TaskResultStatus.FAILED
        assert told in result.errors[0].traceback

    def test_the_error_of_a_wrong_return_value_says_what_can_be_returned(self) -> None:
        result = tasks.not_json.enqueue()
        run(result)
        assert "Return values of tasks are stored as JSON" in result.errors[0].traceback

    def test_a_huge_return_value_ends_the_task_and_not_the_worker(self) -> None:
        """MariaDB refuses it (max_allowed_packet) and hangs up, which looks like an outage."""
        result = many.enqueue(20 * 1024 * 1024)
        following = tasks.add.enqueue(1)
        assert work_off().processed == 2
        following.refresh()
        assert following.return_value == 1
        result.refresh()
        assert result.is_finished
        if result.status == TaskResultStatus.FAILED:
            assert result.errors[0].exception_class_path == "dbtasks.exceptions.ResultNotStored"

    def test_arguments_that_the_function_does_not_take_fail_it(self) -> None:
        result = tasks.add.enqueue(1, 2, 3)
        run(result)
        assert result.errors[0].exception_class is TypeError

    @pytest.mark.parametrize(
        ("path", "told"),
        [
            ("no.such.module.task", "No module named 'no'"),
            ("tests.app.tasks.gone", 'does not define a "gone"'),
            ("tests.app.broken.task", "RuntimeError: this module cannot be imported"),
            ("tests.test_execution.no_task", "is a builtin_function_or_method, not a task"),
            ("os.getcwd", "not a task"),
            ("", "is not the dotted path of a task"),
        ],
    )
    def test_a_path_that_is_no_task_fails_and_is_never_called(self, path: str, told: str) -> None:
        result = tasks.noop.using(max_attempts=5).enqueue()
        ScheduledTask.objects.update(task_path=path)
        execution = execute(task_backends["default"], claim(), WHO.worker)
        default_task_backend.engine.finish([execution.outcome])
        assert row().status == TaskResultStatus.FAILED
        assert told in row().errors[0]["traceback"]
        assert result.id == str(row().id)

    @pytest.mark.parametrize(
        "change", [{"args": {"a": 1}}, {"args": 3}, {"kwargs": [1]}, {"kwargs": None}], ids=str
    )
    def test_arguments_of_a_wrong_shape_fail_the_task(self, change: JsonDict) -> None:
        tasks.echo.enqueue(1)
        column, value = next(iter(change.items()))
        write_raw(column, json.dumps(value))
        work_off()
        assert row().status == TaskResultStatus.FAILED
        assert "args must be a JSON list and kwargs a JSON object" in row().errors[0]["traceback"]

    @pytest.mark.parametrize("column", ["args", "kwargs", "errors", "worker_ids", "policy"])
    def test_a_column_that_holds_no_json_harms_nobody(self, column: str) -> None:
        broken = tasks.echo.enqueue(1)
        write_raw(column, "no json")
        following = tasks.echo.enqueue(2)
        assert work_off().processed == 2
        following.refresh()
        assert following.return_value == 2
        broken.refresh()
        assert broken.is_finished

    def test_a_time_zone_that_a_task_activates_ends_with_it(self) -> None:
        activate_a_time_zone.enqueue()
        before = timezone.get_current_timezone_name()
        execute(task_backends["default"], claim(), WHO.worker)
        assert timezone.get_current_timezone_name() == before


class TestRetries:
    def test_a_task_runs_as_often_as_max_attempts_says(self) -> None:
        result = tasks.fail.using(max_attempts=3, backoff=0).enqueue()
        for count in (1, 2):
            run(result)
            assert result.status == TaskResultStatus.READY
            assert len(result.errors) == result.attempts == count
        run(result)
        assert result.status == TaskResultStatus.FAILED
        assert len(result.errors) == result.attempts == 3
        assert row().failures == 3

    def test_the_attempt_is_counted_in_the_context(self) -> None:
        result = tasks.attempt.enqueue()
        ScheduledTask.objects.update(worker_ids=["first", "second"])
        run(result)
        assert result.return_value[0] == 3

    def test_a_list_of_delays_is_taken_in_turn_and_its_last_repeats(self) -> None:
        result = tasks.fail.using(max_attempts=9, backoff=["10s", "1m"]).enqueue()
        for seconds in (10, 60, 60):
            execution = run(result)
            assert execution.outcome.retry_in == seconds
            assert seconds - 5 < due_in() <= seconds
            make_ready()

    def test_exponential_delays_double_with_jitter_up_to_an_hour(self) -> None:
        result = tasks.fail.using(max_attempts=30).enqueue()
        for expected in (1, 2, 4):
            retry_in = run(result).outcome.retry_in
            assert retry_in is not None
            assert 0.75 * expected <= retry_in <= 1.25 * expected
            make_ready()
        ScheduledTask.objects.update(failures=25)
        retry_in = run(result).outcome.retry_in
        assert retry_in is not None
        assert 2700 <= retry_in <= 4500

    def test_only_exceptions_in_retry_for_are_worth_another_attempt(self) -> None:
        again = raise_named.using(max_attempts=2, retry_for=[OSError]).enqueue("OSError")
        run(again)
        assert again.status == TaskResultStatus.READY
        ScheduledTask.objects.all().delete()
        failed = tasks.fail.using(max_attempts=2, retry_for=(OSError, KeyError)).enqueue()
        run(failed)
        assert failed.status == TaskResultStatus.FAILED

    def test_retry_for_can_be_set_for_all_tasks(self) -> None:
        with configured(max_attempts=2, retry_for=["builtins.OSError"]):
            result = tasks.fail.enqueue()
            run(result)
            assert result.status == TaskResultStatus.FAILED

    def test_an_exception_of_the_tasks_own_app_can_be_named_in_retry_for(self) -> None:
        """Its module is often the one whose @task asks for the options first."""
        code = (
            "from django.conf import settings; settings.configure("
            "INSTALLED_APPS=['dbtasks', 'tests.app'], DATABASES={'default': "
            "{'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}}, TASKS={'default': "
            "{'BACKEND': 'dbtasks.backend.DatabaseBackend', "
            "'OPTIONS': {'retry_for': ['tests.test_execution.Unprintable']}}})\n"
            "import django; django.setup()\n"
            "from tests.test_execution import Unprintable, retry\n"
            "from dbtasks.policy import Policy\n"
            "backend = retry.get_backend()\n"
            "assert backend.settings\n"
            "assert backend.may_retry(Unprintable(), Policy())\n"
            "assert not backend.may_retry(ValueError(), Policy())\n"
        )
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert child.returncode == 0, child.stderr

    def test_discard_is_final(self) -> None:
        result = discard.using(max_attempts=5).enqueue()
        run(result)
        assert result.status == TaskResultStatus.FAILED

    @pytest.mark.parametrize(
        ("after", "seconds"), [("10m", 600), (5, 5), (0, 0), (None, 42), ("soon", 42), (-1, 42)]
    )
    def test_retry_runs_it_again_whatever_max_attempts_says(
        self, after: Any, seconds: float
    ) -> None:
        result = retry.using(max_attempts=1, backoff=42).enqueue(after)
        execution = run(result)
        assert result.status == TaskResultStatus.READY
        assert execution.outcome.retry_in == seconds
        assert result.errors == []
        assert result.attempts == 1
        assert row().failures == 0

    def test_a_time_limit_counts_as_an_exception(self) -> None:
        result = raise_named.using(max_attempts=2, backoff=0).enqueue("TaskTimeout")
        run(result)
        assert result.status == TaskResultStatus.READY
        run(result)
        assert result.status == TaskResultStatus.FAILED
        assert result.errors[1].exception_class is TaskTimeout

    def test_an_interruption_by_us_is_not_counted(self) -> None:
        result = raise_named.enqueue("TaskInterrupted")
        run(result)
        assert result.status == TaskResultStatus.READY
        assert (result.errors, result.attempts) == ([], 0)


def make_ready() -> None:
    """The deferred row's time has come."""
    past = timezone.now() - HOUR
    ScheduledTask.objects.filter(due_at__isnull=False).update(due_at=past)
    assert default_task_backend.engine.promote_due() == 1


class TestRetention:
    @pytest.mark.parametrize(
        ("ending", "seconds"), [(tasks.noop, 3600), (tasks.fail, 7200)], ids=["success", "failure"]
    )
    def test_success_and_failure_are_kept_as_long_as_each_should(
        self, ending: Any, seconds: float
    ) -> None:
        with configured(retain="1h", retain_failed="2h"):
            result = ending.enqueue()
            run(result)
        stored = row()
        assert stored.delete_after is not None
        assert stored.finished_at is not None
        kept = stored.delete_after - stored.finished_at
        assert abs(kept.total_seconds() - seconds) < 1

    def test_what_runs_again_is_not_to_be_deleted(self) -> None:
        result = tasks.fail.using(max_attempts=2, retain="1h").enqueue()
        run(result)
        assert row().delete_after is None


class TestNewerCode:
    """In a rolling deploy a task can be enqueued that this process does not know yet."""

    @pytest.fixture(autouse=True)
    def _task_of_the_future(self, db: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(backend_module, "CODE_SINCE", int(time.time()) - 100)
        tasks.noop.enqueue()
        policy = json.dumps({"code": int(time.time())})
        ScheduledTask.objects.update(task_path="tests.app.tasks.of_tomorrow", policy=policy)

    def execute(self) -> Execution:
        execution = execute(task_backends["default"], claim(), WHO.worker)
        default_task_backend.engine.finish([execution.outcome])
        return execution

    def test_it_is_tried_again_for_a_while_and_not_counted(self) -> None:
        assert self.execute().outcome.retry_in == NEWER_CODE_DELAY
        assert row().status == TaskResultStatus.READY
        assert (row().worker_ids, row().errors, row().failures) == ([], [], 0)
        assert due_in() > NEWER_CODE_DELAY - 4

    def test_patience_ends(self) -> None:
        ScheduledTask.objects.update(enqueued_at=timezone.now() - HOUR)
        self.execute()
        assert row().status == TaskResultStatus.FAILED

    def test_older_code_than_ours_is_not_waited_for(self) -> None:
        ScheduledTask.objects.update(policy=json.dumps({"code": int(time.time()) - 200}))
        self.execute()
        assert row().status == TaskResultStatus.FAILED

    def test_a_task_that_we_know_is_not_concerned(self) -> None:
        ScheduledTask.objects.update(task_path="tests.app.tasks.fail")
        self.execute()
        assert row().status == TaskResultStatus.FAILED
