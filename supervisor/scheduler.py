"""The scheduler: the child process that drives the node's Timekeeper.

It leaves last. While workers drain it renews the lease; if the parent is killed it renews it until
the workers have finished and gone, so that no other node takes their tasks from under them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from django.db import Error as DatabaseError

from dbtasks.engines import Death, NodeInfo
from dbtasks.hand import Handover
from dbtasks.lease import Lease
from dbtasks.queues import QueueSelection
from dbtasks.tally import from_message, rescued_counts
from dbtasks.timekeeper import Hooks, Timekeeper, keep_patient

from .board import Board, State
from .channel import Channel
from .hand import heard
from .newborn import EXIT_OK, use_one_connection
from .roll import Roll
from .signals import SignalInbox, wait_readable

if TYPE_CHECKING:
    from dbtasks.backend import DatabaseBackend

    from .config import RunConfig

logger = logging.getLogger("dbtasks")

ORPHAN_LOOK = 1.0  # seconds between two looks whether the workers of a dead parent are gone


class SchedulerChild:
    """The loop around a Timekeeper, and what the parent tells it."""

    def __init__(
        self,
        backend: DatabaseBackend,
        node: NodeInfo,
        queues: QueueSelection,
        config: RunConfig,
        channel: Channel,
        board: Board,
        draining: bool,
        lease: Lease,
        roll: Roll,
    ) -> None:
        self.backend = backend
        self.engine = backend.engine
        self.node = node
        self.roll = roll
        self.channel = channel
        self.board = board
        self.burst = config.burst
        self.workers: dict[str, dict[str, Any]] = {}
        self.told_at = 0.0
        self.report: dict[str, dict[str, Any]] = {}  # of which some messages are still to come
        self.leaving = False
        self.told_ready = False
        self.inbox = SignalInbox(())
        # systemd may signal every process of the unit at once; we go when the parent says so.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        hooks = Hooks(
            work=lambda count: self.tell("work", count=count),
            cleanup=lambda: self.tell("cleanup"),
            workers=lambda: list(self.workers.values()),
            cancel=lambda request: self.tell("cancel", **request._asdict()),
            told_at=lambda: self.told_at,
            announce=lambda name, details: self.tell("announce", signal=name, details=details),
            foreign=self.foreign,
        )
        self.keeper = Timekeeper(
            backend,
            node,
            queues,
            hooks,
            capacity=config.workers,
            delay=config.delay,
            periodic=backend.parsed.periodic if config.periodic else None,
            retention=config.periodic,
            lease=lease,
        )
        self.keeper.draining = draining

    def tell(self, kind: str, **fields: Any) -> None:
        self.channel.send(kind, **fields)

    def run(self) -> int:
        patient = keep_patient(self.keeper, self.database_lost, self.database_found)
        while True:
            self.board.tick(State.WAITING)
            self.read_channel()
            if self.leaving or self.channel.closed:
                break
            seconds = patient()
            if self.burst and not self.keeper.draining:
                self.tell_when_empty()
            self.board.tick(State.WAITING if self.board_waits else State.IDLE)
            self.sleep(seconds)
        if self.channel.closed:
            self.outlive_parent()
        self.keeper.lease.end(self.engine)
        with contextlib.suppress(DatabaseError):
            self.keeper.ledger.write()
        self.engine.close()
        return EXIT_OK

    def read_channel(self) -> None:
        for message in self.channel.receive():
            match message["kind"]:
                case "drain":
                    self.keeper.draining = True
                case "leave":
                    self.leaving = True
                case "workers":
                    if message["first"]:
                        self.report = {}
                    self.report.update((row["id"], row) for row in message["rows"])
                    if message["last"]:
                        self.workers, self.told_at = self.report, float(message["at"])
                case "counted":
                    self.keeper.ledger.add(from_message(message["cells"]))
                case "settle":
                    self.settle(int(message.get("number", 0)), heard(message))
                case "reopen_logs":
                    from .logs import reopen_logs

                    reopen_logs()

    def settle(self, number: int, handover: Handover) -> None:
        """In a worker's place. What the parent is not told to be settled, a janitor does."""
        try:
            ready = handover.settle(self.engine)
        except DatabaseError as error:
            logger.debug("cannot settle what a worker held: %s", error)
            self.engine.close()
        else:
            self.tell("settled", number=number)
            if ready:
                self.tell("work", count=ready)

    def sleep(self, seconds: float) -> None:
        if not self.told_ready and not self.board_waits:
            self.told_ready = True
            self.tell("ready")
        readers = [self.channel.fileno(), self.inbox.fileno()]
        if (watched := self.keeper.fileno()) is not None:
            readers.append(watched)
        wait_readable(readers, seconds)
        self.inbox.read()

    board_waits = False

    @contextlib.contextmanager
    def foreign(self) -> Iterator[None]:
        """The project's code runs: that it takes its time says nothing about the database."""
        self.board.tick(State.IDLE)
        try:
            yield
        finally:
            self.board.tick(State.WAITING)

    def tell_when_empty(self) -> None:
        with contextlib.suppress(DatabaseError):
            # Looked at twice: a task may add others and end between the two questions.
            if not (self.is_ready() or self.engine.claimants(self.node.id) or self.is_ready()):
                self.tell("empty")

    def is_ready(self) -> bool:
        return bool(self.engine.ready_count(self.keeper.queues, 1))

    def database_lost(self, why: str) -> None:
        self.board_waits = True
        self.board.tick(State.WAITING)
        self.tell("database_lost", why=why)

    def database_found(self) -> None:
        self.board_waits = False
        self.tell("database_found")

    def outlive_parent(self) -> None:
        """Keeps the lease until the workers have finished and left, then gives back the rest."""
        logger.error("the supervisor is gone; its workers finish what they run and leave")
        self.keeper.draining = True
        patient = keep_patient(self.keeper, logger.error, lambda: None)
        pids = [int(row["pid"]) for row in self.workers.values()]
        # The last report may be older than the youngest worker.
        while self.roll.is_anybody_there() or any(is_alive(pid) for pid in pids):
            time.sleep(min(ORPHAN_LOOK, max(0.05, patient())))
        with contextlib.suppress(DatabaseError):
            reason = "its supervisor was killed, and the worker with it"
            rescued = self.engine.rescue(self.node.id, None, Death(reason))
            self.keeper.ledger.add(rescued_counts(rescued))


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read(512).rpartition(b")")[2].split()[0] != b"Z"
    except ProcessLookupError:
        return False
    except (OSError, IndexError):
        return os.path.exists(f"/proc/{pid}") or not os.path.exists("/proc/self")


def run_scheduler(
    backend: DatabaseBackend,
    node: NodeInfo,
    queues: QueueSelection,
    config: RunConfig,
    draining: bool,
    lease: Lease,
    roll: Roll,
    channel: Channel,
    board: Board,
) -> int:
    """The main function of the scheduler; returns its exit code."""
    use_one_connection()
    backend.engine.prepare_connections(node.lease / 3)  # to renew it in time, on a new connection
    child = SchedulerChild(backend, node, queues, config, channel, board, draining, lease, roll)
    return child.run()
