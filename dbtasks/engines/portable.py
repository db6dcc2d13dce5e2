"""What the three databases do alike: portable SQL, and the decisions that are taken in Python.

`{now}` is the database's UTC clock, `{in_seconds}` the same plus a parameter, `{lock}` locks the
selected rows and `{skip_locked}` also passes over those that another transaction has locked.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from django.db import Error as DatabaseError
from django.db import (
    IntegrityError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
    connections,
    transaction,
)
from django.db.backends.base.base import BaseDatabaseWrapper

from ..fields import dump_json, localized, utc_parameter, utc_value
from ..policy import policy_from_text
from ..queues import QueueSelection
from .base import (
    Claimant,
    Claimed,
    Counts,
    Death,
    Glance,
    NewTask,
    NodeInfo,
    Outcome,
    PeriodicState,
    Rescued,
    Watcher,
)

INSERT_BATCH = 500
RESCUE_BATCH = 500
LONGEST = 1000 * 365 * 86400.0  # seconds; no database has the date that timedelta.max leads to
WORKER_DIED = "dbtasks.exceptions.WorkerDied"

INSERT = """
INSERT INTO dbtasks_scheduledtask (
    id, task_path, args, kwargs, backend, queue, priority, run_after, enqueued_at, policy, periodic,
    ready_queue, due_at, status, worker_ids, errors, attempt, failures, crashes
) VALUES """
INSERT_ROW = f"({', '.join(['%s'] * 13)}, 'READY', '[]', '[]', 0, 0, 0)"

FINISH = """
UPDATE dbtasks_scheduledtask
SET status = %s, finished_at = {now}, return_value = %s, errors = %s, worker_ids = %s,
    failures = %s, delete_after = {in_seconds}, claim_node = NULL, claimed_by = NULL
WHERE id = %s AND claimed_by = %s AND attempt = %s"""

# As FINISH, for a row that runs again: at once, or deferred.
RETRY = """
UPDATE dbtasks_scheduledtask
SET status = 'READY', errors = %s, worker_ids = %s, failures = %s,
    ready_queue = CASE WHEN %s > 0 THEN NULL ELSE queue END,
    due_at = CASE WHEN %s > 0 THEN {in_seconds} END, claim_node = NULL, claimed_by = NULL
WHERE id = %s AND claimed_by = %s AND attempt = %s"""

# An attempt that is not counted leaves no trace: without earlier ones the row was never started.
RELEASE = """
UPDATE dbtasks_scheduledtask
SET status = 'READY', ready_queue = queue, claim_node = NULL, claimed_by = NULL,
    started_at = CASE WHEN worker_ids = '[]' THEN NULL ELSE started_at END,
    last_attempted_at = CASE WHEN worker_ids = '[]' THEN NULL ELSE last_attempted_at END
WHERE claim_node = %s AND claimed_by = %s"""

RESCUE_SELECT = """
SELECT id, claimed_by, worker_ids, errors, crashes, policy
FROM dbtasks_scheduledtask
WHERE claim_node = %s{worker} ORDER BY id LIMIT %s{lock}"""
RESCUE_RELEASE = RELEASE.replace("claim_node = %s AND claimed_by = %s", "id = %s")
RESCUE_RETRY = """
UPDATE dbtasks_scheduledtask
SET status = 'READY', ready_queue = queue, claim_node = NULL, claimed_by = NULL,
    errors = %s, worker_ids = %s, crashes = %s
WHERE id = %s"""
RESCUE_FAIL = """
UPDATE dbtasks_scheduledtask
SET status = 'FAILED', finished_at = {now}, claim_node = NULL, claimed_by = NULL,
    errors = %s, worker_ids = %s, crashes = %s, delete_after = {in_seconds}
WHERE id = %s"""

# The distinct queues with claimable rows by a loose index scan (a probe per queue, not per row),
# and of each the head: what it would give next.
READY_QUEUES = """
WITH RECURSIVE ready (name) AS (
    SELECT MIN(ready_queue) FROM dbtasks_scheduledtask
    WHERE backend = %s AND ready_queue IS NOT NULL
    UNION ALL
    SELECT (
        SELECT MIN(ready_queue) FROM dbtasks_scheduledtask
        WHERE backend = %s AND ready_queue > ready.name
    ) FROM ready WHERE ready.name IS NOT NULL
)"""
HEADS = (
    READY_QUEUES
    + """
SELECT name, preference,
    (SELECT MIN(precedence) FROM dbtasks_scheduledtask
     WHERE backend = %s AND ready_queue = served.name) AS head_precedence,
    (SELECT id FROM dbtasks_scheduledtask WHERE backend = %s AND ready_queue = served.name
     ORDER BY precedence, id LIMIT 1) AS head_id
FROM (SELECT name, {preference} AS preference FROM ready WHERE name IS NOT NULL) served
WHERE preference IS NOT NULL"""
)
# Ordered, although the order does not matter: with a bare LIMIT PostgreSQL reads the table from its
# beginning and hopes to meet such a row soon, past all of the history.
READY_COUNT = """
SELECT COUNT(*) FROM (
    SELECT precedence FROM dbtasks_scheduledtask WHERE backend = %s AND ready_queue = %s
    ORDER BY precedence LIMIT %s
) ready"""

PROMOTE_SELECT = """
SELECT id FROM dbtasks_scheduledtask
WHERE backend = %s AND due_at <= {now} ORDER BY due_at LIMIT %s{skip_locked}"""
PROMOTE = """
UPDATE dbtasks_scheduledtask SET ready_queue = queue, due_at = NULL WHERE id IN ({ids})"""
# Two index probes.
GLANCE = """
SELECT {now},
    (SELECT MIN(due_at) FROM dbtasks_scheduledtask WHERE backend = %s AND due_at IS NOT NULL),
    (SELECT MIN(ready_queue) FROM dbtasks_scheduledtask
     WHERE backend = %s AND ready_queue IS NOT NULL)"""

EXPIRED_EXIST = """
SELECT delete_after FROM dbtasks_scheduledtask
WHERE backend = %s AND delete_after <= {now} ORDER BY delete_after LIMIT 1"""
PRUNE_SELECT = """
SELECT id FROM dbtasks_scheduledtask
WHERE backend = %s AND delete_after <= {now} ORDER BY delete_after LIMIT %s{skip_locked}"""
PRUNE = "DELETE FROM dbtasks_scheduledtask WHERE id IN ({ids})"

COUNT_READY = """
SELECT COUNT(*) FROM dbtasks_scheduledtask WHERE backend = %s AND ready_queue IS NOT NULL"""
COUNT_DEFERRED = """
SELECT COUNT(*) FROM dbtasks_scheduledtask WHERE backend = %s AND due_at IS NOT NULL"""
COUNT_RUNNING = """
SELECT COUNT(*) FROM dbtasks_scheduledtask WHERE backend = %s AND claim_node IS NOT NULL"""

LEASE_RENEW = """
UPDATE dbtasks_node SET last_seen = {now}, expires_at = {in_seconds}, state = %s WHERE id = %s"""
LEASE_BEGIN = """
{insert_or_ignore} dbtasks_node
    (id, name, host, pid, kind, backend, state, started_at, last_seen, expires_at)
VALUES (%s, %s, %s, %s, %s, %s, %s, {now}, {now}, {in_seconds}){on_conflict}"""
NODE_STARTED = "SELECT started_at FROM dbtasks_node WHERE id = %s"
NODE_FORGET_WORKERS = "DELETE FROM dbtasks_worker WHERE node_id = %s"
NODE_FORGET = "DELETE FROM dbtasks_node WHERE id = %s"
# A node without a row that holds claims was taken for dead while it was only asleep.
DEAD_NODES = """
SELECT id, name FROM dbtasks_node WHERE expires_at <= {now}
UNION
SELECT DISTINCT claim_node, claim_node FROM dbtasks_scheduledtask
WHERE claim_node IS NOT NULL
  AND NOT EXISTS (SELECT 1 FROM dbtasks_node WHERE dbtasks_node.id = claim_node)"""
CLAIMANTS = """
SELECT DISTINCT claimed_by FROM dbtasks_scheduledtask WHERE claim_node = %s"""
WORKER_COLUMNS = (
    "id, kind, pid, state, task_id, task_path, task_seconds, done, failed, restarts, memory"
)
WORKER_INSERT = f"""
INSERT INTO dbtasks_worker ({WORKER_COLUMNS}, node_id, last_seen) VALUES {{rows}}"""
WORKER_ROW = f"({', '.join(['%s'] * 12)}, {{now}})"

PERIODIC_STATES = """
SELECT name, spec, since, last_due, deployed_at FROM dbtasks_periodictask WHERE backend = %s"""
PERIODIC_EDIT = """
UPDATE dbtasks_periodictask SET task_path = %s, spec = %s, since = {now}, deployed_at = %s
WHERE backend = %s AND name = %s"""
PERIODIC_BEGIN = """
{insert_or_ignore} dbtasks_periodictask (backend, name, task_path, spec, since, deployed_at)
VALUES (%s, %s, %s, %s, {now}, %s){on_conflict}"""
PERIODIC_FIRED = """
UPDATE dbtasks_periodictask SET last_due = %s
WHERE backend = %s AND name = %s AND (last_due IS NULL OR last_due < %s)"""
FAIL_NEW = """
UPDATE dbtasks_scheduledtask
SET status = 'FAILED', ready_queue = NULL, due_at = NULL, finished_at = {now}, errors = %s,
    delete_after = {in_seconds}
WHERE id = %s"""
OCCURRENCES_PRUNE = "DELETE FROM dbtasks_occurrence WHERE backend = %s AND due_at < %s"

OCCURRENCE = """
{insert_or_ignore} dbtasks_occurrence (backend, name, due_at, task_id, enqueued_at, enqueued_by)
VALUES (%s, %s, %s, %s, {now}, %s){on_conflict}"""


class Head(NamedTuple):
    """A queue that has claimable rows, in the order in which claims ask the queues."""

    preference: int
    precedence: int
    id: str
    queue: str


class PortableEngine:
    """Base of the engines. See base.Engine for what each method promises."""

    NOW: str
    IN_SECONDS: str  # with one parameter: seconds, or NULL for NULL
    LOCK = " FOR UPDATE"
    SKIP_LOCKED = " FOR UPDATE SKIP LOCKED"
    INSERT_OR_IGNORE = "INSERT INTO"
    ON_CONFLICT = " ON CONFLICT DO NOTHING"

    def __init__(self, alias: str, backend: str) -> None:
        self.alias = alias
        self.backend = backend
        self._statements: dict[tuple[str, ...], str] = {}

    # Helpers

    @property
    def connection(self) -> BaseDatabaseWrapper:
        return connections[self.alias]

    def sql(self, text: str, **more: str) -> str:
        """The statement as this database wants it; formatted once."""
        key = (text, *more.values())
        if key not in self._statements:
            if len(self._statements) > 1000:  # lists of ids differ in length
                self._statements.clear()
            self._statements[key] = text.format(
                now=self.NOW,
                in_seconds=self.IN_SECONDS,
                lock=self.LOCK,
                skip_locked=self.SKIP_LOCKED,
                insert_or_ignore=self.INSERT_OR_IGNORE,
                on_conflict=self.ON_CONFLICT,
                **more,
            )
        return self._statements[key]

    def rows(self, text: str, parameters: Sequence[Any] = (), **more: str) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(self.sql(text, **more), parameters)
            return list(cursor.fetchall())

    def run(self, text: str, parameters: Sequence[Any] = (), **more: str) -> int:
        with self.connection.cursor() as cursor:
            cursor.execute(self.sql(text, **more), parameters)
            return cursor.rowcount  # type: ignore[no-any-return]

    def transaction(self) -> contextlib.AbstractContextManager[None]:
        return transaction.atomic(using=self.alias)

    def time(self, value: datetime.datetime | None) -> Any:
        return None if value is None else utc_parameter(value, self.connection.vendor)

    def moment(self, value: Any) -> datetime.datetime | None:
        return None if value is None else localized(utc_value(value, self.connection))

    @staticmethod
    def hex(value: Any) -> str:
        """An id as the driver returned it (a UUID, or text with or without hyphens) as hex."""
        return str(value).replace("-", "")

    # Producing

    def insert(self, rows: Sequence[NewTask], notify: bool = True) -> None:
        if len(rows) <= INSERT_BATCH:
            if rows:
                self.insert_batch(rows, notify)
            return
        with self.transaction():
            for batch in itertools.batched(rows, INSERT_BATCH):
                self.insert_batch(batch, notify)

    def insert_batch(self, rows: Sequence[NewTask], notify: bool) -> None:
        self.run(INSERT + ", ".join([INSERT_ROW] * len(rows)), self.insert_parameters(rows))

    def insert_parameters(self, rows: Sequence[NewTask]) -> list[Any]:
        return [
            value
            for row in rows
            for value in (
                row.id,
                row.task_path,
                row.args,
                row.kwargs,
                self.backend,
                row.queue,
                row.priority,
                self.time(row.run_after),
                self.time(row.enqueued_at),
                row.policy,
                row.periodic,
                row.queue if row.due_at is None else None,
                self.time(row.due_at),
            )
        ]

    # Consuming

    def claim_queue(
        self, who: Claimant, queue: str, limit: int, lowest: int | None
    ) -> list[Claimed]:
        """Claims from one queue; `lowest`: only rows of at most that precedence value."""
        raise NotImplementedError  # pragma: no cover  each engine that uses claim_from has it

    def claim_from(self, who: Claimant, queues: QueueSelection, limit: int) -> list[Claimed]:
        """Claims queue after queue in the order of their heads; no queue overtakes another's."""
        if queues.only is not None:
            return in_claim_order(self.claim_queue(who, queues.only, limit, None), queues)
        return self.claim_from_heads(who, self.heads(queues), queues, limit)

    def claim_from_heads(
        self, who: Claimant, heads: Sequence[Head], queues: QueueSelection, limit: int
    ) -> list[Claimed]:
        claimed: list[Claimed] = []
        for head, following in itertools.zip_longest(heads, heads[1:]):
            same_group = following is not None and following.preference == head.preference
            lowest = following.precedence if same_group else None
            claimed += self.claim_queue(who, head.queue, limit - len(claimed), lowest)
            if len(claimed) >= limit:
                break
        return in_claim_order(claimed, queues)

    def heads(self, queues: QueueSelection) -> list[Head]:
        preference, parameters = queues.sql("name")
        rows = self.rows(HEADS, [self.backend] * 4 + parameters, preference=preference)
        # Between the probes a queue can run empty.
        return sorted(
            Head(int(wanted), int(precedence), self.hex(id), name)
            for name, wanted, precedence, id in rows
            if precedence is not None
        )

    def finish(self, outcomes: Sequence[Outcome]) -> set[str]:
        if len(outcomes) <= 1:
            return self.write_outcomes(outcomes)
        with self.transaction():
            return self.write_outcomes(outcomes)

    def write_outcomes(self, outcomes: Iterable[Outcome]) -> set[str]:
        return {outcome.id for outcome in by_id(outcomes) if self.write_outcome(outcome)}

    def write_outcome(self, outcome: Outcome) -> bool:
        fence = (outcome.id, outcome.worker, outcome.attempt)
        if outcome.retry_in is not None:
            values: tuple[Any, ...] = (outcome.errors, outcome.worker_ids, outcome.failures)
            return bool(self.run(RETRY, values + (bounded(outcome.retry_in),) * 3 + fence))
        values = (
            outcome.status,
            outcome.return_value,
            outcome.errors,
            outcome.worker_ids,
            outcome.failures,
            bounded(outcome.retain),
        )
        return bool(self.run(FINISH, values + fence))

    def release(self, who: Claimant, rows: Iterable[tuple[str, int]] | None = None) -> int:
        if rows is None:
            return self.run(RELEASE, (who.node, who.worker))
        with self.transaction():
            return sum(
                self.run(RELEASE + " AND id = %s AND attempt = %s", (who.node, who.worker, *row))
                for row in rows
            )

    # Upkeep

    def rescue(self, node: str, worker: str | None, death: Death) -> Rescued:
        total = Rescued()
        while batch := self.rescue_batch(node, worker, death):
            total += batch
        return total

    def rescue_batch(self, node: str, worker: str | None, death: Death) -> Rescued:
        with self.transaction():
            return self.rescue_rows(node, worker, death)

    def rescue_rows(self, node: str, worker: str | None, death: Death) -> Rescued:
        released, retried, failed = [], [], []
        parameters = (node, RESCUE_BATCH) if worker is None else (node, worker, RESCUE_BATCH)
        condition = "" if worker is None else " AND claimed_by = %s"
        for row in self.rows(RESCUE_SELECT, parameters, worker=condition):
            raw_id, claimed_by, worker_ids, errors, crashes, policy_text = row
            id = self.hex(raw_id)
            if not death.counted or (death.running is not None and id not in death.running):
                self.run(RESCUE_RELEASE, (raw_id,))
                released.append(id)
                continue
            policy = policy_from_text(policy_text)
            told = append_json(errors, worker_died(death.reason))
            done = append_json(worker_ids, claimed_by)
            if crashes + 1 > policy.max_crashes:
                retain = bounded(policy.retention(failed=True))
                self.run(RESCUE_FAIL, (told, done, crashes + 1, retain, raw_id))
                failed.append(id)
            else:
                self.run(RESCUE_RETRY, (told, done, crashes + 1, raw_id))
                retried.append(id)
        return Rescued(tuple(released), tuple(retried), tuple(failed))

    def promote_due(self, limit: int = 1000) -> int:
        return self.change_selected(PROMOTE_SELECT, PROMOTE, limit)

    def prune(self, limit: int = 1000) -> int:
        return self.change_selected(PRUNE_SELECT, PRUNE, limit)

    def change_selected(self, select: str, change: str, limit: int) -> int:
        """Locks what `select` finds and is not locked, and changes it, in one transaction."""
        with self.transaction():
            ids = [row[0] for row in self.rows(select, (self.backend, limit))]
            if ids:
                self.run(change, ids, ids=", ".join(["%s"] * len(ids)))
        return len(ids)

    def glance(self) -> Glance:
        ((now, due, ready),) = self.rows(GLANCE, (self.backend, self.backend))
        if due is None:
            return Glance(ready is not None, None)
        connection = self.connection
        wait = utc_value(due, connection) - utc_value(now, connection)
        return Glance(ready is not None, wait.total_seconds())

    def ready_count(self, queues: QueueSelection, limit: int) -> int:
        names = [queues.only] if queues.only else [head.queue for head in self.heads(queues)]
        total = 0
        for name in names:
            ((count,),) = self.rows(READY_COUNT, (self.backend, name, limit - total))
            total += int(count)
            if total >= limit:
                break
        return total

    def counts(self) -> Counts:
        return Counts(
            *(
                int(self.rows(query, (self.backend,))[0][0])
                for query in (COUNT_READY, COUNT_DEFERRED, COUNT_RUNNING)
            )
        )

    def expired_exist(self) -> bool:
        return bool(self.rows(EXPIRED_EXIST, (self.backend,)))

    # Nodes

    def renew_lease(self, node: NodeInfo, state: str = "running") -> None:
        if not self.run(LEASE_RENEW, (node.lease, state, node.id)):
            identity = (node.id, node.name, node.host, node.pid, node.kind, self.backend)
            self.run(LEASE_BEGIN, (*identity, state, node.lease))

    def node_started(self, node_id: str) -> datetime.datetime | None:
        for (started_at,) in self.rows(NODE_STARTED, (node_id,)):
            return utc_value(started_at, self.connection)
        return None

    def end_lease(self, node_id: str) -> None:
        with self.transaction():
            self.run(NODE_FORGET_WORKERS, (node_id,))
            self.run(NODE_FORGET, (node_id,))

    def dead_nodes(self) -> list[tuple[str, str]]:
        return [(str(id), str(name)) for id, name in self.rows(DEAD_NODES)]

    def claimants(self, node_id: str) -> set[str]:
        return {str(worker) for (worker,) in self.rows(CLAIMANTS, (node_id,))}

    def save_workers(self, node_id: str, workers: Sequence[dict[str, Any]]) -> None:
        columns = WORKER_COLUMNS.split(", ")
        values = [(*(worker[column] for column in columns), node_id) for worker in workers]
        with contextlib.suppress(IntegrityError), self.transaction():
            # The node's row may be gone: another node took us for dead; the next lease mends it.
            self.run(NODE_FORGET_WORKERS, (node_id,))
            if values:
                rows = ", ".join([WORKER_ROW] * len(values))
                self.run(WORKER_INSERT, list(itertools.chain(*values)), rows=self.sql(rows))

    # Periodic

    def periodic_states(self) -> dict[str, PeriodicState]:
        connection = self.connection
        return {
            name: PeriodicState(
                spec=spec,
                since=utc_value(since, connection),
                last_due=None if last_due is None else utc_value(last_due, connection),
                deployed_at=utc_value(deployed_at, connection),
            )
            for name, spec, since, last_due, deployed_at in self.rows(
                PERIODIC_STATES, (self.backend,)
            )
        }

    def begin_periodic(
        self, name: str, task_path: str, spec: str, deployed_at: datetime.datetime
    ) -> None:
        deployed = self.time(deployed_at)
        if not self.run(PERIODIC_EDIT, (task_path, spec, deployed, self.backend, name)):
            self.run(PERIODIC_BEGIN, (self.backend, name, task_path, spec, deployed))

    def enqueue_occurrence(
        self,
        name: str,
        due_at: datetime.datetime,
        row: NewTask,
        node_name: str,
        error: dict[str, str] | None = None,
    ) -> bool:
        due = self.time(due_at)
        inserted = self.run(OCCURRENCE, (self.backend, name, due, row.id, node_name))
        self.run(PERIODIC_FIRED, (due, self.backend, name, due))
        if not inserted:
            return False
        self.insert([row], notify=error is None)
        if error is not None:
            retain = bounded(policy_from_text(row.policy).retention(failed=True))
            self.run(FAIL_NEW, (dump_json([error]), retain, row.id))
        return True

    def prune_occurrences(self, days: int) -> int:
        before = self.now() - datetime.timedelta(days=days)
        return self.run(OCCURRENCES_PRUNE, (self.backend, self.time(before)))

    # The database itself

    def now(self) -> datetime.datetime:
        ((value,),) = self.rows("SELECT {now}")
        return utc_value(value, self.connection)

    def watcher(self) -> Watcher:
        return Untold()

    def prepare_connection(self) -> None:
        self.connection.ensure_connection()

    def missing_tables(self) -> bool:
        self.connection.ensure_connection()
        try:
            self.rows("SELECT 1 FROM dbtasks_node LIMIT 1")
            self.rows("SELECT precedence, ready_queue FROM dbtasks_scheduledtask LIMIT 1")
        except DatabaseError as error:
            if is_missing_table(error):
                return True
            raise
        return False

    def unavailable(self, error: BaseException) -> str | None:
        if not isinstance(error, DatabaseError):
            return None
        told = " ".join(str(error).split()) or type(error).__name__
        if is_missing_table(error):
            return f"the tables of dbtasks are missing, run {migrate_command(self.alias)} ({told})"
        if isinstance(error, (OperationalError, InterfaceError)) or "read-only" in told:
            return f"database {self.alias!r}: {told}"
        return None

    def close(self) -> None:
        # A connection that is broken or inside a transaction must not be kept by close().
        connection = self.connection
        connection.needs_rollback = False
        connection.in_atomic_block = False
        connection.savepoint_ids = []
        connection.atomic_blocks = []
        connection.run_on_commit = []
        with contextlib.suppress(Exception):
            connection.close()
        connection.connection = None
        connection.closed_in_transaction = False


class Untold:
    """The watcher of a database that has no cheap sign of change."""

    tells = False
    interval: float | None = None

    def fileno(self) -> int | None:
        return None

    def changed(self) -> bool:
        return False


def in_claim_order(claimed: list[Claimed], queues: QueueSelection) -> list[Claimed]:
    """By preference, priority and age: what UPDATE … RETURNING returns has no order."""
    if len(claimed) > 1:
        claimed.sort(key=lambda row: (queues.preference(row.queue) or 0, -row.priority, row.id))
    return claimed


def by_id(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """As a rescue does it: whoever locks the same rows does so in the same order."""
    return sorted(outcomes, key=attrgetter("id"))


def bounded(seconds: float | None) -> float | None:
    """A length of time that can be added to the clock."""
    return None if seconds is None else min(float(seconds), LONGEST)


def migrate_command(alias: str) -> str:
    return "manage.py migrate" + ("" if alias == "default" else f" --database {alias}")


def is_missing_table(error: BaseException) -> bool:
    """Whether a table or a column of ours does not exist (yet)."""
    told = str(error)
    if isinstance(error, OperationalError) and "no such" in told:
        return True  # SQLite
    if isinstance(error, OperationalError) and "1054" in told:
        return True  # MySQL: unknown column
    return isinstance(error, ProgrammingError) and ("does not exist" in told or "1146" in told)


def worker_died(reason: str) -> dict[str, str]:
    """The entry of `errors` for an attempt whose worker died."""
    return {"exception_class_path": WORKER_DIED, "traceback": f"{WORKER_DIED}: {reason}\n"}


def append_json(text: str, value: Any) -> str:
    """The JSON list in `text` with one value more; what is no list starts a new one."""
    try:
        items = json.loads(text)
    except ValueError:
        items = []
    return dump_json([*items, value] if isinstance(items, list) else [value])


@contextlib.contextmanager
def plain_transaction(connection: BaseDatabaseWrapper, begin: str) -> Iterator[None]:
    """`begin` … COMMIT without the round trips of atomic(); inside an atomic block, nothing."""
    if connection.in_atomic_block or not connection.get_autocommit():
        with transaction.atomic(using=connection.alias, savepoint=False):
            yield
        return
    with connection.cursor() as cursor:
        cursor.execute(begin)
        try:
            yield
            cursor.execute("COMMIT")  # one that fails leaves SQLite's transaction open
        except BaseException:
            with contextlib.suppress(DatabaseError):
                cursor.execute("ROLLBACK")
            raise
