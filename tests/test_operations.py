"""What operators do to rows (dbtasks.operations), the same on every database."""

from __future__ import annotations

import datetime
import uuid

import pytest
from django.utils import timezone

from dbtasks import operations
from dbtasks.engines import Death, Engine
from dbtasks.models import Cancellation, Pause, ScheduledTask
from dbtasks.policy import Policy
from dbtasks.queues import select_queues
from tests.engines import (
    EVERYTHING,
    ME,
    OTHER,
    assert_consistent,
    columns,
    fresh_engine,
    new_task,
    outcome_of,
    put,
    stored,
)

CANCELLED = "dbtasks.exceptions.TaskCancelled"
NOOP = "tests.app.tasks.noop"


@pytest.fixture
def engine(db: None) -> Engine:
    return fresh_engine()


def a_row(engine: Engine, state: str, **changes) -> uuid.UUID:
    """The id of a row that is `state`."""
    (id,) = put(engine, new_task(due_in=3600 if state == "deferred" else None, **changes))
    if state in ("running", "successful", "failed"):
        (claimed,) = engine.claim(ME, EVERYTHING)
        if state != "running":
            outcome = outcome_of(
                claimed,
                status=state.upper(),
                return_value="5" if state == "successful" else None,
                errors="[]" if state == "successful" else '[{"exception_class_path":"a.B"}]',
                failures=1,
                retain=100.0,
            )
            assert engine.finish([outcome])
    elif state == "paused":
        operations.pause(task=NOOP)
        (claimed,) = engine.claim(ME, EVERYTHING)
        assert engine.park(ME, [(claimed.id, claimed.attempt, claimed.task_path)]) == 1
    return uuid.UUID(id)


STATES = ("ready", "deferred", "paused", "running", "successful", "failed")
# Of each operation: the states in which it does something, and what the row is then.
ALLOWED = {
    "retry": {"successful": "READY", "failed": "READY"},
    "run_now": {"deferred": "READY"},
    "cancel": {"ready": "FAILED", "deferred": "FAILED", "paused": "FAILED", "running": "RUNNING"},
    "delete": dict.fromkeys(("ready", "deferred", "paused", "successful", "failed"), None),
    "set_priority": dict.fromkeys(("ready", "deferred", "paused"), "READY"),
    "set_queue": dict.fromkeys(("ready", "deferred", "paused"), "READY"),
}
MORE = {"set_priority": (7,), "set_queue": ("other",)}
REFUSALS = {
    "ready": "is ready already",
    "deferred": "is deferred",
    "paused": "waits because its task is paused",
    "running": "is running",
    "successful": "is finished (SUCCESSFUL)",
    "failed": "is finished (FAILED)",
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", list(ALLOWED))
def test_an_operation_does_what_the_state_of_the_row_allows(engine, name, state):
    id = a_row(engine, state)
    before = columns(id.hex)
    outcome = getattr(operations, name)([id], *MORE.get(name, ()))
    if state not in ALLOWED[name]:
        assert outcome == operations.Outcome([], {id: REFUSALS[state]})
        assert not outcome
        assert columns(id.hex) == before
        return
    assert (outcome.done, outcome.refused) == ([id], {})
    assert outcome.asked == ([id] if (name, state) == ("cancel", "running") else [])
    row = ScheduledTask.objects.filter(pk=id).first()
    assert (row and row.status) == ALLOWED[name][state]
    if row is not None:
        assert_consistent(row)


def test_ids_are_uuids_or_texts_and_each_gets_its_answer(engine):
    ready, running = a_row(engine, "ready", queue="b"), a_row(engine, "running")
    # The claim takes the oldest: which of the two it was does not matter here.
    states = {stored(id.hex).status: id for id in (ready, running)}
    unknown = uuid.uuid4()
    ids = [str(states["READY"]), states["RUNNING"].hex, unknown, states["READY"]]
    outcome = operations.delete(ids)
    assert outcome.done == [states["READY"]]
    assert outcome.refused == {states["RUNNING"]: "is running", unknown: "does not exist"}
    with pytest.raises(ValueError, match="'abc' is no id of a task"):
        operations.delete(["abc"])


def test_rows_of_another_backend_do_not_exist(engine):
    other = fresh_engine("other")
    (id,) = put(other, new_task())
    assert operations.cancel([id]).refused == {uuid.UUID(id): "does not exist"}


def test_a_retry_keeps_the_history_and_gives_a_new_budget(engine):
    id = a_row(engine, "failed", policy=Policy(max_attempts=2).to_text())
    before = stored(id.hex)
    operations.retry([id])
    row = stored(id.hex)
    assert (row.errors, row.worker_ids, row.attempt) == (before.errors, [ME.worker], 1)
    assert (row.failures, row.crashes, row.return_value) == (0, 0, None)
    assert (row.delete_after, row.finished_at, row.ready_queue) == (None, None, "default")
    (claimed,) = engine.claim(OTHER, EVERYTHING)
    assert (claimed.id, claimed.attempt, claimed.failures) == (id.hex, 2, 0)


def test_a_cancelled_row_says_so_and_has_its_retention(engine):
    id = a_row(engine, "ready", policy=Policy(retain=50.0).to_text())
    operations.cancel([id])
    row = stored(id.hex)
    assert [error["exception_class_path"] for error in row.errors] == [CANCELLED]
    assert "before it ran" in row.errors[0]["traceback"]
    assert row.delete_after is not None
    assert engine.claim(ME, EVERYTHING) == []


def test_a_cancelled_running_row_is_a_request_until_it_is_over(engine):
    id = a_row(engine, "running")
    assert operations.cancel([id], 1.5).asked == [id]
    assert operations.cancel([id], "2m").asked == [id]  # the first grace holds
    (request,) = engine.cancel_requests()
    assert (request.id, request.grace) == (id.hex, 1.5)
    assert (request.node, request.worker, request.attempt) == (ME.node, ME.worker, 1)
    assert engine.settle_cancels() == 0
    engine.release(ME)  # it did not run in the end
    assert engine.cancel_requests() == []
    assert engine.settle_cancels() == 1
    row = stored(id.hex)
    assert (row.status, row.errors[-1]["exception_class_path"]) == ("FAILED", CANCELLED)
    assert not Cancellation.objects.exists()


def test_a_request_for_a_finished_or_deleted_row_is_forgotten(engine):
    ids = [a_row(engine, "running") for _ in range(2)]
    operations.cancel(ids)
    engine.finish(
        [
            outcome_of(row)
            for row in [
                type("Held", (), {"id": id.hex, "attempt": 1, "errors": "[]", "failures": 0})
                for id in ids
            ]
        ]
    )
    stored(ids[0].hex).delete()
    assert engine.settle_cancels() == 2
    assert stored(ids[1].hex).status == "SUCCESSFUL"
    assert not Cancellation.objects.exists()


def test_a_retry_after_a_cancel_that_came_too_late_runs(engine):
    id = a_row(engine, "running")
    operations.cancel([id])
    engine.rescue(ME.node, ME.worker, Death("killed"))
    assert operations.retry([id]).done == [id]
    assert not Cancellation.objects.exists()
    assert engine.settle_cancels() == 0
    assert stored(id.hex).status == "READY"


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_a_rescued_row_that_was_cancelled_fails_and_is_no_crash(engine, counted, known):
    id = a_row(engine, "running")
    other = a_row(engine, "running", queue="b")
    operations.cancel([id])
    running = frozenset([id.hex]) if known else None
    rescued = engine.rescue(ME.node, ME.worker, Death("killed", running, counted))
    assert rescued.cancelled == (id.hex,)
    assert other.hex in rescued.released + rescued.retried
    row = stored(id.hex)
    assert (row.status, row.crashes) == ("FAILED", 0)
    assert row.worker_ids == [ME.worker]
    assert [error["exception_class_path"] for error in row.errors] == [CANCELLED]
    assert_consistent(row)
    assert not Cancellation.objects.exists()


def test_a_priority_and_a_queue_decide_the_next_claim(engine):
    first, second = a_row(engine, "ready"), a_row(engine, "ready")
    operations.set_priority([second], 50)
    (claimed,) = engine.claim(ME, EVERYTHING)
    assert (claimed.id, claimed.priority) == (second.hex, 50)
    operations.set_queue([first], "other")
    assert engine.claim(ME, select_queues(["default"])) == []
    (claimed,) = engine.claim(ME, select_queues(["other"]))
    assert (claimed.id, claimed.queue) == (first.hex, "other")


@pytest.mark.parametrize("priority", [101, -101, "high", True, 1.5])
def test_a_priority_that_is_none_is_refused(engine, priority):
    with pytest.raises(ValueError, match="priority must be"):
        operations.set_priority([uuid.uuid4()], priority)


@pytest.mark.parametrize("queue", ["", " a", "a,b", "a*", "x" * 129])
def test_a_queue_that_is_none_is_refused(engine, queue):
    with pytest.raises(ValueError, match="queue"):
        operations.set_queue([uuid.uuid4()], queue)


@pytest.mark.parametrize("grace", [-1, "soon"])
def test_a_grace_that_is_none_is_refused(engine, grace):
    with pytest.raises(ValueError, match="grace"):
        operations.cancel([uuid.uuid4()], grace)


def test_many_rows_are_changed_in_batches(engine):
    ids = put(engine, *(new_task() for _ in range(450)))
    outcome = operations.cancel(ids)
    assert [id.hex for id in outcome.done] == ids
    assert ScheduledTask.objects.filter(status="FAILED").count() == 450


# Pauses


def test_a_pause_is_there_once_until_it_ends(engine):
    before = timezone.now()
    assert operations.pause(queue="email", by="ada", reason="the relay is down")
    assert not operations.pause(queue="email", by="bob")
    assert operations.pause(task=NOOP)
    first, second = operations.pauses()
    assert (first.kind, first.name, first.by) == ("queue", "email", "ada")
    assert first.reason == "the relay is down"
    assert abs(first.paused_at - before) < datetime.timedelta(minutes=5)
    assert (second.kind, second.name, second.by, second.reason) == ("task", NOOP, "", "")
    assert operations.resume(queue="email")
    assert not operations.resume(queue="email")
    assert [pause.kind for pause in operations.pauses()] == ["task"]


@pytest.mark.parametrize(
    "names", [{}, {"queue": "a", "task": "b"}, {"queue": ""}, {"task": "x" * 501}]
)
def test_a_pause_names_one_queue_or_one_task(engine, names):
    with pytest.raises(ValueError, match="name"):
        operations.pause(**names)
    with pytest.raises(ValueError, match="name"):
        operations.resume(**names)


def test_parked_rows_come_back_when_their_pause_ends(engine):
    id = a_row(engine, "paused")
    row = stored(id.hex)
    assert_consistent(row)
    assert (row.status, row.started_at, row.worker_ids) == ("READY", None, [])
    assert engine.counts().paused == 1
    assert engine.counts().deferred == 0
    assert engine.unpark() == 0
    assert operations.resume(task=NOOP)
    assert_consistent(stored(id.hex))
    (claimed,) = engine.claim(ME, EVERYTHING)
    assert claimed.id == id.hex


def test_each_pause_has_its_own_rows(engine):
    mine = a_row(engine, "paused")
    operations.pause(task="other.task")
    (id,) = put(engine, new_task(task_path="other.task"))
    (claimed,) = engine.claim(ME, EVERYTHING)
    engine.park(ME, [(claimed.id, claimed.attempt, "other.task")])
    operations.resume(task="other.task")
    assert engine.counts().paused == 1
    assert stored(id).ready_queue == "default"
    assert stored(mine.hex).ready_queue is None


def test_a_row_is_not_parked_when_its_pause_is_over_or_its_claim_another(engine):
    id = a_row(engine, "running")
    assert engine.park(ME, [(id.hex, 1, NOOP)]) == 0
    operations.pause(task=NOOP)
    assert engine.park(OTHER, [(id.hex, 1, NOOP)]) == 0
    assert engine.park(ME, [(id.hex, 2, NOOP)]) == 0
    assert stored(id.hex).status == "RUNNING"


def test_what_a_pause_left_behind_is_found_later(engine):
    id = a_row(engine, "paused")
    Pause.objects.all().delete()  # whoever ended it did not get further
    assert engine.unpark() == 1
    assert stored(id.hex).ready_queue == "default"


# Pruning


def finished(engine: Engine, status: str, days: float, queue: str = "default") -> None:
    a_row(engine, status.lower(), queue=queue)
    newest = ScheduledTask.objects.order_by("-id").first()
    newest.finished_at = timezone.now() - datetime.timedelta(days=days)
    newest.save()


def test_pruning_deletes_finished_rows_by_age_status_and_queue(engine):
    finished(engine, "SUCCESSFUL", 10)
    finished(engine, "SUCCESSFUL", 1)
    finished(engine, "FAILED", 10)
    finished(engine, "FAILED", 10, "email")
    a_row(engine, "ready")
    a_row(engine, "running")
    told: list[int] = []
    assert operations.prune(older_than="5d", dry_run=True, progress=told.append) == 3
    assert told[-1] == 3
    assert ScheduledTask.objects.count() == 6
    assert operations.prune(older_than="5d", status="FAILED", queue="email") == 1
    assert operations.prune(older_than="5d", status="SUCCESSFUL") == 1
    assert operations.prune(older_than="5d", stop=lambda: True) == 0
    assert operations.prune(queue="email") == 0
    assert operations.prune(status="FAILED") == 1
    left = ScheduledTask.objects.values_list("status", flat=True)
    assert sorted(left) == ["READY", "RUNNING", "SUCCESSFUL"]


def test_pruning_without_conditions_deletes_what_is_past_its_retention(engine):
    finished(engine, "SUCCESSFUL", 1)
    finished(engine, "SUCCESSFUL", 1)
    expired = ScheduledTask.objects.order_by("id").first()
    expired.delete_after = timezone.now() - datetime.timedelta(seconds=5)
    expired.save()
    assert operations.prune(dry_run=True) == 1
    assert operations.prune() == 1
    assert ScheduledTask.objects.count() == 1


def test_pruning_goes_window_by_window(engine, monkeypatch):
    from dbtasks.engines import operations as statements

    monkeypatch.setattr(statements, "WINDOW", 3)
    for _ in range(7):
        finished(engine, "SUCCESSFUL", 2)
    told: list[int] = []
    assert operations.prune(older_than="1d", progress=told.append) == 7
    assert told == [3, 6, 7]


@pytest.mark.parametrize(
    "wrong", [{"status": "READY"}, {"older_than": "soon"}, {"older_than": "9999999w"}]
)
def test_pruning_refuses_what_it_does_not_know(engine, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        operations.prune(**wrong)
