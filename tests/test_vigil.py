"""Which workers are recycled, and when."""

import time
from typing import Any

import pytest

from dbtasks.tally import Tally
from dbtasks_supervisor.board import Board
from dbtasks_supervisor.child import Child, Kind, Life
from dbtasks_supervisor.vigil import LONG_TASK, SILENCE, Vigil
from dbtasks_supervisor.worker import WorkerControl, recycle_after

pytestmark = pytest.mark.once


class Worker(Child):
    """A worker without a process."""

    def __init__(self, slot: int) -> None:
        super().__init__(Kind.WORKER, slot, f"w-{slot}", 0, None, Board())  # type: ignore[arg-type]
        self.life = Life.RUNNING
        self.wants_recycling = True

    def drain(self) -> None:
        self.life = Life.DRAINING

    def run_task(self) -> None:
        assert self.board is not None
        self.board.begin("0" * 32, 1, "a.task", None)


class Workers:
    """A Nursery with nothing but workers."""

    def __init__(self, count: int) -> None:
        self.workers = [Worker(slot) for slot in range(1, count + 1)]

    def draining(self) -> list[int]:
        return [worker.slot for worker in self.workers if worker.life is Life.DRAINING]


@pytest.fixture
def three() -> Workers:
    return Workers(3)


@pytest.fixture
def vigil(three: Workers) -> Vigil:
    return Vigil(three, None)  # type: ignore[arg-type]


def test_one_worker_at_a_time_is_recycled(three: Workers, vigil: Vigil) -> None:
    three.workers[0].run_task()
    for _ in range(3):
        vigil.recycle_one()
    assert three.draining() == [1]
    del three.workers[0]  # it has left
    vigil.recycle_one()
    assert three.draining() == [2]


def test_a_long_last_task_does_not_keep_others_from_being_recycled(
    three: Workers, vigil: Vigil, monkeypatch: pytest.MonkeyPatch
) -> None:
    three.workers[0].run_task()
    vigil.recycle_one()
    now = time.monotonic()
    for later, expected in ((LONG_TASK - 1, [1]), (LONG_TASK + 1, [1, 2])):
        monkeypatch.setattr("dbtasks_supervisor.vigil.time.monotonic", lambda at=now + later: at)
        vigil.recycle_one()
        assert three.draining() == expected


def test_workers_that_began_together_are_not_recycled_together() -> None:
    numbers: list[Any] = [recycle_after(1000) for _ in range(100)]
    assert len(set(numbers)) > 10
    assert all(1000 <= number <= 1100 for number in numbers)
    assert recycle_after(None) is None
    assert recycle_after(1) == 1


def test_an_idle_worker_of_many_gives_signs_of_life_all_the_time() -> None:
    """However seldom it looks at the queue by itself."""

    class Idle(WorkerControl):
        def __init__(self) -> None:
            self.board, self.siblings, self.tally = Board(), 50, Tally()
            self.draining = self.woken = False
            self.slept: list[float] = []

        def sleep(self, seconds: float) -> None:
            self.slept.append(seconds)
            self.woken = len(self.slept) == 5

        def read_channel(self) -> None:
            pass

    idle = Idle()
    idle.wait()
    assert len(idle.slept) == 5
    assert max(idle.slept) < SILENCE / 2
