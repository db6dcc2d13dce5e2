"""What the supervisor tells others: systemd, the status file, the scheduler."""

from __future__ import annotations

import itertools
import logging
import time
from typing import TYPE_CHECKING, Any

from .child import Kind, Life
from .status import write_status

if TYPE_CHECKING:
    from .parent import Supervisor

logger = logging.getLogger("dbtasks")

STATUS_EVERY = 5.0  # seconds; a health check accepts three times as much
ROWS_PER_MESSAGE = 50  # a message to the scheduler must fit into its channel
EXTEND_EVERY, EXTEND_BY = 5.0, 15.0  # seconds, while draining


class Reporter:
    """Rates and states, told at intervals and at once where somebody waits for it."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.notifier = supervisor.notifier
        self._report_at = self._watchdog_at = self._extend_at = 0.0
        self._told_workers_at = 0.0
        self._complained = False
        self._in_trouble = False

    def ready(self) -> None:
        self.notifier.ready(self.sentence())
        self._report_at = 0.0

    def stopping(self) -> None:
        self.notifier.stopping("draining")
        self._report_at = 0.0

    def tell_scheduler_soon(self) -> None:
        self._told_workers_at = 0.0

    def report(self, now: float) -> None:
        """What is due now. A full disk or a missing directory is told once, and harms nothing."""
        from .parent import Phase

        if (interval := self.notifier.watchdog_interval) and now >= self._watchdog_at:
            self._watchdog_at = now + interval
            self.notifier.watchdog()
        if self.supervisor.phase >= Phase.DRAINING and now >= self._extend_at:
            self._extend_at = now + EXTEND_EVERY
            self.notifier.extend_timeout(EXTEND_BY)
        if now >= self._told_workers_at + self.supervisor.application.backend.parsed.heartbeat / 2:
            self._told_workers_at = now
            self.tell_scheduler()
        if now >= self._report_at:
            self._report_at = now + STATUS_EVERY
            self.notifier.status(self.sentence())
            self.write()

    def look_for_trouble(self) -> None:
        """Once a second: `node_degraded` when trouble begins, once until it is over."""
        reason = self.trouble()
        if reason and not self._in_trouble:
            self.supervisor.errands.announce(
                "node_degraded", node=self.supervisor.node.name, reason=reason
            )
        self._in_trouble = bool(reason)

    def trouble(self) -> str:
        """What is wrong with the node, in words; a single crash is not."""
        if why := self.supervisor.outage.why:
            return why
        looping = [slot for slot in self.supervisor.slots if slot.wanted and slot.is_looping]
        if looping:
            crashes = max(slot.crashes for slot in looping)
            return f"{len(looping)} of its processes crash again and again ({crashes} in a row)"
        return ""

    def sentence(self) -> str:
        """How the node is, in words."""
        workers = self.supervisor.nursery.workers
        views = [child.board.read() for child in workers if child.board is not None]
        done = sum(view.done for view in views)
        busy = sum(view.executing for view in views)
        return f"{self.state()}: {len(workers)} workers, {busy} busy, {done} tasks done"

    def state(self) -> str:
        from .parent import Phase

        supervisor = self.supervisor
        if supervisor.phase >= Phase.DRAINING:
            return "draining"
        if supervisor.phase is Phase.STARTING:
            return "starting"
        slots = [slot for slot in supervisor.slots if slot.wanted]
        down = supervisor.outage.since is not None
        if down or any(slot.is_unwell for slot in slots):
            return "degraded"
        return "running"

    def status(self) -> dict[str, Any]:
        supervisor = self.supervisor
        restarts = {slot.child: slot.restarts for slot in supervisor.slots if slot.child}
        return {
            "node": supervisor.node.name,
            "node_id": supervisor.node.id,
            "state": self.state(),
            "workers_up": sum(c.life is not Life.STARTING for c in supervisor.nursery.workers),
            "workers_wanted": supervisor.wanted_workers,
            "unwell_seconds": round(time.monotonic() - supervisor.vigil.healthy_at, 1),
            "scheduler_up": any(c.ready for c in supervisor.nursery.of_kind(Kind.SCHEDULER)),
            "database_down": supervisor.outage.since is not None,
            "children": [
                {**child.row(restarts.get(child, 0)), "kind": child.kind.value}
                for child in supervisor.nursery
            ],
        }

    def write(self) -> None:
        path = self.supervisor.config.status_file
        if path is None:
            return
        try:
            write_status(path, self.status())
            self._complained = False
        except OSError as error:
            if not self._complained:
                self._complained = True
                logger.error("--status-file %s cannot be written: %s", path, error)

    def tell_scheduler(self) -> None:
        """The node's workers, for the tables that the admin and others read."""
        nursery = self.supervisor.nursery
        restarts = {slot.child: slot.restarts for slot in self.supervisor.slots if slot.child}
        at = time.monotonic()
        rows = [child.row(restarts.get(child, 0)) for child in nursery.workers]
        batches = list(itertools.batched(rows, ROWS_PER_MESSAGE))
        for scheduler in nursery.of_kind(Kind.SCHEDULER):
            for number, batch in enumerate(batches, 1):
                first, last = number == 1, number == len(batches)
                scheduler.channel.send("workers", first=first, last=last, at=at, rows=list(batch))
