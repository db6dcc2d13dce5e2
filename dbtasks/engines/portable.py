"""Inserting, claiming and finishing as far as the databases do them alike."""

from __future__ import annotations

import abc
import functools
import itertools
import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from ..fields import dump_json, utc_value
from ..queues import QueueSelection
from .base import Claimant, Claimed, Glance, NewTask, Outcome
from .connection import marks
from .level import MOST_SHARERS, Level, Levels
from .operations import Operations
from .overview import Overview
from .statistics import Statistics
from .upkeep import RELEASE, Upkeep, bounded

logger = logging.getLogger("dbtasks")

INSERT_BATCH = 500
UNREADABLE_DUE = 1.0  # seconds until we look again after a row whose time is no time
STATEMENT_LENGTH = 256 * 1024  # characters of outcomes in one statement

INSERT_COLUMNS = (
    "id",
    "task_path",
    "args",
    "kwargs",
    "backend",
    "queue",
    "priority",
    "run_after",
    "enqueued_at",
    "policy",
    "periodic",
    "ready_queue",
    "due_at",
)
INSERT_INTO = f"""
INSERT INTO dbtasks_scheduledtask (
    {", ".join(INSERT_COLUMNS)}, status, worker_ids, errors, attempt, failures, crashes
)"""
INSERT_REST = "'READY', '[]', '[]', 0, 0, 0"
INSERT_ROW = f"({', '.join(['%s'] * len(INSERT_COLUMNS))}, {INSERT_REST})"

FINISH = """
UPDATE dbtasks_scheduledtask
SET status = %s, finished_at = {now}, return_value = %s, errors = %s, worker_ids = %s,
    failures = %s, delete_after = {in_seconds}, claim_node = NULL, claimed_by = NULL
WHERE id = %s AND claimed_by = %s AND attempt = %s"""

# As FINISH, for a row that runs again: at once, or deferred. One whose attempts were not counted
# was never started.
RETRY = """
UPDATE dbtasks_scheduledtask
SET status = 'READY', errors = %s, worker_ids = %s, failures = %s,
    started_at = CASE WHEN %s = '[]' THEN NULL ELSE started_at END,
    last_attempted_at = CASE WHEN %s = '[]' THEN NULL ELSE last_attempted_at END,
    ready_queue = CASE WHEN %s > 0 THEN NULL ELSE queue END,
    due_at = CASE WHEN %s > 0 THEN {in_seconds} END, claim_node = NULL, claimed_by = NULL
WHERE id = %s AND claimed_by = %s AND attempt = %s"""

STORED = "SELECT id, worker_ids, errors FROM dbtasks_scheduledtask WHERE id IN ({ids})"

RELEASE_ROWS = RELEASE + " AND attempt = %s AND id IN ({ids})"

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
READY_NAMES = READY_QUEUES + " SELECT name FROM ready WHERE name IS NOT NULL"
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

# Of a row that no worker can run: a queue that gave it again and again would stand still.
REFUSE = """
UPDATE dbtasks_scheduledtask
SET status = 'FAILED', finished_at = {now}, errors = %s, worker_ids = '[]', ready_queue = NULL,
    due_at = NULL, claim_node = NULL, claimed_by = NULL
WHERE id = %s"""
ROW_IS_BAD = "dbtasks.exceptions.BadRow"

# Three index probes (of times that Python has; promote_due finds all), and two tables with few rows
# at most: a new pause has a higher id than all before it, so their number and sum tell any change.
# For MariaDB `>= ''` is one probe; IS NOT NULL would be a scan of all such rows.
GLANCE = """
SELECT {now},
    (SELECT MIN(due_at) FROM dbtasks_scheduledtask
     WHERE backend = %s AND due_at > '1000-01-01' AND due_at < '9999-12-01'),
    (SELECT MIN(ready_queue) FROM dbtasks_scheduledtask
     WHERE backend = %s AND ready_queue >= ''),
    (SELECT SUM(id + 1000000000.0) FROM dbtasks_pause WHERE backend = %s),
    (SELECT COUNT(*) FROM dbtasks_cancellation WHERE backend = %s),
    (SELECT MIN(next_due) FROM dbtasks_periodictask
     WHERE backend = %s AND next_due > '1000-01-01')"""


@functools.lru_cache(maxsize=16)  # long texts
def insert_sql(rows: int) -> str:
    return f"{INSERT_INTO} VALUES {', '.join([INSERT_ROW] * rows)}"


class Head(NamedTuple):
    """A queue that has claimable rows, in the order in which claims ask the queues."""

    preference: int
    precedence: int
    id: str
    queue: str


class PortableEngine(Operations, Overview, Statistics, Upkeep):
    """Base of the engines. See base.Engine for what each method promises."""

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
        values = itertools.chain.from_iterable(map(self.insert_values, rows))
        self.run(insert_sql(len(rows)), list(values))

    def insert_values(self, row: NewTask) -> tuple[Any, ...]:
        """As INSERT_COLUMNS names them."""
        return (
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

    # Consuming

    def ready_queues(self) -> list[str]:
        return [str(name) for (name,) in self.rows(READY_NAMES, (self.backend, self.backend))]

    def heads(self, queues: QueueSelection) -> list[Head]:
        preference, parameters = queues.sql("name")
        rows = self.rows(HEADS, [self.backend] * 4 + parameters, preference=preference)
        # Between the probes a queue can run empty.
        return sorted(
            Head(int(wanted), whole(precedence), self.hex(id), name)
            for name, wanted, precedence, id in rows
            if precedence is not None
        )

    def finish(self, outcomes: Sequence[Outcome]) -> set[str]:
        if len(outcomes) <= 1:
            return self.write_outcomes(outcomes)
        with self.transaction():
            return self.write_outcomes(outcomes)

    def write_outcomes(self, outcomes: Iterable[Outcome]) -> set[str]:
        """Inside a transaction if there are several; returns the ids of those that were written."""
        ended: list[Outcome] = []
        written: set[str] = set()
        for outcome in by_id(outcomes):
            if outcome.retry_in is None:
                ended.append(outcome)
            elif self.write_outcome(outcome):
                written.add(outcome.id)
        for batch in batches(ended):
            written |= self.finish_many(batch) if len(batch) > 1 else self.write_each(batch)
        return written

    def write_each(self, outcomes: Iterable[Outcome]) -> set[str]:
        return {outcome.id for outcome in outcomes if self.write_outcome(outcome)}

    def finish_many(self, outcomes: Sequence[Outcome]) -> set[str]:
        """As write_each, of tasks that do not run again."""
        return self.write_each(outcomes)

    def write_outcome(self, outcome: Outcome) -> bool:
        fence = (outcome.id, outcome.worker, outcome.attempt)
        if outcome.retry_in is not None:
            done = outcome.worker_ids
            values: tuple[Any, ...] = (outcome.errors, done, outcome.failures, done, done)
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

    def stored(self, outcomes: Sequence[Outcome]) -> set[str]:
        ids = [outcome.id for outcome in outcomes]
        rows = self.rows(STORED, ids, ids=marks(ids))
        told = {self.hex(id): (str(workers), str(errors)) for id, workers, errors in rows}
        return {each.id for each in outcomes if each.id in told and is_told(each, *told[each.id])}

    def release(self, who: Claimant, rows: Iterable[tuple[str, int]] | None = None) -> int:
        if rows is None:
            return self.run(RELEASE, (who.node, who.worker))
        by_attempt: dict[int, list[str]] = {}
        for id, attempt in sorted(rows):
            by_attempt.setdefault(attempt, []).append(id)
        return sum(
            self.run(
                RELEASE_ROWS,
                (who.node, who.worker, attempt, *ids),
                ids=marks(ids),
            )
            for attempt, ids in by_attempt.items()
        )

    def glance(self) -> Glance:
        ((now, due, ready, pauses, cancels, periodic),) = self.rows(GLANCE, (self.backend,) * 5)
        due_in = None if due is None else self.seconds_between(now, due)
        periodic_in = None if periodic is None else self.seconds_between(now, periodic)
        clock = utc_value(now, self.connection)
        revision = whole(pauses) % 2**64
        return Glance(ready is not None, due_in, revision, int(cancels), periodic_in, clock)

    def seconds_between(self, now: Any, due: Any) -> float:
        connection = self.connection
        try:
            return (utc_value(due, connection) - utc_value(now, connection)).total_seconds()
        except (ValueError, TypeError, AttributeError):
            return UNREADABLE_DUE

    def ready_count(self, queues: QueueSelection, limit: int) -> int:
        names = [queues.only] if queues.only else [head.queue for head in self.heads(queues)]
        total = 0
        for name in names:
            ((count,),) = self.rows(READY_COUNT, (self.backend, name, limit - total))
            total += int(count)
            if total >= limit:
                break
        return total


class ByQueueEngine(PortableEngine, abc.ABC):
    """Base of the engines that claim from one queue after the other."""

    def __init__(self, alias: str, backend: str) -> None:
        super().__init__(alias, backend)
        self.levels = Levels()

    def sound(self, rows: Iterable[tuple[Any, ...]]) -> list[Claimed]:
        """The claimed rows that can be run. The others fail here, each with what is wrong."""
        claimed = []
        for row in rows:
            if problem := self.problem(row):
                told = f"{ROW_IS_BAD}: {problem}\n"
                error = {"exception_class_path": ROW_IS_BAD, "traceback": told}
                self.run(REFUSE, (dump_json([error]), row[0]))
                logger.error("a row of dbtasks_scheduledtask cannot be run: %s", problem)
            else:
                claimed.append(Claimed(self.hex(row[0]), *row[1:]))
        return claimed

    def problem(self, row: tuple[Any, ...]) -> str | None:
        """Why a row cannot be run by anyone: it was not written by us."""
        return None if is_id(self.hex(row[0])) else f"its id {row[0]!r:.100} is no UUID"

    @abc.abstractmethod
    def claim_queue(
        self, who: Claimant, queue: str, limit: int, lowest: int | None
    ) -> list[Claimed]:
        """Claims from one queue; `lowest`: only rows of at most that precedence value."""

    def claim_from(self, who: Claimant, queues: QueueSelection, limit: int) -> list[Claimed]:
        """Claims by the order of the queues' heads; no queue overtakes another's."""
        if queues.only is not None:
            return in_claim_order(self.claim_queue(who, queues.only, limit, None), queues)
        if (level := self.levels.recall(queues)) is None:
            return self.claim_from_heads(who, self.heads(queues), queues, limit)
        claimed = self.claim_level(who, level, limit)
        if len(claimed) < limit and not (claimed and level.is_one):
            self.levels.forget()
            claimed += self.claim_from_heads(who, self.heads(queues), queues, limit - len(claimed))
        return in_claim_order(claimed, queues)

    def claim_from_heads(
        self, who: Claimant, heads: Sequence[Head], queues: QueueSelection, limit: int
    ) -> list[Claimed]:
        if len(heads) == 1:
            self.levels.remember(self.level_of(heads, queues))
        return in_claim_order(self.claim_in_turn(who, heads, limit), queues)

    def level_of(self, heads: Sequence[Head], queues: QueueSelection) -> Level:
        """The most urgent of these queues, so many as one statement can ask."""
        names = [head.queue for head in heads if head[:2] == heads[0][:2]][:MOST_SHARERS]
        precedence = None if len(heads) == 1 else heads[0].precedence
        return Level(queues, tuple(names), precedence, self.heads_known_since())

    def claim_level(self, who: Claimant, level: Level, limit: int) -> list[Claimed]:
        """Claims from these queues alike."""
        return self.claim_queue(who, level.names[0], limit, None)

    def heads_known_since(self) -> float:
        return time.monotonic()

    def claim_in_turn(self, who: Claimant, heads: Sequence[Head], limit: int) -> list[Claimed]:
        """Claims from queue after queue, from each as far as the next one's head."""
        claimed: list[Claimed] = []
        for head, following in itertools.zip_longest(heads, heads[1:]):
            same_group = following is not None and following.preference == head.preference
            lowest = following.precedence if same_group else None
            claimed += self.claim_queue(who, head.queue, limit - len(claimed), lowest)
            if len(claimed) >= limit:
                break
        return claimed


def is_id(value: str) -> bool:
    """Whether it is an id as the engines use it: 32 hexadecimal digits."""
    try:
        return len(value) == 32 and len(bytes.fromhex(value)) == 16
    except ValueError:
        return False


def whole(number: Any) -> int:
    """SQLite has infinity, and text in a column of numbers."""
    try:
        return int(number)
    except (ValueError, TypeError, OverflowError):
        return 0


def in_claim_order(claimed: list[Claimed], queues: QueueSelection) -> list[Claimed]:
    """By preference, priority and age: what UPDATE … RETURNING returns has no order."""
    if len(claimed) > 1:
        claimed.sort(key=lambda row: (queues.preference(row.queue) or 0, -row.priority, row.id))
    return claimed


def batches(outcomes: Iterable[Outcome]) -> Iterator[list[Outcome]]:
    """So many at a time that no statement comes near what a server takes at once."""
    batch: list[Outcome] = []
    length = 0
    for outcome in outcomes:
        size = len(outcome.return_value or "") + len(outcome.errors) + len(outcome.worker_ids)
        if batch and length + size > STATEMENT_LENGTH:
            yield batch
            batch, length = [], 0
        batch.append(outcome)
        length += size
    if batch:
        yield batch


def outcomes_as_json(outcomes: Iterable[Outcome]) -> str:
    """A list of lists, which an UPDATE can join; without `retry_in`."""
    return json.dumps(
        [
            (
                outcome.id,
                outcome.attempt,
                outcome.worker,
                outcome.status,
                outcome.return_value,
                outcome.errors,
                outcome.worker_ids,
                outcome.failures,
                bounded(outcome.retain),
            )
            for outcome in outcomes
        ],
        separators=(",", ":"),
    )


def is_told(outcome: Outcome, worker_ids: str, errors: str) -> bool:
    """Whether a row's attempts tell of this outcome.

    Whoever takes us for dead writes our name as well, and beside it an error of his own. A row that
    runs again may have lived through more since.
    """
    if outcome.retry_in is None:
        return (worker_ids, errors) == (outcome.worker_ids, outcome.errors)
    return begins_with(worker_ids, outcome.worker_ids) and begins_with(errors, outcome.errors)


def begins_with(text: str, start: str) -> bool:
    """Whether one JSON list begins with the items of another; both as we write them."""
    return text == start or text.startswith(start.removesuffix("]") + ",")


def by_id(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """As a rescue does it: whoever locks the same rows does so in the same order."""
    return sorted(outcomes, key=attrgetter("id"))
