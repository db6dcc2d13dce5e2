"""Every migration after the first can be applied while all nodes work, and taken back.

A migration that adds to a table which exists uses `dbtasks.schema` and nothing else, with
`atomic = False`. What only changes Django's idea of the models (help texts, choices) is free.
"""

from __future__ import annotations

import copy
import datetime
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, connections, migrations, models
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.migration import Migration
from django.db.migrations.operations import models as of_models

from dbtasks import schema
from dbtasks.ids import uuid7

APP = "dbtasks"
FIRST = "0001_initial"
BIG = ("scheduledtask", "occurrence")  # in lower case, as operations name them
SAFE = (schema.AddColumn, schema.AddIndex, schema.CreateTable)
STATE_ONLY = (migrations.AlterField, of_models.ModelOptionOperation)
# What no statement about a table that existed before may say.
FORBIDDEN = re.compile(
    r"new__|\bDROP (TABLE|CONSTRAINT|NOT NULL)|\bRENAME\b|\bMODIFY\b|\bCHANGE\b|\bALTER COLUMN\b"
    r"|\bALGORITHM\s*=\s*COPY|\bUPDATE\b|\bDELETE FROM\b|\bADD CONSTRAINT\b|\bREFERENCES\b",
    re.IGNORECASE,
)


def later_migrations() -> list[Migration]:
    loader = MigrationLoader(None)
    names = sorted(name for app, name in loader.disk_migrations if app == APP and name != FIRST)
    return [loader.disk_migrations[APP, name] for name in names]


def problems(migration: Migration) -> Iterator[str]:
    """What is wrong with a migration, one sentence each."""
    where = f"{migration.name}: "
    safe = [op for op in migration.operations if isinstance(op, SAFE)]
    if safe and migration.atomic:
        yield where + "dbtasks.schema needs atomic = False"
    for op in migration.operations:
        what = f"{where}{op.describe()}: "
        if isinstance(op, schema.AddColumn):
            if op.model_name_lower in BIG and isinstance(op.field, CHECKED):
                yield what + "a CHECK reads the whole table; use a type without one"
        elif isinstance(op, migrations.CreateModel):
            if safe and not isinstance(op, schema.CreateTable):
                yield what + "beside others, dbtasks.schema.CreateTable can be run again"
            for name, field in op.fields:
                target = getattr(field.remote_field, "model", None)
                if str(target).lower().rpartition(".")[2] in BIG:
                    yield what + f"the foreign key {name} locks a big table"
        elif not isinstance(op, (*SAFE, *STATE_ONLY)):
            yield what + f"{type(op).__name__} may lock or lose; use an operation of dbtasks.schema"


CHECKED = (
    models.PositiveSmallIntegerField,
    models.PositiveIntegerField,
    models.PositiveBigIntegerField,
    models.JSONField,
)


def test_every_migration_can_be_applied_while_all_nodes_work() -> None:
    assert [told for migration in later_migrations() for told in problems(migration)] == []


def statements(migration: Migration, backwards: bool) -> list[str]:
    """What `manage.py sqlmigrate` shows, without comments."""
    loader = MigrationLoader(connection, replace_migrations=False)
    lines = loader.collect_sql([(loader.graph.nodes[APP, migration.name], backwards)])
    return [line for line in lines if line and not line.startswith("--")]


def new_tables(migration: Migration) -> set[str]:
    created = (op for op in migration.operations if isinstance(op, migrations.CreateModel))
    return {op.options.get("db_table") or f"{APP}_{op.name_lower}" for op in created}


def test_no_statement_rewrites_or_locks_a_table_that_exists(tables: None) -> None:
    found = [
        line
        for migration in later_migrations()
        for line in statements(migration, backwards=False)
        if FORBIDDEN.search(line) and not any(name in line for name in new_tables(migration))
    ]
    assert found == []


def test_postgresql_builds_indexes_of_tables_that_exist_beside_the_writers(tables: None) -> None:
    if connection.vendor != "postgresql":
        return
    found = [
        line
        for migration in later_migrations()
        for line in statements(migration, backwards=False)
        if re.match(r"CREATE (UNIQUE )?INDEX (?!CONCURRENTLY)", line)
        and not any(name in line for name in new_tables(migration))
    ]
    assert found == []


def test_the_models_are_those_of_the_migrations(tables: None) -> None:
    call_command("makemigrations", APP, check=True, dry_run=True, verbosity=1)


# There and back


@pytest.fixture
def elsewhere(tables: None, tmp_path: Path) -> Iterator[str]:
    """The alias of an empty database beside that of the session."""
    alias = "elsewhere"
    with connection_to_another_database(alias, tmp_path):
        yield alias


@contextmanager
def connection_to_another_database(alias: str, folder: Path) -> Iterator[None]:
    configured = copy.deepcopy(connections.databases["default"])
    sqlite = connection.vendor == "sqlite"
    name = str(folder / "elsewhere.sqlite3") if sqlite else f"{configured['NAME']}_elsewhere"
    quoted = connection.ops.quote_name(name)
    if not sqlite:
        characters = " CHARACTER SET utf8mb4" if connection.vendor == "mysql" else ""
        on_the_server(f"CREATE DATABASE {quoted}{characters}")
    connections.databases[alias] = configured | {"NAME": name}
    try:
        yield
    finally:
        connections[alias].close()
        del connections[alias]
        del connections.databases[alias]
        if not sqlite:
            on_the_server(f"DROP DATABASE {quoted}")


def on_the_server(statement: str) -> None:
    with connection._nodb_cursor() as cursor:  # type: ignore[attr-defined]
        cursor.execute(statement)


def migrate(alias: str, target: str) -> None:
    """To `target`; "" is the newest."""
    words = [APP, *([target] if target else [])]
    call_command("migrate", *words, database=alias, interactive=False, verbosity=0)


def put_rows(alias: str) -> None:
    """Into the tables of the first migration, as the code that came with it inserts them."""
    apps = MigrationExecutor(connections[alias]).loader.project_state((APP, FIRST)).apps
    now = datetime.datetime.now(datetime.UTC)
    task = apps.get_model(APP, "ScheduledTask")
    for number in range(3):
        task.objects.using(alias).create(
            id=uuid7(),
            task_path="shop.tasks.send",
            args=[number],
            backend="default",
            queue="default",
            ready_queue="default",
            enqueued_at=now,
        )
    apps.get_model(APP, "Occurrence").objects.using(alias).create(
        backend="default", name="n", due_at=now, task_id=uuid7(), enqueued_at=now, enqueued_by="n"
    )
    apps.get_model(APP, "PeriodicTask").objects.using(alias).create(
        backend="default", name="n", task_path="shop.tasks.send", since=now, deployed_at=now
    )


def counted(alias: str) -> list[int]:
    names = ("scheduledtask", "occurrence", "periodictask")
    with connections[alias].cursor() as cursor:
        found = []
        for name in names:
            cursor.execute(f"SELECT COUNT(*) FROM {APP}_{name}")
            found += cursor.fetchone()
    return found


def layout(alias: str) -> dict[str, Any]:
    """Every table of ours with its columns and the names of its indexes and constraints."""
    other = connections[alias]
    with other.cursor() as cursor:
        return {
            table: (
                [(column.name, column.null_ok) for column in columns],
                sorted(other.introspection.get_constraints(cursor, table)),
            )
            for table in sorted(other.introspection.table_names(cursor))
            if table.startswith(f"{APP}_")
            for columns in [other.introspection.get_table_description(cursor, table)]
        }


def test_every_migration_goes_forward_and_back_and_keeps_every_row(elsewhere: str) -> None:
    migrate(elsewhere, FIRST)
    before = layout(elsewhere)
    put_rows(elsewhere)
    migrate(elsewhere, "")
    newest = layout(elsewhere)
    assert counted(elsewhere) == [3, 1, 1]
    put_rows_again = counted(elsewhere)
    migrate(elsewhere, FIRST)
    assert layout(elsewhere) == before
    assert counted(elsewhere) == put_rows_again
    migrate(elsewhere, "")
    assert layout(elsewhere) == newest
    assert counted(elsewhere) == [3, 1, 1]


def test_code_of_the_first_migration_inserts_into_the_newest_tables(elsewhere: str) -> None:
    migrate(elsewhere, "")
    put_rows(elsewhere)
    assert counted(elsewhere) == [3, 1, 1]


# The lint itself

FIELD = models.IntegerField(null=True)
INDEX = models.Index(fields=["queue"], name="some_index")
IDENTITY = [("id", models.BigAutoField(primary_key=True))]
WRONG: dict[str, tuple[Any, list[Any]]] = {
    "needs atomic = False": (True, [schema.AddColumn("scheduledtask", "x", FIELD)]),
    "AddField may lock": (False, [migrations.AddField("scheduledtask", "x", FIELD)]),
    "AddIndex may lock": (False, [migrations.AddIndex("node", INDEX)]),
    "RemoveField may lock": (False, [migrations.RemoveField("node", "host")]),
    "RunSQL may lock": (False, [migrations.RunSQL("SELECT 1")]),
    "CHECK reads": (
        False,
        [schema.AddColumn("scheduledtask", "x", models.PositiveIntegerField(db_default=0))],
    ),
    "CreateTable can be run again": (
        False,
        [schema.AddIndex("node", INDEX), migrations.CreateModel("Extra", IDENTITY)],
    ),
    "locks a big table": (
        True,
        [
            migrations.CreateModel(
                "Extra",
                [*IDENTITY, ("t", models.ForeignKey("dbtasks.ScheduledTask", models.CASCADE))],
            )
        ],
    ),
}
RIGHT: list[tuple[bool, list[Any]]] = [
    (False, [schema.AddColumn("scheduledtask", "x", FIELD), schema.AddIndex("node", INDEX)]),
    (False, [schema.CreateTable("Extra", IDENTITY), schema.AddColumn("node", "x", FIELD)]),
    (True, [migrations.CreateModel("Extra", IDENTITY)]),
    (True, [migrations.AlterModelOptions("node", {"verbose_name": "node"})]),
]


def made(atomic: bool, operations: list[Any]) -> Migration:
    migration = Migration("0099_made", APP)
    migration.atomic, migration.operations = atomic, operations
    return migration


@pytest.mark.once
@pytest.mark.parametrize("told", WRONG)
def test_the_lint_finds(told: str) -> None:
    atomic, operations = WRONG[told]
    (problem,) = problems(made(atomic, operations))
    assert told in problem


@pytest.mark.once
@pytest.mark.parametrize(("atomic", "operations"), RIGHT)
def test_the_lint_lets_pass(atomic: bool, operations: list[Any]) -> None:
    assert list(problems(made(atomic, operations))) == []
