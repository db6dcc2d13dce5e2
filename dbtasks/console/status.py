"""`status`: nodes, workers, queues, rates and what is wrong, on one screen."""

from __future__ import annotations

import argparse
import datetime
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from .. import statistics
from ..fields import as_utc
from ..models import Worker
from ..troubles import Situation, Trouble, judge, look
from .output import Output, aligned, duration

HELP = "Shows nodes, workers, queues, rates and what is wrong; exit code 1 if something is."
NODE_COLUMNS = ("node", "host", "pid", "kind", "state", "workers", "busy", "seen")
WORKER_COLUMNS = ("worker", "state", "task", "for", "done", "failed", "restarts")
QUEUE_COLUMNS = ("queue", "ready", "waits", "paused", "per minute", "failed", "p50", "p95")
# What a narrow terminal does without, the first one first.
NODE_SPARE = ("kind", "host", "pid", "seen")
QUEUE_SPARE = ("p50", "p95", "failed", "per minute")
WORKER_SPARE = ("restarts", "failed", "done")
COUNTS = ("ready", "running", "deferred", "paused")
RATES_OVER = 5  # minutes
LONGEST = 1e9  # seconds, of a number that was written by hand
SHORTEST_INTERVAL = 0.5  # seconds


class Rate(NamedTuple):
    """Of one queue, over the last minutes; the run times in seconds, None without any."""

    per_minute: float
    failed: int
    p50: float | None
    p95: float | None


class Report(NamedTuple):
    """All that is shown. `rates` by queue."""

    seen: Situation
    troubles: list[Trouble]
    rates: dict[str, Rate]


class Section(NamedTuple):
    """A table for people; the columns that a narrow terminal does without, the first one first."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    spare: tuple[str, ...] = ()

    def fitted(self, width: int) -> Section:
        """Without as many of the spare columns as it takes to be so narrow, if it can be."""
        left = list(self.spare)
        section = self
        while left and width_of(section) > width:
            section = section.without(left.pop(0))
        return section

    def without(self, column: str) -> Section:
        at = self.columns.index(column)
        rows = [[*row[:at], *row[at + 1 :]] for row in self.rows]
        return Section((*self.columns[:at], *self.columns[at + 1 :]), rows)


def width_of(section: Section) -> int:
    """In characters, with two spaces between two columns."""
    return max(map(len, aligned(section.columns, section.rows)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", action="store_true", help="show it again and again, until q")
    parser.add_argument(
        "--interval", type=float, default=2.0, metavar="SECONDS", help="of --watch (default: 2)"
    )


def run(options: argparse.Namespace, out: Output) -> int:
    if options.watch:
        return run_watch(options, out)
    found = report(options.backend)
    if out.as_json:
        out.document(document(found))
    elif out.is_terminal:
        for line in lines(found, out.width):
            out.line(line)
    else:
        tell_pipe(found, out)
    return 1 if found.troubles else 0


def run_watch(options: argparse.Namespace, out: Output) -> int:
    from .keys import keys
    from .watch import watch

    if options.interval < SHORTEST_INTERVAL:
        raise ValueError(f"--interval must be at least {SHORTEST_INTERVAL:g} seconds")
    if out.as_json or not out.is_terminal:
        raise ValueError("--watch needs a terminal; without it, status prints once")
    with keys() as wait:
        watch(options.backend, out, lambda: wait(options.interval) in ("q", "Q"))
    return 0


# What is shown


def report(backend: str) -> Report:
    seen = look(backend)
    return Report(seen, judge(seen), rates(backend, seen.now))


def rates(backend: str, now: datetime.datetime) -> dict[str, Rate]:
    """By queue. The minute that runs counts as well, so a busy queue shows at once."""
    since = now - datetime.timedelta(minutes=RATES_OVER)
    by_queue: dict[str, list[statistics.Minute]] = {}
    for minute in statistics.minutes(backend, since):
        by_queue.setdefault(minute.queue, []).append(minute)
    found = {}
    for queue, minutes in by_queue.items():
        total = statistics.combined(minutes)
        per_minute = total.finished / RATES_OVER
        found[queue] = Rate(per_minute, total.failed, total.p(0.5), total.p(0.95))
    return found


def node_rows(seen: Situation) -> list[tuple[Any, ...]]:
    living = {node.id for node in seen.living}
    rows = []
    for node in seen.nodes:
        workers = [worker for worker in seen.workers if worker.node_id == node.id]
        rows.append(
            (
                node.name,
                node.host,
                node.pid,
                node.kind,
                node.state if node.id in living else "expired",
                len(workers),
                sum(worker.state == "busy" for worker in workers),
                seen.now - as_utc(node.last_seen),
            )
        )
    return rows


def worker_rows(seen: Situation) -> list[tuple[Any, ...]]:
    return [
        (
            worker.id,
            worker.state,
            worker.task_path or None,
            running_for(worker),
            worker.done,
            worker.failed,
            worker.restarts,
        )
        for worker in seen.workers
    ]


def running_for(worker: Worker) -> datetime.timedelta | None:
    """How long its current task has run."""
    seconds = worker.task_seconds
    if seconds is None or not math.isfinite(seconds):
        return None
    return datetime.timedelta(seconds=min(seconds, LONGEST))


def queue_rows(found: Report) -> list[tuple[Any, ...]]:
    """Queues that have ready tasks, had some in the last minutes, or are paused."""
    seen = found.seen
    paused = {pause.name for pause in seen.pauses if pause.kind == "queue"}
    states = {queue.name: queue for queue in seen.queues}
    rows = []
    for name in sorted({*states, *paused, *found.rates}):
        state, rate = states.get(name), found.rates.get(name, Rate(0.0, 0, None, None))
        rows.append(
            (
                name,
                state.ready if state else 0,
                seen.now - state.since if state else None,
                name in paused,
                round(rate.per_minute, 1),
                rate.failed,
                *(quantile(value) for value in (rate.p50, rate.p95)),
            )
        )
    return rows


def quantile(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


def counts_line(seen: Situation) -> str:
    return ", ".join(f"{getattr(seen.counts, name)} {name}" for name in COUNTS)


def sections(found: Report) -> list[Section]:
    everything = [
        Section(NODE_COLUMNS, node_rows(found.seen), NODE_SPARE),
        Section(QUEUE_COLUMNS, [for_people(row) for row in queue_rows(found)], QUEUE_SPARE),
    ]
    return [section for section in everything if section.rows]


def for_people(queue: Sequence[Any]) -> list[Any]:
    """A row of `queue_rows`: what is as it should be stays blank, run times have units."""
    shown = dict(zip(QUEUE_COLUMNS, queue, strict=True))
    shown["paused"] = "paused" if shown["paused"] else ""
    for name in ("p50", "p95"):
        shown[name] = None if shown[name] is None else run_time(shown[name])
    return list(shown.values())


def run_time(seconds: float) -> str:
    return f"{seconds * 1000:.0f}ms" if seconds < 1 else duration(seconds)


def lines(found: Report, width: int) -> list[str]:
    """For people, as text in so many columns, if that can be."""
    told = [counts_line(found.seen)]
    for section in sections(found):
        fitted = section.fitted(width)
        told += ["", *aligned(fitted.columns, fitted.rows)]
    told.append("")
    for trouble in found.troubles:
        told += [f"{trouble.severity}: {trouble.what}", f"  {trouble.advice}"]
    return told if found.troubles else [*told, "All is well."]


def tell_pipe(found: Report, out: Output) -> None:
    """A line per fact; the first column says of what."""
    for name in COUNTS:
        out.tabbed("count", name, getattr(found.seen.counts, name))
    for node in node_rows(found.seen):
        out.tabbed("node", *node)
    for queue in queue_rows(found):
        out.tabbed("queue", *queue)
    for trouble in found.troubles:
        out.tabbed("trouble", *trouble)


def document(found: Report) -> dict[str, Any]:
    seen = found.seen
    return {
        "at": seen.now,
        "counts": {name: getattr(seen.counts, name) for name in COUNTS},
        "nodes": [dict(zip(NODE_COLUMNS, row, strict=True)) for row in node_rows(seen)],
        "queues": [
            {key.replace(" ", "_"): value for key, value in zip(QUEUE_COLUMNS, row, strict=True)}
            for row in queue_rows(found)
        ],
        "troubles": [trouble._asdict() for trouble in found.troubles],
    }
