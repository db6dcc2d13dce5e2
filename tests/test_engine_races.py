"""Two and more real connections at the same rows: of those that want one, exactly one gets it."""

from __future__ import annotations

import contextlib
import datetime
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connection, connections, transaction

from dbtasks.engines import Claimed, Death, Engine, NewOccurrence
from dbtasks.models import Cancellation, Occurrence, ScheduledTask
from dbtasks.queues import QueueSelection, select_queues
from tests.engines import (
    EVERYTHING,
    ME,
    OTHER,
    STRANGER,
    assert_consistent,
    consume,
    elsewhere,
    fresh_engine,
    keep_up,
    new_task,
    outcome_of,
    put,
    race,
    retry_of,
    statements,
    stored,
)

ROUNDS = 60
QUEUES = ["a", "b", "c", "d"]


@pytest.fixture
def engine(db: None) -> Engine:
    return fresh_engine()


class Duel:
    """Two threads, each with a connection of its own, that begin an action at the same moment."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(2)
        self.start = threading.Barrier(2)

    def fight[A, B](self, one: Callable[[], A], two: Callable[[], B]) -> tuple[A, B]:
        first, second = self.pool.submit(self._at_start, one), self.pool.submit(self._at_start, two)
        return first.result(timeout=60), second.result(timeout=60)

    def _at_start[T](self, action: Callable[[], T]) -> T:
        self.start.wait(timeout=30)
        return action()

    def close(self) -> None:
        self.fight(connections.close_all, connections.close_all)
        self.pool.shutdown()


@pytest.fixture
def duel(db: None) -> Iterator[Duel]:
    with contextlib.closing(Duel()) as duel:
        yield duel


def claimed_row(engine: Engine, max_crashes: int = 3) -> Claimed:
    put(engine, new_task(policy=f'{{"max_crashes":{max_crashes}}}'))
    (claimed,) = engine.claim(ME, EVERYTHING)
    return claimed


# Processes


@pytest.mark.parametrize(
    ("queues", "count"),
    [(EVERYTHING, 10_000), (select_queues(["default"]), 2_000)],
    ids=["10000-*", "2000-default"],
)
def test_four_processes_claim_each_row_exactly_once(
    engine: Engine, queues: QueueSelection, count: int, tmp_path: Path
) -> None:
    names = ["default"] if queues.only else QUEUES
    rows = [new_task(random.choice(names), priority=random.randint(-2, 2)) for _ in range(count)]
    ids = put(engine, *rows)
    shares = race(4, consume, tmp_path, queues)
    claimed = [row for share in shares for row in share]
    assert sorted(id for id, _ in claimed) == sorted(ids)
    assert {attempt for _, attempt in claimed} == {1}
    owner = {id: f"worker-{number}" for number, share in enumerate(shares) for id, _ in share}
    results = ScheduledTask.objects.filter(status="SUCCESSFUL").values_list("id", "return_value")
    assert {id.hex: value for id, value in results} == owner
    assert sum(bool(share) for share in shares) > 1


def test_processes_that_do_everything_at_once_lose_and_double_nothing(
    engine: Engine, tmp_path: Path
) -> None:
    rows = [new_task(random.choice(QUEUES), due_in=-1) for _ in range(1500)]
    rows += [new_task(random.choice(QUEUES)) for _ in range(500)]
    ids = put(engine, *rows)
    shares = race(4, keep_up, tmp_path, 120.0)
    assert sum(promoted for promoted, _, _ in shares) == 1500
    assert sum(pruned for _, pruned, _ in shares) == 2000
    assert sorted(id for _, _, mine in shares for id in mine) == sorted(ids)


# Threads


@pytest.mark.parametrize("delay", [None, 0.0, 60.0])
def test_of_a_rescue_and_a_finish_of_one_row_exactly_one_wins(
    engine: Engine, duel: Duel, delay: float | None
) -> None:
    for round in range(ROUNDS):
        claimed = claimed_row(engine, max_crashes=round % 2)
        death = Death("killed", running=frozenset([claimed.id]))
        outcome = outcome_of(claimed) if delay is None else retry_of(claimed, delay)
        rescued, finished = duel.fight(
            lambda death=death: engine.rescue(ME.node, ME.worker, death),
            lambda outcome=outcome: engine.finish([outcome]),
        )
        row = stored(claimed.id)
        assert bool(rescued) != bool(finished)
        assert row.crashes == (1 if rescued else 0)
        assert row.failures == (0 if rescued else outcome.failures)
        assert (row.status == "FAILED") == bool(rescued.failed)
        assert row.worker_ids == [ME.worker]
        assert_consistent(row)
        row.delete()


def test_of_two_finishers_of_one_claim_exactly_one_writes(engine: Engine, duel: Duel) -> None:
    for _ in range(ROUNDS):
        claimed = claimed_row(engine)
        won = duel.fight(
            lambda claimed=claimed: engine.finish([outcome_of(claimed, return_value="1")]),
            lambda claimed=claimed: engine.finish([retry_of(claimed, 60.0)]),
        )
        assert sorted(map(len, won)) == [0, 1]
        row = stored(claimed.id)
        assert (row.status, row.return_value) == (("SUCCESSFUL", 1) if won[0] else ("READY", None))
        assert_consistent(row)


def test_of_two_rescuers_each_row_is_rescued_by_one(engine: Engine, duel: Duel) -> None:
    for _ in range(10):
        ids = put(engine, *(new_task() for _ in range(40)))
        engine.claim(ME, EVERYTHING, 20)
        engine.claim(OTHER, EVERYTHING, 20)
        one, two = duel.fight(
            lambda: engine.rescue(ME.node, None, Death("lease")),
            lambda: engine.rescue(ME.node, OTHER.worker, Death("killed")),
        )
        assert sorted((one + two).retried) == ids
        assert set(ScheduledTask.objects.values_list("crashes", flat=True)) == {1}
        ScheduledTask.objects.all().delete()


def test_of_a_release_and_a_rescue_of_one_row_exactly_one_gives_it_back(
    engine: Engine, duel: Duel
) -> None:
    for _ in range(ROUNDS):
        claimed = claimed_row(engine)
        released, rescued = duel.fight(
            lambda: engine.release(ME), lambda: engine.rescue(ME.node, None, Death("lease"))
        )
        assert released + len(rescued.retried) == 1
        assert_consistent(stored(claimed.id))
        stored(claimed.id).delete()


def test_batches_over_the_same_rows_do_not_deadlock(engine: Engine, duel: Duel) -> None:
    """Outcomes come in any order, a rescue in its own: each row is written by one of them."""
    for round in range(ROUNDS):
        put(engine, *(new_task() for _ in range(20)))
        outcomes = [outcome_of(row) for row in engine.claim(ME, EVERYTHING, 20)]
        random.shuffle(outcomes)
        one, two = duel.fight(
            lambda outcomes=outcomes: engine.finish(outcomes),
            (lambda outcomes=outcomes: engine.finish(outcomes[::-1]))
            if round % 2
            else (lambda: engine.rescue(ME.node, None, Death("lease")).retried),
        )
        assert len(one) + len(two) == 20
        ScheduledTask.objects.all().delete()


def occurrence(due: datetime.datetime) -> NewOccurrence:
    return NewOccurrence("nightly", due, new_task())


def test_an_occurrence_that_two_nodes_enqueue_exists_once(engine: Engine, duel: Duel) -> None:
    due = engine.now()

    def enqueue() -> bool:
        with engine.locked("periodic") as got:
            return got and bool(engine.enqueue_occurrences([occurrence(due)], "node"))

    for _ in range(ROUNDS):
        wins = duel.fight(enqueue, enqueue)
        assert sum(wins) == 1
        assert ScheduledTask.objects.count() == Occurrence.objects.count() == 1
        Occurrence.objects.all().delete()
        ScheduledTask.objects.all().delete()


def test_an_occurrence_exists_once_even_without_the_lock(engine: Engine, duel: Duel) -> None:
    """A lock only saves work: the unique occurrence is what makes it exact."""
    due = engine.now()

    def enqueue() -> bool:
        try:
            with transaction.atomic():
                return bool(engine.enqueue_occurrences([occurrence(due)], "node"))
        except OperationalError:  # InnoDB calls it a deadlock; a scheduler's next tick tries again
            return enqueue()

    for _ in range(ROUNDS):
        assert sorted(duel.fight(enqueue, enqueue)) == [False, True]
        assert ScheduledTask.objects.count() == 1
        Occurrence.objects.all().delete()
        ScheduledTask.objects.all().delete()


def test_a_claim_never_gives_more_than_its_limit_beside_another(engine: Engine, duel: Duel) -> None:
    for _ in range(ROUNDS):
        put(engine, *(new_task(random.choice("ab")) for _ in range(12)))
        one, two = duel.fight(
            lambda: engine.claim(ME, EVERYTHING, 5),
            lambda: engine.claim(STRANGER, select_queues(["b", "a"]), 5),
        )
        assert 1 <= len(one) <= 5
        assert 1 <= len(two) <= 5
        assert len({row.id for row in [*one, *two]}) == len(one) + len(two)
        assert engine.counts().running == len(one) + len(two)
        ScheduledTask.objects.all().delete()


# Operations against workers


@pytest.mark.parametrize("name", ["cancel", "delete", "set_queue", "set_priority"])
def test_of_a_claim_and_an_operation_on_one_row_the_row_tells_who_won(
    engine: Engine, duel: Duel, name: str
) -> None:
    """Whoever comes second sees what the first one did: nothing is done half, or twice."""
    more = {"cancel": (5.0,), "set_queue": ("other",), "set_priority": (9,)}.get(name, ())
    for _ in range(ROUNDS):
        (id,) = put(engine, new_task())
        claimed, answer = duel.fight(
            lambda: engine.claim(ME, EVERYTHING),
            lambda id=id: getattr(engine, name)([id], *more),
        )
        refused, asked = answer if name == "cancel" else (answer, set())
        row = ScheduledTask.objects.filter(pk=id).first()
        if name == "cancel":
            assert not refused
            assert bool(asked) == bool(claimed)
            assert row.status == ("RUNNING" if claimed else "FAILED")
        elif claimed and refused:
            assert refused == {id: "is running"}
            assert (row.status, row.queue, row.priority) == ("RUNNING", "default", 0)
        elif name == "delete":
            assert not claimed
            assert row is None
        else:
            # Changed first; the claim then passed over the locked row, or got the changed one.
            assert (row.queue, row.priority) == {
                "set_queue": ("other", 0),
                "set_priority": ("default", 9),
            }[name]
            assert [(seen.queue, seen.priority) for seen in claimed] in (
                [],
                [(row.queue, row.priority)],
            )
        if row is not None:
            assert_consistent(row)
            row.delete()
        Cancellation.objects.all().delete()


def test_of_a_finish_and_a_cancel_the_finish_always_stands(engine: Engine, duel: Duel) -> None:
    for _ in range(ROUNDS):
        claimed = claimed_row(engine)
        finished, (refused, asked) = duel.fight(
            lambda claimed=claimed: engine.finish([outcome_of(claimed)]),
            lambda claimed=claimed: engine.cancel([claimed.id], 5.0),
        )
        assert finished == {claimed.id}
        assert bool(refused) != bool(asked)
        assert stored(claimed.id).status == "SUCCESSFUL"
        assert engine.settle_cancels() == len(asked)
        assert stored(claimed.id).status == "SUCCESSFUL"
        stored(claimed.id).delete()


def test_of_two_retries_of_one_row_one_makes_it_ready(engine: Engine, duel: Duel) -> None:
    for _ in range(ROUNDS):
        claimed = claimed_row(engine)
        engine.finish([outcome_of(claimed, status="FAILED")])
        answers = duel.fight(
            lambda claimed=claimed: engine.retry([claimed.id]),
            lambda claimed=claimed: engine.retry([claimed.id]),
        )
        assert sorted(map(len, answers)) == [0, 1]
        assert len(engine.claim(ME, EVERYTHING, 5)) == 1
        stored(claimed.id).delete()


def test_of_a_rescue_and_a_cancel_no_cancelled_row_runs_again(engine: Engine, duel: Duel) -> None:
    for _ in range(ROUNDS):
        claimed = claimed_row(engine)
        rescued, (refused, asked) = duel.fight(
            lambda: engine.rescue(ME.node, ME.worker, Death("killed")),
            lambda claimed=claimed: engine.cancel([claimed.id], 5.0),
        )
        assert not refused
        # Whoever came second has seen what the first one did.
        assert bool(rescued.cancelled) == bool(asked)
        row = stored(claimed.id)
        assert row.status == "FAILED"
        assert not Cancellation.objects.exists()
        assert_consistent(row)
        row.delete()


def test_of_a_pause_that_ends_and_a_row_that_is_parked_none_stays_behind(
    engine: Engine, duel: Duel
) -> None:
    for _ in range(ROUNDS):
        engine.pause("task", "tests.app.tasks.noop", "", "")
        claimed = claimed_row(engine)
        rows = [(claimed.id, claimed.attempt, claimed.task_path)]
        parked, resumed = duel.fight(
            lambda rows=rows: engine.park(ME, rows),
            lambda: engine.resume("task", "tests.app.tasks.noop"),
        )
        assert resumed
        row = stored(claimed.id)
        assert (row.status, row.due_at) == ("READY" if parked else "RUNNING", None)
        assert_consistent(row)
        row.delete()


def test_retention_passes_over_rows_that_others_hold(engine: Engine, database: str) -> None:
    if database == "sqlite":
        pytest.skip("SQLite has one writer at a time: the other one waits")
    held, *others = put(engine, *(new_task() for _ in range(3)))
    engine.finish([outcome_of(row, retain=-10.0) for row in engine.claim(ME, EVERYTHING, 3)])
    with transaction.atomic():
        ScheduledTask.objects.select_for_update().get(pk=held)
        assert elsewhere(lambda: engine.prune(10)) == len(others)
    assert engine.prune(10) == 1


def test_rows_are_locked_by_their_ids_and_by_no_index_that_changes(
    engine: Engine, database: str
) -> None:
    """By dbtasks_claim, MariaDB misses rows whose priority changes while it waits for them."""
    if database != "mysql":
        pytest.skip("PostgreSQL looks again at rows that changed, SQLite has one writer")
    ids = put(engine, *(new_task() for _ in range(3)))
    with statements() as seen:
        engine.set_priority(ids, 3)
    ((locking, parameters),) = [each for each in seen if "FOR UPDATE" in each[0]]
    (plan,) = explained(locking, parameters)
    assert plan["key"] == "PRIMARY"
    assert plan["possible_keys"] == "PRIMARY"  # whatever the statistics say


def explained(sql: str, parameters: Any) -> list[dict[str, Any]]:
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {sql}", parameters)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def test_operations_on_the_same_rows_do_not_deadlock(engine: Engine, duel: Duel) -> None:
    for _ in range(ROUNDS):
        ids = put(engine, *(new_task() for _ in range(20)))
        shuffled = random.sample(ids, len(ids))
        duel.fight(
            lambda ids=shuffled: engine.set_priority(ids, 3),
            lambda ids=ids: engine.cancel(ids, 5.0),
        )
        assert ScheduledTask.objects.filter(status="FAILED").count() == 20
        ScheduledTask.objects.all().delete()
