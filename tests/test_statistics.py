"""Statistics: what workers count, how it gets into the table, and what is read from there."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import OperationalError, ProgrammingError

from dbtasks import statistics
from dbtasks.engines import Claimed, Death, Engine, Outcome
from dbtasks.execution import Execution
from dbtasks.models import Statistic
from dbtasks.statistics import Counted, combined
from dbtasks.tally import (
    BOUNDS,
    COLUMNS,
    MOST_PLACES,
    OTHER,
    Cells,
    Ledger,
    Tally,
    as_message,
    from_message,
    merge,
    rescued_counts,
)
from dbtasks.testing import running
from dbtasks_supervisor.channel import Channel
from dbtasks_supervisor.relay import CELLS_PER_MESSAGE, Relay, send_counts
from tests.app import tasks
from tests.engines import (
    EVERYTHING,
    ME,
    fresh_engine,
    new_task,
    outcome_of,
    put,
    race,
    statements,
)
from tests.node import Node
from tests.waiting import wait_until

UTC = datetime.UTC
DEADLINE = 30.0
LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=UTC)
NOOP = "tests.app.tasks.noop"


@pytest.fixture
def engine(db: None) -> Engine:
    return fresh_engine()


def claimed(path: str = NOOP, queue: str = "default", **changes: Any) -> Claimed:
    moment = datetime.datetime(2026, 1, 1, tzinfo=UTC)
    row = Claimed(
        "0" * 32, 1, path, "[]", "{}", queue, 0, None, moment, moment, moment, "[]", "[]", 0, "{}",
        "",
    )  # fmt: skip
    return row._replace(**changes)


def execution(row: Claimed, seconds: float = 0.002, **changes: Any) -> Execution:
    outcome: Outcome = outcome_of(row)._replace(**changes)
    return Execution(row, outcome, None, None, seconds)


def cell(**counts: int) -> list[int]:
    return [counts.get(name, 0) for name in COLUMNS]


def cells(count: int, queue: str = "q", **counts: int) -> Cells:
    return {(queue, f"app.task_{number:04d}"): cell(**counts) for number in range(count)}


# Counting


def test_each_attempt_counts_as_what_became_of_it() -> None:
    tally, row = Tally(), claimed()
    tally.count(execution(row))
    tally.count(execution(row, status="FAILED"))
    tally.count(execution(row, status="READY", retry_in=1.0))
    counts = dict(zip(COLUMNS, tally.cells["default", NOOP], strict=True))
    assert (counts["succeeded"], counts["failed"], counts["retried"]) == (1, 1, 1)
    assert counts["run_us"] == 6000
    assert counts["bucket_01"] == 3


def test_an_attempt_that_we_interrupted_does_not_count() -> None:
    tally, row = Tally(), claimed(worker_ids='["w"]')
    tally.count(execution(row, status="READY", retry_in=0.0, worker_ids=row.worker_ids))
    assert not tally.cells


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0.0, 0), (0.001, 0), (0.0011, 1), (300.0, 14), (301.0, 15), (1e9, 15)]
)
def test_a_run_time_belongs_to_the_first_bound_that_it_does_not_exceed(
    seconds: float, bucket: int
) -> None:
    tally = Tally()
    tally.count(execution(claimed(), seconds))
    assert tally.cells["default", NOOP][-len(BOUNDS) - 1 :].index(1) == bucket


@pytest.mark.parametrize("as_text", [False, True], ids=["datetimes", "texts"])
@pytest.mark.parametrize(
    ("enqueued", "run_after", "claim", "waited"),
    [(0, None, 2, 2_000_000), (5, None, 2, 0), (0, 1, 3, 2_000_000), (2, 1, 3, 1_000_000)],
    ids=["later", "clocks differ", "deferred", "run_after was over"],
)
def test_a_first_attempt_waited_since_it_could_run(
    enqueued: int, run_after: int | None, claim: int, waited: int, as_text: bool
) -> None:
    def at(second: int | None) -> Any:
        if second is None:
            return None
        moment = datetime.datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC)
        return moment.replace(tzinfo=None).isoformat(" ") if as_text else moment

    tally = Tally()
    row = claimed(enqueued_at=at(enqueued), run_after=at(run_after), last_attempted_at=at(claim))
    tally.count(execution(row))
    counts = dict(zip(COLUMNS, tally.cells["default", NOOP], strict=True))
    assert (counts["waited"], counts["wait_us"]) == (1, waited)


def test_a_later_attempt_counts_no_waiting() -> None:
    tally = Tally()
    tally.count(execution(claimed(worker_ids='["w"]')))
    assert dict(zip(COLUMNS, tally.cells["default", NOOP], strict=True))["waited"] == 0


def test_a_worker_tells_apart_only_so_many_places() -> None:
    tally = Tally()
    for number in range(MOST_PLACES + 50):
        tally.count(execution(claimed(path=f"app.task_{number}")))
    tally.count(execution(claimed(path="app.more", queue="unknown")))
    assert len(tally.cells) == MOST_PLACES + 2
    assert tally.cells["default", OTHER][0] == 50
    assert tally.cells[OTHER, OTHER][0] == 1


def test_what_is_taken_begins_anew_and_can_be_put_back() -> None:
    tally = Tally()
    assert tally.due_in is None
    tally.count(execution(claimed()))
    assert tally.due_in == 0.0
    taken = tally.take()
    assert not tally.cells
    tally.count(execution(claimed()))
    tally.put_back(taken)
    assert tally.cells["default", NOOP][0] == 2
    assert tally.due_in is not None
    assert tally.due_in > 0.0


# On the way


class Line:
    """A channel that takes so many messages."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.sent: list[Any] = []

    def send(self, kind: str, **fields: Any) -> bool:
        if len(self.sent) >= self.room:
            return False
        self.sent.append(fields)
        return True


@pytest.mark.once
def test_what_a_full_channel_does_not_take_is_kept() -> None:
    counted = cells(3 * CELLS_PER_MESSAGE, succeeded=1)
    line: Any = Line(room=1)
    left = send_counts(line, counted)
    assert len(left) == 2 * CELLS_PER_MESSAGE
    arrived = dict(from_message(line.sent[0]["cells"]))
    assert arrived | left == counted


@pytest.mark.once
def test_the_largest_message_fits_into_a_channel() -> None:
    huge: Cells = {
        ("\u2603" * 128, "\u2603" * 490 + f"{number:010d}"): [2**62] * len(COLUMNS)
        for number in range(CELLS_PER_MESSAGE)
    }
    ours, theirs = Channel.pair()
    try:
        assert not send_counts(ours, huge)
        (message,) = theirs.receive()
        assert dict(from_message(message["cells"])) == huge
    finally:
        ours.close()
        theirs.close()


@pytest.mark.once
def test_the_parent_keeps_counts_while_there_is_no_scheduler() -> None:
    class NoNursery:
        schedulers: list[Any] = []

        def of_kind(self, kind: Any) -> list[Any]:
            return self.schedulers

    nursery: Any = NoNursery()
    relay = Relay(nursery)
    for _ in range(3):
        relay.receive({"kind": "counted", "cells": as_message(cells(1, succeeded=1).items())})
    assert relay.cells == cells(1, succeeded=3)
    line = Line(room=9)
    nursery.schedulers = [type("Child", (), {"ready": True, "channel": line})()]
    relay.pass_on()
    assert not relay.cells
    assert dict(from_message(line.sent[0]["cells"])) == cells(1, succeeded=3)


def test_a_message_of_other_columns_is_left_out() -> None:
    assert list(from_message([["q", "p", [1, 2]]])) == []


# The table


def numbers(backend: str = "default") -> dict[tuple[str, str], Any]:
    return {(one.queue, one.task_path): one for one in statistics.totals(backend)}


def test_counts_are_added_to_the_minute_and_to_the_totals(engine: Engine) -> None:
    for _ in range(2):
        engine.add_counts({("q", "a"): cell(succeeded=2, failed=1, run_us=1500, bucket_03=3)})
    engine.add_counts({("Q", "a"): cell(rescued=2**40)})
    found = numbers()
    assert set(found) == {("q", "a"), ("Q", "a")}
    assert (found["q", "a"].succeeded, found["q", "a"].failed) == (4, 2)
    assert found["q", "a"].run_seconds == 0.003
    assert found["q", "a"].buckets[3] == 6
    assert found["Q", "a"].rescued == 2**40
    per_minute = statistics.minutes(since=LONG_AGO)
    assert combined(one for one in per_minute if one.queue == "q").succeeded == 4
    assert [path.task_path for path in statistics.by_path(since=LONG_AGO)] == ["a", "a"]


def test_the_minute_is_that_of_the_database(engine: Engine) -> None:
    before = engine.now()
    engine.add_counts({("q", "a"): cell(succeeded=1)})
    after = engine.now()
    (minute,) = statistics.minutes(since=before)
    assert before.replace(second=0, microsecond=0) <= minute.at <= after
    assert statistics.minutes(since=after + datetime.timedelta(minutes=2)) == []


def test_backends_do_not_see_each_other(engine: Engine) -> None:
    fresh_engine("other").add_counts({("q", "a"): cell(succeeded=1)})
    assert statistics.totals() == []
    assert engine.counted_places(10) == set()


def test_any_number_of_places_is_written_at_once(engine: Engine) -> None:
    many = cells(700, succeeded=1)
    engine.add_counts(many)
    engine.add_counts(many)
    assert {one.succeeded for one in statistics.totals()} == {2}
    assert len(statistics.totals()) == 700


def test_one_statement_for_what_is_usual(engine: Engine) -> None:
    with statements() as seen:
        engine.add_counts(cells(100, succeeded=1))
    assert len([sql for sql, _ in seen if "INSERT" in sql]) == 1
    assert len(seen) == 1


def test_the_minutes_of_yesterday_are_deleted_and_the_totals_stay(engine: Engine) -> None:
    engine.add_counts(cells(3, succeeded=1))
    Statistic.objects.filter(minute__gt=0).update(minute=5)
    engine.add_counts(cells(1, succeeded=1))
    assert engine.prune_counts(limit=2) == 2
    assert engine.prune_counts(limit=2) == 1
    assert engine.prune_counts(limit=2) == 0
    assert sum(one.succeeded for one in statistics.totals()) == 4
    assert sum(one.succeeded for one in statistics.minutes(since=LONG_AGO)) == 1


def add_many(engine: Engine, number: int, rounds: int) -> None:
    places = list(cells(20, succeeded=1).items())
    for turn in range(rounds):
        shift = (number + turn) % len(places)
        engine.add_counts(dict(places[shift:] + places[:shift]))


def test_nodes_that_write_at_once_lose_nothing(engine: Engine, tmp_path: Any) -> None:
    race(3, add_many, tmp_path, 15)
    assert {one.succeeded for one in statistics.totals()} == {45}


# The ledger


def test_a_ledger_writes_all_of_it_once(engine: Engine) -> None:
    ledger = Ledger(engine)
    assert ledger.write_at == float("inf")
    ledger.add(cells(2, succeeded=1).items())
    ledger.add(cells(1, succeeded=1).items())
    assert ledger.write_at < float("inf")
    ledger.write()
    ledger.write()
    assert [one.succeeded for one in statistics.totals()] == [2, 1]
    assert ledger.write_at == float("inf")


class Refusing:
    """An engine whose table refuses for a while."""

    def __init__(self, engine: Engine, error: Exception) -> None:
        self.engine = engine
        self.error: Exception | None = error

    def add_counts(self, counts: Any) -> None:
        if self.error is not None:
            raise self.error
        self.engine.add_counts(counts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


def test_what_could_not_be_written_is_written_later(engine: Engine) -> None:
    refusing: Any = Refusing(engine, OperationalError("gone"))
    ledger = Ledger(refusing)
    ledger.add(cells(1, succeeded=1).items())
    with pytest.raises(OperationalError):
        ledger.write()
    assert ledger.write_at < float("inf")
    refusing.error = None
    ledger.write()
    assert numbers()["q", "app.task_0000"].succeeded == 1


def test_a_table_that_is_not_migrated_yet_is_waited_for(engine: Engine) -> None:
    refusing: Any = Refusing(engine, ProgrammingError('relation "x" does not exist'))
    ledger = Ledger(refusing)
    ledger.add(cells(1, succeeded=1).items())
    ledger.write()
    assert ledger.write_at < float("inf")
    refusing.error = None
    ledger.write()
    assert numbers()["q", "app.task_0000"].succeeded == 1


def test_the_table_has_only_so_many_places_whoever_writes(engine: Engine) -> None:
    for queue in "ab":
        ledger = Ledger(engine)  # a node each
        ledger.add(cells(150, queue=queue, succeeded=1).items())
        ledger.write()
    ledger = Ledger(engine)
    ledger.add({("c", "app.new"): cell(succeeded=1)}.items())
    ledger.write()
    found = numbers()
    assert len(found) <= MOST_PLACES + 3
    assert sum(one.succeeded for one in found.values()) == 301
    assert found["b", OTHER].succeeded == 100
    assert found[OTHER, OTHER].succeeded == 1
    ledger.add({("a", "app.task_0000"): cell(succeeded=1)}.items())
    ledger.write()
    assert numbers()["a", "app.task_0000"].succeeded == 2


def test_threads_may_add_while_another_writes(engine: Engine) -> None:
    ledger = Ledger(engine)

    def add() -> None:
        for _ in range(200):
            ledger.add(cells(2, succeeded=1).items())

    threads = [threading.Thread(target=add) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        ledger.write()
    ledger.write()
    assert {one.succeeded for one in statistics.totals()} == {600}


# Rescues


def test_a_rescue_counts_what_was_cut_short(engine: Engine) -> None:
    put(engine, new_task(), new_task(policy='{"max_crashes":0}'), new_task())
    rows = engine.claim(ME, queues=EVERYTHING, limit=3)
    running = frozenset([rows[0].id, rows[1].id])
    rescued = engine.rescue(ME.node, ME.worker, Death("killed", running=running))
    counted: Cells = {}
    merge(counted, rescued_counts(rescued))
    assert counted == {("default", NOOP): cell(rescued=2, failed=1)}


# Reading


def test_a_quantile_is_found_within_its_bucket() -> None:
    buckets = [0] * (len(BOUNDS) + 1)
    buckets[0], buckets[6], buckets[15] = 10, 10, 5
    counted = Counted(buckets=tuple(buckets))
    assert counted.p(0.2) == 0.0005
    assert counted.p(0.6) == pytest.approx(0.175)
    assert counted.p(0.99) == 300.0
    assert counted.p(0.0) == 0.0
    assert Counted().p(0.5) is None
    with pytest.raises(ValueError, match="from 0 to 1"):
        counted.p(95)


def test_parts_are_combined() -> None:
    one = Counted(succeeded=1, failed=2, waited=1, wait_seconds=3.0, buckets=(1,) * 16)
    both = combined([one, one])
    assert (both.finished, both.attempts, both.mean_wait) == (6, 32, 3.0)
    assert combined([]) == Counted()
    assert Counted().mean_wait is None


# The whole way


def settled(count: Callable[[], int], wanted: int) -> None:
    wait_until(lambda: count() >= wanted, DEADLINE, f"{wanted} counted")
    assert count() == wanted


def succeeded() -> int:
    return sum(one.succeeded for one in statistics.totals())


@pytest.mark.usefixtures("db")
def test_a_runner_counts_while_it_runs_and_at_its_end() -> None:
    with running(workers=2, init_periodic=False) as runner:
        results = [tasks.noop.enqueue() for _ in range(20)]
        for result in results:
            assert runner.wait_for(result, DEADLINE)
        settled(succeeded, 20)
        assert runner.wait_for(tasks.noop.enqueue(), DEADLINE)
    assert succeeded() == 21
    (total,) = statistics.totals()
    assert (total.queue, total.task_path, total.waited) == ("default", NOOP, 21)
    assert total.run_seconds > 0


@pytest.mark.usefixtures("db")
def test_a_node_counts_while_it_runs_and_in_its_drain() -> None:
    with Node(workers=2) as node:
        for _ in range(30):
            tasks.noop.enqueue()
        settled(succeeded, 30)
        result = tasks.noop.enqueue()
        wait_until(lambda: result.refresh() or result.is_finished, DEADLINE)
        node.leave()
        assert succeeded() == 31


@pytest.mark.usefixtures("db")
def test_a_node_counts_a_rescue() -> None:
    with Node(workers=1):
        result = tasks.os_exit.enqueue()
        wait_until(lambda: result.refresh() or result.is_finished, DEADLINE)
        wait_until(lambda: sum(one.failed for one in statistics.totals()) == 1, DEADLINE)
        (total,) = statistics.totals()
        assert (total.task_path, total.rescued, total.succeeded) == (
            "tests.app.tasks.os_exit",
            4,
            0,
        )
