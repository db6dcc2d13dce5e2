"""What operators look at: queues, due rows, requests. Reads only indexes of unfinished rows."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Sequence
from typing import Any

from ..fields import in_range, nearest_utc
from .base import QueueState
from .connection import Connected

READY_BY_QUEUE = """
SELECT ready_queue, COUNT(*) FROM dbtasks_scheduledtask
WHERE backend = %s AND ready_queue >= '' GROUP BY ready_queue ORDER BY ready_queue"""
# The longest wait of the next few: the very next may have been given back a moment ago. What was
# tried before waits since then.
READY_SINCE = """
SELECT ready_queue, {since} FROM (
    SELECT ready_queue, COALESCE(last_attempted_at, run_after, enqueued_at) AS since
    FROM dbtasks_scheduledtask{index} WHERE backend = %s AND ready_queue = %s
    ORDER BY precedence, id LIMIT {few}
) soon GROUP BY ready_queue"""
FEW = 50
QUEUES_AT_ONCE = 50
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
        counts = self.rows(READY_BY_QUEUE, (self.backend,))
        ready = {str(name): int(count) for name, count in counts}
        states = []
        for names in itertools.batched(ready, QUEUES_AT_ONCE):
            for name, since in self.waits_since(names):  # none of a queue that is empty by now
                states.append(QueueState(name, ready[name], since))
        return states

    def waits_since(self, queues: Sequence[str]) -> list[tuple[str, datetime.datetime]]:
        """Since when one of the next tasks of each queue waits, in one statement."""
        connection = self.connection
        one = READY_SINCE.format(
            since=in_range("MIN(since)", connection.vendor),
            # MariaDB would rather sort a table that looks small to it.
            index=" FORCE INDEX (dbtasks_claim)" if connection.vendor == "mysql" else "",
            few=FEW,
        )
        text = " UNION ALL ".join([one] * len(queues))
        parameters = [value for queue in queues for value in (self.backend, queue)]
        found = self.rows("{heads}", parameters, heads=text)
        return [(str(queue), nearest_utc(since, connection)) for queue, since in found]

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
