"""A node that stands still for longer than its lease, and one that drains for longer than it."""

import os
import signal
from pathlib import Path

import pytest
from django.db import transaction
from django.tasks import TaskResultStatus, task

from dbtasks.models import Node as NodeRow
from dbtasks.models import ScheduledTask
from tests.app import tasks
from tests.node import Node, finished, lines, row_of, state_of
from tests.waiting import wait_until

SHORT_LEASE = {"worker_timeout": "2s", "heartbeat": "0.5s"}
SUCCESSFUL = TaskResultStatus.SUCCESSFUL
pytestmark = pytest.mark.usefixtures("db")


@task
def journal_and_wait(journal: str, gate: str) -> int:
    tasks.journal.func(journal, "ran")
    tasks.wait_for_file.func(gate)
    return os.getpid()


def stop(node: Node) -> list[int]:
    """As a suspended virtual machine is: nobody of it sees another one stand still."""
    pids = node.processes()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: {state_of(pid) for pid in pids} == {"T"}, 5, "all stand still")
    return pids


def test_what_a_stopped_node_ran_is_run_by_another_and_its_own_result_dropped(
    tmp_path: Path,
) -> None:
    journal, gate = tmp_path / "journal", tmp_path / "gate"
    with Node(workers=2, options=SHORT_LEASE) as stopped:
        results = [journal_and_wait.enqueue(str(journal), str(gate)) for _ in range(2)]
        wait_until(lambda: len(lines(journal)) == 2, 10, "both run")
        with Node(workers=2, options=SHORT_LEASE) as other:
            pids = stop(stopped)
            # A node that was late itself trusts others for ten seconds more.
            wait_until(lambda: len(lines(journal)) == 4, 30, "both run again")
            assert not stopped.claims()
            gate.touch()
            for result in results:
                assert finished(result).status == SUCCESSFUL
                assert result.return_value in other.worker_pids()
            written = {row.id: row for row in ScheduledTask.objects.all()}
            for pid in reversed(pids):
                os.kill(pid, signal.SIGCONT)
            stopped.wait_log("so this result is dropped", times=2)
            wait_until(stopped.is_registered, 5, "it takes part again")
            for result in results:
                row = row_of(result)
                assert row.worker_ids == written[row.id].worker_ids
                assert [worker.partition("-")[0] for worker in row.worker_ids] == [
                    stopped.name,
                    other.name,
                ]
                assert (row.return_value, row.finished_at) == (
                    written[row.id].return_value,
                    written[row.id].finished_at,
                )
                assert len(row.errors) == 1
        assert finished(tasks.pid.enqueue()).return_value in stopped.worker_pids()
        assert "died" not in stopped.log()
    assert len(lines(journal)) == 4


def test_the_lease_is_renewed_until_the_last_task_of_a_drain_is_done(tmp_path: Path) -> None:
    gate, started = tmp_path / "gate", tmp_path / "started"
    with Node(workers=1, options=SHORT_LEASE) as draining:
        result = tasks.wait_for_file.enqueue(str(gate), str(started))
        wait_until(started.exists)
        with Node(workers=1, options=SHORT_LEASE):
            draining.signal(signal.SIGTERM)
            draining.wait_log("draining")
            expired = NodeRow.objects.get(name=draining.name).expires_at
            wait_until(
                NodeRow.objects.filter(name=draining.name, last_seen__gt=expired).exists,
                10,
                "a renewal after the lease that it had when the drain began",
            )
            gate.touch()
            assert finished(result).attempts == 1
            assert draining.wait_exit() == 0
        assert not draining.is_registered()


def test_term_during_a_rescue_leaves_after_it(tmp_path: Path) -> None:
    """Somebody else locks the dead worker's row, so that the rescue has to wait."""
    gate, started = tmp_path / "gate", tmp_path / "started"
    with Node(workers=1) as node:
        result = tasks.wait_for_file.enqueue(str(gate), str(started))
        wait_until(started.exists)
        with transaction.atomic():
            ScheduledTask.objects.select_for_update().get(pk=result.id)
            os.kill(node.child("1"), signal.SIGKILL)
            node.child("janitor")
            node.signal(signal.SIGTERM)
            node.wait_log("draining")
        assert node.wait_exit() == 0
        row = row_of(result)
        assert (row.status, row.crashes, row.claimed_by) == ("READY", 1, None)
