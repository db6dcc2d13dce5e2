"""Periodic entries and their occurrences: the same statements on every database but one.

A tick is one transaction under the advisory lock: it reads the entries that are due, inserts their
occurrences and tasks, and moves each entry to its next due time, in a few statements for all.
"""

from __future__ import annotations

import abc
import contextlib
import datetime
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ..fields import dump_json, nearest_utc
from ..policy import policy_from_text
from .base import Deployments, NewOccurrence, NewTask, PeriodicRow, Settled, StillDue
from .connection import Connected, marks

BATCH = 500
LONGEST = 1000 * 365 * 86400.0  # seconds; no database has the date that timedelta.max leads to

# SQLite's driver gives times of plain columns as objects, and fails for a text that is none.
TIMES = ("since", "next_due", "last_due", "deployed_at")
COLUMNS = ", ".join(f"COALESCE({c}, {c})" if c in TIMES else c for c in PeriodicRow._fields)
ENTRIES = f"SELECT {COLUMNS} FROM dbtasks_periodictask WHERE backend = %s ORDER BY name"
ENTRY = f"SELECT {COLUMNS} FROM dbtasks_periodictask WHERE backend = %s AND name = %s"
ENTRY_LOCKED = ENTRY + "{lock}"
# For MariaDB `> '1000-01-01'` is a range of the index; IS NOT NULL would be a scan.
DUE = f"""
SELECT {{now}}, {COLUMNS} FROM dbtasks_periodictask
WHERE backend = %s AND next_due > '1000-01-01' AND next_due <= {{now}} ORDER BY next_due, id"""
SOON = f"""
SELECT {COLUMNS} FROM dbtasks_periodictask
WHERE backend = %s AND next_due > {{now}} AND next_due <= {{in_seconds}} ORDER BY next_due, id"""
STILL_DUE = """
SELECT id, edition, COALESCE(next_due, next_due), last_task FROM dbtasks_periodictask
WHERE backend = %s AND next_due > '1000-01-01' AND next_due <= %s ORDER BY id{lock}"""
AHEAD = """
SELECT {now}, MIN(next_due) FROM dbtasks_periodictask WHERE backend = %s AND next_due > {now}"""
STATUSES = "SELECT id, status FROM dbtasks_scheduledtask WHERE id IN ({ids})"

# A tick may write a moment before the due time; what it wrote is seen at the due time.
OCCURRENCES = """
{insert_or_ignore} dbtasks_occurrence
    (backend, name, due_at, task_id, enqueued_at, enqueued_by, skipped)
{rows}{on_conflict}"""
OCCURRENCE_ROW = "(%s, %s, %s, %s, {greatest}({now}, %s), %s, %s)"
OCCURRENCE = """
SELECT task_id, skipped FROM dbtasks_occurrence WHERE backend = %s AND name = %s AND due_at = %s"""
OCCURRENCES_PRUNE = "DELETE FROM dbtasks_occurrence WHERE backend = %s AND due_at < %s"
FAIL_NEW = """
UPDATE dbtasks_scheduledtask
SET status = 'FAILED', ready_queue = NULL, due_at = NULL, finished_at = {now}, errors = %s,
    delete_after = {in_seconds}
WHERE id = %s"""

SETTLE = """
UPDATE dbtasks_periodictask AS t
SET next_due = o.next_due, last_due = COALESCE(o.last_due, t.last_due),
    last_task = COALESCE(o.last_task, t.last_task),
    last_node = CASE WHEN o.last_task IS NULL THEN t.last_node ELSE %s END
FROM {settled} AS o WHERE t.id = o.id"""
NOTE_RUN = """
UPDATE dbtasks_periodictask SET last_task = %s, last_node = %s WHERE backend = %s AND name = %s"""

# What an entry says; what it did stays with the row.
DEFINED = tuple(
    column
    for column in PeriodicRow._fields
    if column not in ("id", "name", "last_due", "last_task", "last_node", "edition")
)
CHANGE = f"""
UPDATE dbtasks_periodictask SET edition = edition + 1, {", ".join(f"{c} = %s" for c in DEFINED)}
WHERE backend = %s AND name = %s"""
CREATE = f"""
{{insert_or_ignore}} dbtasks_periodictask (backend, name, last_node, edition, {", ".join(DEFINED)})
VALUES (%s, %s, '', 0, {", ".join(["%s"] * len(DEFINED))}){{on_conflict}}"""
FORGET = "DELETE FROM dbtasks_periodictask WHERE backend = %s AND name = %s"

DEPLOYMENTS = """
SELECT d.fingerprint, d.first_seen, d.holds, n.id, n.name
FROM dbtasks_periodicdeployment d LEFT JOIN dbtasks_node n
    ON n.backend = d.backend AND n.deployment = d.fingerprint AND n.expires_at > {now}
WHERE d.backend = %s AND (d.holds OR d.fingerprint = %s OR n.id IS NOT NULL)"""
DEPLOYMENT_SEEN = """
{insert_or_ignore} dbtasks_periodicdeployment (backend, fingerprint, first_seen, holds)
VALUES (%s, %s, {now}, %s){on_conflict}"""
DEPLOYMENT_HOLDS = """
UPDATE dbtasks_periodicdeployment SET holds = (CASE WHEN fingerprint = %s THEN %s ELSE %s END)
WHERE backend = %s"""
DEPLOYMENT_OF_NODE = "UPDATE dbtasks_node SET deployment = %s WHERE id = %s"


class PeriodicTables(Connected, abc.ABC):
    """See base.Engine for what each method promises."""

    SETTLED: str  # a table of (id, next_due, last_due, last_task), from one JSON parameter

    @abc.abstractmethod
    def insert(self, rows: Sequence[NewTask], notify: bool = True) -> None:
        """As base.Engine says."""

    # Reading

    def periodic_entries(self) -> list[PeriodicRow]:
        return self.entries_of(self.rows(ENTRIES, (self.backend,)))

    def periodic_entry(self, name: str) -> PeriodicRow | None:
        return next(iter(self.entries_of(self.rows(ENTRY, (self.backend, name)))), None)

    def periodic_due(self) -> tuple[datetime.datetime | None, list[PeriodicRow]]:
        found = self.rows(DUE, (self.backend,))
        if not found:
            return None, []
        now = nearest_utc(found[0][0], self.connection)
        return now, self.entries_of(row[1:] for row in found)

    def periodic_soon(self, seconds: float) -> list[PeriodicRow]:
        return self.entries_of(self.rows(SOON, (self.backend, seconds)))

    def periodic_still_due(self, now: datetime.datetime) -> dict[int, StillDue]:
        moment = self.remembering_moments()
        return {
            id: StillDue(edition, moment(next_due), last and self.hex(last))
            for id, edition, next_due, last in self.rows(STILL_DUE, (self.backend, self.time(now)))
        }

    def periodic_ahead_in(self) -> float | None:
        ((now, next_due),) = self.rows(AHEAD, (self.backend,))
        if next_due is None:
            return None
        connection = self.connection
        left = nearest_utc(next_due, connection) - nearest_utc(now, connection)
        return left.total_seconds()

    def remembering_moments(self) -> Callable[[Any], datetime.datetime]:
        """`nearest_utc` for many values, of which most are equal."""
        connection = self.connection
        return functools.cache(lambda value: nearest_utc(value, connection))

    def entries_of(self, rows: Iterable[Sequence[Any]]) -> list[PeriodicRow]:
        moment = self.remembering_moments()
        entries = []
        for values in rows:
            row = PeriodicRow(*values)
            entries.append(
                row._replace(
                    paused=bool(row.paused),
                    retired=bool(row.retired),
                    since=moment(row.since),
                    deployed_at=moment(row.deployed_at),
                    next_due=None if row.next_due is None else moment(row.next_due),
                    last_due=None if row.last_due is None else moment(row.last_due),
                    last_task=row.last_task and self.hex(row.last_task),
                )
            )
        return entries

    def task_statuses(self, ids: Iterable[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for batch in itertools.batched(sorted(set(ids)), BATCH):
            rows = self.rows(STATUSES, batch, ids=marks(batch))
            found |= {self.hex(id): status for id, status in rows}
        return found

    # A tick

    def enqueue_occurrences(
        self, occurrences: Sequence[NewOccurrence], node_name: str
    ) -> list[NewOccurrence]:
        new: list[NewOccurrence] = []
        for batch in itertools.batched(occurrences, BATCH):
            inserted = self.insert_occurrences(batch, node_name)
            self.insert_tasks([each for each in inserted if not each.skipped])
            new += inserted
        return new

    def insert_tasks(self, occurrences: Sequence[NewOccurrence]) -> None:
        self.insert([each.row for each in occurrences if each.error is None])
        for each in occurrences:
            if each.error is not None:
                self.insert([each.row], notify=False)
                retain = policy_from_text(each.row.policy).retention(failed=True)
                kept = None if retain is None else min(float(retain), LONGEST)
                self.run(FAIL_NEW, (dump_json([each.error]), kept, each.row.id))

    def insert_occurrences(
        self, occurrences: Sequence[NewOccurrence], node_name: str
    ) -> Sequence[NewOccurrence]:
        """Returns those that did not exist: each due time has one, whoever inserted it."""
        if self.run_occurrences(occurrences, node_name) == len(occurrences):
            return occurrences
        return [each for each in occurrences if self.is_ours(each)]

    def run_occurrences(self, occurrences: Sequence[NewOccurrence], node_name: str) -> int:
        time = functools.cache(self.time)
        values = [
            (self.backend, o.name, due := time(o.due_at), o.task_id, due, node_name, o.skipped)
            for o in occurrences
        ]
        rows = "VALUES " + ", ".join([self.sql(OCCURRENCE_ROW)] * len(values))
        return self.run(OCCURRENCES, list(itertools.chain(*values)), rows=rows)

    def is_ours(self, occurrence: NewOccurrence) -> bool:
        key = (self.backend, occurrence.name, self.time(occurrence.due_at))
        mine = (occurrence.task_id, occurrence.skipped)
        return any((self.hex(id), told) == mine for id, told in self.rows(OCCURRENCE, key))

    def move_entries(self, settled: Sequence[Settled], node_name: str) -> None:
        for batch in itertools.batched(settled, BATCH):
            self.move_batch(batch, node_name)

    def move_batch(self, settled: Sequence[Settled], node_name: str) -> None:
        text = json.dumps(self.settled_values(settled))
        self.run(SETTLE, (node_name, text), settled=self.SETTLED)

    def settled_values(self, settled: Iterable[Settled]) -> list[tuple[Any, ...]]:
        """With times as texts."""

        @functools.cache
        def text(moment: datetime.datetime | None) -> Any:
            value = self.time(moment)
            return value.isoformat() if isinstance(value, datetime.datetime) else value

        return [
            (each.id, text(each.next_due), text(each.last_due), each.last_task) for each in settled
        ]

    def note_run(self, name: str, task_id: str, node_name: str) -> None:
        self.run(NOTE_RUN, (task_id, node_name, self.backend, name))

    # Changing entries

    @contextlib.contextmanager
    def changing_entry(self, name: str) -> Iterator[PeriodicRow | None]:
        with self.transaction():
            found = self.rows(ENTRY_LOCKED, (self.backend, name))
            yield next(iter(self.entries_of(found)), None)
            self.tell_schedulers()

    def save_entry(self, row: PeriodicRow) -> None:
        values = [self.defined(getattr(row, column)) for column in DEFINED]
        if not self.run(CHANGE, (*values, self.backend, row.name)):
            self.run(CREATE, (self.backend, row.name, *values))

    def defined(self, value: Any) -> Any:
        return self.time(value) if isinstance(value, datetime.datetime) else value

    def forget_entry(self, name: str) -> None:
        self.run(FORGET, (self.backend, name))

    def tell_schedulers(self) -> None:
        """In the transaction that changes an entry; others look often enough."""

    # Deployments

    def deployments(self, fingerprint: str) -> Deployments:
        connection = self.connection
        found = Deployments({}, None, {}, {})
        for which, first_seen, holds, node_id, name in self.rows(
            DEPLOYMENTS, (self.backend, fingerprint)
        ):
            found.known[which] = nearest_utc(first_seen, connection)
            if holds:
                found = found._replace(holds=which)
            if node_id is not None:
                found.nodes[node_id] = which
                found.names[node_id] = name
        return found

    def hold_deployment(self, fingerprint: str) -> None:
        self.run(DEPLOYMENT_SEEN, (self.backend, fingerprint, False))
        self.run(DEPLOYMENT_HOLDS, (fingerprint, True, False, self.backend))

    def see_deployment(self, fingerprint: str, node_id: str) -> None:
        self.run(DEPLOYMENT_SEEN, (self.backend, fingerprint, False))
        self.run(DEPLOYMENT_OF_NODE, (fingerprint, node_id))

    # Retention

    def prune_occurrences(self, days: int) -> int:
        before = self.now() - datetime.timedelta(days=days)
        return self.run(OCCURRENCES_PRUNE, (self.backend, self.time(before)))
