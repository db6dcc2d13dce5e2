"""Statements that PostgreSQL plans once and then runs many times.

To plan the statement that finishes one task and claims the next costs the server twice as much as
to run it; to read the text that inserts a row, as much as to insert it. They are prepared in SQL
and not by the driver's protocol, under a name made from their text: behind a pooler, where the next
statement may reach another connection of the server, that name means this statement or nothing at
all. If it means nothing, nothing has happened, and from then on the process does without.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
import time
from collections.abc import Sequence
from typing import Any

from django.db import DatabaseError, ProgrammingError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

# PostgreSQL's error codes (Appendix A of its manual).
NO_SUCH_STATEMENT, EXISTS_ALREADY, RESULT_CHANGED = "26000", "42P05", "0A000"
# EXECUTE takes no parameters from the protocol, as Django's server_side_binding sends them.
NO_PARAMETER, UNKNOWN_TYPE = "42P02", "42P18"
CANNOT_BE_USED = frozenset(
    {NO_SUCH_STATEMENT, EXISTS_ALREADY, RESULT_CHANGED, NO_PARAMETER, UNKNOWN_TYPE}
)
# A plan is made for the table as it is: what was right for ten rows is not for a million. So it is
# made anew after so many seconds and uses, whichever comes first.
GOOD_FOR_SECONDS = 1.0
GOOD_FOR_USES = 1000
# To prepare takes two statements or three; a transaction with fewer calls than this does not earn
# them.
CALLS_BEFORE = 10
EXISTS = "SELECT 1 FROM pg_prepared_statements WHERE name = %s"


class Prepared:
    """One statement, whose text has %s for its parameters, and $n where the nth comes again."""

    def __init__(self, text: str) -> None:
        numbers = itertools.count(1)
        numbered = re.sub("%s", lambda match: f"${next(numbers)}", text)
        self.name = f"dbtasks_{hashlib.sha256(numbered.encode()).hexdigest()[:24]}"
        self.prepare = f"PREPARE {self.name} AS {numbered}"
        self.again = f"DEALLOCATE {self.name}; {self.prepare}"
        self.execute = f"EXECUTE {self.name} ({', '.join(['%s'] * text.count('%s'))})"
        self.usable = True


class PreparedAlone(Prepared):
    """Used outside of transactions, where an error ends nothing but itself."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._plan = Plan()

    def rows(
        self, connection: BaseDatabaseWrapper, parameters: Sequence[Any]
    ) -> list[tuple[Any, ...]] | None:
        """What it returns; None where it cannot be used, and then nothing has happened."""
        if not self.usable or connection.in_atomic_block or not connection.get_autocommit():
            return None  # inside a transaction, an error would be the end of that
        try:
            with connection.cursor() as cursor:
                if (preparation := self.preparation(connection.connection)) is not None:
                    cursor.execute(preparation)
                cursor.execute(self.execute, parameters)
                return list(cursor.fetchall())
        except DatabaseError as error:
            if sqlstate(error) not in CANNOT_BE_USED:
                raise
            self.usable = False
            return None

    def preparation(self, raw: Any) -> str | None:
        """The statement that must come first, if any."""
        plan, now = self._plan, time.monotonic()
        plan.uses += 1
        if plan.raw is raw and plan.uses < GOOD_FOR_USES and now - plan.made < GOOD_FOR_SECONDS:
            return None
        text = self.again if plan.raw is raw else self.prepare
        plan.raw, plan.made, plan.uses = raw, now, 0
        return text


class Plan(threading.local):
    """For which of the driver's connections the thread's plan is, since when, and its uses."""

    raw: Any = None
    made = 0.0
    uses = 0


class PreparedInside(Prepared):
    """Used inside of transactions: an error would be their end, so nothing is left to chance.

    A pooler that lends its connections to transactions lends one for the whole of it: what was seen
    to be prepared in a transaction is there until it ends. The first use of all is a trial, in a
    savepoint. Whoever counts the statements (DEBUG, assertNumQueries) gets those without a plan.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.tried = False
        self._open = Open()

    def run(self, connection: BaseDatabaseWrapper, parameters: Sequence[Any]) -> bool:
        """Whether it was run; if not, nothing has happened."""
        if not (self.usable and connection.in_atomic_block) or connection.queries_logged:
            return False
        opened = self._open
        if opened.hooks is not connection.run_on_commit:
            opened.hooks, opened.calls, opened.cursor = connection.run_on_commit, 0, None
        if opened.cursor is None:
            opened.calls += 1
            if opened.calls <= CALLS_BEFORE:
                return False
            if not self.tried:
                return self.succeeds(connection, parameters)
            self.make(connection)
            opened.cursor = connection.cursor()
        opened.cursor.execute(self.execute, parameters)
        return True

    def make(self, connection: BaseDatabaseWrapper) -> None:
        with connection.cursor() as cursor:
            cursor.execute(EXISTS, [self.name])
            if cursor.fetchone() is None:
                cursor.execute(self.prepare)

    def succeeds(self, connection: BaseDatabaseWrapper, parameters: Sequence[Any]) -> bool:
        """The trial."""
        try:
            with transaction.atomic(using=connection.alias):
                self.make(connection)
                with connection.cursor() as cursor:
                    cursor.execute(self.execute, parameters)
        except DatabaseError as error:
            if sqlstate(error) not in CANNOT_BE_USED and not isinstance(error, ProgrammingError):
                raise
            self.usable = False
            return False
        self.tried = True
        return True


class Open(threading.local):
    """What is known of the thread's open transaction, which is told by the list of its hooks.

    For that list see notify.Notices.
    """

    hooks: Any = None
    calls = 0
    cursor: Any = None  # once the statement is there; a new one for each call is half of its price


def sqlstate(error: BaseException) -> str | None:
    """The five characters by which the server names an error; psycopg 2 calls them `pgcode`."""
    cause = error.__cause__
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
