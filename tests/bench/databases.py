"""The databases that are measured, as the benchmark sees them: SQL, counters and clean slates.

No Django here: what is measured runs in processes of its own, ours and the peers' alike.
"""

import contextlib
import datetime
import importlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Database:
    """One database on a server that runs."""

    vendor: str  # "sqlite", "postgresql" or "mariadb"
    url: str

    def connect(self) -> Any:
        """A DB-API connection in autocommit mode."""
        parts = urlsplit(self.url)
        if self.vendor == "sqlite":
            return sqlite3.connect(
                unquote(parts.path)[1:], timeout=WAIT_SECONDS, isolation_level=None
            )
        if self.vendor == "postgresql":
            return importlib.import_module("psycopg").connect(self.url, autocommit=True)
        return importlib.import_module("MySQLdb").connect(
            host=parts.hostname or "127.0.0.1",
            port=parts.port or 3306,
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            database=parts.path[1:],
            autocommit=True,
        )

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        """Run one statement over a connection of its own; the rows, if it returns any."""
        with contextlib.closing(self.connect()) as connection:
            cursor = connection.cursor()
            cursor.execute(sql)
            return [tuple(row) for row in cursor.fetchall()] if cursor.description else []

    def beside(self, name: str) -> "Database":
        """Another, empty database on the same server (SQLite: another file of the same folder)."""
        parts = urlsplit(self.url)
        if self.vendor == "sqlite":
            path = Path(unquote(parts.path)[1:]).with_name(f"{name}.sqlite3")
            for leftover in path.parent.glob(f"{path.name}*"):
                leftover.unlink()
            return Database(self.vendor, f"sqlite:///{path}")
        self.ask(f"DROP DATABASE IF EXISTS {name}")
        self.ask(f"CREATE DATABASE {name}" + self._character_set())
        return Database(self.vendor, parts._replace(path=f"/{name}").geturl())

    def _character_set(self) -> str:
        return " CHARACTER SET utf8mb4" if self.vendor == "mariadb" else ""

    def settle(self) -> None:
        """Fresh statistics and no dirty pages: every run begins on equal terms."""
        if self.vendor == "postgresql":
            self.ask("VACUUM ANALYZE")
            self.ask("CHECKPOINT")
        elif self.vendor == "mariadb":
            for (table,) in self.ask("SHOW TABLES"):
                self.ask(f"ANALYZE TABLE {table}")
        elif self.vendor == "sqlite":
            self.ask("PRAGMA wal_checkpoint(TRUNCATE)")

    def span(self, sql: str) -> float:
        """The seconds between the two times that `sql` selects."""
        first, last = map(as_time, self.ask(sql)[0])
        return (last - first).total_seconds()

    def questions(self) -> tuple[str, float] | None:
        """What the server has been asked so far, and what it counts; None where it counts nothing.

        PostgreSQL counts per database, so ask another one; MariaDB's own count is one of them.
        """
        if self.vendor == "postgresql":
            name = urlsplit(self.url).path[1:]
            rows = Database(
                self.vendor, urlsplit(self.url)._replace(path="/postgres").geturl()
            ).ask(
                f"SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = '{name}'"
            )
            return "transactions/min", float(rows[0][0])
        if self.vendor == "mariadb":
            return "statements/min", float(self.ask("SHOW GLOBAL STATUS LIKE 'Questions'")[0][1])
        return None

    def connections(self) -> int | None:
        """How many clients are connected to this database, without this one."""
        if self.vendor == "postgresql":
            rows = self.ask(
                "SELECT count(*) - 1 FROM pg_stat_activity WHERE datname = current_database()"
            )
            return int(rows[0][0])
        if self.vendor == "mariadb":
            return int(self.ask("SHOW STATUS LIKE 'Threads_connected'")[0][1]) - 1
        return None


def as_time(value: Any) -> datetime.datetime:
    """SQLite gives times as text."""
    if isinstance(value, str):
        return datetime.datetime.fromisoformat(value)
    if isinstance(value, datetime.datetime):
        return value
    raise ValueError(f"no time but {value!r}: did any task run?")


def columns(connection: Any, table: str) -> Sequence[str]:
    cursor = connection.cursor()
    cursor.execute(f"SELECT * FROM {table} WHERE 1 = 0")
    return [str(column[0]) for column in cursor.description]
