"""One node under load with deaths, and what its processes hold after each round."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
from django.tasks import default_task_backend

from dbtasks.models import ScheduledTask
from tests.app import tasks
from tests.node import Node
from tests.waiting import wait_until

ROUNDS = 10
WARM_UP = 0.1  # of all tasks and deaths: until caches and pools are as large as they get
ALLOWED_MEMORY = 3 << 20  # bytes; a hundred bytes a task would be ten million
BATCH = 1000
VICTIM = "2"  # the slot whose worker dies; that of slot 1 is looked at

# How often a kind comes in a thousand tasks; all others do nothing.
UNUSUAL: tuple[tuple[int, Callable[[], Any], list[Any]], ...] = (
    (50, lambda: tasks.note, ["soak"]),
    (10, lambda: tasks.fail, []),
    (2, lambda: tasks.wait_for_file.using(timeout=0.05), ["/nowhere"]),
    (2, lambda: tasks.leave_transaction_open, []),
    (2, lambda: tasks.close_connection, []),
)


@dataclass(frozen=True)
class Sample:
    """What one process holds."""

    descriptors: int
    threads: int
    memory: int  # bytes that only it uses

    @classmethod
    def of(cls, pid: int) -> "Sample":
        process = psutil.Process(pid)
        return cls(process.num_fds(), process.num_threads(), process.memory_full_info().uss)

    def __str__(self) -> str:
        return f"{self.descriptors} fds, {self.threads} threads, {self.memory / 2**20:.1f} MiB"


Samples = dict[str, Sample]


def soak(count: int, deaths: int, tell: Callable[[str], None] = print) -> list[str]:
    """Runs so many tasks while a worker dies so many times; says what has grown."""
    with Node(workers=2) as node:
        run_round(node, int(count * WARM_UP), int(deaths * WARM_UP))
        looked_at, first = node.child("1"), sample(node)
        last = first
        tell(f"after the warm-up: {described(first)}")
        for number in range(1, ROUNDS + 1):
            began = time.monotonic()
            run_round(node, count // ROUNDS, deaths // ROUNDS)
            took, last = time.monotonic() - began, sample(node)
            tell(f"{number:2} of {ROUNDS}, {took:.0f} s: {described(last)}")
        assert node.child("1") == looked_at, "the worker that was looked at has died"
        died = node.log().count("died: killed by SIGKILL")
    enough = died >= deaths // ROUNDS * ROUNDS
    return growth(first, last) + ([] if enough else [f"only {died} deaths"])


def run_round(node: Node, count: int, deaths: int) -> None:
    """Each death comes while there is work."""
    share = count // max(deaths, 1)
    for _ in range(max(deaths, 1)):
        for left in range(share, 0, -BATCH):
            default_task_backend.enqueue_all(batch(min(left, BATCH)))
        if deaths:
            kill_worker(node)
    wait_until(nothing_left, 3600, "every task ends")


def kill_worker(node: Node) -> None:
    """Returns when its successor has done a task: one that has not would count as a crash loop."""
    with node.log_path.open(errors="replace") as log:
        log.seek(0, os.SEEK_END)
        victim = node.child(VICTIM)
        os.kill(victim, signal.SIGKILL)
        successor = node.child(VICTIM, timeout=10, but=victim)
        assert successor
        wait_until(lambda: has_worked(node, log.read()) or more_work(), 30, "it works")


def more_work() -> bool:
    """False: not yet. The other worker may have been faster with all that there was."""
    if nothing_left():
        default_task_backend.enqueue_all(batch(BATCH))
    return False


def has_worked(node: Node, told: str) -> bool:
    """After the notice of the death, a line of that slot is its successor's."""
    _, died, after = told.rpartition(" died: ")
    return f"{node.name}-{VICTIM} task " in (after if died else told)


def batch(count: int) -> list[Any]:
    kinds: list[Any] = [(tasks.noop, [], {})] * count
    position = 0
    for often, make, args in UNUSUAL:
        for _ in range(often * count // 1000):
            kinds[position] = (make(), args, {})
            position += 7
    return kinds


def nothing_left() -> bool:
    return not ScheduledTask.objects.filter(status__in=["READY", "RUNNING"]).exists()


def sample(node: Node) -> Samples:
    """At rest: no janitor is left, and both workers live."""
    wait_until(lambda: len(node.processes()) == 4, 90, "supervisor, scheduler, two workers")
    pids = {
        "supervisor": node.pid,
        "scheduler": node.child("scheduler"),
        "worker": node.child("1"),
    }
    return {name: Sample.of(pid) for name, pid in pids.items()}


def described(samples: Samples) -> str:
    return "; ".join(f"{name} {one}" for name, one in samples.items())


def growth(first: Samples, last: Samples) -> list[str]:
    """What has grown, in words."""
    found = []
    for name, before in first.items():
        after = last[name]
        if after.descriptors > before.descriptors:
            found.append(f"{name}: {before.descriptors} descriptors became {after.descriptors}")
        if after.threads > before.threads:
            found.append(f"{name}: {before.threads} threads became {after.threads}")
        if after.memory > before.memory + ALLOWED_MEMORY:
            found.append(f"{name}: {before.memory >> 10} KiB became {after.memory >> 10} KiB")
    return found
