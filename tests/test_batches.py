"""A worker claims several rows at once, and nothing waits for that: not behind a slow task, not
unwritten, not after a crash."""

import os
import random
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from django.db import DataError, OperationalError
from django.tasks import TaskResult, default_task_backend

from dbtasks.engines import Claimant, Death, Engine, Outcome
from dbtasks.hand import Handover
from dbtasks.models import ScheduledTask
from dbtasks.queues import QueueSelection
from dbtasks.relief import Relief
from dbtasks.runner import Runner
from dbtasks.testing import running
from dbtasks_supervisor.janitor import Rescue
from tests.app import tasks
from tests.engines import outcome_of
from tests.node import Node, finished, lines, row_of, within
from tests.steps import FAST, Steps, numbered, unfinished
from tests.waiting import wait_until

KILLS = 6


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    return Steps(tmp_path)


@pytest.fixture
def node(db: None) -> Iterator[Node]:
    with Node() as node:
        yield node


@pytest.mark.once
def test_what_is_claimed_behind_a_slow_task_starts_elsewhere(node: Node, steps: Steps) -> None:
    steps.teach()
    slow, *_ = steps.enqueue("slow", *numbered(FAST))
    pid = steps.wait_for_slow()
    with within(5.0, "the others are done"):
        wait_until(lambda: unfinished() == 1)
    assert row_of(slow).status == "RUNNING"
    elsewhere = {line.split()[1] for line in lines(steps.journal) if line.startswith("fast")}
    assert str(pid) not in elsewhere
    steps.gate.touch()
    assert finished(slow).status == "SUCCESSFUL"
    assert set(steps.starts.values()) == {1}
    assert "dropped" not in node.log()


def test_what_a_scheduler_was_to_settle_does_not_wait_until_it_goes_on(
    node: Node, steps: Steps
) -> None:
    steps.teach()
    scheduler = node.child("scheduler")
    stop, after = (scheduler, signal.SIGSTOP), [f"after{number}" for number in range(FAST)]
    results = steps.enqueue(*numbered(FAST), "slow", *after, signal=stop)
    steps.wait_for_slow()
    with within(8.0, "the others are done"):  # after 10 s it would be replaced
        wait_until(lambda: unfinished() == 1, 8.0)
    assert scheduler == node.child("scheduler")
    os.kill(scheduler, signal.SIGCONT)
    steps.gate.touch()
    assert {finished(result).status for result in results} == {"SUCCESSFUL"}
    assert set(steps.starts.values()) == {1}
    assert "dropped" not in node.log()


@pytest.mark.once
def test_a_result_does_not_wait_for_the_slow_task_after_it(node: Node, steps: Steps) -> None:
    steps.teach()
    *fast, slow = steps.enqueue(*numbered(FAST), "slow")
    steps.wait_for_slow()
    with within(5.0, "the results are written"):
        wait_until(lambda: unfinished() == 1)
    assert row_of(slow).status == "RUNNING"
    steps.gate.touch()
    assert finished(slow).status == "SUCCESSFUL"
    assert {finished(result).status for result in fast} == {"SUCCESSFUL"}
    assert set(steps.starts.values()) == {1}
    assert "dropped" not in node.log()


def test_a_crash_repeats_nothing_but_the_task_that_ran(node: Node, steps: Steps) -> None:
    steps.teach()
    before, after = numbered(FAST), [f"after{number}" for number in range(FAST)]
    results = steps.enqueue(*before, "slow", *after)
    os.kill(steps.wait_for_slow(), signal.SIGKILL)
    wait_until(lambda: steps.starts["slow"] == 2, message="the slow task starts again")
    steps.gate.touch()
    assert {finished(result).status for result in results} == {"SUCCESSFUL"}
    assert {text: count for text, count in steps.starts.items() if count > 1} == {"slow": 2}
    crashed = ScheduledTask.objects.filter(crashes__gt=0)
    assert [row.args[1] for row in crashed] == ["slow"]


def test_kills_at_any_time_repeat_at_most_a_task_each(node: Node, steps: Steps) -> None:
    steps.teach()
    texts = numbered(4000)
    steps.enqueue(*texts)
    for kill in range(1, KILLS + 1):
        reached = kill * len(texts) // (KILLS + 2)
        wait_until(lambda reached=reached: len(lines(steps.journal)) >= reached, 20)  # type: ignore[misc]
        if pids := node.worker_pids():
            os.kill(random.choice(pids), signal.SIGKILL)
    wait_until(lambda: not unfinished(), 30, "all are done")
    assert set(steps.starts) == set(texts)
    assert sum(steps.starts.values()) - len(texts) <= KILLS
    assert not ScheduledTask.objects.exclude(status="SUCCESSFUL").exists()


def test_a_drain_gives_back_what_has_not_started(db: None, steps: Steps) -> None:
    with Node(workers=1) as node:
        steps.teach()
        slow, *fast = steps.enqueue("slow", *numbered(FAST))
        steps.wait_for_slow()
        node.signal(signal.SIGTERM)
        node.wait_log("draining")
        steps.gate.touch()
        assert node.wait_exit() == 0
    assert finished(slow).status == "SUCCESSFUL"
    rows = [row_of(result) for result in fast]
    assert {(row.status, row.claimed_by, row.started_at) for row in rows} == {("READY", None, None)}
    assert steps.starts == {"slow": 1}


def test_prefetch_1_claims_one_at_a_time(db: None, steps: Steps) -> None:
    with Node(workers=1, options={"prefetch": 1}):
        steps.teach()
        slow, *fast = steps.enqueue("slow", *numbered(FAST))
        steps.wait_for_slow()
        assert ScheduledTask.objects.filter(status="RUNNING").count() == 1
        assert not any(row_of(result).attempt for result in fast)  # never claimed before
        steps.gate.touch()
        wait_until(lambda: not unfinished(), message="the others follow")
    assert finished(slow).status == "SUCCESSFUL"


# Of threads


def slow_one_that_delays_nobody(runner: Runner, steps: Steps) -> TaskResult:
    """It runs; what was claimed with it has ended."""
    slow, *others = steps.enqueue("slow", *numbered(FAST))
    steps.wait_for_slow()
    assert all(runner.wait_for(result, 10.0) for result in others)
    assert row_of(slow).status == "RUNNING"
    return slow


@pytest.mark.once
def test_what_an_outage_keeps_a_runner_from_settling_is_settled_after_it(
    db: None, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle, outage = Handover.settle, iter(range(2))

    def settle_if_reachable(handover: Handover, engine: Engine) -> int:
        if handover.rows and next(outage, None) is not None:
            raise OperationalError("the server closed the connection unexpectedly")
        return settle(handover, engine)

    with running(workers=2, init_periodic=False) as runner:
        steps.teach()
        monkeypatch.setattr(Handover, "settle", settle_if_reachable)
        slow = slow_one_that_delays_nobody(runner, steps)
        steps.gate.touch()
        assert finished(slow).status == "SUCCESSFUL"
    assert next(outage, None) is None
    assert set(steps.starts.values()) == {1}


@pytest.mark.once
def test_nothing_waits_in_a_runner_until_its_retention_is_through(
    db: None, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned = []

    def never_through(limit: int) -> int:
        pruned.append(limit)
        return 0 if steps.gate.exists() else limit

    with running(workers=2, init_periodic=False) as runner:
        steps.teach()
        monkeypatch.setattr(runner.engine, "prune", never_through)
        sleep_time = runner.keeper.sleep_time
        monkeypatch.setattr(
            runner.keeper, "sleep_time", lambda: 60.0 if steps.starts["slow"] else sleep_time()
        )
        runner.keeper.hooks.cleanup()
        wait_until(lambda: pruned)
        slow = slow_one_that_delays_nobody(runner, steps)
        seen = len(pruned)
        wait_until(lambda: len(pruned) > seen, message="retention goes on")
        steps.gate.touch()
        assert finished(slow).status == "SUCCESSFUL"
    assert set(steps.starts.values()) == {1}


@pytest.mark.once
def test_retention_in_a_runner_is_over_though_its_workers_hold_something(
    db: None, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned = []

    def slowly(limit: int) -> int:
        pruned.append(limit)
        wait_until(lambda: runner.relief.is_due)
        return 0

    with running(workers=2, init_periodic=False) as runner:
        steps.teach()
        steps.enqueue("slow")
        steps.wait_for_slow()
        monkeypatch.setattr(Relief, "is_idle", False)
        monkeypatch.setattr(runner.engine, "prune", slowly)
        runner.keeper.hooks.cleanup()
        wait_until(lambda: pruned)
        steps.gate.touch()
        with pytest.raises(AssertionError, match="in vain"):
            wait_until(lambda: len(pruned) > 1, 1.0)


@pytest.mark.once
def test_an_outcome_that_the_database_refuses_keeps_no_row_from_going_back(
    db: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    result = tasks.noop.enqueue()
    engine, me = default_task_backend.engine, Claimant("node", "worker")  # type: ignore[attr-defined]
    (row,) = engine.claim(me, QueueSelection())

    def refuse(outcomes: object) -> set[str]:
        raise DataError("value out of range")

    monkeypatch.setattr(engine, "finish", refuse)
    assert Handover(me, ((row.id, row.attempt),), (outcome_of(row, me),)).settle(engine) == 1
    assert row_of(result).status == "READY"
    assert "what worker worker has done waits for it: value out of range" in caplog.text


@pytest.mark.once
def test_a_rescue_fails_the_task_whose_outcome_the_database_refuses(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison, fine = tasks.noop.enqueue(), tasks.noop.enqueue()
    engine, me = default_task_backend.engine, Claimant("node", "worker")  # type: ignore[attr-defined]
    rows = engine.claim(me, QueueSelection(), 2)
    outcomes = tuple(outcome_of(row, me, return_value=str(n)) for n, row in enumerate(rows))
    finish = engine.finish

    def refuse(outcomes: Sequence[Outcome]) -> set[str]:
        if any(outcome.return_value == "0" for outcome in outcomes):
            raise DataError("value out of range")
        return finish(outcomes)

    monkeypatch.setattr(engine, "finish", refuse)
    Rescue("node", "worker", Death("killed"), outcomes).do(engine, lambda: False)
    assert row_of(fine).return_value == 1
    assert row_of(poison).status == "FAILED"
    assert row_of(poison).errors[0]["exception_class_path"] == "dbtasks.exceptions.ResultNotStored"
