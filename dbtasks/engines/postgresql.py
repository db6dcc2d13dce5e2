"""PostgreSQL: finishing and claiming are one statement and one commit.

The candidates come from a MATERIALIZED subquery. `WHERE id IN (SELECT … LIMIT n FOR UPDATE SKIP
LOCKED)` would not do: under a nested loop PostgreSQL runs the subquery again for each row, which
finds other rows unlocked, and updates more than n.

The update finds them where they lie (`ctid`): joined by their ids, a few hundred made PostgreSQL
read the whole table, as long as that had less than some hundred thousand rows. A row that somebody
changed between our snapshot and our lock lies elsewhere by now, and is left for the next claim.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from django.db import DatabaseError, DataError, InternalError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from ..fields import as_utc
from ..queues import QueueSelection
from .base import Claimant, Claimed, NewOccurrence, NewTask, Outcome, Survey, Watcher
from .direct import Direct
from .level import Level, Levels
from .network import Networked
from .notify import Listener, Notices, channel_name
from .periodic import OCCURRENCES
from .portable import (
    INSERT_COLUMNS,
    INSERT_INTO,
    INSERT_REST,
    PortableEngine,
    by_id,
    in_claim_order,
    insert_sql,
)
from .prepared import PreparedAlone
from .upkeep import bounded

# One queue: the index gives the rows in claim order, nothing is sorted.
CANDIDATES_OF_ONE_QUEUE = """
candidate AS MATERIALIZED (
    SELECT ctid AS place FROM dbtasks_scheduledtask
    WHERE backend = %s AND ready_queue = %s
    ORDER BY precedence, id LIMIT %s
    FOR UPDATE SKIP LOCKED
)"""

# Several queues: a loose index scan finds the head of each queue (a probe per queue, not per row).
# Those whose heads are the most urgent give the same share each: rows that were enqueued together
# lie together in the table, so that a claim writes few of its pages, and no queue waits for another
# one's whole batch. What is missing then comes from one queue after the other, as far as the limit;
# `bound` keeps a queue from giving rows of a lower priority than the next queue's head.
CANDIDATES_OF_SEVERAL_QUEUES = """
head AS (
    (SELECT ready_queue, precedence, id FROM dbtasks_scheduledtask
     WHERE backend = %s AND ready_queue IS NOT NULL
     ORDER BY backend, ready_queue, precedence, id LIMIT 1)
    UNION ALL
    SELECT following.* FROM head CROSS JOIN LATERAL (
        SELECT t.ready_queue, t.precedence, t.id FROM dbtasks_scheduledtask t
        WHERE t.backend = %s AND t.ready_queue > head.ready_queue
        ORDER BY t.backend, t.ready_queue, t.precedence, t.id LIMIT 1
    ) following
), served AS MATERIALIZED (
    SELECT ready_queue, precedence,
        lead(precedence) OVER (PARTITION BY preference ORDER BY precedence, id) AS bound,
        dense_rank() OVER (ORDER BY preference, precedence) AS level,
        count(*) OVER (PARTITION BY preference, precedence) AS sharers
    FROM (SELECT head.*, {preference} AS preference FROM head) preferred
    WHERE preference IS NOT NULL
    ORDER BY preference, precedence, id
), share AS MATERIALIZED (
    SELECT picked.id, picked.place FROM served CROSS JOIN LATERAL (
        SELECT t.id, t.ctid AS place FROM dbtasks_scheduledtask t
        WHERE t.backend = %s AND t.ready_queue = served.ready_queue
          AND t.precedence <= served.precedence
        ORDER BY t.precedence, t.id LIMIT ceil(%s / served.sharers::float8)
        FOR UPDATE SKIP LOCKED
    ) picked WHERE served.level = 1 LIMIT %s
), candidate AS MATERIALIZED (
    SELECT place FROM share
    UNION ALL
    SELECT picked.place FROM served CROSS JOIN LATERAL (
        SELECT t.ctid AS place FROM dbtasks_scheduledtask t
        WHERE t.backend = %s AND t.ready_queue = served.ready_queue
          AND t.precedence <= coalesce(served.bound, 32767)
          AND t.id NOT IN (SELECT id FROM share)
        ORDER BY t.precedence, t.id LIMIT %s
        FOR UPDATE SKIP LOCKED
    ) picked LIMIT %s
)"""

# The same where it is known which queues have tasks, all of the same priority.
CANDIDATES_OF_KNOWN_QUEUES = """
candidate AS MATERIALIZED (
    SELECT picked.place FROM unnest(%s::text[]) known (name) CROSS JOIN LATERAL (
        SELECT t.ctid AS place FROM dbtasks_scheduledtask t
        WHERE t.backend = %s AND t.ready_queue = known.name AND t.precedence <= %s
        ORDER BY t.precedence, t.id LIMIT %s
        FOR UPDATE SKIP LOCKED
    ) picked LIMIT %s
)"""

# Times as text: Python has no infinity, and one such row would hide all that came with it.
CLAIM = """
UPDATE dbtasks_scheduledtask t
SET status = 'RUNNING', ready_queue = NULL, claim_node = %s, claimed_by = %s,
    attempt = least(attempt, 2147483646) + 1, last_attempted_at = {now},
    started_at = coalesce(started_at, {now})
WHERE t.ctid = ANY (ARRAY(SELECT place FROM candidate))
RETURNING t.id, t.attempt, t.task_path, t.args, t.kwargs, t.queue, t.priority, t.run_after::text,
    t.enqueued_at::text, t.started_at::text, t.last_attempted_at::text, t.worker_ids, t.errors,
    t.failures, t.policy, t.periodic"""

# Of a claim from several queues, in each row: from how many it could choose.
CLAIM_OF_SEVERAL = CLAIM + ", (SELECT count(*) FROM served)"

# Of a single task that does not run again; arrays cost as much as the update of one row.
OUTCOME = """
finished AS (
    UPDATE dbtasks_scheduledtask t
    SET status = %s, return_value = %s, errors = %s, worker_ids = %s, failures = %s,
        delete_after = {now} + %s::float8 * interval '1 second', finished_at = {now},
        claim_node = NULL, claimed_by = NULL
    WHERE t.id = %s AND t.claimed_by = %s AND t.attempt = %s
    RETURNING t.id
)"""

# The lists come from selections: PostgreSQL takes them for short then, and looks for each row by
# its id. Knowing that they are hundreds, it would read a whole small table instead.
OUTCOMES = """
outcome AS MATERIALIZED (
    SELECT * FROM unnest(
        (SELECT %s::uuid[]), (SELECT %s::int[]), (SELECT %s::text[]), (SELECT %s::text[]),
        (SELECT %s::text[]), (SELECT %s::text[]), (SELECT %s::text[]), (SELECT %s::int[]),
        (SELECT %s::float8[]), (SELECT %s::float8[])
    ) AS o (id, attempt, worker, status, return_value, errors, worker_ids, failures, retry_in,
            retain)
), finished AS (
    UPDATE dbtasks_scheduledtask t
    SET status = o.status, return_value = o.return_value, errors = o.errors,
        worker_ids = o.worker_ids, failures = o.failures, claim_node = NULL, claimed_by = NULL,
        finished_at = CASE WHEN o.retry_in IS NULL THEN {now} END,
        started_at = CASE WHEN o.worker_ids <> '[]' THEN t.started_at END,
        last_attempted_at = CASE WHEN o.worker_ids <> '[]' THEN t.last_attempted_at END,
        ready_queue = CASE WHEN o.retry_in <= 0 THEN t.queue END,
        due_at = CASE WHEN o.retry_in > 0 THEN {now} + o.retry_in * interval '1 second' END,
        delete_after = CASE WHEN o.retry_in IS NULL
            THEN {now} + o.retain * interval '1 second' END
    FROM outcome o
    WHERE t.id = o.id AND t.claimed_by = o.worker AND t.attempt = o.attempt
    RETURNING t.id
)"""
OUTCOMES_OF = {False: OUTCOME, True: OUTCOMES}  # by whether there are several

COLUMNS = len(Claimed._fields)
ONE, KNOWN, SEVERAL = "one queue", "known queues", "several queues"
# By which queues are asked: the candidates, the claim, and the number of its columns.
CLAIM_FROM = {
    ONE: (CANDIDATES_OF_ONE_QUEUE, CLAIM, COLUMNS),
    KNOWN: (CANDIDATES_OF_KNOWN_QUEUES, CLAIM, COLUMNS),
    SEVERAL: (CANDIDATES_OF_SEVERAL_QUEUES, CLAIM_OF_SEVERAL, COLUMNS + 1),
}
CLAIMS = {
    asked: f"WITH RECURSIVE {candidates} {claim}"
    for asked, (candidates, claim, _) in CLAIM_FROM.items()
}
FINISH = {several: f"WITH {each} SELECT id FROM finished" for several, each in OUTCOMES_OF.items()}


def finish_and_claim_sql(outcomes: str, candidates: str, claim: str, columns: int) -> str:
    """The finished ids come first, as rows of NULLs: one result set carries both."""
    return (
        f"WITH RECURSIVE {outcomes}, {candidates}, claimed AS ({claim}) "
        f"SELECT id{', NULL' * (columns - 1)} FROM finished UNION ALL SELECT * FROM claimed"
    )


# By whether there are several outcomes, and by which queues are asked.
FINISH_AND_CLAIM = {
    (several, asked): finish_and_claim_sql(outcomes, *claim)
    for several, outcomes in OUTCOMES_OF.items()
    for asked, claim in CLAIM_FROM.items()
}
# With its limit as a number: PostgreSQL keeps no plan for a limit that it does not know.
FINISH_ONE_AND_CLAIM_ONE = finish_and_claim_sql(
    OUTCOME, CANDIDATES_OF_ONE_QUEUE.replace("LIMIT %s", "LIMIT 1"), CLAIM, COLUMNS
)
# Many rows: what they have in common comes once, and of the rest one value per column, which is
# cheaper to write, to send and to read than a value per row and column. JSON as we write it, and
# ids, have no newline, so that all of theirs can be one text.
INSERT_MANY = f"{INSERT_INTO} SELECT {{values}}, {INSERT_REST} FROM unnest({{lists}}) r ({{names}})"
LINES = "string_to_array(%s, chr(10))::{type}[]"
TYPES = {
    "id": "uuid",
    "priority": "smallint",
    "run_after": "timestamptz",
    "enqueued_at": "timestamptz",
    "due_at": "timestamptz",
}
WITHOUT_NEWLINES = frozenset({"id", "args", "kwargs", "policy"})

# What enqueue() inserts again and again in a transaction: a row to be run at once. The fewer
# parameters, the less there is to send and to read; $6 is the queue.
INSERT_READY = f"""{INSERT_INTO}
VALUES (%s, %s, %s, %s, %s, %s, %s, NULL, %s, %s, '', $6, NULL, {INSERT_REST})"""

# The notification rides in the statement that inserts: no round trip, no commit of its own.
INSERT_AND_NOTIFY = (
    "WITH inserted AS ({insert}) SELECT pg_notify(%s, queue) FROM unnest(%s::text[]) queue"
)
NOTIFY = "SELECT pg_notify(%s, '')"
# The query of a worker that was killed ends after so long, and gives its locks back. Through a
# transaction pooler the setting reaches connections that others use as well: it does them no harm.
NOTICE_DEATH = """
SELECT set_config('client_connection_check_interval', '2s', false)
WHERE current_setting('client_connection_check_interval') = '0'"""
SETTLED = """(
    SELECT (o->>0)::bigint AS id, (o->>1)::timestamptz AS next_due,
        (o->>2)::timestamptz AS last_due, (o->>3)::uuid AS last_task
    FROM json_array_elements(%s::json) o
)"""
# As an array for each column: a value per row and column takes three times as long to read.
OCCURRENCES_OF_LISTS = """
SELECT %s, o.name, o.due_at, o.task_id, {greatest}({now}, o.due_at), %s, o.skipped
FROM unnest(%s::text[], %s::timestamptz[], %s::uuid[], %s::text[])
    AS o (name, due_at, task_id, skipped)"""
# To bring a thousand ids here and to send them back costs more than to delete their rows.
PRUNE_AT_ONCE = """
DELETE FROM dbtasks_scheduledtask WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM dbtasks_scheduledtask
    WHERE backend = %s AND delete_after <= {now} ORDER BY delete_after LIMIT %s
    FOR UPDATE SKIP LOCKED
))"""
TRY_LOCK = "SELECT pg_try_advisory_xact_lock(%s)"


class Candidates(NamedTuple):
    """Which queues a claim asks, its parameters, and what its text still needs."""

    asked: str
    parameters: list[Any]
    more: Mapping[str, str] = {}


class PostgreSQLEngine(Networked, PortableEngine):
    NOW = "statement_timestamp()"  # stable, unlike clock_timestamp(): an index can be asked for it
    IN_SECONDS = "statement_timestamp() + %s * interval '1 second'"
    SETTLED = SETTLED
    prune_pause = 5.0  # its batches are over soon
    worth_claiming = 400  # of many queues: each is a probe, and the statement is planned each time

    def __init__(self, alias: str, backend: str) -> None:
        super().__init__(alias, backend)
        self.channel = channel_name(backend)
        self.notices = Notices()
        self.finish_and_claim_one = PreparedAlone(self.sql(FINISH_ONE_AND_CLAIM_ONE))
        self.insert_ready = Direct(INSERT_READY)
        self.levels = Levels()

    # Reading

    def rows(self, text: str, parameters: Sequence[Any] = (), **more: str) -> list[tuple[Any, ...]]:
        try:
            return super().rows(text, parameters, **more)
        except DataError as error:
            if not is_no_time(error) or not text.lstrip().startswith("SELECT"):
                raise
        with self.connection.cursor() as cursor:
            read_times_as_text(cursor)
            cursor.execute(self.sql(text, **more), parameters)
            return list(cursor.fetchall())

    # Producing

    def time(self, value: datetime.datetime | None) -> Any:
        return None if value is None else as_utc(value)

    def insert_batch(self, rows: Sequence[NewTask], notify: bool) -> None:
        connection = self.connection
        told = self.notices.due(connection, {row.queue for row in rows}) if notify else []
        alone = len(rows) == 1 and not told and connection.in_atomic_block
        if alone and self.is_inserted(rows[0]):
            return
        insert, parameters = insertion(map(self.insert_values, rows))
        if told:
            self.run(INSERT_AND_NOTIFY, [*parameters, self.channel, told], insert=insert)
        else:
            self.run(insert, parameters)

    def is_inserted(self, row: NewTask) -> bool:
        """Whether the statement without a cursor could do it."""
        if row.run_after or row.due_at or row.periodic:
            return False
        call = (row.id, row.task_path, row.args, row.kwargs, self.backend, row.queue, row.priority)
        enqueued_at = as_utc(row.enqueued_at).isoformat()
        return self.insert_ready.run(self.connection, (*call, enqueued_at, row.policy))

    # Consuming

    def candidates(self, queues: QueueSelection, limit: int) -> Candidates:
        if queues.only is not None:
            return Candidates(ONE, [self.backend, queues.only, limit])
        if (level := self.levels.recall(queues)) is not None:
            if level.is_one:
                return Candidates(ONE, [self.backend, level.names[0], limit])
            names, share = list(level.names), level.share(limit)
            return Candidates(KNOWN, [names, self.backend, level.precedence, share, limit])
        preference, parameters = queues.sql("ready_queue")
        several = [self.backend, limit, limit]
        return Candidates(
            SEVERAL,
            [self.backend, self.backend, *parameters, *several, *several],
            {"preference": preference},
        )

    def claim(self, who: Claimant, queues: QueueSelection, limit: int = 1) -> list[Claimed]:
        asked, parameters, more = self.candidates(queues, limit)
        rows = self.rows(CLAIMS[asked], [*parameters, who.node, who.worker], **more)
        if not rows and asked != SEVERAL and queues.only is None:
            self.levels.forget()
            return self.claim(who, queues, limit)
        return self.claimed(rows, queues, limit, asked)

    def finish(self, outcomes: Sequence[Outcome]) -> set[str]:
        if not outcomes:
            return set()
        several, parameters = outcome_parameters(outcomes)
        return {self.hex(row[0]) for row in self.rows(FINISH[several], parameters)}

    def finish_and_claim(
        self, outcomes: Sequence[Outcome], who: Claimant, queues: QueueSelection, limit: int = 1
    ) -> tuple[set[str], list[Claimed]]:
        if not outcomes:
            return set(), self.claim(who, queues, limit)
        several, done = outcome_parameters(outcomes)
        asked, parameters, more = self.candidates(queues, limit)
        rows = None
        if limit == 1 and not several and asked == ONE:
            one_queue = parameters[:-1]  # the limit stands in the text
            values = [*done, *one_queue, who.node, who.worker]
            rows = self.finish_and_claim_one.rows(self.connection, values)
        if rows is None:
            text = FINISH_AND_CLAIM[several, asked]
            rows = self.rows(text, [*done, *parameters, who.node, who.worker], **more)
        finished = {self.hex(row[0]) for row in rows if row[1] is None}
        # Without any row: to ask all queues here, after a commit, would risk what is written.
        rows = [row for row in rows if row[1] is not None]
        return finished, self.claimed(rows, queues, limit, asked)

    def claimed(
        self, rows: list[tuple[Any, ...]], queues: QueueSelection, limit: int, asked: str
    ) -> list[Claimed]:
        claimed = [Claimed(self.hex(row[0]), *row[1:COLUMNS]) for row in rows]
        claimed = in_claim_order(claimed, queues)
        if asked == SEVERAL and claimed:
            self.note_level(claimed, queues, limit, served=rows[0][COLUMNS])
        elif not claimed or (asked == KNOWN and len(claimed) < limit):
            self.levels.forget()
        return claimed

    def note_level(
        self, claimed: list[Claimed], queues: QueueSelection, limit: int, served: int
    ) -> None:
        """Remembers the queues if all that have tasks gave their shares, and nothing else."""
        names = tuple(dict.fromkeys(row.queue for row in claimed))
        precedence = None if served == 1 else -claimed[0].priority
        level = Level(queues, names, precedence, time.monotonic())
        if served == 1 or (len(names) == served and level.shared_evenly(claimed, limit)):
            self.levels.remember(level)
        else:
            self.levels.forget()

    def release(self, who: Claimant, rows: Iterable[tuple[str, int]] | None = None) -> int:
        """Tells the other nodes too: their idle workers may be the only ones."""
        released = super().release(who, rows)
        if released:
            self.tell_schedulers()
        return released

    def tell_schedulers(self) -> None:
        self.rows(NOTIFY, (self.channel,))

    def report(self, node_id: str, workers: Sequence[dict[str, Any]]) -> Survey:
        """In one transaction: an idle node should not cost the database four."""
        with transaction.atomic(using=self.alias):
            return super().report(node_id, workers)

    def prune(self, limit: int = 1000) -> int:
        return self.run(PRUNE_AT_ONCE, (self.backend, limit))

    # Periodic

    def run_occurrences(self, occurrences: Sequence[NewOccurrence], node_name: str) -> int:
        values = [(each.name, each.due_at, each.task_id, each.skipped) for each in occurrences]
        lists = [list(column) for column in zip(*values, strict=True)]
        rows = self.sql(OCCURRENCES_OF_LISTS)
        return self.run(OCCURRENCES, [self.backend, node_name, *lists], rows=rows)

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[bool]:
        """The lock ends with the transaction, so that no connection pooler can strand it."""
        with transaction.atomic(using=self.alias):
            ((got,),) = self.rows(TRY_LOCK, (lock_key(self.backend, name),))
            yield bool(got)

    # The database itself

    def watcher(self) -> Watcher:
        return Listener(self, self.channel)

    def prepare_connection(self, connection: BaseDatabaseWrapper) -> None:
        super().prepare_connection(connection)
        raw: Any = connection.connection
        if raw.info.server_version < 140000 or not connection.get_autocommit():
            return
        # Not every system can tell, and then PostgreSQL refuses the setting.
        with contextlib.suppress(DatabaseError), connection.cursor() as cursor:
            cursor.execute(NOTICE_DEATH)

    def unavailable(self, error: BaseException) -> str | None:
        if isinstance(error, InternalError) and "read-only" in str(error):
            return f"database {self.alias!r} is read-only"
        return super().unavailable(error)


def insertion(rows: Iterable[tuple[Any, ...]]) -> tuple[str, list[Any]]:
    """The statement that inserts these rows, of INSERT_COLUMNS, and its parameters."""
    columns = list(zip(*rows, strict=True))
    count = len(columns[0])
    if count == 1:
        return insert_sql(1), [column[0] for column in columns]
    common: list[Any] = []
    lists: list[Any] = []
    shapes = []
    for name, column in zip(INSERT_COLUMNS, columns, strict=True):
        if column.count(column[0]) == count:
            common.append(column[0])
            shapes.append("")
        elif name in WITHOUT_NEWLINES and (text := "\n".join(column)).count("\n") == count - 1:
            lists.append(text)
            shapes.append(LINES)
        else:
            lists.append(list(column))
            shapes.append("%s::{type}[]")
    return insert_many_sql(tuple(shapes)), [*common, *lists]


@functools.lru_cache(maxsize=256)
def insert_many_sql(shapes: tuple[str, ...]) -> str:
    """`shapes`: by column, how its list is written; "" where all rows have the same value."""
    types = [TYPES.get(name, "text") for name in INSERT_COLUMNS]
    columns = list(zip(INSERT_COLUMNS, types, shapes, strict=True))
    return INSERT_MANY.format(
        values=", ".join(f"r.{name}" if shape else f"%s::{type}" for name, type, shape in columns),
        lists=", ".join(shape.format(type=type) for _, type, shape in columns if shape),
        names=", ".join(name for name, _, shape in columns if shape),
    )


def outcome_parameters(outcomes: Sequence[Outcome]) -> tuple[bool, list[Any]]:
    """Whether they are written as several, and the parameters."""
    first = outcomes[0]
    if len(outcomes) > 1 or first.retry_in is not None:
        return True, outcome_arrays(outcomes)
    values = [first.status, first.return_value, first.errors, first.worker_ids, first.failures]
    return False, [*values, bounded(first.retain), first.id, first.worker, first.attempt]


def outcome_arrays(outcomes: Sequence[Outcome]) -> list[list[Any]]:
    rows = (
        outcome._replace(retry_in=bounded(outcome.retry_in), retain=bounded(outcome.retain))
        for outcome in by_id(outcomes)
    )
    return [list(column) for column in zip(*rows, strict=True)]


def is_no_time(error: DataError) -> bool:
    """Whether a result has a time that Python does not, so that nothing of it can be read."""
    cause = error.__cause__  # the server did not complain
    return getattr(cause, "sqlstate", "") is None and "timestamp" in str(cause)


def read_times_as_text(cursor: Any) -> None:
    from psycopg.types.string import TextLoader

    cursor.adapters.register_loader("timestamptz", TextLoader)


def lock_key(backend: str, name: str) -> int:
    """A bigint; advisory locks are kept per database."""
    digest = hashlib.sha256(f"dbtasks/{backend}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)
