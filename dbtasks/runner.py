"""`Runner`: workers as threads of this process; and `cleanup`, the task that is retention.

For development, tests, small sites and free-threaded Python. It claims, executes and finishes by
the same code as the supervisor's worker processes, but it cannot survive a task that crashes the
process, and interrupts a task only between two bytecodes.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DatabaseError
from django.db import connections
from django.tasks import DEFAULT_TASK_QUEUE_NAME, task_backends
from django.tasks.base import TaskContext, TaskResult

from .backend import DatabaseBackend
from .consumer import Consumer
from .engines import CancelRequest, Claimant, Death, NodeInfo
from .engines.connection import migrate_command
from .ids import random_suffix
from .lease import Lease
from .periodic import Periodic
from .queues import select_queues
from .relief import Relief
from .results import unchecked
from .retention import prune, stop_when
from .signals import send, send_aside
from .tasks import Task
from .threads import ThreadControl
from .timekeeper import Hooks, Timekeeper, keep_patient

logger = logging.getLogger("dbtasks")
T = TypeVar("T")

RESULT_LOOK = 0.02  # seconds between two looks at a result that somebody waits for


def _cleanup(context: TaskContext) -> dict[str, int]:
    """Deletes finished tasks that are past their retention."""
    backend = database_backend(context.task_result.backend)
    return {"deleted": prune(backend.engine)}


def _cleanup_task() -> Task:
    """Unchecked: a backend need not have the default queue, and this module must be importable."""
    _cleanup.__name__ = _cleanup.__qualname__ = "cleanup"
    blank = object.__new__(Task)
    for name in Task.__dataclass_fields__:
        object.__setattr__(blank, name, None)
    return unchecked(  # type: ignore[return-value]
        blank,
        func=_cleanup,
        priority=0,
        backend="default",
        queue_name=DEFAULT_TASK_QUEUE_NAME,
        takes_context=True,
    )


cleanup = _cleanup_task()


def database_backend(alias: str) -> DatabaseBackend:
    """The backend `alias` of TASKS. Raises ImproperlyConfigured if it is none of ours."""
    try:
        backend = task_backends[alias]
    except Exception as error:
        raise ImproperlyConfigured(
            f"TASKS has no usable backend {alias!r}: {str(error).rstrip('.')}. There are: "
            f"{', '.join(map(repr, task_backends))}."
        ) from error
    if not isinstance(backend, DatabaseBackend):
        raise ImproperlyConfigured(
            f"TASKS[{alias!r}]['BACKEND'] must be 'dbtasks.backend.DatabaseBackend' for a runner "
            f"to have work; it is {type(backend).__module__}.{type(backend).__qualname__}."
        )
    return backend


class Runner:
    """Runs tasks in `workers` threads until `stop()`.

    `worker_id`: the node's name (default: the host's). `backend`: alias in TASKS.
    `loop_delay`: seconds between looks for work when nothing woke us. `init_periodic`: whether
    periodic tasks are enqueued here. `burst`: end when nothing is ready.

    `ready`, `finished` and `empty` are events: all workers are up; `run` has returned; no worker
    found anything ready at its last look.
    """

    def __init__(
        self,
        workers: int = 4,
        worker_id: str | None = None,
        backend: str = "default",
        loop_delay: float | None = None,
        init_periodic: bool = True,
        *,
        queues: Sequence[str] = (),
        exclude_queues: Sequence[str] = (),
        burst: bool = False,
    ) -> None:
        if not isinstance(workers, int) or workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers!r}")
        self.backend = database_backend(backend)
        options = self.backend.settings
        self.engine = self.backend.engine
        self.workers = workers
        self.worker_id = worker_id or socket.gethostname()
        self.queues = select_queues(queues, exclude_queues)
        self.burst = burst
        self.ready, self.finished, self.empty = (threading.Event() for _ in range(3))
        self.stop_event = threading.Event()
        self._entries = options.periodic if init_periodic else ()
        self._controls: list[ThreadControl] = []
        self.relief = Relief(self)
        self._consumers: list[Consumer] = []
        self._progress = threading.Condition()
        self._lock = threading.Lock()
        self._without_database: set[object] = set()
        self._down_since: float | None = None
        self._failure: BaseException | None = None
        self._waker: socket.socket | None = None
        self._cleanup_wanted = threading.Event()
        self.node = NodeInfo(
            id=random_suffix() + random_suffix(),
            name=self.worker_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            kind="runner",
            lease=options.worker_timeout,
        )
        self.lease = Lease(self.node)
        hooks = Hooks(
            work=self.wake,
            cleanup=self._cleanup_wanted.set,
            workers=self.worker_rows,
            cancel=self._cancel,
            announce=self.announce,
        )
        self.keeper = Timekeeper(
            self.backend,
            self.node,
            self.queues,
            hooks,
            capacity=workers,
            delay=loop_delay,
            periodic=self._entries if init_periodic else None,
            retention=init_periodic,
            lease=self.lease,
        )

    # What users ask

    @property
    def periodic(self) -> dict[str, Periodic]:
        """The periodic entries of OPTIONS by name; empty with init_periodic=False."""
        return {entry.name: entry.definition for entry in self._entries}

    @property
    def processed(self) -> int:
        """How many tasks were run so far."""
        return sum(consumer.processed for consumer in self._consumers)

    @property
    def degraded(self) -> bool:
        """Whether the database is away."""
        return self._down_since is not None

    @property
    def stopping(self) -> bool:
        return self.stop_event.is_set()

    def stop(self) -> None:
        """Drains: no further claims; `run` returns when the running tasks are done."""
        self.stop_event.set()
        for control in self._controls:
            control.wake()
        self.nudge()

    def interrupt(self) -> None:
        """Raises TaskInterrupted in the running tasks; they go back to the queue."""
        for control in self._controls:
            control.limit.interrupt()

    def abandon(self) -> None:
        """Gives the rows of tasks that do not end back, uncounted; the process must end now."""
        with contextlib.suppress(DatabaseError):
            shut_down = Death("its runner was shut down", counted=False)
            self.engine.rescue(self.node.id, None, shut_down)
            self.lease.end(self.engine)

    def wait_for(self, result: TaskResult, timeout: float | None = None) -> bool:
        """Blocks until `result` is finished and refreshes it; False after `timeout` seconds."""
        return self._wait_until(lambda: self._refreshed(result), timeout)

    def wait(self, timeout: float | None = None) -> bool:
        """Blocks until nothing is ready or running; False after `timeout` seconds."""
        return self._wait_until(self._nothing_to_do, timeout)

    # Running

    def run(self) -> None:
        """Works until `stop()`, in the calling thread and in `workers` more."""
        patient = keep_patient(
            self.keeper,
            functools.partial(self.database_lost, self.keeper),
            functools.partial(self.database_found, self.keeper),
        )
        self._waker, wakened = socket.socketpair()
        self._waker.setblocking(False)
        try:
            self._serve(patient, wakened)
        finally:
            self.stop()
            for thread in self._threads:
                thread.join()
            self.lease.end(self.engine)
            with contextlib.suppress(DatabaseError):
                self.keeper.ledger.write()
            connections.close_all()
            self._waker.close()
            wakened.close()
            self.finished.set()
            self.note_progress()
        if self._failure is not None:
            raise self._failure

    _threads: tuple[threading.Thread, ...] = ()

    def _serve(self, patient: Callable[[], float], wakened: socket.socket) -> None:
        # The node must have its lease before a worker of it claims anything.
        while not self.stopping and not self._registered():
            self.stop_event.wait(0.2)
        self._controls = [ThreadControl(self) for _ in range(self.workers)]
        self.relief.controls = self._controls
        self._threads = tuple(
            threading.Thread(target=self._work, args=(number, control), name=f"dbtasks-{number}")
            for number, control in enumerate(self._controls, 1)
        )
        for thread in self._threads:
            thread.start()
        logger.info(
            "runner %s is ready: %d worker threads on queues %s",
            self.worker_id,
            self.workers,
            self.queues,
        )
        self.ready.set()
        while not self.stopping or any(thread.is_alive() for thread in self._threads):
            self.keeper.draining = self.stopping
            seconds = patient()
            if self._cleanup_wanted.is_set() and not self.stopping:
                seconds = 0.0
                self._when_reachable(self._clean_up)
            if self.burst and self._when_reachable(self._nothing_to_do):
                self.stop_event.set()
                self.stop()
            if self.stopping:
                seconds = min(seconds, 0.1)
            seconds = min(seconds, self.relief.look())
            self._sleep(min(seconds, self._next_deadline()), wakened)
            for control in self._controls:
                control.limit.enforce()

    def _cancel(self, request: CancelRequest) -> None:
        """Raises TaskCancelled in the thread; a task that has not begun is taken from it."""
        for control in self._controls:
            if control.who is None or control.who.worker != request.worker:
                continue
            if not control.limit.cancel((request.id, request.attempt)):
                self.relief.take(control.hand.take_over(control.who))

    def _clean_up(self) -> None:
        away = False

        def called_away() -> bool:
            nonlocal away
            away = self._called_away()
            return away

        prune(self.engine, called_away)
        if not away:
            self._cleanup_wanted.clear()

    def _called_away(self) -> bool:
        """Whether something is due that does not wait for retention, the lease above all."""
        return self.stopping or self.keeper.sleep_time() <= 0.0 or self.relief.is_due

    def _when_reachable(self, action: Callable[[], T]) -> T | None:
        """What `action` returns; None if the database is away, which the keeper will notice."""
        try:
            return action()
        except DatabaseError as error:
            if self.engine.unavailable(error) is None:
                raise
            self.engine.close()
            return None

    def _registered(self) -> bool:
        try:
            if self.engine.missing_tables():
                migrate = migrate_command(self.engine.alias)
                self.database_lost(self.keeper, f"the tables of dbtasks are missing, run {migrate}")
                return False
            self.lease.renew(self.engine)
        except DatabaseError as error:
            why = self.engine.unavailable(error)
            if why is None:
                raise
            self.engine.close()
            self.database_lost(self.keeper, why)
            return False
        self.database_found(self.keeper)
        return True

    def _work(self, number: int, control: ThreadControl) -> None:
        who = Claimant(self.node.id, f"{self.worker_id}-{number}.{self.node.id[:8]}")
        control.who = who
        consumer = Consumer(self.backend, who, self.queues, control, self.lease)
        self._consumers.append(consumer)
        stop_when(control.stopping)
        about = {"worker_id": who.worker, "node": self.worker_id}
        send("worker_started", self.backend, **about)
        why = ""
        try:
            consumer.run()
        except BaseException as error:
            why = "the worker thread crashed"
            logger.critical("worker thread %s crashed", who.worker, exc_info=error)
            self._failure = error
            self.stop()
            with contextlib.suppress(DatabaseError):
                self.engine.close()
                death = Death("its worker thread crashed")
                rescued = self.engine.rescue(who.node, who.worker, death)
                self.keeper.note_rescue(rescued, who.worker, death.reason)
        finally:
            control.hand_on_counts()
            send("worker_stopped", self.backend, crashed=bool(why), reason=why, **about)
            connections.close_all()
            self.note_progress()

    # Between the threads

    def wake(self, count: int) -> None:
        """Wakes so many idle workers."""
        with self._lock:
            for control in self._controls:
                if count > 0 and control.waiting:
                    control.wake()
                    count -= 1

    def worker_rests(self, control: ThreadControl) -> None:
        """The worker has looked for work in vain."""
        with self._lock:
            control.resting = True
            if all(other.resting for other in self._controls):
                self.empty.set()

    def worker_begins(self, control: ThreadControl) -> None:
        with self._lock:
            control.resting = False
            self.empty.clear()

    def note_progress(self) -> None:
        with self._progress:
            self._progress.notify_all()

    def worker_rows(self) -> list[dict[str, Any]]:
        rows = []
        now = time.monotonic()
        for consumer in list(self._consumers):
            control = consumer.control
            assert isinstance(control, ThreadControl)
            running = control.running
            rows.append(
                {
                    "id": consumer.who.worker,
                    "kind": "thread",
                    "pid": os.getpid(),
                    "state": "idle" if running is None else "busy",
                    "task_id": "" if running is None else running.id,
                    "task_path": "" if running is None else running.task_path,
                    "task_seconds": None if running is None else round(now - control.began_at, 3),
                    "done": consumer.processed,
                    "failed": control.failed,
                    "restarts": 0,
                    "memory": None,  # all threads share it, and the CPU time
                    "cpu_seconds": None,
                    "up_seconds": round(now - control.born, 3),
                }
            )
        return rows

    def announce(self, name: str, details: dict[str, Any]) -> None:
        """Calls the receivers of one of our signals in a thread of its own."""
        send_aside(name, self.backend, **details)

    def database_lost(self, who: object, why: str) -> None:
        """One line for the node, however many of its threads notice."""
        with self._lock:
            self._without_database.add(who)
            begins = self._down_since is None
            if begins:
                self._down_since = time.monotonic()
                logger.error("degraded: %s; trying again until it works", why)
        if begins:
            self.announce("node_degraded", {"node": self.worker_id, "reason": why})

    def database_found(self, who: object) -> None:
        """The node is well again when each of its threads is."""
        with self._lock:
            self._without_database.discard(who)
            if self._down_since is not None and not self._without_database:
                seconds = time.monotonic() - self._down_since
                self._down_since = None
                logger.info("recovered: the database is back after %.1f s", seconds)

    def nudge(self) -> None:
        if self._waker is not None:
            with contextlib.suppress(OSError):
                self._waker.send(b".")

    def _sleep(self, seconds: float, wakened: socket.socket) -> None:
        readers: list[Any] = [wakened]
        if (watched := self.keeper.fileno()) is not None:
            readers.append(watched)
        with contextlib.suppress(OSError, ValueError):
            ready, _, _ = select.select(readers, [], [], max(0.0, seconds))
            if wakened in ready:
                wakened.recv(4096)

    def _next_deadline(self) -> float:
        deadlines = [c.limit.deadline for c in self._controls if c.limit.deadline is not None]
        return max(0.0, min(deadlines, default=float("inf")) - time.monotonic())

    # Waiting

    def _wait_until(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not condition():
            if deadline is not None and time.monotonic() >= deadline:
                return False
            if self.finished.is_set():
                return condition()
            with self._progress:
                self._progress.wait(RESULT_LOOK)
        return True

    def _refreshed(self, result: TaskResult) -> bool:
        result.refresh()
        return bool(result.is_finished)

    def _nothing_to_do(self) -> bool:
        # What was claimed after the first look and is over before the last one, shows in processed.
        before = self.processed
        idle = not (
            self.engine.counts().running
            or self.engine.ready_count(self.keeper.queues, 1)
            or self.engine.counts().running
            or self.processed != before
        )
        if idle:
            self.empty.set()
        return idle
