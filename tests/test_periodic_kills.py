"""Schedulers that are killed at every point of a tick: each due time still has one run."""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys

import pytest

from dbtasks import periodic
from dbtasks.models import Occurrence, PeriodicTask, ScheduledTask
from tests.doomed import POINTS, WAITING
from tests.node import ROOT
from tests.test_periodic import NOOP, keeper, now, tick
from tests.waiting import wait_until

KILLS = int(os.environ.get("DBTASKS_KILLS", "2"))  # at each point
pytestmark = pytest.mark.usefixtures("db")


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_scheduler_has_done_all_of_a_tick_or_nothing(point: str) -> None:
    names = [f"entry-{number}" for number in range(5)]
    for name in names:
        periodic.schedule(name, NOOP, "0 0 29 2 *")  # far from now, whenever that is
    survivor = keeper()
    tick(survivor)
    for round in range(KILLS):
        due = now().replace(microsecond=0) - datetime.timedelta(hours=1 + KILLS - round)
        PeriodicTask.objects.update(next_due=due)
        command = [sys.executable, "-m", "tests.doomed", point]
        doomed = subprocess.run(command, cwd=ROOT, env=os.environ, timeout=60)
        assert doomed.returncode == -signal.SIGKILL
        done = Occurrence.objects.filter(due_at=due).count()
        assert done == (len(names) if point == "after the commit" else 0)

        def is_made_up_for(due: datetime.datetime = due) -> bool:
            tick(survivor)
            return not PeriodicTask.objects.filter(next_due__lte=due).exists()

        wait_until(is_made_up_for, 30)
        assert sorted(Occurrence.objects.filter(due_at=due).values_list("name", flat=True)) == names
    runs = set(ScheduledTask.objects.values_list("id", flat=True))
    assert len(runs) == ScheduledTask.objects.count() == KILLS * len(names)
    assert runs == set(Occurrence.objects.values_list("task_id", flat=True))


def test_a_scheduler_that_is_killed_before_the_due_time_has_done_nothing() -> None:
    names = [f"entry-{number}" for number in range(5)]
    for name in names:
        periodic.schedule(name, NOOP, "0 0 29 2 *")
    survivor = keeper()
    tick(survivor)
    PeriodicTask.objects.update(next_due=now() - datetime.timedelta(seconds=1))
    command = [sys.executable, "-m", "tests.doomed", WAITING]  # moves it into the future
    doomed = subprocess.run(command, cwd=ROOT, env=os.environ, timeout=60)
    assert doomed.returncode == -signal.SIGKILL
    assert (Occurrence.objects.count(), ScheduledTask.objects.count()) == (0, 0)

    due = PeriodicTask.objects.values_list("next_due", flat=True).distinct().get()

    def is_made_up_for() -> bool:
        tick(survivor)
        return not PeriodicTask.objects.filter(next_due__lte=due).exists()

    wait_until(is_made_up_for, 30)
    assert sorted(Occurrence.objects.values_list("name", flat=True)) == names
    assert ScheduledTask.objects.count() == len(names)
