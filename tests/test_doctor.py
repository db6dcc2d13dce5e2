"""`manage.py dbtasks doctor`: each finding is found where it is, and says what to do."""

from __future__ import annotations

import datetime

import pytest
from django.db import connection
from django.tasks import default_task_backend

from dbtasks import doctor, periodic, statistics, troubles
from dbtasks.engines import Counts, Engine
from dbtasks.engines.base import PauseRow, QueueState
from dbtasks.engines.examine import Facts, TableHealth, facts
from dbtasks.models import Node, PeriodicTask, Worker
from tests.engines import EVERYTHING, ME, execute, fresh_engine, new_task, node, outcome_of, put
from tests.test_console import dbtasks

# What a test server may be told off for: others use it at the same time, and it saves its powers.
OF_THE_SERVER = {"bloat", "autovacuum-off", "connections", "max-packet"}
NOW = datetime.datetime(2030, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


@pytest.fixture
def engine(db: None) -> Engine:
    return fresh_engine()


def codes(found: list[troubles.Trouble]) -> list[str]:
    assert all(trouble.what and trouble.advice for trouble in found)
    assert {trouble.severity for trouble in found} <= {"error", "warning"}
    return [trouble.code for trouble in found]


def test_a_healthy_queue_has_no_troubles(engine):
    engine.renew_lease(node())
    said = dbtasks("doctor", "--json")
    assert said.json["examined"][-1] == "queue"
    assert {trouble["code"] for trouble in said.json["troubles"]} <= OF_THE_SERVER
    assert said.code == (1 if said.json["troubles"] else 0)
    shown = dbtasks("doctor", terminal=True).out
    assert "ok       migrations" in shown
    assert "ok       indexes" in shown


def test_the_doctor_asks_the_database_itself(engine, database):
    found = facts(engine)
    assert found.version
    assert not found.pooled
    if database == "sqlite":
        assert (found.journal_mode, found.max_connections) == ("wal", 0)
    else:
        assert 0 < found.connections <= found.max_connections
    if database == "mysql":
        assert found.isolation == "READ-COMMITTED"


def test_a_missing_index_is_found(engine, database):
    table = "dbtasks_scheduledtask"
    execute(f"DROP INDEX dbtasks_due{f' ON {table}' if database == 'mysql' else ''}")
    try:
        (found,) = doctor.indexes(default_task_backend)
        assert "dbtasks_due" in found.what
        said = dbtasks("doctor")
        assert said.code == 1
        assert ["indexes", "index-missing", "error"] in [line[:3] for line in said.lines]
    finally:
        index = next(
            index
            for index in Node._meta.apps.get_model("dbtasks", "ScheduledTask")._meta.indexes
            if index.name == "dbtasks_due"
        )
        with connection.schema_editor() as editor:
            editor.add_index(Node._meta.apps.get_model("dbtasks", "ScheduledTask"), index)


def test_a_missing_migration_ends_the_examination(engine):
    execute("DELETE FROM django_migrations WHERE app = 'dbtasks' AND name = '0003_operations'")
    try:
        said = dbtasks("doctor")
        assert said.code == 1
        assert said.lines[-1][:3] == ["migrations", "migrations", "error"]
        assert said.lines[-1][-1] == "manage.py migrate"
        assert "0003_operations" in said.lines[-1][3]
    finally:
        execute(
            "INSERT INTO django_migrations (app, name, applied) "
            "VALUES ('dbtasks', '0003_operations', '2030-01-01 00:00:00')"
        )


@pytest.mark.once
@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Facts(), []),
        (Facts(pooled=True), ["pooler"]),
        (Facts(invalid_indexes=("dbtasks_claim",)), ["index-invalid"]),
        (Facts(oldest_transaction=899.0), []),
        (Facts(oldest_transaction=901.0), ["long-transaction"]),
        (Facts(isolation="REPEATABLE-READ"), ["isolation"]),
        (Facts(isolation="READ-COMMITTED"), []),
        (Facts(max_packet=1 << 20), ["max-packet"]),
        (Facts(max_packet=16 << 20), []),
        (Facts(journal_mode="delete"), ["journal-mode"]),
        (Facts(journal_mode="wal", free_share=0.9, size=1 << 20), []),
        (Facts(journal_mode="wal", free_share=0.9, size=1 << 30), ["free-pages"]),
        (Facts(tables=(TableHealth("t", 10, 9_000, None, True),)), []),
        (Facts(tables=(TableHealth("t", 10, 90_000, None, True),)), ["bloat"]),
        (Facts(tables=(TableHealth("t", 10, 90_000, 60.0, True),)), []),
        (Facts(tables=(TableHealth("t", 10**6, 90_000, 9e9, True),)), []),
        (Facts(tables=(TableHealth("t", 0, 0, 0.0, False),)), ["autovacuum-off"]),
    ],
)
def test_facts_are_judged(found, expected):
    judged = [*doctor.server(found), *doctor.history(found), *doctor.files(found)]
    assert codes(judged) == expected


@pytest.mark.once
def test_clocks_may_differ_a_little():
    assert doctor.skew(1.5, 0.0) == []
    assert doctor.skew(-4.0, 3.0) == []
    assert "behind" in doctor.skew(-4.0, 0.1)[0].what
    assert "ahead" in doctor.skew(4.0, 0.1)[0].what


@pytest.mark.once
def test_connections_are_a_budget():
    assert doctor.shortage(used=20, most=100, wanted=30) == []
    assert codes(doctor.shortage(used=95, most=100, wanted=30)) == ["connections"]
    assert codes(doctor.shortage(used=20, most=100, wanted=92)) == ["connections"]


# Troubles


def situation(**changes) -> troubles.Situation:
    """One living node, nothing else."""
    alive = Node(
        id="n",
        name="web",
        host="h",
        pid=1,
        state="running",
        last_seen=NOW,
        expires_at=NOW + datetime.timedelta(seconds=30),
    )
    seen = troubles.Situation(
        now=NOW,
        nodes=[alive],
        workers=[],
        queues=[],
        counts=Counts(0, 0, 0),
        pauses=[],
        next_due=None,
        orphans=0,
        oldest_cancel=None,
    )
    return seen._replace(**changes)


def ago(seconds: float) -> datetime.datetime:
    return NOW - datetime.timedelta(seconds=seconds)


def looping(restarts: int, state: str) -> Worker:
    return Worker(id="w-1", node=situation().nodes[0], restarts=restarts, state=state)


def gone() -> Node:
    return Node(id="g", name="gone", host="h", pid=2, last_seen=ago(600), expires_at=ago(570))


def counted(path: str = "a.b", **counts: int) -> statistics.Total:
    return statistics.Total(queue="a", task_path=path, **counts)


def busy(seconds: float | None, state: str = "busy") -> Worker:
    node = situation().nodes[0]
    return Worker(id="w", node=node, state=state, task_path="a.slow", task_seconds=seconds)


WAITING = [QueueState("a", 5, ago(70))]


@pytest.mark.once
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"lately": [counted(rescued=2)]}, []),
        ({"lately": [counted(rescued=2), counted("c.d", rescued=1)]}, ["runs-lost"]),
        ({"lately": [counted(succeeded=100, failed=9)]}, []),
        ({"lately": [counted(succeeded=80, failed=9)]}, ["failing"]),
        ({"lately": [counted(failed=4)]}, []),
        ({"workers": [busy(61), busy(600)], "queues": WAITING}, ["workers-held"]),
        ({"workers": [busy(61), busy(None, "starting")], "queues": WAITING}, ["workers-held"]),
        ({"workers": [busy(61), busy(2)], "queues": WAITING}, []),
        ({"workers": [busy(61), busy(None, "idle")], "queues": WAITING}, []),
        ({"workers": [busy(61)], "queues": [QueueState("a", 5, ago(50))]}, []),
        (
            {
                "workers": [busy(61)],
                "queues": WAITING,
                "pauses": [PauseRow(1, "queue", "a", NOW, "", "")],
            },
            ["queue-paused"],
        ),
        ({"failed_entries": ["nightly"]}, ["periodic-failed"]),
        ({"nodes": []}, ["no-node"]),
        ({"nodes": [gone()]}, ["no-node", "node-expired"]),
        ({"nodes": [], "counts": Counts(1, 0, 0)}, ["no-node"]),
        ({"orphans": 2}, ["orphans"]),
        ({"workers": [looping(3, "starting")]}, ["crash-loop"]),
        ({"workers": [looping(9, "idle")]}, []),
        ({"workers": [looping(1, "starting")]}, []),
        ({"queues": [QueueState("a", 5, ago(299))]}, []),
        ({"queues": [QueueState("a", 5, ago(301))]}, ["queue-waits"]),
        ({"next_due": ago(59)}, []),
        ({"next_due": ago(61)}, ["overdue"]),
        ({"oldest_cancel": ago(59)}, []),
        ({"oldest_cancel": ago(61)}, ["cancel-waits"]),
        (
            {
                "pauses": [PauseRow(1, "queue", "a", NOW, "ada", "why")],
                "queues": [QueueState("a", 5, ago(9000))],
            },
            ["queue-paused"],
        ),
        ({"pauses": [PauseRow(1, "task", "a.b", NOW, "", "")]}, ["task-paused"]),
    ],
)
def test_troubles_are_what_is_wrong_now(changes, expected):
    assert codes(troubles.judge(situation(**changes))) == expected


@pytest.mark.once
def test_troubles_name_the_task_that_is_to_blame():
    lately = [
        counted("a.fine", succeeded=9),
        counted("a.fatal", rescued=4),
        counted("a.wrong", failed=8),
    ]
    changes = {"lately": lately, "exceptions": {"a.wrong": "Broken"}}
    changes |= {"workers": [busy(61), busy(600)], "queues": WAITING}
    lost, failing, held = (found.what for found in troubles.judge(situation(**changes)))
    assert lost.endswith("all of them a.fatal")
    assert failing.startswith("8 of 17 tasks failed")
    assert failing.endswith("all of them a.wrong with Broken")
    assert "a.slow for 10 minutes; 5 ready tasks wait" in held


def test_a_periodic_entry_whose_last_task_failed_is_named(engine):
    periodic.schedule("nightly", "tests.app.tasks.fail", "30 3 * * *")
    assert troubles.look().failed_entries == []
    id = periodic.run_now("nightly").id
    PeriodicTask.objects.update(last_task=id)
    (claimed,) = engine.claim(ME, EVERYTHING, 1)
    engine.finish([outcome_of(claimed, status="FAILED", errors="[]")])
    assert troubles.look().failed_entries == ["nightly"]


@pytest.mark.once
def test_the_worst_trouble_comes_first():
    pauses = [PauseRow(1, "queue", "a", NOW, "", "")]
    found = troubles.judge(situation(pauses=pauses, next_due=ago(3600)))
    assert codes(found) == ["overdue", "queue-paused"]
    assert "60 minutes" in found[0].what


def test_a_task_that_was_just_given_back_does_not_hide_those_behind_it(engine):
    hour = datetime.timedelta(hours=1)
    put(engine, new_task("a", 5), new_task("a", 0, enqueued_at=engine.now() - hour))
    engine.claim(ME, EVERYTHING, 1)
    engine.release(ME)
    (queue,) = engine.queue_states()
    assert (queue.name, queue.ready) == ("a", 2)
    assert abs(engine.now() - queue.since - hour) < datetime.timedelta(minutes=1)
