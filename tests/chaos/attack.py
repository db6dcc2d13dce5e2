"""Does the faults of a plan to nodes and to the server, and notes what it did when to whom."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.servers import Daemon

from .nodes import Member, Node, kill
from .plan import Step

AT_A_TIME = 12
JANITOR_COMES = 0.5  # seconds
POLL = 0.003
REPLACED = "replacing the supervisor in place"  # the log, when the new code is executed
RELOAD_TAKES = 8.0  # seconds for checking the new code


@dataclass
class Fault:
    """One thing done. `nodes` is empty for what was done to the database. Times are monotonic.

    `roles`: who was killed or stopped, as (node, role); `ended` is None while it lasts.
    """

    kind: str
    nodes: tuple[str, ...] = ()
    roles: tuple[tuple[str, str], ...] = ()
    pids: tuple[int, ...] = ()
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None

    def __str__(self) -> str:
        whom = ", ".join(f"{node}-{role}" for node, role in self.roles) or ", ".join(self.nodes)
        lasted = "" if self.ended is None else f", {self.ended - self.began:.2f} s"
        pids = f" (pid {', '.join(map(str, self.pids))})" if self.pids else ""
        return f"{self.kind}: {whom or 'the database'}{pids}{lasted}"


class Attacker:
    """`broken`: promises about processes that did not hold, found while attacking."""

    def __init__(self, nodes: Sequence[Node], server: Daemon | None) -> None:
        self.nodes = nodes
        self.server = server
        self.faults: list[Fault] = []
        self.broken: list[str] = []
        self.server_lock = threading.Lock()
        self._pool = ThreadPoolExecutor(AT_A_TIME, "fault")
        self._futures: list[Future[None]] = []

    # The plan

    def run(self, plan: Iterable[Step], until: float) -> None:
        """Until that monotonic time, or until something is broken; then all faults are over."""
        for step in plan:
            pause = min(step.wait, until - time.monotonic())
            if pause > 0:
                time.sleep(pause)
            if time.monotonic() >= until or self.broken:
                break
            self._futures.append(self._pool.submit(self.do, step))
            self.revive()
        self._pool.shutdown(wait=True)
        for future in self._futures:
            future.result()
        self.revive()

    def counts(self) -> Counter[str]:
        return Counter(fault.kind for fault in list(self.faults))

    def do(self, step: Step) -> None:
        node = self.nodes[step.node]
        match step.fault.split(" ", 1):
            case ["kill", "worker" | "scheduler" as role]:
                self.kill_one(node, role, step)
            case ["kill", "janitor"]:
                self.kill_janitor(node, step)
            case ["kill", "workers of a node"]:
                self.kill_members(step.fault, node, node.current("worker"))
            case ["stop", "node"]:
                self.stop(step.fault, node, node.current(), step.seconds)
            case ["stop", role]:
                self.stop(step.fault, node, one_of(node.current(role), step), step.seconds)
            case ["kill", "supervisor"]:
                self.exclusively([node], step.fault, self.replace_supervisor)
            case ["kill", "node"]:
                self.exclusively([node], step.fault, self.replace_all)
            case ["kill", "all nodes"]:
                self.exclusively(self.nodes, step.fault, self.replace_all)
            case ["deploy", _]:
                self.exclusively([node], step.fault, self.deploy)
            case ["quit", _]:
                self.exclusively([node], step.fault, self.quit)
            case ["interrupt", _]:
                self.exclusively([node], step.fault, self.interrupt)
            case ["reload", _]:
                self.exclusively([node], step.fault, self.reload)
            case _:
                self.attack_server(step)

    # Children

    def note(self, kind: str, nodes: Iterable[Node], members: Sequence[Member] = ()) -> Fault:
        names = tuple(node.name for node in nodes)
        roles = tuple((names[0], member.role) for member in members if member.role)
        fault = Fault(kind, names, roles, tuple(member.pid for member in members))
        self.faults.append(fault)
        return fault

    def kill_one(self, node: Node, role: str, step: Step) -> None:
        self.kill_members(step.fault, node, one_of(node.current(role), step))

    def kill_members(self, kind: str, node: Node, members: list[Member]) -> None:
        if members:
            fault = self.note(kind, [node], members)
            kill(members, signal.SIGKILL)
            fault.ended = time.monotonic()

    def kill_janitor(self, node: Node, step: Step) -> None:
        """A worker first, since a janitor comes after it and lives for moments only."""
        self.kill_members("kill worker", node, one_of(node.current("worker"), step))
        deadline = time.monotonic() + JANITOR_COMES
        while time.monotonic() < deadline:
            if janitors := node.current("janitor"):
                self.kill_members(step.fault, node, janitors)
                return
            time.sleep(POLL)

    def stop(self, kind: str, node: Node, members: list[Member], seconds: float) -> None:
        if not members:
            return
        fault = self.note(kind, [node], members)
        try:
            kill(members, signal.SIGSTOP)
            time.sleep(seconds)
        finally:
            kill(members, signal.SIGCONT)
            fault.ended = time.monotonic()

    # Nodes

    def exclusively(self, nodes: Sequence[Node], kind: str, action: Callable[[Node], None]) -> None:
        """`action` with each node, unless another fault starts or ends one of them right now."""
        held = [node for node in nodes if node.lock.acquire(blocking=False)]
        try:
            if len(held) == len(nodes):
                members = [member for node in nodes for member in node.current()]
                fault = self.note(kind, nodes)
                fault.pids = tuple(member.pid for member in members)
                for node in nodes:
                    action(node)
                fault.ended = time.monotonic()
        finally:
            for node in held:
                node.lock.release()

    def replace_supervisor(self, node: Node) -> None:
        node.kill_supervisor()
        node.start()

    def replace_all(self, node: Node) -> None:
        node.destroy()
        node.start()

    def deploy(self, node: Node) -> None:
        self.complain(node.leave(signal.SIGTERM))
        node.start()

    def quit(self, node: Node) -> None:
        if node.is_up:
            self.complain(node.leave(signal.SIGQUIT))
            node.start()

    def interrupt(self, node: Node) -> None:
        if node.is_up:
            node.send(signal.SIGINT)
            time.sleep(0.2)
            self.complain(node.leave(signal.SIGINT))
            node.start()

    def reload(self, node: Node) -> None:
        """Waits until it has replaced itself: children are killed meanwhile, but not the node."""
        if node.is_up:
            done = node.log_text().count(REPLACED)
            node.send(signal.SIGHUP)
            deadline = time.monotonic() + RELOAD_TAKES
            while node.log_text().count(REPLACED) == done and time.monotonic() < deadline:
                time.sleep(0.1)

    def complain(self, what: str) -> None:
        if what:
            self.broken.append(what)

    def revive(self) -> None:
        """A node that nobody ended must run: that it does not is a broken promise."""
        for node in self.nodes:
            if not node.lock.acquire(blocking=False):
                continue
            try:
                if (code := node.code()) is not None:
                    self.complain(f"{node.name} ended by itself with {code}")
            finally:
                node.lock.release()

    # The server

    def attack_server(self, step: Step) -> None:
        if self.server is None or not self.server_lock.acquire(blocking=False):
            return
        try:
            fault = Fault(step.fault)
            self.faults.append(fault)
            match step.fault:
                case "restart database":
                    self.server.restart()
                case "kill database":
                    self.server.kill()
                    time.sleep(step.seconds * step.which)
                    self.server.start()
                case "pause database":
                    try:
                        self.server.pause()
                        time.sleep(step.seconds)
                    finally:
                        self.server.resume()
            fault.ended = time.monotonic()
        finally:
            self.server_lock.release()


def one_of(members: list[Member], step: Step) -> list[Member]:
    """The one that the plan means, or none."""
    return members[int(step.which * len(members)) :][:1]
