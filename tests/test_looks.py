"""What the admin asks the engines: found by an index, bounded, and the same on every database."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import pytest

from dbtasks.browse import find
from dbtasks.engines import Engine
from dbtasks.engines.looks import CAP, Look, Looks, lowest_id
from dbtasks.models import ScheduledTask
from dbtasks.runner import database_backend
from tests.engines import (
    EVERYTHING,
    ME,
    fresh_engine,
    new_task,
    outcome_of,
    put,
    statements,
)
from tests.test_engine_plans import steps_of

FAILED = '[{"exception_class_path":"a.First","traceback":""},{"exception_class_path":"b.Last"}]'


@pytest.fixture
def engine(db: None) -> Engine:
    return fresh_engine()


def finish(engine: Engine, count: int, **changes: Any) -> list[str]:
    """That many finished tasks, oldest first."""
    ids = put(engine, *(new_task() for _ in range(count)))
    claimed = engine.claim(ME, EVERYTHING, count)
    engine.finish([outcome_of(row, **changes) for row in claimed])
    return ids


def hexes(ids: list[uuid.UUID]) -> list[str]:
    return [id.hex for id in ids]


def test_history_is_newest_first_and_goes_on_below_an_id(engine: Engine) -> None:
    ids = finish(engine, 5)[::-1]
    looks = Looks(engine)
    found = looks.find(Look(), 3)
    assert (hexes(found.ids), found.more) == (ids[:3], True)
    rest = looks.find(Look(before=found.reached), 3)
    assert (hexes(rest.ids), rest.more) == (ids[3:], False)


def test_a_look_ends_with_its_window_and_says_how_far_it_got(engine: Engine) -> None:
    wanted = put(engine, new_task("other"))
    ids = put(engine, *(new_task() for _ in range(7)))[::-1]
    looks = Looks(engine, window=5)
    found = looks.find(Look(queue="other"), 10)
    assert (found.ids, found.more) == ([], True)
    assert found.reached is not None
    assert found.reached.hex == ids[4]
    further = looks.find(Look(queue="other", before=found.reached), 10)
    assert (hexes(further.ids), further.more, further.reached) == (wanted, False, None)


def test_failures_name_their_last_exception(engine: Engine) -> None:
    (id,) = finish(engine, 1, status="FAILED", errors=FAILED)
    failures, found = Looks(engine).failures(Look())
    assert [(failure.id.hex, failure.exception) for failure in failures] == [(id, "b.Last")]
    assert not found.more
    assert hexes(Looks(engine).find(Look(error="b.Last"), 10).ids) == [id]
    assert Looks(engine).find(Look(error="a.First"), 10).ids == []


def test_a_giant_error_is_not_read_whole(engine: Engine) -> None:
    giant = '[{"exception_class_path":"a.First","traceback":"' + "x" * 100_000 + '"}]'
    finish(engine, 1, status="FAILED", errors=giant)
    (failure,), _ = Looks(engine).failures(Look())
    assert failure.exception == "a.First"


def test_since_reads_only_ids_of_that_time(engine: Engine) -> None:
    moment = datetime.datetime.now(datetime.UTC)
    before = lowest_id(moment - datetime.timedelta(hours=2))
    (old,) = put(engine, new_task(id=before.hex))
    (new,) = put(engine, new_task())
    since = moment - datetime.timedelta(hours=1)
    assert hexes(Looks(engine).find(Look(since=since), 10).ids) == [new]
    assert hexes(Looks(engine).find(Look(), 10).ids) == [new, old]


def test_ready_rows_are_read_no_further_than_they_are_shown(engine: Engine) -> None:
    ids = put(engine, *(new_task("a") for _ in range(9)))
    looks = Looks(engine)
    found = [
        id
        for offset in (0, 3, 6)
        for id in hexes(looks.find(Look(state="ready", offset=offset), 3).ids)
    ]
    assert found == ids
    with statements() as seen:
        looks.find(Look(state="ready", queue="a", offset=3), 3)
    ((_, params),) = seen
    assert CAP not in params


def test_ready_rows_are_in_claim_order(engine: Engine) -> None:
    low, high, other = put(engine, new_task("b", 0), new_task("b", 5), new_task("a", -3))
    assert hexes(Looks(engine).find(Look(state="ready"), 10).ids) == [other, high, low]
    assert hexes(Looks(engine).find(Look(state="ready", queue="b"), 10).ids) == [high, low]
    second = Looks(engine).find(Look(state="ready", offset=1), 1)
    assert (hexes(second.ids), second.more) == ([high], True)


def test_other_backends_are_not_seen(engine: Engine) -> None:
    other = fresh_engine("reports")
    put(other, new_task(), new_task(due_in=100))
    finish(other, 1)
    looks = Looks(engine)
    for state in ("", "ready", "deferred", "running", "successful"):
        assert looks.find(Look(state=state), 10).ids == []
    assert looks.depths() == []
    assert (looks.load().deferred, looks.load().running) == (0, 0)


def test_depths_and_load(engine: Engine) -> None:
    now = engine.now()
    hour = datetime.timedelta(hours=1)
    put(engine, *(new_task("a") for _ in range(3)))
    put(engine, new_task("b", 9), new_task("b", -9, enqueued_at=now - hour))
    put(engine, new_task(due_in=3600), new_task(due_in=60))
    put(engine, new_task("c", 100))
    engine.claim(ME, EVERYTHING, 1)
    depths = {depth.queue: depth for depth in Looks(engine).depths()}
    assert {name: depth.ready for name, depth in depths.items()} == {"a": 3, "b": 2}
    assert depths["b"].oldest is not None
    assert abs(depths["b"].oldest - (now - hour)) < datetime.timedelta(minutes=1)
    load = Looks(engine).load()
    assert (load.deferred, load.running, load.paused) == (2, 1, 0)
    assert load.next_due is not None
    assert load.next_due - load.now < datetime.timedelta(seconds=61)


def test_texts_are_cut_where_they_are_giant(engine: Engine) -> None:
    (id,) = put(engine, new_task(args='["' + "x" * 1000 + '"]'))
    texts = Looks(engine).texts(uuid.UUID(id), 10, 10)
    args = texts["args"]
    assert args is not None
    assert (args.length, args.start, args.cut) == (1004, '["xxxxxxxx', True)
    assert texts["return_value"] is None
    assert Looks(engine).texts(uuid.uuid4(), 10, 10) == {}


def test_quotes_and_wildcards_are_only_text(engine: Engine) -> None:
    odd = "a%_'\"\\b"
    (id,) = put(engine, new_task(odd, task_path=odd))
    put(engine, new_task("aXY", task_path="aXYb"))
    for look in (Look(queue=odd), Look(task=odd), Look(text=odd), Look(state="ready", queue=odd)):
        assert hexes(Looks(engine).find(look, 10).ids) == [id], look
    assert odd in [depth.queue for depth in Looks(engine).depths()]


@pytest.fixture
def history(engine: Engine) -> Engine:
    """A table where what is unfinished is the minority, as the plans of a database know it."""
    from django.db import connection

    for _ in range(4):
        finish(engine, 500)
    put(engine, *(new_task(f"queue-{number % 5}") for number in range(300)))
    put(engine, *(new_task(due_in=1000 + number) for number in range(300)))
    engine.claim(ME, EVERYTHING, 20)
    table = "dbtasks_scheduledtask"
    with connection.cursor() as cursor:
        cursor.execute(
            f"ANALYZE TABLE {table}" if connection.vendor == "mysql" else f"ANALYZE {table}"
        )
        if cursor.description:
            cursor.fetchall()
    return engine


LOOKS = {
    "ready": Look(state="ready"),
    "one queue": Look(state="ready", queue="queue-1"),
    "deferred": Look(state="deferred"),
    "paused": Look(state="paused"),
    "running": Look(state="running"),
}


@pytest.mark.parametrize("name", LOOKS)
def test_unfinished_rows_are_found_by_their_own_index(history: Engine, name: str) -> None:
    indexes = {"ready": "dbtasks_claim", "one queue": "dbtasks_claim", "running": "dbtasks_claimed"}
    with statements() as seen:
        Looks(history).find(LOOKS[name], 10)
    ((sql, params),) = seen
    used = {step.index for step in steps_of(sql, params)} - {None}
    assert used == {indexes.get(name, "dbtasks_due")}


def test_nothing_reads_more_than_its_bound(history: Engine) -> None:
    """Each access of the history stands in a subquery with a LIMIT, or asks for ids."""
    looks = Looks(history, window=50)
    with statements() as seen:
        for state in ("", "failed", "successful"):
            looks.find(Look(state=state, task="nothing"), 10)
        looks.failures(Look())
        looks.load()
        looks.depths()
    for sql, _ in seen:
        reads = sql.count("FROM dbtasks_scheduledtask")
        probes = ("LIMIT", "MIN(ready_queue)", "MAX(precedence)", "GROUP BY backend, ready_queue")
        bounds = sum(sql.count(probe) for probe in probes)
        assert bounds >= reads or "id IN" in sql, sql


def test_counts_end_at_their_cap(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dbtasks.engines.looks.CAP", 5)
    put(engine, *(new_task() for _ in range(9)), *(new_task(due_in=100) for _ in range(9)))
    (depth,) = Looks(engine).depths()
    assert depth.ready == 6
    assert Looks(engine).load().deferred == 6
    assert CAP == 10_000
    assert ScheduledTask.objects.count() == 18


def has_failed_index() -> bool:
    from django.db import connection

    return bool(connection.features.supports_partial_indexes)


@pytest.mark.parametrize(
    "look",
    [Look(state="failed"), Look(state="failed", task="a.b", before=uuid.UUID(int=2**127))],
    ids=["all", "of one task, older"],
)
def test_failed_rows_are_found_by_an_index_that_holds_nothing_else(
    history: Engine, look: Look
) -> None:
    if not has_failed_index():
        pytest.skip("no partial indexes here")
    with statements() as seen:
        Looks(history).find(look, 10)
        list(find(database_backend("default"), state="failed")[:10])
    for sql, params in seen:
        steps = [step for step in steps_of(sql, params) if step.index or step.scans]
        assert {step.index for step in steps} == {"dbtasks_failed"}, sql


def test_old_failures_are_found_at_once_or_window_by_window(engine: Engine) -> None:
    failed = finish(engine, 1, status="FAILED", errors=FAILED)
    finish(engine, 30)
    looks = Looks(engine, window=5)
    assert hexes(looks.find(Look(state="failed"), 10).ids) == (failed if has_failed_index() else [])
    found = looks.find_patiently(Look(state="failed"), 10, patience=60)
    assert (hexes(found.ids), found.more) == (failed, False)


def test_patience_ends_with_a_place_to_go_on_from(engine: Engine) -> None:
    old = put(engine, *(new_task() for _ in range(6)))
    put(engine, *(new_task("other") for _ in range(5)))
    looks = Looks(engine, window=5)
    found = looks.find_patiently(Look(queue="default"), 10, patience=0)  # a glance and a look
    assert (hexes(found.ids), found.more) == (old[:0:-1], True)
    assert found.reached is not None
    assert found.reached.hex == old[1]
    whole = looks.find_patiently(Look(queue="default"), 10, patience=60)
    assert (hexes(whole.ids), whole.more) == (old[::-1], False)


def test_the_states_of_all_queues_are_two_statements(history: Engine) -> None:
    with statements() as seen:
        assert len(history.queue_states()) == 5
    assert len(seen) == 2
