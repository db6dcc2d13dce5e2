"""Examines what the queue stands on: settings, tables, the database, clocks; then the queue itself.

Each examination returns the troubles that it found, and each trouble says what to do.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator

from django.core import checks
from django.db import connections
from django.db.migrations.loader import MigrationLoader

from .backend import DatabaseBackend
from .engines.connection import migrate_command
from .engines.examine import Facts, TableHealth, facts
from .fields import OnlyPartialIndex
from .models import APP_LABEL, ScheduledTask
from .troubles import Trouble, judge, look, told

ADDED_LATER = {"dbtasks_failed": "0006"}  # indexes that the first migration does not have
SKEW = 2.0  # seconds that the clocks of this host and of the database may differ
LONG_TRANSACTION = 900.0  # seconds
FEW_DEAD = 10_000  # rows; fewer are no trouble in any table
NOT_VACUUMED = 3600.0  # seconds
FULL = 0.9  # of the connections that the server allows
SMALL_PACKET = 4 << 20  # bytes
MUCH_FREE, WORTH_FREEING = 0.5, 64 << 20  # a share of the file, and bytes
OTHER_PROCESSES = 2  # of a node that connect besides its workers: scheduler and janitor

Examination = Callable[[DatabaseBackend], list[Trouble]]


def examine(backend: DatabaseBackend) -> Iterator[tuple[str, list[Trouble]]]:
    """Each examination's name and what it found. Raises DatabaseError.

    What is missing in the tables ends it: nothing else can be asked then.
    """
    yield "settings", settings(backend)
    unmigrated = migrations(backend)
    yield "migrations", unmigrated
    if unmigrated:
        return
    yield "indexes", indexes(backend)
    yield "clocks", clocks(backend)
    found = facts(backend.engine)  # type: ignore[arg-type]
    yield "database", [*server(found), *history(found), *files(found)]
    yield "connections", budget(backend, found)
    yield "queue", judge(look(backend.alias))


def settings(backend: DatabaseBackend) -> list[Trouble]:
    """What `manage.py check` says about the backend."""
    return [
        Trouble(
            str(message.id),
            "error" if message.level >= checks.ERROR else "warning",
            str(message.msg),
            str(message.hint or "correct the settings"),
        )
        for message in backend.check()
    ]


def migrations(backend: DatabaseBackend) -> list[Trouble]:
    alias = backend.parsed.database
    loader = MigrationLoader(connections[alias])
    wanted = [
        key
        for leaf in loader.graph.leaf_nodes(APP_LABEL)
        for key in loader.graph.forwards_plan(leaf)
    ]
    missing = [name for app, name in wanted if (app, name) not in loader.applied_migrations]
    if not missing:
        return []
    return [
        Trouble(
            "migrations",
            "error",
            f"not applied to database {alias!r}: {', '.join(missing)}",
            migrate_command(alias),
        )
    ]


def indexes(backend: DatabaseBackend) -> list[Trouble]:
    connection = connections[backend.parsed.database]
    table = ScheduledTask._meta.db_table
    with connection.cursor() as cursor:
        existing = connection.introspection.get_constraints(cursor, table)
    return [
        Trouble(
            "index-missing",
            "error",
            f"the index {index.name} on {table} is missing; claims and looks read the whole table",
            "create it again as the migrations do: manage.py sqlmigrate "
            f"{APP_LABEL} {ADDED_LATER.get(index.name, '0001')}",
        )
        for index in ScheduledTask._meta.indexes
        if index.name not in existing
        and not (isinstance(index, OnlyPartialIndex) and not index.exists_on(connection))
    ]


def clocks(backend: DatabaseBackend) -> list[Trouble]:
    began = time.monotonic()
    theirs = backend.engine.now()
    ours = datetime.datetime.now(datetime.UTC)
    return skew((ours - theirs).total_seconds(), time.monotonic() - began)


def skew(seconds: float, asked_for: float) -> list[Trouble]:
    """`seconds` that our clock is ahead; the question took `asked_for`."""
    if abs(seconds) <= SKEW + asked_for:
        return []
    return [
        Trouble(
            "clock",
            "warning",
            f"this host's clock is {abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'} "
            "the database's; tasks with run_after start as much too early or too late",
            "let both follow NTP (timedatectl, chronyc tracking)",
        )
    ]


def server(found: Facts) -> list[Trouble]:
    troubles = []
    if found.pooled:
        troubles.append(
            Trouble(
                "pooler",
                "warning",
                "a connection pooler (PgBouncer?) stands between us and PostgreSQL; in transaction "
                "mode it does not pass on notifications, so an idle worker learns of a task later",
                "give the workers a direct connection (OPTIONS['database'] of TASKS), or live with "
                "--delay; DISABLE_SERVER_SIDE_CURSORS must be True behind it",
            )
        )
    if found.invalid_indexes:
        names = ", ".join(found.invalid_indexes)
        troubles.append(
            Trouble(
                "index-invalid",
                "error",
                f"PostgreSQL does not use these indexes, since making them failed: {names}",
                f"REINDEX INDEX CONCURRENTLY {found.invalid_indexes[0]};",
            )
        )
    if found.oldest_transaction > LONG_TRANSACTION:
        troubles.append(
            Trouble(
                "long-transaction",
                "warning",
                f"a transaction has been open for {told(found.oldest_transaction)}; until it ends, "
                "dead rows of the queue cannot be cleared away and claims become slow",
                "find and end it (pg_stat_activity, SHOW PROCESSLIST); set "
                "idle_in_transaction_session_timeout on PostgreSQL",
            )
        )
    if found.isolation and found.isolation.upper() != "READ-COMMITTED":
        troubles.append(
            Trouble(
                "isolation",
                "warning",
                f"the isolation level is {found.isolation}; claims lock gaps and block each other",
                "leave isolation_level out of the OPTIONS of DATABASES, or set 'read committed'",
            )
        )
    if 0 < found.max_packet < SMALL_PACKET:
        troubles.append(
            Trouble(
                "max-packet",
                "warning",
                f"max_allowed_packet is {found.max_packet >> 10} KiB; larger results are refused",
                "raise it to 64M in my.cnf",
            )
        )
    return troubles


def history(found: Facts) -> list[Trouble]:
    """Dead rows that autovacuum does not clear away."""
    return [trouble for table in found.tables for trouble in bloat(table)]


def bloat(table: TableHealth) -> list[Trouble]:
    troubles = []
    if not table.autovacuum:
        troubles.append(
            Trouble(
                "autovacuum-off",
                "error",
                f"autovacuum is off for {table.name}; it grows without end and claims become slow",
                f"ALTER TABLE {table.name} RESET (autovacuum_enabled); and autovacuum = on",
            )
        )
    late = table.vacuumed is None or table.vacuumed > NOT_VACUUMED
    if late and table.dead > max(FEW_DEAD, table.live):
        since = "never" if table.vacuumed is None else f"{told(table.vacuumed)} ago"
        troubles.append(
            Trouble(
                "bloat",
                "warning",
                f"{table.name} has {table.dead} dead rows beside {table.live} living ones; it was "
                f"last vacuumed {since}",
                f"VACUUM (ANALYZE) {table.name}; and lower autovacuum_vacuum_scale_factor for it",
            )
        )
    return troubles


def files(found: Facts) -> list[Trouble]:
    """Of SQLite."""
    troubles = []
    if found.journal_mode and found.journal_mode.lower() not in ("wal", "memory"):
        troubles.append(
            Trouble(
                "journal-mode",
                "warning",
                f"the journal mode is {found.journal_mode}; readers and writers wait for each "
                "other",
                "PRAGMA journal_mode=WAL; in OPTIONS['init_command'] of DATABASES",
            )
        )
    if found.free_share > MUCH_FREE and found.size * found.free_share > WORTH_FREEING:
        troubles.append(
            Trouble(
                "free-pages",
                "warning",
                f"{found.free_share:.0%} of the database's file is free",
                "VACUUM; while no worker runs gives it back",
            )
        )
    return troubles


def budget(backend: DatabaseBackend, found: Facts) -> list[Trouble]:
    """Whether the server has connections for all workers."""
    if not found.max_connections:
        return []
    seen = look(backend.alias)
    wanted = len(seen.workers) + OTHER_PROCESSES * len(seen.living)
    return shortage(found.connections, found.max_connections, wanted)


def shortage(used: int, most: int, wanted: int) -> list[Trouble]:
    """`wanted`: by the nodes that run now, which are part of `used`."""
    if wanted <= most * FULL and used <= most * FULL:
        return []
    return [
        Trouble(
            "connections",
            "warning",
            f"{used} of {most} connections of the server are in use; the nodes need {wanted}",
            "fewer workers (-w), a higher max_connections, or a pooler for the web processes",
        )
    ]
