"""Cancelling a task that runs: TaskCancelled is raised in it; after a grace its worker is ended."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path
from typing import Any

import pytest
from django.tasks import TaskResult

from dbtasks import TaskCancelled, operations
from dbtasks.interruption import ThreadLimit
from dbtasks.models import Cancellation
from dbtasks.runner import Runner
from tests.app import tasks
from tests.node import Node, finished, row_of
from tests.waiting import wait_until

CANCELLED = "dbtasks.exceptions.TaskCancelled"
SOON = 25.0  # seconds, generous; a request is noticed within some two


def begun(task: Any, tmp_path: Path, *arguments: object) -> TaskResult:
    """The result of a task that runs by now."""
    started = tmp_path / f"started-{uuid.uuid4().hex}"
    result = task.enqueue(str(started), *arguments)
    wait_until(started.exists, SOON, "the task starts")
    return result


def assert_cancelled(result: TaskResult) -> None:
    finished(result, SOON)
    row = row_of(result)
    assert row.status == "FAILED"
    assert [error["exception_class_path"] for error in row.errors] == [CANCELLED]
    assert row.crashes == 0
    wait_until(lambda: not Cancellation.objects.exists(), SOON, "the request is settled")


def test_a_running_task_gets_to_clean_up_and_does_not_run_again(db: None, tmp_path: Path) -> None:
    tidied = tmp_path / "tidied"
    with Node(workers=1) as node:
        (pid,) = node.wait_workers(1)
        result = begun(tasks.tidy_when_cancelled, tmp_path, str(tidied))
        assert operations.cancel([result.id], 60).asked == [uuid.UUID(result.id)]
        assert_cancelled(result)
        assert tidied.exists()
        assert "tidy_when_cancelled" in row_of(result).errors[0]["traceback"]
        finished(tasks.noop.enqueue())
        assert node.worker_pids() == [pid]
        assert "was cancelled" in node.log()


def test_a_task_that_goes_on_is_ended_with_its_worker(db: None, tmp_path: Path) -> None:
    with Node(workers=1, options={"max_crashes": 0}) as node:
        (pid,) = node.wait_workers(1)
        result = begun(tasks.stubborn, tmp_path)
        operations.cancel([result.id], 0.2)
        assert_cancelled(result)
        wait_until(lambda: node.worker_pids() not in ([pid], []), SOON, "a new worker")
        finished(tasks.noop.enqueue())
        assert "its task was cancelled and did not end in time" in node.log()


def test_a_task_that_ends_first_keeps_its_result(db: None, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with Node(workers=1):
        started = tmp_path / "started"
        result = tasks.finish_when_cancelled.enqueue(str(started), str(gate))
        wait_until(started.exists, SOON)
        operations.cancel([result.id], 60)
        assert finished(result, SOON).status == "SUCCESSFUL"
        assert result.return_value == "done all the same"
        wait_until(lambda: not Cancellation.objects.exists(), SOON)


def test_only_the_task_that_was_cancelled_ends(db: None, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with Node(workers=2):
        started = tmp_path / "started"
        other = tasks.wait_for_file.enqueue(str(gate), str(started))
        wait_until(started.exists, SOON)
        result = begun(tasks.stubborn, tmp_path)
        operations.cancel([result.id], 0.2)
        assert_cancelled(result)
        assert row_of(other).status == "RUNNING"
        gate.touch()
        finished(other)


def test_a_task_that_waits_behind_another_one_never_runs(db: None, tmp_path: Path) -> None:
    gate, log = tmp_path / "gate", tmp_path / "log"
    with Node(workers=1):
        started = tmp_path / "started"
        blocking = tasks.wait_for_file.enqueue(str(gate), str(started))
        wait_until(started.exists, SOON)
        behind = tasks.journal.enqueue(str(log))
        operations.cancel([behind.id])
        assert_cancelled(behind)
        gate.touch()
        finished(blocking)
        finished(tasks.noop.enqueue())
    assert not log.exists()


def test_a_task_can_be_cancelled_while_its_node_drains(db: None, tmp_path: Path) -> None:
    import signal

    with Node("--grace", "120", workers=1) as node:
        result = begun(tasks.tidy_when_cancelled, tmp_path, str(tmp_path / "tidied"))
        node.signal(signal.SIGTERM)
        node.wait_log("draining")
        operations.cancel([result.id])
        assert node.wait_exit(60) == 0
        assert_cancelled_without_node(result)


def test_a_task_can_be_cancelled_in_a_worker_from_before_a_reload(db: None, tmp_path: Path) -> None:
    import signal

    with Node(workers=1) as node:
        result = begun(tasks.wait_for_file_after, tmp_path, str(tmp_path / "gate"))
        node.signal(signal.SIGHUP)
        node.wait_log("from before the reload", 60)
        node.wait_log(f"{node.name} ready", 60, times=2)
        operations.cancel([result.id], 60)
        assert_cancelled(result)
        finished(tasks.noop.enqueue(), SOON)


def assert_cancelled_without_node(result: TaskResult) -> None:
    finished(result)
    assert row_of(result).errors[-1]["exception_class_path"] == CANCELLED


def test_a_cancelled_task_of_a_killed_node_is_not_run_again(db: None, tmp_path: Path) -> None:
    """The request outlives the node that it was for."""
    from tests.engines import EVERYTHING, ME, fresh_engine

    engine = fresh_engine()
    result = tasks.noop.enqueue()
    engine.claim(ME, EVERYTHING)  # a node that nobody will ever hear of again
    operations.cancel([result.id])
    with Node(workers=1):
        assert_cancelled(result)


# Threads


def run_in_thread(runner: Runner) -> threading.Thread:
    thread = threading.Thread(target=runner.run)
    thread.start()
    return thread


def test_a_worker_thread_raises_it_too(db: None, tmp_path: Path) -> None:
    runner = Runner(workers=1, worker_id="r", loop_delay=0.05)
    thread = run_in_thread(runner)
    try:
        tidied = tmp_path / "tidied"
        result = begun(tasks.tidy_when_cancelled, tmp_path, str(tidied))
        operations.cancel([result.id])
        assert_cancelled(result)
        assert tidied.exists()
        assert runner.wait_for(tasks.noop.enqueue(), 30)
    finally:
        runner.stop()
        thread.join(30)


@pytest.mark.once
def test_a_thread_that_runs_another_attempt_is_left_alone() -> None:
    limit = ThreadLimit()
    limit.attempt = ("a", 1)
    with limit(None):
        assert not limit.cancel(("a", 2))
        assert not limit.cancel(("b", 1))
    assert not limit.cancel(("a", 1))


@pytest.mark.once
def test_a_thread_that_runs_it_is_told_once() -> None:
    limit = ThreadLimit()
    limit.attempt = ("a", 1)

    def run() -> None:
        with limit(None):
            assert limit.cancel(("a", 1))
            for _ in range(1_000_000):
                pass

    with pytest.raises(TaskCancelled, match="cancelled"):
        run()
