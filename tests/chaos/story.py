"""The timeline of one task: its journal, the changes of its row, the faults near it, the logs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .history import History
from .nodes import Node

NEAR = 3.0  # seconds around a task's life in which faults are shown
MOST = 120  # lines


def timeline(task_id: str, history: History, nodes: Sequence[Node], zero: float) -> str:
    """Times are in seconds since `zero` (monotonic)."""
    row = history.rows.get(task_id)
    events = sorted(of_task(task_id, history))
    if events:
        first, last = events[0][0] - NEAR, events[-1][0] + NEAR
        events += [
            (fault.began, f"  FAULT    {fault}")
            for fault in history.faults
            if first <= fault.began <= last or first <= (fault.ended or fault.began) <= last
        ]
    lines = [f"{at - zero:9.3f} {what}" for at, what in sorted(events)]
    if row is not None:
        lines.append(f"row: {row.kind} {row.status} claimed_by={row.claimed_by} {row.nonce}")
        lines += [f"error: {error['traceback'].strip()[-300:]}" for error in row.errors]
    lines += log_lines(task_id, nodes)
    return "\n".join(["", f"task {task_id}", *lines[:MOST]])


def of_task(task_id: str, history: History) -> Iterator[tuple[float, str]]:
    for change in history.changes.get(task_id, []):
        yield change.at, f"row        {change}"
    for execution in history.executions.get(task_id, []):
        yield execution.start, f"  start    {execution.nonce} on {execution.worker}"
        if execution.end is not None:
            how = f"raises {execution.raised}" if execution.raised else "returns"
            yield execution.end, f"  {how:8} {execution.nonce} on {execution.worker}"


def log_lines(task_id: str, nodes: Sequence[Node]) -> list[str]:
    dashed = "-".join((task_id[:8], task_id[8:12], task_id[12:16], task_id[16:20], task_id[20:]))
    return [
        f"log: {line}"
        for node in nodes
        for line in node.log_text().splitlines()
        if task_id in line or dashed in line
    ]
