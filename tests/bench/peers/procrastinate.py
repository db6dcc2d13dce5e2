"""procrastinate: one worker process per worker, each with `concurrency` jobs at a time.

Its default of one at a time, or ten, which its documentation offers for throughput. Only
successful jobs that are kept are compared, as with the others (its default, too).
"""

from tests.bench.contender import Contender
from tests.bench.databases import Database

PACKAGES = ["procrastinate[django]", "psycopg[binary,pool]"]
VARIANTS = [{"concurrency": 1}, {"concurrency": 10}]


def contender(database: Database, python: str, concurrency: int = 1) -> Contender:
    jobs, events = "procrastinate_jobs", "procrastinate_events"

    def workers(python: str, count: int) -> list[list[str]]:
        flags = ["--concurrency", str(concurrency)]
        return [[python, "-m", "django", "procrastinate", "worker", *flags]] * count

    return Contender(
        name="procrastinate" if concurrency == 1 else f"procrastinate -c {concurrency}",
        database=database,
        settings="tests.bench.peers.settings",
        tasks="tests.bench.peers.procrastinate_tasks",
        unfinished=f"SELECT 1 FROM {jobs} WHERE status IN ('todo', 'doing') LIMIT 1",
        finished=f"SELECT count(*) FROM {jobs} WHERE status = 'succeeded'",
        span=(
            f"SELECT min(at) FILTER (WHERE type = 'started'),"
            f" max(at) FILTER (WHERE type = 'succeeded') FROM {events}"
        ),
        clear=[f"TRUNCATE {jobs} CASCADE"],
        command=workers,
        python=python,
        environ={"BENCH_PEER": "procrastinate"},
    )
