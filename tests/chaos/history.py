"""What happened to each task, put together from the journal, the triggers and the rows."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from . import journal
from .attack import Fault
from .calls import Call

FINISHED = ("SUCCESSFUL", "FAILED")


@dataclass
class Execution:
    """`end` is None for one that was cut off; `raised`: the name of the exception, or ""."""

    nonce: str
    worker: str
    start: float
    end: float | None = None
    raised: str = ""

    @property
    def returned(self) -> bool:
        return self.end is not None and not self.raised


@dataclass(frozen=True)
class Change:
    """One change of the row; `at` is monotonic like everything here."""

    at: float
    old_status: str
    new_status: str
    old_worker: str | None
    new_worker: str | None
    attempt: int
    failures: int
    crashes: int

    def __str__(self) -> str:
        holder = f" by {self.new_worker}" if self.new_worker else ""
        counts = f"attempt {self.attempt}, {self.failures} failures, {self.crashes} crashes"
        return f"{self.old_status} > {self.new_status}{holder} ({counts})"


@dataclass
class Row:
    """A ScheduledTask as it was at the end."""

    id: str
    token: str
    kind: str
    status: str
    errors: list[dict[str, str]]
    return_value: Any
    periodic: str = ""
    claimed_by: str | None = None

    @property
    def nonce(self) -> str:
        """The execution whose result is stored; "" if there is no result."""
        return str(self.return_value).split(" ")[0] if self.return_value is not None else ""


@dataclass(frozen=True)
class Occurred:
    name: str
    due: datetime
    task_id: str


@dataclass
class History:
    """All of it. Tasks are known by their ids of 32 hexadecimal digits."""

    calls: Sequence[Call] = ()
    faults: Sequence[Fault] = ()
    rows: dict[str, Row] = field(default_factory=dict)
    changes: dict[str, list[Change]] = field(default_factory=dict)
    executions: dict[str, list[Execution]] = field(default_factory=dict)
    occurrences: Sequence[Occurred] = ()
    since: dict[str, datetime] = field(default_factory=dict)  # of each periodic entry
    entries: set[str] = field(default_factory=set)  # tokens

    @property
    def reruns(self) -> int:
        return sum(len(executions) - 1 for executions in self.executions.values())


def executions_of(lines: Iterable[journal.Line]) -> dict[str, list[Execution]]:
    """By task, in the order of their starts."""
    found: dict[str, list[Execution]] = defaultdict(list)
    by_nonce: dict[str, Execution] = {}
    for line in lines:
        if line.event == journal.START:
            execution = Execution(line.nonce, line.worker, line.at)
            by_nonce[line.nonce] = execution
            found[line.task_id].append(execution)
        else:
            by_nonce[line.nonce].end = line.at
            by_nonce[line.nonce].raised = line.detail if line.event == journal.RAISED else ""
    return dict(found)


def load(calls: Sequence[Call], faults: Sequence[Fault], lines: Path) -> History:
    """Reads everything from the database and the file of the journal."""
    from dbtasks.models import Occurrence, PeriodicTask, ScheduledTask

    from .models import Change as ChangeRow
    from .models import Entry

    # The database's clock is this machine's; the journal and the faults are on the monotonic one.
    offset = time.time() - time.monotonic()
    changes: dict[str, list[Change]] = defaultdict(list)
    for each in ChangeRow.objects.order_by("id").iterator():
        changes[each.task_id.replace("-", "")].append(
            Change(
                each.at - offset,
                each.old_status,
                each.new_status,
                each.old_worker,
                each.new_worker,
                each.attempt,
                each.failures,
                each.crashes,
            )
        )
    return History(
        calls=calls,
        faults=faults,
        rows={task.id.hex: row_of(task) for task in ScheduledTask.objects.iterator()},
        changes=dict(changes),
        executions=executions_of(journal.read(lines)),
        occurrences=[
            Occurred(each.name, each.due_at, each.task_id.hex)
            for each in Occurrence.objects.order_by("name", "due_at")
        ],
        since=dict(PeriodicTask.objects.values_list("name", "since")),
        entries=set(Entry.objects.values_list("token", flat=True)),
    )


def row_of(task: Any) -> Row:
    return Row(
        id=task.id.hex,
        token=str(task.args[0]),
        kind=task.task_path.rpartition(".")[2],
        status=task.status,
        errors=task.errors,
        return_value=task.return_value,
        periodic=task.periodic,
        claimed_by=task.claimed_by,
    )
