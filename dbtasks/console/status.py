"""`status`: nodes, workers, queues and what is wrong, on one screen."""

from __future__ import annotations

import argparse
import datetime
from typing import Any

from ..fields import as_utc
from ..troubles import Situation, Trouble, judge, look
from .output import Output

HELP = "Shows nodes, workers, queues and what is wrong; exit code 1 if something is."
NODE_COLUMNS = ("node", "host", "pid", "kind", "state", "workers", "busy", "seen")
QUEUE_COLUMNS = ("queue", "ready", "waits", "paused")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(options: argparse.Namespace, out: Output) -> int:
    seen = look(options.backend)
    found = judge(seen)
    if out.as_json:
        out.document(document(seen, found))
    else:
        tell(seen, found, out)
    return 1 if found else 0


def tell(seen: Situation, found: list[Trouble], out: Output) -> None:
    if not out.is_terminal:
        tell_pipe(seen, found, out)
        return
    counts = seen.counts
    out.line(
        f"{counts.ready} ready, {counts.running} running, {counts.deferred} deferred, "
        f"{counts.paused} paused"
    )
    for columns, rows in (
        (NODE_COLUMNS, node_rows(seen)),
        (QUEUE_COLUMNS, queue_rows(seen)),
    ):
        if rows:
            out.line()
            out.rows(columns, rows)
    out.line()
    for trouble in found:
        out.line(f"{trouble.severity}: {trouble.what}")
        out.line(f"  {trouble.advice}")
    if not found:
        out.line("All is well.")


def tell_pipe(seen: Situation, found: list[Trouble], out: Output) -> None:
    """A line per fact; the first column says of what."""
    for name in ("ready", "running", "deferred", "paused"):
        out.tabbed("count", name, getattr(seen.counts, name))
    for row in node_rows(seen):
        out.tabbed("node", *row)
    for queue in queue_rows(seen):
        out.tabbed("queue", *queue)
    for trouble in found:
        out.tabbed("trouble", *trouble)


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


def queue_rows(seen: Situation) -> list[tuple[str, int, datetime.timedelta | None, bool]]:
    paused = {pause.name for pause in seen.pauses if pause.kind == "queue"}
    rows: list[tuple[str, int, datetime.timedelta | None, bool]] = [
        (queue.name, queue.ready, seen.now - queue.since, queue.name in paused)
        for queue in seen.queues
    ]
    known = {queue.name for queue in seen.queues}
    return rows + [(name, 0, None, True) for name in sorted(paused - known)]


def document(seen: Situation, found: list[Trouble]) -> dict[str, Any]:
    return {
        "at": seen.now,
        "counts": {
            name: getattr(seen.counts, name) for name in ("ready", "running", "deferred", "paused")
        },
        "nodes": [dict(zip(NODE_COLUMNS, row, strict=True)) for row in node_rows(seen)],
        "queues": [dict(zip(QUEUE_COLUMNS, row, strict=True)) for row in queue_rows(seen)],
        "troubles": [trouble._asdict() for trouble in found],
    }
