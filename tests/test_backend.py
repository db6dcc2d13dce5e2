"""The contract of django.tasks on our backend: enqueue, results, errors, transactions, signals."""

import asyncio
import contextlib
import datetime
import os
import subprocess
import sys
import uuid
from collections import UserDict
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import django
import pytest
from asgiref.sync import async_to_sync
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, transaction
from django.dispatch import Signal
from django.tasks import TaskResultStatus, default_task_backend, signals, task_backends
from django.tasks import task as django_task
from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist, TaskResultMismatch
from django.test import override_settings
from django.utils import timezone

import dbtasks
from dbtasks.backend import DatabaseBackend
from dbtasks.models import ScheduledTask
from dbtasks.runner import Runner
from dbtasks.tasks import OWN_OPTIONS
from tests.app import tasks
from tests.app.models import Note
from tests.test_options import BACKEND, configured

HOUR = datetime.timedelta(hours=1)


def work_off(**options: Any) -> Runner:
    """Runs what is ready, in threads, and returns when nothing is."""
    runner = Runner(workers=1, worker_id="here", init_periodic=False, burst=True, **options)
    runner.run()
    return runner


def write_raw(column: str, text: str) -> None:
    """What somebody wrote by hand into a column of every row."""
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE dbtasks_scheduledtask SET {column} = %s", [text])


def two_attempts(value: str) -> None: ...


pytestmark = pytest.mark.usefixtures("db")


class TestEnqueue:
    def test_what_the_backend_can_do(self) -> None:
        backend = default_task_backend
        assert backend.supports_defer
        assert backend.supports_async_task
        assert backend.supports_get_result
        assert backend.supports_priority

    def test_a_result_is_ready_and_complete(self) -> None:
        before = timezone.now()
        result = tasks.add.enqueue(1, b=2)
        assert uuid.UUID(result.id).version == 7
        assert result.status == TaskResultStatus.READY
        assert result.args == [1]
        assert result.kwargs == {"b": 2}
        assert result.backend == "default"
        assert result.enqueued_at is not None
        assert before <= result.enqueued_at <= timezone.now()
        assert (result.started_at, result.finished_at, result.last_attempted_at) == (None,) * 3
        assert (result.errors, result.worker_ids, result.attempts) == ([], [], 0)
        assert not result.is_finished
        with pytest.raises(ValueError, match="not finished"):
            _ = result.return_value

    def test_a_task_runs_and_its_result_is_refreshed(self) -> None:
        result = tasks.add.enqueue(1, b=2)
        work_off()
        result.refresh()
        assert result.status == TaskResultStatus.SUCCESSFUL
        assert result.return_value == 3
        assert result.attempts == 1
        assert result.worker_ids[0].startswith("here-1.")
        times = [result.enqueued_at, result.started_at, result.finished_at]
        assert times == sorted(times)
        assert result.last_attempted_at == result.started_at

    def test_an_async_task_runs_too(self) -> None:
        result = tasks.async_add.enqueue(1, 2)
        work_off()
        result.refresh()
        assert result.return_value == 3

    def test_the_async_twins(self) -> None:
        async def enqueue_and_read() -> Any:
            result = await tasks.add.aenqueue(1)
            await result.arefresh()
            return await tasks.add.aget_result(result.id)

        assert async_to_sync(enqueue_and_read)().args == [1]

    def test_aenqueue_all_inserts_in_bulk(self) -> None:
        results = async_to_sync(default_task_backend.aenqueue_all)([(tasks.add, [1], {})] * 3)
        assert ScheduledTask.objects.count() == len(results) == 3

    def test_a_context_tells_the_attempt_and_the_result(self) -> None:
        result = tasks.attempt.enqueue()
        work_off()
        result.refresh()
        attempt, id, worker_ids = result.return_value
        assert attempt == 1
        assert id == result.id
        assert worker_ids == result.worker_ids

    def test_priority_goes_first_and_age_second(self, tmp_path: Path) -> None:
        journal = tmp_path / "journal"
        for text, priority in [("a", 0), ("b", 5), ("c", -5), ("d", 5)]:
            tasks.journal.using(priority=priority).enqueue(str(journal), text)
        work_off()
        assert [line[0] for line in journal.read_text().splitlines()] == ["b", "d", "a", "c"]

    @pytest.mark.parametrize("priority", [101, -101, 1.5])
    def test_a_priority_out_of_range_is_refused(self, priority: float) -> None:
        with pytest.raises(InvalidTask, match="whole number between -100 and 100"):
            tasks.add.using(priority=priority)

    def test_a_deferred_task_waits(self) -> None:
        at = timezone.now() + HOUR
        result = tasks.add.using(run_after=at).enqueue(1)
        assert result.task.run_after == at
        assert work_off().processed == 0
        result.refresh()
        assert result.status == TaskResultStatus.READY
        assert tasks.add.get_result(result.id).task.run_after == at

    def test_a_task_that_was_due_in_the_past_runs_at_once(self) -> None:
        tasks.add.using(run_after=timezone.now() - HOUR).enqueue(1)
        assert work_off().processed == 1

    def test_a_naive_run_after_is_refused(self) -> None:
        with pytest.raises(InvalidTask, match="aware"):
            tasks.add.using(run_after=datetime.datetime.now())

    def test_queues_are_enforced_where_they_are_listed(self) -> None:
        with configured(queues=("default", "email")):
            tasks.add.using(queue_name="email").enqueue(1)
            with pytest.raises(InvalidTask, match="'sms'"):
                tasks.add.using(queue_name="sms")

    def test_any_queue_is_accepted_where_none_is_listed(self) -> None:
        result = tasks.add.using(queue_name="sms").enqueue(1)
        assert tasks.add.get_result(result.id).task.queue_name == "sms"

    @pytest.mark.parametrize("queue", ["mail*", "x" * 129])
    def test_a_queue_name_that_cannot_be_is_refused(self, queue: str) -> None:
        with pytest.raises(InvalidTask, match="queue_name"):
            tasks.add.using(queue_name=queue)


class TestOurOptions:
    def test_using_takes_them(self) -> None:
        task = tasks.add.using(max_attempts=3, timeout="30s", priority=2)
        assert isinstance(task, dbtasks.Task)
        assert (task.max_attempts, task.timeout, task.priority) == (3, "30s", 2)
        policy = default_task_backend.policy_of(task)
        assert (policy.max_attempts, policy.timeout) == (3, 30.0)

    def test_using_keeps_those_of_before(self) -> None:
        task = tasks.add.using(max_attempts=3).using(queue_name="email")
        assert task.max_attempts == 3

    def test_an_unknown_option_is_a_type_error_that_lists_all(self) -> None:
        with pytest.raises(TypeError, match="max_attemps") as raised:
            tasks.add.using(max_attemps=3)
        assert all(option in str(raised.value) for option in OWN_OPTIONS)
        with pytest.raises(TypeError, match="max_attemps"):
            dbtasks.task(max_attemps=3)(two_attempts)

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("max_attempts", 0),
            ("backoff", "soon"),
            ("retry_for", [3]),
            ("timeout", "x"),
            ("max_crashes", -1),
            ("retain", "x"),
            ("ack", "later"),
        ],
    )
    def test_a_wrong_value_names_the_task_and_the_option(self, option: str, value: object) -> None:
        with pytest.raises(InvalidTask) as raised:
            tasks.add.using(**{option: value})
        assert str(raised.value).startswith("tests.app.tasks.add: ")
        assert option in str(raised.value)

    @pytest.mark.skipif(django.VERSION < (6, 1), reason="Django 6.0's @task takes no own options")
    def test_django_61s_own_decorator_takes_them(self) -> None:
        task = django_task(max_attempts=2, backoff="1m")(two_attempts)
        assert isinstance(task, dbtasks.Task)
        assert (task.max_attempts, task.backoff) == (2, "1m")

    def test_our_decorator_takes_them_with_and_without_parentheses(self) -> None:
        task = dbtasks.task(max_attempts=2, queue_name="email")(two_attempts)
        assert (task.max_attempts, task.queue_name) == (2, "email")
        assert dbtasks.task(two_attempts).max_attempts is None

    def test_our_decorator_leaves_other_backends_in_peace(self) -> None:
        dummy = {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}
        with override_settings(TASKS={"default": dummy}):
            assert type(dbtasks.task(max_attempts=2)(two_attempts)) is django.tasks.Task

    def test_options_are_the_defaults(self) -> None:
        with configured(max_attempts=4, backoff="1m"):
            backend = task_backends["default"]
            assert backend.policy_of(tasks.add).max_attempts == 4
            own = backend.policy_of(tasks.add.using(max_attempts=1))
            assert (own.max_attempts, own.backoff) == (1, 60.0)

    def test_the_policy_is_stored_as_it_was_at_enqueue(self) -> None:
        result = tasks.add.using(max_attempts=7).enqueue(1)
        row = ScheduledTask.objects.get(pk=result.id)
        assert '"max_attempts":7' in row.policy


class TestResults:
    @pytest.mark.parametrize("id", [str(uuid.uuid4()), "nonsense", "", "123", None, "a\x00b"])
    def test_an_unknown_or_malformed_id_does_not_exist(self, id: Any) -> None:
        with pytest.raises(TaskResultDoesNotExist):
            default_task_backend.get_result(id)
        with pytest.raises(TaskResultDoesNotExist):
            async_to_sync(default_task_backend.aget_result)(id)

    def test_a_result_of_another_task_is_a_mismatch(self) -> None:
        result = tasks.noop.enqueue()
        with pytest.raises(TaskResultMismatch):
            tasks.add.get_result(result.id)
        with pytest.raises(TaskResultMismatch):
            async_to_sync(tasks.add.aget_result)(result.id)

    def test_a_result_of_another_backend_does_not_exist(self) -> None:
        both = {alias: {"BACKEND": BACKEND, "QUEUES": []} for alias in ("default", "other")}
        with override_settings(TASKS=both):
            result = tasks.noop.enqueue()
            with pytest.raises(TaskResultDoesNotExist):
                task_backends["other"].get_result(result.id)

    def test_enqueue_all_gives_results_of_the_backend_that_was_asked(self) -> None:
        both = {alias: {"BACKEND": BACKEND, "QUEUES": []} for alias in ("default", "other")}
        with override_settings(TASKS=both):
            (result,) = task_backends["other"].enqueue_all([(tasks.noop, [], {})])
            assert result.backend == result.task.backend == "other"
            result.refresh()

    def test_a_deleted_result_cannot_be_refreshed(self) -> None:
        result = tasks.noop.enqueue()
        ScheduledTask.objects.all().delete()
        with pytest.raises(TaskResultDoesNotExist):
            result.refresh()

    def test_a_failed_task_shows_its_error_from_its_own_frame_on(self) -> None:
        result = tasks.fail.enqueue("broken")
        work_off()
        result.refresh()
        assert result.status == TaskResultStatus.FAILED
        (error,) = result.errors
        assert error.exception_class is ValueError
        lines = error.traceback.splitlines()
        assert lines[0] == "Traceback (most recent call last):"
        assert lines[1].endswith("in fail")
        assert lines[-1] == "ValueError: broken"
        assert result.attempts == 1
        with pytest.raises(ValueError, match="Task failed"):
            _ = result.return_value

    def test_a_result_whose_task_is_gone_can_still_be_read(self) -> None:
        result = tasks.noop.enqueue()
        ScheduledTask.objects.update(task_path="tests.app.tasks.gone")
        found = default_task_backend.get_result(result.id)
        assert found.task.module_path == "tests.app.tasks.gone"
        found.refresh()

    def test_a_row_that_holds_no_json_can_still_be_read(self) -> None:
        result = tasks.noop.enqueue()
        write_raw("args", "no json")
        assert default_task_backend.get_result(result.id).args == "no json"

    def test_a_result_while_it_runs_names_its_worker(self) -> None:
        result = tasks.noop.enqueue()
        ScheduledTask.objects.update(
            status="RUNNING", ready_queue=None, claim_node="n", claimed_by="w-1"
        )
        result.refresh()
        assert result.status == TaskResultStatus.RUNNING
        assert result.worker_ids == ["w-1"]
        assert result.attempts == 1


class TestTransactions:
    def test_enqueue_vanishes_with_a_rollback(self) -> None:
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            result = tasks.noop.enqueue()
            result.refresh()
            raise ZeroDivisionError
        with pytest.raises(TaskResultDoesNotExist):
            result.refresh()

    def test_a_refused_argument_does_not_break_the_transaction(self) -> None:
        with transaction.atomic():
            Note.objects.create(text="kept")
            with pytest.raises(TypeError):
                tasks.echo.enqueue(object())
        assert Note.objects.count() == 1

    def test_enqueue_all_inserts_all_or_nothing(self) -> None:
        calls: list[Any] = [(tasks.add, [n], {}) for n in range(1200)]
        results = default_task_backend.enqueue_all(calls)
        assert len({result.id for result in results}) == ScheduledTask.objects.count() == 1200
        assert [result.args for result in results] == [[n] for n in range(1200)]
        with pytest.raises(TypeError, match=r"'a' is a builtins\.object"):
            default_task_backend.enqueue_all([(tasks.add, [1], {}), (tasks.add, [object()], {})])
        assert ScheduledTask.objects.count() == 1200

    def test_enqueue_all_of_nothing_is_nothing(self) -> None:
        assert default_task_backend.enqueue_all([]) == []

    def test_enqueue_all_takes_an_iterator(self) -> None:
        assert len(default_task_backend.enqueue_all((tasks.noop, [], {}) for _ in "ab")) == 2

    def test_enqueue_all_leaves_nothing_when_a_later_batch_fails(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = type(default_task_backend.engine)
        insert = engine.insert_batch

        def fails_in_the_end(self: Any, rows: Any, notify: bool) -> None:
            if len(rows) < 500:
                raise RuntimeError("the network is gone")
            insert(self, rows, notify)

        monkeypatch.setattr(engine, "insert_batch", fails_in_the_end)
        with pytest.raises(RuntimeError):
            default_task_backend.enqueue_all([(tasks.noop, [], {})] * 700)
        assert ScheduledTask.objects.count() == 0


def itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


class TestArguments:
    @pytest.mark.parametrize(
        ("value", "told"),
        [
            (object(), "'value' is a builtins.object"),
            (float("nan"), "'value' is nan"),
            ([1, float("inf")], "'value'[1] is inf"),
            (datetime.datetime(2026, 1, 1), "'value' is a datetime.datetime"),
            ({1, 2}, "'value' is a builtins.set"),
            (Decimal("1.5"), "'value' is a decimal.Decimal"),
            ({"a": {1: "x"}}, "'value'['a'] has the key 1"),
            ({"a": [{"b": uuid.uuid4()}]}, "'value'['a'][0]['b'] is a uuid.UUID"),
            (b"\xff", "'value' is a builtins.bytes"),
            (itself(), "'value' is nested too deeply or contains itself"),
        ],
        ids=str,
    )
    def test_what_is_no_json_is_refused_by_name(self, value: object, told: str) -> None:
        refused_calls: list[Callable[[], Any]] = [
            lambda: tasks.echo.enqueue(value),
            lambda: tasks.echo.enqueue(value=value),
        ]
        for enqueue in refused_calls:
            with pytest.raises(TypeError) as raised:
                enqueue()
            assert str(raised.value).startswith(f"tests.app.tasks.echo: argument {told}")
            assert "Arguments of tasks are stored as JSON" in str(raised.value)
        assert ScheduledTask.objects.count() == 0

    def test_a_number_with_too_many_digits_is_refused_by_name(self) -> None:
        with pytest.raises(TypeError, match="argument 'value'"):
            tasks.echo.enqueue(10**5000)

    def test_a_surplus_argument_is_named_by_its_position(self) -> None:
        with pytest.raises(TypeError, match=r"argument '#2' is a builtins\.set"):
            tasks.echo.enqueue(1, set())

    def test_the_context_does_not_count_as_a_position(self) -> None:
        with pytest.raises(TypeError, match=r"argument '#1' is a builtins\.set"):
            tasks.attempt.enqueue(set())

    @pytest.mark.parametrize(
        "value",
        [
            "NUL \x00 inside",
            "a lone surrogate \ud800",
            "\U0001f600 café ÿ \u2028",
            2**63 + 1,
            -(10**300),
            1e308,
            0.1,
            True,
            None,
            "",
            [],
            {},
            {"": {"b": [1, 2.5, None, False]}, "a\x00": "\\u0000"},
            "x" * 300_000,
        ],
        ids=lambda value: ascii(value)[:20],
    )
    def test_json_goes_there_and_back(self, value: object) -> None:
        result = tasks.echo.enqueue(value)
        work_off()
        found = tasks.echo.get_result(result.id)
        assert found.args == [value]
        assert found.return_value == value
        assert type(found.return_value) is type(value)

    def test_what_json_can_hold_in_another_form_is_normalized(self) -> None:
        result = tasks.echo.enqueue((1, b"two", range(3), UserDict(a=1)))
        assert result.args == [[1, "two", [0, 1, 2], {"a": 1}]]
        found = tasks.echo.get_result(result.id)
        assert found.args == result.args

    def test_the_order_of_keys_is_kept(self) -> None:
        result = tasks.echo.enqueue(value={"z": 1, "a": 2})
        assert list(tasks.echo.get_result(result.id).kwargs["value"]) == ["z", "a"]


@pytest.fixture
def heard() -> Iterator[list[tuple[str, Any, TaskResultStatus]]]:
    """(signal, sender, status) of each signal, beside a receiver of each that is broken."""
    seen: list[tuple[str, Any, TaskResultStatus]] = []
    names = ("task_enqueued", "task_started", "task_finished")
    receivers: list[tuple[Signal, Callable[..., None]]] = []

    def broken(**kwargs: Any) -> None:
        raise RuntimeError("this receiver is broken")

    for name in names:

        def receiver(sender: Any, task_result: Any, name: str = name, **kwargs: Any) -> None:
            seen.append((name, sender, task_result.status))

        signal = getattr(signals, name)
        for function in (broken, receiver):
            signal.connect(function)
            receivers.append((signal, function))
    yield seen
    for signal, function in receivers:
        signal.disconnect(function)


Heard = list[tuple[str, Any, TaskResultStatus]]
READY, RUNNING = TaskResultStatus.READY, TaskResultStatus.RUNNING
SUCCESSFUL, FAILED = TaskResultStatus.SUCCESSFUL, TaskResultStatus.FAILED


class TestSignals:
    def test_each_is_sent_once_with_its_result(self, heard: Heard) -> None:
        tasks.noop.enqueue()
        work_off()
        assert heard == [
            ("task_enqueued", DatabaseBackend, READY),
            ("task_started", DatabaseBackend, RUNNING),
            ("task_finished", DatabaseBackend, SUCCESSFUL),
        ]

    def test_a_failure_is_told_as_such(self, heard: Heard) -> None:
        tasks.fail.enqueue()
        work_off()
        assert heard[-1] == ("task_finished", DatabaseBackend, FAILED)

    @pytest.mark.parametrize(
        "change", [{"task_path": "tests.app.tasks.gone"}, {"args": {"a": 1}}], ids=str
    )
    def test_a_task_that_cannot_even_start_is_told_as_failed(
        self, heard: Heard, change: dict[str, Any]
    ) -> None:
        tasks.noop.enqueue()
        ScheduledTask.objects.update(**change)
        work_off()
        assert heard[-1] == ("task_finished", DatabaseBackend, FAILED)

    def test_an_attempt_that_is_not_the_last_finishes_nothing(self, heard: Heard) -> None:
        tasks.fail.using(max_attempts=2, backoff=0).enqueue()
        work_off()
        assert [name for name, *_ in heard] == [
            "task_enqueued",
            "task_started",
            "task_started",
            "task_finished",
        ]

    def test_none_is_sent_when_they_are_off(self, heard: Heard) -> None:
        with configured(signals=False):
            result = tasks.noop.enqueue()
            work_off()
            result.refresh()
        assert result.status == SUCCESSFUL
        assert heard == []

    def test_immediate_sends_them_in_the_same_order(self, heard: Heard) -> None:
        with configured(immediate=True):
            tasks.noop.enqueue()
        assert [status for *_, status in heard] == [READY, RUNNING, SUCCESSFUL]


class TestImmediate:
    @pytest.fixture(autouse=True)
    def _immediate(self, db: None) -> Iterator[None]:
        with configured(immediate=True):
            yield

    def test_success_is_there_when_enqueue_returns(self) -> None:
        result = tasks.add.enqueue(1, b=2)
        assert result.return_value == 3
        assert result.worker_ids == ["immediate"]
        found = tasks.add.get_result(result.id)
        assert found.return_value == 3
        assert (found.started_at, found.finished_at) == (result.started_at, result.finished_at)

    def test_a_failure_is_in_the_result_and_not_raised(self) -> None:
        result = tasks.fail.enqueue("broken")
        assert result.status == TaskResultStatus.FAILED
        assert result.errors == tasks.fail.get_result(result.id).errors
        assert result.errors[0].traceback.endswith("ValueError: broken\n")

    def test_an_async_task_and_aenqueue(self) -> None:
        assert tasks.async_add.enqueue(1, 2).return_value == 3
        assert async_to_sync(tasks.async_add.aenqueue)(1, 2).return_value == 3

    def test_a_context_has_its_attempt(self) -> None:
        assert tasks.attempt.enqueue().return_value[0] == 1

    def test_a_failing_task_does_not_break_the_callers_transaction(self) -> None:
        with transaction.atomic():
            Note.objects.create(text="the caller's")
            result = write_and_break.enqueue()
            Note.objects.create(text="after it")
        assert result.status == TaskResultStatus.FAILED
        assert sorted(Note.objects.values_list("text", flat=True)) == ["after it", "the caller's"]
        result.refresh()

    def test_a_task_is_undone_with_the_callers_transaction(self) -> None:
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            tasks.note.enqueue("gone")
            raise ZeroDivisionError
        assert Note.objects.count() == ScheduledTask.objects.count() == 0

    def test_what_has_attempts_left_waits_for_a_runner(self) -> None:
        result = tasks.fail.using(max_attempts=2, backoff=0).enqueue()
        assert result.status == TaskResultStatus.READY
        assert (result.attempts, len(result.errors)) == (1, 1)
        work_off()
        result.refresh()
        assert result.status == TaskResultStatus.FAILED
        assert (result.attempts, len(result.errors)) == (2, 2)

    def test_a_deferred_task_waits_for_its_time(self) -> None:
        result = tasks.add.using(run_after=timezone.now() + HOUR).enqueue(1)
        assert result.status == TaskResultStatus.READY
        assert ScheduledTask.objects.get(pk=result.id).due_at is not None

    def test_a_task_enqueues_another(self) -> None:
        assert enqueue_noop.enqueue().status == TaskResultStatus.SUCCESSFUL
        assert ScheduledTask.objects.filter(status="SUCCESSFUL").count() == 2

    def test_sys_exit_fails_the_task_and_ends_nothing(self) -> None:
        assert tasks.sys_exit.enqueue().status == TaskResultStatus.FAILED

    def test_ctrl_c_reaches_the_caller_and_the_task_is_failed(self) -> None:
        with pytest.raises(KeyboardInterrupt):
            tasks.keyboard_interrupt.enqueue()
        assert ScheduledTask.objects.get().status == TaskResultStatus.FAILED

    def test_retention_holds_here_as_well(self) -> None:
        result = tasks.noop.using(retain="1h").enqueue()
        row = ScheduledTask.objects.get(pk=result.id)
        assert row.delete_after is not None
        assert row.finished_at is not None
        assert row.delete_after - row.finished_at == HOUR


@django_task
def enqueue_noop() -> None:
    tasks.noop.enqueue()


@django_task
def write_and_break() -> None:
    """Leaves half its work behind and a transaction that PostgreSQL calls aborted."""
    Note.objects.create(text="half of it")
    Note.objects.raw("SELECT nothing FROM nowhere")[0]


SECOND_DATABASE = """
import contextlib, sys
from django.conf import settings
from pathlib import Path
sqlite = {
    "ENGINE": "django.db.backends.sqlite3",
    "OPTIONS": {"transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode=WAL"},
}
settings.configure(
    INSTALLED_APPS=["dbtasks", "tests.app"],
    DATABASES={
        "default": {**sqlite, "NAME": sys.argv[1] + "/default"},
        "queue": {**sqlite, "NAME": sys.argv[1] + "/queue"},
    },
    TASKS={
        "default": {"BACKEND": "dbtasks.backend.DatabaseBackend", "OPTIONS": {"database": "queue"}},
        "now": {
            "BACKEND": "dbtasks.backend.DatabaseBackend",
            "OPTIONS": {"database": "queue", "immediate": True},
        },
    },
    USE_TZ=True,
)
import django
django.setup()
from django.core.management import call_command
from django.db import transaction
from dbtasks.models import ScheduledTask
from tests.app.models import Note
from tests.test_backend import tasks, work_off, write_and_break

call_command("migrate", database="queue", verbosity=0)
call_command("migrate", database="default", run_syncdb=True, verbosity=0)
queued = ScheduledTask.objects.using("queue")
with contextlib.suppress(ZeroDivisionError), transaction.atomic(using="queue"):
    tasks.note.enqueue("vanishes with the queue's transaction")
    raise ZeroDivisionError
assert queued.count() == 0
with contextlib.suppress(ZeroDivisionError), transaction.atomic(using="default"):
    kept = tasks.note.enqueue("is no part of another database's transaction")
    raise ZeroDivisionError
assert queued.count() == 1
work_off()
kept.refresh()
assert kept.status == "SUCCESSFUL", kept.errors
assert Note.objects.using("default").count() == 1
assert ScheduledTask.objects.using("default").count() == 0
with transaction.atomic(using="default"):
    assert write_and_break.using(backend="now").enqueue().status == "FAILED"
assert Note.objects.using("default").count() == 1, "half of a failed task was kept"
print("as it should be")
"""


@pytest.mark.once
def test_a_database_of_the_queues_own(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", SECOND_DATABASE, str(tmp_path)],
        env={name: text for name, text in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert child.stdout == "as it should be\n", child.stderr


def test_enqueue_refuses_to_run_in_an_event_loop() -> None:
    """Django's own rule for code that blocks; aenqueue() is there for it."""

    async def enqueue() -> None:
        tasks.noop.enqueue()

    with pytest.raises(SynchronousOnlyOperation):
        asyncio.run(enqueue())
