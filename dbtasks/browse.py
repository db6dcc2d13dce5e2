"""Finding scheduled tasks: by what they are, newest first, page by page without counting."""

from __future__ import annotations

import datetime
import uuid

from django.db.models import BooleanField, Q, QuerySet
from django.db.models.expressions import RawSQL

from .backend import DatabaseBackend
from .engines.looks import IS_FAILED
from .engines.operations import PARKED
from .fields import as_utc
from .models import Node, ScheduledTask

# What a row can be, more finely than its status; the unfinished ones are found by their indexes.
STATES = {
    "ready": Q(ready_queue__gt=""),
    "deferred": Q(due_at__lt=PARKED),
    "paused": Q(due_at__gte=PARKED),
    "running": Q(claim_node__isnull=False),
    "successful": Q(status="SUCCESSFUL"),
    "failed": Q(RawSQL(IS_FAILED, (), BooleanField())),
}


def find(
    backend: DatabaseBackend,
    *,
    state: str | None = None,
    queue: str | None = None,
    task: str | None = None,
    node: str | None = None,
    since: datetime.datetime | None = None,
    before: uuid.UUID | None = None,
) -> QuerySet[ScheduledTask]:
    """Rows of the backend, the newest first; slice it before you read it.

    `task`: a path, or the beginning of one that ends with `*`. `node`: the name of a node that runs
    or ran it. `since`: enqueued from then on. `before`: the last id of the page before.
    Raises ValueError for an unknown state.
    """
    rows = ScheduledTask.objects.using(backend.parsed.database).filter(backend=backend.alias)
    if state is not None:
        if state not in STATES:
            raise ValueError(f"status must be one of {', '.join(STATES)}, not {state!r}")
        rows = rows.filter(STATES[state])
    if queue is not None:
        rows = rows.filter(queue=queue)
    if task is not None:
        begins = task.endswith("*")
        rows = rows.filter(Q(task_path__startswith=task[:-1]) if begins else Q(task_path=task))
    if node is not None:
        ids = Node.objects.using(backend.parsed.database).filter(name=node).values_list("id")
        ran = Q(worker_ids__contains=f'"{node}-') | Q(claimed_by__startswith=f"{node}-")
        rows = rows.filter(ran | Q(claim_node__in=list(ids.values_list("id", flat=True))))
    if since is not None:
        rows = rows.filter(id__gte=first_id(since), enqueued_at__gte=since)
    if before is not None:
        rows = rows.filter(id__lt=before)
    return rows.order_by("-id")


def first_id(moment: datetime.datetime) -> uuid.UUID:
    """An id lower than those of tasks enqueued from `moment` on, but for clocks that differ.

    The ids are UUIDv7: they begin with the time (RFC 9562, section 5.7).
    """
    milliseconds = int(as_utc(moment).timestamp() * 1000) - 60_000
    return uuid.UUID(int=(milliseconds & 0xFFFF_FFFF_FFFF) << 80 | 0x7 << 76 | 0b10 << 62)


def state_of(row: ScheduledTask) -> str:
    """Which of STATES the row is in."""
    if row.status == "READY":
        if row.due_at is None:
            return "ready"
        return "paused" if row.due_at.year >= PARKED.year else "deferred"
    return str(row.status).lower()
