"""SQLite 3.35+: one writer at a time, so each change is one statement or one IMMEDIATE transaction.

A transaction that begins with a read and then writes can fail at once with "database is locked"
whatever the timeout (SQLite cannot wait without risking a deadlock); IMMEDIATE takes the write
lock at the beginning, and waiting for that is what the timeout is for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

from django.db import OperationalError, ProgrammingError

from ..models import PATH_MAX_LENGTH, QUEUE_MAX_LENGTH
from ..queues import QueueSelection
from .base import Claimant, Claimed, Outcome, Watcher
from .connection import plain_transaction
from .inotify import FileWatch
from .level import Level
from .portable import ByQueueEngine, Head, in_claim_order, is_id, outcomes_as_json

# SQLite stores anything anywhere. Times as text: one that is none must not hide the other rows.
CLAIM = """
UPDATE dbtasks_scheduledtask
SET status = 'RUNNING', ready_queue = NULL, claim_node = %s, claimed_by = %s,
    attempt = MIN(CAST(attempt AS INTEGER), 2147483646) + 1, last_attempted_at = {now},
    started_at = COALESCE(started_at, {now})
WHERE rowid IN ({candidates})
RETURNING id, attempt, task_path, args, kwargs, queue, priority, CAST(run_after AS TEXT),
    CAST(enqueued_at AS TEXT), CAST(started_at AS TEXT), CAST(last_attempted_at AS TEXT),
    worker_ids, errors, failures, policy, periodic"""
# By the numbers that SQLite gives to rows: by their ids, each would be looked for once more.
OF_ONE_QUEUE = """
    SELECT rowid FROM dbtasks_scheduledtask
    WHERE backend = %s AND ready_queue = %s{bound}
    ORDER BY precedence, id LIMIT %s"""
SHARE = f"SELECT rowid FROM ({OF_ONE_QUEUE.format(bound=' AND precedence <= %s')})"
OF_SHARES = "SELECT rowid FROM ({shares} LIMIT %s)"

# As portable.FINISH, of many rows: parameters that are bound one by one cost more than the update.
FINISH_MANY = """
WITH outcome AS MATERIALIZED (
    SELECT
        json_extract(value, '$[0]') AS id,
        json_extract(value, '$[1]') AS attempt,
        json_extract(value, '$[2]') AS worker,
        json_extract(value, '$[3]') AS status,
        json_extract(value, '$[4]') AS return_value,
        json_extract(value, '$[5]') AS errors,
        json_extract(value, '$[6]') AS worker_ids,
        json_extract(value, '$[7]') AS failures,
        json_extract(value, '$[8]') || ' seconds' AS retain
    FROM json_each(%s)
)
UPDATE dbtasks_scheduledtask AS t
SET status = o.status, finished_at = {now}, return_value = o.return_value, errors = o.errors,
    worker_ids = o.worker_ids, failures = o.failures, claim_node = NULL, claimed_by = NULL,
    delete_after = strftime('%%Y-%%m-%%d %%H:%%M:%%f', 'now', o.retain)
FROM outcome AS o
WHERE t.id = o.id AND t.claimed_by = o.worker AND t.attempt = o.attempt
RETURNING id"""

PRUNE_AT_ONCE = """
DELETE FROM dbtasks_scheduledtask WHERE rowid IN (
    SELECT rowid FROM dbtasks_scheduledtask
    WHERE backend = %s AND delete_after <= {now} ORDER BY delete_after LIMIT %s
)"""
SETTLED = """(
    SELECT json_extract(value, '$[0]') AS id, json_extract(value, '$[1]') AS next_due,
        json_extract(value, '$[2]') AS last_due, json_extract(value, '$[3]') AS last_task
    FROM json_each(%s)
)"""
TEXTS = itemgetter(
    *map(
        Claimed._fields.index,
        ("task_path", "args", "kwargs", "queue", "worker_ids", "errors", "policy_text", "periodic"),
    )
)
PATH, QUEUE = map(Claimed._fields.index, ("task_path", "queue"))
NUMBERS = itemgetter(*map(Claimed._fields.index, ("priority", "failures")))

POLL = 0.02  # seconds between two questions while there are answers, or where nothing tells us
FIRST_ECHO = 0.001  # seconds from a write to the question whether it is committed
AT_REST = 0.03  # seconds; whoever has waited so long in vain waits for the next write
QUIET = 0.5  # seconds between two questions where no write was seen


class SQLiteEngine(ByQueueEngine):
    NOW = "strftime('%%Y-%%m-%%d %%H:%%M:%%f', 'now')"
    IN_SECONDS = "strftime('%%Y-%%m-%%d %%H:%%M:%%f', 'now', %s || ' seconds')"
    LOCK = ""  # the transaction has the whole database
    SKIP_LOCKED = ""
    GREATEST = "MAX"
    SETTLED = SETTLED

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        with plain_transaction(self.connection, "BEGIN IMMEDIATE"):
            yield

    def rows(self, text: str, parameters: Sequence[Any] = (), **more: str) -> list[tuple[Any, ...]]:
        try:
            return super().rows(text, parameters, **more)
        except OperationalError as error:
            if not is_no_text(error) or not text.lstrip().startswith("SELECT"):
                raise
        with reading_all(self.connection):
            return super().rows(text, parameters, **more)

    def claim(self, who: Claimant, queues: QueueSelection, limit: int = 1) -> list[Claimed]:
        try:
            return self.claim_now(who, queues, limit)
        except OperationalError as error:
            if not is_no_text(error):
                raise
        self.release(who)  # a statement that has begun to give rows has changed them all
        with reading_all(self.connection):
            return self.claim_now(who, queues, limit)

    def claim_now(self, who: Claimant, queues: QueueSelection, limit: int) -> list[Claimed]:
        # Without anything ready this reads only: idle workers leave the write lock alone.
        if queues.only is not None:
            return self.claim_from(who, queues, limit)
        if self.levels.recall(queues) is not None:
            with self.transaction():
                return self.claim_from(who, queues, limit)
        heads = self.heads(queues)
        if not heads:
            return []
        with self.transaction():  # or an error at one queue would hide what another one gave
            return self.claim_from_heads(who, heads, queues, limit)

    def finish_and_claim(
        self, outcomes: Sequence[Outcome], who: Claimant, queues: QueueSelection, limit: int = 1
    ) -> tuple[set[str], list[Claimed]]:
        if not outcomes:
            return set(), self.claim(who, queues, limit)
        try:
            with self.transaction():
                finished = self.write_outcomes(outcomes)
                return finished, self.claim_from(who, queues, limit)
        except OperationalError as error:
            if not is_no_text(error):
                raise
        return self.finish(outcomes), self.claim(who, queues, limit)

    def claim_queue(
        self, who: Claimant, queue: str, limit: int, lowest: int | None
    ) -> list[Claimed]:
        bound = "" if lowest is None else f" AND precedence <= {int(lowest)}"
        candidates = OF_ONE_QUEUE.format(bound=bound)
        parameters = (who.node, who.worker, self.backend, queue, limit)
        while rows := self.rows(CLAIM, parameters, candidates=candidates):
            if claimed := self.sound(rows):
                return claimed
        return []

    def claim_from_heads(
        self, who: Claimant, heads: Sequence[Head], queues: QueueSelection, limit: int
    ) -> list[Claimed]:
        """The most urgent queues give the same share each, then all others what is missing."""
        if limit == 1 or len(heads) < 2:
            return super().claim_from_heads(who, heads, queues, limit)
        level = self.level_of(heads[:limit], queues)
        claimed = self.claim_level(who, level, limit)
        if len(claimed) < limit:
            claimed += self.claim_in_turn(who, self.heads(queues), limit - len(claimed))
        elif len(level.names) == len(heads):
            self.levels.remember(level)
        return in_claim_order(claimed, queues)

    def claim_level(self, who: Claimant, level: Level, limit: int) -> list[Claimed]:
        if level.is_one:
            return super().claim_level(who, level, limit)
        candidates = OF_SHARES.format(shares=" UNION ALL ".join([SHARE] * len(level.names)))
        rest = (level.precedence, level.share(limit))
        shares = [value for name in level.names for value in (self.backend, name, *rest)]
        parameters = (who.node, who.worker, *shares, limit)
        return self.sound(self.rows(CLAIM, parameters, candidates=candidates))

    def problem(self, row: tuple[Any, ...]) -> str | None:
        if type(row[0]) is not str or not is_id(row[0]):
            return f"its id {row[0]!r:.100} is no UUID as Django stores it"
        if set(map(type, TEXTS(row))) != {str}:
            return "a column of text has something else"
        if len(row[PATH]) > PATH_MAX_LENGTH or len(row[QUEUE]) > QUEUE_MAX_LENGTH:
            return "its path or its queue is longer than the column"
        if set(map(type, NUMBERS(row))) != {int}:
            return "a column of numbers has something else"
        return None

    def finish_many(self, outcomes: Sequence[Outcome]) -> set[str]:
        return {self.hex(id) for (id,) in self.rows(FINISH_MANY, (outcomes_as_json(outcomes),))}

    def prune(self, limit: int = 1000) -> int:
        return self.run(PRUNE_AT_ONCE, (self.backend, limit))

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[bool]:
        """The write lock is the advisory lock: it is always got, after waiting for it."""
        with self.transaction():
            yield True

    def watcher(self) -> Watcher:
        return DataVersion(self)

    def unavailable(self, error: BaseException) -> str | None:
        if isinstance(error, ProgrammingError) and "closed database" in str(error):
            return f"database {self.alias!r}: {error}"
        return super().unavailable(error)


def is_no_text(error: OperationalError) -> bool:
    """Whether a column of text holds what is not UTF-8; then nothing of the result can be read."""
    return "Could not decode to UTF-8" in str(error)


@contextlib.contextmanager
def reading_all(connection: Any) -> Iterator[None]:
    """Reads such text with an escape for each wrong byte, so that its row can be told."""
    raw = connection.connection
    raw.text_factory = lambda value: value.decode("utf-8", "backslashreplace")
    try:
        yield
    finally:
        raw.text_factory = str


class DataVersion:
    """PRAGMA data_version changes when another connection commits; asking costs microseconds.

    When to ask, inotify says: a commit writes to the database's file or to its log. It is visible
    a moment after that, so we ask again a few times, less and less often.
    """

    tells = True

    def __init__(self, engine: SQLiteEngine) -> None:
        self.engine = engine
        self._connection: Any = None
        self._version: object = None
        self._files: FileWatch | None = None
        self._log_exists = False
        self._written = False  # since the last change
        self._wait = POLL

    @property
    def interval(self) -> float:
        return POLL if self._files is None else self._wait

    def fileno(self) -> int | None:
        """Nothing while we ask by the clock anyway: a busy queue is written all the time."""
        return self._files.fileno() if self._files is not None and self._wait >= AT_REST else None

    def changed(self) -> bool:
        written = self.was_written()
        self._written |= written
        ((version,),) = self.engine.rows("PRAGMA data_version")
        connection = self.engine.connection.connection
        # Each connection counts for itself, so the numbers of two say nothing about each other.
        replaced = connection is not self._connection
        changed = replaced or version != self._version
        self._connection, self._version = connection, version
        anew = replaced or (changed and self._files is not None and not self._log_exists)
        if anew:
            self.watch_files()
        elif changed and not self._written and not self.was_written():
            self.close()  # written where our kernel sees nothing: a network, a virtual machine
        if changed:
            self._wait = POLL
            self._written = anew  # what was written just before was not seen
        elif written and self._wait >= AT_REST:
            self._wait = FIRST_ECHO
        else:
            self._wait = min(2 * self._wait, QUIET)
        return changed

    def was_written(self) -> bool:
        return self._files is not None and self._files.read()

    def watch_files(self) -> None:
        """Those of the connection; without inotify we ask every POLL seconds."""
        self.close()
        path = self.engine.rows("PRAGMA database_list")[0][2]
        self._log_exists = os.path.exists(f"{path}-wal")
        if path:
            with contextlib.suppress(OSError):
                self._files = FileWatch([path, f"{path}-wal"][: 1 + self._log_exists])

    def close(self) -> None:
        if self._files is not None:
            self._files.close()
            self._files = None

    def __del__(self) -> None:
        self.close()
