"""The worker: a child process that runs one task at a time."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import random
import signal
import time
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from dbtasks import signals
from dbtasks.consumer import Consumer
from dbtasks.engines import Claimant, Claimed
from dbtasks.engines.network import CONNECTION_PATIENCE
from dbtasks.exceptions import TaskCancelled, TaskInterrupted, TaskTimeout
from dbtasks.execution import Execution
from dbtasks.interruption import CANCELLED, over_limit
from dbtasks.lease import Lease
from dbtasks.queues import QueueSelection
from dbtasks.retention import stop_when
from dbtasks.tally import Tally

from .board import Board, State
from .channel import Channel
from .hand import SharedHand
from .newborn import EXIT_CRASHED, EXIT_OK, use_one_connection
from .relay import send_counts
from .roll import Roll
from .signals import (
    WORKER_CANCEL,
    WORKER_DRAIN,
    WORKER_INTERRUPT,
    SignalInbox,
    wait_readable,
)
from .tidy import ProcessState, flush_streams

if TYPE_CHECKING:
    from dbtasks.backend import DatabaseBackend

logger = logging.getLogger("dbtasks")

# Seconds after which one of a node's idle workers looks without having been woken: so many idle
# workers cost the database what one does.
SELF_LOOK = (20.0, 40.0)
SIGN_OF_LIFE = 20.0  # seconds between two ticks of an idle worker; who is silent for 60 is killed
INTERRUPTED = "the supervisor shuts down and its grace period is over"
LISTEN = 0.002  # seconds between two looks at what the parent says, while tasks run
RECYCLE_JITTER = 0.1  # so that workers that started together do not end together


class WorkerControl:
    """A worker process's Control (see dbtasks.consumer)."""

    def __init__(
        self,
        channel: Channel,
        board: Board,
        hand: SharedHand,
        max_tasks: int | None,
        siblings: int = 1,
    ) -> None:
        self.channel = channel
        self.siblings = siblings
        self.hand = hand
        hand.watch = functools.partial(channel.send, "watch")
        self.board = board
        self.draining = False
        self.woken = False
        self.interrupted = False
        self.guarded = False  # whether a task's code runs that we may raise into
        self.timeout: float | None = None
        self.began_at = 0.0
        self.listen_at = 0.0
        self.limiting = Limiting(self)
        self.pid = os.getpid()
        self.tasks_left = recycle_after(max_tasks)
        self.tally = Tally()
        self.inbox = SignalInbox(())
        self.install_handlers()
        self.process = ProcessState(self.inbox)

    # Signals

    def install_handlers(self) -> None:
        signal.signal(WORKER_DRAIN, self._on_drain)
        signal.signal(WORKER_INTERRUPT, self._on_interrupt)
        signal.signal(WORKER_CANCEL, self._on_cancel)
        signal.signal(signal.SIGALRM, self._on_alarm)

    def _on_drain(self, signum: int, frame: FrameType | None) -> None:
        self.draining = True

    def _on_interrupt(self, signum: int, frame: FrameType | None) -> None:
        self.draining = self.interrupted = True
        self.raise_once(TaskInterrupted(INTERRUPTED))

    def _on_cancel(self, signum: int, frame: FrameType | None) -> None:
        if self.hand.is_cancelled(self.board.began):
            self.raise_once(TaskCancelled(CANCELLED))

    def _on_alarm(self, signum: int, frame: FrameType | None) -> None:
        if self.timeout is not None:
            self.raise_once(TaskTimeout(over_limit(time.monotonic() - self.began_at, self.timeout)))

    def raise_once(self, error: BaseException) -> None:
        """Raises it in the task that runs, if one does; a second one would hit its clean-up."""
        if self.guarded:
            self.guarded = False
            raise error

    # What the consumer asks

    def stopping(self) -> bool:
        # To drain comes as a signal, too; all else can wait for so long.
        now = time.monotonic()
        if now >= self.listen_at:
            self.listen_at = now + LISTEN
            self.read_channel()
        return self.draining

    def idle(self) -> None:
        self.woken = False
        self.board.tick(State.LOOKING)

    def wait(self) -> None:
        deadline = time.monotonic() + random.uniform(*SELF_LOOK) * self.siblings
        self.read_channel()
        while not (self.draining or self.woken):
            self.board.tick(State.IDLE)
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                break
            counts_due_in = self.tally.due_in
            if counts_due_in == 0.0:
                self.hand_on_counts()
                counts_due_in = self.tally.due_in
            self.sleep(min(remaining, SIGN_OF_LIFE, counts_due_in or SIGN_OF_LIFE))
            self.read_channel()
        # Awake, so that the next wake-up is for another worker.
        self.board.tick(State.WAITING)

    def pause(self, seconds: float) -> None:
        self.board.tick(State.WAITING)
        self.sleep(seconds)

    def began(self, claimed: Claimed) -> None:
        self.board.begin(claimed.id, claimed.attempt, claimed.task_path, None)

    def ended(self, execution: Execution) -> bool:
        if os.getpid() != self.pid:
            self.leave_as_copy(execution)
        safe = self.hand.keep(execution.outcome)
        self.board.end(execution.failed, settled=safe)
        self.process.restore()
        if self.tasks_left is not None:
            self.tasks_left -= 1
            if self.tasks_left <= 0:  # again if need be: a message may be lost
                self.channel.send("recycle")
        return safe

    def settled(self) -> None:
        self.board.settle()
        if self.tally.due_in == 0.0:
            self.hand_on_counts()

    def counting(self, tally: Tally) -> None:
        self.tally = tally

    def hand_on_counts(self) -> None:
        """To the parent, which passes it on; what it cannot take now is kept."""
        self.tally.put_back(send_counts(self.channel, self.tally.take()))

    def gave_back(self, count: int) -> None:
        self.channel.send("work", count=count)

    def allowance(self) -> int | None:
        return self.tasks_left

    def limit(self, seconds: float | None) -> contextlib.AbstractContextManager[None]:
        self.timeout = seconds
        return self.limiting

    def announce_limit(self, seconds: float) -> None:
        """The parent's clock starts with ours: the import of the task's module is not its time."""
        deadline = time.monotonic() + hard_limit(seconds)
        self.board.limit(deadline)
        self.channel.send("limit", deadline=deadline)

    def database_lost(self, why: str) -> None:
        self.board.tick(State.WAITING)
        self.channel.send("database_lost", why=why)

    def database_found(self) -> None:
        self.board.tick(State.IDLE)
        self.channel.send("database_found")

    # Inside

    def read_channel(self) -> None:
        for message in self.channel.receive():
            match message["kind"]:
                case "drain":
                    self.draining = True
                case "wake":
                    self.woken = True
                case "reopen_logs":
                    from .logs import reopen_logs

                    reopen_logs()
        if self.channel.closed:
            self.draining = True  # the parent is gone: finish the current task and leave

    def sleep(self, seconds: float) -> None:
        """Until a message or a signal comes, or the time is over."""
        readers = [self.inbox.fileno()]
        if not self.channel.closed:
            readers.append(self.channel.fileno())
        wait_readable(readers, seconds)
        self.inbox.read()

    def leave_as_copy(self, execution: Execution) -> NoReturn:
        """A task forked, and this is the child at the task's end: it must not go on as a worker."""
        code = 0 if execution.error is None else EXIT_CRASHED
        if isinstance(execution.error, SystemExit):
            asked = execution.error.code
            code = 0 if asked is None else asked if isinstance(asked, int) else EXIT_CRASHED
        flush_streams()
        os._exit(code & 0xFF)


class Limiting:
    """A worker's `limit`: one object for all tasks, for a generator each would take longer."""

    def __init__(self, control: WorkerControl) -> None:
        self.control = control

    def __enter__(self) -> None:
        control = self.control
        control.began_at = time.monotonic()
        try:
            # Guarded first: a signal that comes before would be lost.
            control.guarded = True
            if control.interrupted:
                raise TaskInterrupted(INTERRUPTED)
            if control.hand.is_cancelled(control.board.began):
                raise TaskCancelled(CANCELLED)
            if control.timeout is not None:
                control.announce_limit(control.timeout)
                signal.setitimer(signal.ITIMER_REAL, control.timeout)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exception: object) -> None:
        self.control.guarded = False
        # Whosever it is: no timer may raise into what is ours.
        signal.setitimer(signal.ITIMER_REAL, 0)


def hard_limit(timeout: float) -> float:
    """Seconds after which the parent kills a worker whose task did not obey its `timeout`."""
    return timeout + max(1.0, 0.1 * timeout)


def recycle_after(max_tasks: int | None) -> int | None:
    """After how many tasks a worker is replaced; None: never."""
    if max_tasks is None:
        return None
    return max_tasks + random.randint(0, int(max_tasks * RECYCLE_JITTER))


def run_worker(
    backend: DatabaseBackend,
    who: Claimant,
    queues: QueueSelection,
    lease: Lease,
    roll: Roll,
    max_tasks: int | None,
    siblings: int,
    hand: SharedHand,
    channel: Channel,
    board: Board,
) -> int:
    """The main function of a worker; returns its exit code."""
    control = WorkerControl(channel, board, hand, max_tasks, siblings)
    stop_when(control.stopping)
    roll.answer()
    use_one_connection()
    backend.engine.prepare_connections(CONNECTION_PATIENCE)
    consumer = Consumer(backend, who, queues, control, lease)

    def connect() -> bool:
        # The node's lease must be there before its first claim.
        lease.renew(backend.engine)
        return True

    board.tick(State.WAITING)
    if consumer.patiently(connect):
        about = {"worker_id": who.worker, "node": lease.node.name}
        signals.send("worker_started", backend, **about)
        channel.send("ready")
        consumer.run()
        control.hand_on_counts()
        signals.send("worker_stopped", backend, crashed=False, reason="", **about)
    backend.engine.close()
    return EXIT_OK
