"""The row of a call inside a transaction, as PostgreSQL gets it without a cursor.

What goes over the wire is told by libpq's own trace: anything that watches statements gets plain
ones to see.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import (
    DataError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.test.utils import CaptureQueriesContext

from dbtasks.engines import direct
from tests.engines import (
    assert_refused_until_rolled_back,
    elsewhere,
    execute,
    fresh_engine,
    new_task,
    put,
    side_by_side,
    statements,
    stored,
)

NOON = datetime.datetime(
    2026, 1, 31, 12, 0, 0, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=2))
)
MANY = direct.CALLS_BEFORE + 5
COUNT = "SELECT count(*) FROM dbtasks_scheduledtask"


@pytest.fixture
def engine(db: None, database: str) -> Any:
    if database != "postgresql":
        pytest.skip("only PostgreSQL's driver can do without a cursor")
    return fresh_engine()


@contextlib.contextmanager
def wire() -> Iterator[Counter[str]]:
    """The messages that this thread's connection sends meanwhile, by their kinds."""
    seen: Counter[str] = Counter()
    with tempfile.TemporaryFile("w+") as trace:
        pgconn = connection.connection.pgconn
        pgconn.trace(trace.fileno())
        try:
            yield seen
        finally:
            pgconn.untrace()
            trace.seek(0)
            fields = [line.split("\t") for line in trace]
            seen.update(field[3] for field in fields if len(field) > 3 and field[1] == "F")


def insert(engine: Any, count: int = MANY) -> Counter[str]:
    """One by one, in a transaction that is open or in one of its own. What that sent."""
    rows = [new_task(args=f'["%s é", {number}]') for number in range(count)]
    with transaction.atomic():
        execute("SELECT 1")  # begins it
        with wire() as sent:
            for row in rows:
                engine.insert([row], notify=False)
    for number, row in enumerate(rows):
        assert stored(row.id).args == ["%s é", number]
    return sent


def test_a_few_rows_are_not_prepared(engine):
    sent = insert(engine, direct.CALLS_BEFORE)
    assert sent["Query"] == 0
    assert sent["Parse"] == sent["Bind"] == direct.CALLS_BEFORE


def test_many_rows_are_prepared(engine):
    sent = insert(engine)
    assert sent["Query"] == 2  # the look, and PREPARE
    assert sent["Parse"] == direct.CALLS_BEFORE
    assert sent["Bind"] == MANY


def test_later_transactions_find_it_prepared(engine):
    insert(engine)
    assert insert(engine)["Query"] == 1


def test_what_is_gone_is_prepared_again(engine):
    insert(engine)
    execute("DEALLOCATE ALL")
    assert insert(engine)["Query"] == 2


def test_what_somebody_else_prepared_is_used(engine):
    execute(engine.insert_ready.prepare)
    sent = insert(engine)
    assert (sent["Query"], sent["Parse"]) == (1, direct.CALLS_BEFORE)


def test_another_connection_has_its_own(engine):
    insert(engine)
    engine.close()
    engine.now()
    assert insert(engine)["Query"] == 2

    def another() -> Counter[str]:
        engine.now()
        return insert(engine)

    assert elsewhere(another)["Query"] == 2


def test_behind_a_pooler_nothing_is_prepared(engine, monkeypatch):
    """It tells its clients a process of its own making, not the one that answers."""
    monkeypatch.setattr(direct, "LOOK", direct.LOOK.replace("backend_pid()", "backend_pid() + 1"))
    sent = insert(engine)
    assert sent["Parse"] == sent["Bind"] == MANY
    assert execute("SELECT name FROM pg_prepared_statements") == []


def test_whoever_watches_or_counts_statements_sees_inserts(engine):
    with transaction.atomic():
        insert(engine)
        with statements() as seen:
            engine.insert([new_task()], notify=False)
        with CaptureQueriesContext(connection) as counted:
            engine.insert([new_task()], notify=False)
    assert [sql.split()[0] for sql, _ in seen] == ["INSERT"]
    assert [each["sql"].split()[0] for each in counted.captured_queries] == ["INSERT"]


def test_the_first_row_of_a_transaction_begins_it(engine):
    row = new_task()
    engine.now()
    with transaction.atomic():
        with wire() as sent:
            engine.insert([row], notify=False)
        transaction.set_rollback(True)
    assert sent["Query"] == 2  # BEGIN, and a plain INSERT
    assert execute(COUNT) == [(0,)]


def test_a_transaction_behind_djangos_back_is_left_to_the_cursor(engine):
    with transaction.atomic():
        insert(engine)
        with connection.connection.pipeline(), wire() as sent:
            engine.insert([new_task()], notify=False)
        connection.connection.info  # noqa: B018
    assert sent["Bind"] <= 1
    assert execute(COUNT) == [(MANY + 1,)]


def test_the_rows_are_those_of_the_plain_statement(engine):
    told = {"queue": "mail", "priority": -7, "args": '["a"]', "policy": '{"retain":60}'}
    row = new_task(**told, enqueued_at=NOON)
    engine.insert([row], notify=False)
    with transaction.atomic():
        execute("SELECT 1")
        for number in range(MANY):
            engine.insert([row._replace(id=f"{number:032x}")], notify=False)
    rows = engine.rows("SELECT to_jsonb(t) - 'id' FROM dbtasks_scheduledtask t")
    assert len(rows) == MANY + 1
    assert all(other == rows[0] for other in rows)
    assert stored(row.id).enqueued_at == NOON


def test_rows_that_wait_for_their_time_are_left_to_the_cursor(engine):
    deferred = new_task(due_in=60)
    with transaction.atomic():
        insert(engine)
        with wire() as sent:
            engine.insert([deferred], notify=False)
    assert sent["Bind"] == 0
    assert stored(deferred.id).due_at == deferred.due_at
    assert stored(deferred.id).ready_queue is None


# Errors


@pytest.mark.parametrize("count", [2, MANY])
@pytest.mark.parametrize("queue", ["nul\0", "half \ud800"])
def test_what_a_text_cannot_hold_is_refused_and_not_cut_short(engine, count, queue):
    with transaction.atomic():
        insert(engine, count)
        with pytest.raises((DataError, UnicodeEncodeError, ValueError)):
            engine.insert([new_task(queue=queue)], notify=False)
        insert(engine, 1)
    assert execute(COUNT) == [(count + 1,)]


@pytest.mark.parametrize("count", [2, MANY])
def test_errors_come_at_the_call(engine, count):
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        insert(engine, count)
        with pytest.raises(DataError, match="too long") as refused:
            engine.insert([new_task(task_path="x" * 999)], notify=False)
        assert refused.value.__cause__.sqlstate == "22001"
        raise ZeroDivisionError
    assert execute(COUNT) == [(0,)]
    insert(engine)


def test_an_error_inside_a_savepoint_undoes_that_and_no_more(engine):
    rows = [new_task() for _ in range(3 * MANY)]
    with transaction.atomic():
        for row in rows[:MANY]:
            engine.insert([row])
        with contextlib.suppress(IntegrityError), transaction.atomic():
            for row in [*rows[MANY : 2 * MANY], rows[0]]:
                engine.insert([row], notify=False)
        for row in rows[2 * MANY :]:
            engine.insert([row])
    ids = {engine.hex(id) for (id,) in execute("SELECT id FROM dbtasks_scheduledtask")}
    assert ids == {row.id for row in rows[:MANY] + rows[2 * MANY :]}


def test_a_transaction_that_is_to_be_rolled_back_takes_no_rows(engine):
    assert_refused_until_rolled_back(engine, insert)


def test_a_statement_timeout_is_an_outage_like_any_other(engine):
    """Somebody holds a lock on the table."""
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        insert(engine)
        execute("SET LOCAL statement_timeout = '50ms'")
        locked, done = threading.Event(), threading.Event()
        holder = threading.Thread(target=hold_unique_id, args=(row := new_task(), locked, done))
        holder.start()
        try:
            assert locked.wait(10)
            with pytest.raises(OperationalError, match="statement timeout"):
                engine.insert([row], notify=False)
        finally:
            done.set()
            holder.join()
        raise ZeroDivisionError
    insert(engine)


def hold_unique_id(row: Any, locked: threading.Event, done: threading.Event) -> None:
    """Inserts a row with the same id, and keeps that open."""
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        put(fresh_engine(), row)
        locked.set()
        done.wait(10)
        raise ZeroDivisionError
    connections.close_all()


class Interrupted(Exception):
    """Raised by a signal."""


def test_a_signal_that_raises_while_it_waits_leaves_no_answer_behind(engine):
    def interrupt(*_: object) -> None:
        raise Interrupted

    locked, done = threading.Event(), threading.Event()
    row = new_task()
    holder = threading.Thread(target=hold_unique_id, args=(row, locked, done))

    def be_interrupted() -> None:
        with transaction.atomic():
            insert(engine)
            holder.start()
            assert locked.wait(10)
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR2)).start()
            engine.insert([row], notify=False)

    before = signal.signal(signal.SIGUSR2, interrupt)
    try:
        with pytest.raises(Interrupted):
            be_interrupted()
    finally:
        done.set()
        holder.join()
        signal.signal(signal.SIGUSR2, before)
    engine.close()  # as after a task that was interrupted
    assert execute(COUNT) == [(0,)]


def test_a_server_that_ends_the_connection_is_an_outage(engine):
    def insert_on() -> None:
        with transaction.atomic():
            insert(engine)
            pid = connection.connection.info.backend_pid
            elsewhere(lambda: execute(f"SELECT pg_terminate_backend({pid})"))
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                engine.insert([new_task()], notify=False)

    with pytest.raises((OperationalError, InterfaceError)) as lost:
        insert_on()
    assert engine.unavailable(lost.value)
    engine.close()
    assert execute(COUNT) == [(0,)]
    insert(engine)


# Looking for an answer


class Server:
    """As far as a look asks: the socket of a connection, and whether all is sent."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.asked = 0

    def fileno(self) -> int:
        self.asked += 1
        return self.ours.fileno()

    @property
    def socket(self) -> Server:
        return self

    def flush(self) -> int:
        return 0


def test_whose_server_is_far_looks_three_times_in_a_transaction():
    server, opened = Server(), direct.Open()
    for _ in range(2):
        opened.begin([])
        for _ in range(20):
            direct.look(server, opened)
    assert server.asked == 2 * 3


def test_whose_server_is_near_may_miss_an_answer_now_and_then():
    server, opened = Server(), direct.Open()
    opened.begin([])
    for _ in range(20):
        direct.look(server, opened)  # in vain
        server.theirs.send(b"answer")
        for _ in range(direct.IN_VAIN):
            direct.look(server, opened)
        server.ours.recv(100)
    assert server.asked == 20 * (1 + direct.IN_VAIN)


def test_what_is_not_sent_yet_is_not_looked_for(monkeypatch):
    server, opened = Server(), direct.Open()
    monkeypatch.setattr(Server, "flush", lambda self: 1)
    opened.begin([])
    direct.look(server, opened)
    assert server.asked == 0


def test_threads_insert_side_by_side(engine):
    side_by_side(lambda: insert(engine))
    assert execute(COUNT) == [(4 * 5 * MANY,)]
