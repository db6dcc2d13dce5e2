"""Flat: the drain rate beside a long history or a large backlog, in per cent of the empty one.

The rows are made once, in a database for each kind, so that the kinds can take turns.
"""

import contextlib
import functools
import time
from collections.abc import Sequence
from dataclasses import replace

from tests.bench import rows
from tests.bench.contender import Contender
from tests.bench.figures import Case, Figure
from tests.bench.ours import TABLE
from tests.bench.stage import Stage

WORKERS = 2
BACKLOG_SECONDS = 5.0
EMPTY = "nothing else in the table"
EXPIRED = f"SELECT count(*) FROM {TABLE} WHERE delete_after IS NOT NULL"


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
    run = functools.partial(backlogged, backlog, sizes.backlog, sizes.repetitions == 1)
    cases.append(Case("dbtasks", f"{sizes.backlog:,} ready in {rows.QUEUES} queues", run))
    pruned = own_queue(stage.apart("flat_expired"))
    expired = sizes.history // 4
    run = functools.partial(deleting, pruned, sizes.flat, expired)
    cases.append(Case("dbtasks", f"while {expired:,} expired are deleted", run))
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


def backlogged(contender: Contender, count: int, quick: bool) -> dict[str, float]:
    """Some seconds of a backlog that is too long to be waited for."""
    contender.reset()
    rows.generate(contender, count, rows.ready(contender.database.vendor))
    with contender.running(WORKERS):
        # No look at the table: any would cost it something.
        time.sleep(BACKLOG_SECONDS / 2 if quick else BACKLOG_SECONDS)
    return {"tasks/s": contender.count_finished() / contender.database.span(contender.span)}


def deleting(contender: Contender, count: int, expired: int) -> dict[str, float]:
    """Retention at work beside a drain."""
    database = contender.database
    database.ask(f"DELETE FROM {TABLE}")
    rows.generate(contender, expired, rows.expired(database.vendor))
    contender.fill(count)
    with contextlib.closing(database.connect()) as connection, contender.running(WORKERS) as alive:
        contender.wait_drained(alive)
        cursor = connection.cursor()
        cursor.execute(EXPIRED)
        left = int(cursor.fetchone()[0])
    seconds = database.span(contender.span)
    return {"tasks/s": count / seconds, "rows deleted/s": (expired - left) / seconds}


def relative(figures: Sequence[Figure]) -> list[Figure]:
    """The rates in per cent of the median of the empty table's."""
    rates = [figure for figure in figures if figure.unit == "tasks/s"]
    base = next(figure.median for figure in rates if figure.case == EMPTY)
    return [
        replace(figure, unit="% of empty", values=[value / base * 100 for value in figure.values])
        for figure in rates
    ]
