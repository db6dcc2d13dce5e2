"""Forks the children, keeps them by pid, and reaps them."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import selectors
import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from dbtasks.engines import Claimant, NodeInfo
from dbtasks.ids import random_suffix
from dbtasks.lease import Lease

from .application import Application
from .board import Board
from .channel import Channel
from .child import Child, Kind, Life
from .hand import SharedHand
from .janitor import Job, run_janitor
from .newborn import Main, fork
from .process import give_back_free_memory
from .reloader import run_reloader
from .roll import Roll
from .scheduler import run_scheduler
from .signals import SignalInbox
from .worker import run_worker

logger = logging.getLogger("dbtasks")


class Nursery:
    """All children that are alive."""

    def __init__(self, application: Application, node: NodeInfo, inbox: SignalInbox) -> None:
        self.application = application
        self.node = node
        self.lease = Lease(node)
        self.roll = Roll()
        self.name = application.config.worker_id
        self.inbox = inbox
        self.selector = selectors.DefaultSelector()
        self.selector.register(inbox, selectors.EVENT_READ)
        self.children: dict[int, Child] = {}
        self._frozen = False

    def __iter__(self) -> Iterator[Child]:
        return iter(list(self.children.values()))

    def of_kind(self, *kinds: Kind) -> list[Child]:
        return [child for child in self.children.values() if child.kind in kinds]

    @property
    def workers(self) -> list[Child]:
        return self.of_kind(Kind.WORKER)

    # Forking

    def fork_worker(self, slot: int) -> Child:
        application, node = self.application, self.node
        identity = f"{self.name}-{slot}.{random_suffix()}"
        hand = SharedHand()
        main = functools.partial(
            run_worker,
            application.backend,
            Claimant(node.id, identity),
            application.queues,
            self.lease,
            self.roll,
            application.config.max_tasks,
            application.config.workers,
            hand,
        )
        name = f"{self.name}-{slot}"
        try:
            child = self.fork(Kind.WORKER, slot, identity, main, name, signal.SIGTERM)
        except OSError:
            hand.close()
            raise
        child.hand = hand
        return child

    def fork_scheduler(self, draining: bool) -> Child:
        application = self.application
        main = functools.partial(
            run_scheduler,
            application.backend,
            self.node,
            application.queues,
            application.config,
            draining,
            self.lease,
            self.roll,
        )
        name = f"{self.name}-scheduler"
        return self.fork(Kind.SCHEDULER, 0, f"{name}.{random_suffix()}", main, name)

    def fork_janitor(self, jobs: Sequence[Job]) -> Child:
        main = functools.partial(run_janitor, self.application.backend, jobs)
        name = f"{self.name}-janitor"
        child = self.fork(Kind.JANITOR, 0, name, main, name)
        child.jobs = list(jobs)
        return child

    def fork_exporter(self, address: tuple[str, int]) -> Child:
        from .exporter import run_exporter

        name = f"{self.name}-metrics"
        main = functools.partial(run_exporter, self.application.backend, address)
        return self.fork(Kind.EXPORTER, 0, name, main, name, signal.SIGKILL)

    def fork_reloader(self) -> Child:
        name = f"{self.name}-reloader"
        return self.fork(Kind.RELOADER, 0, name, run_reloader, name, signal.SIGKILL)

    def fork(
        self, kind: Kind, slot: int, identity: str, main: Main, name: str, parent_death: int = 0
    ) -> Child:
        """A new child. Raises OSError if there is no room for another process or descriptor."""
        self.freeze()
        ours, theirs = Channel.pair()
        try:
            board = Board()
            pid = fork(
                main,
                board,
                (ours, theirs),
                title=f"dbtasks: {name}",
                name=name,
                heirlooms=self.heirlooms(),
                parent_death=parent_death,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        child = Child(kind, slot, identity, pid, ours, board, node=self.node.id)
        self.add(child)
        return child

    def freeze(self) -> None:
        """Before the first fork: what is loaded is shared, and no collection unshares it.

        What loading it left free would be copied bit by bit, when the children use it.
        """
        if not self._frozen:
            self._frozen = True
            gc.collect()
            give_back_free_memory()
            gc.disable()
            gc.freeze()

    def heirlooms(self) -> Iterable[Any]:
        """What a new child must close: the lines to its siblings, and the parent's own."""
        yield self.selector
        yield self.inbox
        for child in self.children.values():
            yield child.channel
            if child.board is not None:
                yield child.board
            if child.hand is not None:
                yield child.hand

    def add(self, child: Child) -> None:
        self.children[child.pid] = child
        self.selector.register(child.channel, selectors.EVENT_READ, child)

    # Reaping

    def reap(self) -> Iterator[tuple[Child, int]]:
        """Children that ended, with their wait status; adopted grandchildren go silently."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            child = self.children.pop(ended.si_pid, None)
            if child is not None:
                # Not reaped yet, so the pid still names its group: end what its task left running.
                child.kill_group()
            _, status = os.waitpid(ended.si_pid, 0)
            if child is None:
                continue
            with contextlib.suppress(KeyError, ValueError):
                self.selector.unregister(child.channel)
            yield child, status

    def mute(self, child: Child) -> None:
        """Stops listening to a channel that is at its end; the child is reaped later."""
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(child.channel)

    def kill_all(self) -> None:
        for child in self:
            if child.life is not Life.KILLED:
                child.kill()
