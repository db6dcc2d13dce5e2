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

STEPS = 400_000
TASKS = 60


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
        rate = count / seconds_for(count, workers)
        alone = alone or rate
        print(f"{workers} threads: {rate:6.1f} tasks/s, {rate / alone:.2f} times as many")


def seconds_for(count: int, workers: int) -> float:
    from django.tasks import default_task_backend

    from dbtasks.runner import Runner

    from .tasks import count as task

    default_task_backend.enqueue_all([(task, [STEPS], {}) for _ in range(count)])  # type: ignore[attr-defined]
    runner = Runner(workers=workers, worker_id="bench", init_periodic=False, burst=True)
    started = time.perf_counter()
    runner.run()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else TASKS))
