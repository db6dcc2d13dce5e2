"""The queue's SQL: one contract (base.py), one module per database."""

from __future__ import annotations

import functools

from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from .base import (
    CancelRequest,
    Claimant,
    Claimed,
    Counts,
    Death,
    Engine,
    NewOccurrence,
    NewTask,
    NodeInfo,
    Outcome,
    PauseRow,
    PeriodicRow,
    Rescued,
    Settled,
    Watcher,
)

__all__ = [
    "CancelRequest",
    "Claimant",
    "Claimed",
    "Counts",
    "Death",
    "Engine",
    "NewOccurrence",
    "NewTask",
    "NodeInfo",
    "Outcome",
    "PauseRow",
    "PeriodicRow",
    "Rescued",
    "Settled",
    "Watcher",
    "get_engine",
]


@functools.cache
def get_engine(alias: str, backend: str) -> Engine:
    """The engine for the database `alias` and the backend of that name in TASKS.

    Raises ImproperlyConfigured for a database that no engine exists for.
    """
    vendor = connections[alias].vendor
    match vendor:
        case "postgresql":
            from .postgresql import PostgreSQLEngine

            return PostgreSQLEngine(alias, backend)
        case "mysql":
            from .mysql import MySQLEngine

            return MySQLEngine(alias, backend)
        case "sqlite":
            from .sqlite import SQLiteEngine

            return SQLiteEngine(alias, backend)
    raise ImproperlyConfigured(
        f"dbtasks runs on PostgreSQL, MySQL, MariaDB and SQLite; DATABASES[{alias!r}] is {vendor}. "
        'Set OPTIONS["database"] of the task backend to an alias of one of these.'
    )
