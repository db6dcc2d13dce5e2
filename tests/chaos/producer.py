"""Enqueues every kind of task through outages, and knows of each call what must have become of it.

Each call has a token among its arguments, by which its row is found afterwards: enqueue() that
raises in an outage tells nobody whether its transaction was committed.
"""

from __future__ import annotations

import contextlib
import datetime
import random
import threading
from collections.abc import Iterator
from typing import Any

from django.db import Error as DatabaseError
from django.db import connection, transaction
from django.tasks import default_task_backend
from django.utils import timezone

from . import tasks
from .calls import Call, Fate
from .kinds import KINDS

BACKLOG = 150  # rows; producers wait beyond it, so that the end of a run is near
LOOK = 0.3  # seconds between two looks at the backlog
PAUSE = 0.02  # seconds between two calls, on average


class RollBack(Exception):
    pass


class Producer(threading.Thread):
    """`calls`: all that was enqueued so far. `problem`: an error that no outage explains."""

    def __init__(self, seed: str) -> None:
        super().__init__(name="producer", daemon=True)
        self.draw = random.Random(seed)
        self.calls: list[Call] = []
        self.problem: BaseException | None = None
        self.stopped = threading.Event()
        self.full = threading.Event()

    def stop(self) -> None:
        self.stopped.set()
        self.join()

    def run(self) -> None:
        try:
            while not self.stopped.wait(self.draw.expovariate(1 / PAUSE)):
                if not self.full.is_set():
                    self.produce()
        except BaseException as error:
            self.problem = error
        finally:
            connection.close()

    def produce(self) -> None:
        with surviving_outages():
            match self.draw.random():
                case x if x < 0.75:
                    self.one()
                case x if x < 0.87:
                    self.many(self.draw.randint(2, 12))
                case x if x < 0.95:
                    self.in_transaction(self.draw.randint(1, 3))
                case _:
                    self.rolled_back(self.draw.randint(1, 3))

    def one(self) -> None:
        call, task = self.new_call()
        task.enqueue(call.token)
        call.fate = Fate.COMMITTED

    def many(self, count: int) -> None:
        calls = [self.new_call() for _ in range(count)]
        default_task_backend.enqueue_all([(task, [call.token], {}) for call, task in calls])
        for call, _ in calls:
            call.fate = Fate.COMMITTED

    def in_transaction(self, count: int) -> None:
        with transaction.atomic():
            calls = [self.enqueued() for _ in range(count)]
        for call in calls:
            call.fate = Fate.COMMITTED

    def rolled_back(self, count: int) -> None:
        with contextlib.suppress(RollBack), transaction.atomic():
            for _ in range(count):
                call, task = self.new_call()
                call.fate = Fate.ROLLED_BACK
                task.enqueue(call.token)
            raise RollBack

    def enqueued(self) -> Call:
        call, task = self.new_call()
        task.enqueue(call.token)
        return call

    def new_call(self) -> tuple[Call, Any]:
        names = list(KINDS)
        name = self.draw.choices(names, [KINDS[each].weight for each in names])[0]
        call = Call(f"{self.draw.getrandbits(128):032x}", name)
        self.calls.append(call)
        return call, self.variant(getattr(tasks, name))

    def variant(self, task: Any) -> Any:
        """The task as it is, or with a priority, a queue or a later time."""
        match self.draw.random():
            case x if x < 0.6:
                return task
            case x if x < 0.75:
                return task.using(priority=self.draw.randint(-100, 100))
            case x if x < 0.85:
                return task.using(queue_name=self.draw.choice(["email", "reports"]))
        delay = datetime.timedelta(seconds=3 * self.draw.random())
        return task.using(run_after=timezone.now() + delay)


class Gauge(threading.Thread):
    """Looks at the backlog, and has the producers wait while it is large."""

    def __init__(self, producers: list[Producer]) -> None:
        super().__init__(name="gauge", daemon=True)
        self.producers = producers
        self.stopped = threading.Event()
        self.backlog = 0

    def stop(self) -> None:
        self.stopped.set()
        self.join()

    def run(self) -> None:
        while not self.stopped.wait(LOOK):
            with surviving_outages():
                counts = default_task_backend.engine.counts()
                self.backlog = counts.ready + counts.deferred + counts.running
                for producer in self.producers:
                    (producer.full.set if self.backlog > BACKLOG else producer.full.clear)()
        connection.close()


@contextlib.contextmanager
def surviving_outages() -> Iterator[None]:
    """Errors of a database that is away end the block; other errors of it are raised."""
    try:
        yield
    except DatabaseError as error:
        away = default_task_backend.engine.unavailable(error)
        connection.close()
        if away is None:
            raise
