"""dj-queue: one supervisor that forks N worker processes, each with its default of threads.

Its documentation advises to keep connections (CONN_MAX_AGE); skip-locked claims, NOTIFY and a
prefetch of two per thread are its defaults. It keeps no time of the first claim, so its span
begins with the first finish, in its favour by one batch.
"""

import json

from tests.bench.contender import Contender
from tests.bench.databases import Database

PACKAGES = ["dj-queue[postgres]", "psycopg[binary]"]
VARIANTS: list[dict[str, int]] = [{}]


def contender(database: Database, python: str) -> Contender:
    jobs = "dj_queue_jobs"
    return Contender(
        name="dj-queue",
        database=database,
        settings="tests.bench.peers.settings",
        tasks="tests.bench.tasks",
        unfinished=f"SELECT 1 FROM {jobs} WHERE finished_at IS NULL LIMIT 1",
        finished=f"SELECT count(*) FROM {jobs} WHERE finished_at IS NOT NULL",
        span=f"SELECT min(finished_at), max(finished_at) FROM {jobs}",
        clear=[f"TRUNCATE {jobs} CASCADE"],
        command=workers,
        python=python,
        environ={"BENCH_PEER": "dj-queue"},
    )


def workers(python: str, count: int) -> list[list[str]]:
    options = json.dumps({"workers": [{"processes": count}]})
    return [["env", f"BENCH_PEER_OPTIONS={options}", python, "-m", "django", "dj_queue"]]
