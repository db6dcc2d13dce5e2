"""Of several nodes with different settings, whose periodic entries hold: the newest deployment's.

A deployment is known by the fingerprint of all its entries, and as old as the first sight of it: a
node that restarts with old code is no newer for that. It gives way to a newer one, and to an older
one only when nobody runs it any more, as after a rollback. So a rolling deploy changes the entries
once, whatever restarts on the way.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from ..engines import Engine, NodeInfo, PeriodicRow
from ..engines.base import Deployments
from .definition import BoundPeriodic, deployment_fingerprint
from .stored import row_of_entry

logger = logging.getLogger("dbtasks")

REVIEW = 20.0  # seconds between two looks at who runs what
ABANDONED = 60.0  # seconds without a living node after which a deployment has been rolled back


class Deployment:
    """The entries of this node's settings, and whether they are those that hold."""

    def __init__(
        self, engine: Engine, node: NodeInfo, entries: Mapping[str, BoundPeriodic]
    ) -> None:
        self.engine = engine
        self.node = node
        self.entries = entries
        self.fingerprint = deployment_fingerprint(list(entries.values()))
        self.review_at = float("-inf")  # monotonic
        self._begun = False
        self._abandoned_since: float | None = None
        self._told = ""

    def is_in_order(self) -> bool:
        """Whether there is nothing to write; if so, the next review is later."""
        if not self._begun:
            return False
        found = self.engine.deployments(self.fingerprint)
        if found.nodes.get(self.node.id) != self.fingerprint or self.is_to_hold(found):
            return False
        self.review_at = time.monotonic() + REVIEW
        return True

    def review(self) -> None:
        """Notes what we run, and stores our entries if they are to hold. Inside the lock."""
        found = self.engine.deployments(self.fingerprint)
        self.engine.see_deployment(self.fingerprint, self.node.id)
        if self.is_to_hold(found):
            self.hold()
        elif found.holds != self.fingerprint:
            self.tell(found)

    def reviewed(self) -> None:
        """After the commit of `review`: what it wrote is there."""
        self._begun = True
        self.review_at = time.monotonic() + REVIEW

    def is_to_hold(self, found: Deployments) -> bool:
        """Whether our entries are to be stored now."""
        holds, known = found.holds, found.known
        if holds is None or holds == self.fingerprint:
            return holds is None or not self._begun
        others = [id for id, which in found.nodes.items() if which == holds and id != self.node.id]
        if not self._begun:
            ours = known.get(self.fingerprint)
            return ours is None or ours > known[holds] or not others
        return self.is_abandoned(bool(others))

    def is_abandoned(self, runs: bool) -> bool:
        """While we run, the newer deployment may only be restarting: it is given time."""
        if runs:
            self._abandoned_since = None
        elif self._abandoned_since is None:
            self._abandoned_since = time.monotonic()
        since = self._abandoned_since
        return since is not None and time.monotonic() - since >= ABANDONED

    def hold(self) -> None:
        self.engine.hold_deployment(self.fingerprint)
        first_seen = self.engine.deployments(self.fingerprint).known[self.fingerprint]
        now = self.engine.now()
        stored = {row.name: row for row in self.engine.periodic_entries()}
        changed = 0
        for name, entry in self.entries.items():
            row = stored.get(name)
            if row is not None and row.origin != "settings":
                logger.warning(
                    "periodic task %s is in the settings and was also scheduled at run time; that "
                    "one holds until dbtasks.periodic.unschedule(%r) and a restart",
                    name,
                    name,
                )
            elif row is None or not is_stored(entry, row):
                self.engine.save_entry(row_of_entry(entry, "settings", row, now, first_seen))
                changed += 1
        gone = [row for row in stored.values() if self.is_gone(row)]
        for row in gone:
            self.engine.save_entry(row._replace(retired=True, next_due=None))
        self._abandoned_since = None
        if changed or gone:
            logger.info(
                "the periodic entries of this deployment hold: %d new or changed, %d removed",
                changed,
                len(gone),
            )

    def is_gone(self, row: PeriodicRow) -> bool:
        return row.origin == "settings" and not row.retired and row.name not in self.entries

    def tell(self, found: Deployments) -> None:
        """Once for each deployment that holds in place of ours."""
        if self._told == found.holds:
            return
        self._told = str(found.holds)
        stored = {
            row.name: row.fingerprint
            for row in self.engine.periodic_entries()
            if row.origin == "settings" and not row.retired
        }
        ours = {name: entry.fingerprint for name, entry in self.entries.items()}
        differing = sorted(
            name for name in stored.keys() | ours.keys() if stored.get(name) != ours.get(name)
        )
        logger.warning(
            "the periodic entries of this node are not those of the newest deployment, which hold; "
            "they differ in: %s",
            ", ".join(differing) or "nothing that is stored",
        )


def is_stored(entry: BoundPeriodic, row: PeriodicRow) -> bool:
    """Whether the row says what the entry says, and is scheduled."""
    scheduled = row.next_due is not None or row.paused
    return row.fingerprint == entry.fingerprint and not row.retired and scheduled
