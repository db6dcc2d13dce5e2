"""An engine's connection: how statements are worded, run and retried, and what errors mean.

In the texts `{now}` is the database's UTC clock, `{in_seconds}` the same plus a parameter, `{lock}`
locks the selected rows and `{skip_locked}` also passes over those that another transaction has;
`{greatest}` is a function of several values.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import apps
from django.db import Error as DatabaseError
from django.db import InterfaceError, OperationalError, ProgrammingError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from ..fields import localized, utc_parameter, utc_value
from .base import Watcher


class Connected:
    NOW: str
    IN_SECONDS: str  # with one parameter: seconds, or NULL for NULL
    LOCK = " FOR UPDATE"
    SKIP_LOCKED = " FOR UPDATE SKIP LOCKED"
    INSERT_OR_IGNORE = "INSERT INTO"
    ON_CONFLICT = " ON CONFLICT DO NOTHING"
    GREATEST = "GREATEST"
    BY_ID = ""
    watches_statements = False
    worth_claiming = 200
    prune_pause = 2.0

    def __init__(self, alias: str, backend: str) -> None:
        self.alias = alias
        self.backend = backend
        self._statements: dict[tuple[str, ...], str] = {}

    # Helpers

    @property
    def connection(self) -> BaseDatabaseWrapper:
        return connections[self.alias]

    def sql(self, text: str, **more: str) -> str:
        """The statement as this database wants it; formatted once."""
        key = (text, *more.values())
        if key not in self._statements:
            if len(self._statements) > 1000:  # lists of ids differ in length
                self._statements.clear()
            self._statements[key] = text.format(
                now=self.NOW,
                in_seconds=self.IN_SECONDS,
                lock=self.LOCK,
                skip_locked=self.SKIP_LOCKED,
                insert_or_ignore=self.INSERT_OR_IGNORE,
                on_conflict=self.ON_CONFLICT,
                greatest=self.GREATEST,
                by_id=self.BY_ID,
                **more,
            )
        return self._statements[key]

    def rows(self, text: str, parameters: Sequence[Any] = (), **more: str) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(self.sql(text, **more), parameters)
            return list(cursor.fetchall())

    def run(self, text: str, parameters: Sequence[Any] = (), **more: str) -> int:
        with self.connection.cursor() as cursor:
            cursor.execute(self.sql(text, **more), parameters)
            return cursor.rowcount  # type: ignore[no-any-return]

    def transaction(self) -> contextlib.AbstractContextManager[None]:
        return transaction.atomic(using=self.alias)

    def time(self, value: datetime.datetime | None) -> Any:
        return None if value is None else utc_parameter(value, self.connection.vendor)

    def moments(self, *values: Any) -> list[datetime.datetime | None]:
        """None also for what Python has no date for: a row can be written by hand."""
        connection = self.connection
        return [None if value is None else moment_of(value, connection) for value in values]

    def moment(self, value: Any) -> datetime.datetime | None:
        return self.moments(value)[0]

    @staticmethod
    def hex(value: Any) -> str:
        """An id as the driver returned it (a UUID, or text with or without hyphens) as hex."""
        return str(value).replace("-", "")

    # The database itself

    def now(self) -> datetime.datetime:
        ((value,),) = self.rows("SELECT {now}")
        return utc_value(value, self.connection)

    def watcher(self) -> Watcher:
        return Untold()

    def prepare_connections(self, patience: float) -> None:
        """A file needs none of it."""

    def missing_tables(self) -> bool:
        self.connection.ensure_connection()
        try:
            for statement in self.looks_at_all_columns():
                self.rows(statement)
        except DatabaseError as error:
            if is_missing_table(error):
                return True
            raise
        return False

    def looks_at_all_columns(self) -> Iterator[str]:
        """One for each table of the app: a database that answers them all is migrated."""
        quoted = self.connection.ops.quote_name
        for model in apps.get_app_config("dbtasks").get_models():
            columns = ", ".join(
                quoted(field.column) for field in model._meta.concrete_fields if field.column
            )
            yield f"SELECT {columns} FROM {quoted(model._meta.db_table)} LIMIT 1"

    def unavailable(self, error: BaseException) -> str | None:
        if not isinstance(error, DatabaseError):
            return None
        told = " ".join(str(error).split()) or type(error).__name__
        if is_missing_table(error):
            return f"the tables of dbtasks are missing, run {migrate_command(self.alias)} ({told})"
        if isinstance(error, (OperationalError, InterfaceError)) or "read-only" in told:
            return f"database {self.alias!r}: {told}"
        return None

    def close(self) -> None:
        # A connection that is broken or inside a transaction must not be kept by close().
        connection = self.connection
        connection.needs_rollback = False
        connection.in_atomic_block = False
        connection.savepoint_ids = []
        connection.atomic_blocks = []
        connection.run_on_commit = []
        with contextlib.suppress(Exception):
            connection.close()
        connection.connection = None
        connection.closed_in_transaction = False


def marks(values: Sequence[Any]) -> str:
    """As many parameters as there are values."""
    return ", ".join(["%s"] * len(values))


def moment_of(value: Any, connection: BaseDatabaseWrapper) -> datetime.datetime | None:
    try:
        return localized(utc_value(value, connection))
    except (ValueError, TypeError, AttributeError, OverflowError):
        return None


class Untold:
    """The watcher of a database that has no cheap sign of change."""

    tells = False
    interval: float | None = None

    def fileno(self) -> int | None:
        return None

    def changed(self) -> bool:
        return False


def migrate_command(alias: str) -> str:
    return "manage.py migrate" + ("" if alias == "default" else f" --database {alias}")


def is_missing_table(error: BaseException) -> bool:
    """Whether a table or a column of ours does not exist (yet)."""
    told = str(error)
    if isinstance(error, OperationalError) and "no such" in told:
        return True  # SQLite
    if isinstance(error, OperationalError) and ("1054" in told or "1176" in told):
        return True  # MySQL: unknown column or key; its migrations are no transactions
    return isinstance(error, ProgrammingError) and ("does not exist" in told or "1146" in told)


@contextlib.contextmanager
def plain_transaction(connection: BaseDatabaseWrapper, begin: str) -> Iterator[None]:
    """`begin` … COMMIT without the round trips of atomic(); inside an atomic block, nothing."""
    if connection.in_atomic_block or not connection.get_autocommit():
        with transaction.atomic(using=connection.alias, savepoint=False):
            yield
        return
    with connection.cursor() as cursor:
        cursor.execute(begin)
        try:
            yield
            cursor.execute("COMMIT")  # one that fails leaves SQLite's transaction open
        except BaseException:
            with contextlib.suppress(DatabaseError):
                cursor.execute("ROLLBACK")
            raise
