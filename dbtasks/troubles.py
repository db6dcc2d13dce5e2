"""What is wrong with the queue right now, in words: for `status`, `doctor` and the dashboard."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from . import statistics
from .engines import Counts
from .engines.base import PauseRow, QueueState
from .fields import as_utc
from .models import Node, Worker
from .runner import database_backend

WAITS_LONG = 300.0  # seconds that the next tasks of a queue may wait
OVERDUE = 60.0  # seconds that a deferred task may wait after its time
CANCEL_OVERDUE = 60.0  # seconds that a running task may go on after it was cancelled
RESTARTS = 3  # of a worker that is starting again
HELD = 60.0  # seconds for which every worker has run one task, while others wait as long
LATELY = datetime.timedelta(minutes=10)
# So many of the tasks that finished lately, and at least so many.
FAILING_SHARE, FAILING_BADLY, FAILING_LEAST = 0.1, 0.5, 5
FAILING = "failing"
LOST = 3  # runs lately that ended with their worker
NAMED = 3  # periodic entries in one sentence


class Trouble(NamedTuple):
    """`code` is for programs, `what` and `advice` for people; `severity` "error" or "warning"."""

    code: str
    severity: str
    what: str
    advice: str


class Situation(NamedTuple):
    """What troubles are judged by; times are aware and in UTC.

    `lately`: the counts since then. `exceptions`: the last one by task path, where it is known.
    `failed_entries`: periodic entries whose last task failed.
    """

    now: datetime.datetime
    nodes: list[Node]
    workers: list[Worker]
    queues: list[QueueState]
    counts: Counts
    pauses: list[PauseRow]
    next_due: datetime.datetime | None
    orphans: int
    oldest_cancel: datetime.datetime | None
    lately: Sequence[statistics.Total] = ()
    exceptions: Mapping[str, str] = {}
    failed_entries: Sequence[str] = ()

    @property
    def living(self) -> list[Node]:
        return [node for node in self.nodes if as_utc(node.expires_at) > self.now]


def look(backend: str = "default") -> Situation:
    """How the queue is now; reads only what is unfinished. Raises DatabaseError."""
    queue = database_backend(backend)
    engine = queue.engine
    nodes = Node.objects.using(queue.parsed.database).filter(backend=backend)
    workers = Worker.objects.using(queue.parsed.database).filter(node__backend=backend)
    now = engine.now()
    return Situation(
        now=now,
        nodes=list(nodes.order_by("name", "id")),
        workers=list(workers.select_related("node").order_by("node__name", "id")),
        queues=engine.queue_states(),
        counts=engine.counts(),
        pauses=engine.pauses(),
        next_due=engine.next_due(),
        orphans=engine.orphans(),
        oldest_cancel=engine.oldest_cancel(),
        lately=statistics.by_path(backend, now - LATELY),
        failed_entries=failed_entries(backend),
    )


def failed_entries(backend: str) -> list[str]:
    """The names of the periodic entries whose last task failed."""
    engine = database_backend(backend).engine
    last = {row.last_task: row.name for row in engine.periodic_entries() if not row.retired}
    statuses = engine.task_statuses(id for id in last if id)
    return sorted(name for id, name in last.items() if id and statuses.get(id) == "FAILED")


def troubles(backend: str = "default") -> list[Trouble]:
    """What is wrong now, the worst first; empty when all is well. Raises DatabaseError."""
    return judge(look(backend))


def judge(seen: Situation) -> list[Trouble]:
    found = [
        *no_node(seen),
        *expired(seen),
        *orphaned(seen),
        *lost(seen),
        *crash_loops(seen),
        *failing(seen),
        *held(seen),
        *waiting(seen),
        *overdue(seen),
        *stubborn(seen),
        *failed_periodic(seen),
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


def lost(seen: Situation) -> list[Trouble]:
    """What ends its workers, where something does."""
    count = sum(total.rescued for total in seen.lately)
    if count < LOST:
        return []
    worst = max(seen.lately, key=lambda total: total.rescued)
    return [
        Trouble(
            "runs-lost",
            "error",
            f"{count:,} runs were lost with their worker or node in the last 10 minutes, "
            f"{most(worst.rescued, count)} {worst.task_path}",
            "the nodes' logs say what ended the workers; until that is mended, keep the task from "
            f"running: manage.py dbtasks pause --task {worst.task_path}",
        )
    ]


def most(part: int, whole: int) -> str:
    return "all of them" if part == whole else "most of them"


def failing(seen: Situation) -> list[Trouble]:
    """Where a notable share of the tasks that finished lately failed."""
    recent = statistics.combined(seen.lately)
    if recent.failed < max(FAILING_LEAST, FAILING_SHARE * recent.finished):
        return []
    worst = max(seen.lately, key=lambda total: total.failed)
    exception = seen.exceptions.get(worst.task_path, "")
    return [
        Trouble(
            FAILING,
            "error" if recent.failed >= FAILING_BADLY * recent.finished else "warning",
            f"{recent.failed:,} of {recent.finished:,} tasks failed in the last 10 minutes, "
            f"{most(worst.failed, recent.failed)} {worst.task_path}"
            + (f" with {exception}" if exception else ""),
            "see why (manage.py dbtasks list --status failed), and retry them when the cause is "
            "mended",
        )
    ]


def held(seen: Situation) -> list[Trouble]:
    """Where every worker that can work has done so for long, and what can be claimed waits."""
    workers = [worker for worker in seen.workers if worker.state != "starting"]
    waiting = [queue for queue in claimable(seen) if wait(seen, queue) > HELD]
    if not workers or not waiting or any((w.task_seconds or 0) < HELD for w in workers):
        return []
    longest = max(workers, key=lambda worker: worker.task_seconds or 0)
    return [
        Trouble(
            "workers-held",
            "warning",
            f"each of the {len(workers)} workers that are up has run one task for longer than "
            f"{told(HELD)}, the longest of them {longest.task_path} for "
            f"{told(longest.task_seconds or 0)}; {sum(queue.ready for queue in waiting):,} ready "
            "tasks wait",
            "cancel what hangs; give long tasks a queue and workers of their own (--queues), and a "
            "timeout",
        )
    ]


def claimable(seen: Situation) -> list[QueueState]:
    """The queues that are not paused."""
    stopped = {pause.name for pause in seen.pauses if pause.kind == "queue"}
    return [queue for queue in seen.queues if queue.name not in stopped]


def wait(seen: Situation, queue: QueueState) -> float:
    return (seen.now - queue.since).total_seconds()


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
    found = []
    for queue in claimable(seen):
        age = wait(seen, queue)
        if age > WAITS_LONG and seen.living:
            found.append(
                Trouble(
                    "queue-waits",
                    "warning",
                    f"queue {queue.name}: {queue.ready:,} tasks are ready, and the next of them "
                    f"have waited for up to {told(age)}",
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


def failed_periodic(seen: Situation) -> list[Trouble]:
    if not seen.failed_entries:
        return []
    named = ", ".join(seen.failed_entries[:NAMED])
    more = len(seen.failed_entries) - NAMED
    return [
        Trouble(
            "periodic-failed",
            "warning",
            f"the last run of a periodic task failed: {named}"
            + (f" and {more} more" if more > 0 else ""),
            "look at its last task; it runs again when it is due, or at once: "
            f"manage.py dbtasks periodic run-now {seen.failed_entries[0]}",
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
            f"resume it when you can: manage.py dbtasks resume --{pause.kind} {pause.name}",
        )
        for pause in seen.pauses
    ]


def told(seconds: float) -> str:
    """Seconds as people say them."""
    for unit, size in (("days", 172_800), ("hours", 7200), ("minutes", 120)):
        if seconds >= size:
            return f"{seconds // (size / 2):.0f} {unit}"
    return f"{seconds:.0f} seconds"
