"""A TaskResult is made for the signals if somebody hears them, and then always."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from django.tasks import TaskResultStatus, signals, task_backends
from django.test import override_settings
from django.utils.log import RequireDebugTrue

from dbtasks import task
from dbtasks.execution import Execution, execute
from dbtasks.listeners import anybody_hears_enqueues, anybody_listens
from tests.app import tasks
from tests.test_backend import work_off
from tests.test_execution import WHO, claim

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("db")]
LOGGER = logging.getLogger("django.tasks")
HEARD: list[TaskResultStatus] = []


def hear(task_result: Any, **kwargs: Any) -> None:
    HEARD.append(task_result.status)


@task
def connect_a_receiver() -> None:
    signals.task_finished.connect(hear)


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    level, propagate, handlers = LOGGER.level, LOGGER.propagate, LOGGER.handlers
    HEARD.clear()
    yield
    signals.task_enqueued.disconnect(hear)
    signals.task_started.disconnect(hear)
    signals.task_finished.disconnect(hear)
    LOGGER.handlers, LOGGER.propagate = handlers, propagate
    LOGGER.setLevel(level)


def show_information() -> None:
    """From now on to nobody: pytest's own handlers do not count."""
    LOGGER.setLevel(logging.INFO)
    LOGGER.handlers, LOGGER.propagate = [], False


def run() -> Execution:
    return execute(task_backends["default"], claim(), WHO.worker)


def test_nobody_listens_to_tasks_that_go_well() -> None:
    tasks.noop.enqueue()
    assert not anybody_listens()
    assert run().result is None


@pytest.mark.parametrize("signal", [signals.task_started, signals.task_finished])
def test_a_receiver_listens(signal: Any) -> None:
    tasks.noop.enqueue()
    signal.connect(hear)
    assert anybody_listens()
    assert run().result is not None


def test_a_receiver_that_the_task_connects_hears_its_end() -> None:
    connect_a_receiver.enqueue()
    work_off()
    assert HEARD == [TaskResultStatus.SUCCESSFUL]


def test_a_failure_is_logged_by_django_as_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler()
    handler.setLevel(logging.ERROR)
    LOGGER.addHandler(handler)
    tasks.fail.enqueue()
    tasks.noop.enqueue()
    assert not anybody_listens()
    work_off()
    lines = [line for line in capsys.readouterr().err.splitlines() if "Task id=" in line]
    assert len(lines) == 1
    assert lines[0].endswith("path=tests.app.tasks.fail state=FAILED")


def test_a_log_that_shows_information_listens(capsys: pytest.CaptureFixture[str]) -> None:
    show_information()
    assert not anybody_listens()  # a record of it would go nowhere
    LOGGER.addHandler(logging.StreamHandler())
    assert anybody_listens()
    tasks.noop.enqueue()
    work_off()
    lines = [line for line in capsys.readouterr().err.splitlines() if "Task id=" in line]
    assert [line.rpartition("=")[2] for line in lines] == ["RUNNING", "SUCCESSFUL"]


def test_djangos_own_console_handler_listens_in_development_only() -> None:
    show_information()
    handler = logging.StreamHandler()
    handler.addFilter(RequireDebugTrue())
    LOGGER.addHandler(handler)
    assert not anybody_listens()
    with override_settings(DEBUG=True):
        assert anybody_listens()


def test_nobody_hears_what_is_enqueued() -> None:
    assert not anybody_hears_enqueues()


def test_a_receiver_hears_what_is_enqueued() -> None:
    signals.task_enqueued.connect(hear)
    tasks.noop.enqueue()
    assert HEARD == [TaskResultStatus.READY]


def test_what_django_logs_of_an_enqueue_is_still_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "django.tasks"):
        assert anybody_hears_enqueues()
        tasks.noop.enqueue()
    assert "enqueued" in caplog.text
