"""What only the database itself can tell about its health; one function per database.

Facts, not judgements: those are made in dbtasks.doctor, where the advice is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .connection import Connected

TABLES = ("dbtasks_scheduledtask", "dbtasks_node", "dbtasks_worker")


class TableHealth(NamedTuple):
    """Rows that are dead but not cleared away, and when (seconds ago) they were last cleared."""

    name: str
    live: int
    dead: int
    vacuumed: float | None
    autovacuum: bool


class Facts(NamedTuple):
    """None, empty or 0 where the database has no such thing."""

    version: str = ""
    connections: int = 0
    max_connections: int = 0
    pooled: bool = False
    invalid_indexes: tuple[str, ...] = ()
    tables: tuple[TableHealth, ...] = ()
    oldest_transaction: float = 0.0  # seconds
    journal_mode: str = ""
    free_share: float = 0.0  # of the file, from 0 to 1
    size: int = 0  # bytes
    isolation: str = ""
    max_packet: int = 0  # bytes


POSTGRESQL_TABLES = """
SELECT s.relname, s.n_live_tup, s.n_dead_tup,
    EXTRACT(EPOCH FROM {now} - GREATEST(s.last_vacuum, s.last_autovacuum)),
    COALESCE((
        SELECT bool_and(option NOT IN ('autovacuum_enabled=false', 'autovacuum_enabled=off'))
        FROM unnest(c.reloptions) option
    ), true) AND current_setting('autovacuum')::bool
FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid
WHERE s.relname IN (%s, %s, %s) AND s.schemaname = ANY (current_schemas(false))"""
POSTGRESQL_INVALID = """
SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_class t ON t.oid = i.indrelid WHERE t.relname IN (%s, %s, %s) AND NOT i.indisvalid"""
POSTGRESQL_SERVER = """
SELECT current_setting('server_version'),
    (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
    current_setting('max_connections')::int
        - current_setting('superuser_reserved_connections')::int,
    pg_backend_pid(),
    (SELECT COALESCE(MAX(EXTRACT(EPOCH FROM {now} - xact_start)), 0) FROM pg_stat_activity
     WHERE datname = current_database() AND backend_type = 'client backend'
       AND pid <> pg_backend_pid())"""
MYSQL_SERVER = """
SELECT VERSION(), @@max_connections, @@max_allowed_packet"""
MYSQL_ISOLATION = "SELECT @@{name}"
MYSQL_CONNECTIONS = "SHOW GLOBAL STATUS LIKE 'Threads_connected'"
MYSQL_OLDEST = """
SELECT COALESCE(MAX(TIMESTAMPDIFF(SECOND, trx_started, NOW())), 0)
FROM information_schema.innodb_trx WHERE trx_mysql_thread_id <> CONNECTION_ID()"""


def facts(engine: Connected) -> Facts:
    """What can be had; a right that the project's user lacks leaves a fact out."""
    match engine.connection.vendor:
        case "postgresql":
            return postgresql(engine)
        case "mysql":
            return mysql(engine)
    return sqlite(engine)


def postgresql(engine: Connected) -> Facts:
    ((version, used, most, server_pid, oldest),) = engine.rows(POSTGRESQL_SERVER)
    raw: Any = engine.connection.connection
    tables = [
        TableHealth(name, int(live), int(dead), None if age is None else float(age), bool(on))
        for name, live, dead, age, on in engine.rows(POSTGRESQL_TABLES, TABLES)
    ]
    return Facts(
        version=str(version),
        connections=int(used),
        max_connections=int(most),
        # A pooler answers the start of a session itself, with a number of its own.
        pooled=raw.info.backend_pid != server_pid,
        invalid_indexes=tuple(str(name) for (name,) in engine.rows(POSTGRESQL_INVALID, TABLES)),
        tables=tuple(tables),
        oldest_transaction=float(oldest),
    )


def mysql(engine: Connected) -> Facts:
    from django.db import DatabaseError

    ((version, most, packet),) = engine.rows(MYSQL_SERVER)
    connection: Any = engine.connection
    name = "tx_isolation" if connection.mysql_is_mariadb else "transaction_isolation"
    ((isolation,),) = engine.rows(MYSQL_ISOLATION, name=name)
    ((_, used),) = engine.rows(MYSQL_CONNECTIONS)
    try:
        ((oldest,),) = engine.rows(MYSQL_OLDEST)
    except DatabaseError:  # the PROCESS privilege is missing
        oldest = 0
    return Facts(
        version=str(version),
        connections=int(used),
        max_connections=int(most),
        oldest_transaction=float(oldest),
        isolation=str(isolation),
        max_packet=int(packet),
    )


def sqlite(engine: Connected) -> Facts:
    def pragma(name: str) -> Any:
        return engine.rows("PRAGMA {name}", name=name)[0][0]

    pages, free = int(pragma("page_count")), int(pragma("freelist_count"))
    ((version,),) = engine.rows("SELECT sqlite_version()")
    return Facts(
        version=str(version),
        journal_mode=str(pragma("journal_mode")),
        free_share=free / pages if pages else 0.0,
        size=pages * int(pragma("page_size")),
    )
