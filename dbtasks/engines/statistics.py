"""The statistics' SQL: counts are added to rows by one statement.

A row per minute, queue and task path is what charts read; it is deleted after a day. The same is
added to a row of minute 0, which stays: the totals, which never decrease.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from ..fields import nearest_utc
from ..tally import COLUMNS
from .base import LeaseState
from .connection import Connected, marks

KEEP_MINUTES = 24 * 60
ROWS_PER_STATEMENT = 250  # so that no database has too many parameters

MOST = 2**62  # of a number that was written by hand; the column has room for more

ADD = """
INSERT INTO dbtasks_statistic (backend, minute, queue, task_path, {columns}) VALUES {rows}
{adding}"""
COUNTS = ", ".join(["%s"] * len(COLUMNS))
TOTAL_ROW = f"(%s, 0, %s, %s, {COUNTS})"
MINUTE_ROW = f"(%s, {{minute}}, %s, %s, {COUNTS})"
ON_CONFLICT = "ON CONFLICT (backend, minute, queue, task_path) DO UPDATE SET " + ", ".join(
    f"{name} = {{least}}(dbtasks_statistic.{name}, {MOST}) + excluded.{name}" for name in COLUMNS
)
ADDING = {
    "postgresql": ON_CONFLICT.format(least="LEAST"),
    "sqlite": ON_CONFLICT.format(least="MIN"),
    "mysql": "ON DUPLICATE KEY UPDATE "
    + ", ".join(
        f"{name} = LEAST(dbtasks_statistic.{name}, {MOST}) + VALUES({name})" for name in COLUMNS
    ),
}
# Whole minutes since 1970 by the database's clock.
MINUTE = {
    "postgresql": "FLOOR(EXTRACT(EPOCH FROM STATEMENT_TIMESTAMP()) / 60)::integer",
    "sqlite": "(CAST(strftime('%%s', 'now') AS INTEGER) / 60)",
    "mysql": "FLOOR(UNIX_TIMESTAMP() / 60)",
}
PLACES = """
SELECT queue, task_path FROM dbtasks_statistic WHERE backend = %s AND minute = 0
ORDER BY queue, task_path LIMIT %s"""
OLD_MINUTES = """
SELECT id FROM dbtasks_statistic
WHERE backend = %s AND minute > 0 AND minute < {minute} - %s
ORDER BY minute LIMIT %s{skip_locked}"""
LEASES = """
SELECT id, name, state, {now}, last_seen, expires_at FROM dbtasks_node WHERE backend = %s"""
DELETE = "DELETE FROM dbtasks_statistic WHERE id IN ({ids})"


class Statistics(Connected):
    """See base.Engine for what each method promises."""

    def add_counts(self, counts: Mapping[tuple[str, str], Sequence[int]]) -> None:
        # Totals first and all in one order, so that the statements of two nodes never cross.
        rows = [
            (row, (self.backend, *place, *numbers))
            for row in (TOTAL_ROW, self.minute_row)
            for place, numbers in sorted(counts.items())
        ]
        batches = list(itertools.batched(rows, ROWS_PER_STATEMENT))
        if len(batches) == 1:
            self.add_rows(batches[0])
        elif batches:
            with self.transaction():
                for batch in batches:
                    self.add_rows(batch)

    def add_rows(self, rows: Sequence[tuple[str, tuple[object, ...]]]) -> None:
        self.run(
            ADD,
            [value for _, values in rows for value in values],
            columns=", ".join(COLUMNS),
            rows=", ".join(row for row, _ in rows),
            adding=ADDING[self.connection.vendor],
        )

    @property
    def minute_row(self) -> str:
        return MINUTE_ROW.format(minute=MINUTE[self.connection.vendor])

    def counted_places(self, limit: int) -> set[tuple[str, str]]:
        return {(str(queue), str(path)) for queue, path in self.rows(PLACES, (self.backend, limit))}

    def leases(self) -> list[LeaseState]:
        connection = self.connection
        found = []
        for id, name, state, *times in self.rows(LEASES, (self.backend,)):
            now, last_seen, expires_at = (nearest_utc(value, connection) for value in times)
            age, left = (now - last_seen).total_seconds(), (expires_at - now).total_seconds()
            found.append(LeaseState(str(id), str(name), str(state), age, left))
        return found

    def prune_counts(self, limit: int = 1000) -> int:
        minute = MINUTE[self.connection.vendor]
        with self.transaction():
            parameters = (self.backend, KEEP_MINUTES, limit)
            ids = [row[0] for row in self.rows(OLD_MINUTES, parameters, minute=minute)]
            if ids:
                self.run(DELETE, ids, ids=marks(ids))
        return len(ids)
