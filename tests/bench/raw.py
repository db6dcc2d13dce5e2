"""The raw loops: what this server gives a claim and a finish without any of our code around them.

    python -m tests.bench.raw VENDOR URL BATCH PROCESSES

Processes that claim and finish BATCH rows of our own table at a time, two statements and two
commits each, until SIGTERM. As a contender they are filled, started and timed like all others.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from types import FrameType
from typing import Any

from tests.bench.contender import Contender
from tests.bench.databases import Database
from tests.bench.ours import TABLE, dbtasks

IDLE_SECONDS = 0.002
Claim = Callable[[int], list[Any]]
Finish = Callable[[list[Any]], None]

READY = "backend = 'default' AND ready_queue = 'default' ORDER BY precedence, id LIMIT"
CLAIMED = "status = 'RUNNING', ready_queue = NULL, claim_node = 'raw'"
FINISHED = "status = 'SUCCESSFUL', claim_node = NULL, claimed_by = NULL, return_value = 'null'"


def raw(database: Database, batch: int) -> Contender:
    """The loop on a database with the tables that our migrations make."""

    def processes(python: str, count: int) -> list[list[str]]:
        words = [database.vendor, database.url, str(batch), str(count)]
        return [[python, "-m", "tests.bench.raw", *words]]

    return replace(dbtasks(database), name=f"raw SQL, {batch} at a time", command=processes)


def postgresql(connection: Any, me: str) -> tuple[Claim, Finish]:
    cursor = connection.cursor()
    claim_sql = (
        f"WITH next AS MATERIALIZED (SELECT id FROM {TABLE} WHERE {READY} %s"
        f" FOR UPDATE SKIP LOCKED) UPDATE {TABLE} t SET {CLAIMED}, claimed_by = %s,"
        " started_at = clock_timestamp() FROM next WHERE t.id = next.id"
        " RETURNING t.id, t.task_path, t.args, t.kwargs"
    )
    finish_sql = (
        f"UPDATE {TABLE} SET {FINISHED}, finished_at = clock_timestamp()"
        " WHERE id = ANY(%s) AND claimed_by = %s"
    )

    def claim(batch: int) -> list[Any]:
        cursor.execute(claim_sql, [batch, me], prepare=True)
        return [row[0] for row in cursor.fetchall()]

    def finish(ids: list[Any]) -> None:
        cursor.execute(finish_sql, [ids, me], prepare=True)

    return claim, finish


def mariadb(connection: Any, me: str) -> tuple[Claim, Finish]:
    cursor = connection.cursor()
    cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")

    def claim(batch: int) -> list[Any]:
        cursor.execute("START TRANSACTION")
        cursor.execute(
            f"SELECT id, task_path, args, kwargs FROM {TABLE} WHERE {READY} %s"
            " FOR UPDATE SKIP LOCKED",
            [batch],
        )
        if ids := [row[0] for row in cursor.fetchall()]:
            cursor.execute(
                f"UPDATE {TABLE} SET {CLAIMED}, claimed_by = %s, started_at = UTC_TIMESTAMP(6)"
                " WHERE id IN %s",
                [me, ids],
            )
        cursor.execute("COMMIT")
        return ids

    def finish(ids: list[Any]) -> None:
        cursor.execute(
            f"UPDATE {TABLE} SET {FINISHED}, finished_at = UTC_TIMESTAMP(6)"
            " WHERE id IN %s AND claimed_by = %s",
            [ids, me],
        )

    return claim, finish


def sqlite(connection: Any, me: str) -> tuple[Claim, Finish]:
    connection.execute("PRAGMA synchronous = NORMAL")
    now = "strftime('%Y-%m-%d %H:%M:%f', 'now')"

    def claim(batch: int) -> list[Any]:
        rows = connection.execute(
            f"UPDATE {TABLE} SET {CLAIMED}, claimed_by = ?, started_at = {now}"
            f" WHERE id IN (SELECT id FROM {TABLE} WHERE {READY} ?)"
            " RETURNING id, task_path, args, kwargs",
            [me, batch],
        )
        return [row[0] for row in rows.fetchall()]

    def finish(ids: list[Any]) -> None:
        connection.execute(
            f"UPDATE {TABLE} SET {FINISHED}, finished_at = {now}"
            " WHERE id IN (SELECT value FROM json_each(?)) AND claimed_by = ?",
            [json.dumps(ids), me],
        )

    return claim, finish


LOOPS = {"postgresql": postgresql, "mariadb": mariadb, "sqlite": sqlite}


def main(vendor: str, url: str, batch: str, count: str) -> int:
    """Starts the processes, which begin together, and ends them when it is told to end."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(int(count))
    arguments = (barrier, Database(vendor, url), int(batch))
    loops = [context.Process(target=loop, args=arguments) for _ in range(int(count))]
    for process in loops:
        process.start()
    signal.sigwait({signal.SIGTERM})
    for process in loops:
        process.terminate()
        process.join()
    return max(abs(process.exitcode or 0) for process in loops)


def loop(barrier: Barrier, database: Database, batch: int) -> None:
    leave = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal leave
        leave = True

    signal.signal(signal.SIGTERM, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    claim, finish = LOOPS[database.vendor](database.connect(), f"raw-{os.getpid()}")
    # A batch or two is all it takes: without this the first would be done before the last is up.
    barrier.wait()
    while not leave:
        if ids := claim(batch):
            finish(ids)
        else:
            time.sleep(IDLE_SECONDS)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
