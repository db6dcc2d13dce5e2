"""The row of a call inside a transaction, as MySQL gets it without a cursor."""

from typing import Any

import pytest
from django.db import IntegrityError, OperationalError, connection, transaction
from django.test.utils import CaptureQueriesContext

from dbtasks.engines import direct, undelayed
from dbtasks.fields import dump_json
from tests.engines import (
    assert_refused_until_rolled_back,
    elsewhere,
    execute,
    fresh_engine,
    new_task,
    side_by_side,
    stored,
)

COUNT = "SELECT count(*) FROM dbtasks_scheduledtask"
AWKWARD = ["\x00", "\ud800", "ünïcödé 😀", "%s {now} '\"\\ \n\r\x1a"]
MANY = 20


@pytest.fixture
def engine(db: None, database: str) -> Any:
    if database != "mysql":
        pytest.skip("it is for mysqlclient")
    return fresh_engine()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The statements that go without a cursor."""
    seen: list[bytes] = []
    ask = undelayed.ask

    def note(raw: Any, statement: bytes, opened: Any) -> None:
        seen.append(statement)
        ask(raw, statement, opened)

    monkeypatch.setattr(undelayed, "ask", note)
    return seen


def insert(engine: Any, count: int = MANY) -> list[Any]:
    rows = [new_task(args=dump_json([*AWKWARD, number])) for number in range(count)]
    with transaction.atomic():
        for row in rows:
            engine.insert([row], notify=False)
    return rows


def test_rows_in_a_transaction_go_without_a_cursor_and_are_what_they_were(engine, asked):
    rows = insert(engine)
    assert len(asked) == MANY
    for number, row in enumerate(rows):
        assert stored(row.id).args == [*AWKWARD, number]


def test_deferred_rows_have_their_time(engine, asked):
    row = new_task(due_in=3600)
    with transaction.atomic():
        engine.insert([row], notify=False)
    assert len(asked) == 1
    (found,) = [stored(row.id)]
    assert (found.run_after, found.due_at) == (row.run_after, row.due_at)


def test_a_row_alone_and_rows_in_bulk_go_by_a_cursor(engine, asked):
    engine.insert([new_task()], notify=False)
    with transaction.atomic():
        engine.insert([new_task(), new_task()], notify=False)
    assert not asked
    assert execute(COUNT) == ((3,),)


def test_whoever_watches_statements_gets_to_see_plain_ones(engine, asked):
    seen = []

    def watch(execute, sql, params, many, context):
        seen.append(sql)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(watch):
        insert(engine, 2)
    with CaptureQueriesContext(connection) as captured:
        insert(engine, 2)
    assert not asked
    assert sum("INSERT" in sql for sql in seen) == 2
    assert sum("INSERT" in query["sql"] for query in captured) == 2


def test_an_error_is_that_of_a_cursor_and_the_transaction_can_go_on_behind_a_savepoint(engine):
    with transaction.atomic():
        (row,) = insert(engine, 1)
        with pytest.raises(IntegrityError), transaction.atomic():
            engine.insert([row], notify=False)
        insert(engine, 1)
    assert execute(COUNT) == ((2,),)


def test_a_transaction_that_is_to_be_rolled_back_takes_no_rows(engine):
    assert_refused_until_rolled_back(engine, insert)


class Interrupted(BaseException):
    """Raised by a signal."""


def test_a_signal_that_raises_while_it_looks_leaves_no_answer_behind(engine, monkeypatch):
    def interrupt(*_: object) -> None:
        raise Interrupted

    with transaction.atomic():
        with monkeypatch.context() as patch:
            patch.setattr(direct.Open, "look", interrupt)
            with pytest.raises(Interrupted):
                engine.insert([new_task()], notify=False)
        assert execute(COUNT) == ((1,),)
    assert execute(COUNT) == ((1,),)


def test_where_it_is_not_known_whether_it_was_sent_the_connection_ends():
    class Raw:
        Error = OperationalError
        calls: list[str] = []

        def send_query(self, statement: bytes) -> None:
            raise Interrupted

        def close(self) -> None:
            self.calls.append("close")

    with pytest.raises(Interrupted):
        undelayed.ask(Raw(), b"INSERT", direct.Open())
    assert Raw.calls == ["close"]


def test_a_statement_that_is_not_sent_for_its_size_leaves_the_transaction_as_it_is(engine):
    """The client's own limit."""
    import MySQLdb

    class Limited:
        Error = MySQLdb.Error

        def send_query(self, statement: bytes) -> None:
            raise MySQLdb.OperationalError(2020, "Got packet bigger than 'max_allowed_packet'")

    with pytest.raises(MySQLdb.OperationalError):
        undelayed.ask(Limited(), b"INSERT", direct.Open())  # which cannot be closed


def test_a_server_that_ends_the_connection_is_an_outage(engine):
    def insert_on() -> None:
        with transaction.atomic():
            insert(engine)
            pid = connection.connection.thread_id()
            elsewhere(lambda: execute(f"KILL {pid}"))
            for _ in range(1000):
                engine.insert([new_task()], notify=False)

    with pytest.raises(OperationalError) as lost:
        insert_on()
    assert engine.unavailable(lost.value)
    engine.close()
    assert execute(COUNT) == ((0,),)
    insert(engine)


def test_threads_insert_side_by_side(engine):
    side_by_side(lambda: insert(engine))
    assert execute(COUNT) == ((4 * 5 * MANY,),)
