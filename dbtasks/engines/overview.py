"""What operators look at: queues, due rows, requests. Reads only indexes of unfinished rows."""

from __future__ import annotations

import datetime
from typing import Any

from ..fields import nearest_utc
from .base import QueueState
from .connection import Connected

READY_BY_QUEUE = """
SELECT ready_queue, COUNT(*) FROM dbtasks_scheduledtask
WHERE backend = %s AND ready_queue > '' GROUP BY ready_queue ORDER BY ready_queue"""
# The one that is claimed next. What was tried before waits since then.
READY_SINCE = """
SELECT COALESCE(last_attempted_at, run_after, enqueued_at) FROM dbtasks_scheduledtask
WHERE backend = %s AND ready_queue = %s ORDER BY precedence, id LIMIT 1"""
NEXT_DUE = """
SELECT MIN(due_at) FROM dbtasks_scheduledtask
WHERE backend = %s AND due_at > '1000-01-01' AND due_at < '9000-01-01'"""
# Running under the name of a node that has no valid lease.
ORPHANS = """
SELECT COUNT(*) FROM dbtasks_scheduledtask
WHERE backend = %s AND claim_node IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM dbtasks_node
    WHERE dbtasks_node.id = claim_node AND dbtasks_node.expires_at > {now})"""
OLDEST_CANCEL = "SELECT MIN(requested_at) FROM dbtasks_cancellation WHERE backend = %s"


class Overview(Connected):
    """See base.Engine for what each method promises."""

    def queue_states(self) -> list[QueueState]:
        states = []
        for name, count in self.rows(READY_BY_QUEUE, (self.backend,)):
            since = self.first_moment(READY_SINCE, name)
            if since is not None:  # it may be empty by now
                states.append(QueueState(str(name), int(count), since))
        return states

    def next_due(self) -> datetime.datetime | None:
        return self.first_moment(NEXT_DUE)

    def orphans(self) -> int:
        ((count,),) = self.rows(ORPHANS, (self.backend,))
        return int(count)

    def oldest_cancel(self) -> datetime.datetime | None:
        return self.first_moment(OLDEST_CANCEL)

    def first_moment(self, text: str, *more: Any) -> datetime.datetime | None:
        for (value,) in self.rows(text, (self.backend, *more)):
            return None if value is None else nearest_utc(value, self.connection)
        return None
