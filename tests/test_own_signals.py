"""The signals of dbtasks.signals: when they are sent, by whom, and what receivers cannot break."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.tasks import TaskResultStatus
from django.test import override_settings

from dbtasks import signals
from dbtasks.backend import DatabaseBackend
from dbtasks.engines import Rescued
from dbtasks.runner import database_backend
from dbtasks.testing import running
from tests.app import tasks
from tests.node import Node, finished, row_of, title_of
from tests.test_options import BACKEND
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("db")
DEADLINE = 30.0
Told = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def told() -> Iterator[Told]:
    """What is sent in this process."""
    heard: Told = []
    receivers = []
    for name, one in signals.BY_NAME.items():

        def receive(sender: Any, signal: Any, name: str = name, **details: Any) -> None:
            assert sender is DatabaseBackend
            heard.append((name, details))

        one.connect(receive)
        receivers.append((one, receive))
    yield heard
    for one, receive in receivers:
        one.disconnect(receive)


def only(told: Told, name: str) -> list[dict[str, Any]]:
    return [details for heard, details in list(told) if heard == name]


def test_a_runner_tells_of_its_workers_and_of_retries(told: Told) -> None:
    with running(workers=1, init_periodic=False) as runner:
        flaky = tasks.fail.using(max_attempts=2, backoff=0.01)  # type: ignore[attr-defined]
        result = flaky.enqueue("no luck")
        assert runner.wait_for(result, DEADLINE)
        node = runner.worker_id
    (started,) = only(told, "worker_started")
    (stopped,) = only(told, "worker_stopped")
    assert started == {"backend": "default", "worker_id": started["worker_id"], "node": node}
    assert stopped == started | {"crashed": False, "reason": ""}
    (retried,) = only(told, "task_retried")
    assert str(retried.pop("error")) == "no luck"
    assert retried.pop("retry_in") == pytest.approx(0.01)
    assert retried == {
        "backend": "default",
        "task_id": result.id,
        "task_path": "tests.app.tasks.fail",
        "queue": "default",
        "worker_id": started["worker_id"],
        "attempt": 1,
    }


def test_without_signals_in_options_nothing_is_sent(told: Told) -> None:

    tasks_setting = {"default": {"BACKEND": BACKEND, "QUEUES": [], "OPTIONS": {"signals": False}}}
    with override_settings(TASKS=tasks_setting), running(workers=1, init_periodic=False):
        pass
    assert told == []


@pytest.mark.parametrize("error", [RuntimeError("x"), SystemExit(3), KeyboardInterrupt()])
def test_what_a_receiver_raises_is_logged_and_harms_nothing(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def receive(**details: Any) -> None:
        raise error

    signals.worker_started.connect(receive)
    try:
        signals.send("worker_started", database_backend("default"), worker_id="w", node="n")
    finally:
        signals.worker_started.disconnect(receive)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert caplog.records[0].exc_info is not None


def test_a_rescue_tells_of_each_task_but_of_no_cancelled_one() -> None:
    rescued = Rescued(
        retried=("a" * 32,),
        failed=("b" * 32,),
        cancelled=("c" * 32,),
        tasks=tuple((letter * 32, "q", "app.task") for letter in "abc"),
    )
    details = signals.rescued_details(rescued, "worker-1", "killed")
    assert [(one["task_id"][0], one["failed"]) for one in details] == [("a", False), ("b", True)]
    assert {one["worker_id"] for one in details} == {"worker-1"}


# A node of processes


@pytest.fixture
def heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[dict[str, Any]]]:
    """What a node's processes are told, read from a file."""
    path = tmp_path / "signals"
    monkeypatch.setenv("DBTASKS_TEST_SIGNALS", str(path))

    def read(name: str) -> list[dict[str, Any]]:
        complete = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
        return [one for one in map(json.loads, complete) if one["signal"] == name]

    return read


def test_a_node_tells_everything_and_its_parent_calls_nobody(
    heard: Callable[[str], list[dict[str, Any]]],
) -> None:
    with Node(workers=1) as node:
        parent = node.pid
        deadly = tasks.os_exit.using(max_crashes=3)  # type: ignore[attr-defined]
        assert finished(deadly.enqueue(), DEADLINE).status is TaskResultStatus.FAILED
        wait_until(lambda: len(heard("task_rescued")) == 4, DEADLINE, "four rescues")
        assert [one["failed"] for one in heard("task_rescued")] == [False, False, False, True]
        wait_until(lambda: heard("node_degraded"), DEADLINE, "node_degraded")
        finished(tasks.noop.enqueue(), DEADLINE)
        node.leave()
    assert [one["crashed"] for one in heard("worker_stopped")] == [True] * 4 + [False]
    assert len(heard("worker_started")) == 5
    assert "crash again and again" in heard("node_degraded")[0]["reason"]
    assert len(heard("node_degraded")) == 1
    everything = [one for name in signals.BY_NAME for one in heard(name)]
    assert parent not in {one["pid"] for one in everything}
    assert {one["sender"] for one in everything} == {"DatabaseBackend"}


@pytest.mark.parametrize("behaviour", ["raise", "exit", "hang"])
def test_receivers_that_misbehave_stop_nobody(
    heard: Callable[[str], list[dict[str, Any]]],
    behaviour: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("DBTASKS_TEST_RECEIVER", behaviour)
    with Node("--grace", "5", workers=2) as node:
        mark = tmp_path / "runs"
        deadly = tasks.wait_for_file.enqueue(str(tmp_path / "never"), str(mark))
        wait_until(mark.exists, DEADLINE, "the task runs")
        victims = [pid for pid in node.worker_pids() if is_busy(deadly, pid)]
        os.kill(victims[0], signal.SIGKILL)
        wait_until(lambda: heard("task_rescued"), DEADLINE, "task_rescued")
        (tmp_path / "never").touch()
        assert finished(deadly, DEADLINE).status is TaskResultStatus.SUCCESSFUL
        finished(tasks.noop.enqueue(), DEADLINE)
        node.signal(signal.SIGTERM)
        assert node.wait_exit(DEADLINE) == 0


def is_busy(result: Any, pid: int) -> bool:
    """Whether this worker runs the task: its title ends with the number of its slot."""
    slot = title_of(pid).rpartition("-")[2]
    return str(row_of(result).claimed_by).rpartition(".")[0].endswith(f"-{slot}")
