"""LISTEN and NOTIFY on PostgreSQL: who is told of new rows, how often, and who hears it."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Collection
from typing import Any

from django.db import OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper

from .base import NOTIFY_INTERVAL
from .connection import Connected


class Notices:
    """Of which queues this process has told the schedulers already.

    Outside of a transaction at most one notification per queue and NOTIFY_INTERVAL is sent:
    schedulers look again after as long. Inside, it is the first insert's, and goes out with the
    commit, whenever that is. A transaction is told by the list of its commit hooks: Django puts a
    new one in its place at each commit, rollback and rollback to a savepoint, so that as long as it
    is the same list, what was notified since then is still going to be sent.
    """

    def __init__(self) -> None:
        self._sent: dict[str, float] = {}
        self._open = OpenTransaction()

    def due(self, connection: BaseDatabaseWrapper, queues: Collection[str]) -> list[str]:
        """Those of the queues whose rows the schedulers are to be told of by this statement."""
        if connection.in_atomic_block:
            return self._open.untold(connection.run_on_commit, queues)
        if not connection.autocommit:  # nobody can tell where such a transaction ends
            return sorted(queues)
        now = time.monotonic()
        due = [queue for queue in queues if now - self._sent.get(queue, 0.0) >= NOTIFY_INTERVAL]
        self._sent.update(dict.fromkeys(due, now))
        return due


class OpenTransaction(threading.local):
    """What was told in the transaction that is open, if that is the one of `hooks`."""

    def __init__(self) -> None:
        self._hooks: Any = None
        self._told: set[str] = set()

    def untold(self, hooks: Any, queues: Collection[str]) -> list[str]:
        if hooks is not self._hooks:
            self._hooks, self._told = hooks, set()
        elif self._told.issuperset(queues):
            return []
        untold = [queue for queue in queues if queue not in self._told]
        self._told.update(untold)
        return untold


class Listener:
    """LISTEN on the scheduler's own connection; listens again whenever that was replaced."""

    tells = True
    interval: float | None = None

    def __init__(self, engine: Connected, channel: str) -> None:
        self.engine = engine
        self.channel = channel
        self._connection: Any = None
        self._seen = threading.Event()

    def fileno(self) -> int | None:
        raw = self.engine.connection.connection
        if raw is None or raw is not self._connection:
            return None
        with contextlib.suppress(Exception):
            return int(raw.fileno())
        return None

    def changed(self) -> bool:
        """Whether a notification came; also True after (re)connecting, since some were missed."""
        connection = self.engine.connection
        connection.ensure_connection()
        raw: Any = connection.connection
        if raw is not self._connection:
            raw.add_notify_handler(lambda notification: self._seen.set())
            with connection.cursor() as cursor:
                cursor.execute(f'LISTEN "{self.channel}"')
            self._connection = raw
            return True
        try:
            raw.pgconn.consume_input()
            while raw.pgconn.notifies() is not None:
                self._seen.set()
        except Exception as error:
            raise OperationalError(str(error)) from error
        seen = self._seen.is_set()
        self._seen.clear()
        return seen


def channel_name(backend: str) -> str:
    """PostgreSQL cuts identifiers at 63 bytes, so long names are hashed."""
    name = f"dbtasks_{backend}"
    if len(name.encode()) <= 63 and '"' not in name:
        return name
    return f"dbtasks_{hashlib.sha256(backend.encode()).hexdigest()[:32]}"
