"""A statement that transactions run again and again, sent to PostgreSQL without a cursor.

To quote its parameters into a text, and to run Django's and the driver's cursors around it, costs
more than what the server does. So its values go as they are, by psycopg's `pq`. After some calls in
one transaction the statement is prepared, under a name made from its text. That only where nobody
stands between us and the server: a pooler answers a name that it does not know by hanging up.

A server on the same machine answers in less time than it takes to be put to sleep and woken again.
So a loop of calls looks for its answer for a moment before it waits as psycopg waits for all else.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from django.db.backends.base.base import BaseDatabaseWrapper

from .prepared import Prepared

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.pq.abc import PGconn

IN_TRANSACTION = 2  # libpq's PQTRANS_INTRANS
NO_PIPELINE = 0  # libpq's PQ_PIPELINE_OFF
COMMAND_OK = 1  # libpq's PGRES_COMMAND_OK
# To look for the statement and to prepare it are two round trips; a transaction with fewer calls
# than this does not earn them.
CALLS_BEFORE = 10
LOOK_FOR = 0.0001  # seconds
# What a look in vain costs of the trust in looking; one that was not in vain earns 1. So with a
# server that is far, a transaction looks three times.
TRUST, IN_VAIN = 30, 10
# A pooler tells its clients another process than the one that answers.
LOOK = "SELECT pg_backend_pid(), EXISTS (SELECT FROM pg_prepared_statements WHERE name = %s)"


class Direct(Prepared):
    """One statement that returns no rows; its text has %s and $n as Prepared has them."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._text = self.numbered.encode()
        self._name = self.name.encode()
        self._open = Open()

    def run(self, connection: BaseDatabaseWrapper, parameters: Sequence[str | int]) -> bool:
        """Whether it was run; if not, nothing has happened. Raises django.db.Error.

        Whoever watches or counts the statements gets to see plain ones.
        """
        raw: Any = connection.connection
        if needs_cursor(connection) or not is_ready(raw):
            return False
        if (values := encoded(parameters)) is None:
            return False
        opened = self.opened(connection)
        with connection.wrap_database_errors, raw.lock:
            if opened.prepared:
                raw.pgconn.send_query_prepared(self._name, values)
                look(raw.pgconn, opened)
            else:
                raw.pgconn.send_query_params(self._text, values)
            succeed(raw)
        return True

    def opened(self, connection: BaseDatabaseWrapper) -> Open:
        opened = self._open.of(connection)
        opened.calls += 1
        if opened.calls == CALLS_BEFORE + 1:
            opened.prepared = self.make(connection)
        return opened

    def make(self, connection: BaseDatabaseWrapper) -> bool:
        """Prepares it unless it is; False where that would be for others than us."""
        raw: Any = connection.connection
        with connection.cursor() as cursor:
            cursor.execute(LOOK, [self.name])
            pid, exists = cursor.fetchone()
            if pid != raw.pgconn.backend_pid:
                return False
            if not exists:
                cursor.execute(self.prepare)
        return True


class Open(threading.local):
    """What is known of the thread's open transaction, which is told by the list of its hooks.

    For that list see notify.Notices.
    """

    hooks: Any = None
    calls = 0
    prepared = False
    trust = 0

    def begin(self, hooks: Any) -> None:
        self.hooks, self.calls, self.prepared, self.trust = hooks, 0, False, TRUST

    def of(self, connection: BaseDatabaseWrapper) -> Self:
        if self.hooks is not connection.run_on_commit:
            self.begin(connection.run_on_commit)
        return self

    def look(self, descriptor: int, seconds: float = LOOK_FOR) -> None:
        """Looks for an answer that comes at once; the GIL is free between two looks."""
        if self.trust < IN_VAIN or not hasattr(select, "poll"):
            return
        answer = select.poll()
        answer.register(descriptor, select.POLLIN)
        end = time.perf_counter() + seconds
        while not answer.poll(0):
            if time.perf_counter() > end:
                self.trust -= IN_VAIN
                return
        self.trust = min(self.trust + 1, TRUST)


def look(pgconn: PGconn, opened: Open) -> None:
    """Not while something is still to be sent."""
    if not pgconn.flush():
        opened.look(pgconn.socket)


def needs_cursor(connection: BaseDatabaseWrapper) -> bool:
    """Whether somebody is to see the statement, or to refuse it."""
    return bool(
        connection.needs_rollback or connection.execute_wrappers or connection.queries_logged
    )


def is_ready(raw: Any) -> bool:
    """Whether this is psycopg 3, in a transaction that is begun, as Django sets it up."""
    pgconn: PGconn | None = getattr(raw, "pgconn", None)
    return (
        pgconn is not None
        and pgconn.transaction_status == IN_TRANSACTION
        and pgconn.pipeline_status == NO_PIPELINE
        and pgconn.parameter_status(b"client_encoding") == b"UTF8"
    )


def encoded(parameters: Sequence[str | int]) -> list[bytes] | None:
    """As the protocol wants texts; None for what it cannot carry, which a cursor refuses."""
    try:
        values = [str(value).encode() for value in parameters]
    except UnicodeEncodeError:
        return None
    return None if any(b"\0" in value for value in values) else values


def succeed(raw: Connection[Any]) -> None:
    """Waits for the answer. Raises psycopg.Error, as a cursor would."""
    from psycopg import generators
    from psycopg.errors import error_from_result

    result = raw.wait(generators.execute(raw.pgconn))[-1]
    if result.status != COMMAND_OK:
        raise error_from_result(result)
