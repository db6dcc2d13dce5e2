"""What the engine tests share: rows to insert, outcomes, second connections, and racing processes.

The racers at the end run in processes of their own (`race`), which import this module after
django.setup(); so whatever they need is imported here and not in a test module.
"""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.db.transaction import TransactionManagementError

from dbtasks.engines import Claimant, Claimed, Engine, NewTask, NodeInfo, Outcome, get_engine
from dbtasks.fields import dump_json
from dbtasks.ids import uuid7
from dbtasks.models import ScheduledTask
from dbtasks.queues import QueueSelection
from tests.waiting import wait_until

ME = Claimant("node-1", "worker-1")
OTHER = Claimant("node-1", "worker-2")
STRANGER = Claimant("node-2", "worker-3")
EVERYTHING = QueueSelection()


def new_task(
    queue: str = "default", priority: int = 0, due_in: float | None = None, **changes: Any
) -> NewTask:
    """A row; with `due_in` (seconds from now, negative: overdue) a deferred one."""
    now = datetime.datetime.now(datetime.UTC)
    due_at = None if due_in is None else now + datetime.timedelta(seconds=due_in)
    row = NewTask(
        id=uuid7().hex,
        task_path="tests.app.tasks.noop",
        args="[]",
        kwargs="{}",
        queue=queue,
        priority=priority,
        run_after=due_at,
        due_at=due_at,
        enqueued_at=now,
        policy="{}",
    )
    return row._replace(**changes)


def fresh_engine(backend: str = "default") -> Engine:
    """An engine that remembers nothing of what earlier tests did: no queue, no notification."""
    get_engine.cache_clear()
    return get_engine("default", backend)


def put(engine: Engine, *rows: NewTask) -> list[str]:
    """Inserts the rows; returns their ids."""
    engine.insert(rows)
    return [row.id for row in rows]


def outcome_of(claimed: Claimed, who: Claimant = ME, **changes: Any) -> Outcome:
    """SUCCESSFUL unless `changes` say otherwise."""
    outcome = Outcome(
        id=claimed.id,
        attempt=claimed.attempt,
        worker=who.worker,
        status="SUCCESSFUL",
        return_value="null",
        errors=claimed.errors,
        worker_ids=dump_json([who.worker]),
        failures=claimed.failures,
        retry_in=None,
        retain=None,
    )
    return outcome._replace(**changes)


def retry_of(claimed: Claimed, delay: float, **changes: Any) -> Outcome:
    """READY again after `delay` seconds, with one failure more."""
    return outcome_of(
        claimed,
        status="READY",
        return_value=None,
        failures=claimed.failures + 1,
        retry_in=delay,
        **changes,
    )


def stored(id: str) -> ScheduledTask:
    return ScheduledTask.objects.get(pk=id)


def columns(id: str) -> dict[str, Any]:
    """Every column of a row, to see that nothing changed."""
    return dict(ScheduledTask.objects.values().get(pk=id))


def assert_consistent(row: ScheduledTask) -> None:
    """What models.ScheduledTask promises: a row is claimable, deferred, claimed or finished."""
    finished = row.status in ("SUCCESSFUL", "FAILED")
    places = [row.ready_queue is not None, row.due_at is not None, row.claimed_by is not None]
    assert sum(places) == (0 if finished else 1), (row.status, places)
    assert (row.finished_at is not None) == finished
    assert (row.claim_node is None) == (row.claimed_by is None)
    assert (row.status == "RUNNING") == (row.claimed_by is not None)


def node(id: str = ME.node, lease: float = 30.0) -> NodeInfo:
    return NodeInfo(id=id, name=f"{id}'s name", host="host", pid=1, kind="test", lease=lease)


def execute(statement: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def side_by_side(action: Callable[[], object], threads: int = 4, times: int = 5) -> None:
    """`action` so many times in so many threads, each with a connection of its own."""

    def repeat() -> None:
        for _ in range(times):
            action()
        connections.close_all()

    started = [threading.Thread(target=repeat) for _ in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


def assert_refused_until_rolled_back(engine: Any, insert: Callable[[Any], object]) -> None:
    """A transaction that is to be rolled back takes no row."""
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        insert(engine)
        with contextlib.suppress(KeyError), transaction.atomic(savepoint=False):
            raise KeyError
        with pytest.raises(TransactionManagementError):
            engine.insert([new_task()], notify=False)
        raise ZeroDivisionError
    assert not ScheduledTask.objects.exists()


def elsewhere[T](action: Callable[[], T]) -> T:
    """`action` in a thread with a connection of its own, closed afterwards."""

    def run() -> T:
        try:
            return action()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result(timeout=60)


@contextmanager
def statements() -> Iterator[list[tuple[str, Any]]]:
    """The statements, with their parameters, that this thread's connection executes inside."""
    seen: list[tuple[str, Any]] = []

    def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        seen.append((sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        yield seen


# Races between processes


def race(count: int, racer: Callable[..., Any], gate: Path, *arguments: Any) -> list[Any]:
    """What `count` processes return from `racer(engine, number, *arguments)`, begun together."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.warm"])
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        futures = [
            pool.submit(in_process, racer, gate, count, number, arguments)
            for number in range(count)
        ]
        return [future.result(timeout=240) for future in futures]


def in_process(
    racer: Callable[..., Any], gate: Path, count: int, number: int, arguments: tuple[Any, ...]
) -> Any:
    engine = get_engine("default", "default")
    engine.now()  # connected before the start
    (gate / f"{racer.__name__}-{number}-{os.getpid()}").touch()
    wait_until(lambda: len(list(gate.iterdir())) >= count, timeout=120)
    try:
        return racer(engine, number, *arguments)
    finally:
        engine.close()


def consume(engine: Engine, number: int, queues: QueueSelection) -> list[tuple[str, int]]:
    """Claims and finishes until nothing is left; returns (id, attempt) of all that it claimed."""
    who = Claimant(f"node-{number}", f"worker-{number}")
    claimed, mine = engine.claim(who, queues, random.randint(1, 20)), []
    while claimed:
        mine += [(row.id, row.attempt) for row in claimed]
        outcomes = [outcome_of(row, who, return_value=dump_json(who.worker)) for row in claimed]
        finished, claimed = engine.finish_and_claim(outcomes, who, queues, random.randint(1, 20))
        assert finished == {outcome.id for outcome in outcomes}
    return mine


def keep_up(engine: Engine, number: int, seconds: float) -> tuple[int, int, list[str]]:
    """Promotes, claims, finishes with no retention and prunes, until the table is empty.

    Returns how many it promoted and pruned, and the ids that it claimed.
    """
    who = Claimant(f"node-{number}", f"worker-{number}")
    promoted, pruned, mine = 0, 0, []
    deadline = time.monotonic() + seconds
    while ScheduledTask.objects.exists():
        assert time.monotonic() < deadline, engine.counts()
        promoted += engine.promote_due(random.randint(20, 100))
        claimed = engine.claim(who, EVERYTHING, random.randint(1, 50))
        mine += [row.id for row in claimed]
        engine.finish([outcome_of(row, who, retain=0.0) for row in claimed])
        pruned += engine.prune(random.randint(20, 100))
    return promoted, pruned, mine
