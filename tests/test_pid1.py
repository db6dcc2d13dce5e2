"""The supervisor as the first process of a container: a namespace of process ids of its own."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
from django.tasks import TaskResultStatus, task

from tests.app import tasks
from tests.node import Node, finished, row_of, state_of, within
from tests.waiting import wait_until

UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
SUCCESSFUL = TaskResultStatus.SUCCESSFUL


@pytest.fixture(autouse=True, scope="module")
def namespaces() -> None:
    """Skips where the kernel or the container does not allow a namespace."""
    command = [*UNSHARE, "true"]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except FileNotFoundError:
        pytest.skip("unshare(1) of util-linux is missing")
    if tried.returncode:
        pytest.skip(f"{' '.join(command)} is not allowed here: {tried.stderr.strip()}")


pytestmark = [pytest.mark.once, pytest.mark.usefixtures("namespaces", "db")]


@task
def own_and_parents_pid() -> list[int]:
    return [os.getpid(), os.getppid()]


@task
def leave_orphans(count: int) -> None:
    """Grandchildren whose parent is gone, so that they are the supervisor's to reap."""
    for _ in range(count):
        if os.fork() == 0:
            for _ in range(2):
                if os.fork() == 0:
                    os.setsid()  # out of reach of what ends the worker's process group
                    os._exit(7)
            os._exit(0)
        os.wait()


class Container(Node):
    """A node whose supervisor is process 1; `pid` is that of unshare(1), which ends as it does."""

    def __enter__(self) -> Self:
        super().__enter__()
        self.supervisor = self._find_supervisor() if self.await_ready else 0
        return self

    def command(self) -> list[str]:
        return [*UNSHARE, *super().command()]

    def _find_supervisor(self) -> int:
        children = psutil.Process(self.pid).children
        return int(wait_until(children, 5, "unshare forks")[0].pid)

    def signal(self, signum: signal.Signals) -> None:
        os.kill(self.supervisor, signum)

    def zombies(self) -> list[int]:
        with open(f"/proc/{self.supervisor}/task/{self.supervisor}/children") as file:
            return [pid for pid in map(int, file.read().split()) if state_of(pid) == "Z"]


@pytest.mark.parametrize("entry", ["cli", "django"])
def test_term_drains_and_the_exit_code_is_zero(entry: str, tmp_path: Path) -> None:
    gate, started = tmp_path / "gate", tmp_path / "started"
    with Container(entry=entry) as node:
        worker, parent = finished(own_and_parents_pid.enqueue()).return_value
        assert parent == 1
        assert worker < 100
        running = tasks.wait_for_file.enqueue(str(gate), str(started))
        wait_until(started.exists)
        node.signal(signal.SIGTERM)
        node.wait_log("draining")
        gate.touch()
        assert node.wait_exit() == 0
        assert finished(running).status == SUCCESSFUL


def test_quit_gives_the_tasks_back_and_the_exit_code_is_zero(tmp_path: Path) -> None:
    gate, started = tmp_path / "gate", tmp_path / "started"
    with Container(workers=1) as node:
        running = tasks.wait_for_file.enqueue(str(gate), str(started))
        wait_until(started.exists)
        with within(3.0, "the exit"):
            node.signal(signal.SIGQUIT)
            assert node.wait_exit() == 0
        row = row_of(running)
        assert (row.status, row.crashes, row.claimed_by) == ("READY", 0, None)


def test_orphans_are_reaped() -> None:
    with Container(workers=1) as node:
        assert finished(leave_orphans.enqueue(20)).status == SUCCESSFUL
        wait_until(lambda: not node.zombies(), 3, "no zombie is left")
        wait_until(lambda: len(node.processes()) == 4, 3, "unshare, supervisor, two children")
        assert "died" not in node.log()


def test_a_killed_worker_is_replaced_and_the_cause_is_told(tmp_path: Path) -> None:
    gate, started = tmp_path / "gate", tmp_path / "started"
    with Container(workers=1) as node:
        running = tasks.wait_for_file.enqueue(str(gate), str(started))
        wait_until(started.exists)
        os.kill(node.child("1"), signal.SIGKILL)
        gate.touch()
        assert finished(running).status == SUCCESSFUL
        assert "killed by SIGKILL; the kernel's out-of-memory killer" in running.errors[0].traceback


def test_term_at_any_time_of_the_boot_is_heard() -> None:
    """The kernel keeps signals without a handler from process 1, so it is sent until then."""
    for _ in range(5):
        with Container(ready=False) as node:
            node.supervisor = node._find_supervisor()
            time_of_term = time.monotonic() + random.uniform(0.0, 0.6)

            def has_ended(node: Container = node, since: float = time_of_term) -> bool:
                if time.monotonic() > since:
                    with contextlib.suppress(ProcessLookupError):
                        node.signal(signal.SIGTERM)
                return not node.running

            wait_until(has_ended, 10, "it leaves")
            assert node.wait_exit() == 0
            assert "died" not in node.log()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--settings", "tests.settings", "--workers", "none"], 2),
        (["--settings", "tests.settings.missing"], 3),
        (["--settings", "tests.settings", "--check"], 0),
    ],
    ids=["wrong flag", "no such settings", "check"],
)
def test_exit_codes_are_those_of_any_other_process(arguments: list[str], code: int) -> None:
    command: list[Any] = [*UNSHARE, sys.executable, "-m", "dbtasks_supervisor.cli", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert ended.returncode == code, ended.stderr
