"""Periodic: a thousand entries that are due at once, and what they cost while none is due.

python -m tests.bench.periodic COUNT SCHEDULE        creates entries
"""

import contextlib
import functools
import subprocess
import sys
import time

import django

from tests.bench.contender import ROOT, Contender
from tests.bench.figures import Case, Figure, percentile
from tests.bench.idle import REPORT_SECONDS
from tests.bench.stage import Stage
from tests.waiting import wait_until

EVERY = 4  # seconds
LOOK = 0.002  # seconds
TABLES = ("scheduledtask", "occurrence", "periodictask")


def measure(stage: Stage) -> list[Figure]:
    sizes, ours = stage.sizes, stage.ours()
    name = f"{sizes.periodic:,} entries"
    return stage.repeat(
        "periodic",
        [
            Case(
                ours.name,
                f"{name} at once",
                functools.partial(due, ours, sizes.periodic, sizes.periodic_rounds),
            ),
            Case(
                ours.name,
                f"{name}, none due",
                functools.partial(idle, ours, sizes.periodic, sizes.idle_seconds),
            ),
        ],
    )


def begin(contender: Contender, count: int, schedule: str) -> None:
    clear(contender)
    command = [contender.python, "-m", "tests.bench.periodic", str(count), schedule]
    subprocess.run(command, cwd=ROOT, env=contender.env(), check=True)
    contender.database.settle()


def clear(contender: Contender) -> None:
    for table in TABLES:
        contender.database.ask(f"DELETE FROM dbtasks_{table}")


def due(contender: Contender, count: int, rounds: int) -> dict[str, float]:
    """From the due time until its occurrences are committed, and until the first task starts."""
    begin(contender, count, f"{EVERY}s")
    delays: list[float] = []
    with contender.running(1) as processes:
        wait_until(functools.partial(occurred, contender), 60, "the first due time")
        moments = [time.time() // EVERY * EVERY + (n + 1) * EVERY for n in range(rounds)]
        for moment in moments:
            delays += watched(contender, count, moment)
        contender.wait_drained(processes)  # or the first start of the last due time is missing
    query = (
        "SELECT o.due_at, min(started_at) FROM dbtasks_occurrence o "
        "JOIN dbtasks_scheduledtask t ON t.id = o.task_id "
        "WHERE started_at IS NOT NULL GROUP BY o.due_at ORDER BY o.due_at DESC"
    )
    starts = [seconds_between(*row) for row in contender.database.ask(query)[:rounds]]
    clear(contender)  # else they would be due in the measures that follow
    return {
        "ms to the commit, p50": percentile(delays, 0.5) * 1000,
        "ms to the commit, p99": percentile(delays, 0.99) * 1000,
        "ms to the first start": percentile(starts, 0.5) * 1000,
    }


def occurred(contender: Contender) -> int:
    return int(contender.database.ask("SELECT count(*) FROM dbtasks_occurrence")[0][0])


def watched(contender: Contender, count: int, moment: float) -> list[float]:
    """How long after `moment` each of the occurrences was to be seen."""
    delays: list[float] = []
    time.sleep(max(0.0, moment - 0.05 - time.time()))
    with contextlib.closing(contender.database.connect()) as connection:
        cursor = connection.cursor()
        before, seen = 0, 0
        cursor.execute("SELECT count(*) FROM dbtasks_occurrence")
        before = int(cursor.fetchone()[0])
        while seen < count and time.time() < moment + EVERY / 2:
            cursor.execute("SELECT count(*) FROM dbtasks_occurrence")
            found = int(cursor.fetchone()[0]) - before
            delays += [time.time() - moment] * (found - seen)
            seen = found
            time.sleep(LOOK)
    return delays


def seconds_between(first: object, last: object) -> float:
    from tests.bench.databases import as_time

    return (as_time(last) - as_time(first)).total_seconds()


def idle(contender: Contender, count: int, seconds: float) -> dict[str, float]:
    """What the server counts in a minute while nothing is due."""
    if contender.database.questions() is None:
        return {}
    begin(contender, count, "@yearly")
    with contender.running(1) as processes:
        contender.fill(1)
        contender.wait_drained(processes)
        time.sleep(min(seconds, REPORT_SECONDS))
        before, began = contender.database.questions(), time.monotonic()
        time.sleep(seconds)
        elapsed = time.monotonic() - began
        after = contender.database.questions()
    if not before or not after:
        return {}
    return {before[0]: (after[1] - before[1]) * 60 / elapsed}


if __name__ == "__main__":
    django.setup()
    from dbtasks import periodic

    for number in range(int(sys.argv[1])):
        periodic.schedule(f"entry-{number}", "tests.bench.tasks.noop", sys.argv[2])
