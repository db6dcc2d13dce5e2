"""What is put in order between two tasks, so that each one starts clean."""

from __future__ import annotations

import contextlib
import functools
import select
import sys
import types
from collections.abc import Iterable
from typing import Any

from django.conf import settings
from django.db import connections, reset_queries
from django.db.backends.base.base import BaseDatabaseWrapper

from .engines import Engine

PG_ACTIVE = 1  # PQTRANS_ACTIVE, libpq's PQtransactionStatus()
CANCEL_PATIENCE = 1.0  # seconds
_OPENS_TRANSACTION = ("BEGIN", "START TRANSACTION", "SET AUTOCOMMIT", "LOCK TABLES", "XA ")


def tidy_up(engine: Engine, interrupted: bool = False) -> None:
    """Ends what a task left open on its connections.

    The queue's connection is kept, whatever CONN_MAX_AGE says; those to other databases live as
    long as after a request. `interrupted`: a query may have been cut short, which leaves a
    connection unusable, so all of them are replaced.
    """
    if settings.DEBUG:
        reset_queries()
    for connection in initialized(engine):
        if connection.connection is None:
            if connection.in_atomic_block:
                discard(connection)
        elif interrupted or is_held(connection) or is_dirty(connection):
            cancel_query(connection)
            discard(connection)
        elif connection.alias != engine.alias:
            connection.close_if_unusable_or_obsolete()
        elif connection.errors_occurred or has_news(connection):
            if connection.is_usable():
                connection.errors_occurred = False
            else:
                discard(connection)
        watch_for_transactions(connection)


def initialized(engine: Engine) -> Iterable[BaseDatabaseWrapper]:
    """The connections that this thread has; to ask for them is not free, and most have one."""
    if len(connections.settings) == 1:
        return (connections[engine.alias],)
    return connections.all(initialized_only=True)


def discard(connection: BaseDatabaseWrapper) -> None:
    """Closes a connection in whatever state it is; an open transaction is rolled back."""
    raw: Any = connection.connection
    connection.connection = None
    connection.in_atomic_block = False
    connection.needs_rollback = False
    connection.closed_in_transaction = False
    connection.savepoint_ids = []
    connection.atomic_blocks = []
    connection.run_on_commit = []
    connection.errors_occurred = False
    connection.autocommit = False  # connect() sets it as the settings say
    if raw is not None:
        with contextlib.suppress(Exception):
            raw.close()


def cancel_query(connection: BaseDatabaseWrapper) -> None:
    """Ends a query that nobody waits for any more: PostgreSQL would finish it, and keep its locks.

    Other drivers cannot be cut short within a query.
    """
    raw: Any = connection.connection
    with contextlib.suppress(Exception):
        if connection.vendor == "postgresql" and raw.info.transaction_status == PG_ACTIVE:
            if hasattr(raw, "cancel_safe"):  # psycopg 3.2
                raw.cancel_safe(timeout=CANCEL_PATIENCE)
            else:
                raw.cancel()


def is_dirty(connection: BaseDatabaseWrapper) -> bool:
    """Whether a transaction is open, begun by Django or behind its back."""
    if connection.in_atomic_block or connection.needs_rollback or not connection.autocommit:
        return True
    raw: Any = connection.connection
    try:
        match connection.vendor:
            case "postgresql":
                return bool(raw.info.transaction_status != 0)
            case "sqlite":
                return bool(raw.in_transaction)
            case "mysql":
                # One to another database is watched from now on; of what was before nobody knows.
                return bool(getattr(connection, "_dbtasks_transaction_seen", True))
    except Exception:  # closed behind Django's back
        return True
    return False


def has_news(connection: BaseDatabaseWrapper) -> bool:
    """Whether something came that nobody asked for: mostly the end of the connection."""
    raw: Any = connection.connection
    if connection.vendor == "sqlite":
        return False
    try:
        return bool(select.select((raw.fileno(),), (), (), 0.0)[0])
    except Exception:  # closed behind Django's back
        return True


def watch_for_transactions(connection: BaseDatabaseWrapper) -> None:
    """MySQL's driver does not tell whether a transaction is open, so the statements are read."""
    if connection.vendor != "mysql":
        return
    if not hasattr(connection, "_dbtasks_transaction_seen"):
        connection.execute_wrappers.append(functools.partial(_note_transaction, connection))
    connection._dbtasks_transaction_seen = False  # type: ignore[attr-defined]


def _note_transaction(
    connection: Any, execute: Any, sql: Any, params: Any, many: bool, context: Any
) -> Any:
    if str(sql).lstrip()[:20].upper().startswith(_OPENS_TRANSACTION):
        connection._dbtasks_transaction_seen = True
    return execute(sql, params, many, context)


def is_held(connection: BaseDatabaseWrapper) -> bool:
    """Whether somebody keeps a cursor of an SQLite connection, be it in an exception's traceback.

    SQLite shows a connection the database as it was when its oldest half-read cursor began, so new
    tasks would be hidden from the worker for good. A cursor holds its connection, and that shows.
    """
    return connection.vendor == "sqlite" and _references(connection) > _references_of_nobody()


def _references(holder: Any) -> int:
    return sys.getrefcount(holder.connection)


@functools.cache
def _references_of_nobody() -> int:
    """To a connection without cursors, which differs between versions of Python."""
    import sqlite3

    holder = types.SimpleNamespace(connection=sqlite3.connect(":memory:"))
    references = _references(holder)
    holder.connection.close()
    return references
