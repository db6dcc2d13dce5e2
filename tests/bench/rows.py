"""Millions of rows of every kind, made inside the server from one row that `enqueue` wrote.

The columns are the ones that the table has: what this does not name is copied from that row.
"""

import contextlib
from collections.abc import Mapping

from tests.bench.contender import Contender
from tests.bench.databases import columns
from tests.bench.ours import TABLE

CHUNK = 50_000
GENERATED = ("precedence",)
QUEUES = 50

ID = {
    "postgresql": "lpad(to_hex(n), 32, '0')::uuid",
    "mariadb": "lpad(hex(n), 32, '0')",
    "sqlite": "printf('%032x', n)",
}
AGO = {
    "postgresql": "now() - interval '1 day'",
    "mariadb": "utc_timestamp(6) - interval 1 day",
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f000', 'now', '-1 day')",
}
AHEAD = {
    "postgresql": "now() + interval '30 days'",
    "mariadb": "utc_timestamp(6) + interval 30 day",
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f000', 'now', '+30 days')",
}


def finished(vendor: str) -> dict[str, str]:
    ago = AGO[vendor]
    times = dict.fromkeys(("enqueued_at", "started_at", "last_attempted_at", "finished_at"), ago)
    rest = {"status": "'SUCCESSFUL'", "queue": "'history'", "ready_queue": "NULL", "attempt": "1"}
    return {**times, **rest, "return_value": "'null'"}


def failed(vendor: str) -> dict[str, str]:
    error = '\'[{"exception_class_path": "builtins.ValueError", "traceback": "..."}]\''
    return {**finished(vendor), "status": "'FAILED'", "errors": error, "failures": "1"}


def expired(vendor: str) -> dict[str, str]:
    return {**finished(vendor), "delete_after": AGO[vendor]}


def deferred(vendor: str) -> dict[str, str]:
    due = dict.fromkeys(("due_at", "run_after"), AHEAD[vendor])
    return {**due, "priority": "100", "queue": "'history'", "ready_queue": "NULL"}


def ready(vendor: str) -> dict[str, str]:
    number = f"n % {QUEUES}"
    queue = f"'queue' || ({number})" if vendor != "mariadb" else f"concat('queue', {number})"
    return {"queue": queue, "ready_queue": queue}


def generate(contender: Contender, count: int, changes: Mapping[str, str], first: int = 1) -> None:
    """`count` rows that differ from a no-op task just enqueued by `changes`, SQL by column.

    Their ids are the numbers from `first` on, so that they are older than all that is enqueued.
    """
    database = contender.database
    contender.work("fill", "noop", 1)
    with contextlib.closing(database.connect()) as connection:
        cursor = connection.cursor()
        cursor.execute(f"SELECT max(CAST(id AS CHAR(36))) FROM {TABLE} WHERE queue = 'default'")
        template = str(cursor.fetchone()[0])
        names = [name for name in columns(connection, TABLE) if name not in GENERATED]
        values = {"id": ID[database.vendor], **changes}
        selected = ", ".join(values.get(name, f"t.{name}") for name in names)
        for start in range(first, first + count, CHUNK):
            end = min(start + CHUNK, first + count) - 1
            if database.vendor == "mariadb":
                cursor.execute(f"SET max_recursive_iterations = {CHUNK}")
            cursor.execute(
                f"INSERT INTO {TABLE} ({', '.join(names)})"
                f" WITH RECURSIVE series(n) AS (SELECT {start} UNION ALL"
                f" SELECT n + 1 FROM series WHERE n < {end})"
                f" SELECT {selected} FROM {TABLE} t, series WHERE t.id = '{template}'"
            )
        cursor.execute(f"DELETE FROM {TABLE} WHERE id = '{template}'")
    database.settle()
