"""What keeps the queue in order, alike on every database: rescue, due rows, retention, nodes.
The decisions about single rows are taken in Python, in short transactions.
"""

from __future__ import annotations

import abc
import contextlib
import datetime
import itertools
from collections.abc import Sequence
from typing import Any

from django.db import IntegrityError

from ..fields import dump_json, load_json, nearest_utc
from ..policy import policy_from_text
from .base import Counts, Death, NodeInfo, Rescued, Survey
from .connection import marks
from .periodic import LONGEST, PeriodicTables

RESCUE_BATCH = 500
MOST_CRASHES = 2**31 - 2  # the column has room for one more
WORKER_DIED = "dbtasks.exceptions.WorkerDied"
TASK_CANCELLED = "dbtasks.exceptions.TaskCancelled"

# An attempt that is not counted leaves no trace: without earlier ones the row was never started.
RELEASE = """
UPDATE dbtasks_scheduledtask
SET status = 'READY', ready_queue = queue, claim_node = NULL, claimed_by = NULL,
    started_at = CASE WHEN worker_ids = '[]' THEN NULL ELSE started_at END,
    last_attempted_at = CASE WHEN worker_ids = '[]' THEN NULL ELSE last_attempted_at END
WHERE claim_node = %s AND claimed_by = %s"""

RESCUE_SELECT = """
SELECT id, claimed_by, worker_ids, errors, crashes, policy, queue, task_path
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
# Asked for when the rows are locked: whoever cancels them locks them, too.
CANCELLED_OF = "SELECT task_id FROM dbtasks_cancellation WHERE task_id IN ({ids})"
FORGET_CANCEL = "DELETE FROM dbtasks_cancellation WHERE task_id = %s"

PROMOTE_SELECT = """
SELECT id FROM dbtasks_scheduledtask
WHERE backend = %s AND due_at <= {now} ORDER BY due_at LIMIT %s{skip_locked}"""
PROMOTE = """
UPDATE dbtasks_scheduledtask SET ready_queue = queue, due_at = NULL WHERE id IN ({ids})"""

EXPIRED_EXIST = """
SELECT 1 FROM dbtasks_scheduledtask
WHERE backend = %s AND delete_after <= {now} ORDER BY delete_after LIMIT 1"""
PRUNE_SELECT = """
SELECT id FROM dbtasks_scheduledtask
WHERE backend = %s AND delete_after <= {now} ORDER BY delete_after LIMIT %s{skip_locked}"""
PRUNE = "DELETE FROM dbtasks_scheduledtask WHERE id IN ({ids})"

COUNT_READY = """
SELECT COUNT(*) FROM dbtasks_scheduledtask WHERE backend = %s AND ready_queue IS NOT NULL"""
# From the year 9000 on wait those whose task is paused; see operations.PARKED.
COUNT_DEFERRED = """
SELECT COUNT(*) FROM dbtasks_scheduledtask WHERE backend = %s AND due_at < '9000-01-01'"""
COUNT_PAUSED = """
SELECT COUNT(*) FROM dbtasks_scheduledtask WHERE backend = %s AND due_at >= '9000-01-01'"""
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
    "id, kind, pid, state, task_id, task_path, task_seconds, done, failed, restarts, memory, "
    "cpu_seconds, up_seconds"
)
WORKER_INSERT = f"""
INSERT INTO dbtasks_worker ({WORKER_COLUMNS}, node_id, last_seen) VALUES {{rows}}"""
WORKER_ROW = f"({', '.join(['%s'] * 14)}, {{now}})"


class Upkeep(PeriodicTables, abc.ABC):
    """See base.Engine for what each method promises."""

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
        released, retried, failed, cancelled, tasks = [], [], [], [], []
        parameters = (node, RESCUE_BATCH) if worker is None else (node, worker, RESCUE_BATCH)
        condition = "" if worker is None else " AND claimed_by = %s"
        rows = self.rows(RESCUE_SELECT, parameters, worker=condition)
        unwanted = self.cancelled_of([row[0] for row in rows])
        for raw_id, claimed_by, worker_ids, errors, crashes, policy_text, queue, path in rows:
            id = self.hex(raw_id)
            wanted_to_end = id in unwanted
            ran = death.running is None or id in death.running
            if not wanted_to_end and not (ran and death.counted):
                self.run(RESCUE_RELEASE, (raw_id,))
                released.append(id)
                continue
            tasks.append((id, str(queue), str(path)))
            policy = policy_from_text(policy_text)
            done = append_json(worker_ids, claimed_by) if ran else worker_ids
            if wanted_to_end:
                told = append_json(errors, was_cancelled(ran))
                retain = bounded(policy.retention(failed=True))
                self.run(RESCUE_FAIL, (told, done, crashes, retain, raw_id))
                self.run(FORGET_CANCEL, (raw_id,))
                cancelled.append(id)
                continue
            told = append_json(errors, worker_died(death.reason))
            times = one_more(crashes)
            if times > policy.max_crashes:
                retain = bounded(policy.retention(failed=True))
                self.run(RESCUE_FAIL, (told, done, times, retain, raw_id))
                failed.append(id)
            else:
                self.run(RESCUE_RETRY, (told, done, times, raw_id))
                retried.append(id)
        return Rescued(
            tuple(released), tuple(retried), tuple(failed), tuple(cancelled), tuple(tasks)
        )

    def cancelled_of(self, ids: Sequence[Any]) -> set[str]:
        """Which of these rows are to end."""
        if not ids:
            return set()
        return {self.hex(id) for (id,) in self.rows(CANCELLED_OF, ids, ids=marks(ids))}

    def promote_due(self, limit: int = 1000) -> int:
        return self.change_selected(PROMOTE_SELECT, PROMOTE, limit)

    def prune(self, limit: int = 1000) -> int:
        return self.change_selected(PRUNE_SELECT, PRUNE, limit)

    def change_selected(self, select: str, change: str, limit: int) -> int:
        """Locks what `select` finds and is not locked, and changes it, in one transaction."""
        with self.transaction():
            ids = [row[0] for row in self.rows(select, (self.backend, limit))]
            if ids:
                self.run(change, ids, ids=marks(ids))
        return len(ids)

    def counts(self) -> Counts:
        return Counts(
            *(
                int(self.rows(query, (self.backend,))[0][0])
                for query in (COUNT_READY, COUNT_DEFERRED, COUNT_RUNNING, COUNT_PAUSED)
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
            return nearest_utc(started_at, self.connection)
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
        values = [(*(worker.get(column) for column in columns), node_id) for worker in workers]
        with contextlib.suppress(IntegrityError), self.transaction():
            # The node's row may be gone: another node took us for dead; the next lease mends it.
            self.run(NODE_FORGET_WORKERS, (node_id,))
            if values:
                rows = ", ".join([WORKER_ROW] * len(values))
                self.run(WORKER_INSERT, list(itertools.chain(*values)), rows=self.sql(rows))

    def report(self, node_id: str, workers: Sequence[dict[str, Any]]) -> Survey:
        self.save_workers(node_id, workers)
        return Survey(self.dead_nodes(), self.claimants(node_id), self.expired_exist())


def bounded(seconds: float | None) -> float | None:
    """A length of time that can be added to the clock."""
    return None if seconds is None else min(float(seconds), LONGEST)


def one_more(crashes: Any) -> int:
    """The next number; what is none, or the highest, ends the row's luck."""
    return min(crashes, MOST_CRASHES) + 1 if type(crashes) is int else MOST_CRASHES


def worker_died(reason: str) -> dict[str, str]:
    """The entry of `errors` for an attempt whose worker died."""
    return {"exception_class_path": WORKER_DIED, "traceback": f"{WORKER_DIED}: {reason}\n"}


def was_cancelled(ran: bool) -> dict[str, str]:
    """The entry of `errors` for a task that was cancelled and could not say so itself."""
    how = "cancelled, and its worker ended" if ran else "cancelled before it ran"
    return {"exception_class_path": TASK_CANCELLED, "traceback": f"{TASK_CANCELLED}: {how}\n"}


def append_json(text: str, value: Any) -> str:
    """The JSON list in `text` with one value more; what is no list starts a new one."""
    try:
        items = load_json(text)
    except ValueError:
        items = []
    return dump_json([*items, value] if isinstance(items, list) else [value])
