"""What all processes and threads of a node must know at any time, in memory that they share.

When its lease was last renewed, and whether what is paused has changed since they asked.

A node whose lease has run out may have lost its tasks to another one, so what cannot be renewed
for half of its time is not relied upon: no worker claims anything until it is renewed again.
"""

from __future__ import annotations

import logging
import mmap
import struct
import time

from django.db import DatabaseError

from .engines import Engine, NodeInfo

logger = logging.getLogger("dbtasks")

# Seconds: long enough for a lock of the moment; an outage is not waited for.
FAREWELL_PATIENCE, BETWEEN_FAREWELLS = 1.0, 0.1
_TIME = struct.Struct("=d")
_NUMBER = struct.Struct("=Q")
_RENEWED, _RESUMED, _PAUSES = 0, _TIME.size, 2 * _TIME.size  # where in the page


class Lease:
    """The lease of one node. Made before the fork; whoever renews it tells all others so."""

    def __init__(self, node: NodeInfo) -> None:
        self.node = node
        self._page = mmap.mmap(-1, mmap.PAGESIZE)  # anonymous and shared

    def renew(self, engine: Engine, state: str = "running") -> None:
        """Registers the node or renews its lease. Raises DatabaseError."""
        asked_at = clock()  # before: the lease begins when the database says, not when we hear it
        engine.renew_lease(self.node, state)
        if self.is_lapsed:
            _TIME.pack_into(self._page, _RESUMED, asked_at)
        _TIME.pack_into(self._page, _RENEWED, asked_at)

    def end(self, engine: Engine) -> None:
        """Removes the node, which holds no claims any more. What fails is left to its expiry."""
        began = clock()
        while True:
            try:
                return engine.end_lease(self.node.id)
            except DatabaseError as error:
                engine.close()
                if clock() - began > FAREWELL_PATIENCE:
                    told = "node %s stays registered until its lease expires: %s"
                    return logger.warning(told, self.node.name, error)
            time.sleep(BETWEEN_FAREWELLS)

    @property
    def is_doubtful(self) -> bool:
        """Whether it was never renewed, or not for half of its time."""
        return not self._renewed_at or self.is_lapsed

    @property
    def is_lapsed(self) -> bool:
        """Whether it was renewed before, but not for half of its time."""
        renewed_at = self._renewed_at
        return bool(renewed_at) and clock() - renewed_at > self.node.lease / 2

    @property
    def resumed_at(self) -> float:
        """When it was renewed, by whomever, after it had lapsed; 0.0 if it never did (clock())."""
        return self._read(_RESUMED)

    @property
    def pauses(self) -> int:
        """Another number whenever what is paused has changed; what that is, the database says."""
        (revision,) = _NUMBER.unpack_from(self._page, _PAUSES)
        return int(revision)

    @pauses.setter
    def pauses(self, revision: int) -> None:
        _NUMBER.pack_into(self._page, _PAUSES, revision)

    @property
    def _renewed_at(self) -> float:
        return self._read(_RENEWED)

    def _read(self, offset: int) -> float:
        (at,) = _TIME.unpack_from(self._page, offset)
        return float(at)


def clock() -> float:
    """Seconds that also pass while the machine is suspended, unlike time.monotonic()'s."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()
