"""Idle: what workers with nothing to do ask of the database, of the processor and of the memory."""

import contextlib
import functools
import time

import psutil

from tests.bench.contender import Contender
from tests.bench.drain import plural
from tests.bench.figures import Case, Figure
from tests.bench.stage import Stage

# PostgreSQL's backends report what they did when they have been idle for 10 seconds (pgstat.c).
REPORT_SECONDS = 11.0


def measure(stage: Stage) -> list[Figure]:
    most = max(stage.sizes.idle_workers)
    cases = [
        Case(
            contender.name,
            plural(workers),
            functools.partial(once, contender, workers, stage.sizes.idle_seconds),
        )
        for workers in stage.sizes.idle_workers
        for contender in [stage.ours(), *(stage.peers if workers == most else ())]
    ]
    return stage.repeat("idle", cases)


def once(contender: Contender, workers: int, seconds: float) -> dict[str, float]:
    """Over so many seconds, of which PostgreSQL's own delay in counting is no part."""
    contender.reset()
    with contender.running(workers) as processes:
        contender.fill(1)
        contender.wait_drained(processes)
        time.sleep(min(seconds, REPORT_SECONDS))
        family = [member for root in processes for member in [root, *root.children(recursive=True)]]
        before, began, spent = contender.database.questions(), time.monotonic(), cpu(family)
        time.sleep(seconds)
        elapsed = time.monotonic() - began
        found = {"% of a core": (cpu(family) - spent) / elapsed * 100}
        after = contender.database.questions()
        if before and after:
            found[before[0]] = (after[1] - before[1]) * 60 / elapsed
        if (connections := contender.database.connections()) is not None:
            found["connections"] = connections
        found["MiB, PSS"] = memory(family)
        found["processes"] = len(family)
    return found


def cpu(family: list[psutil.Process]) -> float:
    """Seconds of processor time that they have used so far."""
    total = 0.0
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = member.cpu_times()
            total += times.user + times.system
    return total


def memory(family: list[psutil.Process]) -> float:
    """PSS: a page that N processes share counts as one Nth for each of them."""
    total = 0.0
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += member.memory_full_info().pss
    return total / 2**20
