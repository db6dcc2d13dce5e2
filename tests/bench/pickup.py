"""Pick-up: a task for an idle worker every 50 to 150 ms; from its commit until it starts."""

import functools
import statistics
import tempfile
from pathlib import Path

from tests.bench.contender import Contender
from tests.bench.figures import Case, Figure, percentile
from tests.bench.stage import Stage


def measure(stage: Stage) -> list[Figure]:
    contenders = [stage.ours(), *stage.peers]
    cases = [
        Case(
            contender.name, "1 idle worker", functools.partial(once, contender, stage.sizes.pickups)
        )
        for contender in contenders
    ]
    return stage.repeat("pickup", cases)


def once(contender: Contender, count: int) -> dict[str, float]:
    contender.reset()
    with tempfile.TemporaryDirectory(prefix="dbtasks-bench-") as folder:
        path = Path(folder, "started")
        with contender.running(1) as processes:
            # The first one waits for the worker's start, and is not counted.
            contender.fill(1)
            contender.wait_drained(processes)
            committed = times(contender.work("produce", path, count))
            contender.wait_drained(processes)
        started = times(path.read_text())
    return delays_of(committed, started)


def delays_of(committed: dict[int, float], started: dict[int, float]) -> dict[str, float]:
    delays = [(started[number] - committed[number]) * 1000 for number in committed]
    return {"ms, p50": statistics.median(delays), "ms, p99": percentile(delays, 0.99)}


def times(text: str) -> dict[int, float]:
    """Lines of a number and a time. A task that was run twice counts with its first start."""
    found: dict[int, float] = {}
    for line in text.splitlines():
        number, time = line.split()
        found.setdefault(int(number), float(time))
    return found
