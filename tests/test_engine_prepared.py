"""PostgreSQL's plan for finishing one task and claiming the next: kept, renewed, done without."""

from typing import Any

import pytest
from django.db import connection, transaction

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
