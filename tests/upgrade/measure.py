"""How long a change of the big table keeps the queue waiting: 5 million rows, under load.

    python -m tests.upgrade.measure --database postgresql --rows 5000000

Two clients enqueue, claim and finish without a pause while the table gets a column that may be
NULL, one with a default, and an index, and loses them again; beside them every migration that is
newer than the first. Of each it prints how long it took and the longest that a client waited.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.bench.rows import AGO, ID
from tests.servers import SERVERS

FIRST = "0001_initial"
CHUNK = 100_000
CLIENTS = 2
WARM_UP = 5.0  # seconds of load before and between the changes
FILL = """
INSERT INTO dbtasks_scheduledtask (id, task_path, args, kwargs, backend, queue, priority, status,
    enqueued_at, started_at, last_attempted_at, finished_at, worker_ids, errors, return_value,
    periodic, policy, attempt, failures, crashes)
SELECT {id}, 'shop.tasks.send_invoice', '[1234]', '{{}}', 'default', 'default', 0, 'SUCCESSFUL',
    {ago}, {ago}, {ago}, {ago}, '["node-1-123456789"]', '[]', 'null', '', '{{}}', 1, 0, 0
FROM {numbers}"""
NUMBERS = {
    "postgresql": "generate_series({first}, {last}) n",
    "mariadb": "(SELECT seq AS n FROM seq_{first}_to_{last}) numbers",
    "sqlite": "(WITH RECURSIVE s (n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM s "
    "WHERE n < {last}) SELECT n FROM s) numbers",
}


class Load:
    """Clients that each enqueue, claim and finish, and note how long each round took."""

    def __init__(self) -> None:
        self.rounds: list[float] = []
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self.work, args=(number,)) for number in range(CLIENTS)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def work(self, number: int) -> None:
        from django.db import OperationalError

        from dbtasks.engines import get_engine
        from tests.engines import EVERYTHING, Claimant, new_task, outcome_of

        engine = get_engine("default", "default")
        who = Claimant(f"node-{number}", f"worker-{number}")
        try:
            while not self._over.is_set():
                began = time.monotonic()
                done = False
                while not done:
                    # SQLite, whose timeout is over: a node would say so and try again, too.
                    with contextlib.suppress(OperationalError):
                        engine.insert([new_task()])
                        for row in engine.claim(who, EVERYTHING):
                            engine.finish([outcome_of(row, who)])
                        done = True
                self.rounds.append(time.monotonic() - began)
        finally:
            engine.close()


def fill(vendor: str, rows: int) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        for first in range(1, rows + 1, CHUNK):
            last = min(first + CHUNK - 1, rows)
            numbers = NUMBERS[vendor].format(first=first, last=last)
            cursor.execute(FILL.format(id=ID[vendor], ago=AGO[vendor], numbers=numbers))


def measured(load: Load, name: str, change: Callable[[], None]) -> None:
    load.rounds.clear()
    time.sleep(WARM_UP)
    before = sorted(load.rounds)
    load.rounds.clear()
    began = time.monotonic()
    change()
    took = time.monotonic() - began
    time.sleep(0.5)  # a round that waited for the change ends after it
    during = sorted(load.rounds)
    longest, longest_before = (f"{1000 * max(each):.0f} ms" for each in (during, before))
    median, median_before = (
        f"{1000 * statistics.median(each):.1f} ms" for each in (during, before)
    )
    print(
        f"| {name} | {took:.2f} s | {longest} | {longest_before} | {median} | {median_before} |",
        flush=True,
    )


def changes() -> list[tuple[str, Callable[[], None]]]:
    from django.db import connection, models
    from django.db.migrations.executor import MigrationExecutor

    from dbtasks import schema
    from dbtasks.fields import ExactCharField, PartialIndex, UTCDateTimeField

    first = MigrationExecutor(connection).loader.project_state(("dbtasks", FIRST))
    operations: list[tuple[str, Any]] = [
        ("a column that may be NULL", ("wanted_at", UTCDateTimeField(null=True))),
        ("a column with a default", ("tag", ExactCharField(max_length=20, db_default=""))),
    ]
    index = PartialIndex(
        fields=["backend", "wanted_at"],
        name="dbtasks_wanted",
        condition=models.Q(wanted_at__isnull=False),
    )
    whole = models.Index(fields=["task_path", "id"], name="dbtasks_by_path")
    steps = [
        (f"add {name}", schema.AddColumn("scheduledtask", *column)) for name, column in operations
    ]
    steps += [
        ("add an index over few rows", schema.AddIndex("scheduledtask", index)),
        ("add an index over all rows", schema.AddIndex("scheduledtask", whole)),
    ]
    states = [first]
    for _, operation in steps:
        states.append(states[-1].clone())
        operation.state_forwards("dbtasks", states[-1])

    def run(operation: Any, before: Any, after: Any, back: bool) -> None:
        with connection.schema_editor(atomic=False) as editor:
            if back:
                operation.database_backwards("dbtasks", editor, after, before)
            else:
                operation.database_forwards("dbtasks", editor, before, after)

    there = [
        (name, lambda o=operation, b=before, a=after: run(o, b, a, False))
        for (name, operation), before, after in zip(steps, states, states[1:], strict=False)
    ]
    back = [
        (f"undo: {name}", lambda o=operation, b=before, a=after: run(o, b, a, True))
        for (name, operation), before, after in zip(steps, states, states[1:], strict=False)
    ]
    return there + back[::-1]


def newer_migrations() -> list[tuple[str, Callable[[], None]]]:
    from django.core.management import call_command
    from django.db.migrations.loader import MigrationLoader

    names = sorted(name for app, name in MigrationLoader(None).disk_migrations if app == "dbtasks")
    return [
        (name, lambda n=name: call_command("migrate", "dbtasks", n, verbosity=0))
        for name in names
        if name != FIRST
    ]


def measure(vendor: str, rows: int) -> None:
    import django

    django.setup()
    from django.core.management import call_command

    call_command("migrate", "dbtasks", FIRST, verbosity=0)
    began = time.monotonic()
    fill(vendor, rows)
    print(f"{rows:,} rows in {time.monotonic() - began:.0f} s", flush=True)
    print("| change | took | longest round | before | median round | before |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    with Load() as load:
        for name, change in changes() + newer_migrations():
            measured(load, name, change)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.upgrade.measure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--database", choices=list(SERVERS), default="postgresql")
    parser.add_argument("--rows", type=int, default=5_000_000)
    options = parser.parse_args(arguments)
    server = SERVERS[options.database]()
    if reason := server.available():
        print(f"{options.database} cannot be used: {reason}", file=sys.stderr)
        return 1
    with server:
        os.environ["DBTASKS_TEST_DATABASE_URL"] = server.url
        os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
        print(f"{options.database} {server.version}", flush=True)
        measure(options.database, options.rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
