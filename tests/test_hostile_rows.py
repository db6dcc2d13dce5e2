"""Rows that somebody wrote by hand: a bad one fails itself and no more, on every database.

What a column cannot hold on one database (NUL and broken UTF-8 on PostgreSQL, text in a column of
numbers anywhere but on SQLite) is tried where it can be.
"""

from __future__ import annotations

import datetime
import json
import uuid
from typing import Any, NamedTuple

import pytest
from django.db import connection

from dbtasks.fields import utc_parameter
from dbtasks.ids import uuid7
from dbtasks.models import ScheduledTask
from tests.app import tasks
from tests.node import Node
from tests.test_backend import work_off
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("db")

DEADLINE = 60.0
DEEP = "[" * 100_000
DEEP_OBJECT = '{"a":' * 100_000
NOOP, FAIL, ADD = "tests.app.tasks.noop", "tests.app.tasks.fail", "tests.app.tasks.add"
ENDED = ("SUCCESSFUL", "FAILED")


class SQL(str):
    """An expression instead of a value."""


class Row(NamedTuple):
    """What differs from a sound row, and how it must end: None where either way will do."""

    columns: dict[str, Any]
    status: str | None
    error: str = ""  # the last one's class path ends so


def fails(error: str = "", **columns: Any) -> Row:
    return Row(columns, "FAILED", error)


def succeeds(**columns: Any) -> Row:
    return Row(columns, "SUCCESSFUL")


def ends(**columns: Any) -> Row:
    return Row(columns, None)


NO_TASKS = [
    "",
    ".",
    "..",
    "noop",
    ".noop",
    "tests.app.tasks",
    "tests.app.tasks.",
    "tests.app.tasks.missing",
    ".tests.app.tasks.noop",
    "..tests.app.tasks.noop",
    "tests..app.tasks.noop",
    "tests/app/tasks.noop",
    "../tests.app.tasks.noop",
    "tests.app.tasks.noop ",
    "tests.app.tasks.noop\n",
    "tests.app.tasks:noop",
    "tests.app.tasks.noop.func",
    "tests.app.tasks.noop.call",
    "tests.app.tasks.noop.__class__",
    "tests.app.tasks._count",
    "tests.app.models.Note",
    "tests.app.models.Note.objects",
    "tests.app.broken.task",
    "no.such.module",
    "os.system",
    "os._exit",
    "builtins.eval",
    "builtins.exit",
    "subprocess.Popen",
    "django.core.management.call_command",
    "django.tasks.base.Task",
    "django.tasks.task",
    "this.s",
    "django.__main__.x",
    "pip.__main__.main",
    "__main__.x",
    "__import__('os').system",
    "os.system('true')",
    "dbtasks.runner.Runner",
    "x" * 500,
    "x." * 249 + "x",
    "\u202egnp.sksat",
    "t\u00e9sts.\u0442asks.noop",
    "; DROP TABLE dbtasks_scheduledtask; --",
    "%s%n%(task)s",
    "{0.__class__}",
]
BAD_ARGUMENTS = [
    fails(args="not json"),
    fails(args=""),
    fails(args="null"),
    fails(args="5"),
    fails(args='"text"'),
    fails(args='{"0": 1}'),
    fails(args="[1"),
    fails(args="[1] [2]"),
    fails("RecursionError", args=DEEP),
    fails(args="[" + "9" * 5000 + "]"),
    fails(args='["\\ud800"', kwargs="{}"),
    fails("TypeError", args="[1, 2, 3]"),
    fails(kwargs="not json"),
    fails(kwargs="null"),
    fails(kwargs="[]"),
    fails(kwargs="[[1, 2]]"),
    fails(kwargs="5"),
    fails("RecursionError", kwargs=DEEP_OBJECT),
    fails("TypeError", kwargs='{"no_such_name": 1}'),
    fails("TypeError", kwargs='{"": 1}'),
    fails("TypeError", kwargs='{"self": 1, "__class__": 2}'),
    fails("TypeError", task_path=ADD, args="[1]", kwargs='{"a": 2}'),
    fails("TypeError", task_path="tests.app.tasks.attempt", kwargs='{"context": 1}'),
    fails(task_path="tests.app.tasks.attempt", args="no", kwargs="no"),
    ends(task_path="tests.app.tasks.echo", args="[NaN]"),
    ends(task_path="tests.app.tasks.echo", args="[Infinity]"),
    succeeds(task_path="tests.app.tasks.echo", args='["\\u0000\\ud800"]'),
    succeeds(task_path="tests.app.tasks.echo", args='["' + "x" * 1_000_000 + '"]'),
]
BAD_POLICIES = [
    *("", "null", "[]", "5", '"text"', "not json", "{", DEEP, DEEP_OBJECT),
    *('{"max_attempts": -5}', '{"max_attempts": "many"}', '{"max_attempts": 1e999}'),
    '{"max_attempts": 100000000000000000000}',
    *('{"timeout": "soon"}', '{"timeout": -1}', '{"timeout": NaN}', '{"timeout": 1e308}'),
    *('{"timeout": 1e999}', '{"timeout": {}}', '{"timeout": "99999999999w"}'),
    *('{"backoff": {}}', '{"backoff": [[]]}', '{"backoff": 1e300}', '{"backoff": []}'),
    *('{"retain": 1e300}', '{"retain": -1}', '{"retain": 1e999}', '{"retain_failed": "x"}'),
    *('{"retry_for": 5}', '{"retry_for": [{}]}', '{"retry_for": "os.system"}'),
    *('{"ack": []}', '{"ack": "never"}', '{"max_crashes": -1}', '{"max_crashes": true}'),
    *('{"code": "x"}', '{"code": 1e999}', '{"code": {}}', '{"code": []}', '{"unknown": 1}'),
]
BAD_HISTORIES = ["", "{}", "null", "5", '"text"', "not json", "[1, null, []]", DEEP, "[{}]"]
BAD_NUMBERS = [
    succeeds(priority=32767),
    succeeds(priority=-32767),
    succeeds(attempt=2147483647),
    fails("ValueError", task_path=FAIL, failures=2147483647),
    fails("ValueError", task_path=FAIL, failures=2147483647, policy='{"max_attempts": 10000}'),
    succeeds(crashes=2147483647),
]
BAD_TIMES = [
    succeeds(enqueued_at="0001-01-01 00:00:00"),
    succeeds(enqueued_at="9999-12-31 23:59:59"),
    succeeds(run_after="9999-12-31 23:59:59"),
    succeeds(started_at="9999-12-31 23:59:59"),
    succeeds(task_path="tests.app.tasks.attempt", enqueued_at="9999-12-31 23:59:59"),
    succeeds(due_at="2000-01-01 00:00:00", ready_queue=None),
]
BAD_NAMES = [
    succeeds(queue="", ready_queue="default"),
    succeeds(queue="\u202e\x1b[2J\n'\"%s{}", ready_queue="default"),
    succeeds(periodic="\x1b]0;title\x07\n"),
    succeeds(status="GARBAGE"),
    succeeds(status="SUCCESSFUL", finished_at="2000-01-01 00:00:00"),
]
ONLY_SQLITE = [
    fails(args=SQL("x'ff'")),
    fails(args=SQL("CAST(x'5b22ff225d' AS TEXT)")),
    fails(task_path=SQL("x'ff00'")),
    fails(task_path=SQL("CAST(x'ff' AS TEXT)")),
    fails(policy=SQL("x'ff'"), task_path="no.such.task"),
    ends(policy=SQL("CAST(x'ff' AS TEXT)")),
    ends(errors=SQL("x'ff'")),
    ends(errors=SQL("CAST(x'ff' AS TEXT)"), task_path=FAIL),
    ends(worker_ids=SQL("x'00'")),
    ends(worker_ids=SQL("CAST(x'ff' AS TEXT)")),
    ends(queue=SQL("x'ff'"), ready_queue="default"),
    ends(periodic=SQL("x'ff'")),
    ends(priority="high"),
    ends(priority=10**18),
    ends(priority=-(10**18)),
    ends(priority=SQL("9e999")),
    ends(priority=SQL("-9e999")),
    ends(priority=SQL("x'ff'")),
    ends(attempt="many"),
    ends(attempt=9 * 10**18),
    ends(attempt=1.5),
    ends(failures="many", task_path=FAIL),
    ends(failures=9 * 10**18, task_path=FAIL),
    ends(crashes="many"),
    ends(enqueued_at="yesterday"),
    ends(enqueued_at="2024-99-99 00:00:00"),
    ends(enqueued_at=SQL("x'ff'")),
    ends(enqueued_at=SQL("CAST(x'ff' AS TEXT)")),
    ends(started_at="yesterday", task_path="tests.app.tasks.attempt"),
    ends(run_after=5),
    ends(run_after="tomorrow", task_path=FAIL),
    fails(task_path="x" * 1_000_000),
    fails(id="not-a-uuid"),
    fails(id=""),
    fails(id="x" * 32),
    fails(id="\u0661" * 32),
    fails(id=SQL("x'ff'")),
    fails(id=SQL("5")),
    ends(id=str(uuid.UUID(int=5))),
]
ONLY_POSTGRESQL = [
    succeeds(enqueued_at=SQL("'infinity'")),
    succeeds(enqueued_at=SQL("'-infinity'")),
    succeeds(enqueued_at=SQL("'4713-01-01 00:00:00 BC'")),
    succeeds(run_after=SQL("'infinity'")),
    succeeds(started_at=SQL("'294276-12-31'")),
    fails("ValueError", task_path=FAIL, enqueued_at=SQL("'infinity'")),
    ends(task_path="tests.app.tasks.attempt", enqueued_at=SQL("'infinity'")),
]
# Text that PostgreSQL has no room for.
NULS = [
    fails(task_path="tests.app.tasks.noop\0"),
    fails(args="[1]\0"),
    fails(kwargs="{}\0"),
    succeeds(policy="{}\0"),
    succeeds(errors="[]\0"),
    succeeds(queue="a\0b", ready_queue="default"),
]


def rows_for(database: str) -> list[Row]:
    rows = [fails(task_path=path) for path in NO_TASKS]
    rows += BAD_ARGUMENTS
    rows += [succeeds(policy=policy) for policy in BAD_POLICIES]
    rows += [fails("ValueError", task_path=FAIL, policy=policy) for policy in BAD_POLICIES[:9]]
    for column in ("errors", "worker_ids"):
        rows += [succeeds(**{column: text}) for text in BAD_HISTORIES]
        rows += [fails("ValueError", task_path=FAIL, **{column: text}) for text in BAD_HISTORIES]
    rows += [*BAD_NUMBERS, *BAD_TIMES, *BAD_NAMES]
    rows += NULS if database != "postgresql" else ONLY_POSTGRESQL
    rows += ONLY_SQLITE if database == "sqlite" else []
    return rows


def write(row: Row) -> Any:
    """Inserts it as it is; returns what finds it again."""
    now = utc_parameter(datetime.datetime.now(datetime.UTC), connection.vendor)
    values: dict[str, Any] = {
        "id": ScheduledTask._meta.pk.get_db_prep_value(uuid7(), connection),
        "task_path": NOOP,
        "args": "[]",
        "kwargs": "{}",
        "backend": "default",
        "queue": "default",
        "priority": 0,
        "status": "READY",
        "enqueued_at": now,
        "worker_ids": "[]",
        "errors": "[]",
        "periodic": "",
        "policy": "{}",
        "ready_queue": "default",
        "attempt": 0,
        "failures": 0,
        "crashes": 0,
    } | row.columns
    return insert(ScheduledTask._meta.db_table, values) or values["id"]


def insert(table: str, values: dict[str, Any]) -> Any:
    """A row as it is; returns its rowid on SQLite."""
    marks = [value if isinstance(value, SQL) else "%s" for value in values.values()]
    parameters = [value for value in values.values() if not isinstance(value, SQL)]
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} ({', '.join(values)}) VALUES ({', '.join(marks)})", parameters
        )
        return cursor.lastrowid if connection.vendor == "sqlite" else None


class End(NamedTuple):
    status: str
    error: str
    crashes: Any


def end_of(key: Any) -> End:
    """What became of a row; of text that is none, what can be read."""
    sqlite = connection.vendor == "sqlite"
    name, errors = ("rowid", "CAST(errors AS BLOB)") if sqlite else ("id", "errors")
    query = f"SELECT status, {errors}, crashes FROM dbtasks_scheduledtask WHERE {name} = %s"
    with connection.cursor() as cursor:
        cursor.execute(query, [key])
        status, told, crashes = cursor.fetchone()
    text = told.decode(errors="replace") if isinstance(told, bytes) else told
    try:
        entries = [entry for entry in json.loads(text) if isinstance(entry, dict)]
    except (ValueError, TypeError, RecursionError):
        entries = []
    return End(status, entries[-1].get("exception_class_path", "") if entries else "", crashes)


class Mixture:
    """All the bad rows of a database, with a good one after every third."""

    def __init__(self, database: str) -> None:
        self.bad: list[tuple[Row, Any]] = []
        self.good: list[Any] = []
        for number, row in enumerate(rows_for(database)):
            self.bad.append((row, write(row)))
            if number % 3 == 0:
                self.good.append(tasks.add.enqueue(number, 1))

    def has_ended(self) -> bool:
        return all(end_of(key).status in ENDED for _, key in self.bad) and all(
            self.refreshed(result).is_finished for result in self.good
        )

    def refreshed(self, result: Any) -> Any:
        result.refresh()
        return result

    def check(self) -> None:
        wrong = []
        for row, key in self.bad:
            end = end_of(key)
            if row.status not in (None, end.status) or not end.error.endswith(row.error):
                wrong.append((shown(row), end))
        assert wrong == []
        for number, result in enumerate(self.good):
            self.refreshed(result)
            assert (result.status, result.return_value) == ("SUCCESSFUL", 3 * number + 1)
            assert len(result.worker_ids) == 1
        assert not ScheduledTask.objects.filter(pk__in=[r.id for r in self.good], crashes__gt=0)


def shown(row: Row) -> str:
    return f"{ {name: str(value)[:60] for name, value in row.columns.items()} }"


def test_in_threads_each_fails_itself_and_no_more(database: str) -> None:
    mixture = Mixture(database)
    for _ in range(3):  # some are deferred meanwhile, for the time between two attempts
        work_off()
    mixture.check()


def test_in_processes_each_fails_itself_and_no_more(database: str) -> None:
    mixture = Mixture(database)
    with Node(workers=2) as node:
        wait_until(mixture.has_ended, DEADLINE, "all rows end")
        assert "died" not in node.log()
        assert "cannot be used" not in node.log()
    mixture.check()
