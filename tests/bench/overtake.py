"""Overtaking: how long a task of a high priority waits while all workers have long queues to do."""

import functools
import tempfile
from pathlib import Path

from tests.bench.contender import Contender
from tests.bench.figures import Case, Figure
from tests.bench.pickup import delays_of, times
from tests.bench.stage import Stage
from tests.waiting import wait_until

WORKERS = 2
SECONDS_EACH = 0.2  # a task of high priority comes at least so often
PRODUCER_SECONDS = 4.0  # until the first one comes, on a busy machine
ARRIVAL_SECONDS = 60.0


def measure(stage: Stage) -> list[Figure]:
    ours = stage.ours()
    count = stage.sizes.overtakings
    cases = [
        Case(
            ours.name,
            f"past tasks of {milliseconds} ms, {WORKERS} workers",
            functools.partial(once, ours, milliseconds, count),
        )
        for milliseconds in stage.sizes.overtake_milliseconds
    ]
    return stage.repeat("overtake", cases)


def once(contender: Contender, milliseconds: int, count: int) -> dict[str, float]:
    contender.reset()
    seconds = PRODUCER_SECONDS + count * SECONDS_EACH
    backlog = int(seconds * 1000 / milliseconds) * WORKERS
    contender.fill(backlog, "pause", milliseconds / 1000)
    with tempfile.TemporaryDirectory(prefix="dbtasks-bench-") as folder:
        path = Path(folder, "started")
        with contender.running(WORKERS):
            wait_until(contender.count_finished, ARRIVAL_SECONDS, "the workers to begin")
            committed = times(contender.work("produce", path, count, "urgent"))
            wait_until(
                lambda: len(times(path.read_text())) == count, ARRIVAL_SECONDS, "the last start"
            )
            left = contender.database.ask(contender.unfinished)
        if not left:
            raise RuntimeError("the backlog was too short: nothing was overtaken in the end")
        return delays_of(committed, times(path.read_text()))
