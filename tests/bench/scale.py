"""Scale: workers, nodes, run times, batch sizes; how much of the workers' time is theirs."""

import functools
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any

from tests.bench.contender import Contender
from tests.bench.databases import as_time
from tests.bench.drain import plural
from tests.bench.figures import Case, Figure
from tests.bench.ours import TABLE, supervisor
from tests.bench.stage import Stage

WORKERS_PER_NODE = 2
BATCH_WORKERS = 2
NODE_MILLISECONDS = 10
# Each by one worker; what a task returns is how long it took.
RUNS = f"SELECT worker_ids, started_at, finished_at, return_value FROM {TABLE}"


def measure(stage: Stage) -> list[Figure]:
    sizes = stage.sizes
    ours = stage.ours()
    cases = []
    for milliseconds in sizes.scale_milliseconds:
        for workers in sizes.scale_workers:
            count = how_many(milliseconds, workers, sizes.scale_seconds, sizes.drain)
            run = functools.partial(once, ours, workers, milliseconds, count)
            cases.append(Case(ours.name, f"{milliseconds} ms, {plural(workers)}", run))
    for most in sizes.scale_batches:
        limited = stage.ours(prefetch=most)
        run = functools.partial(once, limited, BATCH_WORKERS, 0, sizes.drain)
        cases.append(
            Case(ours.name, f"0 ms, at most {most} at a time, {BATCH_WORKERS} workers", run)
        )
    several = replace(ours, command=nodes)
    for count_of_nodes in sizes.scale_nodes:
        workers = count_of_nodes * WORKERS_PER_NODE
        count = how_many(NODE_MILLISECONDS, workers, sizes.scale_seconds, sizes.drain)
        run = functools.partial(once, several, count_of_nodes, NODE_MILLISECONDS, count)
        name = f"{NODE_MILLISECONDS} ms, {count_of_nodes} nodes of {WORKERS_PER_NODE} workers"
        cases.append(Case(ours.name, name, run))
    return stage.repeat("scale", cases)


def how_many(milliseconds: int, workers: int, seconds: float, no_ops: int) -> int:
    """So many tasks that ideal workers are busy for `seconds`; no-ops: always the same number."""
    return max(workers, int(seconds * 1000 / milliseconds) * workers) if milliseconds else no_ops


def once(contender: Contender, started: int, milliseconds: int, count: int) -> dict[str, float]:
    """`started` is what the contender's command is given: workers, or nodes."""
    contender.reset()
    if milliseconds:
        contender.fill(count, "pause", milliseconds / 1000)
    else:
        contender.fill(count)
    found = {"tasks/s": count / contender.drain(started, count)}
    if milliseconds:
        found["% of the workers' time"] = busy(contender.database.ask(RUNS)) * 100
    return found


def busy(runs: Iterable[tuple[str, Any, Any, str]]) -> float:
    """The share that tasks have of their workers' time, from a worker's first claim to its last
    finish: that the workers do not all start and end at the same moment is not their work.
    """
    spans: dict[str, tuple[datetime, datetime]] = {}
    in_tasks = 0.0
    for worker, claimed, finished, seconds in runs:
        in_tasks += float(seconds)
        first, last = spans.get(worker, (as_time(claimed), as_time(finished)))
        spans[worker] = min(first, as_time(claimed)), max(last, as_time(finished))
    return in_tasks / sum((last - first).total_seconds() for first, last in spans.values())


def nodes(python: str, count: int) -> list[list[str]]:
    return [
        command
        for number in range(count)
        for command in supervisor(python, WORKERS_PER_NODE, "-i", f"node-{number}")
    ]
