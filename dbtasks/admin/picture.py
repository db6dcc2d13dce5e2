"""All that the dashboard shows, in some fifteen statements, none of which counts the history."""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from collections import Counter
from collections.abc import Sequence

from .. import operations, statistics, troubles
from ..backend import DatabaseBackend
from ..engines import Counts
from ..engines.base import PauseRow, QueueState
from ..engines.looks import CAP, Depth, Failure, Load, Look, Looks
from ..fields import as_utc
from ..models import Node, Worker
from . import charts, entries
from .choice import looks
from .lines import short_path

FAILURES_WINDOW = 20_000  # rows of the history that each refresh looks at, without an index
GROUPS_SHOWN = 20
WORKERS_SHOWN = 300


@dataclasses.dataclass(frozen=True)
class QueueLine:
    """A queue that has work or is paused. `waits`: for how many seconds its oldest task does."""

    name: str
    ready: int
    waits: float | None
    pause: operations.Pause | None


@dataclasses.dataclass(frozen=True)
class NodeLine:
    node: Node
    silent: float  # seconds since its lease ended; 0 for a living one
    workers: list[Worker]


@dataclasses.dataclass(frozen=True)
class Group:
    """Failed tasks of one path with one exception, among the newest tasks."""

    task_path: str
    name: str
    exception: str
    count: int
    newest: uuid.UUID


@dataclasses.dataclass(frozen=True)
class Picture:
    """How the queue of one backend is at `now` (the database's clock, UTC)."""

    now: datetime.datetime
    load: Load
    ready: int
    ready_capped: bool
    waits: float | None
    queues: list[QueueLine]
    task_pauses: list[operations.Pause]
    nodes: list[NodeLine]
    more_workers: bool
    entries: list[entries.EntryLine]
    groups: list[Group]
    groups_reach: uuid.UUID | None
    hour: statistics.Counted
    samples: list[charts.Sample]
    troubles: list[troubles.Trouble]


def take(backend: DatabaseBackend) -> Picture:
    """Raises DatabaseError."""
    alias = backend.alias
    view = looks(backend)
    load, depths = view.load(), view.depths()
    pauses = operations.pauses(alias)
    nodes = node_lines(backend, load.now)
    failures, found = Looks(backend.engine, FAILURES_WINDOW).failures(Look())
    minutes = statistics.minutes(alias, load.now - datetime.timedelta(hours=1))
    hour = statistics.combined(minutes)
    stopped = {pause.name for pause in pauses if pause.kind == "queue"}
    waits = [
        (load.now - depth.oldest).total_seconds()
        for depth in depths
        if depth.oldest is not None and depth.queue not in stopped
    ]
    groups = groups_of(failures)
    periodic = entries.entry_lines(alias, load.now)
    seen = situation(backend, load, depths, pauses, nodes)._replace(
        exceptions=newest_exceptions(failures),
        failed_entries=[entry.name for entry in periodic if entry.last_state == "failed"],
    )
    return Picture(
        now=load.now,
        load=load,
        ready=sum(min(depth.ready, CAP) for depth in depths),
        ready_capped=any(depth.ready > CAP for depth in depths),
        waits=max(waits, default=None),
        queues=queue_lines(depths, pauses, load.now),
        task_pauses=[pause for pause in pauses if pause.kind == "task"],
        nodes=nodes,
        more_workers=sum(len(line.workers) for line in nodes) >= WORKERS_SHOWN,
        entries=periodic,
        groups=groups[:GROUPS_SHOWN],
        groups_reach=found.reached,
        hour=hour,
        samples=samples_of(minutes, load.now),
        troubles=troubles.judge(seen),
    )


def queue_lines(
    depths: Sequence[Depth], pauses: Sequence[operations.Pause], now: datetime.datetime
) -> list[QueueLine]:
    """The fullest first; a paused one is there too, although its tasks are put aside."""
    paused = {pause.name: pause for pause in pauses if pause.kind == "queue"}
    lines = [
        QueueLine(
            depth.queue,
            depth.ready,
            None if depth.oldest is None else (now - depth.oldest).total_seconds(),
            paused.pop(depth.queue, None),
        )
        for depth in depths
    ]
    lines += [QueueLine(name, 0, None, pause) for name, pause in paused.items()]
    return sorted(lines, key=lambda line: (-line.ready, line.name))


def node_lines(backend: DatabaseBackend, now: datetime.datetime) -> list[NodeLine]:
    using = backend.parsed.database
    workers: dict[str, list[Worker]] = {}
    found = Worker.objects.using(using).filter(node__backend=backend.alias).order_by("id")
    for worker in found[:WORKERS_SHOWN]:
        workers.setdefault(worker.node_id, []).append(worker)
    nodes = Node.objects.using(using).filter(backend=backend.alias).order_by("name", "id")
    return [
        NodeLine(
            node,
            max(0.0, (now - as_utc(node.expires_at)).total_seconds()),
            workers.get(node.id, []),
        )
        for node in nodes
    ]


def groups_of(failures: Sequence[Failure]) -> list[Group]:
    """The largest first."""
    counts = Counter((failure.task_path, failure.exception) for failure in failures)
    newest: dict[tuple[str, str], uuid.UUID] = {}
    for failure in failures:
        newest.setdefault((failure.task_path, failure.exception), failure.id)
    return [
        Group(path, short_path(path), exception, count, newest[path, exception])
        for (path, exception), count in counts.most_common()
    ]


def samples_of(minutes: Sequence[statistics.Minute], now: datetime.datetime) -> list[charts.Sample]:
    """The last sixty minutes over all queues, this one last."""
    last = int(now.timestamp() // 60)
    by_minute: dict[int, list[statistics.Minute]] = {}
    for minute in minutes:
        by_minute.setdefault(int(minute.at.timestamp() // 60), []).append(minute)
    samples = []
    for number in range(last - charts.MINUTES + 1, last + 1):
        sums = statistics.combined(by_minute.get(number, []))
        samples.append(charts.Sample(sums.succeeded, sums.failed, sums.p(0.5), sums.p(0.95)))
    return samples


def situation(
    backend: DatabaseBackend,
    load: Load,
    depths: Sequence[Depth],
    pauses: Sequence[operations.Pause],
    nodes: Sequence[NodeLine],
) -> troubles.Situation:
    """What `troubles.look` would find, from what is known already."""
    ready = sum(depth.ready for depth in depths)
    return troubles.Situation(
        now=load.now,
        nodes=[line.node for line in nodes],
        workers=[worker for line in nodes for worker in line.workers],
        queues=[
            QueueState(depth.queue, depth.ready, depth.oldest)
            for depth in depths
            if depth.oldest is not None
        ],
        counts=Counts(ready, load.deferred, load.running, load.paused),
        pauses=[
            PauseRow(0, pause.kind, pause.name, pause.paused_at, pause.by, pause.reason)
            for pause in pauses
        ],
        next_due=load.next_due,
        orphans=backend.engine.orphans(),
        oldest_cancel=backend.engine.oldest_cancel(),
        lately=statistics.by_path(backend.alias, load.now - troubles.LATELY),
    )


def newest_exceptions(failures: Sequence[Failure]) -> dict[str, str]:
    """By task path, as people call them; `failures` are newest first."""
    named = [failure for failure in failures[::-1] if failure.exception]
    return {failure.task_path: short_path(failure.exception) for failure in named}
