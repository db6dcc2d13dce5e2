"""A database that is killed at every point of a tick: each due time still has one run."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.db import connection

from dbtasks import periodic
from dbtasks.models import Occurrence, PeriodicTask, ScheduledTask
from dbtasks.timekeeper import keep_patient
from tests import doomed
from tests.outage import Place, own_place, own_server
from tests.servers import Daemon
from tests.test_periodic import NOOP, keeper, now, planner, tick
from tests.waiting import wait_until

pytestmark = pytest.mark.outage
NAMES = [f"entry-{number}" for number in range(5)]
ROUNDS = 2
HOUR = datetime.timedelta(hours=1)


@pytest.fixture(scope="module")
def server(database: str) -> Iterator[Daemon | None]:
    yield from own_server(database)


@pytest.fixture
def place(server: Daemon | None, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    if server is None:
        pytest.skip("SQLite has no server")
    with own_place(server, tmp_path, request.node.name) as place:
        yield place


@pytest.mark.parametrize("point", doomed.POINTS)
def test_a_tick_whose_database_is_killed_is_done_once(
    place: Place, server: Daemon, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.migrate()
    for name in NAMES:
        periodic.schedule(name, NOOP, "0 0 29 2 *")  # far from now, whenever that is
    scheduler = keeper()
    lost: list[str] = []
    found: list[str] = []
    patient = keep_patient(scheduler, lost.append, lambda: found.append("again"))
    tick(scheduler)

    def look() -> None:
        scheduler._periodic_at = 0.0
        patient()

    for round in range(ROUNDS):
        due = now().replace(microsecond=0) - HOUR * (1 + ROUNDS - round)
        PeriodicTask.objects.update(next_due=due)
        with monkeypatch.context() as patch:
            patch.setattr(*doomed.place(point, planner(scheduler), kill_once(server)))
            look()
        assert len(lost) == round + 1, "the tick did not notice"
        server.start()
        connection.close()
        done = Occurrence.objects.filter(due_at=due)
        assert done.count() == (len(NAMES) if point == "after the commit" else 0)

        def is_made_up_for(due: datetime.datetime = due) -> bool:
            look()
            return len(found) == len(lost) and not overdue(due)

        wait_until(is_made_up_for, 30)
        assert sorted(done.values_list("name", flat=True)) == NAMES
    runs = set(ScheduledTask.objects.values_list("id", flat=True))
    assert len(runs) == ScheduledTask.objects.count() == ROUNDS * len(NAMES)
    assert runs == set(Occurrence.objects.values_list("task_id", flat=True))


def kill_once(server: Daemon) -> Callable[[], None]:
    """A tick that fails is tried once more at once."""
    todo = [server.kill]

    def kill() -> None:
        while todo:
            todo.pop()()

    return kill


def overdue(due: datetime.datetime) -> bool:
    return PeriodicTask.objects.filter(next_due__lte=due).exists()
