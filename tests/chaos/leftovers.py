"""What must be gone when the last node has left: processes, rows about them, locks, sessions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from django.db import connection
from django.tasks import default_task_backend

from dbtasks.engines.mysql import lock_name
from dbtasks.models import Node as NodeRow
from dbtasks.models import ScheduledTask
from dbtasks.models import Worker as WorkerRow
from dbtasks.periodic.planner import PERIODIC_LOCK

from .nodes import Node, title_of
from .promises import Broken

PROMISE = "nothing is left of a node that has ended"
FATAL = " CRIT "  # the level of what ends a process


def processes(nodes: Sequence[Node]) -> list[str]:
    return [
        f"{node.name}: pid {member.pid} ({title_of(member.pid)})"
        for node in nodes
        for member in node.members()
    ]


def rows() -> Iterator[Broken]:
    for task in ScheduledTask.objects.filter(status="RUNNING"):
        yield Broken(PROMISE, f"{task.task_path} is RUNNING", task.id.hex)
    for task in ScheduledTask.objects.exclude(claimed_by=None).exclude(status="RUNNING"):
        yield Broken(PROMISE, f"{task.task_path} is {task.status} and claimed", task.id.hex)
    for node in NodeRow.objects.all():
        yield Broken(PROMISE, f"the row of node {node} ({node.state})")
    for worker in WorkerRow.objects.all():
        yield Broken(PROMISE, f"the row of worker {worker}")


def locks() -> Iterator[Broken]:
    """Advisory locks, and sessions of anybody but us."""
    asked = {
        "postgresql": {
            "advisory lock": "SELECT objid FROM pg_locks WHERE locktype = 'advisory'",
            "session": "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid() AND backend_type = 'client backend'",
        },
        "mysql": {
            "advisory lock": f"SELECT id FROM (SELECT IS_USED_LOCK('{mysql_lock()}') AS id) used "
            "WHERE id IS NOT NULL",
            "session": "SELECT id FROM information_schema.processlist "
            "WHERE db = DATABASE() AND id <> CONNECTION_ID()",
        },
    }
    with connection.cursor() as cursor:
        for what, query in asked.get(connection.vendor, {}).items():
            cursor.execute(query)
            for (found,) in cursor.fetchall():
                yield Broken(PROMISE, f"{what} {found} in the database")


def mysql_lock() -> str:
    name = str(connection.settings_dict["NAME"])
    return lock_name(name, default_task_backend.alias, PERIODIC_LOCK)


def fatal_lines(nodes: Sequence[Node]) -> Iterator[Broken]:
    """What a process of ours did not survive by its own fault."""
    for node in nodes:
        for line in node.log_text().splitlines():
            if FATAL in line:
                yield Broken("no process of ours crashes by itself", f"{node.log.name}: {line}")
