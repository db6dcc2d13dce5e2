"""Databases that tests may break: a server of their own, and a node that must live with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.core.management import call_command
from django.db import connection

from dbtasks.models import ScheduledTask
from dbtasks.runner import database_backend
from tests.app import tasks
from tests.conftest import on_server
from tests.process import Process, supervise
from tests.servers import SERVERS, Daemon
from tests.settings import database_from_url
from tests.waiting import wait_until

SERVER_OF = {"postgresql": "postgresql", "mysql": "mariadb"}
QUIET = 3.0  # seconds for which we count what is said


def own_server(database: str) -> Iterator[Daemon | None]:
    """A server that these tests may stop, durable as those of production; none for SQLite."""
    if database == "sqlite":
        yield None
        return
    server = SERVERS[SERVER_OF[database]]()
    assert isinstance(server, Daemon)
    server.external, server.durable = None, True
    if reason := server.available():
        pytest.skip(reason)
    with server:
        yield server


class Place:
    """A database that can go away and come back; this process is connected to it, too."""

    def __init__(self, url: str, server: Daemon | None) -> None:
        self.url = url
        self.server = server
        self.path = Path(urlsplit(url).path)

    @property
    def env(self) -> dict[str, str]:
        return {"DBTASKS_TEST_DATABASE_URL": self.url}

    def go_away(self) -> None:
        connection.close()
        if self.server is not None:
            self.server.stop()
        else:
            self.path.parent.rename(self.path.parent.with_suffix(".away"))

    def come_back(self) -> None:
        if self.server is not None:
            self.server.start()
        else:
            self.path.parent.with_suffix(".away").rename(self.path.parent)

    def migrate(self) -> None:
        call_command("migrate", run_syncdb=True, interactive=False, verbosity=0)


@contextmanager
def own_place(server: Daemon | None, folder: Path, test: str) -> Iterator[Place]:
    """An empty database of the test's own."""
    if server is None:
        folder = folder / "database"
        folder.mkdir()
        url = f"sqlite:///{folder}/db.sqlite3"
    else:
        server.start()
        name = f"outage_{abs(hash(test)) % 10**9}"
        url = urlsplit(server.url)._replace(path=f"/{name}").geturl()
    with connected_to(url):
        on_server("CREATE DATABASE {}")
        yield Place(url, server)
        if server is not None:
            server.start()


@contextmanager
def connected_to(url: str) -> Iterator[None]:
    """This process's default database is ``url``."""
    saved = dict(connection.settings_dict)
    connection.close()
    connection.settings_dict.update(database_from_url(url))
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict.clear()
        connection.settings_dict.update(saved)


def node(place: Place, mode: str, *flags: str, **more: Any) -> Process:
    return supervise("-w", "2", "--mode", mode, *flags, env=place.env, **more)


def assert_told_once(process: Process, *words: str) -> None:
    """One line that says what is wrong, and silence after it."""
    process.wait_for("degraded: ")
    (line,) = [line for line in process.lines if "degraded: " in line]
    assert all(word in line for word in words), line
    told = len(process.lines)
    # "ready" may still follow: the node is up, and waits.
    with pytest.raises(AssertionError, match="in vain"):
        wait_until(lambda: process.popen.poll() is not None or len(process.lines) > told + 2, QUIET)
    assert process.count("degraded: ") == 1
    assert "Traceback" not in process.stderr


def assert_works(process: Process) -> None:
    process.wait_for("recovered: ")
    result = tasks.add.enqueue(1, 2)
    wait_until(lambda: finished(result), 20)
    assert result.return_value == 3
    assert process.count("degraded: ") == process.count("recovered: ") == 1
    assert "Traceback" not in process.stderr
    assert process.terminate() == 0


def finished(result: Any) -> bool:
    result.refresh()
    return bool(result.is_finished)


def enqueue_load(count: int) -> None:
    """Return in the middle of it."""
    done = ScheduledTask.objects.filter(status="SUCCESSFUL")
    before = done.count()
    database_backend("default").enqueue_all([(tasks.noop, [], {})] * count)
    wait_until(lambda: done.count() > before + count // 10)


def all_done() -> bool:
    """Whether every task is SUCCESSFUL."""
    return not ScheduledTask.objects.exclude(status="SUCCESSFUL").exists()
