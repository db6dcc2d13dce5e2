"""`nodes`: which nodes there are, and what each of their workers does."""

from __future__ import annotations

import argparse
from typing import Any

from ..models import Worker
from ..troubles import look
from .output import Output
from .status import NODE_COLUMNS, node_rows, running_for

HELP = "Shows the nodes and what each of their workers does; exit code 1 if none is running."
WORKER_COLUMNS = ("worker", "pid", "state", "task", "for", "done", "failed", "restarts", "memory")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(options: argparse.Namespace, out: Output) -> int:
    seen = look(options.backend)
    rows = node_rows(seen)
    workers = {
        node.id: [worker_row(worker) for worker in seen.workers if worker.node_id == node.id]
        for node in seen.nodes
    }
    if out.as_json:
        out.document(
            [
                {
                    **dict(zip(NODE_COLUMNS, row, strict=True)),
                    "workers": [
                        dict(zip(WORKER_COLUMNS, worker, strict=True))
                        for worker in workers[node.id]
                    ],
                }
                for node, row in zip(seen.nodes, rows, strict=True)
            ]
        )
    elif out.is_terminal:
        out.rows(NODE_COLUMNS, rows)
        for node in seen.nodes:
            if workers[node.id]:
                out.line()
                out.rows(WORKER_COLUMNS, map(for_people, workers[node.id]))
    else:
        for node, row in zip(seen.nodes, rows, strict=True):
            out.tabbed("node", *row)
            for worker in workers[node.id]:
                out.tabbed("worker", *worker)
    return 0 if seen.living else 1


def worker_row(worker: Worker) -> tuple[Any, ...]:
    """As WORKER_COLUMNS; the memory in bytes."""
    return (
        worker.id,
        worker.pid,
        worker.state,
        worker.task_path or None,
        running_for(worker),
        worker.done,
        worker.failed,
        worker.restarts,
        worker.memory,
    )


def for_people(row: tuple[Any, ...]) -> tuple[Any, ...]:
    *others, memory = row
    return (*others, None if memory is None else f"{memory / (1 << 20):.0f}M")
