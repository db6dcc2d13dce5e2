"""Statements that PostgreSQL plans once and then runs many times.

To plan the statement that finishes one task and claims the next costs the server twice as much as
to run it. It is prepared in SQL and not by the driver's protocol, under a name made from its text:
behind a pooler, where the next statement may reach another connection of the server, that name
means this statement or nothing at all. If it means nothing, nothing has happened, and from then on
the process does without.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
import time
from collections.abc import Sequence
from typing import Any

from django.db import DatabaseError
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


class Prepared:
    """One statement, whose text has %s for its parameters, and $n where the nth comes again."""

    def __init__(self, text: str) -> None:
        numbers = itertools.count(1)
        self.numbered = re.sub("%s", lambda match: f"${next(numbers)}", text)
        self.name = f"dbtasks_{hashlib.sha256(self.numbered.encode()).hexdigest()[:24]}"
        self.prepare = f"PREPARE {self.name} AS {self.numbered}"


class PreparedAlone(Prepared):
    """Used outside of transactions, where an error ends nothing but itself."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.again = f"DEALLOCATE {self.name}; {self.prepare}"
        self.execute = f"EXECUTE {self.name} ({', '.join(['%s'] * text.count('%s'))})"
        self.usable = True
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


def sqlstate(error: BaseException) -> str | None:
    """The five characters by which the server names an error; psycopg 2 calls them `pgcode`."""
    cause = error.__cause__
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
