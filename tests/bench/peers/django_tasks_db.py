"""django-tasks-db: one `db_worker` process per worker, quiet and without its delay at the start."""

from tests.bench.contender import Contender
from tests.bench.databases import Database

PACKAGES = ["django-tasks-db", "psycopg[binary]"]
VARIANTS: list[dict[str, int]] = [{}]


def contender(database: Database, python: str) -> Contender:
    table = "django_tasks_database_dbtaskresult"
    return Contender(
        name="django-tasks-db",
        database=database,
        settings="tests.bench.peers.settings",
        tasks="tests.bench.tasks",
        unfinished=f"SELECT 1 FROM {table} WHERE status IN ('READY', 'RUNNING') LIMIT 1",
        finished=f"SELECT count(*) FROM {table} WHERE status = 'SUCCESSFUL'",
        span=f"SELECT min(started_at), max(finished_at) FROM {table}",
        clear=[f"TRUNCATE {table}"],
        command=workers,
        python=python,
        environ={"BENCH_PEER": "django-tasks-db"},
    )


def workers(python: str, count: int) -> list[list[str]]:
    flags = ["--no-startup-delay", "--queue-name", "*", "-v", "0"]
    return [[python, "-m", "django", "db_worker", *flags]] * count
