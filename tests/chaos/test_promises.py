"""The judge of `make chaos` itself: each promise, broken by hand, is found to be broken."""

import dataclasses
import datetime
from collections.abc import Iterable
from typing import Any

import pytest

from .attack import Fault
from .calls import Call, Fate
from .history import Change, Execution, History, Occurred, Row
from .kinds import WORKER_DIED
from .plan import steps
from .promises import broken_promises

pytestmark = pytest.mark.once

TASK = "0" * 32
NOON = datetime.datetime(2030, 1, 1, 12, tzinfo=datetime.UTC)
SIGKILL = {"exception_class_path": WORKER_DIED, "traceback": "killed by SIGKILL"}
LEASE = {"exception_class_path": WORKER_DIED, "traceback": "node did not renew its lease in time"}


def change(at: float, old: str, new: str, worker: str, **counts: int) -> Change:
    counts = {"attempt": 1, "failures": 0, "crashes": 0} | counts
    before, after = (None, worker) if new == "RUNNING" else (worker, None)
    return Change(at, old, new, before, after, **counts)


def history(*, kills: Iterable[Fault] = (), **changes: Any) -> History:
    """A task that ran once and was successful, but for `changes` of the row."""
    values: dict[str, Any] = {
        "id": TASK,
        "token": "ffff",
        "kind": "noop",
        "status": "SUCCESSFUL",
        "errors": [],
        "return_value": "one",
    }
    row = Row(**(values | changes))
    return History(
        calls=[Call("ffff", row.kind, Fate.COMMITTED)],
        faults=list(kills),
        rows={TASK: row},
        changes={
            TASK: [
                change(1.0, "READY", "RUNNING", "a-1.x"),
                change(2.0, "RUNNING", row.status, "a-1.x"),
            ]
        },
        executions={TASK: [Execution("one", "a-1.x", 1.1, 1.9)]},
    )


def rerun(error: dict[str, str], faults: Iterable[Fault], end: float | None = None) -> History:
    """The same, but a first worker lost its claim at 2.0; `end`: when it returned."""
    story = history(kills=faults, errors=[error], return_value="two")
    story.changes[TASK] = [
        change(1.0, "READY", "RUNNING", "a-1.x"),
        change(2.0, "RUNNING", "READY", "a-1.x", crashes=1),
        change(2.1, "READY", "RUNNING", "b-1.y", attempt=2, crashes=1),
        change(3.0, "RUNNING", "SUCCESSFUL", "b-1.y", attempt=2, crashes=1),
    ]
    story.executions[TASK] = [
        Execution("one", "a-1.x", 1.1, end),
        Execution("two", "b-1.y", 2.2, 2.9),
    ]
    return story


def broken(story: History) -> list[str]:
    return [found.promise for found in broken_promises(story)]


def killed(at: float, node: str = "a", role: str = "1") -> Fault:
    return Fault("kill worker", (node,), ((node, role),), (1,), at, at)


def test_a_task_that_ran_once_breaks_nothing() -> None:
    assert broken(history()) == []


def test_a_committed_task_without_a_row_is_lost() -> None:
    story = history()
    story.calls = [*story.calls, Call("eeee", "noop", Fate.COMMITTED)]
    assert broken(story) == ["a committed task has one row, one that was rolled back has none"]


def test_a_rolled_back_task_with_a_row_is_found() -> None:
    story = history()
    story.calls = [Call("ffff", "noop", Fate.ROLLED_BACK)]
    assert len(broken(story)) == 1


def test_what_enqueue_did_not_confirm_may_be_there_or_not() -> None:
    story = history()
    story.calls = [Call("ffff", "noop"), Call("eeee", "noop")]
    assert broken(story) == []


@pytest.mark.parametrize("status", ["READY", "RUNNING", "FAILED"])
def test_a_task_that_did_not_succeed_is_found(status: str) -> None:
    assert "every task ends, and fails only for its own reason" in broken(history(status=status))


def test_a_second_result_is_found() -> None:
    story = history()
    story.changes[TASK].append(change(2.5, "SUCCESSFUL", "SUCCESSFUL", "a-1.x"))
    assert set(broken(story)) == {
        "a result is written once, by the worker that has the claim and ran the task"
    }


def test_the_result_of_a_worker_without_the_claim_is_found() -> None:
    story = rerun(SIGKILL, [killed(1.5)])
    story.rows[TASK].return_value = "one"
    story.executions[TASK][0].end = 1.9
    assert len(broken(story)) == 1


def test_a_second_run_of_the_same_claim_is_found() -> None:
    story = history()
    story.executions[TASK].append(Execution("two", "a-1.x", 1.95, 1.96))
    assert broken(story) == ["each execution has a claim of its own"]


def test_a_rerun_after_a_kill_is_allowed() -> None:
    assert broken(rerun(SIGKILL, [killed(1.5)])) == []


@pytest.mark.parametrize(
    "faults", [[], [killed(1.5, role="2")], [killed(1.5, node="b")], [killed(2.5)]]
)
def test_a_rerun_that_no_kill_explains_is_found(faults: list[Fault]) -> None:
    assert broken(rerun(SIGKILL, faults)) == [
        "a claim without a result is explained by a fault or by the task"
    ]


@pytest.mark.parametrize("paused", [False, True])
def test_a_claim_that_a_paused_server_carries_out_late_was_sent_before(paused: bool) -> None:
    """Its supervisor was killed 3 s before the claim, which without an outage is no reason."""
    faults = [Fault("kill supervisor", ("a",), began=-2.0, ended=-2.0)]
    if paused:
        faults.append(Fault("pause database", began=-4.0, ended=0.9))
    story = rerun(SIGKILL | {"traceback": "its supervisor was killed"}, faults)
    del story.executions[TASK][0]
    complaint = ["a claim without a result is explained by a fault or by the task"]
    assert broken(story) == ([] if paused else complaint)


@pytest.mark.parametrize("started", [False, True])
def test_a_claim_may_be_given_back_without_a_fault_before_its_task_starts(started: bool) -> None:
    story = rerun(SIGKILL, [])
    story.changes[TASK] = [dataclasses.replace(each, crashes=0) for each in story.changes[TASK]]
    story.rows[TASK] = dataclasses.replace(story.rows[TASK], errors=[])
    if not started:
        del story.executions[TASK][0]
    complaint = ["a claim without a result is explained by a fault or by the task"]
    assert broken(story) == (complaint if started else [])


def test_a_row_may_be_given_back_and_claimed_again_by_the_same_worker_at_once() -> None:
    story = history()
    story.changes[TASK] = [
        change(1.0, "READY", "RUNNING", "a-1.x"),
        change(1.002, "RUNNING", "READY", "a-1.x"),
        change(1.003, "READY", "RUNNING", "a-1.x", attempt=2),
        change(2.0, "RUNNING", "SUCCESSFUL", "a-1.x", attempt=2),
    ]
    story.executions[TASK] = [Execution("one", "a-1.x", 1.004, 1.9)]
    assert broken(story) == []


def test_two_at_once_are_allowed_after_a_lost_lease_only() -> None:
    stop = Fault("stop node", ("a",), (), (), 0.5, 2.3)
    assert broken(rerun(LEASE, [stop], end=2.4)) == []
    assert broken(rerun(SIGKILL, [killed(1.5)], end=2.4)) == [
        "nobody else runs a task that a living worker runs"
    ]


def test_an_entry_without_success_is_found() -> None:
    story = history(kind="write_entry")
    assert broken(story) == [
        "what a task wrote in a transaction is there if and only if it was successful"
    ]
    story.entries = {"ffff"}
    assert broken(story) == []


@pytest.mark.parametrize(
    ("seconds", "problems"), [((1, 2, 3), 0), ((1, 2, 2), 1), ((1, 3), 1), ((2, 3), 1)]
)
def test_periodic_tasks_are_exact(seconds: tuple[int, ...], problems: int) -> None:
    story = History(since={"all": NOON})
    for number, second in enumerate(seconds):
        id = f"{number:032x}"
        due = NOON + datetime.timedelta(seconds=second)
        row = Row(id, "all", "tick", "SUCCESSFUL", [], f"n{number}", periodic="all")
        one = history()
        story.rows[id] = row
        story.changes[id] = one.changes[TASK]
        story.executions[id] = [Execution(f"n{number}", "a-1.x", 1.1, 1.9)]
        story.occurrences = [*story.occurrences, Occurred("all", due, id)]
    assert len(broken(story)) == problems


def test_a_seed_plans_the_same_faults() -> None:
    plans = [steps(seed, 3, 4.0, server=True) for seed in ("a", "a", "b")]
    first, same, other = ([next(plan) for _ in range(50)] for plan in plans)
    assert first == same != other
