"""What is wrong with the queue right now, in words: for `status`, `doctor` and the dashboard."""

from __future__ import annotations

import datetime
from typing import NamedTuple

from .engines import Counts
from .engines.base import PauseRow, QueueState
from .fields import as_utc
from .models import Node, Worker
from .runner import database_backend

WAITS_LONG = 300.0  # seconds that the next task of a queue may wait
OVERDUE = 60.0  # seconds that a deferred task may wait after its time
CANCEL_OVERDUE = 60.0  # seconds that a running task may go on after it was cancelled
RESTARTS = 3  # of a worker that is starting again


class Trouble(NamedTuple):
    """`code` is for programs, `what` and `advice` for people; `severity` "error" or "warning"."""

    code: str
    severity: str
    what: str
    advice: str


class Situation(NamedTuple):
    """What troubles are judged by; times are aware and in UTC."""

    now: datetime.datetime
    nodes: list[Node]
    workers: list[Worker]
    queues: list[QueueState]
    counts: Counts
    pauses: list[PauseRow]
    next_due: datetime.datetime | None
    orphans: int
    oldest_cancel: datetime.datetime | None

    @property
    def living(self) -> list[Node]:
        return [node for node in self.nodes if as_utc(node.expires_at) > self.now]


def look(backend: str = "default") -> Situation:
    """How the queue is now; reads only what is unfinished. Raises DatabaseError."""
    queue = database_backend(backend)
    engine = queue.engine
    nodes = Node.objects.using(queue.parsed.database).filter(backend=backend)
    workers = Worker.objects.using(queue.parsed.database).filter(node__backend=backend)
    return Situation(
        now=engine.now(),
        nodes=list(nodes.order_by("name", "id")),
        workers=list(workers.select_related("node").order_by("node__name", "id")),
        queues=engine.queue_states(),
        counts=engine.counts(),
        pauses=engine.pauses(),
        next_due=engine.next_due(),
        orphans=engine.orphans(),
        oldest_cancel=engine.oldest_cancel(),
    )


def troubles(backend: str = "default") -> list[Trouble]:
    """What is wrong now, the worst first; empty when all is well. Raises DatabaseError."""
    return judge(look(backend))


def judge(seen: Situation) -> list[Trouble]:
    found = [
        *no_node(seen),
        *expired(seen),
        *orphaned(seen),
        *crash_loops(seen),
        *waiting(seen),
        *overdue(seen),
        *stubborn(seen),
        *paused(seen),
    ]
    return sorted(found, key=lambda trouble: trouble.severity != "error")


def no_node(seen: Situation) -> list[Trouble]:
    if seen.living:
        return []
    waits = seen.counts.ready + seen.counts.deferred + seen.counts.running
    return [
        Trouble(
            "no-node",
            "error" if waits else "warning",
            f"no node is running; {waits} tasks wait",
            "start one: manage.py taskrunner, or dbtasks-supervisor",
        )
    ]


def expired(seen: Situation) -> list[Trouble]:
    return [
        Trouble(
            "node-expired",
            "warning",
            f"node {node.name} on {node.host} (pid {node.pid}) has not renewed its lease for "
            f"{told((seen.now - as_utc(node.last_seen)).total_seconds())}",
            "its host, its network or its supervisor is gone; any other node takes its tasks over "
            "and removes it",
        )
        for node in seen.nodes
        if as_utc(node.expires_at) <= seen.now
    ]


def orphaned(seen: Situation) -> list[Trouble]:
    if not seen.orphans:
        return []
    return [
        Trouble(
            "orphans",
            "warning" if seen.living else "error",
            f"{seen.orphans} tasks are held by a node without a valid lease",
            "a running node gives them back within its heartbeat; start one if none runs",
        )
    ]


def crash_loops(seen: Situation) -> list[Trouble]:
    looping = [
        worker
        for worker in seen.workers
        if worker.restarts >= RESTARTS and worker.state == "starting"
    ]
    return [
        Trouble(
            "crash-loop",
            "error",
            f"worker {worker.id} crashes again and again: {worker.restarts} times so far",
            f"read the log of node {worker.node.name}: it says what ended each of them",
        )
        for worker in looping
    ]


def waiting(seen: Situation) -> list[Trouble]:
    stopped = {pause.name for pause in seen.pauses if pause.kind == "queue"}
    found = []
    for queue in seen.queues:
        age = (seen.now - queue.since).total_seconds()
        if queue.name not in stopped and age > WAITS_LONG and seen.living:
            found.append(
                Trouble(
                    "queue-waits",
                    "warning",
                    f"queue {queue.name}: the next of {queue.ready} ready tasks has waited for "
                    f"{told(age)}",
                    "see that a node serves this queue (--queues), and whether its workers are "
                    "all busy; add workers if they are",
                )
            )
    return found


def overdue(seen: Situation) -> list[Trouble]:
    if seen.next_due is None or not seen.living:
        return []
    late = (seen.now - seen.next_due).total_seconds()
    if late <= OVERDUE:
        return []
    return [
        Trouble(
            "overdue",
            "error",
            f"a deferred task is overdue by {told(late)}",
            "no scheduler makes due tasks ready: see the nodes' logs",
        )
    ]


def stubborn(seen: Situation) -> list[Trouble]:
    if seen.oldest_cancel is None:
        return []
    age = (seen.now - seen.oldest_cancel).total_seconds()
    if age <= CANCEL_OVERDUE:
        return []
    return [
        Trouble(
            "cancel-waits",
            "warning",
            f"a running task was cancelled {told(age)} ago and still runs",
            "a worker thread cannot be killed: the task must return, or its process be ended",
        )
    ]


def paused(seen: Situation) -> list[Trouble]:
    return [
        Trouble(
            f"{pause.kind}-paused",
            "warning",
            f"{pause.kind} {pause.name} is paused since {pause.paused_at:%Y-%m-%d %H:%M} UTC"
            + (f" by {pause.by}" if pause.by else "")
            + (f": {pause.reason}" if pause.reason else ""),
            f"manage.py dbtasks resume --{pause.kind} {pause.name}",
        )
        for pause in seen.pauses
    ]


def told(seconds: float) -> str:
    """Seconds as people say them."""
    for unit, size in (("days", 172_800), ("hours", 7200), ("minutes", 120)):
        if seconds >= size:
            return f"{seconds // (size / 2):.0f} {unit}"
    return f"{seconds:.0f} seconds"
