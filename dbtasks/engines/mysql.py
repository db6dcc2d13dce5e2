"""MySQL 8 and MariaDB 10.6+: rows are selected and locked, then written by primary key only.

MariaDB has no UPDATE … RETURNING, so a claim is two statements in one transaction, READ COMMITTED
(Django's default). Deadlocks and lock waits are retried: InnoDB may answer any statement so.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import itertools
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Concatenate

from django.db import DatabaseError, OperationalError

from ..queues import QueueSelection
from .base import Claimant, Claimed, Death, NewTask, NodeInfo, Outcome, Rescued, Settled
from .connection import is_missing_table, marks, plain_transaction
from .network import Networked
from .operations import Row
from .portable import ByQueueEngine, Head, insert_sql, outcomes_as_json
from .undelayed import Undelayed

DEADLOCK, LOCK_WAIT_TIMEOUT = 1213, 1205
DEADLOCK_RETRIES = 8

INSERT_ONE = insert_sql(1)
# The index is named, or a small table is sorted instead of read in claim order.
CLAIM_SELECT = """
SELECT id, attempt + (attempt < 2147483647), task_path, args, kwargs, queue, priority, run_after,
    enqueued_at, COALESCE(started_at, {now}), {now}, worker_ids, errors, failures, policy, periodic
FROM dbtasks_scheduledtask FORCE INDEX (dbtasks_claim)
WHERE backend = %s AND ready_queue = %s{bound}
ORDER BY precedence, id LIMIT %s
FOR UPDATE SKIP LOCKED"""
CLAIM_UPDATE = """
UPDATE dbtasks_scheduledtask
SET status = 'RUNNING', ready_queue = NULL, claim_node = %s, claimed_by = %s,
    attempt = attempt + (attempt < 2147483647), last_attempted_at = {now},
    started_at = COALESCE(started_at, {now})
WHERE id IN ({ids})"""
# As portable.FINISH, of many rows, which are locked in the order of their ids. MySQL has JSON_TABLE
# too, but compares its texts with ours only where both have the same collation; so does MariaDB
# before 10.7, whose ids are texts. And some of its releases leave escapes in what they give.
FINISH_MANY = """
UPDATE JSON_TABLE(%s, '$[*]' COLUMNS (
    id CHAR(32) PATH '$[0]', attempt INT PATH '$[1]', worker VARCHAR(160) PATH '$[2]',
    status VARCHAR(10) PATH '$[3]', return_value LONGTEXT PATH '$[4]', errors LONGTEXT PATH '$[5]',
    worker_ids LONGTEXT PATH '$[6]', failures INT PATH '$[7]', retain DOUBLE PATH '$[8]'
)) o STRAIGHT_JOIN dbtasks_scheduledtask t ON t.id = o.id
SET t.status = o.status, t.finished_at = {now}, t.return_value = o.return_value,
    t.errors = o.errors, t.worker_ids = o.worker_ids, t.failures = o.failures,
    t.claim_node = NULL, t.claimed_by = NULL, t.delete_after = {now} + INTERVAL o.retain SECOND
WHERE t.claimed_by = o.worker AND t.attempt = o.attempt"""
UNESCAPED = "SELECT v FROM JSON_TABLE(%s, '$[*]' COLUMNS (v VARCHAR(9) PATH '$')) t"
# The distinct queues by a loose index scan ("Using index for group-by"; it sorts their names). It
# costs as much as a small claim, so its answer is good for a while (seconds): so long may a queue
# that was empty wait beside others. What each queue would give next is asked every time, by one
# probe per queue.
NAMES_GOOD_FOR = 0.05
READY_NAMES = """
SELECT ready_queue FROM dbtasks_scheduledtask FORCE INDEX (dbtasks_claim)
WHERE backend = %s AND ready_queue >= '' GROUP BY backend, ready_queue"""
HEAD = """(
SELECT ready_queue, precedence, id
FROM dbtasks_scheduledtask FORCE INDEX (dbtasks_claim)
WHERE backend = %s AND ready_queue = %s
ORDER BY precedence, id LIMIT 1)"""
ANY_ROW = "SELECT 1 FROM dbtasks_scheduledtask FORCE INDEX (dbtasks_claim) LIMIT 1"
# A JSON_TABLE would do, but for what some releases make of a null.
SETTLED_ROW = "SELECT %s AS id, %s AS next_due, %s AS last_due, %s AS last_task"
SETTLE = """
UPDATE ({rows}) o STRAIGHT_JOIN dbtasks_periodictask t ON t.id = o.id
SET t.next_due = o.next_due, t.last_due = COALESCE(o.last_due, t.last_due),
    t.last_node = IF(o.last_task IS NULL, t.last_node, %s),
    t.last_task = COALESCE(o.last_task, t.last_task)"""
GET_LOCK = "SELECT GET_LOCK(%s, 0)"
RELEASE_LOCK = "SELECT RELEASE_LOCK(%s)"


def retried[**P, T](
    method: Callable[Concatenate[MySQLEngine, P], T],
) -> Callable[Concatenate[MySQLEngine, P], T]:
    """Runs a whole transaction again after a deadlock; not inside the caller's transaction."""

    @functools.wraps(method)
    def run(self: MySQLEngine, /, *args: P.args, **kwargs: P.kwargs) -> T:
        for tries_left in reversed(range(DEADLOCK_RETRIES)):
            try:
                return method(self, *args, **kwargs)
            except OperationalError as error:
                passing = error.args and error.args[0] in (DEADLOCK, LOCK_WAIT_TIMEOUT)
                if not passing or not tries_left or self.connection.in_atomic_block:
                    raise
                time.sleep(random.uniform(0.001, 0.02))
        raise AssertionError("unreachable")

    return run


NO_NAMES: tuple[list[str], float] = ([], 0.0)  # names, and when they were asked for


class MySQLEngine(Networked, ByQueueEngine):
    NOW = "UTC_TIMESTAMP(6)"
    IN_SECONDS = "UTC_TIMESTAMP(6) + INTERVAL %s SECOND"
    INSERT_OR_IGNORE = "INSERT IGNORE INTO"
    ON_CONFLICT = ""
    # By another index, rows whose keys others change while we wait for them would not be found.
    BY_ID = " FORCE INDEX (PRIMARY)"
    watches_statements = True

    def __init__(self, alias: str, backend: str) -> None:
        super().__init__(alias, backend)
        self._names = NO_NAMES  # replaced whole: threads share it
        self._joins_json: bool | None = None
        self.undelayed = Undelayed()

    def insert_batch(self, rows: Sequence[NewTask], notify: bool) -> None:
        connection = self.connection
        if len(rows) == 1 and self.undelayed.suits(connection):
            statement, values = self.sql(INSERT_ONE), self.insert_values(rows[0])
            if self.undelayed.run(connection, statement, values):
                return
        super().insert_batch(rows, notify)

    def transaction(self) -> contextlib.AbstractContextManager[None]:
        return plain_transaction(self.connection, "START TRANSACTION")

    @retried
    def claim(self, who: Claimant, queues: QueueSelection, limit: int = 1) -> list[Claimed]:
        with self.transaction():
            return self.claim_from(who, queues, limit)

    @retried
    def finish(self, outcomes: Sequence[Outcome]) -> set[str]:
        return super().finish(outcomes)

    @retried
    def finish_and_claim(
        self, outcomes: Sequence[Outcome], who: Claimant, queues: QueueSelection, limit: int = 1
    ) -> tuple[set[str], list[Claimed]]:
        with self.transaction():
            finished = self.write_outcomes(outcomes)
            return finished, self.claim_from(who, queues, limit)

    def finish_many(self, outcomes: Sequence[Outcome]) -> set[str]:
        if not self.joins_json():
            return self.write_each(outcomes)
        with self.connection.cursor() as cursor:
            cursor.execute("SAVEPOINT outcomes")
            cursor.execute(self.sql(FINISH_MANY), (outcomes_as_json(outcomes),))
            if cursor.rowcount == len(outcomes):
                return {outcome.id for outcome in outcomes}
            # Some claim is not ours any more; which one, only one after the other tells.
            cursor.execute("ROLLBACK TO SAVEPOINT outcomes")
        return self.write_each(outcomes)

    def missing_tables(self) -> bool:
        """Also while they are being made: the indexes come last."""
        if super().missing_tables():
            return True
        try:
            self.rows(ANY_ROW)
        except DatabaseError as error:
            if is_missing_table(error):
                return True
            raise
        return False

    def joins_json(self) -> bool:
        """Whether FINISH_MANY does here what it should; asked once."""
        if self._joins_json is None:
            connection: Any = self.connection
            self._joins_json = (
                connection.mysql_is_mariadb
                and connection.features.has_native_uuid_field
                and self.rows(UNESCAPED, ('["a\\"b\\\\"]',)) == [('a"b\\',)]
            )
        return self._joins_json

    def claim_from(self, who: Claimant, queues: QueueSelection, limit: int) -> list[Claimed]:
        claimed = super().claim_from(who, queues, limit)
        if not claimed and queues.only is None and self._names[0]:
            # Others were faster at the queues that we remembered; there may be more by now.
            self._names = NO_NAMES
            claimed = super().claim_from(who, queues, limit)
        return claimed

    def ready_queues(self) -> list[str]:
        # Not portable.READY_QUEUES: its inner query would read all rows once per queue.
        return [row[0] for row in self.rows(READY_NAMES, (self.backend,))]

    def heads(self, queues: QueueSelection) -> list[Head]:
        names, asked_at = self._names
        known = time.monotonic() - asked_at < NAMES_GOOD_FOR
        if known and (heads := self.heads_of(names, queues)):
            return heads
        names = self.ready_queues()
        self._names = names, time.monotonic()
        return self.heads_of(names, queues)

    def heads_of(self, names: Iterable[str], queues: QueueSelection) -> list[Head]:
        preferences = {name: queues.preference(name) for name in names}
        served = [name for name, preference in preferences.items() if preference is not None]
        if not served:
            return []
        parameters = [value for name in served for value in (self.backend, name)]
        rows = self.rows(" UNION ALL ".join([HEAD] * len(served)), parameters)
        return sorted(
            Head(preferences[name] or 0, int(precedence), self.hex(id), name)
            for name, precedence, id in rows
        )

    def claim_queue(
        self, who: Claimant, queue: str, limit: int, lowest: int | None
    ) -> list[Claimed]:
        bound = "" if lowest is None else f" AND precedence <= {int(lowest)}"
        while rows := self.rows(CLAIM_SELECT, (self.backend, queue, limit), bound=bound):
            ids = [row[0] for row in rows]
            self.run(CLAIM_UPDATE, (who.node, who.worker, *ids), ids=marks(ids))
            if claimed := self.sound(rows):
                return claimed
        return []

    def heads_known_since(self) -> float:
        return self._names[1]

    @retried
    def release(self, who: Claimant, rows: Iterable[tuple[str, int]] | None = None) -> int:
        return super().release(who, rows)

    @retried
    def rescue_batch(self, node: str, worker: str | None, death: Death) -> Rescued:
        return super().rescue_batch(node, worker, death)

    @retried
    def change_selected(self, select: str, change: str, limit: int) -> int:
        return super().change_selected(select, change, limit)

    @retried
    def decide_batch(
        self,
        ids: Sequence[str],
        states: tuple[str, ...],
        write: Callable[[Sequence[Row]], object],
    ) -> dict[str, str]:
        return super().decide_batch(ids, states, write)

    @retried
    def settle_batch(self, ids: Sequence[str]) -> None:
        super().settle_batch(ids)

    @retried
    def park_rows(self, who: Claimant, task: str, claims: Sequence[tuple[str, int]]) -> int:
        return super().park_rows(who, task, claims)

    @retried
    def unpark_batch(self, at: datetime.datetime) -> int:
        return super().unpark_batch(at)

    @retried
    def delete_finished(self, ids: Sequence[Any]) -> int:
        return super().delete_finished(ids)

    @retried
    def renew_lease(self, node: NodeInfo, state: str = "running") -> None:
        super().renew_lease(node, state)

    @retried
    def end_lease(self, node_id: str) -> None:
        super().end_lease(node_id)

    @retried
    def save_workers(self, node_id: str, workers: Sequence[dict[str, Any]]) -> None:
        super().save_workers(node_id, workers)

    def move_batch(self, settled: Sequence[Settled], node_name: str) -> None:
        values = itertools.chain(*self.settled_values(settled))
        rows = " UNION ALL ".join([SETTLED_ROW] * len(settled))
        self.run(SETTLE, (*values, node_name), rows=rows)

    @retried
    def add_counts(self, counts: Mapping[tuple[str, str], Sequence[int]]) -> None:
        super().add_counts(counts)

    @retried
    def prune_counts(self, limit: int = 1000) -> int:
        return super().prune_counts(limit)

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[bool]:
        """The lock belongs to the session, so it is given back after the commit."""
        key = lock_name(str(self.connection.settings_dict["NAME"]), self.backend, name)
        ((got,),) = self.rows(GET_LOCK, (key,))
        try:
            with self.transaction():
                yield got == 1
        finally:
            if got == 1:
                with contextlib.suppress(OperationalError):  # a lost session has no lock
                    self.rows(RELEASE_LOCK, (key,))


def lock_name(database: str, backend: str, name: str) -> str:
    """GET_LOCK's names are the whole server's, and at most 64 characters long."""
    digest = hashlib.sha256(f"{database}/{backend}/{name}".encode()).hexdigest()
    return f"dbtasks-{digest[:40]}"
