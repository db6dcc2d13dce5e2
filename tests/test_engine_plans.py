"""How the databases execute the engines' statements: by the index made for it, without sorting.

The statements are caught as the engine sends them, so what is explained is what runs. The plans
are those of a table where claimable rows are the minority, after ANALYZE; it is so large that to
read all of it costs many times as much as what is asked for, so that no plan wins by a hair.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest
from django.db import connection, connections, transaction

from dbtasks.engines import Claimant, Death, Engine
from dbtasks.models import ScheduledTask
from dbtasks.queues import select_queues
from tests.conftest import empty_tables
from tests.engines import (
    EVERYTHING,
    ME,
    execute,
    fresh_engine,
    new_task,
    outcome_of,
    put,
    retry_of,
    statements,
)

TABLE = "dbtasks_scheduledtask"
INDEXES = {f"{TABLE}_pkey", *(index.name for index in ScheduledTask._meta.indexes)}
QUEUES = ["bulk", "default", "email", "email-bulk", "reports"]
HISTORY, DOUBLINGS = 3000, 5
DEFERRED, READY = 3000, 2000
SMALL = 10_000
MANY = 1500  # so many that to read all, once, seems cheaper than to look for each by its id
NEW_ID = {
    "postgresql": "gen_random_uuid()",
    "mysql": "replace(uuid(), '-', '')",
    "sqlite": "lower(hex(randomblob(16)))",
}
SINGLE = select_queues(["default"])
SEVERAL = select_queues(["email*", "default"], ["email-bulk"])


# Without VACUUM, PostgreSQL's indexes would still hold the history as it was claimable.
REFRESH = {
    "postgresql": f"VACUUM (ANALYZE) {TABLE}",
    "mysql": f"ANALYZE TABLE {TABLE}",
    "sqlite": f"ANALYZE {TABLE}",
}
COPIED_REST = ", ".join(
    field.column
    for field in ScheduledTask._meta.concrete_fields
    if not field.generated and not field.primary_key
)
COPIED = f"id, {COPIED_REST}"


def new_id() -> str:
    return NEW_ID[connection.vendor]


class Step(NamedTuple):
    """One access to the table of tasks, or a sort of its rows, and what is wrong with it."""

    index: str | None
    scans: bool
    sorts: bool
    text: str


@pytest.fixture(scope="module")
def engine(tables: None) -> Iterator[Engine]:
    """The engine of a queue with much history, many deferred rows, and rows of five queues."""
    empty_tables()
    engine = fresh_engine()
    put(engine, *(new_task(random.choice(QUEUES)) for _ in range(HISTORY)))
    while claimed := engine.claim(ME, EVERYTHING, 500):
        engine.finish([outcome_of(row, retain=random.uniform(-500, 1e6)) for row in claimed])
    for _ in range(DOUBLINGS):
        execute(f"INSERT INTO {TABLE} ({COPIED}) SELECT {new_id()}, {COPIED_REST} FROM {TABLE}")
    put(
        engine,
        *(new_task(random.choice(QUEUES), 50, random.uniform(-500, 1e6)) for _ in range(DEFERRED)),
    )
    put(engine, *(new_task(random.choice(QUEUES), random.randint(-3, 3)) for _ in range(READY)))
    # A few rows that are due, expired or claimed, as they are at any time.
    for number in range(10):
        who = Claimant(f"node-{number}", f"worker-{number}")
        engine.claim(who, EVERYTHING, 4)
    execute(REFRESH[connection.vendor])
    yield engine
    empty_tables()
    connections.close_all()


@pytest.fixture(autouse=True)
def closed(engine: Engine) -> Iterator[None]:
    yield
    connections.close_all()


def caught(action: Callable[[], object]) -> list[tuple[str, Any]]:
    """The statements about tasks that `action` executes; what it did is undone."""
    with transaction.atomic(), statements() as seen:
        action()
        transaction.set_rollback(True)
    return [(sql, params) for sql, params in seen if TABLE in sql]


def steps_of(sql: str, params: Any) -> list[Step]:
    return {"postgresql": postgresql, "sqlite": sqlite, "mysql": mysql}[connection.vendor](
        sql, params
    )


def postgresql(sql: str, params: Any) -> list[Step]:
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (FORMAT JSON) {sql}", params)
        ((plan,),) = cursor.fetchall()
    return list(postgresql_steps(plan[0]["Plan"]))


def postgresql_steps(plan: dict[str, Any], sorts: bool = False) -> Iterator[Step]:
    """Each scan of the table, and whether its rows are sorted above; those of a CTE may be."""
    kind, index = plan["Node Type"], plan.get("Index Name")
    sorts |= kind in ("Sort", "Incremental Sort")
    if kind == "Seq Scan" and plan["Relation Name"] == TABLE:
        yield Step(None, True, sorts, str(plan))
    elif index in INDEXES:  # other tables are small, and read as the planner likes
        yield Step(index, "Index Cond" not in plan, sorts, str(plan))
    for child in plan.get("Plans", []):
        apart = child.get("Parent Relationship") in ("InitPlan", "SubPlan")
        yield from postgresql_steps(child, sorts and not apart)


def sqlite(sql: str, params: Any) -> list[Step]:
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {sql}", params)
        details = [row[3] for row in cursor.fetchall()]
    return list(map(sqlite_step, filter(concerns_tasks, details)))


def concerns_tasks(detail: str) -> bool:
    return TABLE in detail or "TEMP B-TREE" in detail


def sqlite_step(detail: str) -> Step:
    words = detail.split()
    index = words[words.index("INDEX") + 1] if "INDEX" in words else None
    return Step(index, detail.startswith("SCAN"), detail.startswith("USE TEMP"), detail)


def mysql(sql: str, params: Any) -> list[Step]:
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN FORMAT=TRADITIONAL {sql}", params)
        names = [column[0] for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    return [mysql_step(row) for row in rows if row["table"] in (TABLE, "t")]


def mysql_step(row: dict[str, Any]) -> Step:
    extra = row["Extra"] or ""
    # A loose index scan gives distinct names, which are sorted, and no rows.
    sorts = ("filesort" in extra or "temporary" in extra) and "index for group-by" not in extra
    return Step(row["key"], row["type"] in ("ALL", "index"), sorts, str(row))


def check(action: Callable[[], object], *indexes: str, may_sort: bool = False) -> None:
    """All accesses are by `indexes` or the primary key, each is bounded, and nothing is sorted."""
    seen = caught(action)
    assert seen
    used = set()
    for sql, params in seen:
        for step in steps_of(sql, params):
            assert not step.scans, f"reads all: {step.text}\n{sql}"
            assert may_sort or not step.sorts, f"sorts: {step.text}\n{sql}"
            used.add(step.index)
    used -= {None, "PRIMARY", f"{TABLE}_pkey", f"sqlite_autoindex_{TABLE}_1"}
    assert used == set(indexes)


@pytest.mark.parametrize("queues", [SINGLE, SEVERAL, EVERYTHING], ids=str)
@pytest.mark.parametrize("limit", [1, 20, MANY])
def test_a_claim_reads_claimable_rows_in_claim_order(engine, queues, limit):
    check(lambda: engine.claim(ME, queues, limit), "dbtasks_claim")


@pytest.mark.parametrize("queues", [SINGLE, SEVERAL, EVERYTHING], ids=str)
def test_a_claim_reads_no_more_than_what_it_takes(engine, queues):
    if connection.vendor != "postgresql":
        pytest.skip("only PostgreSQL counts the pages that a statement reads")
    ((pages,),) = execute(f"SELECT relpages FROM pg_class WHERE relname = '{TABLE}'")
    for limit in (1, 20, MANY):
        ((sql, params),) = caught(lambda limit=limit: engine.claim(ME, queues, limit))
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", params)
            ((plan,),) = cursor.fetchall()
            transaction.set_rollback(True)
        read = plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"]
        assert read < 100 + 50 * limit
        assert limit == MANY or read < pages / 2


@pytest.mark.parametrize("queues", [SINGLE, SEVERAL, EVERYTHING], ids=str)
def test_finishing_adds_an_access_by_primary_key_only(engine, queues):
    rows = [
        outcome_of(row) if number % 2 else retry_of(row, float(number))
        for number, row in enumerate(engine.claim(ME, EVERYTHING, 6))
    ]
    check(lambda: engine.finish_and_claim(rows, ME, queues, 5), "dbtasks_claim")
    check(lambda: engine.finish(rows))
    engine.release(ME)


def test_promoting_reads_the_due_rows_only(engine):
    check(lambda: engine.promote_due(100), "dbtasks_due")


def test_pruning_reads_the_expired_rows_only(engine):
    check(lambda: engine.prune(100), "dbtasks_expired")
    check(lambda: engine.prune(MANY), "dbtasks_expired")
    check(engine.expired_exist, "dbtasks_expired")


def test_rows_of_nodes_without_a_lease_are_found_by_their_claims(engine):
    # Their index holds nothing but claimed rows, so all of it may be read.
    for sql, params in caught(engine.dead_nodes):
        assert {step.index for step in steps_of(sql, params)} - {None} == {"dbtasks_claimed"}


@pytest.mark.parametrize("worker", [None, "worker-3"])
def test_a_rescue_reads_the_claimed_rows_only(engine, worker):
    # It sorts the few rows that a worker held, so that two rescuers lock them in one order.
    rescue = partial(engine.rescue, "node-3", worker, Death("gone"))
    check(rescue, "dbtasks_claimed", may_sort=True)


def test_a_release_of_all_reads_the_claimed_rows_only(engine):
    check(lambda: engine.release(Claimant("node-3", "worker-3")), "dbtasks_claimed")


def test_a_glance_is_a_probe_for_each(engine):
    # MySQL answers with the ends of two indexes: "Select tables optimized away".
    away = connection.vendor == "mysql"
    check(engine.glance, *(() if away else ("dbtasks_claim", "dbtasks_due")))


@pytest.mark.parametrize("queues", [SINGLE, SEVERAL, EVERYTHING], ids=str)
def test_counting_ready_rows_probes_each_queue(engine, queues):
    check(lambda: engine.ready_count(queues, 50), "dbtasks_claim")


def test_the_heads_are_one_probe_per_queue(engine):
    if connection.vendor == "postgresql":
        pytest.skip("PostgreSQL's claim finds them itself")
    assert {head.queue for head in engine.heads(EVERYTHING)} == set(QUEUES)
    check(lambda: engine.heads(SEVERAL), "dbtasks_claim")


def test_the_states_of_the_queues_are_read_from_the_claimable_rows(engine):
    check(engine.queue_states, "dbtasks_claim", may_sort=True)


def test_plans_hold_for_as_many_rows_as_the_other_tests_think(engine):
    counts = engine.counts()
    assert (counts.deferred, counts.ready + counts.running) == (DEFERRED, READY)
    history = ScheduledTask.objects.filter(finished_at__isnull=False).count()
    assert history == HISTORY * 2**DOUBLINGS


@pytest.mark.parametrize("queues", [SINGLE, EVERYTHING], ids=str)
def test_many_at_once_do_not_read_the_whole_table_however_small_it_is(engine, queues):
    """To read it once seems cheap beside hundreds of probes, but each batch would do it."""
    if connection.vendor != "postgresql":
        pytest.skip("only PostgreSQL chooses by how many rows there are, and undoes a TRUNCATE")
    with transaction.atomic():
        execute(f"TRUNCATE {TABLE} CASCADE")
        put(engine, *(new_task() for _ in range(SMALL)))
        execute(f"ANALYZE {TABLE}")
        rows = [outcome_of(row) for row in engine.claim(ME, queues, 400)]
        check(lambda: engine.claim(ME, queues, 400), "dbtasks_claim")
        check(lambda: engine.finish(rows))
        check(lambda: engine.finish_and_claim(rows, ME, queues, 400), "dbtasks_claim")
        execute(f"UPDATE {TABLE} SET delete_after = now() WHERE status = 'RUNNING'")
        execute(f"ANALYZE {TABLE}")
        check(lambda: engine.prune(400), "dbtasks_expired", may_sort=True)
        transaction.set_rollback(True)
