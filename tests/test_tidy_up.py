"""What is put in order on a worker's connections between two tasks."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connection, connections, transaction
from django.db.backends.signals import connection_created
from django.tasks import default_task_backend

from dbtasks.consumer import Consumer
from dbtasks.engines import Claimant
from dbtasks.hygiene import tidy_up
from dbtasks.queues import QueueSelection
from tests.app import tasks
from tests.app.models import Note
from tests.test_strays import Patient

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Any]:
    """A connection to a second database, that is kept open between requests."""
    connections.databases["other"] = connections.configure_settings(
        {
            **settings.DATABASES,
            "other": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": str(tmp_path / "other.sqlite3"),
                "CONN_MAX_AGE": None,
            },
        }
    )["other"]
    yield connections["other"]
    connections["other"].close()
    del connections["other"]
    del connections.databases["other"]


def tidy() -> None:
    tidy_up(default_task_backend.engine)  # type: ignore[attr-defined]


def test_a_transaction_on_another_database_is_rolled_back(other: Any) -> None:
    with other.cursor() as cursor:
        cursor.execute("CREATE TABLE t (n integer)")
    transaction.atomic(using="other").__enter__()
    with other.cursor() as cursor:
        cursor.execute("INSERT INTO t VALUES (1)")
    tidy()
    assert not other.in_atomic_block
    with other.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM t")
        assert cursor.fetchone() == (0,)


def test_a_connection_to_another_database_lives_as_long_as_after_a_request(other: Any) -> None:
    other.ensure_connection()
    tidy()
    assert other.connection is not None
    other.close_at = time.monotonic()
    tidy()
    assert other.connection is None


def test_the_connection_to_the_queue_is_kept() -> None:
    """Whatever CONN_MAX_AGE says, and over tasks that use it as they should."""
    opened: list[str] = []
    connections.close_all()
    connection_created.connect(note_opening := lambda **kwargs: opened.append("one"))
    for number in range(10):
        tasks.note.enqueue(str(number))
    control = Patient()
    consumer = Consumer(
        default_task_backend,  # type: ignore[arg-type]
        Claimant("node", "worker"),
        QueueSelection(),
        control,
    )
    consumer.run()
    connection_created.disconnect(note_opening)
    assert consumer.processed == 10
    assert opened == ["one"]


def test_a_transaction_begun_behind_djangos_back_is_seen_on_every_connection(
    database: str,
) -> None:
    connections.databases["other"] = {**connections.databases["default"], "CONN_MAX_AGE": None}
    other: Any = connections["other"]
    try:
        for _ in range(2):
            with other.cursor() as cursor:
                cursor.execute("START TRANSACTION" if database == "mysql" else "BEGIN")
                cursor.execute("INSERT INTO app_note (text) VALUES ('never committed')")
            del cursor
            tidy()
            assert other.connection is None
        other.ensure_connection()
        tidy()
        assert other.connection is not None
        assert not Note.objects.exists()
    finally:
        other.close()
        del connections["other"]
        del connections.databases["other"]


@pytest.mark.once
def test_queries_are_forgotten_under_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "DEBUG", True)
    Note.objects.count()
    assert len(connection.queries_log) == 1
    tidy()
    assert len(connection.queries_log) == 0
