"""A statement that transactions run again and again, sent to MySQL without a cursor.

As with PostgreSQL (see direct), a loop of calls looks for its answer for a moment before it is put
to sleep. mysqlclient can do that: to send a statement and to fetch its answer are two calls.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from .direct import Open, needs_cursor

LOOK_FOR = 0.0003  # seconds; an insert takes it longer than PostgreSQL


class Undelayed:
    """Statements that return no rows, within transactions."""

    def __init__(self) -> None:
        self._open = Open()

    def suits(self, connection: BaseDatabaseWrapper) -> bool:
        """Not outside a transaction; whoever watches statements gets to see plain ones."""
        if not connection.in_atomic_block or needs_cursor(connection):
            return False
        return can_wait(connection.connection)

    def run(self, connection: BaseDatabaseWrapper, text: str, parameters: Sequence[Any]) -> bool:
        """Whether it was run, on a connection that suits; if not, nothing has happened.

        Raises django.db.Error.
        """
        raw: Any = connection.connection
        try:
            statement = text.encode() % tuple(map(raw.literal, parameters))
        except UnicodeEncodeError:
            return False  # a cursor refuses it
        opened = self._open.of(connection)
        with connection.wrap_database_errors:
            ask(raw, statement, opened)
        return True


def can_wait(raw: Any) -> bool:
    """Whether this is mysqlclient, rather than another driver under its name."""
    return hasattr(raw, "send_query") and hasattr(raw, "read_query_result")


def ask(raw: Any, statement: bytes, opened: Open) -> None:
    """Leaves no answer behind, or no connection, whatever a signal raises meanwhile."""
    sent = False
    try:
        raw.send_query(statement)
        sent = True
        opened.look(raw.fileno(), LOOK_FOR)
    except raw.Error:  # it was not sent
        raise
    except BaseException:
        with contextlib.suppress(raw.Error):
            if sent:
                raw.read_query_result()
            else:  # or it is, and that could not be noted any more
                raw.close()
        raise
    raw.read_query_result()
