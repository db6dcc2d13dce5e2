"""The scheduler and the janitor as processes, and several nodes on one database."""

import collections
import datetime
import itertools
import os
import resource
import signal
import time
from pathlib import Path

import psutil
import pytest
from django.db import transaction
from django.tasks import TaskResultStatus
from django.utils import timezone

from dbtasks.models import Occurrence, ScheduledTask
from dbtasks_supervisor.signals import wait_readable
from tests.app import tasks
from tests.node import Node, finished, is_alive, lines, row_of, within
from tests.waiting import wait_until

SUCCESSFUL = TaskResultStatus.SUCCESSFUL
NOOP = "tests.app.tasks.noop"
EVERY_SECOND = {"periodic": {NOOP: "1s"}}
SHORT_LEASE = {"worker_timeout": "2s", "heartbeat": "0.5s"}
pytestmark = pytest.mark.usefixtures("db")


def deferred(seconds: float) -> datetime.datetime:
    return timezone.now() + datetime.timedelta(seconds=seconds)


# The scheduler


def test_a_killed_scheduler_is_replaced_and_time_goes_on() -> None:
    with Node(workers=1, options=EVERY_SECOND) as node:
        wait_until(Occurrence.objects.count, 5, "the first occurrence")
        late = tasks.noop.using(run_after=deferred(1.5)).enqueue()
        victim = node.child("scheduler")
        with within(1.0, "the replacement"):
            os.kill(victim, signal.SIGKILL)
            node.child("scheduler", but=victim)
        finished(late)
        last = Occurrence.objects.order_by("due_at").last()
        assert last is not None
        wait_until(Occurrence.objects.filter(due_at__gt=last.due_at).exists, 5, "another one")
        assert_no_second_is_missing_or_double()


def assert_no_second_is_missing_or_double() -> None:
    due = sorted(Occurrence.objects.values_list("due_at", flat=True))
    steps = {after - before for before, after in itertools.pairwise(due)}
    assert steps <= {datetime.timedelta(seconds=1)}, due
    enqueued = ScheduledTask.objects.filter(periodic=NOOP)
    assert enqueued.count() == len(due)
    assert {row.id for row in enqueued} == set(Occurrence.objects.values_list("task_id", flat=True))


@pytest.mark.once
def test_a_scheduler_that_dies_during_a_drain_is_replaced(tmp_path: Path) -> None:
    """The lease has to hold until the last task is done."""
    gate, started = tmp_path / "gate", tmp_path / "started"
    with Node(workers=1) as node:
        result = tasks.wait_for_file.enqueue(str(gate), str(started))
        wait_until(started.exists)
        node.signal(signal.SIGTERM)
        node.wait_log("draining")
        victim = node.child("scheduler")
        os.kill(victim, signal.SIGKILL)
        node.child("scheduler", but=victim)
        gate.touch()
        assert node.wait_exit() == 0
        assert finished(result).status == SUCCESSFUL
        assert not node.is_registered()


def test_deferred_tasks_start_when_they_are_due() -> None:
    with Node(workers=2):
        moments = [0.3, 0.9, 1.0, 1.7]
        results = [tasks.noop.using(run_after=deferred(after)).enqueue() for after in moments]
        for result in results:
            finished(result)
            assert result.started_at is not None
            assert result.task.run_after is not None
            lateness = (result.started_at - result.task.run_after).total_seconds()
            assert -0.01 <= lateness < 1.0


# The janitor


def test_a_killed_janitor_is_replaced_and_its_rescue_done(tmp_path: Path) -> None:
    """Its row is locked by somebody else, so that it has to wait; the parent waits at rest."""
    gate, started = tmp_path / "gate", tmp_path / "started"
    with Node(workers=2) as node:
        result = tasks.wait_for_file.enqueue(str(gate), str(started))
        wait_until(started.exists)
        slot = row_of(result).claimed_by.partition(".")[0].removeprefix(f"{node.name}-")
        with transaction.atomic():
            ScheduledTask.objects.select_for_update().get(pk=result.id)
            os.kill(node.child(slot), signal.SIGKILL)
            victim = node.child("janitor")
            os.kill(node.child("1" if slot == "2" else "2"), signal.SIGKILL)  # the next job
            node.wait_log("died", times=2)
            used = seconds_used(node.pid)
            time.sleep(0.5)
            assert seconds_used(node.pid) - used < 0.2, "the parent must not spin"
            os.kill(victim, signal.SIGKILL)
            node.wait_log("the janitor died")
            node.child("janitor", but=victim)
        gate.touch()
        assert finished(result).status == SUCCESSFUL
        assert len(result.errors) == 1


def seconds_used(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


# Two nodes


def test_two_nodes_share_tasks_and_run_each_once(tmp_path: Path) -> None:
    journal, gate = tmp_path / "journal", tmp_path / "gate"
    with Node(workers=2) as one, Node(workers=2) as other:
        # One for each worker holds it: a node alone can be faster than we enqueue.
        held = [tasks.journal.enqueue(str(journal), str(number), str(gate)) for number in range(4)]
        wait_until(lambda: len(lines(journal)) >= 4, 40, "each worker to run one")
        rest = [tasks.journal.enqueue(str(journal), str(number)) for number in range(4, 500)]
        gate.touch()
        results = held + rest
        wait_until(lambda: len(lines(journal)) >= 500, 40, "500 executions")
        for result in results:
            assert finished(result).status == SUCCESSFUL
        counted = collections.Counter(line.split()[0] for line in lines(journal))
        assert counted == {str(number): 1 for number in range(500)}
        workers = {result.worker_ids[0].rpartition("-")[0] for result in results}
        assert workers == {one.name, other.name}
        assert {len(result.worker_ids) for result in results} == {1}


def test_the_tasks_of_a_dead_host_are_rescued_after_its_lease(tmp_path: Path) -> None:
    gate, started = tmp_path / "gate", tmp_path / "started"
    with Node(workers=1, options=SHORT_LEASE) as survivor:
        busy = tasks.wait_for_file.enqueue(str(gate), str(tmp_path / "busy"))
        wait_until((tmp_path / "busy").exists)
        dead = Node(workers=1, options=SHORT_LEASE)
        with dead:
            result = tasks.wait_for_file.enqueue(str(gate), str(started))
            wait_until(started.exists)
            assert row_of(result).claimed_by.startswith(dead.name)
            kill_wholly(dead)
            gate.touch()
            began = time.monotonic()
            assert finished(result, 10).status == SUCCESSFUL
            assert 1.0 < time.monotonic() - began < 5.0, "a lease is two seconds"
            assert not dead.is_registered()
        assert [worker.rpartition("-")[0] for worker in result.worker_ids] == [
            dead.name,
            survivor.name,
        ]
        assert len(result.errors) == 1
        assert "lease" in result.errors[0].traceback
        assert finished(busy).attempts == 1, "the survivor's own lease held"


def kill_wholly(node: Node) -> None:
    """As a power failure does: none of its processes sees another one die."""
    pids = node.processes()
    for signum in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, signum)
    node.wait_exit()
    wait_until(lambda: not any(map(is_alive, pids)), 5)


def test_a_lease_holds_for_the_last_task_of_a_killed_parent(tmp_path: Path) -> None:
    gate, started = tmp_path / "gate", tmp_path / "started"
    with Node(workers=1, options=SHORT_LEASE) as orphan:
        result = tasks.wait_for_file.enqueue(str(gate), str(started))
        wait_until(started.exists)
        with Node(workers=1, options=SHORT_LEASE):
            orphan.signal(signal.SIGKILL)
            orphan.wait_exit()
            time.sleep(3.0)  # longer than the lease
            assert row_of(result).claimed_by.startswith(orphan.name)
            gate.touch()
            assert finished(result).attempts == 1
            wait_until(lambda: not orphan.processes(), 6, "the orphans leave")


def test_two_nodes_enqueue_each_occurrence_once() -> None:
    with Node(workers=1, options=EVERY_SECOND), Node(workers=1, options=EVERY_SECOND):
        wait_until(lambda: Occurrence.objects.count() >= 4, 10, "four occurrences")
    assert_no_second_is_missing_or_double()
    finished_rows = ScheduledTask.objects.filter(periodic=NOOP, status=SUCCESSFUL)
    assert finished_rows.count() >= 3
    for row in finished_rows:
        assert len(row.worker_ids) == 1


# Descriptors


@pytest.mark.once
def test_waiting_works_with_any_number_of_descriptors() -> None:
    """A thousand workers have descriptors that select(2) cannot take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip(f"only {hard} descriptors are allowed here (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    reader, writer = os.pipe()
    try:
        high = os.dup2(reader, 2000)
        os.write(writer, b"x")
        with within(1.0, "a descriptor that can be read"):
            wait_readable([high], 10)
        os.close(high)
    finally:
        os.close(reader)
        os.close(writer)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
