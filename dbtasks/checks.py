"""System checks. Each message says what to write; the ids are stable.

E001 OPTIONS is no dictionary · E002 an option has a wrong value · E003 unknown option ·
E004 a periodic entry is malformed · E005 a periodic path is no task · E006 the app is missing ·
E007 the queue's database is of a kind that dbtasks has no engine for · E008 AUTOCOMMIT is off ·
W001 SQLite without WAL · W002 SQLite without IMMEDIATE · W003 connection pool ·
W004 tasks would reconnect · W005 isolation level · W006 a migration is missing ·
W007 the database cannot be reached · W010 nodes run with other periodic entries than hold
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DatabaseError
from django.db import connections
from django.tasks import task_backends
from django.tasks.exceptions import InvalidTask

from .engines.connection import migrate_command
from .periodic import BoundPeriodic
from .results import NotATask

if TYPE_CHECKING:
    from .backend import DatabaseBackend


def check_backend(backend: DatabaseBackend) -> Iterator[checks.CheckMessage]:
    """What is wrong with one backend's configuration; asks no database."""
    where = f"TASKS[{backend.alias!r}]"
    for problem in backend.all_problems():
        yield checks.Error(problem.message, hint=problem.hint or None, id=f"dbtasks.{problem.code}")
    if not apps.is_installed("dbtasks"):
        yield checks.Error(
            f"{where} uses dbtasks, but the app is not installed.",
            hint='Add "dbtasks" to INSTALLED_APPS.',
            id="dbtasks.E006",
        )
        return
    yield from check_database(backend)
    for entry in backend.parsed.periodic:
        if message := periodic_problem(backend, entry):
            yield checks.Error(
                f"{where}['OPTIONS']['periodic'][{entry.task_path!r}]: {message}",
                hint="Name a module-level function decorated with @task by its dotted path.",
                id="dbtasks.E005",
            )


def periodic_problem(backend: DatabaseBackend, entry: BoundPeriodic) -> str | None:
    """Why the entry cannot be enqueued, or None."""
    from .periodic.calls import periodic_task

    try:
        task = periodic_task(backend, entry)
        if task.backend == backend.alias:
            backend.validate_task(task)
    except NotATask as error:
        return f"{error}."
    except ImportError as error:
        return f"cannot be imported: {error}."
    except InvalidTask as error:
        return str(error)
    except Exception as error:
        return f"importing it raised {type(error).__name__}: {error}."
    return None


def check_database(backend: DatabaseBackend) -> Iterator[checks.CheckMessage]:
    alias = backend.parsed.database
    where = f"DATABASES[{alias!r}]"
    try:
        backend.engine  # noqa: B018  raises for a database of another kind
    except ImproperlyConfigured as error:
        yield checks.Error(str(error), id="dbtasks.E007")
        return
    connection = connections[alias]
    configured: dict[str, Any] = connection.settings_dict
    options: dict[str, Any] = configured.get("OPTIONS") or {}
    if not configured.get("AUTOCOMMIT", True):
        yield checks.Error(
            f"{where} has AUTOCOMMIT off; claims and leases must commit at once.",
            hint='Remove "AUTOCOMMIT": False, or give OPTIONS["database"] an alias without it.',
            id="dbtasks.E008",
        )
    if connection.vendor == "sqlite":
        yield from check_sqlite(where, options, str(configured.get("NAME")))
    if options.get("pool"):
        yield checks.Warning(
            f"{where} has a connection pool. Worker processes keep one connection each and do "
            "without it, but each thread of a Runner draws from it.",
            hint="Give the runners an alias of the same database without OPTIONS['pool'], or make "
            "max_size at least the number of a Runner's workers + 2.",
            id="dbtasks.W003",
        )
    for other, other_settings in settings.DATABASES.items():
        if other != alias != "default" and other_settings.get("CONN_MAX_AGE", 0) == 0:
            yield checks.Warning(
                f"Tasks that use DATABASES[{other!r}] connect to it anew each time, since its "
                "CONN_MAX_AGE is 0.",
                hint='Set "CONN_MAX_AGE": 600 there (at least in the settings of the workers).',
                id="dbtasks.W004",
            )
    level = options.get("isolation_level", "read committed")
    if connection.vendor == "mysql" and str(level).lower() != "read committed":
        yield checks.Warning(
            f"{where} sets the isolation level {level!r}; under any but "
            "'read committed' claims lock gaps of the index and block each other.",
            hint="Remove isolation_level from its OPTIONS (Django's default is right).",
            id="dbtasks.W005",
        )


def check_sqlite(where: str, options: dict[str, Any], name: str) -> Iterator[checks.CheckMessage]:
    command = str(options.get("init_command") or "")
    in_memory = ":memory:" in name or "mode=memory" in name
    if not in_memory and not re.search(r"journal_mode\s*=\s*'?wal", command, re.IGNORECASE):
        yield checks.Warning(
            f"{where} does not switch on SQLite's write-ahead log; readers and writers will wait "
            "for each other.",
            hint=f"{where}['OPTIONS']['init_command'] = 'PRAGMA journal_mode=WAL; "
            "PRAGMA synchronous=NORMAL;'",
            id="dbtasks.W001",
        )
    if str(options.get("transaction_mode") or "").upper() not in ("IMMEDIATE", "EXCLUSIVE"):
        yield checks.Warning(
            f"{where} begins transactions without the write lock; those that read and then write "
            "can fail at once with 'database is locked' while workers write.",
            hint=f"{where}['OPTIONS']['transaction_mode'] = 'IMMEDIATE'",
            id="dbtasks.W002",
        )


def backends_on(databases: Sequence[str] | None) -> Iterator[DatabaseBackend]:
    """Those whose tables are in one of `databases`; none for `migrate`, which makes the tables."""
    from .backend import DatabaseBackend

    if sys.argv[1:2] == ["migrate"]:
        return
    for backend in task_backends.all():
        if not isinstance(backend, DatabaseBackend) or backend.problems:
            continue
        if backend.parsed.database in (databases or ()):
            yield backend


@checks.register(checks.Tags.database)
def check_tables(
    app_configs: Any = None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """W006, for `check --database` and `--check`: a warning, since `migrate` runs checks first."""
    return [message for backend in backends_on(databases) for message in missing_tables(backend)]


@checks.register(checks.Tags.database)
def check_deployments(
    app_configs: Any = None, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """W010, for `check --database`: normal during a rolling deploy, and a mistake after it."""
    return [message for backend in backends_on(databases) for message in differing_nodes(backend)]


def differing_nodes(backend: DatabaseBackend) -> Iterator[checks.CheckMessage]:
    try:
        found = backend.engine.deployments("")
    except (ImproperlyConfigured, DatabaseError):
        return  # E007, W006 and W007 say so
    names = sorted(found.names[id] for id, which in found.nodes.items() if which != found.holds)
    if names:
        yield checks.Warning(
            f"TASKS[{backend.alias!r}]: {', '.join(names)} run with other periodic entries in "
            "their settings than the newest deployment, whose entries hold.",
            hint="Finish the deploy: restart these nodes with the new settings.",
            id="dbtasks.W010",
        )


def missing_tables(backend: DatabaseBackend) -> Iterator[checks.CheckMessage]:
    database = backend.parsed.database
    try:
        if backend.engine.missing_tables():
            yield checks.Warning(
                f"The tables of dbtasks are missing in DATABASES[{database!r}], or older than "
                "the code.",
                hint=f"Run {migrate_command(database)}.",
                id="dbtasks.W006",
            )
    except ImproperlyConfigured:
        return  # E007 says so
    except DatabaseError as error:
        told = " ".join(str(error).split())
        yield checks.Warning(
            f"DATABASES[{database!r}] cannot be reached: {told}", id="dbtasks.W007"
        )
