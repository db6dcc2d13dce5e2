"""Pauses: nothing of a paused queue or task is started, on any node, until the pause ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.tasks import default_task_backend

from dbtasks import operations
from dbtasks.consumer import Consumer
from dbtasks.engines import Claimant, Engine
from dbtasks.lease import Lease
from dbtasks.models import ScheduledTask
from dbtasks.queues import QueueSelection, select_queues
from dbtasks.runner import Runner
from tests.app import tasks
from tests.engines import EVERYTHING, ME, fresh_engine, new_task, node, put, statements, stored
from tests.node import Node, finished, row_of
from tests.test_strays import Patient
from tests.waiting import wait_until

NOTICED = 25.0  # seconds, generous; it takes some two
NOOP = "tests.app.tasks.noop"
ADD = "tests.app.tasks.add"


@pytest.fixture
def engine(db: None) -> Engine:
    return fresh_engine()


class Looks(Patient):
    """A Control that stops when the queue was found empty so often, and acts before each claim."""

    def __init__(self, looks: int = 2) -> None:
        super().__init__(looks)
        self.began_paths: list[str] = []
        self.on_begin: Any = None

    def began(self, claimed: Any) -> None:
        self.began_paths.append(claimed.task_path)
        if self.on_begin is not None:
            self.on_begin()


def consumer(control: Looks, queues: QueueSelection = EVERYTHING) -> Consumer:
    who = Claimant(ME.node, ME.worker)
    return Consumer(default_task_backend, who, queues, control, Lease(node()))  # type: ignore[arg-type]


@pytest.mark.once
def test_a_selection_without_queues_that_it_does_not_have_is_the_same() -> None:
    selection = select_queues(["a", "b*"], ["bulk"])
    assert selection.without(["c", "bulk"]) is selection
    assert selection.without(["big", "a"]).preference("big") is None
    assert selection.without(["big", "a"]).preference("a") is None
    assert selection.without(["big"]).preference("b") == 1
    assert select_queues(["a"]).without(["a"]).only is None


def test_a_worker_leaves_a_paused_queue_alone(engine: Engine) -> None:
    put(engine, new_task("a"), new_task("b"))
    operations.pause(queue="a")
    consumer(Looks()).run()
    assert engine.counts().ready == 1
    assert ScheduledTask.objects.get(queue="b").status == "SUCCESSFUL"


def test_a_worker_of_only_a_paused_queue_claims_nothing(engine: Engine) -> None:
    put(engine, new_task("a"))
    operations.pause(queue="a")
    control = Looks()
    consumer(control, select_queues(["a"])).run()
    assert control.began_paths == []
    assert engine.counts().ready == 1


def test_a_worker_parks_the_rows_of_a_paused_task_and_runs_the_others(engine: Engine) -> None:
    rows = [new_task(task_path=NOOP if number % 3 else ADD, args="[1]") for number in range(300)]
    put(engine, *(row if row.task_path == ADD else row._replace(args="[]") for row in rows))
    operations.pause(task=NOOP)
    control = Looks()
    consumer(control).run()
    assert control.began_paths == [ADD] * 100
    counts = engine.counts()
    assert (counts.paused, counts.ready, counts.running) == (200, 0, 0)
    operations.resume(task=NOOP)
    assert engine.counts().ready == 200
    consumer(Looks()).run()
    assert ScheduledTask.objects.filter(status="SUCCESSFUL").count() == 300


def test_paused_rows_in_front_do_not_keep_others_from_running(engine: Engine) -> None:
    put(engine, *(new_task(priority=5) for _ in range(40)))
    put(engine, *(new_task("b", priority=-5, task_path=ADD, args="[1]") for _ in range(3)))
    operations.pause(task=NOOP)
    control = Looks()
    consumer(control).run()
    assert control.began_paths == [ADD] * 3


@pytest.mark.parametrize("names", [{"queue": "default"}, {"task": NOOP}])
def test_prefetched_rows_go_back_when_a_pause_comes(engine: Engine, names: Any) -> None:
    ids = put(engine, *(new_task() for _ in range(60)))
    control = Looks()
    worker = consumer(control)
    worker.pace = type(worker.pace)(50)  # rows at a time

    def pause() -> None:
        if len(control.began_paths) == 5:
            operations.pause(**names)
            assert worker.lease is not None
            worker.lease.pauses = engine.glance().pauses  # as the node's scheduler does

    control.on_begin = pause
    worker.run()
    assert len(control.began_paths) == 5
    counts = engine.counts()
    assert (counts.ready + counts.paused, counts.running) == (55, 0)
    assert all(stored(id).worker_ids in ([], [ME.worker]) for id in ids)


@pytest.mark.parametrize("names", [{"queue": "default"}, {"task": NOOP}])
def test_a_pause_that_came_before_the_rows_is_heeded_by_a_claim_that_began_before_it(
    engine: Engine, names: Any
) -> None:
    control = Looks()
    worker = consumer(control)
    worker.finish_and_claim()
    claim = worker.engine.finish_and_claim

    def late_claim(*arguments: Any) -> Any:
        operations.pause(**names)
        worker.lease.pauses = engine.glance().pauses  # type: ignore[union-attr]
        put(engine, new_task())
        worker.engine = engine
        return claim(*arguments)

    class Late:
        finish_and_claim = staticmethod(late_claim)

        def __getattr__(self, name: str) -> Any:
            return getattr(engine, name)

    worker.engine = Late()  # type: ignore[assignment]
    worker.run()
    assert control.began_paths == []
    counts = engine.counts()
    assert (counts.ready + counts.paused, counts.running) == (1, 0)


def test_without_a_pause_a_claim_asks_for_none(engine: Engine) -> None:
    worker = consumer(Looks())
    worker.finish_and_claim()
    with statements() as seen:
        worker.finish_and_claim()
        worker.finish_and_claim()
    assert not [sql for sql, _ in seen if "dbtasks_pause" in sql]


def test_what_cannot_be_parked_any_more_runs(engine: Engine) -> None:
    """The pause ends between a claim and the parking of what it gave."""
    put(engine, new_task())
    operations.pause(task=NOOP)
    control = Looks()
    worker = consumer(control)
    worker.heed_pauses()
    operations.resume(task=NOOP)
    assert worker.paused_tasks
    worker.run()
    assert control.began_paths == [NOOP]


# Nodes


@pytest.mark.parametrize("names", [{"queue": "default"}, {"task": NOOP}])
def test_all_nodes_heed_a_pause_and_its_end(db: None, names: Any) -> None:
    with Node(workers=1) as one, Node(workers=1) as two:
        finished(tasks.noop.enqueue())
        operations.pause(**names)
        (kind, name), *_ = names.items()
        for running in (one, two):
            running.wait_log(f"paused now: {kind} {name}", NOTICED)
        waiting = [tasks.noop.enqueue() for _ in range(5)]
        others = [tasks.add.using(queue_name="other").enqueue(1) for _ in range(5)]
        for result in others:
            finished(result)
        assert {row_of(result).status for result in waiting} == {"READY"}
        assert operations.resume(**names)
        for result in waiting:
            finished(result, NOTICED)


def test_a_worker_that_is_born_into_a_pause_heeds_it(db: None) -> None:
    operations.pause(queue="default")
    waiting = tasks.noop.enqueue()
    with Node(workers=1):
        finished(tasks.add.using(queue_name="other").enqueue(1))
        assert row_of(waiting).status == "READY"
        operations.resume(queue="default")
        finished(waiting, NOTICED)


def test_a_runner_heeds_a_pause_and_its_end(db: None, tmp_path: Path) -> None:
    import threading

    runner = Runner(workers=2, worker_id="r", loop_delay=0.05)
    thread = threading.Thread(target=runner.run)
    thread.start()
    try:
        assert runner.wait_for(tasks.noop.enqueue(), 30)
        operations.pause(task=NOOP)
        wait_until(lambda: runner.lease.pauses, NOTICED)
        waiting = tasks.noop.enqueue()
        assert runner.wait_for(tasks.add.enqueue(1), 30)
        wait_until(lambda: fresh_engine().counts().paused == 1, NOTICED)
        operations.resume(task=NOOP)
        assert runner.wait_for(waiting, NOTICED)
    finally:
        runner.stop()
        thread.join(30)


def test_a_burst_ends_though_a_paused_queue_has_tasks(db: None) -> None:
    operations.pause(queue="default")
    waiting, other = tasks.noop.enqueue(), tasks.noop.using(queue_name="other").enqueue()
    with Node("--burst", workers=1, ready=False) as running:
        assert running.wait_exit(60) == 0
    assert row_of(waiting).status == "READY"
    assert row_of(other).status == "SUCCESSFUL"
