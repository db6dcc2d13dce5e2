"""dbtasks.schema: changes of a table in use that lock it for a moment, and can be interrupted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, NotSupportedError, connection, connections, models, transaction
from django.db.migrations import CreateModel
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState

from dbtasks import schema
from dbtasks.fields import ExactCharField, PartialIndex, UTCDateTimeField
from dbtasks.schema import patience
from tests.engines import elsewhere, execute
from tests.waiting import wait_until

APP, TABLE = "dbtasks", "dbtasks_parcel"
IDENTITY = ("id", models.BigAutoField(primary_key=True))
NOTE = ("note", models.CharField(max_length=50, null=True))
INDEX = PartialIndex(fields=["note"], name="parcel_note", condition=models.Q(note__isnull=False))


class Parcel:
    """A table of its own, and the operations that were applied to it."""

    def __init__(self) -> None:
        self.states = [ProjectState()]
        self.done: list[Operation] = []

    def apply(self, operation: Operation) -> None:
        before, after = self.states[-1], self.states[-1].clone()
        operation.state_forwards(APP, after)
        with connection.schema_editor(atomic=False) as editor:
            operation.database_forwards(APP, editor, before, after)
        self.states.append(after)
        self.done.append(operation)

    def undo(self) -> None:
        operation, after = self.done.pop(), self.states.pop()
        with connection.schema_editor(atomic=False) as editor:
            operation.database_backwards(APP, editor, after, self.states[-1])

    def forget(self) -> None:
        """As after an interruption: it is done, and nobody knows."""
        self.done.pop()
        self.states.pop()


@pytest.fixture
def parcel(tables: None) -> Iterator[Parcel]:
    parcel = Parcel()
    parcel.apply(CreateModel("Parcel", [IDENTITY, NOTE]))
    yield parcel
    if TABLE in connection.introspection.table_names():
        execute(f"DROP TABLE {TABLE}")
    connections.close_all()


def columns() -> set[str]:
    with connection.cursor() as cursor:
        described = connection.introspection.get_table_description(cursor, TABLE)
    return {column.name for column in described}


def indexes() -> set[str]:
    with connection.cursor() as cursor:
        return set(connection.introspection.get_constraints(cursor, TABLE))


def insert(note: str) -> None:
    execute(f"INSERT INTO {TABLE} (note) VALUES ('{note}')")


FIELDS = {
    "may be NULL": models.CharField(max_length=10, null=True),
    "an instant": UTCDateTimeField(null=True),
    "a text with a default": ExactCharField(max_length=10, db_default="new"),
    "a number with a default": models.IntegerField(db_default=7),
    "a truth with a default": models.BooleanField(default=False, db_default=False),
}


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_a_column_comes_and_goes_and_old_code_can_insert(
    parcel: Parcel, field: models.Field
) -> None:
    insert("before")
    parcel.apply(schema.AddColumn("parcel", "added", field))
    insert("after")  # does not name the column
    expected = (
        getattr(field.db_default, "value", field.db_default) if field.has_db_default() else None
    )
    assert list(execute(f"SELECT note, added FROM {TABLE} ORDER BY id")) == [
        ("before", expected),
        ("after", expected),
    ]
    parcel.undo()
    assert columns() == {"id", "note"}
    assert list(execute(f"SELECT COUNT(*) FROM {TABLE}")) == [(2,)]


def test_what_was_interrupted_is_run_again(parcel: Parcel) -> None:
    operations = [
        schema.AddColumn("parcel", "added", models.CharField(max_length=10, null=True)),
        schema.AddIndex("parcel", INDEX),
    ]
    for operation in operations:
        parcel.apply(operation)
        parcel.forget()
        parcel.apply(operation)
    assert "added" in columns()
    assert INDEX.name in indexes()
    parcel.undo()
    assert INDEX.name not in indexes()
    parcel.undo()
    assert columns() == {"id", "note"}


def test_a_table_that_lacks_its_index_gets_it(parcel: Parcel) -> None:
    execute(f"DROP TABLE {TABLE}")
    parcel.forget()
    create = schema.CreateTable("Parcel", [IDENTITY, NOTE], options={"indexes": [INDEX]})
    parcel.apply(create)
    assert INDEX.name in indexes()
    execute(f"DROP INDEX {INDEX.name}" + (f" ON {TABLE}" if connection.vendor == "mysql" else ""))
    parcel.forget()
    parcel.apply(create)
    assert INDEX.name in indexes()
    parcel.undo()
    assert TABLE not in connection.introspection.table_names()


def test_no_table_is_written_anew(parcel: Parcel) -> None:
    """SQLite's way of changing a table is to copy it; PostgreSQL's file would be another one."""
    insert("one")
    with connection.execute_wrapper(refuse_copies):
        before = file_of_the_table()
        parcel.apply(schema.AddColumn("parcel", "added", models.IntegerField(db_default=1)))
        parcel.apply(schema.AddIndex("parcel", INDEX))
        assert file_of_the_table() == before


def refuse_copies(run: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
    assert "new__" not in sql, sql
    assert not sql.startswith("UPDATE"), sql
    return run(sql, params, many, context)


def file_of_the_table() -> Any:
    if connection.vendor != "postgresql":
        return None
    return execute(f"SELECT pg_relation_filenode('{TABLE}')")


UNSAFE = {
    "write null=True or db_default": models.IntegerField(),
    "write db_default": models.IntegerField(null=True, default=1),
    "add an AddIndex": models.IntegerField(null=True, db_index=True),
    "a foreign key locks both": models.ForeignKey("dbtasks.Node", models.CASCADE, null=True),
    "write a constant": UTCDateTimeField(db_default=models.functions.Now()),
    "compute it where it is read": models.GeneratedField(
        expression=models.F("id") + 1, output_field=models.BigIntegerField(), db_persist=True
    ),
}


@pytest.mark.once
@pytest.mark.parametrize(("told", "field"), UNSAFE.items(), ids=UNSAFE)
def test_a_field_that_old_code_or_the_table_could_not_bear_is_refused(
    told: str, field: models.Field
) -> None:
    with pytest.raises(ValueError, match=r"AddColumn parcel\.added: ") as caught:
        schema.AddColumn("parcel", "added", field)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "operation",
    [
        schema.AddColumn("parcel", "added", models.IntegerField(null=True)),
        schema.AddIndex("parcel", INDEX),
    ],
)
def test_inside_a_transaction_it_says_what_to_write(parcel: Parcel, operation: Operation) -> None:
    with (
        pytest.raises(NotSupportedError, match="atomic = False on the migration"),
        transaction.atomic(),
    ):
        run_bare(parcel, operation)


def run_bare(parcel: Parcel, operation: Operation) -> None:
    """As `apply`, without the checks that a schema editor makes at its ends."""
    after = parcel.states[-1].clone()
    operation.state_forwards(APP, after)
    editor = connection.SchemaEditorClass(connection, atomic=False)  # type: ignore[misc]
    editor.deferred_sql = []
    operation.database_forwards(APP, editor, parcel.states[-1], after)


def test_the_sql_can_be_read_beforehand(parcel: Parcel) -> None:
    """As `manage.py sqlmigrate` shows it, without changing anything."""
    operations = [
        schema.AddColumn("parcel", "added", models.IntegerField(null=True)),
        schema.AddIndex("parcel", INDEX),
    ]
    state = parcel.states[-1]
    editor = connection.schema_editor(atomic=False, collect_sql=True)
    with editor:
        for operation in operations:
            after = state.clone()
            operation.state_forwards(APP, after)
            operation.database_forwards(APP, editor, state, after)
            state = after
    text = "\n".join(editor.collected_sql)
    assert "ADD COLUMN" in text
    assert "CREATE INDEX" in text
    assert columns() == {"id", "note"}
    assert INDEX.name not in indexes()
    if connection.vendor == "postgresql":
        assert "CREATE INDEX CONCURRENTLY" in text


# Others who use the table


@contextmanager
def someone_uses_the_table() -> Iterator[Callable[[], None]]:
    """A transaction elsewhere that has touched it and stays open, until the function is called."""
    begun, over = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            insert("held")
            begun.set()
            assert over.wait(60)

    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(lambda: elsewhere(hold))
        try:
            assert begun.wait(60)
            yield over.set
        finally:
            over.set()
            holding.result(60)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "LONGEST_PAUSE", 0.1)
    # SQLite's own wait, which is 20 s in these tests.
    if connection.vendor == "sqlite":
        connection.ensure_connection()
        connection.connection.execute("PRAGMA busy_timeout = 100")


def test_it_gives_up_when_the_patience_is_over_and_says_what_to_do(
    parcel: Parcel, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(patience.VARIABLE, "0s")
    operation = schema.AddColumn("parcel", "added", models.IntegerField(null=True))
    with (
        someone_uses_the_table(),
        pytest.raises(schema.Locked, match="DBTASKS_MIGRATE_PATIENCE to more than 0s") as caught,
    ):
        parcel.apply(operation)
    assert f"{TABLE} is in use" in str(caught.value)
    if connection.vendor == "postgresql":
        assert "idle in transaction for" in str(caught.value)
    assert columns() == {"id", "note"}
    parcel.apply(operation)
    assert "added" in columns()


def test_it_steps_back_and_tries_again_until_the_table_is_free(
    parcel: Parcel,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(patience.VARIABLE, "2m")
    refused = threading.Event()
    asked = patience.is_lock_timeout

    def noted(error: Any) -> bool:
        refused.set()
        return asked(error)

    monkeypatch.setattr(patience, "is_lock_timeout", noted)
    operation = schema.AddColumn("parcel", "added", models.IntegerField(null=True))
    with someone_uses_the_table() as let_go, ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: (wait_until(refused.is_set, 60), let_go()))
        parcel.apply(operation)
    assert "added" in columns()
    assert f"{TABLE} is in use" in caplog.text
    assert "we step back" in caplog.text


def test_an_index_that_an_interrupted_build_left_is_built_anew(parcel: Parcel) -> None:
    if connection.vendor != "postgresql":  # only PostgreSQL keeps what is half built
        return
    insert("twice")
    insert("twice")
    with pytest.raises(DatabaseError):
        execute(f"CREATE UNIQUE INDEX CONCURRENTLY {INDEX.name} ON {TABLE} (note)")
    valid = (
        f"SELECT indisvalid, indisunique FROM pg_index WHERE indexrelid = '{INDEX.name}'::regclass"
    )
    assert execute(valid) == [(False, True)]
    parcel.apply(schema.AddIndex("parcel", INDEX))
    assert execute(valid) == [(True, False)]


def test_no_timeout_of_the_role_ends_a_build(parcel: Parcel) -> None:
    if connection.vendor != "postgresql":
        return
    seen = []

    def note(run: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("CREATE INDEX"):
            with connection.connection.cursor() as cursor:
                cursor.execute("SELECT current_setting('statement_timeout')")
                seen.extend(cursor.fetchone())
        return run(sql, params, many, context)

    execute("SET statement_timeout = '7s'")
    with connection.execute_wrapper(note):
        parcel.apply(schema.AddIndex("parcel", INDEX))
    assert seen == ["0"]


@pytest.mark.once
@pytest.mark.parametrize("text", ["soon", "-1s", "10 minutes"])
def test_a_patience_that_is_no_duration_is_refused(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(patience.VARIABLE, text)
    with pytest.raises(ImproperlyConfigured, match="Write a Duration such as"):
        patience.patience()
