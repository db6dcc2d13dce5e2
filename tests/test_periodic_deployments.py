"""Several nodes with different periodic entries: the newest deployment's hold, without flapping."""

import contextlib
import datetime
from collections.abc import Iterator
from typing import Any

import pytest
from django.core import checks

from dbtasks import Periodic, periodic
from dbtasks.checks import check_deployments
from dbtasks.models import Node, PeriodicDeployment, PeriodicTask
from dbtasks.periodic import deployment
from dbtasks.timekeeper import Timekeeper
from tests.clock import VirtualClock, virtual_clock
from tests.test_options import configured
from tests.test_periodic import (
    ADD,
    DAY,
    HOUR,
    MINUTE,
    NOOP,
    enqueued,
    keeper,
    now,
    owe,
    planner,
    review,
    tick,
)

pytestmark = pytest.mark.usefixtures("db", "clock")
OLD, NEW = {NOOP: "0 1 * * *", ADD: "0 3 * * *"}, {NOOP: "0 2 * * *"}


@pytest.fixture
def clock(db: None) -> Iterator[VirtualClock]:
    with virtual_clock() as clock:
        yield clock


def started(name: str, entries: dict[str, Any]) -> Timekeeper:
    """A node that has just begun with these entries in its settings."""
    with configured(periodic=entries):
        node = keeper(name)
        tick(node)
    return node


def stop(node: Timekeeper) -> None:
    node.engine.end_lease(node.node.id)


def kill(node: Timekeeper) -> None:
    Node.objects.filter(pk=node.node.id).update(expires_at=now() - MINUTE)


def stored() -> dict[str, str]:
    return {entry.name: entry.schedule for entry in periodic.entries()}


def text(entries: dict[str, Any]) -> dict[str, Any]:
    return {name: entries[name] for name in sorted(entries)}


def age(**by: float) -> None:
    """All deployments were first seen earlier than they were."""
    for row in PeriodicDeployment.objects.all():
        row.first_seen -= datetime.timedelta(**by)
        row.save()


def test_the_entries_of_the_newest_deployment_hold() -> None:
    started("a", OLD)
    assert stored() == text(OLD)
    started("b", NEW)
    assert stored() == NEW


def test_a_deployment_whose_commit_failed_holds_at_the_next_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started("old", OLD)
    with configured(periodic=NEW):
        node = keeper("new")

    class Lost(Exception):
        """The connection, at the commit."""

    @contextlib.contextmanager
    def lost(name: str) -> Iterator[bool]:
        with node.engine.transaction():
            yield True
            raise Lost

    with monkeypatch.context() as patch:
        patch.setattr(node.engine, "locked", lost)
        with pytest.raises(Lost):
            planner(node).review()
    assert stored() == text(OLD)
    tick(node)
    assert stored() == NEW


def test_an_old_node_that_restarts_during_the_deploy_changes_nothing() -> None:
    started("a", OLD)
    age(hours=1)
    new = started("b", NEW)
    since = PeriodicTask.objects.get(name=NOOP).since
    for _ in range(3):
        for node in (started("c", OLD), new):
            review(node)
            assert stored() == NEW
    assert PeriodicTask.objects.get(name=NOOP).since == since


def test_a_new_node_that_restarts_is_still_the_newest() -> None:
    started("a", OLD)
    age(hours=1)
    kill(started("b", NEW))
    started("c", OLD)  # nobody runs the new one: a rollback
    assert stored() == text(OLD)
    started("b", NEW)
    assert stored() == NEW


def test_a_rollback_holds_when_nobody_runs_the_newer_deployment_any_more() -> None:
    started("a", OLD)
    age(hours=1)
    first, second = started("a", NEW), started("b", NEW)
    stop(first)
    started("a", OLD)
    assert stored() == NEW
    stop(second)
    started("b", OLD)
    assert stored() == text(OLD)


def test_old_nodes_take_over_when_the_newer_ones_stay_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A canary that was taken back; but a restart may take a while."""
    old = started("a", OLD)
    canary = started("b", NEW)
    stop(canary)
    for _ in range(3):
        review(old)
        assert stored() == NEW
    monkeypatch.setattr(deployment, "ABANDONED", 0.0)
    review(old)
    assert stored() == text(OLD)


def test_a_living_deployment_is_never_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "ABANDONED", 0.0)
    old = started("a", OLD)
    started("b", NEW)
    for _ in range(3):
        review(old)
    assert stored() == NEW


def test_a_node_without_periodic_tasks_has_no_part_in_it() -> None:
    started("a", OLD)
    with configured(periodic=NEW):
        started("b", {})  # that is a deployment which has removed them all
        assert stored() == {}
    assert Node.objects.exclude(deployment="").count() == 2


def test_a_node_that_was_taken_for_dead_tells_again_what_it_runs() -> None:
    node = started("a", OLD)
    stop(node)
    node.heartbeat()
    review(node)
    assert Node.objects.get().deployment == planner(node).deployment.fingerprint


def test_a_difference_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    started("a", OLD)
    age(hours=1)
    started("b", NEW)
    old = started("c", OLD)
    for _ in range(3):
        review(old)
        planner(old).tick()
    (record,) = [each for each in caplog.records if each.levelname == "WARNING"]
    assert record.message.endswith(f"they differ in: {ADD}, {NOOP}")


def test_an_old_node_enqueues_what_holds_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    old = started("a", OLD)
    new = started("b", NEW)
    for missed in (DAY, 2 * DAY):
        owe(new, missed)
        tick(old)
    assert enqueued(NOOP) == 1  # both times the same due time: the latest
    told = [each for each in caplog.records if "the newer one's holds" in each.message]
    assert len(told) == 1


def test_an_old_node_leaves_a_task_that_it_does_not_know_to_the_newer_ones() -> None:
    old = started("a", OLD)
    new = started("b", {"tests.app.tasks.of_tomorrow": "* * * * *"})
    owe(new, MINUTE)
    PeriodicTask.objects.exclude(next_due=None).update(next_due=now())
    tick(old)
    assert enqueued() == 0
    assert old._periodic_at - old._look_at < 1.5  # nor does it ask without pause
    tick(new)
    assert enqueued() == 1


def test_what_text_cannot_say_only_nodes_with_the_settings_enqueue() -> None:
    old = started("a", OLD)
    new = started("b", {NOOP: Periodic("1h", args=list)})
    owe(new, 2 * HOUR)
    tick(old)
    assert enqueued() == 0
    tick(new)
    assert enqueued() == 1


def test_a_removed_entry_stops_at_once_and_comes_back_without_a_past() -> None:
    both = {NOOP: Periodic("1h", catch_up="all"), ADD: "1h"}
    first = started("a", both)
    owe(first, 3 * HOUR)
    second = started("b", {ADD: "1h"})
    for node in (first, second):
        tick(node)
    assert enqueued(NOOP) == 0
    third = started("c", both | {"tests.app.tasks.pid": "1h"})
    tick(third)
    assert enqueued(NOOP) == 0
    assert sorted(stored()) == [ADD, NOOP, "tests.app.tasks.pid"]


def test_a_task_that_moved_keeps_its_history_by_its_name() -> None:
    node = started("a", {NOOP: Periodic("1h", name="job")})
    owe(node, 90 * MINUTE)
    tick(node)
    (before,) = periodic.entries()
    assert before.last_due is not None
    started("b", {"tests.app.tasks.pid": Periodic("1h", name="job")})
    (after,) = periodic.entries()
    assert after.task_path == "tests.app.tasks.pid"
    assert (after.last_due, after.last_task) == (before.last_due, before.last_task)
    assert after.next_due == before.next_due


def test_what_was_scheduled_at_run_time_is_not_overwritten_by_settings(
    caplog: pytest.LogCaptureFixture,
) -> None:
    periodic.schedule("report", NOOP, "7h")
    entries = {ADD: Periodic("1h", name="report")}
    started("a", entries)
    assert stored() == {"report": "7h"}
    assert "periodic.unschedule('report')" in caplog.text
    periodic.unschedule("report")
    started("a", entries)
    assert stored() == {"report": "1h"}


def test_rows_of_the_release_before_go_on_where_they_were() -> None:
    node = started("a", {NOOP: "1h"})
    spec = planner(node).entries[NOOP].spec
    PeriodicTask.objects.all().delete()
    PeriodicDeployment.objects.all().delete()
    last = planner(node).entries[NOOP].due(now() - DAY, now() - 90 * MINUTE)[0]
    PeriodicTask.objects.create(
        backend="default",
        name=NOOP,
        task_path=NOOP,
        spec=spec,
        since=now() - DAY,
        last_due=last,
        deployed_at=now() - DAY,
    )
    tick(started("b", {NOOP: "1h"}))
    assert enqueued(NOOP) == 1


def test_a_check_names_the_nodes_that_differ() -> None:
    started("a", OLD)
    assert check_deployments(None, databases=["default"]) == []
    started("b", NEW)
    (message,) = check_deployments(None, databases=["default"])
    assert isinstance(message, checks.Warning)
    assert message.id == "dbtasks.W010"
    assert "a run with" in message.msg
    assert check_deployments(None, databases=None) == []
