"""Time limits of tasks that do not make it easy: queries, C code, loops that swallow everything.

All of them run at the same time on one node, for each hard limit takes over two seconds.
"""

import contextlib
import re
import signal
import time
from typing import Any

from django.db import connection
from django.tasks import TaskResultStatus, task

from dbtasks.exceptions import TaskTimeout
from tests.app import tasks
from tests.node import Node, finished
from tests.waiting import wait_until

FAILED, SUCCESSFUL = TaskResultStatus.FAILED, TaskResultStatus.SUCCESSFUL
WORKER_DIED = "dbtasks.exceptions.WorkerDied"
TASK_TIMEOUT = "dbtasks.exceptions.TaskTimeout"
LIMIT = 0.3  # seconds
HARD_LIMIT = 1.3
MARK = "a query that is too slow"
SLOW_QUERY = {
    "postgresql": f"SELECT pg_sleep(30) /* {MARK} */",
    "mysql": f"SELECT SLEEP(30) /* {MARK} */",
    "sqlite": "WITH RECURSIVE n AS (SELECT 1 UNION ALL SELECT 1 FROM n) SELECT count(*) FROM n",
}


@task
def query() -> None:
    with connection.cursor() as cursor:
        cursor.execute(SLOW_QUERY[connection.vendor])


@task
def match() -> None:
    """A regular expression that goes back for longer than the sun will shine."""
    re.match(r"(a+)+$", "a" * 64 + "b")


@task
def swallow_exceptions() -> None:
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.01)


@task
def swallow_all() -> None:
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(60)


@task
def take_the_alarm() -> None:
    """As a library does that has time limits of its own."""
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.alarm(0)
    time.sleep(60)


@task
def clean_up() -> None:
    """Its clean-up takes a while, and uses the connection."""
    try:
        time.sleep(60)
    except TaskTimeout:
        time.sleep(0.2)
        tasks.note.func("cleaned up")
        raise


SOFT = (match, swallow_exceptions, clean_up)
HARD = (swallow_all, take_the_alarm)


def test_every_task_ends_at_one_of_its_limits(db: None, database: str) -> None:
    # SQLite's and MySQL's drivers go on with a query whatever signal comes.
    soft, hard = (*SOFT, query), HARD
    if database != "postgresql":
        soft, hard = SOFT, (*HARD, query)
    with Node(workers=len(soft) + len(hard)) as node:
        late = {task: task.using(timeout=LIMIT, max_crashes=0).enqueue() for task in soft + hard}
        for task_, result in late.items():
            assert finished(result).status == FAILED, task_.module_path
        for task_ in soft:
            ran = told(late[task_], TASK_TIMEOUT, r"ran for ([\d.]+) s; its time limit is 0.3 s")
            assert LIMIT <= ran < HARD_LIMIT, task_.module_path
        for task_ in hard:
            ran = told(late[task_], WORKER_DIED, r"hard time limit: the task ran for ([\d.]+) s")
            assert HARD_LIMIT <= ran < HARD_LIMIT + 1.5, task_.module_path
            assert node.log().count(f"{task_.module_path} exceeded its hard time limit") == 1
        assert node.log().count("died") == len(hard)
        for follower in [tasks.note.enqueue("after") for _ in range(20)]:
            assert finished(follower).status == SUCCESSFUL
            assert follower.attempts == 1
        if database == "postgresql":
            wait_until(lambda: not is_running(MARK), 2, "the query ends with its task")


def told(result: Any, kind: str, pattern: str) -> float:
    """The seconds that its only error tells."""
    (error,) = result.errors
    assert error.exception_class_path == kind, error.traceback
    found = re.search(pattern, error.traceback)
    assert found, error.traceback
    return float(found[1])


def is_running(query: str) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE state = 'active' AND query LIKE %s AND pid <> pg_backend_pid()",
            [f"%{query}%"],
        )
        return bool(cursor.fetchone()[0])
