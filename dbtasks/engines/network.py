"""Connections that cross a network: how soon one notices that nobody is at its other end.

A server that is gone answers neither yes nor no, and TCP's own patience is fifteen minutes for what
was sent and, while an answer is awaited, two hours. The kernel is asked for less, per connection:
keepalive probes and TCP_USER_TIMEOUT (tcp(7), RFC 5482). Whoever waits then gets an error and
connects again in place, with all that it holds. A server that is there but silent answers the
probes; that takes a supervisor who looks at the clock.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from .connection import Connected

CONNECT_TIMEOUT = 10  # seconds; where the project names none, drivers wait for minutes or for ever
CONNECTION_PATIENCE = 60.0  # seconds; a task's own queries outlive any shorter trouble
PROBES = 4


class Networked(Connected):
    """What PostgreSQL and MySQL do for the connections of a process."""

    patience = 0.0

    def prepare_connections(self, patience: float) -> None:
        self.patience = patience
        options = self.connection.settings_dict.setdefault("OPTIONS", {})
        if "PGCONNECT_TIMEOUT" not in os.environ:
            # Two of them fit in: after a first failure a new connection is tried at once.
            options.setdefault("connect_timeout", max(2, min(CONNECT_TIMEOUT, int(patience / 2))))
        connection_created.connect(self._on_connection)

    def _on_connection(self, connection: BaseDatabaseWrapper, **more: object) -> None:
        if connection.alias == self.alias:
            self.prepare_connection(connection)

    def prepare_connection(self, connection: BaseDatabaseWrapper) -> None:
        """A new connection to the queue's database, by whomever it was opened."""
        raw: Any = connection.connection
        # Older drivers of MySQL do not tell their socket.
        with contextlib.suppress(AttributeError, OSError):
            limit_silence(raw.fileno(), self.patience)


def limit_silence(descriptor: int, seconds: float) -> None:
    """Breaks a TCP connection whose peer was silent for so long; a Unix socket knows by itself.

    What the project has set (libpq's `keepalives_idle`, say) stays. Raises OSError.
    """
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        if connection.family not in (socket.AF_INET, socket.AF_INET6):
            return
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        with socket.socket(connection.family, socket.SOCK_STREAM) as untouched:
            for option, value in limits(seconds):
                if same(connection, untouched, option):
                    connection.setsockopt(socket.IPPROTO_TCP, option, value)


def limits(seconds: float) -> Iterator[tuple[int, int]]:
    """The options that this system has, and their values: idle for a third, then the probes."""
    wanted = {
        "TCP_KEEPIDLE": max(1, round(seconds / 3)),
        "TCP_KEEPINTVL": max(1, round(seconds * 2 / 3 / PROBES)),
        "TCP_KEEPCNT": PROBES,
        "TCP_USER_TIMEOUT": round(seconds * 1000),
    }
    for name, value in wanted.items():
        if (option := getattr(socket, name, None)) is not None:
            yield option, value


def same(one: socket.socket, other: socket.socket, option: int) -> bool:
    tcp = socket.IPPROTO_TCP
    return one.getsockopt(tcp, option) == other.getsockopt(tcp, option)
