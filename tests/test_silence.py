"""How long a child may wait for a database that never answers, as its board and the clock say."""

import os
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from dbtasks.engines import Outcome
from dbtasks_supervisor.board import Board, State
from dbtasks_supervisor.channel import Channel
from dbtasks_supervisor.child import Child, Kind, Life
from dbtasks_supervisor.hand import SharedHand
from dbtasks_supervisor.outage import Outage
from dbtasks_supervisor.vigil import Vigil

pytestmark = pytest.mark.once
TASK = "0" * 32


class Nursery:
    """The children of a node with a lease of 30 s, who never tick again."""

    def __init__(self) -> None:
        self.node = SimpleNamespace(lease=30.0)
        engine = SimpleNamespace(alias="default")
        self.application = SimpleNamespace(backend=SimpleNamespace(engine=engine))
        self.children: list[Child] = []

    def __iter__(self) -> Iterator[Child]:
        return iter(self.children)

    def of_kind(self, *kinds: Kind) -> list[Child]:
        return [child for child in self.children if child.kind in kinds]

    def add(self, kind: Kind, state: State, life: Life = Life.RUNNING) -> Child:
        ours, theirs = Channel.pair()
        theirs.close()
        board = Board()
        if state in (State.BUSY, State.WRITING):
            board.begin(TASK, 1, "tasks.work", None)
        if state is State.WRITING:
            board.end(failed=False)
        board.tick(state)
        # Nobody is signalled: a stack dump is not asked for, and nothing is carried out.
        child = Child(kind, 1, "node-1", os.getpid(), ours, board, life=life)
        self.children.append(child)
        return child


@pytest.fixture
def nursery() -> Iterator[Any]:
    nursery = Nursery()
    yield nursery
    for child in nursery:
        child.close()


def is_condemned(nursery: Any, child: Child, after: float) -> bool:
    Vigil(nursery, None).look_for_stuck(child, time.monotonic() + after)
    return child.kill_at is not None


@pytest.mark.parametrize(
    ("kind", "state", "life", "limit", "counted"),
    [
        (Kind.SCHEDULER, State.WAITING, Life.RUNNING, 20, False),
        (Kind.WORKER, State.LOOKING, Life.RUNNING, 90, False),
        (Kind.WORKER, State.WAITING, Life.DRAINING, 10, False),
        (Kind.WORKER, State.WRITING, Life.RUNNING, 150, True),
        (Kind.WORKER, State.WRITING, Life.DRAINING, 150, True),
    ],
)
def test_a_child_is_replaced_when_the_database_has_not_answered_it_for_too_long(
    nursery: Any, kind: Kind, state: State, life: Life, limit: float, counted: bool
) -> None:
    child = nursery.add(kind, state, life)
    assert not is_condemned(nursery, child, limit - 1)
    assert is_condemned(nursery, child, limit + 1)
    verdict, is_counted = child.charge
    assert f"did not answer for {limit} s" in verdict
    assert is_counted is counted


def test_a_worker_that_drains_is_not_hurried_while_its_hand_keeps_an_outcome(nursery: Any) -> None:
    child = nursery.add(Kind.WORKER, State.WAITING, Life.DRAINING)
    child.hand = SharedHand()
    child.hand.keep(Outcome(TASK, 1, "node-1", "SUCCESSFUL", None, "[]", "[]", 0, None, None))
    assert not is_condemned(nursery, child, 89)
    child.hand.clear()
    assert is_condemned(nursery, child, 11)


def test_the_time_of_a_task_is_its_own(nursery: Any) -> None:
    child = nursery.add(Kind.WORKER, State.BUSY)
    assert not is_condemned(nursery, child, 1e6)


# What the node says of it


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage().partition(":")[0] for record in caplog.records]


def test_a_silence_is_told_once_and_its_end_too(
    nursery: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dbtasks")
    outage = Outage(nursery)
    children = [nursery.add(Kind.WORKER, State.WRITING) for _ in range(3)]
    nursery.add(Kind.WORKER, State.IDLE)
    outage.look(time.monotonic() + 9)
    assert not told(caplog)
    for seconds in (11, 12, 13):
        outage.look(time.monotonic() + seconds)
    assert told(caplog) == ["degraded"]
    for child in children:
        child.board.tick(State.LOOKING)
    for _ in range(2):
        outage.look(time.monotonic())
    assert told(caplog) == ["degraded", "recovered"]


def test_an_error_after_a_silence_is_no_recovery(
    nursery: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dbtasks")
    outage = Outage(nursery)
    child = nursery.add(Kind.WORKER, State.WRITING)
    outage.look(time.monotonic() + 11)
    child.board.tick(State.WAITING)  # and its message about it is still to come
    outage.look(time.monotonic())
    outage.lost(child, "connection refused")
    outage.look(time.monotonic())
    assert told(caplog) == ["degraded"]
    outage.found(child)
    assert told(caplog) == ["degraded", "recovered"]


def test_the_death_of_who_complained_is_no_recovery(
    nursery: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dbtasks")
    outage = Outage(nursery)
    dead = nursery.add(Kind.WORKER, State.WAITING)
    idle = nursery.add(Kind.WORKER, State.IDLE)
    outage.lost(dead, "connection refused")
    nursery.children.remove(dead)
    outage.ended(dead)
    outage.look(time.monotonic())
    assert told(caplog) == ["degraded"]
    idle.board.tick(State.IDLE)
    outage.look(time.monotonic())
    assert told(caplog) == ["degraded", "recovered"]
    dead.close()
