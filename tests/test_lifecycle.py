"""A supervisor's life from boot to exit, and every signal on the way.

Each `Node` also asserts at its end that no process and no claimed row is left.
"""

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest
from django.db import connection
from django.tasks import TaskResult, TaskResultStatus, task

from dbtasks.exceptions import TaskInterrupted
from tests.app.tasks import noop, pid, wait_for_file
from tests.node import Node, finished, is_alive, row_of, state_of, title_of, within
from tests.waiting import wait_until

READY, SUCCESSFUL = TaskResultStatus.READY, TaskResultStatus.SUCCESSFUL
pytestmark = pytest.mark.usefixtures("db")


@task
def swallow_interruption(started: str) -> None:
    """Runs on whatever is raised in it."""
    open(started, "w").close()
    while True:
        with contextlib.suppress(TaskInterrupted):
            time.sleep(60)


@task
def start_child(path: str) -> int:
    """Leaves a process behind that nobody waits for."""
    child = os.posix_spawn("/bin/sleep", ["sleep", "600"], {})
    Path(path).write_text(str(child))
    return child


class Busy:
    """A task that runs until it is let go."""

    def __init__(self, folder: Path) -> None:
        name = f"{random.getrandbits(32):08x}"
        self.gate, self.started = folder / f"{name}.gate", folder / f"{name}.started"
        self.result: TaskResult = wait_for_file.enqueue(str(self.gate), str(self.started))

    def wait_started(self) -> "Busy":
        wait_until(self.started.exists, 10, "the task starts")
        return self

    def let_go(self) -> None:
        self.gate.touch()


@pytest.fixture
def busy(tmp_path: Path) -> type[Busy]:
    """Makes busy tasks in the test's own folder."""

    class Here(Busy):
        def __init__(self) -> None:
            super().__init__(tmp_path)

    return Here


def assert_as_never_run(result: TaskResult) -> None:
    """The attempt was not counted: the row is as it was before."""
    result.refresh()
    assert result.status == READY
    assert result.errors == []
    assert result.worker_ids == []
    row = row_of(result)
    assert (row.crashes, row.failures, row.claimed_by) == (0, 0, None)


# SIGTERM


@pytest.mark.once
@pytest.mark.parametrize("entry", ["cli", "django"])
def test_term_ends_an_idle_node_at_once(entry: str) -> None:
    with Node(entry=entry) as node:
        with within(2.0, "an idle node's exit"):
            node.signal(signal.SIGTERM)
            assert node.wait_exit() == 0
        assert not node.is_registered()


def test_term_lets_a_running_task_finish_and_claims_no_other(busy: type[Busy]) -> None:
    with Node(workers=2) as node:
        running = busy().wait_started()
        node.signal(signal.SIGTERM)
        node.wait_log("draining")
        node.wait_workers(1)  # the idle one leaves
        later = noop.enqueue()
        running.let_go()
        assert node.wait_exit() == 0
        assert finished(running.result).status == SUCCESSFUL
        assert_as_never_run(later)


@pytest.mark.once
def test_five_terms_are_one(busy: type[Busy]) -> None:
    with Node(workers=1) as node:
        running = busy().wait_started()
        for _ in range(5):
            node.signal(signal.SIGTERM)
            time.sleep(0.02)
        node.wait_log("draining")
        running.let_go()
        assert node.wait_exit() == 0
        assert finished(running.result).status == SUCCESSFUL
        assert node.log().count("draining") == 1


@pytest.mark.once
def test_a_draining_supervisor_waits_without_work(busy: type[Busy]) -> None:
    """An empty slot or a deadline in the past must not keep its loop spinning."""
    with Node(workers=3) as node:
        running = busy().wait_started()
        node.signal(signal.SIGTERM)
        node.wait_workers(1)
        parent = psutil.Process(node.pid)
        before = parent.cpu_times().user + parent.cpu_times().system
        time.sleep(1.0)
        used = parent.cpu_times().user + parent.cpu_times().system - before
        running.let_go()
        assert used < 0.3, f"the supervisor used {used:.2f} s of a second"


def test_what_overruns_the_grace_period_goes_back_uncounted(busy: type[Busy]) -> None:
    with Node("--grace", "0.5", workers=1) as node:
        running = busy().wait_started()
        node.signal(signal.SIGTERM)
        assert node.wait_exit() == 0
        assert_as_never_run(running.result)
    with Node(workers=1):
        running.let_go()
        assert finished(running.result).attempts == 1


@pytest.mark.once
def test_a_task_that_swallows_its_interruption_is_killed_uncounted(tmp_path: Path) -> None:
    started = tmp_path / "started"
    with Node("--grace", "0.2", workers=1) as node:
        result = swallow_interruption.enqueue(str(started))
        wait_until(started.exists)
        node.signal(signal.SIGTERM)
        began = time.monotonic()
        assert node.wait_exit() == 0
        assert 5.0 <= time.monotonic() - began < 8.0
        assert_as_never_run(result)


@pytest.mark.once
def test_a_child_process_of_a_task_ends_with_its_draining_worker(tmp_path: Path) -> None:
    with Node(workers=1) as node:
        child = finished(start_child.enqueue(str(tmp_path / "pid"))).return_value
        assert is_alive(child)
        node.signal(signal.SIGTERM)
        assert node.wait_exit() == 0
        wait_until(lambda: not is_alive(child), 2, "the task's child ends with its worker")


def test_a_worker_that_dies_during_the_drain_is_rescued_before_the_exit(busy: type[Busy]) -> None:
    with Node(workers=1) as node:
        running = busy().wait_started()
        node.signal(signal.SIGTERM)
        node.wait_log("draining")
        os.kill(node.child("1"), signal.SIGKILL)
        assert node.wait_exit() == 0
        running.result.refresh()
        assert running.result.status == READY
        assert len(running.result.errors) == 1


# SIGINT and SIGQUIT


@pytest.mark.once
def test_int_drains(busy: type[Busy]) -> None:
    with Node(workers=1) as node:
        running = busy().wait_started()
        node.signal(signal.SIGINT)
        node.wait_log("draining")
        running.let_go()
        assert node.wait_exit() == 0
        assert finished(running.result).status == SUCCESSFUL


@pytest.mark.once
def test_a_second_int_interrupts(busy: type[Busy]) -> None:
    with Node(workers=1) as node:
        running = busy().wait_started()
        node.signal(signal.SIGINT)
        node.wait_log("draining")
        node.signal(signal.SIGINT)
        assert node.wait_exit(3) == 0
        assert_as_never_run(running.result)


@pytest.mark.once
def test_a_third_int_kills(tmp_path: Path) -> None:
    started = tmp_path / "started"
    with Node(workers=1) as node:
        result = swallow_interruption.enqueue(str(started))
        wait_until(started.exists)
        for told in ("draining", "interrupting", "died"):
            node.signal(signal.SIGINT)
            node.wait_log(told)
        assert node.wait_exit(3) == 0
        assert_as_never_run(result)


@pytest.mark.once
def test_ctrl_c_reaches_the_supervisor_only(busy: type[Busy]) -> None:
    with Node(workers=2) as node:
        running = busy().wait_started()
        os.killpg(node.pid, signal.SIGINT)  # what a terminal does
        node.wait_log("draining")
        running.let_go()
        assert node.wait_exit() == 0
        assert finished(running.result).status == SUCCESSFUL


def test_quit_kills_at_once_and_gives_the_tasks_back(busy: type[Busy]) -> None:
    with Node(workers=2) as node:
        running = [busy().wait_started(), busy().wait_started()]
        with within(3.0, "the exit"):
            node.signal(signal.SIGQUIT)
            assert node.wait_exit() == 0
        for one in running:
            assert_as_never_run(one.result)
        assert not node.is_registered()


# The other signals


@pytest.mark.once
def test_ttin_and_ttou_change_the_number_of_workers(busy: type[Busy]) -> None:
    with Node(workers=1) as node:
        node.signal(signal.SIGTTIN)
        node.wait_workers(2)
        node.signal(signal.SIGTTIN)
        node.wait_workers(3)
        node.wait_log("ready")
        for left in (2, 1):
            node.signal(signal.SIGTTOU)
            node.wait_workers(left)
        node.signal(signal.SIGTTOU)
        node.signal(signal.SIGUSR2)  # answered after it
        node.wait_log("Current thread")
        assert len(node.worker_pids()) == 1, "there is always one worker"
        node.signal(signal.SIGTTIN)  # the slot is used again
        node.wait_workers(2)
        assert node.child("2")
        assert finished(pid.enqueue()).return_value in node.worker_pids()
        assert "died" not in node.log()


@pytest.mark.once
def test_a_worker_that_is_one_too_many_finishes_its_task(busy: type[Busy]) -> None:
    with Node(workers=2) as node:
        running = [busy().wait_started(), busy().wait_started()]
        node.signal(signal.SIGTTOU)
        node.wait_log("one worker less")
        for one in running:
            one.let_go()
            assert finished(one.result).status == SUCCESSFUL
        node.wait_workers(1)


@pytest.mark.once
def test_usr2_shows_all_stacks_and_harms_nobody(busy: type[Busy]) -> None:
    with Node(workers=2) as node:
        running = busy().wait_started()
        before = set(node.processes())
        node.signal(signal.SIGUSR2)
        node.wait_log("Current thread", times=4)  # parent, scheduler, two workers
        node.wait_log("wait_for_file")
        running.let_go()
        assert finished(running.result).status == SUCCESSFUL
        assert set(node.processes()) == before


@pytest.mark.once
def test_usr1_reopens_logs_and_harms_nobody(busy: type[Busy]) -> None:
    with Node(workers=2) as node:
        running = busy().wait_started()
        before = set(node.processes())
        for _ in range(3):
            node.signal(signal.SIGUSR1)
        running.let_go()
        assert finished(running.result).status == SUCCESSFUL
        assert finished(noop.enqueue()).status == SUCCESSFUL
        assert set(node.processes()) == before


@pytest.mark.once
def test_term_to_every_process_at_once_ends_cleanly(busy: type[Busy]) -> None:
    """What systemd does with KillMode=control-group."""
    with Node(workers=2) as node:
        running = busy().wait_started()
        for one in node.processes():
            with contextlib.suppress(ProcessLookupError):  # it may have heard of it already
                os.kill(one, signal.SIGTERM)
        node.wait_log("draining")
        running.let_go()
        assert node.wait_exit() == 0
        assert finished(running.result).status == SUCCESSFUL
        assert "died" not in node.log()


# Boot


@pytest.mark.once
def test_term_at_any_time_of_the_boot_leaves_nothing() -> None:
    codes = set()
    for _ in range(10):
        with Node(workers=2, ready=False) as one, Node(workers=2, ready=False) as other:
            first, second = sorted(random.uniform(0.0, 0.8) for _ in range(2))
            time.sleep(first)
            one.signal(signal.SIGTERM)
            time.sleep(second - first)
            other.signal(signal.SIGTERM)
            for node in (one, other):
                codes.add(node.wait_exit())
                # The exit may hit a callback of the import system, which tells and forgets it; the
                # supervisor finds the signal again when it has booted.
                told = node.log().partition("Exception ignored in")[0]
                assert "Traceback" not in told
                assert "died" not in node.log()
    # Before Python can hear it, the signal ends the process as it ends any other.
    assert codes <= {0, -signal.SIGTERM}
    assert 0 in codes


# What the parent is


@pytest.mark.once
def test_process_titles_name_the_node_and_the_role() -> None:
    with Node(workers=2) as node:
        assert title_of(node.pid) == f"dbtasks: {node.name} supervisor"
        shown = sorted(node.titles().values())
        assert shown == [
            f"dbtasks: {node.name} supervisor",
            f"dbtasks: {node.name}-1",
            f"dbtasks: {node.name}-2",
            f"dbtasks: {node.name}-scheduler",
        ]


def test_the_parent_has_one_thread_and_no_database_connection(
    busy: type[Busy], database: str
) -> None:
    with Node(workers=2) as node:
        running = busy().wait_started()
        os.kill(node.child("1"), signal.SIGKILL)  # a death and its rescue change nothing
        running.let_go()
        assert finished(running.result).status == SUCCESSFUL
        wait_until(lambda: not node.children("janitor"), 5, "the janitor leaves")
        assert len(os.listdir(f"/proc/{node.pid}/task")) == 1
        parent = psutil.Process(node.pid)
        assert parent.net_connections("inet") == []
        name = str(connection.settings_dict["NAME"])
        assert not any(file.path.startswith(name) for file in parent.open_files())
        if database == "postgresql":
            node.wait_workers(2)
            wait_until(lambda: connections_of_others() == 3, 5, "two workers and a scheduler")


def connections_of_others() -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return int(cursor.fetchone()[0])


# The parent's death


@pytest.mark.once
def test_the_node_outlives_a_killed_parent_until_its_tasks_are_done(busy: type[Busy]) -> None:
    with Node(workers=3) as node:
        running = busy().wait_started()
        scheduler = node.child("scheduler")
        node.signal(signal.SIGKILL)
        assert node.wait_exit() == -signal.SIGKILL
        node.wait_workers(1)  # the idle ones leave at once
        never_claimed = [noop.enqueue() for _ in range(3)]
        assert is_alive(scheduler)
        assert node.is_registered(), "the lease must hold while a task runs"
        running.let_go()
        assert finished(running.result).status == SUCCESSFUL
        assert len(running.result.worker_ids) == 1
        wait_until(lambda: not node.processes(), 6, "the scheduler leaves last")
        assert not node.is_registered()
        for one in never_claimed:
            assert_as_never_run(one)


@pytest.mark.once
def test_an_idle_node_whose_parent_is_killed_is_gone_at_once() -> None:
    with Node(workers=2) as node:
        node.signal(signal.SIGKILL)
        assert node.wait_exit() == -signal.SIGKILL
        wait_until(lambda: not node.processes(), 3, "all leave")
        assert not node.is_registered()


def test_a_worker_that_dies_after_its_parent_is_rescued_by_the_scheduler(busy: type[Busy]) -> None:
    with Node(workers=1) as node:
        running = busy().wait_started()
        worker = node.child("1")
        node.signal(signal.SIGKILL)
        assert node.wait_exit() == -signal.SIGKILL
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: not node.processes(), 6, "the scheduler leaves")
        running.result.refresh()
        assert running.result.status == READY
        assert [e.exception_class_path for e in running.result.errors] == [
            "dbtasks.exceptions.WorkerDied"
        ]


# Waking up


def test_an_idle_node_starts_a_task_well_under_a_second() -> None:
    with Node(workers=1):
        for _ in range(10):
            with within(0.5, "an idle worker's way to its task"):
                finished(noop.enqueue())
            time.sleep(random.uniform(0.0, 0.1))


@pytest.mark.once
def test_tasks_in_quick_succession_wait_for_nothing() -> None:
    """A worker that has just been woken must hear of the next task too."""
    with Node(workers=1):
        finished(noop.enqueue())
        slowest = 0.0
        for _ in range(40):
            began = time.monotonic()
            finished(noop.enqueue())
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(random.uniform(0.0, 0.06))
        assert slowest < 0.7, f"one task waited {slowest:.2f} s"


@pytest.mark.once
def test_a_stopped_parent_does_not_stop_its_busy_workers(busy: type[Busy]) -> None:
    with Node(workers=1) as node:
        running = busy().wait_started()
        node.signal(signal.SIGSTOP)
        wait_until(lambda: state_of(node.pid) == "T", 2, "the parent is stopped")
        running.let_go()
        assert finished(running.result).status == SUCCESSFUL
        node.signal(signal.SIGCONT)
        assert finished(noop.enqueue()).status == SUCCESSFUL


@pytest.mark.parametrize("mode", ["process", "thread"])
def test_a_shower_of_terms_until_the_process_is_gone_is_one_term(mode: str) -> None:
    """Who asks twice must not turn a clean exit into a death by SIGTERM."""
    with Node("--mode", mode, workers=1, ready=False) as node:
        node.wait_log(" ready")
        with contextlib.suppress(ProcessLookupError):
            while node.running:
                node.signal(signal.SIGTERM)
        assert node.wait_exit() == 0
