"""`--metrics-port`: a child that answers Prometheus, so that the parent has nothing to do with it.

It is ended when the node has drained. If it dies another one is forked, later and later; nothing
else depends on it.
"""

from __future__ import annotations

import logging
import random
import select
import signal
from typing import TYPE_CHECKING, Any

from dbtasks.engines.network import CONNECTION_PATIENCE

from .child import Child, Kind, Slot
from .metrics_server import Address, bind
from .newborn import EXIT_CRASHED, EXIT_OK, use_one_connection

if TYPE_CHECKING:
    from dbtasks.backend import DatabaseBackend

    from .board import Board
    from .channel import Channel
    from .nursery import Nursery

logger = logging.getLogger("dbtasks")

LOOK = 1.0  # seconds between two looks whether we are still wanted


def run_exporter(backend: DatabaseBackend, address: Address, channel: Channel, board: Board) -> int:
    """The main function of the child; returns its exit code."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    use_one_connection()
    backend.engine.prepare_connections(CONNECTION_PATIENCE)
    try:
        server = bind(address, backend.alias, lambda: channel.closed)
    except OSError as error:
        logger.error("metrics cannot be served on port %d: %s", address[1], error)
        return EXIT_CRASHED
    channel.send("ready")
    logger.info("metrics are served on port %d", server.server_port)
    sources: list[Any] = [server, channel]
    while not channel.closed:
        board.tick()
        readable, _, _ = select.select(sources, [], [], LOOK)
        if server in readable:
            server.handle_request()
        channel.receive()
    return EXIT_OK


class Exporter:
    """The parent's part: keeps one exporter alive."""

    def __init__(self, nursery: Nursery, address: Address | None) -> None:
        self.nursery = nursery
        self.address = address
        self.slot = Slot(0, Kind.EXPORTER, wanted=address is not None)

    def look(self, now: float) -> None:
        if self.address is None or self.slot.child is not None or now < self.slot.restart_at:
            return
        try:
            self.slot.child = self.nursery.fork_exporter(self.address)
        except OSError as error:
            self.slot.restart_at = now + LOOK
            logger.error("cannot fork the exporter of metrics (%s); trying again", error)

    def ended(self, child: Child, crashed: bool) -> None:
        if self.slot.child is child:
            self.slot.note_end(child, crashed, random.uniform(0.75, 1.25))
            if crashed:
                logger.error("the exporter of metrics died; another one will be started")

    def dismiss(self) -> None:
        if self.slot.child is not None:
            self.slot.child.kill()
