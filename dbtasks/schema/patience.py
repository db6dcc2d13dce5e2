"""Short locks on whole tables, taken so that nobody queues behind us for long.

An ALTER TABLE of a millisecond waits for every transaction that has touched the table, and whoever
comes next waits behind it: one open transaction (a backup, a forgotten shell) and the whole queue
stands. So we wait a second at most, step back, and try again after a pause.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import time
from collections.abc import Callable, Iterator

from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, OperationalError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from ..schedule import Duration, ScheduleError

VARIABLE = "DBTASKS_MIGRATE_PATIENCE"
PATIENCE = "10m"  # a Duration: for so long we try
LOCK_TIMEOUT = 1  # seconds; MySQL counts in whole ones
LONGEST_PAUSE = 10.0  # seconds between two tries; the first pause is a tenth of it

POSTGRESQL_WAIT = "SET LOCAL lock_timeout = '{seconds}s'"
POSTGRESQL_HOLDER = """
SELECT format('pid %%s, %%s for %%s s', a.pid, a.state,
              floor(extract(epoch FROM clock_timestamp() - a.xact_start)))
FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.relation = to_regclass(%s) AND l.granted AND l.pid <> pg_backend_pid()
ORDER BY a.xact_start LIMIT 1"""
MYSQL_WAIT = "SET SESSION lock_wait_timeout = {seconds}"
MYSQL_NO_WAIT = "SET SESSION lock_wait_timeout = DEFAULT"

logger = logging.getLogger("dbtasks.schema")


class Locked(OperationalError):
    """Other transactions kept the table for longer than DBTASKS_MIGRATE_PATIENCE."""


def patience() -> float:
    """Seconds. Raises ImproperlyConfigured for a variable that is no Duration."""
    text = os.environ.get(VARIABLE) or PATIENCE
    try:
        return Duration(text).total_seconds()
    except ScheduleError as error:
        raise ImproperlyConfigured(
            f'{VARIABLE}={text}: {error}. Write a Duration such as "30s" or "10m".'
        ) from None


def politely(
    connection: BaseDatabaseWrapper,
    table: str,
    action: Callable[[], None],
    *,
    seconds: int | None = None,
) -> None:
    """Runs `action`, one statement that locks the whole of `table` for a moment.

    It waits `seconds` (default LOCK_TIMEOUT) for the lock, and tries again until the patience is
    over. Raises Locked; nothing was changed then.
    """
    wait = LOCK_TIMEOUT if seconds is None else seconds
    deadline = time.monotonic() + patience()
    pause = LONGEST_PAUSE / 10
    while True:
        try:
            with short_waits(connection, wait):
                action()
            return
        except OperationalError as error:
            if not is_lock_timeout(error):
                raise
            left = deadline - time.monotonic()
            holder = who_holds(connection, table)
            if left <= 0:
                raise Locked(
                    f"{table} is in use{holder} and could not be locked for the moment that its "
                    "change takes. Nothing was changed: end that transaction, or set "
                    f"{VARIABLE} to more than {os.environ.get(VARIABLE) or PATIENCE}, and run "
                    "migrate again."
                ) from error
        logger.warning("%s is in use%s; we step back, and try for %.0f s more", table, holder, left)
        time.sleep(min(pause, left) * random.uniform(0.5, 1))
        pause = min(2 * pause, LONGEST_PAUSE)


@contextlib.contextmanager
def short_waits(connection: BaseDatabaseWrapper, seconds: int) -> Iterator[None]:
    """Inside, a statement waits at most so long for a lock on a table."""
    match connection.vendor:
        case "postgresql":
            # LOCAL, in one transaction with the statement: no pooler can part the two.
            with transaction.atomic(using=connection.alias):
                execute(connection, POSTGRESQL_WAIT.format(seconds=seconds))
                yield
        case "mysql":
            execute(connection, MYSQL_WAIT.format(seconds=seconds))
            try:
                yield
            finally:
                with contextlib.suppress(DatabaseError):
                    execute(connection, MYSQL_NO_WAIT)
        case _:
            yield  # SQLite waits for its only lock as long as the "timeout" of its OPTIONS says


def is_lock_timeout(error: OperationalError) -> bool:
    told = str(error)
    return any(sign in told for sign in ("lock timeout", "(1205,", "database is locked"))


def who_holds(connection: BaseDatabaseWrapper, table: str) -> str:
    """In words, after "is in use"; empty where the database does not tell."""
    if connection.vendor == "mysql":
        return " (SHOW FULL PROCESSLIST shows by whom)"
    if connection.vendor != "postgresql":
        return ""
    with contextlib.suppress(DatabaseError), connection.cursor() as cursor:
        cursor.execute(POSTGRESQL_HOLDER, [connection.ops.quote_name(table)])
        if row := cursor.fetchone():
            return f" ({row[0]})"
    return ""


def execute(connection: BaseDatabaseWrapper, statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)
