"""What a node's scheduler does: lease, due rows, periodic tasks, dead nodes, looking for work.

One object per node, driven by `tick()` from a process (the supervisor's scheduler) or a thread
(Runner). It sleeps until the next thing is due; it never polls on behalf of single workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Set
from typing import TYPE_CHECKING, Any

from django.tasks import DEFAULT_TASK_QUEUE_NAME
from django.tasks.base import Task as DjangoTask

from .engines import CancelRequest, Death, NewTask, NodeInfo, PeriodicState, Rescued
from .engines.base import NOTIFY_INTERVAL, Glance
from .execution import described
from .ids import dashed
from .lease import Lease
from .options import CLEANUP_PATH
from .periodic import BoundPeriodic
from .queues import QueueSelection
from .results import missing_task, resolve_task, unchecked
from .schedule import ScheduleError
from .signals import is_wanted, rescued_details
from .tally import Ledger, rescued_counts

if TYPE_CHECKING:
    from .backend import DatabaseBackend

logger = logging.getLogger("dbtasks")

PERIODIC_LOCK = "periodic"
LOCK_RETRY = 0.25  # seconds until we look again whether another node has done the tick
# Seconds after a notification at which we look again. It stands for all that its producer inserts
# in the next NOTIFY_INTERVAL, and a loaded database takes its time to commit that.
ECHOES = (1.5 * NOTIFY_INTERVAL, 10 * NOTIFY_INTERVAL)
PROMOTE_BATCH = 1000
OUTAGE_ECHO = 10.0  # seconds after an outage in which every living node has renewed its lease
LONGEST_SLEEP = 60.0  # seconds
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
    """The scheduler of one node."""

    def __init__(
        self,
        backend: DatabaseBackend,
        node: NodeInfo,
        queues: QueueSelection,
        hooks: Hooks,
        *,
        capacity: int,
        delay: float | None = None,
        periodic: Iterable[BoundPeriodic] = (),
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
        self.periodic = {entry.name: entry for entry in periodic}
        self.retention = retention
        self.draining = False
        self.ledger = Ledger(self.engine)
        self._strays: dict[str, float] = {}  # since when we have seen them, monotonic
        self._deployed_at: datetime.datetime | None = None
        self._next: dict[str, datetime.datetime] = {}
        self._differing: set[str] = set()
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
        if self.watcher.changed():
            self._changed_at = time.monotonic()
            self.look()
        elif time.monotonic() >= self._look_at:
            self.look()
        elif time.monotonic() >= self._orders_at:
            self.heed(self.engine.glance())
        if time.monotonic() >= self._promote_at:
            self.promote()
        if self.periodic and time.monotonic() >= self._periodic_at:
            self.enqueue_due_occurrences()
        self._well = True
        return self.sleep_time()

    def fileno(self) -> int | None:
        """A descriptor that says when to tick early; none if the last tick did not read it."""
        return self.watcher.fileno() if self._well else None

    def sleep_time(self) -> float:
        wake = min(self._renew_at, self._look_at, self._promote_at, self._orders_at)
        wake = min(wake, self.ledger.write_at)
        if self.periodic:
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
        self.engine.save_workers(self.node.id, workers)
        seen = self.engine.survey(self.node.id)
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
        """Asks whether anything is ready, and when the next deferred row is due."""
        self._look_at = self.next_look(time.monotonic())
        seen = self.engine.glance()
        self.heed(seen)
        if seen.due_in is not None:
            self._promote_at = min(self._promote_at, time.monotonic() + max(0.0, seen.due_in))
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

    # Periodic tasks

    def enqueue_due_occurrences(self) -> None:
        """Enqueues what is due, under the advisory lock, and finds the next due time.

        Which occurrences are due, the database's clock and the entry's last due time decide; that
        another node was faster shows in both. User code (arguments that are callables) runs before
        the lock is taken.
        """
        states, now = self.read_states()
        wanted = [entry for entry in self.periodic.values() if self.may_be_due(entry, now)]
        changed = [entry for entry in wanted if self.is_new(entry, states.get(entry.name))]
        prepared = {
            (entry.name, due): self.prepare(entry)
            for entry, due in self.all_due(wanted, states, now)
        }
        enqueued = 0
        if changed or prepared:
            with self.engine.locked(PERIODIC_LOCK) as got:
                if not got:
                    self._periodic_at = time.monotonic() + LOCK_RETRY
                    return
                states, _ = self.read_states()
                for entry in changed:
                    self.begin(entry, states.get(entry.name))
                for entry, due in self.all_due(wanted, states, now):
                    if (entry.name, due) in prepared:
                        row, error = prepared[entry.name, due]
                        enqueued += self.enqueue_occurrence(entry, due, row, error)
        if enqueued:
            self.hooks.work(enqueued)
        for entry in wanted:
            self._next[entry.name] = next_look(entry, now)
        wait = (min(self._next.values()) - now).total_seconds()
        self._periodic_at = time.monotonic() + max(0.0, min(wait, LONGEST_SLEEP))

    def read_states(self) -> tuple[dict[str, PeriodicState], datetime.datetime]:
        return self.engine.periodic_states(), self.engine.now()

    def may_be_due(self, entry: BoundPeriodic, now: datetime.datetime) -> bool:
        return self._next.get(entry.name, now) <= now

    def is_new(self, entry: BoundPeriodic, state: PeriodicState | None) -> bool:
        """Whether the entry's schedule is not the stored one and ours is to be stored."""
        if state is None:
            return True
        if state.spec == entry.spec:
            self._differing.discard(entry.name)
            return False
        if state.deployed_at <= self.deployed_at:
            return True
        if entry.name not in self._differing:
            self._differing.add(entry.name)
            logger.warning(
                "periodic task %s is scheduled as %r here but as %r by a node that was started "
                "later; that one's schedule holds",
                entry.name,
                entry.spec,
                state.spec,
            )
        return False

    def begin(self, entry: BoundPeriodic, state: PeriodicState | None) -> None:
        """From now on the entry has our schedule; it runs for no time before."""
        if self.is_new(entry, state):
            self.engine.begin_periodic(entry.name, entry.task_path, entry.spec, self.deployed_at)

    def all_due(
        self,
        entries: Iterable[BoundPeriodic],
        states: Mapping[str, PeriodicState],
        now: datetime.datetime,
    ) -> list[tuple[BoundPeriodic, datetime.datetime]]:
        return [
            (entry, due)
            for entry in entries
            for due in self.due_times(entry, states.get(entry.name), now)
        ]

    def due_times(
        self, entry: BoundPeriodic, state: PeriodicState | None, now: datetime.datetime
    ) -> list[datetime.datetime]:
        if state is None or state.spec != entry.spec:
            return []
        return entry.due(state.settled_until, now)

    def enqueue_occurrence(
        self,
        entry: BoundPeriodic,
        due: datetime.datetime,
        row: NewTask,
        error: dict[str, str] | None,
    ) -> bool:
        """Enqueues one occurrence unless another node has; says whether a worker is wanted."""
        if not self.engine.enqueue_occurrence(entry.name, due, row, self.node.name, error):
            return False
        logger.info(
            "periodic task %s is enqueued, due %s",
            entry.name,
            due.isoformat(),
            extra={"task_id": dashed(row.id), "task_path": entry.task_path, "queue": row.queue},
        )
        return error is None

    @property
    def deployed_at(self) -> datetime.datetime:
        """When this node started, in the database's clock."""
        if self._deployed_at is None:
            self._deployed_at = self.engine.node_started(self.node.id) or self.engine.now()
        return self._deployed_at

    def prepare(self, entry: BoundPeriodic) -> tuple[NewTask, dict[str, str] | None]:
        """A row of the entry. A task or arguments that cannot be had fail this run visibly."""
        task: DjangoTask | None = None
        try:
            with self.hooks.foreign():
                task = periodic_task(self.backend, entry)
                args, kwargs = entry.arguments()
            return self.new_row(entry, task, args, kwargs), None
        except (Exception, SystemExit) as error:
            logger.error("periodic task %s cannot run", entry.name, exc_info=error)
            task = task or stand_in(self.backend, entry)
            return self.new_row(entry, task, [], {}), described(error)

    def new_row(
        self, entry: BoundPeriodic, task: DjangoTask, args: list[Any], kwargs: Mapping[str, Any]
    ) -> NewTask:
        now = datetime.datetime.now(datetime.UTC)
        return self.backend.new_row(
            task, args, kwargs, now, periodic=entry.name, retain=entry.retain
        )


def next_look(entry: BoundPeriodic, now: datetime.datetime) -> datetime.datetime:
    """When the entry is due next; a schedule that has come to its end is seldom looked at."""
    try:
        return entry.next_after(now)
    except ScheduleError:
        return now + datetime.timedelta(days=1)


def stand_in(backend: DatabaseBackend, entry: BoundPeriodic) -> DjangoTask:
    """What a FAILED row names as its task where there is none that could be imported."""
    queue = entry.definition.queue or DEFAULT_TASK_QUEUE_NAME
    return missing_task(entry.task_path, entry.definition.priority or 0, queue, None, backend.alias)


def periodic_task(backend: DatabaseBackend, entry: BoundPeriodic) -> DjangoTask:
    """The task of an entry with its queue and priority. Raises ImportError or InvalidTask."""
    task = resolve_task(entry.task_path)
    queue, priority = entry.definition.queue, entry.definition.priority
    if entry.task_path == CLEANUP_PATH:
        # Ours, so it must fit every backend: without a default queue it goes to another one.
        if queue is None and backend.queues and task.queue_name not in backend.queues:
            queue = min(backend.queues)
        return unchecked(
            task,
            backend=backend.alias,
            queue_name=queue or task.queue_name,
            priority=priority or task.priority,
        )
    if queue is None and priority is None:
        return task
    return task.using(queue_name=queue, priority=priority)


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
