"""What a node's scheduler does: lease, due rows, periodic tasks, dead nodes, looking for work.

One object per node, driven by `tick()` from a process (the supervisor's scheduler) or a thread
(Runner). It sleeps until the next thing is due; it never polls on behalf of single workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Set
from typing import TYPE_CHECKING, Any

from .engines import CancelRequest, Death, NodeInfo, Rescued
from .engines.base import NOTIFY_INTERVAL, Glance
from .lease import Lease
from .periodic import BoundPeriodic
from .periodic.planner import Planner
from .queues import QueueSelection
from .signals import is_wanted, rescued_details
from .tally import Ledger, rescued_counts

if TYPE_CHECKING:
    from .backend import DatabaseBackend

logger = logging.getLogger("dbtasks")

# Seconds after a notification at which we look again. It stands for all that its producer inserts
# in the next NOTIFY_INTERVAL, and a loaded database takes its time to commit that.
ECHOES = (1.5 * NOTIFY_INTERVAL, 10 * NOTIFY_INTERVAL)
PROMOTE_BATCH = 1000
OUTAGE_ECHO = 10.0  # seconds after an outage in which every living node has renewed its lease
LONGEST_SLEEP = 60.0  # seconds
EDIT_LOOK = 1.5  # seconds after which a change of the periodic entries is seen if nothing tells
# Seconds within which a pause or a cancellation is noticed where no notification tells of it.
ORDERS_LOOK = 2.0
# Seconds between two looks for work where nothing tells us of a change and --delay is not given.
DELAY_WITH_NOTIFICATIONS, DELAY_WITHOUT = 2.0, 0.1


@dataclasses.dataclass
class Hooks:
    """What the scheduler's surroundings do for it."""

    work: Callable[[int], None]
    """So many rows are ready: wake as many idle workers."""
    cleanup: Callable[[], None]
    """There are rows past their retention."""
    workers: Callable[[], list[dict[str, Any]]]
    """The node's workers as we know them, as fields of models.Worker."""
    cancel: Callable[[CancelRequest], None] = lambda request: None
    """A task that one of the node's workers runs is to end; told again until it has."""
    told_at: Callable[[], float] = time.monotonic
    """When that was so (monotonic): the parent of processes may be late to tell."""
    announce: Callable[[str, dict[str, Any]], None] = lambda name, details: None
    """Calls the receivers of one of our signals, elsewhere: they may take their time."""
    foreign: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    """Around the project's own code, which may take its time."""


class Timekeeper:
    """The scheduler of one node.

    `periodic`: the entries of the settings; None: no periodic tasks are enqueued here.
    """

    def __init__(
        self,
        backend: DatabaseBackend,
        node: NodeInfo,
        queues: QueueSelection,
        hooks: Hooks,
        *,
        capacity: int,
        delay: float | None = None,
        periodic: Iterable[BoundPeriodic] | None = (),
        retention: bool = True,
        lease: Lease | None = None,
    ) -> None:
        self.backend = backend
        self.engine = backend.engine
        self.node = node
        self.lease = lease or Lease(node)
        self.served = queues
        self.queues = queues  # without what is paused
        self.hooks = hooks
        self.capacity = capacity
        self.watcher = self.engine.watcher()
        told = self.watcher.tells and backend.parsed.notify
        self.delay = delay or (DELAY_WITH_NOTIFICATIONS if told else DELAY_WITHOUT)
        self.planner: Planner | None = None
        if periodic is not None:
            self.planner = Planner(backend, node, periodic, hooks.foreign, hooks.work)
            self.delay = min(self.delay, DELAY_WITH_NOTIFICATIONS if told else EDIT_LOOK)
        self.retention = retention
        self.draining = False
        self.ledger = Ledger(self.engine)
        self._strays: dict[str, float] = {}  # since when we have seen them, monotonic
        self._changed_at = self._judges_from = float("-inf")
        self._resumed_at = 0.0
        self._well = False
        self._pauses_seen: int | None = None
        self._renew_at = self._look_at = self._promote_at = self._periodic_at = 0.0
        self._orders_at = 0.0

    # The loop's two questions

    def tick(self) -> float:
        """Does what is due; returns the seconds until the next thing is. Raises DatabaseError."""
        self._well = False
        if time.monotonic() >= self._renew_at:
            self.heartbeat()
        if time.monotonic() >= self.ledger.write_at:
            self.ledger.write()
        if self.draining:
            if time.monotonic() >= self._orders_at:
                self.heed(self.engine.glance())
            wake = min(self._renew_at, self._orders_at, self.ledger.write_at)
            return max(0.0, wake - time.monotonic())
        if self.planner and time.monotonic() >= self._periodic_at:
            self.planner.tick()
            self._look_at = 0.0  # it also tells when the next is due
        if self.watcher.changed():
            self._changed_at = time.monotonic()
            self.look()
        elif time.monotonic() >= self._look_at:
            self.look()
        elif time.monotonic() >= self._orders_at:
            self.heed(self.engine.glance())
        if time.monotonic() >= self._promote_at:
            self.promote()
        self._well = True
        return self.sleep_time()

    def fileno(self) -> int | None:
        """A descriptor that says when to tick early; none if the last tick did not read it."""
        return self.watcher.fileno() if self._well else None

    def sleep_time(self) -> float:
        wake = min(self._renew_at, self._look_at, self._promote_at, self._orders_at)
        wake = min(wake, self.ledger.write_at)
        if self.planner:
            wake = min(wake, self._periodic_at)
        if self.watcher.interval is not None:
            wake = min(wake, time.monotonic() + self.watcher.interval)
        return max(0.0, min(wake - time.monotonic(), LONGEST_SLEEP))

    # The node

    def heartbeat(self) -> None:
        """Renews the lease, reports the workers, and looks after what others left behind."""
        self.lease.renew(self.engine, "draining" if self.draining else "running")
        if self.lease.resumed_at != self._resumed_at:
            self._resumed_at = self.lease.resumed_at
            self.trust_others()
        self._renew_at = time.monotonic() + self.backend.parsed.heartbeat
        workers = self.hooks.workers()
        seen = self.engine.report(self.node.id, workers)
        self.rescue_dead_nodes(seen.dead_nodes)
        self.release_strays({str(worker["id"]) for worker in workers}, seen.claimants)
        if self.cleans_up and not self.draining and seen.expired_exist:
            self.hooks.cleanup()

    @property
    def cleans_up(self) -> bool:
        """Whether retention runs here all the time; not if the project has its own hour for it."""
        return self.retention and not self.backend.parsed.own_cleanup_schedule

    def release_strays(self, living: set[str], claimants: Set[str]) -> None:
        """Gives back what a worker of ours claimed whose death was dealt with before.

        The server may commit a claim after the worker that asked for it was killed and rescued.
        Such a row never ran. But a worker may also be younger than what we know: that it is dead,
        only a list of the living says that was made after its claim was seen.
        """
        told_at = self.hooks.told_at()
        strays = claimants - living if living else set()
        now = time.monotonic()
        self._strays = {worker: self._strays.get(worker, now) for worker in strays}
        for worker in [worker for worker in strays if self._strays[worker] < told_at]:
            death = Death("its claim came after its death", running=frozenset())
            if rescued := self.engine.rescue(self.node.id, worker, death):
                self.note_rescue(rescued, worker, death.reason)
                logger.warning(
                    "gave back %d tasks of dead worker %s", len(rescued.released), worker
                )

    def note_rescue(self, rescued: Rescued, whose: str, reason: str) -> None:
        """Counts it and tells of it."""
        self.ledger.add(rescued_counts(rescued))
        if is_wanted("task_rescued"):
            for details in rescued_details(rescued, whose, reason):
                self.hooks.announce("task_rescued", details)

    def trust_others(self) -> None:
        """We could not renew in time, so others cannot have either: they get time to do it.

        Which of our processes was the first to renew again does not matter, nor does it that we
        have only just started: an outage is everybody's.
        """
        self._judges_from = time.monotonic() + max(self.node.lease, OUTAGE_ECHO)

    def rescue_dead_nodes(self, dead: Iterable[tuple[str, str]]) -> None:
        if self.lease.is_doubtful:  # the database has let us wait for its answers
            self.trust_others()
        if time.monotonic() < self._judges_from:
            return
        for node_id, name in dead:
            if node_id == self.node.id:
                continue
            reason = (
                f"node {name!r} did not renew its lease in time: its host, its network or its "
                "supervisor is gone"
            )
            rescued = self.engine.rescue(node_id, None, Death(reason))
            self.engine.end_lease(node_id)
            self.note_rescue(rescued, name, reason)
            if rescued:
                self.hooks.work(len(rescued.retried) + len(rescued.released))
                logger.warning(
                    "rescued %d tasks of %s, failed %d: %s",
                    len(rescued.retried) + len(rescued.released),
                    name,
                    len(rescued.failed),
                    reason,
                )

    # Work

    def look(self) -> None:
        """Asks whether anything is ready, and when the next row or periodic entry is due."""
        self._look_at = self.next_look(time.monotonic())
        seen = self.engine.glance()
        self.heed(seen)
        if seen.due_in is not None:
            self._promote_at = min(self._promote_at, time.monotonic() + max(0.0, seen.due_in))
        if self.planner:
            self._periodic_at = self.planner.wake_at(seen)
        if seen.ready and (count := self.engine.ready_count(self.queues, self.capacity)):
            self.hooks.work(count)

    def heed(self, seen: Glance) -> None:
        """Tells the node's workers what people want: pauses, and the end of running tasks."""
        self._orders_at = time.monotonic() + ORDERS_LOOK
        if seen.pauses != self._pauses_seen:
            self.heed_pauses(seen.pauses)
        if seen.cancels:
            self.engine.settle_cancels()
            for request in self.engine.cancel_requests():
                if request.node == self.node.id:
                    self.hooks.cancel(request)

    def heed_pauses(self, revision: int) -> None:
        pauses = self.engine.pauses()
        self.queues = self.served.without(row.name for row in pauses if row.kind == "queue")
        self.lease.pauses = revision
        if pauses or self._pauses_seen:
            logger.info(
                "paused now: %s", ", ".join(f"{row.kind} {row.name}" for row in pauses) or "nothing"
            )
        if unparked := self.engine.unpark():
            self.hooks.work(unparked)
        self._pauses_seen = revision

    def next_look(self, now: float) -> float:
        """After a change we look again soon: producers may have kept back their notifications."""
        echoes = (self._changed_at + wait for wait in ECHOES)
        return min([now + self.delay, *(at for at in echoes if at > now)])

    def promote(self) -> None:
        """Makes deferred rows claimable whose time has come, batch by batch."""
        if promoted := self.engine.promote_due(PROMOTE_BATCH):
            self.hooks.work(promoted)
        due_in = self.engine.glance().due_in
        wait = LONGEST_SLEEP if due_in is None else max(0.0, due_in)
        self._promote_at = time.monotonic() + min(wait, LONGEST_SLEEP)


def keep_patient(
    keeper: Timekeeper, lost: Callable[[str], None], found: Callable[[], None]
) -> Callable[[], float]:
    """`keeper.tick` that survives outages: returns the seconds until the next try."""
    from django.db import Error as DatabaseError

    delay = 0.0

    def tick() -> float:
        nonlocal delay
        # A first failure may be that of a connection which an earlier outage broke: try a new one.
        for once_more in (False,) if delay else (True, False):
            try:
                if delay and keeper.engine.missing_tables():  # a migration is under way
                    delay = min(delay * 2, 5.0)
                    return delay
                seconds = keeper.tick()
                break
            except DatabaseError as error:
                why = keeper.engine.unavailable(error)
                if why is None:
                    raise
                with contextlib.suppress(Exception):
                    keeper.engine.close()
                if once_more:
                    continue
                if keeper.lease.is_doubtful:
                    keeper.trust_others()
                if not delay:
                    lost(why)
                delay = min(max(0.1, delay * 2), 5.0)
                return delay
        if delay:
            delay = 0.0
            found()
        return seconds

    return tick
