"""The database is away, at the start or in the middle: wait, say so once, and go on by itself."""

import signal
import time
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

pytestmark = pytest.mark.outage
MODES = pytest.mark.parametrize("mode", ["process", "thread"])
SERVER_OF = {"postgresql": "postgresql", "mysql": "mariadb"}
LOAD = 300
PROMPTLY = 4.0  # seconds
QUIET = 3.0  # seconds for which we count what is said


@pytest.fixture(scope="module")
def server(database: str) -> Iterator[Daemon | None]:
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


@pytest.fixture
def place(server: Daemon | None, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    """An empty database of the test's own."""
    if server is None:
        folder = tmp_path / "database"
        folder.mkdir()
        url = f"sqlite:///{folder}/db.sqlite3"
    else:
        server.start()
        name = f"outage_{abs(hash(request.node.name)) % 10**9}"
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


def node(place: Place, mode: str, *flags: str) -> Process:
    return supervise("-w", "2", "--mode", mode, *flags, env=place.env)


def assert_told_once(process: Process, *words: str) -> None:
    """One line that says what is wrong, and silence after it."""
    process.wait_for("degraded: ")
    (line,) = [line for line in process.lines if "degraded: " in line]
    assert all(word in line for word in words), line
    told = len(process.lines)
    deadline = time.monotonic() + QUIET
    while time.monotonic() < deadline:
        assert process.popen.poll() is None
        time.sleep(0.1)
    # "ready" may still follow: the node is up, and waits.
    assert len(process.lines) <= told + 2, process.stderr
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


# At the start


@MODES
def test_a_database_that_is_away_at_the_start_is_waited_for(place: Place, mode: str) -> None:
    place.migrate()
    place.go_away()
    with node(place, mode) as process:
        assert_told_once(process, "'default'")
        place.come_back()
        assert_works(process)


@MODES
def test_missing_tables_are_waited_for_and_the_command_is_named(place: Place, mode: str) -> None:
    with node(place, mode) as process:
        assert_told_once(process, "manage.py migrate")
        place.migrate()
        assert_works(process)


@MODES
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_node_that_waits_for_its_database_can_be_stopped(
    place: Place, mode: str, signum: int
) -> None:
    place.migrate()
    place.go_away()
    with node(place, mode) as process:
        process.wait_for("degraded: ")
        process.signal(signum)
        assert process.wait(PROMPTLY) == 0
        assert "Traceback" not in process.stderr
    place.come_back()


def test_burst_waits_for_the_database_too(place: Place) -> None:
    place.migrate()
    tasks.noop.enqueue()
    place.go_away()
    with node(place, "process", "--burst") as process:
        process.wait_for("degraded: ")
        place.come_back()
        assert process.wait(20) == 0
    assert ScheduledTask.objects.get().status == "SUCCESSFUL"


# In the middle


def enqueue_load() -> None:
    """Return in the middle of it."""
    done = ScheduledTask.objects.filter(status="SUCCESSFUL")
    before = done.count()
    database_backend("default").enqueue_all([(tasks.noop, [], {})] * LOAD)
    wait_until(lambda: done.count() > before + LOAD // 10)


def all_done() -> bool:
    """Whether every task is SUCCESSFUL."""
    return not ScheduledTask.objects.exclude(status="SUCCESSFUL").exists()


@MODES
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_database_that_restarts_under_load_loses_no_task(
    place: Place, server: Daemon | None, mode: str, how: str
) -> None:
    if server is None:
        pytest.skip("SQLite has no server")
    place.migrate()
    with node(place, mode) as process:
        process.wait_for("ready")
        workers = process.workers
        for outages in (1, 2):
            enqueue_load()
            connection.close()
            getattr(server, how)()
            process.wait_for("degraded: ", times=outages)
            server.start()
            process.wait_for("recovered: ", times=outages)
            wait_until(all_done, 30, "every task to be SUCCESSFUL")
            assert process.workers == workers
        assert process.count("degraded: ") == process.count("recovered: ") == 2, process.stderr
        assert "Traceback" not in process.stderr
        assert process.terminate() == 0
    assert ScheduledTask.objects.count() == 2 * LOAD


@MODES
def test_a_database_that_hangs_does_not_keep_the_node_from_leaving(
    place: Place, server: Daemon | None, mode: str
) -> None:
    if server is None:
        pytest.skip("SQLite has no server")
    place.migrate()
    with node(place, mode, "--grace", "0.1") as process:
        process.wait_for("ready")
        connection.close()
        server.pause()
        try:
            process.signal(signal.SIGTERM)
            assert process.wait(25) == 0
        finally:
            server.resume()
