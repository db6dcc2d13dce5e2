"""Changes of tables that hold millions of rows and are written all the time.

Each keeps three promises, on every database:

* It holds no lock for longer than a moment: no table is rewritten, and indexes are built beside the
  writers (but on SQLite, which has one writer at a time).
* Code that does not know of the change goes on working: columns may be NULL or have a default in
  the database.
* It can be interrupted and run again: what exists is left alone, and an index that was left half
  built is built anew.

For the last one, they want a migration with `atomic = False`, and nothing but them in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from django.db import DatabaseError, NotSupportedError, models, transaction
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.operations import AddField, CreateModel
from django.db.migrations.operations import AddIndex as PlainAddIndex
from django.db.models.expressions import Value

from ..fields import OnlyPartialIndex
from .patience import execute, politely

POSTGRESQL_INDEX_IS_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)"
POSTGRESQL_NO_TIMEOUTS = (
    "SET lock_timeout = 0",  # a concurrent build waits for old transactions, in nobody's way
    "SET statement_timeout = 0",
)
POSTGRESQL_TIMEOUTS = ("RESET lock_timeout", "RESET statement_timeout")
# From the cheapest on; what none of them can do is refused instead of locking the table.
MYSQL_COLUMN_WAYS = (", ALGORITHM=INSTANT", ", ALGORITHM=INPLACE, LOCK=NONE")
MYSQL_INDEX_WAYS = (" ALGORITHM=INPLACE LOCK=NONE", "")
MYSQL_CANNOT = (1845, 1846)  # ER_ALTER_OPERATION_NOT_SUPPORTED, with and without a reason
# Seconds. A build needs the table alone for a moment at its end, and to lose it all is dear.
MYSQL_INDEX_WAIT = 5


class AddColumn(AddField):
    """AddField that changes the table's description only, and waits politely for its lock.

    Raises ValueError for a field that old code could not insert without, or that needs more than
    that. See DBTASKS_MIGRATE_PATIENCE in docs/guides/upgrading.md.
    """

    atomic = False

    def __init__(
        self, model_name: str, name: str, field: models.Field, preserve_default: bool = True
    ) -> None:
        if problem := why_not_safe(field):
            raise ValueError(f"AddColumn {model_name}.{name}: {problem}.")
        super().__init__(model_name, name, field, preserve_default)

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        model = to_state.apps.get_model(app_label, self.model_name)
        if not self.allow_migrate_model(schema_editor.connection.alias, model):
            return
        field = model._meta.get_field(self.name)
        # Django's own for SQLite would write the table anew for a column that is NOT NULL.
        add = BaseDatabaseSchemaEditor.add_field
        if schema_editor.collect_sql:
            add(schema_editor, model, field)
        elif not has_column(schema_editor, model, field):
            change_columns(schema_editor, model, lambda: add(schema_editor, model, field))

    def database_backwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        model = from_state.apps.get_model(app_label, self.model_name)
        if not self.allow_migrate_model(schema_editor.connection.alias, model):
            return
        field = model._meta.get_field(self.name)
        if schema_editor.collect_sql:
            schema_editor.remove_field(model, field)
        elif has_column(schema_editor, model, field):
            remove = schema_editor.remove_field
            change_columns(schema_editor, model, lambda: remove(model, field))


class AddIndex(PlainAddIndex):
    """AddIndex beside the writers: CONCURRENTLY on PostgreSQL, LOCK=NONE on MySQL and MariaDB.

    What an interrupted build left is removed and built anew. SQLite builds it under its only lock.
    An OnlyPartialIndex is left out where the database has no such.
    """

    atomic = False

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        model = to_state.apps.get_model(app_label, self.model_name)
        if self.is_wanted(schema_editor.connection, model):
            build_index(schema_editor, model, self.index)

    def database_backwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        model = from_state.apps.get_model(app_label, self.model_name)
        if self.is_wanted(schema_editor.connection, model):
            index = from_state.models[app_label, self.model_name_lower].get_index_by_name(
                self.index.name
            )
            drop_index(schema_editor, model, index)

    def is_wanted(self, connection: Any, model: type[models.Model]) -> bool:
        possible = not isinstance(self.index, OnlyPartialIndex) or self.index.exists_on(connection)
        return possible and bool(self.allow_migrate_model(connection.alias, model))


class CreateTable(CreateModel):
    """CreateModel that finishes what an interrupted one left: the table, then each index of it."""

    atomic = False

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        connection = schema_editor.connection
        model = to_state.apps.get_model(app_label, self.name)
        if not self.allow_migrate_model(connection.alias, model):
            return
        if schema_editor.collect_sql:
            schema_editor.create_model(model)
        elif model._meta.db_table not in connection.introspection.table_names():
            refuse_transaction(schema_editor)
            create_at_once(schema_editor, model)
        else:
            for index in model._meta.indexes:
                build_index(schema_editor, model, index)


def why_not_safe(field: Any) -> str | None:
    """Why the column cannot be added while old code writes the table, or None."""
    if field.remote_field is not None:
        return "a foreign key locks both tables; store the value without one"
    if isinstance(field, models.GeneratedField):
        return "a generated column is computed for every row; compute it where it is read"
    if field.unique or field.db_index or field.primary_key:
        return "its index would be built under a lock; leave it out, and add an AddIndex"
    if not field.has_db_default():
        if not field.null:
            return "old code inserts rows without it; write null=True or db_default=…"
        if field.has_default():
            return "a default in Python fills no rows that old code inserts; write db_default=…"
        return None
    default = field.db_default
    if hasattr(default, "resolve_expression") and not isinstance(default, Value):
        return "its db_default would be computed for every row; write a constant"
    return None


def has_column(schema_editor: Any, model: type[models.Model], field: Any) -> bool:
    with schema_editor.connection.cursor() as cursor:
        table = model._meta.db_table
        found = schema_editor.connection.introspection.get_table_description(cursor, table)
    return any(column.name == field.column for column in found)


def change_columns(
    schema_editor: Any, model: type[models.Model], change: Callable[[], None]
) -> None:
    refuse_transaction(schema_editor)
    ways = MYSQL_COLUMN_WAYS if schema_editor.connection.vendor == "mysql" else ("",)

    def in_the_cheapest_way(way: str) -> None:
        with said_how(schema_editor, way):
            politely(schema_editor.connection, model._meta.db_table, change)

    first_possible(ways, in_the_cheapest_way)


@contextlib.contextmanager
def said_how(schema_editor: Any, way: str) -> Iterator[None]:
    """Inside, statements that add or remove a column end with `way`."""
    names = ("sql_create_column", "sql_delete_column")
    texts = {name: getattr(schema_editor, name) for name in names}
    for name, text in texts.items():
        setattr(schema_editor, name, text + way)
    try:
        yield
    finally:
        for name in texts:
            delattr(schema_editor, name)


def build_index(schema_editor: Any, model: type[models.Model], index: models.Index) -> None:
    connection, table = schema_editor.connection, model._meta.db_table
    concurrently = {"concurrently": True} if connection.vendor == "postgresql" else {}
    if schema_editor.collect_sql:
        schema_editor.add_index(model, index, **concurrently)
        return
    refuse_transaction(schema_editor)
    valid = index_is_valid(schema_editor, model, index)
    if valid:
        return
    if valid is False:
        drop_index(schema_editor, model, index)
    match connection.vendor:
        case "postgresql":
            with without_timeouts(connection):
                schema_editor.add_index(model, index, **concurrently)
        case "mysql":
            statement = str(index.create_sql(model, schema_editor))

            def beside_the_writers(way: str) -> None:
                def create() -> None:
                    schema_editor.execute(statement + way, params=None)

                politely(connection, table, create, seconds=MYSQL_INDEX_WAIT)

            first_possible(MYSQL_INDEX_WAYS, beside_the_writers)
        case _:
            politely(connection, table, lambda: schema_editor.add_index(model, index))


def drop_index(schema_editor: Any, model: type[models.Model], index: models.Index) -> None:
    connection = schema_editor.connection
    concurrently = {"concurrently": True} if connection.vendor == "postgresql" else {}
    if schema_editor.collect_sql:
        schema_editor.remove_index(model, index, **concurrently)
        return
    refuse_transaction(schema_editor)
    if index_is_valid(schema_editor, model, index) is None:
        return
    if connection.vendor == "postgresql":
        with without_timeouts(connection):
            schema_editor.remove_index(model, index, **concurrently)
        return
    politely(connection, model._meta.db_table, lambda: schema_editor.remove_index(model, index))


def index_is_valid(
    schema_editor: Any, model: type[models.Model], index: models.Index
) -> bool | None:
    """None: there is no such index. False: PostgreSQL was interrupted while it built it."""
    connection = schema_editor.connection
    with connection.cursor() as cursor:
        if connection.vendor != "postgresql":
            found = connection.introspection.get_constraints(cursor, model._meta.db_table)
            return True if index.name in found else None
        cursor.execute(POSTGRESQL_INDEX_IS_VALID, [connection.ops.quote_name(index.name)])
        row = cursor.fetchone()
        return bool(row[0]) if row else None


def create_at_once(schema_editor: Any, model: type[models.Model]) -> None:
    """The table with its indexes: in one transaction, where the database has such."""
    connection = schema_editor.connection
    later = schema_editor.deferred_sql
    schema_editor.deferred_sql = []
    whole = connection.features.can_rollback_ddl
    with transaction.atomic(using=connection.alias) if whole else contextlib.nullcontext():
        schema_editor.create_model(model)
        for statement in schema_editor.deferred_sql:
            schema_editor.execute(statement, params=None)
    schema_editor.deferred_sql = later


def first_possible(ways: Sequence[str], attempt: Callable[[str], None]) -> None:
    """MySQL says at once, and changes nothing, if it cannot do a thing in the way it was told."""
    for way in ways:
        try:
            return attempt(way)
        except DatabaseError as error:
            if way == ways[-1] or not error.args or error.args[0] not in MYSQL_CANNOT:
                raise
    return None


@contextlib.contextmanager
def without_timeouts(connection: Any) -> Iterator[None]:
    """Inside, no timeout of the role or the project ends a build, which would leave half of it."""
    for statement in POSTGRESQL_NO_TIMEOUTS:
        execute(connection, statement)
    try:
        yield
    finally:
        with contextlib.suppress(DatabaseError):
            for statement in POSTGRESQL_TIMEOUTS:
                execute(connection, statement)


def refuse_transaction(schema_editor: Any) -> None:
    if schema_editor.connection.in_atomic_block:
        raise NotSupportedError(
            "dbtasks.schema works outside of transactions: set atomic = False on the migration."
        )
