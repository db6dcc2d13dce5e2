"""django-dbtasks as a contender: its public surface only, so that it may change inside."""

import json
from typing import Any

from tests.bench.contender import Contender
from tests.bench.databases import Database

TABLE = "dbtasks_scheduledtask"


def dbtasks(database: Database, name: str = "dbtasks", **options: Any) -> Contender:
    """`options` are the OPTIONS of its task backend."""
    return Contender(
        name=name,
        database=database,
        settings="tests.settings",
        tasks="tests.bench.tasks",
        # By their indexes: a look at the status would read a history of a million rows each time.
        unfinished=(
            f"SELECT 1 FROM {TABLE} WHERE backend = 'default' AND ready_queue IS NOT NULL"
            f" UNION ALL SELECT 1 FROM {TABLE} WHERE claim_node IS NOT NULL LIMIT 1"
        ),
        finished=f"SELECT count(*) FROM {TABLE} WHERE status = 'SUCCESSFUL'",
        span=f"SELECT min(started_at), max(finished_at) FROM {TABLE}",
        clear=[f"{'DELETE FROM' if database.vendor == 'sqlite' else 'TRUNCATE'} {TABLE}"],
        command=supervisor,
        environ={"DBTASKS_TEST_OPTIONS": json.dumps(options)},
    )


def supervisor(python: str, workers: int, *flags: str) -> list[list[str]]:
    return [[python, "-m", "dbtasks_supervisor.cli", "-w", str(workers), "--no-reload", *flags]]
