"""What is taken from a worker behind a slow task is settled, whoever dies or stops meanwhile."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from types import SimpleNamespace
from typing import Any

import pytest

from dbtasks_supervisor.board import Board
from dbtasks_supervisor.channel import Channel
from dbtasks_supervisor.child import Child, Kind, Life
from dbtasks_supervisor.errands import Errands
from dbtasks_supervisor.hand import SharedHand
from dbtasks_supervisor.janitor import Settle
from dbtasks_supervisor.overrun import OVERDUE, SILENT, Overruns
from tests.test_hand import batch, names

pytestmark = pytest.mark.once
NOW = 1000.0


class Family:
    """A worker that holds a batch, and schedulers; none of them has a process."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.hand = stack.enter_context(closing(SharedHand()))
        self.rows = batch(3)
        self.hand.deal(self.rows)
        self.worker = self.child(Kind.WORKER, self.hand)
        self.old, self.young = self.child(Kind.SCHEDULER), self.child(Kind.SCHEDULER)
        nursery: Any = SimpleNamespace(
            of_kind=lambda kind: [self.old, self.young], workers=[self.worker]
        )
        self.errands = Errands(nursery)
        self.overruns = Overruns(nursery, self.errands)

    def child(self, kind: Kind, hand: SharedHand | None = None) -> Child:
        ours, _ = (self.stack.enter_context(closing(each)) for each in Channel.pair())
        board = self.stack.enter_context(closing(Board()))
        return Child(kind, 0, "worker", 0, ours, board, hand, node="node", life=Life.RUNNING)

    @property
    def settled_by_janitors(self) -> list[Any]:
        return [job.handover.rows for job in self.errands.rescues if isinstance(job, Settle)]


@pytest.fixture
def family() -> Iterator[Family]:
    with ExitStack() as stack:
        yield Family(stack)


def test_what_the_scheduler_says_it_has_settled_is_done(family: Family) -> None:
    family.overruns.relieve(family.worker, NOW)
    (number,) = family.overruns.entrusted
    family.overruns.settled(family.young, number)
    family.overruns.chase(NOW + 2 * OVERDUE)
    family.overruns.forget(family.young)
    assert not family.settled_by_janitors


def test_what_a_scheduler_dies_with_is_a_janitors_at_once(family: Family) -> None:
    family.overruns.relieve(family.worker, NOW)
    family.overruns.forget(family.old)
    assert not family.settled_by_janitors
    family.overruns.forget(family.young)
    assert family.settled_by_janitors == [names(family.rows[1:])]
    assert not family.overruns.entrusted


def test_what_a_scheduler_does_not_settle_in_time_is_a_janitors(family: Family) -> None:
    family.overruns.relieve(family.worker, NOW)
    family.overruns.chase(NOW + OVERDUE)
    assert not family.settled_by_janitors
    family.overruns.chase(NOW + OVERDUE + 0.1)
    family.overruns.chase(NOW + OVERDUE + 0.2)
    assert family.settled_by_janitors == [names(family.rows[1:])]


def test_the_number_of_another_scheduler_is_another_one(family: Family) -> None:
    family.overruns.relieve(family.worker, NOW)
    (number,) = family.overruns.entrusted
    family.overruns.settled(family.old, number)
    assert number in family.overruns.entrusted


def test_before_a_reload_nothing_is_taken_from_workers_that_go_on(family: Family) -> None:
    """Or it would never come to it: they always have something that is not written yet."""
    assert family.worker.board is not None
    family.worker.board.tick()
    now = time.monotonic()
    family.overruns.suspend(now)
    assert not family.overruns.entrusted
    assert family.hand.room == 1
    family.overruns.suspend(now + 2 * SILENT)
    assert family.overruns.entrusted


def test_at_the_last_moment_before_a_reload_everything_is_taken(family: Family) -> None:
    assert family.worker.board is not None
    family.worker.board.tick()
    family.overruns.relieve_all(time.monotonic())
    assert family.overruns.entrusted
