"""One database: load and faults for a while, then peace, then the verdict."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from django.core.management import call_command
from django.db import connection
from django.db.models import QuerySet

from dbtasks.models import ScheduledTask
from tests.servers import Daemon

from . import audit, journal, leftovers
from .attack import Attacker
from .calls import Call, Fate
from .history import History, load
from .nodes import Node
from .plan import steps
from .producer import Gauge, Producer
from .promises import Broken, broken_promises, claims_by_end, gaps, lost_leases
from .story import timeline
from .tasks import OUTLIVES

PRODUCERS = 2
PROGRESS = 5.0  # seconds between two lines
DRAINED = 180.0  # seconds in which all that is left must be done; a slot's backoff is up to 60
GONE = OUTLIVES + 5.0  # seconds in which the last process must be gone
BURST = 90.0
SHOWN = 3  # broken promises that are told with their timelines
LISTED = 5  # of each kind


@dataclass(frozen=True)
class Setup:
    """`rate`: faults a second. `folder`: for the journal and the logs."""

    name: str
    seconds: float
    seed: str
    nodes: int
    workers: int
    rate: float
    folder: Path


class Campaign:
    def __init__(self, setup: Setup, server: Daemon | None) -> None:
        self.setup = setup
        self.zero = time.monotonic()
        self.journal = setup.folder / "journal"
        os.environ[journal.VARIABLE] = str(self.journal)
        flags = ("-w", str(setup.workers), "--grace", "3")
        self.nodes = [Node(f"node{n}", setup.folder, *flags) for n in range(1, setup.nodes + 1)]
        self.last = Node("last", setup.folder, "-w", "2", "--burst", "--no-periodic")
        self.attacker = Attacker(self.nodes, server)
        self.producers = [Producer(f"{setup.seed}/{n}") for n in range(PRODUCERS)]
        self.gauge = Gauge(self.producers)
        self.broken: list[Broken] = []

    def run(self) -> bool:
        """Whether every promise held."""
        call_command("migrate", run_syncdb=True, interactive=False, verbosity=0)
        audit.install()
        connection.close()
        try:
            self.attack()
            if not self.broken:
                self.make_peace()
            self.broken += leftovers.fatal_lines([*self.nodes, self.last])
            history = load(self.calls, self.attacker.faults, self.journal)
            self.broken += broken_promises(history)
        finally:
            for node in [*self.nodes, self.last]:
                node.destroy()
        self.tell(history)
        return not self.broken

    @property
    def calls(self) -> list[Call]:
        return [call for producer in self.producers for call in producer.calls]

    # Its parts

    def attack(self) -> None:
        setup = self.setup
        for node in self.nodes:
            node.start()
        wait_for(lambda: all(node.is_up for node in self.nodes), 60.0, "every node is up")
        threads: list[Producer | Gauge] = [*self.producers, self.gauge]
        for thread in threads:
            thread.start()
        plan = steps(
            f"{setup.seed}/{setup.name}",
            len(self.nodes),
            setup.rate,
            server=self.attacker.server is not None,
        )
        with ThreadPoolExecutor(1) as pool:
            until = time.monotonic() + setup.seconds
            attack = pool.submit(self.attacker.run, plan, until)
            while not attack.done():
                self.pause(attack.done)
                self.progress("attack")
        for thread in threads:
            thread.stop()
        attack.result()
        self.broken += [Broken("nodes obey and stay", text) for text in self.attacker.broken]
        for producer in self.producers:
            if producer.problem is not None:
                raise producer.problem

    def make_peace(self) -> None:
        """No faults any more: what is left gets done, and everybody leaves."""
        try:
            wait_for(self.is_drained, DRAINED, "all tasks are done", self.still_open)
        except AssertionError as error:
            self.broken.append(Broken("no task is lost", str(error)))
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            complaints = [text for text in pool.map(Node.leave, self.nodes) if text]
        self.broken += [Broken("a node drains and leaves with 0", text) for text in complaints]
        connection.close()
        try:
            wait_for(lambda: not leftovers.processes(self.nodes), GONE, "all processes are gone")
        except AssertionError:
            left = "; ".join(leftovers.processes(self.nodes))
            self.broken.append(Broken(leftovers.PROMISE, f"processes: {left}"))
        # The last occurrences may have been enqueued when no worker was left to run them.
        self.last.start()
        wait_for(lambda: self.last.code() is not None, BURST, "the last node leaves (--burst)")
        if self.last.code() != 0:
            self.broken.append(Broken("--burst ends with 0", f"it ended with {self.last.code()}"))
        self.broken += [*leftovers.rows(), *leftovers.locks()]

    def is_drained(self) -> bool:
        self.attacker.revive()
        return not open_tasks().exists()

    def still_open(self) -> str:
        return f"{open_tasks().count()} tasks left"

    # Telling

    def pause(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PROGRESS
        while time.monotonic() < deadline and not done():
            time.sleep(0.1)

    def progress(self, phase: str) -> None:
        seconds = time.monotonic() - self.zero
        committed = sum(call.fate is Fate.COMMITTED for call in self.calls)
        text = f"{committed} tasks, backlog {self.gauge.backlog}"
        print(f"  {seconds:5.0f} s {phase}: {text}, {len(self.attacker.faults)} faults", flush=True)

    def tell(self, history: History) -> None:
        faults = self.attacker.counts()
        ends = claims_by_end(history)
        executions = sum(map(len, history.executions.values()))
        print(
            f"  {len(history.rows)} tasks ({len(history.occurrences)} periodic), "
            f"{executions} executions, {history.reruns} of them reruns, {lost_leases(history)} "
            f"claims taken after a lost lease, {gaps(history, 'latest')} seconds missed by "
            f"catch_up=latest\n  claims: "
            + ", ".join(f"{count} {how.name.lower()}" for how, count in ends.most_common())
            + f"\n  {faults.total()} faults: "
            + ", ".join(f"{count} x {kind}" for kind, count in faults.most_common()),
            flush=True,
        )
        if self.broken:
            self.tell_what_is_broken(history)

    def tell_what_is_broken(self, history: History) -> None:
        print(f"  {len(self.broken)} PROMISES BROKEN, seed {self.setup.seed}:")
        for promise, count in Counter(broken.promise for broken in self.broken).items():
            print(f"  {count} x {promise}")
            some = [broken for broken in self.broken if broken.promise == promise][:LISTED]
            for broken in some:
                print(f"    - {broken.what} {broken.task_id}".rstrip())
        told = [broken for broken in self.broken if broken.task_id][:SHOWN]
        for broken in told:
            print(timeline(broken.task_id, history, [*self.nodes, self.last], self.zero))
        print(f"  journal and logs: {self.setup.folder}", flush=True)


def open_tasks() -> QuerySet[ScheduledTask]:
    """Those that were enqueued by us: periodic ones come without end."""
    return ScheduledTask.objects.filter(status__in=["READY", "RUNNING"], periodic="")


def wait_for(
    condition: Callable[[], object],
    seconds: float,
    what: str,
    told: Callable[[], str] = lambda: "",
) -> None:
    """Polls and says how it goes. Raises AssertionError when the time is over."""
    began = told_at = time.monotonic()
    while not condition():
        now = time.monotonic()
        if now - began > seconds:
            raise AssertionError(f"waited {seconds:g} s in vain: {what} {told()}".rstrip())
        if now - told_at >= PROGRESS:
            told_at = now
            print(f"  waiting until {what}: {now - began:.0f} s {told()}".rstrip(), flush=True)
        time.sleep(0.1)
