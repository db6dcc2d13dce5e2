"""SIGHUP: new code without a second without workers.

The new code is checked in a fresh process first. If that fails we keep serving and say why. Else
the supervisor executes itself in place: same pid, same children. They go on while the new code
boots, and each of them is drained when its successor is ready.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import tempfile
import time
from typing import IO, Any

from .application import Application
from .channel import Channel
from .child import Child, Kind, Life, describe_end
from .config import CHILDREN
from .errands import Errands
from .nursery import Nursery
from .overrun import Overruns
from .pidfile import Pidfile
from .signals import block_all
from .systemd import Notifier

logger = logging.getLogger("dbtasks")

# Seconds that a reload waits for rescues: what they wait for may be what the new code mends.
RESCUES_PATIENCE = 30.0
TOLD = 4000  # characters of a failed check's output that are worth a log line


class Reload:
    """The way from a HUP to workers with new code."""

    def __init__(
        self,
        application: Application,
        nursery: Nursery,
        notifier: Notifier,
        pidfile: Pidfile | None,
        overruns: Overruns,
        errands: Errands,
    ) -> None:
        self.application = application
        self.nursery = nursery
        self.notifier = notifier
        self.pidfile = pidfile
        self.overruns = overruns
        self.errands = errands
        self.output: IO[bytes] | None = None
        self.again = False
        self.approved = False
        self.approved_at = 0.0

    def begin(self, why: str) -> None:
        """Starts the check; a HUP during one is answered by another one after it."""
        if self.output is not None:
            self.again = True
            return
        if self.approved:
            self.approved = False
            self.overruns.resume()
        logger.info("reloading (%s): checking the new code", why)
        try:
            self.output = tempfile.TemporaryFile(prefix="dbtasks-check-")  # noqa: SIM115  outlives us
            ours, theirs = Channel.pair()
            theirs.close()
            pid = self.spawn_check(self.output.fileno())
        except OSError as error:
            # A full disk, no process left, an interpreter that a deploy took away: none of our end.
            self.output_read()
            logger.error("not reloading: the check of the new code cannot be started: %s", error)
            return
        self.nursery.add(Child(Kind.CHECKER, 0, "check", pid, ours))

    def spawn_check(self, output: int) -> int:
        """The new code's `--check` in a fresh process that prints to the descriptor `output`."""
        return os.posix_spawn(
            self.application.argv[0],
            [*self.application.argv, "--check"],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)],
            setsigmask=[],
        )

    def output_read(self) -> str:
        """The end of what the check printed; forgets the check."""
        if self.output is None:
            return ""
        self.output.seek(0)
        told = self.output.read().decode("utf-8", "replace").strip()[-TOLD:]
        self.output.close()
        self.output = None
        return told

    def checked(self, status: int, wanted: bool) -> None:
        """The check is over: executes the new code, or keeps serving and says why."""
        told = self.output_read()
        if not wanted:
            return
        if self.again:
            self.again = False
            self.begin("asked again")
        elif status:
            end = describe_end(status).partition(";")[0]
            logger.error("not reloading: the check of the new code failed (%s)\n%s", end, told)
        else:
            first = " when all dead workers' tasks are rescued" if self.errands.is_busy else ""
            logger.info("the new code is fine; replacing the supervisor in place%s", first)
            self.approved = True
            self.approved_at = time.monotonic()

    def go_on(self) -> None:
        """Becomes the new code as soon as nothing is left to do that only we know of."""
        if not self.approved:
            return
        now = time.monotonic()
        self.overruns.suspend(now)
        late = now - self.approved_at > RESCUES_PATIENCE
        is_busy = self.errands.is_busy or bool(self.overruns.entrusted)
        if is_busy and not late:
            return
        if is_busy:
            logger.warning("the rescue of dead workers' tasks takes long; reloading meanwhile")
            self.overruns.take_back(self.overruns.entrusted)
            self.errands.start_all()
        self.overruns.relieve_all(now)
        self.approved = False
        self.execute()

    def execute(self) -> None:
        """Returns only if it is impossible."""
        self.notifier.reloading()
        environ = {**os.environ, **self.notifier.environ(), CHILDREN: self.legacy()}
        if self.pidfile is not None:
            environ |= self.pidfile.environ()
        block_all()  # a signal must wait until the new image can hear it
        for signum in self.nursery.inbox.read():
            signal.raise_signal(signum)  # one that came since the last look waits as well
        try:
            os.execve(self.application.argv[0], list(self.application.argv), environ)
        except OSError as error:
            from .signals import unblock_all

            unblock_all()
            self.overruns.resume()
            logger.error("not reloading: %s", error)

    def legacy(self) -> str:
        """The children that the next image takes over; their channels survive the exec."""
        taken = []
        for child in self.nursery:
            if child.kind in (Kind.RELOADER, Kind.CHECKER, Kind.EXPORTER):
                child.kill()
                continue
            os.set_inheritable(child.channel.fileno(), True)
            taken.append(
                {
                    "pid": child.pid,
                    "kind": child.kind.value,
                    "slot": child.slot,
                    "identity": child.identity,
                    "node": child.node,
                    "descriptor": child.channel.fileno(),
                }
            )
        return json.dumps(taken)

    def replaced(self, child: Child) -> None:
        """A new child is ready: its predecessors from before the reload may go.

        The old scheduler keeps the old node's lease until the last old worker is gone.
        """
        for old in self.nursery:
            legacy = old.board is None and old.life is Life.RUNNING
            gone_slot = old.slot > self.application.config.workers
            if legacy and old.kind is child.kind and (old.slot == child.slot or gone_slot):
                old.drain()
        self.dismiss_old_schedulers()

    def dismiss_old_schedulers(self) -> None:
        nodes = {child.node for child in self.nursery.workers}
        for old in self.nursery.of_kind(Kind.SCHEDULER):
            if old.board is None and old.node not in nodes:
                old.channel.send("leave")


def adopt_children(nursery: Nursery) -> None:
    """Takes over the children of the image before an exec in place."""
    for entry in json.loads(os.environ.pop(CHILDREN, "[]")):
        nursery.add(adopted(entry))
    if nursery.children:
        logger.info("took over %d children from before the reload", len(nursery.children))


def adopted(entry: dict[str, Any]) -> Child:
    descriptor = int(entry["descriptor"])
    os.set_inheritable(descriptor, False)
    return Child(
        kind=Kind(entry["kind"]),
        slot=int(entry["slot"]),
        identity=str(entry["identity"]),
        pid=int(entry["pid"]),
        channel=Channel(socket.socket(fileno=descriptor)),
        node=str(entry["node"]),
        life=Life.RUNNING,
    )
