"""A database that is there and of no use, or away for longer than a lease."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from django.db import connection

from dbtasks.models import Node as NodeRow
from dbtasks.models import ScheduledTask
from dbtasks.runner import database_backend
from tests.app import tasks
from tests.node import lines, within
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
from tests.process import Process, supervise
from tests.proxy import Proxy
from tests.servers import Daemon
from tests.waiting import wait_until

pytestmark = pytest.mark.outage
MODES = pytest.mark.parametrize("mode", ["process", "thread"])
LOAD = 300
A_HANDFUL = 8  # lines: start, ready, degraded, one child that was replaced, recovered, and the end
# A lease of 6 s: after 2 s (a third; in threads after 3 s) without an answer a database is away.
SHORT_LEASE = {"worker_timeout": 6, "heartbeat": 1}


@pytest.fixture(scope="module")
def server(database: str) -> Iterator[Daemon]:
    for server in own_server(database):
        if server is None:
            pytest.skip("SQLite has no server")
        yield server


@pytest.fixture
def place(server: Daemon, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    with own_place(server, tmp_path, request.node.name) as place:
        place.migrate()
        yield place


def begin_journal(journal: Path) -> None:
    """Enqueue what writes a line each, and return in the middle of it."""
    calls = [(tasks.journal, [str(journal), str(number)], {}) for number in range(LOAD)]
    database_backend("default").enqueue_all(calls)
    wait_until(lambda: len(lines(journal)) > LOAD // 10)


def assert_each_ran_once(journal: Path) -> None:
    assert sorted(int(line.split()[0]) for line in lines(journal)) == list(range(LOAD))
    assert not ScheduledTask.objects.exclude(crashes=0).exists()


# Silent


@pytest.fixture
def proxy(server: Daemon) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", server.port) as proxy:
        yield proxy


def node_behind(proxy: Proxy, place: Place, mode: str, *flags: str) -> Process:
    parts = urlsplit(place.url)
    address = f"{parts.username}:{parts.password}@127.0.0.1:{proxy.port}"
    env = {
        "DBTASKS_TEST_DATABASE_URL": parts._replace(netloc=address).geturl(),
        "DBTASKS_TEST_OPTIONS": json.dumps(SHORT_LEASE),
    }
    return supervise("-w", "4", "--mode", mode, *flags, env=env)


@MODES
def test_a_database_that_stops_answering_is_waited_for_and_no_result_is_lost(
    place: Place, proxy: Proxy, mode: str, tmp_path: Path
) -> None:
    with node_behind(proxy, place, mode) as process:
        process.wait_for("ready")
        workers = process.workers
        begin_journal(tmp_path / "journal")
        proxy.block()
        process.wait_for("degraded: database 'default' has not answered for ")
        proxy.unblock()
        process.wait_for("recovered: ")
        wait_until(all_done, 30, "every task to be SUCCESSFUL")
        assert process.workers == workers
        assert len(process.lines) <= A_HANDFUL, process.stderr
        assert "Traceback" not in process.stderr
        assert process.terminate() == 0
    assert_each_ran_once(tmp_path / "journal")


def test_the_scheduler_gets_a_new_connection_while_the_lease_can_still_be_renewed(
    place: Place, proxy: Proxy
) -> None:
    """What was on its way is lost, as when the state of a firewall is; new connections work."""
    with node_behind(proxy, place, "process") as process:
        process.wait_for("ready")
        (scheduler,) = process.pids("scheduler")
        proxy.strand()
        process.wait_for("the scheduler died: the database did not answer for 4 s", 10)
        wait_until(lambda: process.pids("scheduler") not in (set(), {scheduler}))
        before = NodeRow.objects.get().expires_at
        wait_until(lambda: NodeRow.objects.get().expires_at > before, message="a renewal")
        assert "most recent call first" not in process.stderr
        process.kill()


def test_a_silent_database_does_not_keep_idle_workers_from_leaving(
    place: Place, proxy: Proxy
) -> None:
    """Long before the grace period is over."""
    with node_behind(proxy, place, "process", "--grace", "300") as process:
        process.wait_for("ready")
        proxy.block()
        with within(25, "leaving"):
            assert process.terminate(30) == 0


# Read-only, or full


class Trouble:
    """What an administrator can do to a node's user, whose name is that of the database."""

    def __init__(self, place: Place, vendor: str, kind: str) -> None:
        self.place = place
        self.name = str(connection.settings_dict["NAME"])
        create, self.drop_connections = USERS[vendor]
        self.begin_with, self.end_with, self.words = TROUBLES[vendor, kind]
        self.sql(*create)

    def sql(self, *statements: str) -> None:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement.format(name=self.name))

    def node(self, mode: str) -> Process:
        parts = urlsplit(self.place.url)
        netloc = f"{self.name}:app@{parts.hostname}:{parts.port}"
        self.place.url = parts._replace(netloc=netloc).geturl()
        return node(self.place, mode)

    def begin(self) -> None:
        """Existing connections end, as they do when a server is demoted or restarted."""
        self.sql(self.begin_with, self.drop_connections)

    def end(self) -> None:
        self.sql(self.end_with)


USERS = {
    "postgresql": (
        (
            "CREATE ROLE {name} LOGIN PASSWORD 'app'",
            "GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}",
        ),
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{name}'",
    ),
    "mysql": (
        (
            "CREATE USER {name}@'127.0.0.1' IDENTIFIED BY 'app'",
            "GRANT ALL ON {name}.* TO {name}@'127.0.0.1'",
        ),
        "KILL USER {name}@'127.0.0.1'",
    ),
}
# How it begins and ends, and what the node is to say.
TROUBLES = {
    ("postgresql", "read-only"): (
        "ALTER ROLE {name} SET default_transaction_read_only = on",
        "ALTER ROLE {name} RESET default_transaction_read_only",
        "read-only",
    ),
    ("mysql", "read-only"): ("SET GLOBAL read_only = 1", "SET GLOBAL read_only = 0", "read-only"),
    ("postgresql", "full"): (
        "ALTER ROLE {name} CONNECTION LIMIT 0",
        "ALTER ROLE {name} CONNECTION LIMIT -1",
        "too many connections",
    ),
    ("mysql", "full"): (
        "ALTER USER {name}@'127.0.0.1' WITH MAX_USER_CONNECTIONS 1",  # a node wants more
        "ALTER USER {name}@'127.0.0.1' WITH MAX_USER_CONNECTIONS 0",
        "max_user_connections",
    ),
}


@pytest.fixture(params=["read-only", "full"])
def trouble(place: Place, database: str, request: pytest.FixtureRequest) -> Iterator[Trouble]:
    trouble = Trouble(place, database, request.param)
    yield trouble
    trouble.end()


@MODES
def test_a_database_that_refuses_at_the_start_is_waited_for(trouble: Trouble, mode: str) -> None:
    trouble.begin()
    with trouble.node(mode) as process:
        assert_told_once(process, trouble.words)
        trouble.end()
        assert_works(process)


def test_a_database_that_refuses_in_the_middle_is_waited_for(trouble: Trouble) -> None:
    with trouble.node("process") as process:
        process.wait_for("ready")
        workers = process.workers
        enqueue_load(LOAD)
        trouble.begin()
        # All may have been done by then, and one connection is enough for a node that is idle.
        database_backend("default").enqueue_all([(tasks.noop, [], {})] * LOAD)
        assert_told_once(process)
        trouble.end()
        wait_until(all_done, 30, "every task to be SUCCESSFUL")
        assert process.workers == workers
        assert_works(process)
    assert not ScheduledTask.objects.exclude(crashes=0).exists()


# Away for longer than a lease


def test_two_nodes_outlive_an_outage_that_is_longer_than_their_leases(
    place: Place, server: Daemon, tmp_path: Path
) -> None:
    """Neither takes the other for dead: what runs goes on, and each task runs once."""
    journal, gate, running = tmp_path / "journal", tmp_path / "gate", tmp_path / "running"
    running.mkdir()
    held = [tasks.wait_for_file.enqueue(str(gate), str(running / name)) for name in "ab"]
    env = place.env | {"DBTASKS_TEST_OPTIONS": json.dumps({"worker_timeout": 3, "heartbeat": 1})}
    with ExitStack() as stack:
        nodes = [stack.enter_context(supervise("-w", "2", env=env, name=name)) for name in "ab"]
        for each in nodes:
            each.wait_for("ready")
        wait_until(lambda: len(list(running.iterdir())) == len(held))
        begin_journal(journal)
        connection.close()
        server.kill()
        with pytest.raises(AssertionError, match="in vain"):
            wait_until(lambda: any(each.popen.poll() is not None for each in nodes), 4.5)
        server.start()
        for each in nodes:
            each.wait_for("recovered: ")
        gate.touch()
        wait_until(all_done, 30, "every task to be SUCCESSFUL")
        for each in nodes:
            assert each.count("degraded: ") == 1
            assert each.terminate() == 0
    assert_each_ran_once(journal)
    ids = [result.id for result in held]
    assert ScheduledTask.objects.filter(pk__in=ids, attempt=1).count() == len(held)
