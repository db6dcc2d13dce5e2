"""The contract of an engine: all that the queue asks of a database.

An engine holds no connection: each call uses Django's connection of the calling thread for
`alias`. Every write about a claimed row is fenced by the claim (worker and attempt): of two that
believe they hold a row, one finds no row to write. Times are the database's clock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple, Protocol

from ..policy import Policy, policy_from_text
from ..queues import QueueSelection

NOTIFY_INTERVAL = 0.025  # seconds between two notifications of one producer about one queue


class NewTask(NamedTuple):
    """A row to be inserted; JSON columns as text. Claimable at once unless `due_at` is set."""

    id: str
    task_path: str
    args: str
    kwargs: str
    queue: str
    priority: int
    run_after: datetime.datetime | None
    due_at: datetime.datetime | None
    enqueued_at: datetime.datetime
    policy: str
    periodic: str = ""


class Claimed(NamedTuple):
    """A row that a worker has claimed, as the database returned it; JSON columns as text."""

    id: str
    attempt: int
    task_path: str
    args: str
    kwargs: str
    queue: str
    priority: int
    run_after: Any
    enqueued_at: Any
    started_at: Any
    last_attempted_at: Any
    worker_ids: str
    errors: str
    failures: int
    policy_text: str
    periodic: str

    @property
    def policy(self) -> Policy:
        return policy_from_text(self.policy_text)


@dataclasses.dataclass(frozen=True, slots=True)
class Claimant:
    """Who claims: the node and the worker. A worker's id is never used again after its death."""

    node: str
    worker: str


class Outcome(NamedTuple):
    """What became of one attempt. `retry_in` (seconds) is set if and only if it is READY again."""

    id: str
    attempt: int
    worker: str
    status: str
    return_value: str | None
    errors: str
    worker_ids: str
    failures: int
    retry_in: float | None
    retain: float | None  # seconds after the finish; None keeps the row

    @property
    def size(self) -> int:
        """Characters of what the task returned and raised."""
        return len(self.return_value or "") + len(self.errors)


@dataclasses.dataclass(frozen=True)
class Death:
    """How a claimant ended, for the errors of the rows that it ran.

    `running`: the id of the row whose task was running, or None if that is not known; then every
    row of the claimant counts as running. `counted` is False where our own shutdown cut it short.
    """

    reason: str
    running: frozenset[str] | None = None
    counted: bool = True


@dataclasses.dataclass(frozen=True)
class Rescued:
    """Ids of the rows of a dead claimant.

    Given back unpunished, to run again, failed, or failed because they were cancelled before.
    """

    released: tuple[str, ...] = ()
    retried: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    cancelled: tuple[str, ...] = ()
    # (id, queue, task path) of those that were retried, failed or cancelled
    tasks: tuple[tuple[str, str, str], ...] = dataclasses.field(default=(), compare=False)

    def __bool__(self) -> bool:
        return bool(self.released or self.retried or self.failed or self.cancelled)

    def __add__(self, other: Rescued) -> Rescued:
        return Rescued(
            self.released + other.released,
            self.retried + other.retried,
            self.failed + other.failed,
            self.cancelled + other.cancelled,
            self.tasks + other.tasks,
        )


@dataclasses.dataclass(frozen=True)
class NodeInfo:
    """What a node tells of itself. `lease` in seconds."""

    id: str
    name: str
    host: str
    pid: int
    kind: str
    lease: float


class PeriodicRow(NamedTuple):
    """A row of models.PeriodicTask: times aware and in UTC, durations in seconds, ids as hex."""

    id: int
    name: str
    task_path: str
    origin: str
    spec: str
    schedule: str
    timezone: str
    catch_up: str
    catch_up_window: float
    overlap: str
    args: str | None
    kwargs: str | None
    retain: float | None
    queue: str | None
    priority: int | None
    fingerprint: str
    paused: bool
    retired: bool
    since: datetime.datetime
    next_due: datetime.datetime | None
    last_due: datetime.datetime | None
    last_task: str | None
    last_node: str
    edition: int
    deployed_at: datetime.datetime


class NewOccurrence(NamedTuple):
    """One due time and its task; with `error` the task is inserted as FAILED.

    With `skipped` (why) no task is inserted; `blocked_by` is the id of the task that still runs.
    """

    name: str
    due_at: datetime.datetime
    row: NewTask
    error: dict[str, str] | None = None
    skipped: str = ""
    blocked_by: str = ""

    @property
    def task_id(self) -> str:
        return self.blocked_by or self.row.id


class Settled(NamedTuple):
    """What a tick did with the entry `id`: None leaves `last_due` and `last_task` as they were."""

    id: int
    next_due: datetime.datetime | None
    last_due: datetime.datetime | None
    last_task: str | None


class StillDue(NamedTuple):
    """What a tick compares with what it has prepared for."""

    edition: int
    next_due: datetime.datetime
    last_task: str | None


class Deployments(NamedTuple):
    """The sets of periodic entries that nodes' settings have or had.

    `known`: fingerprint and first seen; `holds`: the one whose entries are stored; `nodes` and
    `names`: by the id of each living node, its fingerprint and its name.
    """

    known: dict[str, datetime.datetime]
    holds: str | None
    nodes: dict[str, str]
    names: dict[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class PauseRow:
    """A row of models.Pause; the time aware and in UTC."""

    id: int
    kind: str
    name: str
    paused_at: datetime.datetime
    by: str
    reason: str


class QueueState(NamedTuple):
    """A queue with ready rows, and since when one of the next waits (aware, UTC)."""

    name: str
    ready: int
    since: datetime.datetime


class LeaseState(NamedTuple):
    """A registered node; `age` and `left` in seconds: since its last renewal, until its end."""

    id: str
    name: str
    state: str
    age: float
    left: float


class CancelRequest(NamedTuple):
    """A running task that is to end: which attempt of it, who runs it, and the grace in seconds."""

    id: str
    grace: float
    node: str
    worker: str
    attempt: int


class Glance(NamedTuple):
    """`due_in`: seconds until the next deferred row is due (negative: overdue), or None.

    `pauses`: 0, or a number that is another one whenever what is paused has changed; `cancels`: how
    many running tasks are to end; `periodic_in`: as `due_in`, of the next periodic entry. `now`:
    the database's clock.
    """

    ready: bool
    due_in: float | None
    pauses: int
    cancels: int
    periodic_in: float | None
    now: datetime.datetime


class Survey(NamedTuple):
    """What a node finds when it looks around, once per heartbeat."""

    dead_nodes: Sequence[tuple[str, str]]
    claimants: Set[str]
    expired_exist: bool


@dataclasses.dataclass(frozen=True)
class Counts:
    """Rows of one backend that are not finished. `paused`: those whose task is paused."""

    ready: int
    deferred: int
    running: int
    paused: int = 0


class Watcher(Protocol):
    """Tells cheaply that the queue may have changed."""

    tells: bool
    """Whether it does; without it the queue must be asked each time."""

    @property
    def interval(self) -> float | None:
        """Seconds until `changed` is to be called again, whatever the descriptor says."""

    def fileno(self) -> int | None:
        """A descriptor that becomes readable on a change, if there is one."""

    def changed(self) -> bool:
        """Whether something was committed since the last call. Raises DatabaseError."""


class Engine(Protocol):
    """What PostgreSQL, MySQL/MariaDB and SQLite each do in their own way."""

    alias: str
    backend: str
    watches_statements: bool
    """Whether only the statements tell that a transaction is open; see dbtasks.hygiene."""
    worth_claiming: int
    """Rows at once; beyond, a claim's price per row hardly falls any more."""
    prune_pause: float
    """How long retention leaves others after each batch, as a multiple of what that took."""

    # Producing
    def insert(self, rows: Sequence[NewTask], notify: bool = True) -> None:
        """Inserts the rows in the caller's transaction and tells the schedulers."""

    # Consuming
    def claim(self, who: Claimant, queues: QueueSelection, limit: int = 1) -> list[Claimed]:
        """Up to `limit` ready rows by preference, priority, age; RUNNING and `who`'s from now."""

    def finish(self, outcomes: Sequence[Outcome]) -> set[str]:
        """Writes outcomes; returns the ids that were still held by their claim."""

    def stored(self, outcomes: Sequence[Outcome]) -> set[str]:
        """The ids of outcomes that have been written: for whom the answer of `finish` was lost."""

    def finish_and_claim(
        self, outcomes: Sequence[Outcome], who: Claimant, queues: QueueSelection, limit: int = 1
    ) -> tuple[set[str], list[Claimed]]:
        """`finish` and then `claim`, in one statement or one short transaction."""

    def release(self, who: Claimant, rows: Iterable[tuple[str, int]] | None = None) -> int:
        """Gives rows (id, attempt) back as they were, uncounted; None: all that `who` holds."""

    # Upkeep
    def rescue(self, node: str, worker: str | None, death: Death) -> Rescued:
        """Gives back or fails the rows of a dead worker, or of all workers of a dead node."""

    def promote_due(self, limit: int = 1000) -> int:
        """Makes deferred rows claimable whose time has come; returns how many."""

    def glance(self) -> Glance:
        """One cheap query: is anything ready, and when is the next row or periodic entry due."""

    def ready_count(self, queues: QueueSelection, limit: int) -> int:
        """How many rows are claimable in `queues`, counted up to `limit`."""

    def counts(self) -> Counts:
        """Counts the unfinished rows; reads only the indexes of such rows."""

    def expired_exist(self) -> bool:
        """Whether any row is past its retention."""

    def prune(self, limit: int = 1000) -> int:
        """Deletes up to `limit` rows past their retention, in one short transaction."""

    # What people do (dbtasks.operations). Ids as hex; each returns why not, in words, by id.
    def retry(self, ids: Iterable[str]) -> dict[str, str]:
        """Makes finished rows ready again; what they have lived through stays with them."""

    def run_now(self, ids: Iterable[str]) -> dict[str, str]:
        """Makes deferred rows ready before their time."""

    def cancel(self, ids: Iterable[str], grace: float) -> tuple[dict[str, str], set[str]]:
        """Fails rows that no worker has; asks for the end of running ones, the second result."""

    def delete(self, ids: Iterable[str]) -> dict[str, str]:
        """Deletes rows that do not run."""

    def set_priority(self, ids: Iterable[str], priority: int) -> dict[str, str]:
        """Of rows that were not started."""

    def set_queue(self, ids: Iterable[str], queue: str) -> dict[str, str]:
        """Of rows that were not started."""

    def cancel_requests(self) -> list[CancelRequest]:
        """The running rows that are to end."""

    def settle_cancels(self) -> int:
        """Forgets requests whose rows are finished, and cancels rows that are READY again."""

    def pauses(self) -> list[PauseRow]:
        """Which queues and tasks are paused."""

    def pause(self, kind: str, name: str, by: str, reason: str) -> bool:
        """Pauses a "queue" or a "task"; False if it is already."""

    def resume(self, kind: str, name: str) -> bool:
        """Ends a pause; False if there is none."""

    def park(self, who: Claimant, rows: Iterable[tuple[str, int, str]]) -> int:
        """Puts rows (id, attempt, task path) of paused tasks aside, uncounted.

        Returns how many; a row whose pause is over meanwhile stays with its claimant.
        """

    def unpark(self) -> int:
        """Makes rows ready whose task is not paused any more."""

    def prune_window(self, after: str) -> str | None:
        """The last id of the next few thousand rows after the id `after`; None if none follow."""

    def prune_finished(
        self,
        after: str,
        last: str,
        before: datetime.datetime | None,
        statuses: Sequence[str],
        queue: str | None,
        dry_run: bool,
        expired: bool,
    ) -> int:
        """Deletes (or counts) finished rows with ids over `after` up to `last` as they say."""

    def ready_queues(self) -> list[str]:
        """The names of the queues that have ready rows, by a probe for each of them."""

    def queue_states(self) -> list[QueueState]:
        """The queues that have ready rows."""

    def next_due(self) -> datetime.datetime | None:
        """When the next deferred row is due, or should have been."""

    def orphans(self) -> int:
        """How many rows run under the name of a node without a valid lease."""

    def oldest_cancel(self) -> datetime.datetime | None:
        """Since when the oldest request to end a running task waits."""

    # Nodes
    def renew_lease(self, node: NodeInfo, state: str = "running") -> None:
        """Registers the node or renews its lease."""

    def node_started(self, node_id: str) -> datetime.datetime | None:
        """When the node registered, aware and in UTC; None if it is not known."""

    def end_lease(self, node_id: str) -> None:
        """Removes the node; call it when it holds no claims any more."""

    def dead_nodes(self) -> list[tuple[str, str]]:
        """(id, name) of nodes that hold claims, or are registered, without a valid lease."""

    def claimants(self, node_id: str) -> set[str]:
        """The workers that hold claims of the node."""

    def save_workers(self, node_id: str, workers: Sequence[dict[str, Any]]) -> None:
        """Replaces what is known of the node's workers (fields of models.Worker)."""

    def report(self, node_id: str, workers: Sequence[dict[str, Any]]) -> Survey:
        """`save_workers`, then `dead_nodes`, the node's `claimants` and `expired_exist`."""

    # Statistics
    def leases(self) -> list[LeaseState]:
        """The nodes of this backend; one query."""

    def add_counts(self, counts: Mapping[tuple[str, str], Sequence[int]]) -> None:
        """Adds to the current minute and to the totals: a number per column of tally.COLUMNS.

        By queue and task path.
        """

    def counted_places(self, limit: int) -> set[tuple[str, str]]:
        """Up to `limit` of the queues and task paths that have totals."""

    def prune_counts(self, limit: int = 1000) -> int:
        """Deletes up to `limit` rows of minutes that are over for a day; returns how many."""

    # Periodic
    def locked(self, name: str) -> contextlib.AbstractContextManager[bool]:
        """A transaction that holds the advisory lock `name`; gives False where another has it."""

    def periodic_entries(self) -> list[PeriodicRow]:
        """Every periodic entry of this backend, by name."""

    def periodic_entry(self, name: str) -> PeriodicRow | None:
        """The entry of that name."""

    def periodic_due(self) -> tuple[datetime.datetime | None, list[PeriodicRow]]:
        """The entries that are due, the oldest first, and the clock; None if there are none."""

    def periodic_soon(self, seconds: float) -> list[PeriodicRow]:
        """The entries that will be due within so many seconds, the soonest first."""

    def periodic_still_due(self, now: datetime.datetime) -> dict[int, StillDue]:
        """What is due at `now`, by the entry's id; locked. Inside `locked`."""

    def periodic_ahead_in(self) -> float | None:
        """Seconds until the next due time that is not past already."""

    def task_statuses(self, ids: Iterable[str]) -> dict[str, str]:
        """The status of each task that exists, by id."""

    def enqueue_occurrences(
        self, occurrences: Sequence[NewOccurrence], node_name: str
    ) -> list[NewOccurrence]:
        """Inserts occurrences and their tasks; returns those that are new. Inside `locked`."""

    def move_entries(self, settled: Sequence[Settled], node_name: str) -> None:
        """Moves entries to their next due times. Inside `locked`."""

    def note_run(self, name: str, task_id: str, node_name: str) -> None:
        """The task is the last run of `name`."""

    def changing_entry(self, name: str) -> contextlib.AbstractContextManager[PeriodicRow | None]:
        """A transaction in which the entry (None: there is none) is locked; tells schedulers."""

    def save_entry(self, row: PeriodicRow) -> None:
        """Creates the entry or changes what it says; what it did (`last_…`) is left as it was."""

    def forget_entry(self, name: str) -> None:
        """Deletes the entry; its occurrences stay."""

    def deployments(self, fingerprint: str) -> Deployments:
        """The deployment that holds, that with `fingerprint`, and those of living nodes."""

    def hold_deployment(self, fingerprint: str) -> None:
        """From now on its entries are the stored ones. Inside `locked`."""

    def see_deployment(self, fingerprint: str, node_id: str) -> None:
        """Notes which deployment the node runs."""

    def prune_occurrences(self, days: int) -> int:
        """Deletes occurrences that were due more than `days` ago."""

    # The database itself
    def now(self) -> datetime.datetime:
        """The database's clock, aware and in UTC."""

    def moment(self, value: Any) -> datetime.datetime | None:
        """A Claimed's time as the project sees datetimes."""

    def moments(self, *values: Any) -> list[datetime.datetime | None]:
        """The same of several."""

    def watcher(self) -> Watcher:
        """For the scheduler's connection."""

    def prepare_connections(self, patience: float) -> None:
        """Limits how long this process waits for a server that is gone, to `patience` seconds.

        For connections that are opened from now on, in a process that is ours alone.
        """

    def missing_tables(self) -> bool:
        """Whether a migration is missing. Raises DatabaseError where it cannot be asked."""

    def unavailable(self, error: BaseException) -> str | None:
        """In one line why the database cannot be used for now; None for any other error."""

    def close(self) -> None:
        """Closes this thread's connection; the next call opens a new one."""


@contextlib.contextmanager
def closing_connection(engine: Engine) -> Iterator[None]:
    """Closes the thread's connection at the end, whatever happened."""
    try:
        yield
    finally:
        engine.close()
