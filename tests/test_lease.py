"""A node whose lease is in doubt claims nothing until it is renewed."""

import os
from typing import Any

import pytest
from django.db import OperationalError
from django.tasks import default_task_backend

from dbtasks.consumer import Consumer
from dbtasks.engines import Claimant, Engine, NodeInfo
from dbtasks.lease import Lease, clock
from dbtasks.models import Node, ScheduledTask
from dbtasks.queues import QueueSelection
from dbtasks.timekeeper import Hooks, Timekeeper, keep_patient
from tests.app import tasks
from tests.test_strays import Patient

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def lease() -> Lease:
    return Lease(NodeInfo("node", "web1", "host", os.getpid(), "supervisor", 30.0))


def consumer_with(lease: Lease, control: Patient) -> Consumer:
    who = Claimant("node", "worker")
    return Consumer(default_task_backend, who, QueueSelection(), control, lease)  # type: ignore[arg-type]


def test_a_lease_is_in_doubt_before_it_began_and_after_half_of_its_time(
    lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lease.is_doubtful
    lease.renew(default_task_backend.engine)
    assert not lease.is_doubtful
    now = clock()
    monkeypatch.setattr("dbtasks.lease.clock", lambda: now + 14.0)
    assert not lease.is_doubtful
    monkeypatch.setattr("dbtasks.lease.clock", lambda: now + 16.0)
    assert lease.is_doubtful


def test_a_worker_renews_a_doubtful_lease_before_it_claims(lease: Lease) -> None:
    result = tasks.noop.enqueue()
    consumer_with(lease, Patient(looks=1)).run()
    assert Node.objects.get().id == "node"
    assert ScheduledTask.objects.get(pk=result.id).status == "SUCCESSFUL"


def test_a_worker_claims_nothing_while_the_lease_cannot_be_renewed(lease: Lease) -> None:
    result = tasks.noop.enqueue()
    control = Patient()
    consumer = consumer_with(lease, control)
    consumer.engine = CannotRenew(default_task_backend.engine, control)  # type: ignore[assignment]
    consumer.run()
    assert control.lost
    row = ScheduledTask.objects.get(pk=result.id)
    assert (row.status, row.attempt) == ("READY", 0)


class CannotRenew:
    """The real engine, for which a renewal fails; after the second one the worker is to stop."""

    def __init__(self, engine: Any, control: Patient) -> None:
        self._engine = engine
        self._control = control

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def renew_lease(self, *arguments: Any) -> None:
        self._control.looks -= 2
        raise OperationalError("cannot execute UPDATE in a read-only transaction")


# Whose lease has run out after an outage


def expired_neighbour() -> ScheduledTask:
    """A task that another node runs, whose lease has run out."""
    result = tasks.noop.enqueue()
    engine = default_task_backend.engine
    engine.renew_lease(NodeInfo("other", "web2", "host", 1, "supervisor", -1.0))
    (claimed,) = engine.claim(Claimant("other", "other-1"), QueueSelection())
    assert claimed.id == result.id.replace("-", "")
    return ScheduledTask.objects.get(pk=result.id)


def keeper_of(lease: Lease) -> Timekeeper:
    hooks = Hooks(work=lambda count: None, cleanup=lambda: None, workers=list)
    return Timekeeper(
        default_task_backend, lease.node, QueueSelection(), hooks, capacity=1, lease=lease
    )  # type: ignore[arg-type]


def test_a_node_whose_lease_has_run_out_is_rescued(lease: Lease) -> None:
    row = expired_neighbour()
    keeper_of(lease).heartbeat()
    row.refresh_from_db()
    assert (row.status, row.crashes) == ("READY", 1)


def test_after_an_outage_others_get_time_though_a_worker_renewed_our_lease_first(
    lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = expired_neighbour()
    keeper = keeper_of(lease)
    lease.renew(keeper.engine)
    now = clock()
    monkeypatch.setattr("dbtasks.lease.clock", lambda: now + 40.0)
    lease.renew(keeper.engine)
    keeper.heartbeat()
    row.refresh_from_db()
    assert (row.status, row.crashes) == ("RUNNING", 0)


def test_a_node_that_started_in_an_outage_gives_others_time_too(
    lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = expired_neighbour()
    keeper = keeper_of(lease)
    told: list[str] = []
    patient = keep_patient(keeper, told.append, lambda: told.append("found"))

    def refuse(*arguments: object) -> None:
        raise OperationalError("the database system is starting up")

    with monkeypatch.context() as outage:
        outage.setattr(type(keeper.engine), "renew_lease", refuse)
        patient()
    patient()
    assert told == ["database 'default': the database system is starting up", "found"]
    row.refresh_from_db()
    assert (row.status, row.crashes) == ("RUNNING", 0)


class Locked:
    """An engine whose database is locked by somebody else for some tries."""

    def __init__(self, engine: Engine, tries: int) -> None:
        self.engine, self.tries = engine, tries

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def close(self) -> None:
        """The test's transaction must live on."""

    def end_lease(self, node_id: str) -> None:
        self.tries -= 1
        if self.tries >= 0:
            raise OperationalError("database is locked")
        self.engine.end_lease(node_id)


@pytest.mark.parametrize(("tries", "left"), [(2, 0), (10**6, 1)])
def test_a_node_that_leaves_tries_again_and_tells_when_it_stays_registered(
    lease: Lease, caplog: pytest.LogCaptureFixture, tries: int, left: int
) -> None:
    lease.renew(default_task_backend.engine)
    lease.end(Locked(default_task_backend.engine, tries))  # type: ignore[arg-type]
    assert Node.objects.count() == left
    assert ("web1 stays registered until its lease expires" in caplog.text) is bool(left)
