"""Tasks per second of Runner with 1, 2, … threads, for tasks that only compute.

    python -m tests.free_threaded [TASKS]

Exit code 1 if this Python has a GIL, or if an import of ours or of a dependency brought it back.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

STEPS = 2_000_000
TASKS = 30


def main(count: int) -> int:
    with tempfile.TemporaryDirectory(prefix="dbtasks-free-threaded-") as folder:
        os.environ["DBTASKS_TEST_DATABASE_URL"] = f"sqlite:///{Path(folder, 'database.sqlite3')}"
        os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
        import django

        django.setup()
        from django.core.management import call_command

        import dbtasks_supervisor.cli
        import dbtasks_supervisor.parent  # noqa: F401  all that a node imports

        call_command("migrate", run_syncdb=True, interactive=False, verbosity=0)
        measure(count)
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        print("The GIL is on.", file=sys.stderr)
        return 1
    print("The GIL is off, after all imports.")
    return 0


def measure(count: int) -> None:
    cores = len(os.sched_getaffinity(0))
    print(f"{sys.version.split(' (')[0]}, {cores} cores, {count} tasks of {STEPS} steps")
    alone = 0.0
    for workers in sorted({1, 2, cores}):
        seconds, processor = cost_of(count, workers)
        rate = count / seconds
        alone = alone or rate
        print(
            f"{workers} threads: {rate:5.1f} tasks/s, {rate / alone:.2f} times as many; "
            f"{processor / seconds:.2f} cores busy, {processor / count:.3f} s of one per task"
        )


def cost_of(count: int, workers: int) -> tuple[float, float]:
    """Seconds by the clock and of the processor: the latter tells also where others use it."""
    from django.tasks import default_task_backend

    from dbtasks.runner import Runner

    from .tasks import count as task

    default_task_backend.enqueue_all([(task, [STEPS], {}) for _ in range(count)])  # type: ignore[attr-defined]
    runner = Runner(workers=workers, worker_id="bench", init_periodic=False, burst=True)
    started, used = time.perf_counter(), time.process_time()
    runner.run()
    return time.perf_counter() - started, time.process_time() - used


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else TASKS))
