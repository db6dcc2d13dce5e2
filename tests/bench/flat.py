"""Flat: the drain rate beside a long history or a large backlog, in per cent of the empty one.

The rows are made once, in a database for each kind, so that the kinds can take turns.
"""

import contextlib
import functools
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tests.bench import rows
from tests.bench.contender import Contender
from tests.bench.figures import Case, Figure
from tests.bench.ours import TABLE
from tests.bench.stage import Stage
from tests.waiting import wait_until

WORKERS = 2
START_SECONDS = 60.0
LOOK_SECONDS = 0.2
EMPTY = "nothing else in the table"
CLAIMED = f"SELECT 1 FROM {TABLE} WHERE claim_node IS NOT NULL LIMIT 1"
# In the order of an index, or the look might read the table from its start and slow all down.
READY_ROW = (
    f"SELECT 1 FROM {TABLE} WHERE backend = 'default' AND ready_queue >= ''"
    " ORDER BY backend, ready_queue, precedence, id LIMIT 1"
)
EXPIRED = f"SELECT count(*) FROM {TABLE} WHERE backend = 'default' AND delete_after IS NOT NULL"
EXPIRED_ROW = EXPIRED.replace("count(*)", "1") + " ORDER BY backend, delete_after LIMIT 1"


def measure(stage: Stage) -> list[Figure]:
    sizes, vendor = stage.sizes, stage.database.vendor
    history = {
        EMPTY: (0, {}),
        f"{sizes.history:,} finished": (sizes.history, rows.finished(vendor)),
        f"{sizes.history:,} deferred, of higher priority": (sizes.history, rows.deferred(vendor)),
        f"{sizes.failed:,} failed": (sizes.failed, rows.failed(vendor)),
    }
    cases = []
    for number, (name, (count, changes)) in enumerate(history.items()):
        contender = own_queue(stage.apart(f"flat_{number}"))
        if count:
            stage.tell(f"flat, {vendor}: making {name}")
            rows.generate(contender, count, changes)
        cases.append(Case("dbtasks", name, functools.partial(once, contender, sizes.flat)))
    backlog = stage.apart("flat_backlog")
    run = functools.partial(backlogged, backlog, sizes.backlog, sizes.flat_seconds)
    cases.append(Case("dbtasks", f"{sizes.backlog:,} ready in {rows.QUEUES} queues", run))
    pruned = replace(own_queue(backlog), clear=backlog.clear)
    run = functools.partial(deleting, pruned, sizes.backlog, sizes.expired, sizes.pruned_seconds)
    cases.append(Case("dbtasks", f"while retention deletes {sizes.expired:,}", run))
    figures = stage.repeat("flat", cases)
    return [*figures, *relative(figures)]


def own_queue(contender: Contender) -> Contender:
    """Sees only the tasks of the drain itself; the generated rows are in other queues."""
    ours = "queue = 'default'"
    return replace(
        contender,
        finished=f"{contender.finished} AND {ours}",
        span=f"{contender.span} WHERE {ours}",
        clear=[f"DELETE FROM {TABLE} WHERE {ours}"],
    )


def once(contender: Contender, count: int) -> dict[str, float]:
    contender.reset()
    contender.fill(count)
    return {"tasks/s": count / contender.drain(WORKERS, count)}


def backlogged(contender: Contender, count: int, seconds: float) -> dict[str, float]:
    """Some seconds of a backlog that is too long to be waited for."""
    contender.reset()
    rows.generate(contender, count, rows.ready(contender.database.vendor))
    with contender.running(WORKERS), contextlib.closing(contender.database.connect()) as connection:
        wait_until(lambda: any_row(connection, CLAIMED), START_SECONDS, "the first claim")
        # No look at the table meanwhile: any would cost it something.
        time.sleep(seconds)
    return {"tasks/s": contender.count_finished() / contender.database.span(contender.span)}


def deleting(contender: Contender, backlog: int, expired: int, seconds: float) -> dict[str, float]:
    """Retention at work beside a backlog, for some seconds or until one of them is used up."""
    database = contender.database
    contender.reset()
    rows.generate(contender, expired, rows.expired(database.vendor))
    rows.generate(contender, backlog, {}, first=expired + 1)
    with contender.running(WORKERS), contextlib.closing(database.connect()) as connection:

        def counts() -> tuple[float, int, int]:
            return (
                time.monotonic(),
                one(connection, contender.finished),
                one(connection, EXPIRED),
            )

        def begun() -> bool:
            left = one(connection, EXPIRED)
            return not left or (left < expired and bool(any_row(connection, CLAIMED)))

        wait_until(begun, START_SECONDS, "the workers and retention to begin")
        before = counts()
        if not any_row(connection, EXPIRED_ROW):
            return {}  # it was over before it could be measured
        deadline = before[0] + seconds
        at_work = functools.partial(any_row, connection)
        while time.monotonic() < deadline and at_work(EXPIRED_ROW) and at_work(READY_ROW):
            time.sleep(LOOK_SECONDS)
        after = counts()
    elapsed, finished, left = (b - a for a, b in zip(before, after, strict=True))
    return {"tasks/s": finished / elapsed, "rows deleted/s": -left / elapsed}


def any_row(connection: Any, sql: str) -> Any:
    cursor = connection.cursor()
    cursor.execute(sql)
    return cursor.fetchone()


def one(connection: Any, sql: str) -> int:
    return int(any_row(connection, sql)[0])


def relative(figures: Sequence[Figure]) -> list[Figure]:
    """The rates in per cent of the median of the empty table's."""
    rates = [figure for figure in figures if figure.unit == "tasks/s"]
    base = next(figure.median for figure in rates if figure.case == EMPTY)
    return [
        replace(figure, unit="% of empty", values=[value / base * 100 for value in figure.values])
        for figure in rates
    ]
