"""Claims that took effect though nobody knows of them: the answer was lost, or the worker was."""

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from django.db import OperationalError
from django.tasks import default_task_backend
from django.tasks.signals import task_finished

from dbtasks.consumer import Consumer
from dbtasks.engines import Claimant, Death, Engine, NodeInfo
from dbtasks.execution import Execution
from dbtasks.fields import dump_json
from dbtasks.hand import LocalHand
from dbtasks.models import ScheduledTask
from dbtasks.queues import QueueSelection
from dbtasks.results import json_list
from dbtasks.signals import task_retried
from dbtasks.timekeeper import Hooks, Timekeeper
from tests.app import tasks
from tests.engines import outcome_of

pytestmark = pytest.mark.usefixtures("db")


class Patient:
    """A Control that stops when the queue has been found empty so many times."""

    def __init__(self, looks: int = 3) -> None:
        self.looks = looks
        self.hand = LocalHand()
        self.lost: list[str] = []

    def stopping(self) -> bool:
        return self.looks <= 0

    def wait(self) -> None:
        self.looks -= 1

    def ended(self, execution: Execution) -> bool:
        return self.hand.keep(execution.outcome)

    def allowance(self) -> int | None:
        return None

    @contextlib.contextmanager
    def limit(self, seconds: float | None) -> Iterator[None]:
        yield

    def database_lost(self, why: str) -> None:
        self.lost.append(why)

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None


class LosesAnswers:
    """The real engine, the answer of whose n-th claim never arrives: it commits, then raises."""

    def __init__(self, engine: Engine, lost_claim: int) -> None:
        self._engine = engine
        self._claims_left = lost_claim

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def finish_and_claim(self, *arguments: Any) -> Any:
        answer = self._engine.finish_and_claim(*arguments)  # type: ignore[arg-type]
        self._claims_left -= 1
        if self._claims_left == 0:
            raise OperationalError("the server closed the connection unexpectedly")
        return answer


@pytest.mark.parametrize("lost_claim", [1, 2, 3, 4])
def test_a_claim_whose_answer_was_lost_is_run_all_the_same(lost_claim: int, tmp_path: Any) -> None:
    journal = tmp_path / "journal"
    results = [tasks.journal.enqueue(str(journal), str(number)) for number in range(3)]
    backend = default_task_backend
    control = Patient()
    queues = QueueSelection()
    consumer = Consumer(backend, Claimant("node", "worker"), queues, control)  # type: ignore[arg-type]
    consumer.engine = LosesAnswers(backend.engine, lost_claim)  # type: ignore[assignment]
    consumer.run()
    assert not control.lost  # the first retry, on a fresh connection, already worked
    for result in results:
        result.refresh()
        assert result.status == "SUCCESSFUL"
    ran = sorted(line.split()[0] for line in journal.read_text().splitlines())
    assert ran == ["0", "1", "2"]
    assert not ScheduledTask.objects.exclude(claimed_by=None).exists()


class FailsAtAFinish(LosesAnswers):
    """Once, before or after it has written; `meanwhile` happens before anybody asks again."""

    def __init__(
        self, engine: Engine, *, written: bool, meanwhile: Callable[[], object] = lambda: None
    ) -> None:
        super().__init__(engine, 0)
        self._written, self._meanwhile = written, meanwhile
        self._failed = False

    def finish_and_claim(self, outcomes: Any, *arguments: Any) -> Any:
        if self._failed or not outcomes:
            return self._engine.finish_and_claim(outcomes, *arguments)
        if self._written:
            self._engine.finish_and_claim(outcomes, *arguments)
        self._meanwhile()
        self._failed = True
        raise OperationalError("the server closed the connection unexpectedly")


@pytest.fixture
def told() -> Iterator[list[tuple[str, str]]]:
    """The id and the status of each result that `task_finished` tells."""
    seen: list[tuple[str, str]] = []

    def receive(task_result: Any, **_: Any) -> None:
        seen.append((task_result.id, task_result.status))

    task_finished.connect(receive)
    yield seen
    task_finished.disconnect(receive)


def consume(engine: Any) -> None:
    who = Claimant("node", "worker")
    consumer = Consumer(default_task_backend, who, QueueSelection(), Patient())  # type: ignore[arg-type]
    consumer.engine = engine
    consumer.run()


def test_a_result_whose_answer_was_lost_is_told_as_written(
    told: list[tuple[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = tasks.noop.enqueue(), tasks.fail.enqueue()
    consume(FailsAtAFinish(default_task_backend.engine, written=True))
    assert sorted(told) == sorted([(good.id, "SUCCESSFUL"), (bad.id, "FAILED")])
    assert "dropped" not in caplog.text


def test_a_retry_whose_answer_was_lost_is_told_though_it_has_run_again(
    told: list[tuple[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    result = tasks.fail.using(max_attempts=2, backoff=0).enqueue()
    engine = default_task_backend.engine

    def run_it() -> None:
        engine.release(Claimant("node", "worker"))  # where the lost statement claimed it at once
        other = Claimant("other", "elsewhere")
        (row,) = engine.claim(other, QueueSelection())
        workers = dump_json([*json_list(row.worker_ids), other.worker])
        engine.finish([outcome_of(row, other, worker_ids=workers)])

    retries: list[str] = []

    def receive(task_id: str, **_: Any) -> None:
        retries.append(task_id)

    task_retried.connect(receive)
    try:
        consume(FailsAtAFinish(engine, written=True, meanwhile=run_it))
    finally:
        task_retried.disconnect(receive)
    assert retries == [result.id]
    row = ScheduledTask.objects.get(pk=result.id)
    assert (row.status, row.worker_ids) == ("SUCCESSFUL", ["worker", "elsewhere"])
    assert "dropped" not in caplog.text


@pytest.mark.parametrize("task", ["noop", "fail"])
@pytest.mark.parametrize("attempts", [1, 2])
def test_a_result_that_was_not_written_before_its_claim_was_lost_is_dropped(
    task: str, attempts: int, told: list[tuple[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    result = getattr(tasks, task).using(max_attempts=attempts, backoff=0).enqueue()
    engine = default_task_backend.engine
    death = Death("taken for dead")
    rescue = partial(engine.rescue, "node", None, death)
    consume(FailsAtAFinish(engine, written=False, meanwhile=rescue))
    assert caplog.text.count("so this result is dropped") == 1
    # It ran again, was rescued from this very worker, and that is what is told.
    row = ScheduledTask.objects.get(pk=result.id)
    assert row.crashes == 1
    assert row.errors[0]["exception_class_path"] == "dbtasks.exceptions.WorkerDied"
    assert told == [(result.id, row.status)]


def test_a_worker_told_to_stop_while_it_claims_starts_nothing(tmp_path: Any) -> None:
    """Its first claim asks for the pauses before, and a busy database lets it wait."""
    journal = tmp_path / "journal"
    result = tasks.journal.enqueue(str(journal), "ran")
    control = Patient()

    class StoppedMeanwhile(LosesAnswers):
        def finish_and_claim(self, *arguments: Any) -> Any:
            answer = self._engine.finish_and_claim(*arguments)
            control.looks = 0
            return answer

    who = Claimant("node", "worker")
    consumer = Consumer(default_task_backend, who, QueueSelection(), control)  # type: ignore[arg-type]
    consumer.engine = StoppedMeanwhile(default_task_backend.engine, 0)  # type: ignore[assignment]
    consumer.run()
    assert not journal.exists()
    row = ScheduledTask.objects.get(pk=result.id)
    assert (row.status, row.crashes, row.worker_ids, row.claimed_by) == ("READY", 0, [], None)


def test_the_claim_of_a_worker_that_is_no_more_goes_back_uncounted() -> None:
    backend = default_task_backend
    node = NodeInfo("node", "web1", "host", os.getpid(), "supervisor", 30.0)
    living = [worker_row("alive")]
    hooks = Hooks(work=lambda count: None, cleanup=lambda: None, workers=lambda: living)
    keeper = Timekeeper(backend, node, QueueSelection(), hooks, capacity=1)
    keeper.heartbeat()
    held, stray = tasks.noop.enqueue(), tasks.noop.enqueue()
    backend.engine.claim(Claimant("node", "alive"), QueueSelection())
    backend.engine.claim(Claimant("node", "dead"), QueueSelection())
    keeper.heartbeat()
    assert ScheduledTask.objects.get(pk=stray.id).status == "RUNNING"  # it may be a newborn's
    keeper.heartbeat()
    row = ScheduledTask.objects.get(pk=stray.id)
    assert (row.status, row.crashes, row.worker_ids, row.errors) == ("READY", 0, [], [])
    assert ScheduledTask.objects.get(pk=held.id).claimed_by == "alive"


def worker_row(id: str) -> dict[str, Any]:
    return {
        "id": id,
        "kind": "worker",
        "pid": 1,
        "state": "busy",
        "task_id": "",
        "task_path": "",
        "task_seconds": None,
        "done": 0,
        "failed": 0,
        "restarts": 0,
        "memory": None,
    }
