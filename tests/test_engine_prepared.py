"""PostgreSQL's plans for finishing one task and claiming the next, and for the row of a call.

They are kept, renewed, and done without.
"""

import contextlib
import datetime
from typing import Any

import pytest
from django.db import DataError, connection, transaction
from django.test.utils import CaptureQueriesContext

from dbtasks.engines import prepared
from tests.engines import (
    EVERYTHING,
    ME,
    OTHER,
    elsewhere,
    execute,
    fresh_engine,
    new_task,
    outcome_of,
    put,
    statements,
    stored,
)


@pytest.fixture
def engine(db: None, database: str) -> Any:
    if database != "postgresql":
        pytest.skip("only PostgreSQL's plans are kept")
    return fresh_engine()


def go_on(engine: Any, count: int) -> list[str]:
    """`count` times: finishes a task and claims the next. The statements that this took."""
    ids = put(engine, *(new_task() for _ in range(count + 1)))
    claimed = engine.claim(ME, EVERYTHING)
    with statements() as seen:
        for id in ids[1:]:
            finished, following = engine.finish_and_claim(
                [outcome_of(row, return_value='"%s é"') for row in claimed], ME, EVERYTHING
            )
            assert finished == {claimed[0].id}
            assert [row.id for row in following] == [id]
            assert stored(claimed[0].id).return_value == "%s é"
            claimed = following
        finished, _ = engine.finish_and_claim(
            [outcome_of(row, OTHER) for row in claimed], ME, EVERYTHING
        )
        assert finished == set()  # the fence holds here as well
    engine.finish([outcome_of(row) for row in claimed])
    return [
        sql.split(maxsplit=1)[0] for sql, _ in seen if "return_value" in sql or "EXECUTE" in sql
    ]


@pytest.fixture
def only_queue(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """That there is one queue is known for as long as a test takes."""
    monkeypatch.setattr("dbtasks.engines.level.KNOWN_FOR", 3600.0)
    monkeypatch.setattr(prepared, "GOOD_FOR_SECONDS", 3600.0)


@pytest.mark.usefixtures("only_queue")
class TestThePlan:
    def test_it_is_made_once(self, engine: Any) -> None:
        sent = go_on(engine, 5)
        assert sent.count("PREPARE") == 1
        assert sent.count("EXECUTE") >= 5

    def test_it_is_made_anew_after_some_uses(
        self, engine: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(prepared, "GOOD_FOR_USES", 2)
        sent = go_on(engine, 6)
        assert sent.count("DEALLOCATE") >= 2
        assert sent.count("PREPARE") == 1

    def test_it_is_made_anew_on_another_connection(self, engine: Any) -> None:
        go_on(engine, 2)
        engine.close()
        assert go_on(engine, 2).count("PREPARE") == 1

    def test_other_threads_have_their_own(self, engine: Any) -> None:
        go_on(engine, 2)
        assert elsewhere(lambda: go_on(engine, 2)).count("PREPARE") == 1
        assert engine.finish_and_claim_one.usable

    def test_where_it_is_gone_the_work_is_done_without_it(self, engine: Any) -> None:
        go_on(engine, 2)
        execute("DEALLOCATE ALL")  # as a pooler does when it lends the connection to others
        go_on(engine, 2)
        assert not engine.finish_and_claim_one.usable

    def test_where_somebody_else_made_it_the_work_is_done_without_it(self, engine: Any) -> None:
        execute(engine.finish_and_claim_one.prepare)
        assert "EXECUTE" not in go_on(engine, 2)
        assert not engine.finish_and_claim_one.usable

    def test_where_the_server_binds_the_parameters_the_work_is_done_without_it(
        self, engine: Any
    ) -> None:
        from django.db.backends.postgresql.base import ServerBindingCursor

        engine.now()
        connection.connection.cursor_factory = ServerBindingCursor
        try:
            go_on(engine, 2)
        finally:
            engine.close()
        assert not engine.finish_and_claim_one.usable

    def test_inside_a_transaction_it_is_not_used(self, engine: Any) -> None:
        with transaction.atomic():
            assert "EXECUTE" not in go_on(engine, 2)
        assert engine.finish_and_claim_one.usable

    def test_an_outcome_that_is_refused_leaves_it_usable(self, engine: Any) -> None:
        put(engine, new_task())
        (claimed,) = engine.claim(ME, EVERYTHING)
        with pytest.raises(Exception, match="too long"):
            engine.finish_and_claim([outcome_of(claimed, status="x" * 99)], ME, EVERYTHING)
        assert stored(claimed.id).status == "RUNNING"
        engine.finish([outcome_of(claimed)])
        go_on(engine, 2)
        assert engine.finish_and_claim_one.usable
        assert not connection.in_atomic_block


NOON = datetime.datetime(
    2026, 1, 31, 12, 0, 0, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=2))
)
MANY = prepared.CALLS_BEFORE + 5


def insert(engine: Any, count: int = MANY) -> list[str]:
    """One by one, in a transaction that is open or in one of its own. The statements sent."""
    rows = [new_task(args=f'["%s é", {number}]') for number in range(count)]
    with statements() as seen, transaction.atomic():
        for row in rows:
            engine.insert([row], notify=False)
            assert stored(row.id).args == ["%s é", rows.index(row)]
    return [sql.split(maxsplit=1)[0] for sql, _ in seen]


class TestThePlanOfAnInsert:
    def test_it_is_made_where_many_follow(self, engine: Any) -> None:
        assert "PREPARE" not in insert(engine, prepared.CALLS_BEFORE)
        sent = insert(engine)
        assert sent.count("PREPARE") == 1
        assert sent.count("EXECUTE") == MANY - prepared.CALLS_BEFORE
        assert sent.count("SAVEPOINT") == 1  # the trial

    def test_later_transactions_find_it(self, engine: Any) -> None:
        insert(engine)
        sent = insert(engine)
        assert sent.count("PREPARE") == sent.count("SAVEPOINT") == 0
        assert sent.count("EXECUTE") == MANY - prepared.CALLS_BEFORE

    def test_where_it_is_gone_it_is_made_again(self, engine: Any) -> None:
        insert(engine)
        execute("DEALLOCATE ALL")  # as a pooler does when it lends the connection to others
        assert insert(engine).count("PREPARE") == 1
        assert engine.insert_ready.usable

    def test_another_connection_has_its_own(self, engine: Any) -> None:
        insert(engine)
        engine.close()
        assert insert(engine).count("PREPARE") == 1
        assert elsewhere(lambda: insert(engine)).count("PREPARE") == 1

    def test_where_somebody_else_made_it_it_is_used(self, engine: Any) -> None:
        execute(engine.insert_ready.prepare)
        sent = insert(engine)
        assert sent.count("PREPARE") == 0
        assert sent.count("EXECUTE") == MANY - prepared.CALLS_BEFORE

    def test_a_rollback_to_a_savepoint_undoes_its_rows_and_no_others(self, engine: Any) -> None:
        rows = [new_task() for _ in range(3 * MANY)]
        with transaction.atomic():
            for row in rows[:MANY]:
                engine.insert([row])
            with contextlib.suppress(ZeroDivisionError), transaction.atomic():
                for row in rows[MANY : 2 * MANY]:
                    engine.insert([row])
                raise ZeroDivisionError
            for row in rows[2 * MANY :]:
                engine.insert([row])
        ids = {engine.hex(id) for (id,) in engine.rows("SELECT id FROM dbtasks_scheduledtask")}
        assert ids == {row.id for row in rows[:MANY] + rows[2 * MANY :]}

    def test_errors_come_at_the_call(self, engine: Any) -> None:
        insert(engine)
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            insert(engine)
            with statements() as seen, pytest.raises(DataError, match="too long"):
                engine.insert([new_task(task_path="x" * 999)], notify=False)
            raise ZeroDivisionError
        assert [sql.split()[0] for sql, _ in seen] == ["EXECUTE"]
        assert insert(engine).count("EXECUTE") == MANY - prepared.CALLS_BEFORE

    def test_where_the_server_binds_the_parameters_the_transaction_goes_on(
        self, engine: Any
    ) -> None:
        from django.db.backends.postgresql.base import ServerBindingCursor

        engine.now()
        connection.connection.cursor_factory = ServerBindingCursor
        try:
            assert insert(engine).count("INSERT") == MANY
        finally:
            engine.close()
        assert not engine.insert_ready.usable

    def test_whoever_counts_the_statements_sees_the_inserts(self, engine: Any) -> None:
        with CaptureQueriesContext(connection), transaction.atomic():
            sent = insert(engine)
        assert sent.count("INSERT") == MANY

    def test_its_rows_are_those_of_the_plain_statement(self, engine: Any) -> None:
        told = {"queue": "mail", "priority": -7, "args": '["a"]', "policy": '{"retain":60}'}
        row = new_task(**told, enqueued_at=NOON)  # type: ignore[arg-type]
        engine.insert([row], notify=False)
        with statements() as seen, transaction.atomic():
            for number in range(MANY):
                engine.insert([row._replace(id=f"{number:032x}")], notify=False)
        assert seen[-1][0].startswith("EXECUTE")
        rows = engine.rows("SELECT to_jsonb(t) - 'id' FROM dbtasks_scheduledtask t")
        assert len(rows) == MANY + 1
        assert all(other == rows[0] for other in rows)
        assert stored(row.id).enqueued_at == NOON

    def test_rows_that_wait_for_their_time_do_without(self, engine: Any) -> None:
        deferred = new_task(due_in=60)
        with transaction.atomic():
            insert(engine)
            engine.insert([deferred], notify=False)
        assert stored(deferred.id).due_at == deferred.due_at
        assert stored(deferred.id).ready_queue is None
