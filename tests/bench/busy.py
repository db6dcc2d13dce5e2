"""A site that has been busy for a week: millions of finished tasks, and some of every other kind.

All of it is made inside the server, by number: task `n` was enqueued at moment `n` of that week.
The worst case for who looks for failures: all of them are old, and the newest millions are none.
"""

from __future__ import annotations

import datetime
import json

from tests.bench import rows
from tests.bench.contender import Contender

WEEK_MS = 7 * 24 * 3600 * 1000
QUEUES = 20
PATHS = 30
NODES = ("web-0", "web-1", "web-2")
WORKERS = 8  # of each node
RARE_TASK, RARE_QUEUE, RARE_NODE = "shop.tasks.rare", "once", "retired-host"
READY_SHARE, DEFERRED_SHARE, PAUSED_SHARE = 50, 500, 5000  # one in so many rows
FAILED_EVERY, FAILED_UNTIL = 20, 0.4  # of the oldest share: 2 % of all
ENTRIES, OCCURRENCES = 50, 1000
ERRORS = json.dumps(
    [{"exception_class_path": "builtins.ValueError", "traceback": "Traceback\n" * 40}]
)
NODE_IDS = [f"{number:032x}" for number in range(1, len(NODES) + 1)]


class Calendar:
    """SQL, in one database's dialect, about the task of number `n` out of `count`."""

    def __init__(self, vendor: str, count: int, now: datetime.datetime) -> None:
        self.vendor = vendor
        step = max(1, WEEK_MS // count)
        start = int(now.timestamp() * 1000) - step * count
        self.milliseconds = f"({start} + n * {step})"

    def id(self) -> str:
        """A UUIDv7 of that moment."""
        ms = self.milliseconds
        hexadecimal = "to_hex" if self.vendor == "postgresql" else "hex"
        digits = (
            f"lpad({hexadecimal}({ms}), 12, '0')",
            "'70008'",
            f"lpad({hexadecimal}(n), 15, '0')",
        )
        return {
            "postgresql": f"({self.joined(*digits)})::uuid",
            "mariadb": f"lower({self.joined(*digits)})",
            "sqlite": f"printf('%012x70008%015x', {ms}, n)",
        }[self.vendor]

    def moment(self) -> str:
        ms = self.milliseconds
        return {
            "postgresql": f"to_timestamp({ms} / 1000.0)",
            "mariadb": f"timestampadd(MICROSECOND, {ms} * 1000, '1970-01-01')",
            "sqlite": f"strftime('%Y-%m-%d %H:%M:%f000', {ms} / 1000.0, 'unixepoch')",
        }[self.vendor]

    def joined(self, *parts: str) -> str:
        if self.vendor == "mariadb":
            return f"concat({', '.join(parts)})"
        return " || ".join(f"({part})" for part in parts)

    def queue(self) -> str:
        return self.joined("'queue'", f"n % {QUEUES}")

    def task(self) -> str:
        return self.joined("'shop.tasks.task'", f"n % {PATHS}")

    def at(self, number: int, rare: str, usual: str) -> str:
        return f"CASE WHEN n = {number} THEN {rare} ELSE {usual} END"


def fill(contender: Contender, count: int, now: datetime.datetime) -> None:
    """`count` tasks in all; the newest are those that wait."""
    calendar = Calendar(contender.database.vendor, count, now)
    waiting = {
        "ready": (count // READY_SHARE, ready(calendar)),
        "deferred": (count // DEFERRED_SHARE, deferred(calendar)),
        "paused": (count // PAUSED_SHARE, paused(calendar)),
        "running": (len(NODES) * WORKERS, running(calendar)),
    }
    over = count - sum(number for number, _ in waiting.values())
    rows.generate(contender, over, finished(calendar, count))
    first = over + 1
    for number, changes in waiting.values():
        rows.generate(contender, number, changes, first)
        first += number


def any_task(calendar: Calendar) -> dict[str, str]:
    return {
        "id": calendar.id(),
        "enqueued_at": calendar.moment(),
        "queue": calendar.queue(),
        "task_path": calendar.task(),
        "ready_queue": "NULL",
    }


def finished(calendar: Calendar, count: int) -> dict[str, str]:
    times = ("started_at", "last_attempted_at", "finished_at")
    fails = f"n % {FAILED_EVERY} = 0 AND n <= {int(count * FAILED_UNTIL)}"
    node = calendar.joined("'[\"web-'", f"n % {len(NODES)}", "'-1.abc\"]'")
    return {
        **any_task(calendar),
        **dict.fromkeys(times, calendar.moment()),
        "attempt": "1",
        "return_value": "'null'",
        "status": f"CASE WHEN {fails} THEN 'FAILED' ELSE 'SUCCESSFUL' END",
        "failures": f"CASE WHEN {fails} THEN 1 ELSE 0 END",
        "errors": f"CASE WHEN {fails} THEN '{ERRORS_SQL[calendar.vendor]}' ELSE '[]' END",
        "queue": calendar.at(101, f"'{RARE_QUEUE}'", calendar.queue()),
        "task_path": calendar.at(103, f"'{RARE_TASK}'", calendar.task()),
        "worker_ids": calendar.at(107, f"'[\"{RARE_NODE}-1.abc\"]'", node),
    }


# A backslash in a text is one in standard SQL, and begins an escape in MariaDB's.
ERRORS_SQL = {
    "postgresql": ERRORS,
    "sqlite": ERRORS,
    "mariadb": ERRORS.replace("\\", "\\\\"),
}


def ready(calendar: Calendar) -> dict[str, str]:
    return {**any_task(calendar), "ready_queue": calendar.queue(), "priority": "n % 3"}


def deferred(calendar: Calendar) -> dict[str, str]:
    due = dict.fromkeys(("due_at", "run_after"), rows.AHEAD[calendar.vendor])
    return {**any_task(calendar), **due}


def paused(calendar: Calendar) -> dict[str, str]:
    return {**any_task(calendar), "due_at": "'9100-01-01 00:00:00'", "queue": "'paused'"}


def running(calendar: Calendar) -> dict[str, str]:
    node = f"n % {len(NODES)}"
    id = f"{node} + 1"
    padded = {
        "postgresql": f"lpad(to_hex({id}), 32, '0')",
        "mariadb": f"lpad(hex({id}), 32, '0')",
        "sqlite": f"printf('%032x', {id})",
    }[calendar.vendor]
    return {
        **any_task(calendar),
        "status": "'RUNNING'",
        "attempt": "1",
        "started_at": calendar.moment(),
        "last_attempted_at": calendar.moment(),
        "claim_node": padded,
        "claimed_by": calendar.joined("'web-'", node, "'-1.abc'"),
    }


# The small tables, through the models.


def surround(now: datetime.datetime) -> None:
    """Nodes with workers, a day of statistics, periodic entries with their history, a pause."""
    from django.db import transaction

    with transaction.atomic():
        run_nodes(now)
        remember(now)


def run_nodes(now: datetime.datetime) -> None:
    from dbtasks import operations
    from dbtasks.models import Node, PeriodicTask, Worker

    hour = datetime.timedelta(hours=1)
    alive = {"started_at": now - hour, "last_seen": now, "expires_at": now + hour}
    for name, id in zip(NODES, NODE_IDS, strict=True):
        node = Node.objects.create(
            id=id, name=name, host=name, pid=7, kind="supervisor", backend="default", **alive
        )
        Worker.objects.bulk_create(
            Worker(
                id=f"{name}-{number}.abc",
                node=node,
                kind="worker",
                pid=100 + number,
                state="busy",
                task_path="shop.tasks.task1",
                task_seconds=2.0,
                memory=80_000_000,
                last_seen=now,
            )
            for number in range(1, WORKERS + 1)
        )
    PeriodicTask.objects.bulk_create(
        PeriodicTask(
            backend="default",
            name=f"entry{number}",
            task_path="shop.tasks.task1",
            spec="* * * * *",
            schedule="* * * * *",
            since=now - 24 * hour,
            deployed_at=now - 24 * hour,
            last_due=now,
            next_due=now + hour,
        )
        for number in range(ENTRIES)
    )
    operations.pause(queue="paused", reason="for the measurement")


def remember(now: datetime.datetime) -> None:
    """What happened in each minute of a day."""
    from dbtasks.ids import uuid7
    from dbtasks.models import Occurrence, Statistic

    last = int(now.timestamp() // 60)
    places = [(f"queue{n % QUEUES}", f"shop.tasks.task{n}") for n in range(PATHS)]
    counts = {"succeeded": 17, "waited": 17, "wait_us": 90_000, "run_us": 700_000, "bucket_04": 17}
    for chosen in [0, *range(last - 24 * 60, last + 1)]:
        Statistic.objects.bulk_create(
            Statistic(backend="default", minute=chosen, queue=queue, task_path=path, **counts)
            for queue, path in places
        )
    minute = datetime.timedelta(minutes=1)
    for number in range(ENTRIES):
        Occurrence.objects.bulk_create(
            Occurrence(
                backend="default",
                name=f"entry{number}",
                due_at=now - ago * minute,
                task_id=uuid7(),
                enqueued_at=now - ago * minute,
                enqueued_by=NODES[0],
            )
            for ago in range(OCCURRENCES)
        )
