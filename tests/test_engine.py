"""The contract of the engines (dbtasks/engines/base.py), the same on every database."""

from __future__ import annotations

import contextlib
import datetime
import gc
import json
import select
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from django.db import (
    DatabaseError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    connections,
    transaction,
)
from django.test import override_settings

from dbtasks.engines import (
    Claimed,
    Death,
    Engine,
    NewOccurrence,
    NewTask,
    PeriodicRow,
    Rescued,
    Settled,
    get_engine,
)
from dbtasks.engines.portable import batches
from dbtasks.fields import as_utc, dump_json
from dbtasks.models import Node, Occurrence, ScheduledTask, Worker
from dbtasks.policy import Policy
from dbtasks.queues import QueueSelection, select_queues
from tests.engines import (
    EVERYTHING,
    ME,
    OTHER,
    STRANGER,
    assert_consistent,
    columns,
    elsewhere,
    execute,
    fresh_engine,
    new_task,
    node,
    outcome_of,
    put,
    retry_of,
    statements,
    stored,
)
from tests.waiting import wait_until

UTC = datetime.UTC
HOUR = datetime.timedelta(hours=1)
AWKWARD = ["\x00", "\ud800", "ünïcödé 😀", "%s {now} '\"\\"]


@pytest.fixture
def engine(db: None) -> Engine:
    return fresh_engine()


def claim_one(engine: Engine, who=ME, queues: QueueSelection = EVERYTHING) -> Claimed:
    (claimed,) = engine.claim(who, queues)
    return claimed


def shift(model, field: str, **by: float) -> None:
    """Moves `field` of every row of `model` to so long before (negative) or after now."""
    moment = datetime.datetime.now(UTC) + datetime.timedelta(**by)
    model.objects.update(**{field: moment})


class Failure(Exception):
    """What the tests raise where a caller fails."""


# Producing


def test_a_row_comes_back_from_the_claim_as_it_was_inserted(engine):
    when = datetime.datetime(2024, 2, 29, 23, 59, 59, 123456, tzinfo=UTC)
    task = new_task(
        queue="grün",
        priority=-7,
        task_path="päth.to.tàsk",
        args=dump_json(AWKWARD),
        kwargs=dump_json({"\x00": AWKWARD}),
        policy=Policy(max_attempts=5, backoff=(1.0, 2.5)).to_text(),
        periodic="nightly",
        run_after=when,
    )
    put(engine, task)
    claimed = claim_one(engine)
    same = ("id", "task_path", "args", "kwargs", "queue", "priority", "periodic")
    assert [getattr(claimed, name) for name in same] == [getattr(task, name) for name in same]
    assert json.loads(claimed.args) == AWKWARD
    assert claimed.policy == Policy(max_attempts=5, backoff=(1.0, 2.5))
    assert engine.moment(claimed.run_after) == when
    assert engine.moment(claimed.enqueued_at) == task.enqueued_at
    assert (claimed.attempt, claimed.failures) == (1, 0)
    assert (claimed.worker_ids, claimed.errors) == ("[]", "[]")


def test_5000_rows_are_inserted_in_batches_and_all_can_be_claimed(engine):
    ids = put(engine, *(new_task() for _ in range(5000)))
    assert engine.counts().ready == 5000
    claimed = engine.claim(ME, EVERYTHING, 5000)
    assert [row.id for row in claimed] == ids


def test_rows_that_differ_in_all_there_is_come_back_as_they_were_inserted(engine):
    when = datetime.datetime(2024, 2, 29, 23, 59, 59, 123456, tzinfo=UTC)
    rows = [
        new_task(
            queue=f"q{number % 3}\nline",
            priority=number - 2,
            due_in=[None, -5.0, 3600.0][number % 3],
            task_path=f"päth.{number}",
            args=dump_json([AWKWARD, number]),
            kwargs=f'{{"written\\n":\n{number}}}' if number == 3 else "{}",
            policy=Policy(max_attempts=number + 1).to_text(),
            periodic="nightly" if number else "",
            enqueued_at=when + datetime.timedelta(microseconds=number),
        )
        for number in range(5)
    ]
    put(engine, *rows)
    for row in rows:
        found = stored(row.id)
        assert_consistent(found)
        same = ("task_path", "queue", "priority", "run_after", "due_at", "enqueued_at", "policy")
        assert [getattr(found, name) for name in same] == [getattr(row, name) for name in same]
        assert (found.args, found.kwargs) == (json.loads(row.args), json.loads(row.kwargs))
        assert found.periodic == row.periodic
        assert found.ready_queue == (row.queue if row.due_at is None else None)


@pytest.mark.parametrize("count", [1, 2, 500, 501])
def test_rows_that_are_alike_are_inserted_all_the_same(engine, count):
    rows = [new_task()]
    rows += [rows[0]._replace(id=new_task().id) for _ in range(count - 1)]
    assert [row.id for row in engine.claim(ME, EVERYTHING, 1000)] == []
    put(engine, *rows)
    assert [row.id for row in engine.claim(ME, EVERYTHING, 1000)] == [row.id for row in rows]


def test_an_insert_of_many_batches_is_all_or_nothing(engine):
    rows = [new_task() for _ in range(1200)]
    with pytest.raises(IntegrityError):
        put(engine, *rows, rows[0])
    assert not ScheduledTask.objects.exists()


def test_an_insert_of_nothing_does_nothing(engine):
    assert put(engine) == []


def test_a_deferred_row_waits_until_it_is_promoted(engine):
    (id,) = put(engine, new_task(due_in=3600))
    assert engine.claim(ME, EVERYTHING, 10) == []
    assert engine.claim(ME, select_queues(["default"]), 10) == []
    assert_consistent(stored(id))


def test_an_insert_belongs_to_the_transaction_of_the_caller(engine):
    with contextlib.suppress(Failure), transaction.atomic():
        put(engine, new_task())
        assert elsewhere(ScheduledTask.objects.count) == 0
        raise Failure
    assert ScheduledTask.objects.count() == 0
    with transaction.atomic():
        put(engine, new_task())
    assert elsewhere(ScheduledTask.objects.count) == 1


# Claiming


def test_a_claim_marks_the_row_as_running_and_as_the_claimants(engine):
    (id,) = put(engine, new_task())
    claimed = claim_one(engine)
    row = stored(id)
    assert (row.status, row.claim_node, row.claimed_by, row.attempt) == (
        "RUNNING",
        ME.node,
        ME.worker,
        1,
    )
    assert abs(row.started_at - engine.now()) < datetime.timedelta(seconds=30)
    assert abs(row.started_at - engine.moment(claimed.started_at)) < HOUR / 3600
    assert row.last_attempted_at is not None
    assert_consistent(row)


@pytest.mark.parametrize("queues", [EVERYTHING, select_queues(["default"])], ids=str)
@pytest.mark.parametrize("limit", [1, 4, 100])
def test_claims_go_by_priority_and_then_by_age(engine, queues, limit):
    priorities = [0, 5, -5, 5, 0, 100, -100, 0, 5]
    rows = [new_task(priority=priority) for priority in priorities]
    put(engine, *reversed(rows))
    order = []
    while claimed := engine.claim(ME, queues, limit):
        assert len(claimed) <= limit
        order += [row.id for row in claimed]
    assert order == [row.id for row in sorted(rows, key=lambda row: (-row.priority, row.id))]


@pytest.mark.parametrize(
    ("patterns", "excluded", "expected"),
    [
        (["*"], [], ["Email", "a", "b", "email", "email-bulk", "email_bulk"]),
        (["email"], [], ["email"]),
        (["Email"], [], ["Email"]),
        (["email*"], [], ["email", "email-bulk", "email_bulk"]),
        (["email_*"], [], ["email_bulk"]),
        (["E*"], [], ["Email"]),
        (["*"], ["email"], ["Email", "a", "b", "email-bulk", "email_bulk"]),
        (["*"], ["email*", "a"], ["Email", "b"]),
        (["email*"], ["email-bulk"], ["email", "email_bulk"]),
        (["email"], ["email"], []),
        (["nothing"], [], []),
    ],
)
def test_only_the_selected_queues_are_served(engine, patterns, excluded, expected):
    put(engine, *(new_task(q) for q in ["email", "b", "Email", "email-bulk", "a", "email_bulk"]))
    queues = select_queues(patterns, excluded)
    assert engine.ready_count(queues, 100) == len(expected)
    assert sorted(row.queue for row in engine.claim(ME, queues, 100)) == expected


def test_the_first_pattern_is_preferred_whatever_the_priorities_and_ages(engine):
    put(engine, *(new_task(queue, 50) for queue in ["low", "mid1", "mid2", "high"]))
    put(engine, *(new_task(queue, -50) for queue in ["high", "mid1"]))
    queues = select_queues(["high", "mid*", "*"])
    one_by_one = [(row.queue, row.priority) for _ in range(3) for row in engine.claim(ME, queues)]
    assert one_by_one == [("high", 50), ("high", -50), ("mid1", 50)]
    rest = [(row.queue, row.priority) for row in engine.claim(ME, queues, 10)]
    assert rest == [("mid2", 50), ("mid1", -50), ("low", 50)]


def test_a_batch_over_several_patterns_runs_the_preferred_one_first(engine):
    put(engine, new_task("low", 100), new_task("high", -100))
    batch = engine.claim(ME, select_queues(["high", "low"]), 10)
    assert [row.queue for row in batch] == ["high", "low"]


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_batch_takes_no_lower_priority_before_a_higher_one_of_another_queue(engine, limit):
    put(engine, new_task("a", 10), new_task("a", 5), new_task("a", 1))
    put(engine, new_task("b", 9), new_task("b", 8))
    batch = engine.claim(ME, EVERYTHING, limit)
    assert [row.priority for row in batch] == [10, 9, 8][:limit]


def test_equal_priorities_are_taken_from_the_queue_that_waited_longest(engine):
    put(engine, new_task("z"), new_task("a"), new_task("m"))
    assert [claim_one(engine).queue for _ in range(3)] == ["z", "a", "m"]


def test_a_queue_that_was_empty_a_moment_ago_is_served(engine):
    for queue in ["a", "b", "a"]:
        put(engine, new_task(queue))
        assert claim_one(engine).queue == queue
    put(engine, new_task("c"), new_task("d"))
    assert claim_one(engine, queues=select_queues(["d*", "e"])).queue == "d"
    assert engine.ready_count(select_queues(["e", "c"]), 9) == 1
    assert claim_one(engine, queues=select_queues(["e", "c"])).queue == "c"


def test_a_queue_without_a_name_is_served_like_any_other(engine):
    (id,) = put(engine, new_task(queue=""))
    assert engine.glance().ready
    assert engine.ready_count(EVERYTHING, 9) == 1
    assert claim_one(engine).id == id
    assert engine.release(ME) == 1
    assert claim_one(engine).id == id
    assert not engine.glance().ready


def test_a_queue_whose_rows_others_hold_hides_no_other_queue(engine, database):
    if database == "sqlite":
        pytest.skip("SQLite has one writer at a time: the other one waits")
    put(engine, new_task("a"))
    assert engine.ready_count(EVERYTHING, 9) == 1
    put(engine, new_task("b"))
    with transaction.atomic():
        claim_one(engine, queues=select_queues(["a"]))
        assert elsewhere(lambda: claim_one(engine, OTHER).queue) == "b"


def test_the_only_queue_is_not_asked_for_what_it_would_give_next(engine, database, monkeypatch):
    if database != "mysql":
        pytest.skip("PostgreSQL's plans and SQLite's probes have tests of their own")
    monkeypatch.setattr("dbtasks.engines.mysql.NAMES_GOOD_FOR", 3600.0)
    first, second, _ = put(engine, new_task("a"), new_task("a"), new_task("other"))
    assert claim_one(engine, queues=select_queues(["a*"])).id == first
    with statements() as seen:
        assert claim_one(engine, queues=select_queues(["a*"])).id == second
    assert [sql for sql, _ in seen if "UNION" in sql or "GROUP BY" in sql] == []
    put(engine, new_task("ab"))
    assert claim_one(engine, queues=select_queues(["a*"])).queue == "ab"


def test_a_higher_priority_overtakes_at_once(engine):
    put(engine, *(new_task(queue) for queue in "aabb"))
    claim_one(engine)
    put(engine, new_task("b", 5))
    assert claim_one(engine).priority == 5


def test_a_batch_runs_in_the_order_of_age_whatever_its_queues(engine):
    ids = put(engine, *(new_task(queue) for queue in "zazam"))
    assert [row.id for row in engine.claim(ME, EVERYTHING, 9)] == ids


def test_two_selections_share_a_queue_without_sharing_a_row(engine):
    ids = put(engine, *(new_task(queue) for queue in "aabbcc"))
    left = engine.claim(ME, select_queues(["a", "b"]), 3)
    right = engine.claim(OTHER, select_queues(["b", "c"]), 10)
    assert sorted(row.queue for row in left) == ["a", "a", "b"]
    assert sorted(row.queue for row in right) == ["b", "c", "c"]
    assert sorted(row.id for row in [*left, *right]) == sorted(ids)


def test_the_rows_of_another_backend_are_left_alone(engine):
    other = get_engine("default", "other")
    put(other, new_task(), new_task(due_in=-1))
    (kept,) = put(other, new_task("kept"))
    assert other.finish([outcome_of(claim_one(other, queues=select_queues(["kept"])), retain=-1)])
    assert engine.claim(ME, EVERYTHING, 10) == []
    assert engine.claim(ME, select_queues(["default"]), 10) == []
    assert (engine.promote_due(), engine.prune(), engine.expired_exist()) == (0, 0, False)
    assert engine.glance()[:4] == (False, None, 0, 0)
    assert engine.ready_count(EVERYTHING, 9) == 0
    assert other.prune() == 1
    assert not ScheduledTask.objects.filter(pk=kept).exists()


def test_a_claim_in_a_transaction_that_rolls_back_never_was(engine):
    (id,) = put(engine, new_task())
    before = columns(id)
    with contextlib.suppress(Failure), transaction.atomic():
        assert engine.claim(ME, EVERYTHING)
        raise Failure
    assert columns(id) == before
    assert claim_one(engine).attempt == 1


def test_rows_that_another_transaction_claims_are_passed_over(engine, database):
    if database == "sqlite":
        pytest.skip("SQLite has one writer at a time: the other one waits")
    first, second = put(engine, new_task(), new_task())
    with transaction.atomic():
        assert claim_one(engine).id == first
        assert elsewhere(lambda: claim_one(engine, OTHER).id) == second
        assert elsewhere(lambda: engine.claim(OTHER, select_queues(["default"]))) == []


# Finishing


def test_a_finished_row_has_its_result_and_no_claim(engine):
    (id,) = put(engine, new_task())
    claimed = claim_one(engine)
    value = dump_json(AWKWARD)
    assert engine.finish([outcome_of(claimed, return_value=value)]) == {id}
    row = stored(id)
    assert (row.status, row.return_value, row.worker_ids) == ("SUCCESSFUL", AWKWARD, [ME.worker])
    assert row.delete_after is None
    assert_consistent(row)


@pytest.mark.parametrize("fence", [{"attempt": 2}, {"worker": OTHER.worker}], ids=str)
@pytest.mark.parametrize("delay", [None, 0.0, 5.0])
def test_an_outcome_of_another_claim_changes_nothing(engine, fence, delay):
    (id,) = put(engine, new_task())
    claimed = claim_one(engine)
    before = columns(id)
    wrong = outcome_of(claimed) if delay is None else retry_of(claimed, delay)
    assert engine.finish([wrong._replace(**fence)]) == set()
    assert engine.finish_and_claim([wrong._replace(**fence)], OTHER, EVERYTHING) == (set(), [])
    assert columns(id) == before


def test_an_outcome_that_comes_after_the_rescue_is_dropped(engine):
    (id,) = put(engine, new_task())
    stale = claim_one(engine)
    engine.rescue(ME.node, ME.worker, Death("killed by SIGKILL"))
    before = columns(id)
    assert engine.finish([outcome_of(stale)]) == set()
    assert columns(id) == before
    assert claim_one(engine, ME).attempt == 2  # even the same worker holds it by a new claim
    assert engine.finish([outcome_of(stale)]) == set()


def test_of_many_outcomes_those_that_hold_are_written(engine):
    put(engine, *(new_task() for _ in range(20)))
    claimed = engine.claim(ME, EVERYTHING, 20)
    outcomes = [
        outcome_of(row)._replace(attempt=1 + number % 2) for number, row in enumerate(claimed)
    ]
    assert engine.finish(outcomes) == {row.id for row in claimed[::2]}
    assert engine.counts().running == 10


@pytest.mark.parametrize("lost", [False, True], ids=["all hold", "one does not"])
def test_outcomes_that_are_written_together_are_as_if_written_alone(engine, lost):
    error = {"exception_class_path": "a.B", "traceback": "q'u\"o\\te\n%s %% \u2028"}
    variants = [
        {"return_value": None, "status": "FAILED", "errors": dump_json([error]), "failures": 3},
        {"return_value": dump_json(AWKWARD), "retain": 12.5},
        {"return_value": dump_json("x" * 300_000), "retain": 0},
        {"return_value": dump_json("y" * 300_000), "retain": 1e12},
        {"return_value": '"\U0001f600 é %s"', "worker_ids": dump_json(["a", ME.worker])},
        {"return_value": "1.5", "retain": -3},
        {"return_value": "null"},
    ]
    put(engine, *(new_task() for _ in range(2 * len(variants))))
    claimed = engine.claim(ME, EVERYTHING, 2 * len(variants))
    outcomes = [
        outcome_of(row, **variant) for row, variant in zip(claimed, variants * 2, strict=True)
    ]
    if lost:
        outcomes[1] = outcomes[1]._replace(attempt=7)
    together, alone = outcomes[: len(variants)], outcomes[len(variants) :]
    assert engine.finish(together) == {o.id for o in together if o.attempt == 1}
    for outcome in alone:
        assert engine.finish([outcome]) == {outcome.id}
    ignored = {"id", "enqueued_at", "started_at", "last_attempted_at", "finished_at"}
    for one, other in zip(together, alone, strict=True):
        if one.attempt == 1:
            this, that = columns(one.id), columns(other.id)
            kept = [
                row["delete_after"] and row["delete_after"] - row["finished_at"]
                for row in (this, that)
            ]
            assert kept[0] == kept[1] or abs(kept[0] - kept[1]).total_seconds() < 0.01
            assert_consistent(stored(one.id))
            for key in this.keys() - ignored - {"delete_after"}:
                assert this[key] == that[key], key
        else:
            assert stored(one.id).status == "RUNNING"


def test_mariadb_takes_outcomes_as_json_if_it_reads_it_rightly(engine, database, monkeypatch):
    if database != "mysql" or not connections["default"].mysql_is_mariadb:
        pytest.skip("only MariaDB joins JSON")
    put(engine, *(new_task() for _ in range(4)))
    claimed = engine.claim(ME, EVERYTHING, 4)
    for readable, rows in ((True, claimed[:2]), (False, claimed[2:])):
        if not readable:
            engine._joins_json = None
            monkeypatch.setattr("dbtasks.engines.mysql.UNESCAPED", "SELECT JSON_QUOTE(%s)")
        assert engine.joins_json() == readable
        with statements() as seen:
            done = engine.finish([outcome_of(row, return_value='["a\\"b"]') for row in rows])
        assert done == {row.id for row in rows}
        assert any("JSON_TABLE" in sql for sql, _ in seen) == readable
        assert {stored(row.id).return_value[0] for row in rows} == {'a"b'}


def test_large_outcomes_are_written_in_statements_of_their_own():
    sizes = [10, 10_000_000, 200_000, 10]
    row = Claimed(
        "0" * 32, 1, "a.b", "[]", "{}", "q", 0, None, None, None, None, "[]", "[]", 0, "", ""
    )
    parts = batches(outcome_of(row, return_value="x" * size) for size in sizes)
    assert [[len(each.return_value) for each in part] for part in parts] == [
        [10],
        [10_000_000],
        [200_000, 10],
    ]


def test_a_migration_that_has_not_made_the_claim_index_yet_is_under_way(engine, database):
    if database != "mysql":
        pytest.skip("elsewhere a migration is one transaction")
    assert not engine.missing_tables()
    # Both: MySQL takes an unambiguous beginning of an index's name for the index.
    change = "ALTER TABLE dbtasks_scheduledtask RENAME INDEX {} TO {}, RENAME INDEX {} TO {}"
    execute(change.format("dbtasks_claim", "one", "dbtasks_claimed", "two"))
    try:
        assert engine.missing_tables()
        with pytest.raises(DatabaseError) as caught:
            engine.claim(ME, EVERYTHING)
        assert "migrate" in engine.unavailable(caught.value)
    finally:
        execute(change.format("one", "dbtasks_claim", "two", "dbtasks_claimed"))


def test_no_outcomes_are_no_work(engine):
    assert engine.finish([]) == set()
    assert engine.finish_and_claim([], ME, EVERYTHING) == (set(), [])


def test_a_retry_at_once_is_ready_and_keeps_what_happened(engine):
    (id,) = put(engine, new_task("email"))
    first = claim_one(engine)
    errors = dump_json([{"exception_class_path": "ValueError", "traceback": "no"}])
    assert engine.finish([retry_of(first, 0.0, errors=errors)]) == {id}
    row = stored(id)
    assert (row.status, row.ready_queue, row.failures) == ("READY", "email", 1)
    assert_consistent(row)
    again = claim_one(engine, OTHER)
    assert (again.attempt, again.failures, again.errors) == (2, 1, errors)
    assert json.loads(again.worker_ids) == [ME.worker]
    assert engine.moment(again.started_at) == row.started_at  # of the first attempt


def test_a_deferred_retry_is_due_after_its_delay(engine):
    (id,) = put(engine, new_task())
    assert engine.finish([retry_of(claim_one(engine), 3600.0)]) == {id}
    row = stored(id)
    assert abs(row.due_at - engine.now() - HOUR) < datetime.timedelta(seconds=30)
    assert_consistent(row)
    assert engine.claim(ME, EVERYTHING) == []


def test_delays_of_every_size_are_written_together(engine):
    ids = put(engine, *(new_task() for _ in range(6)))
    claimed = engine.claim(ME, EVERYTHING, 6)
    delays = [0, 0.0, 1, 1e-5, 2.5, 1e7]  # a whole number is a number of seconds too
    outcomes = [retry_of(row, delay) for row, delay in zip(claimed, delays, strict=True)]
    assert engine.finish(outcomes) == set(ids)
    assert [stored(row.id).due_at is None for row in claimed] == [True, True] + [False] * 4
    for row in claimed:
        assert_consistent(stored(row.id))


@pytest.mark.parametrize("retain", [0.0, 3600.0, 86400.0 * 365 * 100])
def test_retention_counts_from_the_finish(engine, retain):
    (id,) = put(engine, new_task())
    engine.finish([outcome_of(claim_one(engine), retain=retain)])
    row = stored(id)
    expected = datetime.timedelta(seconds=retain)
    assert abs(row.delete_after - row.finished_at - expected) < datetime.timedelta(seconds=1)


@pytest.mark.parametrize("length", [datetime.timedelta.max, datetime.timedelta(days=365 * 20_000)])
def test_durations_beyond_the_calendar_are_no_reason_to_lose_a_result(engine, length):
    """timedelta.max is a Duration; no database has such a date."""
    for outcome in (
        lambda row: outcome_of(row, retain=length.total_seconds()),
        lambda row: retry_of(row, length.total_seconds()),
    ):
        (id,) = put(engine, new_task())
        assert engine.finish([outcome(claim_one(engine))]) == {id}
        assert_consistent(stored(id))
    assert engine.prune() == 0


@pytest.mark.parametrize("queues", [EVERYTHING, select_queues(["default"])], ids=str)
def test_finish_and_claim_does_what_finish_and_then_claim_do(engine, queues):
    ids = put(engine, *(new_task(priority=-number) for number in range(8)))
    first = engine.claim(ME, queues, 4)
    outcomes = [outcome_of(row) for row in first[:3]] + [outcome_of(first[3], attempt=9)]
    finished, claimed = engine.finish_and_claim(outcomes, ME, queues, 3)
    assert finished == set(ids[:3])
    assert [row.id for row in claimed] == ids[4:7]
    finished, claimed = engine.finish_and_claim([], ME, queues, 3)
    assert (finished, [row.id for row in claimed]) == (set(), ids[7:])
    assert claimed[0].task_path == "tests.app.tasks.noop"
    statuses = [stored(id).status for id in ids]
    assert statuses == ["SUCCESSFUL"] * 3 + ["RUNNING"] * 5


# Releasing


def test_released_rows_go_back_as_they_were(engine):
    (id,) = put(engine, new_task("email"))
    before = columns(id)
    claimed = claim_one(engine)
    assert engine.release(ME, [(id, claimed.attempt)]) == 1
    assert columns(id) == before | {"attempt": 1}


def test_some_rows_or_all_rows_are_released_and_only_ones_own(engine):
    put(engine, *(new_task() for _ in range(5)))
    mine = engine.claim(ME, EVERYTHING, 4)
    claim_one(engine, OTHER)
    some = [(row.id, row.attempt) for row in mine[:2]]
    assert engine.release(OTHER, some) == 0
    assert engine.release(ME, [(id, attempt + 1) for id, attempt in some]) == 0
    assert engine.release(ME, []) == 0
    assert engine.release(ME, some) == 2
    assert engine.release(ME, some) == 0
    assert engine.release(ME) == 2
    assert engine.counts().running == 1


def test_a_released_row_runs_again_and_its_old_outcome_is_refused(engine):
    put(engine, new_task())
    old = claim_one(engine)
    engine.release(ME)
    new = claim_one(engine, ME)
    assert new.attempt == old.attempt + 1
    assert engine.finish([outcome_of(old)]) == set()
    assert engine.finish([outcome_of(new)]) == {new.id}


def test_a_release_keeps_the_traces_of_earlier_attempts(engine):
    (id,) = put(engine, new_task())
    engine.finish([retry_of(claim_one(engine), 0.0)])
    started = stored(id).started_at
    claim_one(engine)
    engine.release(ME)
    row = stored(id)
    assert (row.started_at, row.worker_ids, row.failures) == (started, [ME.worker], 1)


# Rescuing


def test_a_running_row_is_retried_up_to_max_crashes_and_then_failed(engine):
    policy = Policy(max_crashes=2, retain=60.0, retain_failed=3600.0)
    (id,) = put(engine, new_task(policy=policy.to_text()))
    death = Death("killed by SIGSEGV", running=frozenset([id]))
    for crash in (1, 2):
        claim_one(engine)
        assert engine.rescue(ME.node, ME.worker, death) == Rescued(retried=(id,))
        assert (stored(id).crashes, stored(id).status) == (crash, "READY")
        assert_consistent(stored(id))
    claim_one(engine)
    assert engine.rescue(ME.node, ME.worker, death) == Rescued(failed=(id,))
    row = stored(id)
    assert (row.status, row.crashes, row.worker_ids) == ("FAILED", 3, [ME.worker] * 3)
    assert ["killed by SIGSEGV" in error["traceback"] for error in row.errors] == [True] * 3
    assert row.delete_after - row.finished_at == HOUR
    assert_consistent(row)


def test_a_task_that_must_not_rerun_fails_at_its_first_crash(engine):
    (id,) = put(engine, new_task(policy=Policy(max_crashes=0).to_text()))
    claim_one(engine)
    assert engine.rescue(ME.node, ME.worker, Death("gone")).failed == (id,)
    assert stored(id).delete_after is None


def test_rows_that_were_claimed_but_not_running_go_back_untouched(engine):
    ids = put(engine, *(new_task() for _ in range(3)))
    before = columns(ids[2])
    engine.claim(ME, EVERYTHING, 3)
    rescued = engine.rescue(ME.node, ME.worker, Death("gone", running=frozenset([ids[0]])))
    assert rescued.retried == (ids[0],)
    assert sorted(rescued.released) == ids[1:]
    assert columns(ids[2]) == before | {"attempt": 1}


def test_without_knowing_which_ran_all_count_as_running(engine):
    ids = put(engine, *(new_task() for _ in range(3)))
    engine.claim(ME, EVERYTHING, 3)
    assert sorted(engine.rescue(ME.node, ME.worker, Death("gone")).retried) == ids


def test_our_own_shutdown_is_not_counted(engine):
    (id,) = put(engine, new_task(policy=Policy(max_crashes=0).to_text()))
    before = columns(id)
    claim_one(engine)
    death = Death("shut down", running=frozenset([id]), counted=False)
    assert engine.rescue(ME.node, ME.worker, death) == Rescued(released=(id,))
    assert columns(id) == before | {"attempt": 1}


def test_a_rescue_reaches_one_worker_or_the_whole_node_and_no_other(engine):
    put(engine, *(new_task() for _ in range(1200)))
    for who, limit in ((ME, 600), (OTHER, 599), (STRANGER, 1)):
        assert len(engine.claim(who, EVERYTHING, limit)) == limit
    assert len(engine.rescue(ME.node, OTHER.worker, Death("gone")).retried) == 599
    assert len(engine.rescue(ME.node, None, Death("gone")).retried) == 600
    assert not engine.rescue(ME.node, None, Death("gone"))
    assert engine.counts().running == 1


# Deferred rows, glances, retention


def test_only_due_rows_are_promoted_and_the_longest_due_first(engine):
    late, later, latest = put(engine, *(new_task("q", due_in=-seconds) for seconds in (9, 5, 1)))
    put(engine, new_task(due_in=3600))
    assert engine.promote_due(2) == 2
    assert {row.id for row in engine.claim(ME, EVERYTHING, 9)} == {late, later}
    assert engine.promote_due() == 1
    row = claim_one(engine)
    assert (row.id, row.queue) == (latest, "q")
    assert engine.promote_due() == 0
    assert_consistent(stored(latest))


def test_a_glance_tells_of_ready_rows_and_of_the_next_due_one(engine):
    assert engine.glance()[:4] == (False, None, 0, 0)
    put(engine, new_task(due_in=3600), new_task(due_in=7200))
    ready, due_in, *_ = engine.glance()
    assert not ready
    assert 3500 < due_in < 3601  # SQLite's clock has milliseconds
    put(engine, new_task(), new_task(due_in=-100))
    ready, due_in, *_ = engine.glance()
    assert ready
    assert -130 < due_in < -99


def test_ready_rows_are_counted_up_to_a_limit(engine):
    put(engine, *(new_task(queue) for queue in "aaabbc"), new_task("a", due_in=60))
    assert [engine.ready_count(EVERYTHING, limit) for limit in (1, 4, 6, 50)] == [1, 4, 6, 6]
    assert engine.ready_count(select_queues(["a"]), 2) == 2
    assert engine.ready_count(select_queues(["a"], ["b"]), 50) == 3


def test_counts_are_of_unfinished_rows(engine):
    put(engine, *(new_task() for _ in range(6)), *(new_task(due_in=60) for _ in range(3)))
    engine.claim(ME, EVERYTHING, 2)
    engine.finish([outcome_of(claim_one(engine))])
    counts = engine.counts()
    assert (counts.ready, counts.deferred, counts.running) == (3, 3, 2)


def test_rows_past_their_retention_are_deleted_in_batches(engine):
    put(engine, *(new_task() for _ in range(10)))
    retains = [-10.0] * 5 + [3600.0, None]
    claimed = engine.claim(ME, EVERYTHING, len(retains))
    assert not engine.expired_exist()
    engine.finish([outcome_of(row, retain=r) for row, r in zip(claimed, retains, strict=True)])
    assert engine.expired_exist()
    assert [engine.prune(3), engine.prune(3), engine.prune(3)] == [3, 2, 0]
    assert not engine.expired_exist()
    assert ScheduledTask.objects.count() == 5


# Nodes


def test_a_lease_is_begun_renewed_and_ended(engine):
    assert engine.node_started(ME.node) is None
    engine.renew_lease(node())
    started = engine.node_started(ME.node)
    assert abs(started - engine.now()) < datetime.timedelta(seconds=30)
    row = Node.objects.get()
    assert row.expires_at - row.last_seen == datetime.timedelta(seconds=30)
    shift(Node, "expires_at", seconds=-1)
    engine.renew_lease(node(), "draining")
    assert engine.dead_nodes() == []
    assert (Node.objects.get().state, engine.node_started(ME.node)) == ("draining", started)
    engine.save_workers(ME.node, [worker_fields(ME.worker)])
    engine.end_lease(ME.node)
    assert not Node.objects.exists()
    assert not Worker.objects.exists()


def test_a_lease_expires_by_the_databases_clock(engine):
    engine.renew_lease(node())
    engine.renew_lease(node("node-2", lease=3600.0))
    assert engine.dead_nodes() == []
    Node.objects.filter(pk=ME.node).update(expires_at=engine.now() - HOUR)
    assert engine.dead_nodes() == [(ME.node, "node-1's name")]


def test_claims_of_a_node_that_is_not_registered_are_a_dead_nodes(engine):
    put(engine, *(new_task() for _ in range(3)))
    engine.renew_lease(node())
    engine.claim(ME, EVERYTHING)
    engine.claim(STRANGER, EVERYTHING, 2)
    assert engine.dead_nodes() == [(STRANGER.node, STRANGER.node)]


def test_the_claimants_of_a_node_are_known(engine):
    put(engine, *(new_task() for _ in range(4)))
    for who in (ME, ME, OTHER, STRANGER):
        claim_one(engine, who)
    assert engine.claimants(ME.node) == {ME.worker, OTHER.worker}
    assert engine.claimants("nobody") == set()


def worker_fields(id: str, **changes: object) -> dict[str, object]:
    fields = {
        "id": id,
        "kind": "worker",
        "pid": 1,
        "state": "busy",
        "task_id": "",
        "task_path": "päth",
        "task_seconds": None,
        "done": 2**40,
        "failed": 0,
        "restarts": 0,
        "memory": None,
    }
    return fields | changes


def test_the_workers_of_a_node_are_replaced(engine):
    for id in ("node-1", "node-2"):
        engine.renew_lease(node(id))
        engine.save_workers(id, [worker_fields(f"{id}-a"), worker_fields(f"{id}-b")])
    engine.save_workers("node-1", [worker_fields("node-1-c", task_seconds=1.5, memory=2**40)])
    assert sorted(Worker.objects.values_list("id", flat=True)) == [
        "node-1-c",
        "node-2-a",
        "node-2-b",
    ]
    row = Worker.objects.get(pk="node-1-c")
    assert (row.task_seconds, row.memory, row.done) == (1.5, 2**40, 2**40)


def test_workers_of_a_node_that_was_taken_for_dead_are_not_saved_and_the_engine_works_on(engine):
    engine.save_workers("nobody", [worker_fields("w")])
    assert not Worker.objects.exists()
    put(engine, new_task())
    assert engine.finish([outcome_of(claim_one(engine))])
    assert elsewhere(ScheduledTask.objects.get).status == "SUCCESSFUL"


# Locks and periodic tasks


def lock_is_free(engine: Engine, name: str = "periodic") -> bool:
    """Whether another connection gets the lock; SQLite's waits for it, so it waits briefly."""
    if engine.connection.vendor == "sqlite":
        execute("PRAGMA busy_timeout = 50")
    try:
        with engine.locked(name) as got:
            return got
    except OperationalError as error:
        if "locked" not in str(error):
            raise
        return False


def test_only_one_holds_a_lock_and_the_next_gets_it_after_the_commit(engine):
    with engine.locked("periodic") as got:
        assert got
        assert not elsewhere(lambda: lock_is_free(engine))
    assert elsewhere(lambda: lock_is_free(engine))


def test_a_lock_is_given_back_after_an_exception_and_nothing_is_written(engine):
    with contextlib.suppress(Failure), engine.locked("periodic"):
        put(engine, new_task())
        raise Failure
    assert elsewhere(lambda: lock_is_free(engine))
    assert not ScheduledTask.objects.exists()


def test_locks_are_of_one_name_and_one_backend(engine, database):
    if database == "sqlite":
        pytest.skip("SQLite's lock is the database's own")
    with engine.locked("periodic"):
        assert elsewhere(lambda: lock_is_free(engine, "other"))
        assert elsewhere(lambda: lock_is_free(get_engine("default", "other")))


def begin(engine: Engine, name: str = "nightly", **changes: Any) -> None:
    engine.save_entry(periodic_row(name, engine.now())._replace(**changes))


def periodic_row(name: str, since: datetime.datetime) -> PeriodicRow:
    said = {"origin": "database", "spec": "0 3 * * * UTC", "schedule": "0 3 * * *"}
    policy = {"timezone": "UTC", "catch_up": "all", "catch_up_window": 60.0, "overlap": "skip"}
    row: dict[str, Any] = {**dict.fromkeys(PeriodicRow._fields), **said, **policy}
    row |= {"name": name, "task_path": "tests.app.tasks.noop", "args": "[1]", "kwargs": "{}"}
    row |= {"since": since, "deployed_at": since, "fingerprint": "f", "last_node": "", "id": 0}
    return PeriodicRow(**row | {"paused": False, "retired": False, "edition": 0})


def enqueue(engine: Engine, due: datetime.datetime, row: NewTask, error=None) -> bool:
    with engine.locked("periodic") as got:
        occurrence = NewOccurrence("nightly", due, row, error)
        return got and bool(engine.enqueue_occurrences([occurrence], "a node"))


def test_a_periodic_entry_is_saved_and_then_edited(engine):
    begin(engine)
    begin(engine, "Nightly")
    row = engine.periodic_entry("nightly")
    assert row == periodic_row("nightly", row.since)._replace(id=row.id)
    assert abs(row.since - engine.now()) < datetime.timedelta(seconds=30)
    begin(engine, spec="every 1h", paused=True, next_due=row.since, retain=1.5, priority=-3)
    edited = engine.periodic_entry("nightly")
    assert (edited.spec, edited.paused, edited.next_due) == ("every 1h", True, row.since)
    assert (edited.retain, edited.priority, edited.edition) == (1.5, -3, 1)
    assert [each.name for each in engine.periodic_entries()] == ["Nightly", "nightly"]
    assert get_engine("default", "other").periodic_entries() == []
    engine.forget_entry("nightly")
    assert engine.periodic_entry("nightly") is None
    assert engine.periodic_entry("Nightly") is not None


def test_what_is_due_comes_with_the_clock_and_the_oldest_first(engine):
    now = engine.now()
    assert engine.periodic_due() == (None, [])
    assert engine.periodic_ahead_in() is None
    for name, due in [("b", now - HOUR), ("a", now - 2 * HOUR), ("c", now + HOUR), ("d", None)]:
        begin(engine, name, next_due=due)
    clock, rows = engine.periodic_due()
    assert abs(clock - now) < HOUR / 60
    assert [row.name for row in rows] == ["a", "b"]
    assert -7300 < engine.glance().periodic_in <= -7200
    assert 3500 < engine.periodic_ahead_in() <= 3600
    with engine.locked("periodic"):
        still = engine.periodic_still_due(now)
    assert still == {row.id: (0, row.next_due, None) for row in rows}


def test_entries_are_settled_together(engine):
    now, task = engine.now(), new_task().id
    for name in "abc":
        begin(engine, name, next_due=now)
    a, b, c = engine.periodic_entries()
    first = [
        Settled(a.id, now + HOUR, now, task),
        Settled(b.id, None, now, None),
        Settled(c.id, now + 2 * HOUR, None, None),
    ]
    engine.move_entries(first, "me")
    engine.move_entries([Settled(a.id, now + 2 * HOUR, None, None)], "you")
    engine.move_entries([], "nobody")
    a, b, c = engine.periodic_entries()
    assert (a.next_due, a.last_due, a.last_task, a.last_node) == (now + 2 * HOUR, now, task, "me")
    assert (b.next_due, b.last_due, b.last_task, b.last_node) == (None, now, None, "")
    assert (c.next_due, c.last_due, c.last_task) == (now + 2 * HOUR, None, None)


def test_an_occurrence_is_enqueued_exactly_once(engine):
    due = datetime.datetime(2030, 1, 1, 3, tzinfo=UTC)
    assert enqueue(engine, due, new_task(periodic="nightly"))
    assert not elsewhere(lambda: enqueue(engine, due, new_task(periodic="nightly")))
    assert enqueue(engine, due + HOUR, new_task(periodic="nightly"))
    assert (ScheduledTask.objects.count(), Occurrence.objects.count()) == (2, 2)
    assert claim_one(engine).periodic == "nightly"


def test_of_many_occurrences_only_the_new_ones_are_enqueued(engine):
    due = datetime.datetime(2030, 1, 1, 3, tzinfo=UTC)
    many = [NewOccurrence("nightly", due + n * HOUR, new_task()) for n in range(1200)]
    with engine.locked("periodic"):
        assert engine.enqueue_occurrences(many[7:9], "a node") == many[7:9]
        again = [each._replace(row=new_task()) for each in many]
        assert engine.enqueue_occurrences(again, "a node") == again[:7] + again[9:]
        assert engine.enqueue_occurrences([], "a node") == []
    assert ScheduledTask.objects.count() == Occurrence.objects.count() == 1200


def test_a_skipped_occurrence_has_no_task_of_its_own(engine):
    (blocking,) = put(engine, new_task())
    skipped = NewOccurrence(
        "nightly", engine.now(), new_task(), skipped="it runs", blocked_by=blocking
    )
    with engine.locked("periodic"):
        assert engine.enqueue_occurrences([skipped], "a node") == [skipped]
    assert ScheduledTask.objects.count() == 1
    occurrence = Occurrence.objects.get()
    assert (occurrence.task_id.hex, occurrence.skipped) == (blocking, "it runs")
    assert engine.task_statuses([blocking, skipped.row.id]) == {blocking: "READY"}


def test_an_occurrence_that_cannot_run_is_a_failed_row(engine):
    error = {"exception_class_path": "ValueError", "traceback": "no arguments"}
    row = new_task(policy=Policy(retain=60.0).to_text())
    assert enqueue(engine, engine.now(), row, error)
    failed = stored(row.id)
    assert (failed.status, failed.errors) == ("FAILED", [error])
    assert failed.delete_after - failed.finished_at == HOUR / 60
    assert_consistent(failed)
    assert engine.claim(ME, EVERYTHING) == []


def test_an_occurrence_vanishes_with_its_transaction(engine):
    begin(engine, next_due=engine.now())
    row = engine.periodic_entry("nightly")
    with contextlib.suppress(Failure), engine.locked("periodic"):
        engine.enqueue_occurrences([NewOccurrence("nightly", row.next_due, new_task())], "a node")
        engine.move_entries([Settled(row.id, None, row.next_due, None)], "a node")
        raise Failure
    assert not Occurrence.objects.exists()
    assert not ScheduledTask.objects.exists()
    assert engine.periodic_entry("nightly") == row


def test_old_occurrences_are_deleted(engine):
    for days in (1, 40, 90):
        enqueue(engine, engine.now() - datetime.timedelta(days=days), new_task())
    assert engine.prune_occurrences(30) == 2
    assert Occurrence.objects.count() == 1


def test_deployments_are_known_with_the_nodes_that_run_them(engine):
    assert engine.deployments("a") == ({}, None, {}, {})
    engine.renew_lease(node("one"))
    engine.renew_lease(node("two", lease=-1.0))
    engine.see_deployment("a", "one")
    engine.see_deployment("b", "two")
    engine.hold_deployment("b")
    found = engine.deployments("a")
    assert (set(found.known), found.holds) == ({"a", "b"}, "b")
    assert (found.nodes, found.names) == ({"one": "a"}, {"one": "one's name"})
    engine.hold_deployment("a")
    assert engine.deployments("a").holds == "a"
    assert set(engine.deployments("c").known) == {"a"}


# The watcher


def test_the_watcher_tells_of_a_commit_by_another_connection(engine):
    watcher = engine.watcher()
    if not watcher.tells:
        assert (watcher.changed(), watcher.interval) == (False, None)
        return
    assert watcher.changed()  # something may have been missed before the first look
    assert not watcher.changed()
    elsewhere(lambda: put(engine, new_task()))
    wait_until(watcher.changed)
    assert not watcher.changed()


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_a_commit_to_the_file_wakes_whoever_waits_for_the_descriptor(engine, database):
    if database != "sqlite":
        pytest.skip("only SQLite has a file")
    watcher = engine.watcher()
    watcher.changed()

    def settle() -> int:
        """Asks as a scheduler does, until nothing happened for long enough; the descriptor."""
        wait_until(lambda: not watcher.changed() and watcher.fileno() is not None)
        assert watcher.interval >= 0.03
        return watcher.fileno()

    for _ in range(3):
        descriptor = settle()
        assert not readable(descriptor, 0.0)
        elsewhere(lambda: put(engine, new_task()))
        assert readable(descriptor, 5.0)
        asked = 0
        while not watcher.changed():  # a moment may pass until what was written is committed
            asked += 1
            assert asked < 10
            time.sleep(watcher.interval)
        assert (watcher.fileno(), watcher.interval) == (None, 0.02)


def readable(descriptor: int, seconds: float) -> bool:
    return bool(select.select([descriptor], [], [], seconds)[0])


def test_without_inotify_the_watcher_is_asked_by_the_clock(engine, database, monkeypatch):
    if database != "sqlite":
        pytest.skip("only SQLite has a file")

    def refuse(*arguments):
        raise OSError("too many")

    monkeypatch.setattr("dbtasks.engines.sqlite.FileWatch", refuse)
    watcher = engine.watcher()
    assert watcher.changed()
    for _ in range(5):
        assert not watcher.changed()
        assert (watcher.fileno(), watcher.interval) == (None, 0.02)
    elsewhere(lambda: put(engine, new_task()))
    assert watcher.changed()


def test_where_inotify_sees_nothing_the_watcher_is_asked_by_the_clock(
    engine, database, monkeypatch
):
    if database != "sqlite":
        pytest.skip("only SQLite has a file")
    monkeypatch.setattr("dbtasks.engines.sqlite.FileWatch.read", lambda watch: False)
    watcher = engine.watcher()
    watcher.changed()
    wait_until(lambda: not watcher.changed() and watcher.interval > 0.02)
    elsewhere(lambda: put(engine, new_task()))
    assert watcher.changed()
    assert (watcher.fileno(), watcher.interval) == (None, 0.02)


def test_a_write_that_is_seen_before_its_commit_is_remembered(engine, database, monkeypatch):
    if database != "sqlite":
        pytest.skip("only SQLite has a file")
    watcher = engine.watcher()
    watcher.changed()
    wait_until(lambda: not watcher.changed() and watcher.fileno() is not None)
    seen = iter([True])
    monkeypatch.setattr("dbtasks.engines.sqlite.FileWatch.read", lambda watch: next(seen, False))
    assert not watcher.changed()
    assert watcher.interval == 0.001
    elsewhere(lambda: put(engine, new_task()))
    assert watcher.changed()
    wait_until(lambda: not watcher.changed() and watcher.fileno() is not None)


def test_a_watcher_leaves_no_descriptors(engine):
    process = psutil.Process()
    engine.now()
    before = process.num_fds()
    for _ in range(20):
        engine.watcher().changed()
    gc.collect()
    assert process.num_fds() <= before + 2


def test_a_watcher_whose_connection_was_replaced_says_so(engine):
    watcher = engine.watcher()
    if not watcher.tells:
        pytest.skip("no watcher on this database")
    for _ in range(3):
        watcher.changed()
        engine.close()
        elsewhere(lambda: put(engine, new_task()))
        assert watcher.changed()
        assert not watcher.changed()


def test_a_notification_wakes_whoever_waits_for_its_descriptor(engine, database):
    if database != "postgresql":
        pytest.skip("only PostgreSQL notifies")
    watcher = engine.watcher()
    assert watcher.fileno() is None
    watcher.changed()
    assert watcher.fileno() == engine.connection.connection.fileno()
    engine.close()
    assert watcher.fileno() is None


def notifications(seen) -> int:
    return sum("pg_notify" in sql for sql, _ in seen)


@pytest.fixture
def clock(db: None, database: str, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of PostgreSQL's rate limit; it stands still until a test sets it."""
    if database != "postgresql":
        pytest.skip("only PostgreSQL notifies")
    seconds = [1000.0]
    still = SimpleNamespace(monotonic=lambda: seconds[0])
    monkeypatch.setattr("dbtasks.engines.notify.time", still)
    return seconds


def test_a_queue_is_notified_of_at_most_once_per_interval(engine, clock):
    with statements() as seen:
        for _ in range(5):
            put(engine, new_task("a"), new_task("a"))
        assert notifications(seen) == 1
        put(engine, new_task("b"))
        assert notifications(seen) == 2
        engine.insert([new_task("c")], notify=False)
        assert notifications(seen) == 2
        clock[0] += 0.026
        put(engine, new_task("a"), new_task("b"))
        assert notifications(seen) == 3


def test_every_transaction_notifies_since_its_commit_may_come_late(engine, clock):
    with statements() as seen:
        for _ in range(3):
            with transaction.atomic():
                put(engine, new_task())
        assert notifications(seen) == 3


def test_a_transaction_notifies_of_each_queue_once(engine, clock):
    with statements() as seen, transaction.atomic():
        for _ in range(3):
            put(engine, new_task("a"), new_task("a"))
        put(engine, new_task("a"), new_task("b"))
        with transaction.atomic():
            put(engine, new_task("b"))
            put(engine, new_task("c"))
        put(engine, new_task("c"))
        assert notifications(seen) == 3


def test_what_rolled_back_with_a_savepoint_is_notified_of_again(engine, clock):
    with statements() as seen, transaction.atomic():
        put(engine, new_task("a"))
        with contextlib.suppress(Failure), transaction.atomic():
            put(engine, new_task("b"))
            raise Failure
        put(engine, new_task("b"))
        put(engine, new_task("a"), new_task("b"))
    assert notifications(seen) == 4  # that of "a" too: it is told again rather than not at all
    assert engine.counts().ready == 4


def test_the_notification_of_a_transaction_arrives_with_its_commit(engine, database):
    if database != "postgresql":
        pytest.skip("only PostgreSQL notifies")
    watcher = engine.watcher()
    watcher.changed()

    def enqueue() -> None:
        with transaction.atomic():
            put(engine, new_task())
            put(engine, new_task())

    for _ in range(2):
        elsewhere(enqueue)
        wait_until(watcher.changed, 30)


def test_without_autocommit_every_insert_notifies(engine, clock):
    transaction.set_autocommit(False)
    try:
        with statements() as seen:
            for _ in range(2):
                put(engine, new_task())
        assert notifications(seen) == 2
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)


def test_a_notification_that_rolled_back_does_not_silence_the_next(engine, clock):
    with contextlib.suppress(Failure), transaction.atomic():
        put(engine, new_task())
        raise Failure
    with statements() as seen:
        put(engine, new_task())
        assert notifications(seen) == 1


# The database itself


def test_missing_tables_are_noticed_and_the_command_is_named(engine):
    assert not engine.missing_tables()
    execute("ALTER TABLE dbtasks_node RENAME TO dbtasks_node_away")
    try:
        assert engine.missing_tables()
        with pytest.raises(DatabaseError) as caught:
            engine.renew_lease(node())
        assert "manage.py migrate" in engine.unavailable(caught.value)
    finally:
        engine.close()
        execute("ALTER TABLE dbtasks_node_away RENAME TO dbtasks_node")
    assert not engine.missing_tables()


def test_missing_tables_do_not_spoil_the_callers_transaction(engine):
    execute("ALTER TABLE dbtasks_node RENAME TO dbtasks_node_away")
    try:
        assert engine.missing_tables()
        put(engine, new_task())
    finally:
        execute("ALTER TABLE dbtasks_node_away RENAME TO dbtasks_node")


def test_a_lost_connection_is_told_from_a_mistake_and_closing_heals_it(engine):
    engine.now()
    engine.connection.connection.close()
    with pytest.raises((DatabaseError, InterfaceError)) as caught:
        engine.now()
    assert engine.unavailable(caught.value)
    engine.close()
    assert engine.now()


def test_a_session_that_the_server_ended_is_an_outage(engine, database):
    end_session(engine, database)
    with pytest.raises(DatabaseError) as caught:
        engine.now()
    assert engine.unavailable(caught.value)
    assert "\n" not in engine.unavailable(caught.value)
    engine.close()
    assert engine.now()


def test_a_watcher_whose_session_ended_raises_an_outage(engine, database):
    watcher = engine.watcher()
    watcher.changed()
    if not watcher.tells:
        pytest.skip("no watcher on this database")
    end_session(engine, database)
    with pytest.raises(DatabaseError) as caught:
        wait_until(watcher.changed)
    assert engine.unavailable(caught.value)


def end_session(engine: Engine, database: str) -> None:
    """Has the server end this thread's session."""
    if database == "sqlite":
        pytest.skip("SQLite has no server")
    if database == "postgresql":
        ((pid,),) = execute("SELECT pg_backend_pid()")
        elsewhere(lambda: execute(f"SELECT pg_terminate_backend({pid}, 5000)"))
    else:
        ((pid,),) = execute("SELECT CONNECTION_ID()")
        elsewhere(lambda: execute(f"KILL {pid}"))


def test_a_mistake_is_no_outage(engine):
    (id,) = put(engine, new_task())
    with pytest.raises(IntegrityError) as caught:
        put(engine, new_task(id=id))
    assert engine.unavailable(caught.value) is None
    assert engine.unavailable(ValueError("connection refused")) is None
    assert engine.unavailable(OperationalError("connection refused"))


def test_a_connection_in_the_middle_of_a_transaction_is_closed_all_the_same(engine):
    transaction.set_autocommit(False)
    put(engine, new_task())
    engine.close()
    assert not elsewhere(ScheduledTask.objects.exists)
    put(engine, new_task())
    assert elsewhere(ScheduledTask.objects.exists)


# Time zones


@pytest.mark.parametrize(
    ("use_tz", "database_zone"), [(True, None), (True, "Asia/Tokyo"), (False, None)]
)
def test_times_mean_the_same_under_every_setting(engine, use_tz, database_zone, monkeypatch):
    instant = datetime.datetime(2024, 7, 1, 12, 30, 15, 250000, tzinfo=UTC)
    with other_zone(use_tz, database_zone, monkeypatch):
        id, overdue, _ = put(
            engine,
            new_task(run_after=instant),
            new_task("overdue", due_in=-5),
            new_task(due_in=3600),
        )
        assert as_utc(stored(id).run_after) == instant
        assert (stored(id).run_after.tzinfo is not None) == use_tz
        claimed = claim_one(engine)
        assert as_utc(engine.moment(claimed.run_after)) == instant
        assert abs(as_utc(engine.moment(claimed.started_at)) - datetime.datetime.now(UTC)) < HOUR
        assert -60 < engine.glance().due_in < 0
        assert engine.promote_due() == 1
        assert claim_one(engine).id == overdue
        ScheduledTask.objects.filter(pk=id).update(run_after=stored(id).run_after)
        engine.renew_lease(node())
        assert engine.dead_nodes() == []
        assert abs(engine.now() - datetime.datetime.now(UTC)) < datetime.timedelta(seconds=60)
        begin(engine, next_due=instant)
        row = engine.periodic_entry("nightly")
        assert row.next_due == instant
        engine.move_entries([Settled(row.id, instant + HOUR, instant, None)], "me")
        settled = engine.periodic_entry("nightly")
        assert (settled.next_due, settled.last_due) == (instant + HOUR, instant)
        assert enqueue(engine, instant, new_task())
    assert stored(id).run_after == instant


@contextlib.contextmanager
def other_zone(use_tz: bool, database_zone: str | None, monkeypatch) -> Iterator[None]:
    """The project's TIME_ZONE is New York's, and DATABASES has one of its own."""
    settings = connections.settings["default"]
    with (
        override_settings(USE_TZ=use_tz, TIME_ZONE="America/New_York"),
        monkeypatch.context() as patch,
    ):
        patch.setitem(settings, "TIME_ZONE", database_zone)
        reconnect()
        yield
    reconnect()


def reconnect() -> None:
    """A new connection object: the old one has kept its time zone."""
    connections["default"].close()
    del connections["default"]
