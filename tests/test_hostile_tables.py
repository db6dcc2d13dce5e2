"""Rows written by hand in the other tables: a bad one harms itself, and the rest goes on.

The scheduler enqueues all other entries, counts, and renews its lease; what is asked for on the
command line and by Prometheus is answered, with the good rows in it.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.tasks import task_backends

from dbtasks import Every, Periodic, metrics, periodic, statistics
from dbtasks.fields import utc_parameter
from dbtasks.models import Node as NodeRow
from dbtasks.models import Occurrence, PeriodicTask, Statistic
from dbtasks.tally import COLUMNS
from tests.app import tasks
from tests.node import Node
from tests.test_backend import work_off
from tests.test_hostile_rows import DEEP, DEEP_OBJECT, NOOP, SQL, insert
from tests.test_options import configured
from tests.test_periodic import keeper, review, tick
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("db")
DEADLINE = 60.0
GOOD = "good"
FAR, EARLY = "9999-12-31 23:59:59", "1000-01-02 00:00:00"
FIRST = "0001-01-01 00:00:00"
INFINITE = [SQL("'infinity'"), SQL("'-infinity'"), SQL("'4713-01-01 00:00:00 BC'")]
# What only SQLite stores in a column of times, texts or numbers.
NO_TIMES = ["soon", "1999-99-99 00:00:00", "", 5, SQL("x'ff'")]
NO_TEXTS = [5, 1.5, SQL("x'ff'"), SQL("CAST(x'ff' AS TEXT)"), SQL("9e999")]
GIANTS = [SQL("9e999"), 9 * 10**18]
NO_NUMBERS = [*GIANTS, "many", SQL("x'ff'"), SQL("-9e999"), -9 * 10**18]
Row = dict[str, Any]


def each(column: str, values: list[Any]) -> list[Row]:
    return [{column: value} for value in values]


def times(*columns: str) -> dict[str, list[Row]]:
    """Rows whose times are none, by database."""
    return {
        "postgresql": [row for column in columns for row in each(column, INFINITE)],
        "sqlite": [row for column in columns for row in each(column, NO_TIMES)],
        "mysql": [],
    }


def now(seconds: float = 0.0) -> Any:
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return utc_parameter(moment, connection.vendor)


# Periodic entries

SCHEDULES = [
    *("", "not a schedule", "* * * * * * * *", "99 99 99 99 99", "@never", "0s", "-5m", "1e400s"),
    *("0 0 31 2 *", "* * * * 8-9", "~ ~ ~ ~ ~ ~", "9" * 480 + "w", "\u0661 * * * *", "0.0001s"),
    *("*/0 * * * *", "0 0 30 2 mon#7", "1" * 400 + " * * * *", "H H H H H"),
]
ZONES = ["Nowhere/Never", "../../etc/passwd", "/etc/passwd", "x" * 64, "\u202e", " ", "utc\n"]
ENTRIES = [
    *each("schedule", SCHEDULES),
    *each("timezone", ZONES),
    *each("args", ["", "not json", "null", "5", '"text"', "{}", DEEP, "[NaN]", "[" + "9" * 5000]),
    *each("kwargs", ["", "not json", "5", "[]", '"text"', DEEP_OBJECT, '{"a": 1e999}', "[[1, 2]]"]),
    *each("catch_up", ["", "never", "all", "skip"]),
    *each("overlap", ["", "never", "skip"]),
    *each("catch_up_window", [-1.0, 0.0, 1e300]),
    *each("retain", [-1.0, 1e300]),
    *each("queue", ["", "x" * 128, "\u202e\x1b[2J%s{}"]),
    *each("priority", [32767, -32768]),
    *each("origin", ["settings", "", "nowhere"]),
    *each("task_path", ["", "os.system", "no.such.task", "x" * 500, "%s{}"]),
    *each("fingerprint", ["", "x" * 64]),
    *each("edition", [2147483646, -2147483647]),
    *each("last_task", [uuid.UUID(int=2**128 - 1).hex]),
    *each("since", [FAR, EARLY]),
    *each("last_due", [FAR, EARLY]),
    *each("next_due", [FAR, EARLY, None]),
    *each("deployed_at", [FAR, EARLY]),
    {"next_due": EARLY, "catch_up": "all", "schedule": "* * * * *"},
    {"next_due": EARLY, "catch_up": "skip", "timezone": "Europe/Berlin"},
    {"last_due": FAR, "since": FAR, "overlap": "skip", "last_task": uuid.UUID(int=0).hex},
]
ONLY_THERE = times("since", "last_due", "next_due", "deployed_at")
ONLY_THERE["postgresql"] += [
    *each("retain", [SQL("'NaN'"), SQL("'infinity'")]),
    *each("catch_up_window", [SQL("'NaN'"), SQL("'-infinity'")]),
]
TEXTS = ("schedule", "timezone", "catch_up", "args", "kwargs", "queue", "task_path", "overlap")
ONLY_THERE["sqlite"] += [
    *(row for column in (*TEXTS, "origin", "spec", "last_task") for row in each(column, NO_TEXTS)),
    *each("name", NO_TEXTS[:3]),
    *each("retain", NO_NUMBERS),
    *each("catch_up_window", NO_NUMBERS),
    *each("priority", NO_NUMBERS),
    *each("edition", ["many", SQL("x'ff'"), 1.5]),
    *each("paused", ["perhaps", SQL("x'ff'")]),
]
NULS = [{"schedule": "* * * *\0*"}, {"queue": "a\0b"}, {"args": "[\0]"}, {"timezone": "UTC\0"}]


def write_entries(**common: Any) -> int:
    """How many; `common`: what all of them say that does not say it itself."""
    rows = ENTRIES + ONLY_THERE[connection.vendor]
    rows += [] if connection.vendor == "postgresql" else NULS
    for number, row in enumerate(rows):
        values: Row = {
            "backend": "default",
            "name": f"bad-{number}",
            "task_path": NOOP,
            "spec": "0 0 29 2 *",
            "since": now(-7200),
            "last_due": None,
            "deployed_at": now(-7200),
            "origin": "database",
            "schedule": "0 0 29 2 *",
            "timezone": "UTC",
            "catch_up": "latest",
            "catch_up_window": 86400.0,
            "overlap": "allow",
            "args": "[]",
            "kwargs": "{}",
            "retain": None,
            "queue": None,
            "priority": None,
            "fingerprint": "",
            "paused": False,
            "retired": False,
            "next_due": now(-3600),
            "last_task": None,
            "last_node": "",
            "edition": 0,
        }
        insert(PeriodicTask._meta.db_table, values | common | row)
    return len(rows)


# The other tables


def write_nodes() -> None:
    rows: list[Row] = [
        {"name": "\x1b[2J\n%s{}", "host": "", "kind": "", "state": ""},
        {"backend": "nowhere", "deployment": "x" * 64},
        {"pid": 2147483647, "state": "GARBAGE"},
        {"started_at": FAR, "last_seen": FAR},
        {"started_at": FIRST, "last_seen": FIRST},
        {"expires_at": FIRST},
        {"id": "", "expires_at": FIRST},
        {"id": "\u202e", "expires_at": FIRST},
    ]
    if connection.vendor == "postgresql":
        rows += times("started_at", "last_seen", "expires_at")["postgresql"]
    if connection.vendor == "sqlite":
        rows += [*each("name", NO_TEXTS[:3]), *each("pid", GIANTS)]
    for number, row in enumerate(rows):
        id = f"bad-{number}"
        values: Row = {
            "id": id,
            "name": id,
            "host": "h",
            "pid": 1,
            "kind": "supervisor",
            "backend": "default",
            "state": "running",
            "deployment": "",
            "started_at": now(),
            "last_seen": now(),
            "expires_at": now(3600),
        }
        insert(NodeRow._meta.db_table, values | row)
        if "id" not in row:
            write_workers(id)


def write_workers(node: str) -> None:
    rows: list[Row] = [
        {"task_id": "no id", "task_path": "x" * 500, "state": "GARBAGE", "kind": ""},
        {"task_seconds": -1.0, "cpu_seconds": -1.0, "up_seconds": 1e300},
        {"task_seconds": 1e300, "restarts": 2147483647, "done": 2**62, "failed": 2**62},
        {"memory": 2**62},
        {"last_seen": FAR},
    ]
    if connection.vendor == "postgresql":
        rows += times("last_seen")["postgresql"]
        rows += each("task_seconds", [SQL("'NaN'"), SQL("'infinity'")])
    if connection.vendor == "sqlite":
        columns = ("task_seconds", "memory", "cpu_seconds", "up_seconds", "restarts", "done")
        rows += [row for column in columns for row in each(column, GIANTS)]
    for number, row in enumerate(rows):
        values: Row = {
            "id": f"{node}-{number}",
            "node_id": node,
            "kind": "worker",
            "pid": 1,
            "state": "idle",
            "task_id": "",
            "task_path": "",
            "task_seconds": None,
            "done": 0,
            "failed": 0,
            "restarts": 0,
            "memory": None,
            "cpu_seconds": None,
            "up_seconds": None,
            "last_seen": now(),
        }
        insert("dbtasks_worker", values | row)


def write_statistics() -> None:
    """Among them the total of the task that will be counted, as large as can be."""
    minute = int(datetime.datetime.now(datetime.UTC).timestamp() // 60)
    most = 2**63 - 1
    rows: list[Row] = [
        {"minute": 0, "queue": "default", "task_path": NOOP, **dict.fromkeys(COLUMNS, most)},
        *({"minute": minute + n, **dict.fromkeys(COLUMNS, most)} for n in range(2)),
        *(
            {"minute": minute + n, "task_path": NOOP, **dict.fromkeys(COLUMNS, most)}
            for n in range(2)
        ),
        {"minute": minute, "queue": "", "task_path": "\x1b[2J%s{}", "succeeded": -most},
        {"minute": 2147483647, "succeeded": 1},
        {"minute": 1, "succeeded": 1},
    ]
    if connection.vendor == "sqlite":
        rows += [{"minute": minute + 5 + n, "run_us": v} for n, v in enumerate(NO_NUMBERS)]
        rows += [{"minute": v, "succeeded": 1} for v in (9 * 10**18, 1.5)]
    for row in rows:
        values: Row = {
            "backend": "default",
            "queue": "default",
            "task_path": "x.y",
            **dict.fromkeys(COLUMNS, 0),
        }
        insert(Statistic._meta.db_table, values | row)


def write_pauses() -> None:
    rows: list[Row] = [
        {"id": 2**31 - 1, "kind": "task", "name": "tests.app.tasks.fail"},
        {"id": -(2**31), "kind": "task", "name": "no.such.task"},
        {"kind": "", "name": ""},
        {"kind": "garbage", "name": "\x1b[2J%s{}"},
        {"kind": "queue", "name": "\u202e", "paused_at": FAR, "reason": "x" * 100_000},
    ]
    if connection.vendor == "sqlite":
        rows += [{"id": 2**62, "kind": "task", "name": "x"}, {"id": -(2**63), "name": "y"}]
    rows += [
        row | {"name": f"queue-{number}"}
        for number, row in enumerate(times("paused_at")[connection.vendor])
    ]
    for row in rows:
        values: Row = {
            "backend": "default",
            "kind": "queue",
            "name": "x",
            "paused_at": now(),
            "paused_by": "",
            "reason": "",
        }
        insert("dbtasks_pause", values | row)


def write_occurrences() -> None:
    rows: list[Row] = [
        {"due_at": FAR, "enqueued_at": FIRST},
        {"due_at": FIRST, "enqueued_at": FAR},
        {"name": "", "enqueued_by": "\x1b[2J%s{}", "skipped": "x" * 200},
        {"name": GOOD, "due_at": FAR},
    ]
    rows += times("due_at", "enqueued_at")[connection.vendor]
    for number, row in enumerate(rows):
        values: Row = {
            "backend": "default",
            "name": f"occurrence-{number}",
            "due_at": now(-3600),
            "task_id": uuid.UUID(int=number).hex,
            "enqueued_at": now(-3600),
            "enqueued_by": "",
            "skipped": "",
        }
        insert(Occurrence._meta.db_table, values | row)


def write_all() -> None:
    write_entries()
    write_nodes()
    write_statistics()
    write_pauses()
    write_occurrences()


@pytest.fixture
def good() -> Iterator[None]:
    """An entry of the database that is due every second, beside those of the settings."""
    periodic.schedule(GOOD, NOOP, Every("1s"))
    with configured(periodic={NOOP: Periodic(Every("1s"), name="of the settings")}):
        yield


def runs_of(name: str) -> int:
    with connection.cursor() as cursor:  # no time is read, which may be none
        cursor.execute("SELECT COUNT(*) FROM dbtasks_scheduledtask WHERE periodic = %s", [name])
        return int(cursor.fetchone()[0])


# The scheduler


def test_the_scheduler_goes_on_with_the_other_entries(good: None) -> None:
    assert write_entries()
    scheduler = keeper()
    review(scheduler)

    def all_go_on() -> bool:
        tick(scheduler)
        return runs_of(GOOD) >= 3 and runs_of("of the settings") >= 3

    wait_until(all_go_on, DEADLINE, "three runs of each good entry")


def test_entries_of_the_settings_mend_their_own_rows() -> None:
    count = write_entries(origin="settings")
    names = [f"bad-{number}" for number in range(count)]
    with configured(periodic={NOOP: [Periodic("0 0 1 1 *", name=name) for name in names]}):
        scheduler = keeper()
        review(scheduler)
        tick(scheduler)
        found = {row.name: row for row in task_backends["default"].engine.periodic_entries()}
    wrong = [
        name
        for name in names
        if name in found and (found[name].origin, found[name].schedule) != ("settings", "0 0 1 1 *")
    ]
    assert all(found[name].origin != "settings" for name in wrong), wrong  # made at run time
    assert len(found) >= count


def test_a_node_goes_on_among_bad_rows_of_every_table() -> None:
    write_all()
    options = {"periodic": {NOOP: "1s"}, "heartbeat": 1, "worker_timeout": 5}
    periodic.schedule(GOOD, tasks.add, Every("1s"), args=[1, 2])
    with Node(workers=1, options=options) as node:
        scheduler, worker = node.child("scheduler"), node.child("1")
        wait_until(lambda: runs_of(GOOD) >= 8 and runs_of(NOOP) >= 8, DEADLINE, "it goes on")
        result = tasks.add.enqueue(3, 4)
        wait_until(lambda: refreshed(result).is_finished, DEADLINE)
        assert result.return_value == 7
        assert (node.child("scheduler"), node.child("1")) == (scheduler, worker)
        assert "died" not in node.log()
        assert "degraded" not in node.log()


def refreshed(result: Any) -> Any:
    result.refresh()
    return result


# What people and programs ask


@pytest.mark.parametrize(
    "words",
    [["periodic"], ["status"], ["nodes"], ["list"], ["doctor"], ["status", "--json"]],
    ids=" ".join,
)
def test_the_command_line_shows_the_rest(good: None, words: list[str]) -> None:
    tick(keeper())
    write_all()
    told = printed(*words)
    assert {"periodic": GOOD, "nodes": "bad-3", "status": "bad-3"}.get(words[0], "") in told


def printed(*words: str) -> str:
    out = io.StringIO()
    with contextlib.suppress(SystemExit):  # 1: there is trouble
        call_command("dbtasks", *words, stdout=out, stderr=out)
    return out.getvalue()


def test_the_metrics_show_the_rest(good: None) -> None:
    write_all()
    scheduler = keeper()
    wait_until(lambda: (tick(scheduler), runs_of(GOOD))[1], DEADLINE)
    work_off()
    text = metrics.exposition(["default"])[0].decode()
    assert f'name="{GOOD}"' in text
    assert 'dbtasks_database_up{backend="default"} 1.0' in text
    assert 'node="bad-3"' in text


def test_statistics_show_the_rest() -> None:
    write_statistics()
    insert_good = {"backend": "default", "queue": "q", "task_path": GOOD, "minute": 0}
    insert(Statistic._meta.db_table, dict.fromkeys(COLUMNS, 0) | insert_good | {"succeeded": 5})
    (total,) = (total for total in statistics.totals() if total.task_path == GOOD)
    assert total.succeeded == 5
    assert statistics.minutes()
    assert statistics.by_path()
