"""Drain: no-op tasks that wait when the workers start, from the first claim to the last finish."""

import functools

from tests.bench.contender import Contender
from tests.bench.figures import Case, Figure
from tests.bench.raw import raw
from tests.bench.stage import Stage

UNIT = "tasks/s"


def measure(stage: Stage) -> list[Figure]:
    sizes = stage.sizes
    contenders = [stage.ours()]
    if "1" in sizes.drain_variants:
        contenders.append(stage.ours("dbtasks, prefetch 1", prefetch=1))
    contenders += [raw(stage.shared, batch) for batch in sizes.drain_raw]
    contenders += stage.peers
    cases = [
        Case(
            contender.name,
            plural(workers),
            functools.partial(once, contender, workers, sizes.drain),
        )
        for workers in sizes.drain_workers
        for contender in contenders
    ]
    return stage.repeat("drain", cases)


def once(contender: Contender, workers: int, count: int) -> dict[str, float]:
    contender.reset()
    contender.fill(count)
    return {UNIT: count / contender.drain(workers, count)}


def plural(workers: int) -> str:
    return "1 worker" if workers == 1 else f"{workers} workers"
