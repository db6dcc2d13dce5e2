"""Rescue: from `kill -9` of a busy worker until its task runs again, on another worker."""

import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

from tests.bench.contender import Contender
from tests.bench.figures import Case, Figure
from tests.bench.stage import Stage
from tests.waiting import wait_until

WORKERS = 2


def measure(stage: Stage) -> list[Figure]:
    ours = stage.ours()

    def run() -> dict[str, float]:
        ours.reset()
        with ours.running(WORKERS), tempfile.TemporaryDirectory(prefix="dbtasks-bench-") as folder:
            paths = [Path(folder, str(number)) for number in range(stage.sizes.kills)]
            delays = [kill_one(ours, path) for path in paths]
        return {"ms, median": statistics.median(delays), "ms, most": max(delays)}

    return stage.repeat("rescue", [Case(ours.name, f"{stage.sizes.kills} kills", run)])


def kill_one(contender: Contender, path: Path) -> float:
    """In milliseconds."""
    contender.work("fill", "hold", 1, f'"{path}"')
    wait_until(lambda: len(starts(path)) == 1, 30, "the task to start")
    victim, _ = starts(path)[0]
    killed = time.time()
    os.kill(int(victim), signal.SIGKILL)
    wait_until(lambda: len(starts(path)) == 2, 60, "the task to start again")
    return (starts(path)[1][1] - killed) * 1000


def starts(path: Path) -> list[tuple[float, float]]:
    """The pid and the time of every start of the task so far."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [(float(pid), float(when)) for pid, when in (line.split() for line in lines)]
