"""What people do to single rows, and pauses: retry, run now, cancel, delete, change, prune.

Each operation locks the rows that it is asked about, decides by what they are at that moment, and
writes, in one short transaction. Claims pass over locked rows and finishes wait for them, so
whoever comes first has won, and the other is told so.

A row whose task is paused waits as a deferred one does, at a time that never comes: PARKED and as
many seconds as its pause's id says. So claims never meet it, whatever there is of its kind, and
the end of the pause finds its rows by the index of due times.
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ..fields import in_range, nearest_utc
from ..policy import policy_from_text
from .base import CancelRequest, Claimant, PauseRow
from .connection import Connected, marks
from .upkeep import RELEASE, append_json, bounded, was_cancelled

BATCH = 200  # rows that are decided upon in one transaction
WINDOW = 5000  # rows that one statement of a pruning reads
UNPARK_BATCH = 1000
PARKED = datetime.datetime(9000, 1, 1, tzinfo=datetime.UTC)
LONGEST_PARKING = 10**10  # seconds: in the year 9316, whatever id was written by hand

SELECT_ROWS = """
SELECT id, status, ready_queue, {due_at}, errors, policy
FROM dbtasks_scheduledtask{by_id} WHERE backend = %s AND id IN ({ids}) ORDER BY id{lock}"""
# The errors, worker_ids and attempts of the runs before stay; what counts against it begins anew.
RETRY_ROWS = """
UPDATE dbtasks_scheduledtask
SET status = 'READY', ready_queue = queue, due_at = NULL, finished_at = NULL, return_value = NULL,
    delete_after = NULL, failures = 0, crashes = 0
WHERE id IN ({ids})"""
RUN_ROWS = "UPDATE dbtasks_scheduledtask SET ready_queue = queue, due_at = NULL WHERE id IN ({ids})"
CANCEL_ROWS = """
UPDATE dbtasks_scheduledtask
SET status = 'FAILED', ready_queue = NULL, due_at = NULL, finished_at = {now}, errors = %s,
    delete_after = {in_seconds}
WHERE id IN ({ids})"""
DELETE_ROWS = "DELETE FROM dbtasks_scheduledtask WHERE id IN ({ids})"
SET_PRIORITY = "UPDATE dbtasks_scheduledtask SET priority = %s WHERE id IN ({ids})"
SET_QUEUE = """
UPDATE dbtasks_scheduledtask
SET queue = %s, ready_queue = CASE WHEN ready_queue IS NULL THEN NULL ELSE %s END
WHERE id IN ({ids})"""

REQUEST_CANCEL = """
{insert_or_ignore} dbtasks_cancellation (task_id, backend, requested_at, grace)
VALUES (%s, %s, {now}, %s){on_conflict}"""
FORGET_CANCELS = "DELETE FROM dbtasks_cancellation WHERE task_id IN ({ids})"
CANCEL_REQUESTS = """
SELECT c.task_id, c.grace, t.status, t.claim_node, t.claimed_by, t.attempt
FROM dbtasks_cancellation c LEFT JOIN dbtasks_scheduledtask t ON t.id = c.task_id
WHERE c.backend = %s ORDER BY c.task_id LIMIT 1000"""

PAUSES = """
SELECT id, kind, name, COALESCE(paused_at, paused_at), paused_by, reason FROM dbtasks_pause
WHERE backend = %s ORDER BY id"""
PAUSE = """
{insert_or_ignore} dbtasks_pause (backend, kind, name, paused_at, paused_by, reason)
VALUES (%s, %s, %s, {now}, %s, %s){on_conflict}"""
RESUME = "DELETE FROM dbtasks_pause WHERE backend = %s AND kind = %s AND name = %s"
# Locked: a pause that ends lets those go that park a row, and looks for such rows after them.
PAUSED_TASK = """
SELECT id FROM dbtasks_pause WHERE backend = %s AND kind = 'task' AND name = %s{lock}"""
PARK = RELEASE.replace("ready_queue = queue", "due_at = %s") + " AND attempt = %s AND id = %s"
NEXT_PARKED = """
SELECT MIN(due_at) FROM dbtasks_scheduledtask WHERE backend = %s AND due_at > %s"""
UNPARK_SELECT = """
SELECT id FROM dbtasks_scheduledtask WHERE backend = %s AND due_at = %s LIMIT %s{skip_locked}"""

PRUNE_WINDOW = """
SELECT id FROM (
    SELECT id FROM dbtasks_scheduledtask WHERE id > %s ORDER BY id LIMIT %s
) rows_of_window ORDER BY id DESC LIMIT 1"""
PRUNE_FIND = """
SELECT id FROM dbtasks_scheduledtask
WHERE id > %s AND id <= %s AND backend = %s AND finished_at IS NOT NULL{conditions}"""
PRUNE_ROWS = """
DELETE FROM dbtasks_scheduledtask WHERE id IN ({ids}) AND finished_at IS NOT NULL"""


class Row(NamedTuple):
    """A row that is locked until the operation is over."""

    id: Any
    status: str
    ready_queue: str | None
    due_at: Any
    errors: str
    policy: str


class Operations(Connected):
    """See base.Engine for what each method promises."""

    def retry(self, ids: Iterable[str]) -> dict[str, str]:
        def write(rows: Sequence[Row]) -> None:
            self.run_on(RETRY_ROWS, rows)
            self.run_on(FORGET_CANCELS, rows)

        return self.decide(ids, ("finished",), write, ready=True)

    def run_now(self, ids: Iterable[str]) -> dict[str, str]:
        return self.decide(ids, ("deferred",), lambda rows: self.run_on(RUN_ROWS, rows), ready=True)

    def cancel(self, ids: Iterable[str], grace: float) -> tuple[dict[str, str], set[str]]:
        asked: set[str] = set()

        def write(rows: Sequence[Row]) -> None:
            running = [row for row in rows if state_of(row, self.connection) == "running"]
            self.cancel_unstarted([row for row in rows if row not in running])
            for row in running:
                self.run(REQUEST_CANCEL, (row.id, self.backend, grace))
            asked.update(self.hex(row.id) for row in running)

        states = ("ready", "deferred", "paused", "running")
        refused = self.decide(ids, states, write)
        if asked:
            self.tell_schedulers()
        return refused, asked

    def delete(self, ids: Iterable[str]) -> dict[str, str]:
        def write(rows: Sequence[Row]) -> None:
            self.run_on(DELETE_ROWS, rows)
            self.run_on(FORGET_CANCELS, rows)

        return self.decide(ids, ("ready", "deferred", "paused", "finished"), write)

    def set_priority(self, ids: Iterable[str], priority: int) -> dict[str, str]:
        def write(rows: Sequence[Row]) -> None:
            self.run_on(SET_PRIORITY, rows, priority)

        return self.decide(ids, ("ready", "deferred", "paused"), write)

    def set_queue(self, ids: Iterable[str], queue: str) -> dict[str, str]:
        def write(rows: Sequence[Row]) -> None:
            self.run_on(SET_QUEUE, rows, queue, queue)

        return self.decide(ids, ("ready", "deferred", "paused"), write, ready=True)

    # How all of them go

    def decide(
        self,
        ids: Iterable[str],
        states: tuple[str, ...],
        write: Callable[[Sequence[Row]], object],
        ready: bool = False,
    ) -> dict[str, str]:
        """`write` for the rows that are in one of `states`; why not, in words, for the others.

        `ready`: rows may be ready because of it, so idle workers are woken.
        """
        refused: dict[str, str] = {}
        wanted = sorted(set(ids))
        for batch in itertools.batched(wanted, BATCH):
            refused |= self.decide_batch(batch, states, write)
        if ready and len(refused) < len(wanted):
            self.tell_schedulers()
        return refused

    def decide_batch(
        self,
        ids: Sequence[str],
        states: tuple[str, ...],
        write: Callable[[Sequence[Row]], object],
    ) -> dict[str, str]:
        refused = dict.fromkeys(ids, "does not exist")
        wanted = []
        with self.transaction():
            for row in self.lock_rows(ids):
                state = state_of(row, self.connection)
                del refused[self.hex(row.id)]
                if state in states:
                    wanted.append(row)
                else:
                    refused[self.hex(row.id)] = refusal(state, row.status)
            if wanted:
                write(wanted)
        return refused

    def lock_rows(self, ids: Sequence[str]) -> list[Row]:
        due_at = in_range("due_at", self.connection.vendor)
        found = self.rows(SELECT_ROWS, (self.backend, *ids), ids=marks(ids), due_at=due_at)
        return [Row(*row) for row in found]

    def run_on(self, text: str, rows: Sequence[Row], *parameters: Any) -> int:
        ids = [row.id for row in rows]
        return self.run(text, (*parameters, *ids), ids=marks(ids))

    def cancel_unstarted(self, rows: Sequence[Row]) -> None:
        """Fails rows that no worker has, as cancelled."""
        alike: dict[tuple[str, float | None], list[Row]] = {}
        for row in rows:
            retain = policy_from_text(row.policy).retention(failed=True)
            alike.setdefault((row.errors, bounded(retain)), []).append(row)
        for (errors, retain), group in alike.items():
            told = append_json(errors, was_cancelled(ran=False))
            self.run_on(CANCEL_ROWS, group, told, retain)
            self.run_on(FORGET_CANCELS, group)

    def tell_schedulers(self) -> None:
        """They look again at once, where the database can tell them."""

    # Running tasks that are to end

    def cancel_requests(self) -> list[CancelRequest]:
        return [
            CancelRequest(self.hex(id), float(grace), node, worker, int(attempt))
            for id, grace, status, node, worker, attempt in self.rows(
                CANCEL_REQUESTS, (self.backend,)
            )
            if status == "RUNNING"
        ]

    def settle_cancels(self) -> int:
        """Deals with requests whose rows do not run any more; returns how many."""
        over = [
            self.hex(id)
            for id, _, status, *_ in self.rows(CANCEL_REQUESTS, (self.backend,))
            if status != "RUNNING"
        ]
        for batch in itertools.batched(over, BATCH):
            self.settle_batch(batch)
        return len(over)

    def settle_batch(self, ids: Sequence[str]) -> None:
        with self.transaction():
            rows = self.lock_rows(ids)
            self.cancel_unstarted([row for row in rows if row.status == "READY"])
            running = {self.hex(row.id) for row in rows if row.status == "RUNNING"}
            if settled := [id for id in ids if id not in running]:
                self.run(FORGET_CANCELS, settled, ids=marks(settled))

    # Pauses

    def pauses(self) -> list[PauseRow]:
        connection = self.connection
        return [
            PauseRow(int(id), kind, name, nearest_utc(paused_at, connection), by, reason)
            for id, kind, name, paused_at, by, reason in self.rows(PAUSES, (self.backend,))
        ]

    def pause(self, kind: str, name: str, by: str, reason: str) -> bool:
        paused = bool(self.run(PAUSE, (self.backend, kind, name, by, reason)))
        self.tell_schedulers()
        return paused

    def resume(self, kind: str, name: str) -> bool:
        resumed = bool(self.run(RESUME, (self.backend, kind, name)))
        self.unpark()
        self.tell_schedulers()
        return resumed

    def park(self, who: Claimant, rows: Iterable[tuple[str, int, str]]) -> int:
        by_task: dict[str, list[tuple[str, int]]] = {}
        for id, attempt, task_path in sorted(rows):
            by_task.setdefault(task_path, []).append((id, attempt))
        return sum(self.park_rows(who, task, claims) for task, claims in sorted(by_task.items()))

    def park_rows(self, who: Claimant, task: str, claims: Sequence[tuple[str, int]]) -> int:
        parked = 0
        with self.transaction():
            for (pause,) in self.rows(PAUSED_TASK, (self.backend, task)):
                for id, attempt in claims:
                    values = (self.time(parked_at(pause)), who.node, who.worker, attempt, id)
                    parked += self.run(PARK, values)
        return parked

    def unpark(self) -> int:
        """Makes rows ready whose pause is over; looks once per pause, not per row."""
        living = {parked_at(pause.id) for pause in self.pauses() if pause.kind == "task"}
        unparked, after = 0, PARKED - datetime.timedelta(seconds=1)
        while (found := self.next_parked(after)) is not None:
            if found not in living:
                while count := self.unpark_batch(found):
                    unparked += count
            after = found
        return unparked

    def next_parked(self, after: datetime.datetime) -> datetime.datetime | None:
        ((found,),) = self.rows(NEXT_PARKED, (self.backend, self.time(after)))
        return None if found is None else nearest_utc(found, self.connection)

    def unpark_batch(self, at: datetime.datetime) -> int:
        with self.transaction():
            found = self.rows(UNPARK_SELECT, (self.backend, self.time(at), UNPARK_BATCH))
            ids = [row[0] for row in found]
            return self.run(RUN_ROWS, ids, ids=marks(ids)) if ids else 0

    # Pruning

    def prune_window(self, after: str) -> str | None:
        """The last id of the next rows after the id `after`; None at the table's end."""
        for (last,) in self.rows(PRUNE_WINDOW, (after, WINDOW)):
            return self.hex(last)
        return None

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
        conditions, values = "", []
        if before is not None:
            conditions += " AND finished_at <= %s"
            values.append(self.time(before))
        if statuses:
            conditions += f" AND status IN ({marks(statuses)})"
            values += statuses
        if queue is not None:
            conditions += " AND queue = %s"
            values.append(queue)
        if expired:
            conditions += " AND delete_after <= {now}"
        found = self.rows(
            PRUNE_FIND,
            (after, last, self.backend, *values),
            conditions=conditions.replace("{now}", self.NOW),
        )
        ids = [row[0] for row in found]
        if dry_run:
            return len(ids)
        return sum(self.delete_finished(batch) for batch in itertools.batched(ids, 1000))

    def delete_finished(self, ids: Sequence[Any]) -> int:
        return self.run(PRUNE_ROWS, ids, ids=marks(ids))


def state_of(row: Row, connection: Any) -> str:
    """What a row is, in the words of the operations."""
    if row.status == "RUNNING":
        return "running"
    if row.status != "READY":
        return "finished"
    if row.due_at is None:
        return "ready"
    return "paused" if nearest_utc(row.due_at, connection) >= PARKED else "deferred"


def refusal(state: str, status: str) -> str:
    match state:
        case "finished":
            return f"is finished ({status})"
        case "ready":
            return "is ready already"
        case "paused":
            return "waits because its task is paused"
    return f"is {state}"


def parked_at(pause: int) -> datetime.datetime:
    """Where the rows of that pause wait."""
    return PARKED + datetime.timedelta(seconds=int(pause) % LONGEST_PARKING)
