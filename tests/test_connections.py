"""What a node asks of its connections: dead ones are noticed, and do not outlive their worker."""

import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.db.backends.signals import connection_created
from django.tasks import default_task_backend

from dbtasks.engines import Claimant
from dbtasks.engines.network import limit_silence
from dbtasks.engines.postgresql import PostgreSQLEngine
from dbtasks.queues import QueueSelection
from tests.app import tasks
from tests.node import Node, finished
from tests.waiting import wait_until

OPTIONS = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
CHECKS_CLIENTS = 140000  # the first version of PostgreSQL that can
PROMPTLY = 8.0  # seconds; PostgreSQL looks every two
SLEEPING = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND query LIKE 'SELECT pg_sleep%%' AND state = 'active'"""


def ask(query: str) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(query)
        return [row[0] for row in cursor.fetchall()]


def test_the_query_of_a_killed_worker_ends_promptly(db: None, database: str) -> None:
    if database != "postgresql" or connection.pg_version < CHECKS_CLIENTS:  # type: ignore[attr-defined]
        pytest.skip("PostgreSQL 14 and later")
    with Node(workers=1) as node:
        result = tasks.sleep_in_the_database.using(max_crashes=0).enqueue(300)
        (backend,) = wait_until(lambda: ask(SLEEPING))
        os.kill(node.child("1"), signal.SIGKILL)
        wait_until(lambda: backend not in ask(SLEEPING), PROMPTLY, "the query to end")
        assert finished(result).status == "FAILED"


def test_a_worker_notices_within_a_minute_that_its_server_is_gone(db: None, database: str) -> None:
    if database == "sqlite":
        pytest.skip("SQLite has no server")
    with Node(workers=1) as node:
        first = tasks.socket_options.enqueue(OPTIONS)
        assert finished(first).return_value["TCP_KEEPIDLE"] == 20
        assert first.return_value["TCP_KEEPINTVL"] * first.return_value["TCP_KEEPCNT"] == 40
        assert first.return_value.get("TCP_USER_TIMEOUT", 60000) == 60000
        # So it is on a connection that replaced another one.
        assert finished(tasks.break_connection.enqueue()).is_finished
        assert finished(tasks.socket_options.enqueue(OPTIONS)).return_value == first.return_value
        assert node.running


@pytest.fixture
def engine(db: None, database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[PostgreSQLEngine]:
    """PostgreSQL's, in a process that is not a node; it is as before at the end."""
    if database != "postgresql":
        pytest.skip("about PostgreSQL's parameters")
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", {})
    engine = PostgreSQLEngine("default", "default")
    yield engine
    connection_created.disconnect(engine._on_connection)
    connection.close()


def test_what_the_project_has_set_stays(engine: PostgreSQLEngine) -> None:
    connection.settings_dict["OPTIONS"] = {
        "connect_timeout": 3,
        "keepalives_idle": 77,
        "options": "-c client_connection_check_interval=7s",
    }
    engine.prepare_connections(60.0)
    assert ask("SHOW client_connection_check_interval") == ["7s"]
    options = tasks.socket_options.func(OPTIONS)
    assert (options["TCP_KEEPIDLE"], options["TCP_KEEPINTVL"]) == (77, 10)
    assert connection.settings_dict["OPTIONS"]["connect_timeout"] == 3


def test_a_server_that_refuses_the_setting_is_used_without_it(
    engine: PostgreSQLEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbtasks.engines.postgresql.NOTICE_DEATH", "SET no_such_setting = 1")
    engine.prepare_connections(60.0)
    assert ask("SELECT 1") == [1]


def test_new_connections_are_tried_for_a_limited_time(engine: PostgreSQLEngine) -> None:
    for patience, expected in ((60.0, 10), (10.0, 5), (1.0, 2)):
        connection.settings_dict["OPTIONS"] = {}
        engine.prepare_connections(patience)
        assert connection.settings_dict["OPTIONS"] == {"connect_timeout": expected}


@pytest.mark.once
def test_a_unix_socket_needs_no_probes() -> None:
    one, other = socket.socketpair()
    with one, other:
        limit_silence(one.fileno(), 60.0)
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


@pytest.mark.once
def test_an_sqlite_that_may_only_be_read_is_waited_for_and_no_error(db: None) -> None:
    engine = default_task_backend.engine
    tasks.noop.enqueue()
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA query_only = ON")
    with pytest.raises(OperationalError) as refusal:
        engine.claim(Claimant("node", "worker"), QueueSelection())
    assert engine.unavailable(refusal.value) == (
        "database 'default': attempt to write a readonly database"
    )
