"""The database is away, at the start or in the middle: wait, say so once, and go on by itself."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.db import connection

from dbtasks.models import ScheduledTask
from tests.app import tasks
from tests.outage import (
    Place,
    all_done,
    assert_told_once,
    assert_works,
    enqueue_load,
    node,
    own_place,
    own_server,
)
from tests.servers import Daemon
from tests.steps import FAST, Steps, numbered, unfinished
from tests.waiting import wait_until

pytestmark = pytest.mark.outage
MODES = pytest.mark.parametrize("mode", ["process", "thread"])
LOAD = 300
PROMPTLY = 4.0  # seconds


@pytest.fixture(scope="module")
def server(database: str) -> Iterator[Daemon | None]:
    yield from own_server(database)


@pytest.fixture
def place(server: Daemon | None, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    with own_place(server, tmp_path, request.node.name) as place:
        yield place


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
@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.once)]
)
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
            enqueue_load(LOAD)
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


def test_what_an_outage_keeps_from_going_back_does_not_wait_for_the_slow_task_before_it(
    place: Place, server: Daemon | None, tmp_path: Path
) -> None:
    if server is None:
        pytest.skip("SQLite has no server")
    place.migrate()
    steps = Steps(tmp_path)
    with node(place, "process") as process:
        process.wait_for("ready")
        steps.teach()
        (scheduler,) = process.pids("scheduler")
        steps.enqueue("slow", *numbered(FAST), signal=(scheduler, signal.SIGSTOP))
        steps.wait_for_slow()
        place.go_away()
        os.kill(scheduler, signal.SIGCONT)
        process.wait_for("degraded: ")
        place.come_back()
        process.wait_for("recovered: ")
        wait_until(lambda: unfinished() == 1, 20, "all others are done")
        steps.gate.touch()
        wait_until(all_done, 10, "every task to be SUCCESSFUL")
        assert process.terminate() == 0
    assert set(steps.starts.values()) == {1}


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
